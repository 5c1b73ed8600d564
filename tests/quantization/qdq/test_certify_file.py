"""Certificates read from a manifest, or computed from the integers of any quantized file."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import onnx
import pytest
import qdq_models
from onnx import numpy_helper
from rich.console import Console

from toolchain.benchmark import emulator
from toolchain.core.errors import DataError
from toolchain.devices.detect import detect_host
from toolchain.formats.manifest import Doubt, Exactness, Manifest, Proof
from toolchain.inspection.model import inspect, record
from toolchain.quantization.exactness import certificate
from toolchain.quantization.qdq.certify_file import manifest_of
from toolchain.report.certificate import render as render_certificate

NATIVE = detect_host().int8.activations == "s8"


def text(found):
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(render_certificate(found))
    return " ".join(console.file.getvalue().split())


def test_an_exported_folder_shows_its_certificate(exported, toolchain, workplace):
    for target in ("host", "raspberry-pi-5"):
        manifest = Manifest.load(workplace / "out" / target / "manifest.json")
        found = inspect(workplace / "out" / target)
        assert found.certificate == manifest.exactness
        int8 = {row.node for row in manifest.precision if row.precision == "int8"}
        assert {node for proof in manifest.exactness.proofs for node in proof.nodes} == int8
        assert manifest.exactness.doubts == ()
    shown = toolchain("inspect out/raspberry-pi-5")
    assert "exactness: same bits on every processor (s8 activations)" in shown.out
    assert "2 × QLinearConv" in shown.out
    assert toolchain("inspect out/host --json").result["exactness"]["overflow_free"] is True


def test_an_exported_folder_shows_what_is_left_of_the_answer(exported, toolchain, workplace):
    stored = Manifest.load(workplace / "out/host/manifest.json").verdict
    assert stored is not None
    assert "what is left of float's answer" in toolchain("inspect out/host").out
    assert toolchain("inspect out/host --json").result["verdict"]["samples"] == stored.samples
    lost = Manifest.load(workplace / "out/host/manifest.json").model_copy(
        update={"verdict": stored.model_copy(update={"lost": ("a part: nothing is left",)})}
    )
    lost.save(workplace / "out/host/manifest.json")
    assert "LOST: a part: nothing is left" in toolchain("inspect out/host").out


def test_an_exported_model_that_stayed_float_is_described_as_it_is(toolchain, workplace):
    recipe = (workplace / "fast.toml").read_text()
    (workplace / "float.toml").write_text(f"{recipe}quantize.keep_float = ['Conv', 'Gemm']\n")
    done = toolchain("export net.onnx -t host -c samples.npz --recipe float.toml -o out --json")
    assert done.code == 0, done.err
    assert [row["variant"] for row in done.result["results"]["measurements"]] == ["fp32", "float"]
    shown = toolchain("inspect out/host").out
    assert "the model stayed float when it was exported" in shown
    assert "as int8" not in shown
    assert "no operator is int8" in shown
    assert "the recipe keeps it float" in shown
    assert toolchain("inspect out/host --json").result["int8_macs"] == 0


def test_a_file_beside_its_manifest_is_certified_by_it_and_a_changed_one_by_itself(exported, workplace):
    folder = workplace / "out" / "host"
    assert manifest_of(folder / "model.onnx") == Manifest.load(folder / "manifest.json")
    model = onnx.load(folder / "model.onnx")
    model.producer_name = "somebody"
    onnx.save(model, folder / "model.onnx")
    assert manifest_of(folder / "model.onnx") is None
    kernels = {proof.kernel for proof in inspect(folder / "model.onnx").certificate.proofs}
    assert {"QLinearConv", "QGemm"} <= kernels


def test_a_folder_that_is_no_export_is_one_sentence(exported, toolchain, workplace):
    out = workplace / "out"
    with pytest.raises(DataError, match=r"is not an exported folder with a model\.onnx; give a model file"):
        inspect(out)
    shutil.move(out / "host" / "model.onnx", out / "model.onnx")
    with pytest.raises(DataError, match="is not an exported folder with"):
        inspect(out / "host")
    assert toolchain("inspect out").code == 2


def test_a_manifest_of_another_program_is_ignored(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "an app"}))
    path = qdq_models.residual(tmp_path / "m.onnx", signed=NATIVE)
    assert inspect(path).certificate is not None


def test_a_file_of_others_is_proven_from_its_integers(tmp_path):
    found = inspect(qdq_models.residual(tmp_path / "m.onnx", signed=NATIVE))
    kernels = {proof.kernel: proof for proof in found.certificate.proofs}
    assert len(kernels["QLinearConv"].nodes) == 2
    # 510 · Σ|w| of the 144 weights below 61 is a trifle of int32.
    assert kernels["QLinearConv"].used < 510 * 144 * 60 / 2**31
    assert found.certificate.activations == ("s8" if NATIVE else "u8")
    # Its sum's scales are all 3/64, so the results are whole: as far from a tie as can be.
    assert kernels["QLinearAdd"].used < 0.01
    assert record(found)["exactness"]["proofs"]


def test_pairs_that_saturate_are_reported(tmp_path):
    found = inspect(qdq_models.heavy_conv(tmp_path / "m.onnx", signed=NATIVE)).certificate
    assert [doubt.reason for doubt in found.doubts] == [certificate.PAIR_SATURATION]
    assert not found.overflow_free
    shown = text(found)
    assert "not proven; int8 operators may differ between processors" in shown
    assert "1 × QLinearConv pairs of products may saturate" in shown


def test_weights_with_a_zero_point_have_no_proof(tmp_path):
    path = qdq_models.residual(tmp_path / "m.onnx", signed=NATIVE)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "w1_zero_point":
            tensor.CopyFrom(numpy_helper.from_array(np.ones(16, np.int8), tensor.name))
    onnx.save(model, path)
    found = inspect(path).certificate
    assert [(doubt.kernel, doubt.reason) for doubt in found.doubts if doubt.kernel] == [
        ("QLinearConv", certificate.UNPROVEN)
    ]
    assert not found.overflow_free


def test_float_doubts_do_not_affect_int8():
    proof = Proof(kernel="QGemm", proof=certificate.EXACT_PRODUCT, nodes=("a", "b"), used=0.125)
    doubt = Doubt(op="Softmax", kernel=None, reason=certificate.FLOAT, nodes=("s", "t"))
    shown = text(Exactness(activations="u8", overflow_free=True, exceptions=("x",), proofs=(proof,), doubts=(doubt,)))
    assert "same integers on every processor; float may differ in the last digits" in shown
    assert "2 × QGemm" in shown
    assert "(uses at most 12.50% of what the proof allows)" in shown
    assert "2 × Softmax computed in float" in shown
    assert "(e.g. s)" in shown


def test_every_processor_that_is_spoken_of_can_be_asked_for():
    spoken_of = {"cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76", "cortex-a710", "max", "x86-avx2"}
    assert spoken_of <= set(emulator.CPUS)
