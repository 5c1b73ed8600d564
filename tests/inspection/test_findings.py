"""Findings of an export, and its report made again from its folder."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest
from small_models import proto, weights

from toolchain.formats.findings import Findings
from toolchain.formats.manifest import Manifest
from toolchain.formats.results import Results
from toolchain.inspection.findings import _layers


@pytest.mark.slow
def test_an_export_profiles_both_variants_layer_by_layer(exported):
    found = Findings.load("out/findings.json")
    assert found.when == Results.load("out/results.json").measurements[0].when
    assert [profile.variant for profile in found.profiles] == ["fp32", "int8"]
    products = {p.node for p in Manifest.load("out/host/manifest.json").precision if p.op in ("Conv", "Gemm")}
    assert len(products) == 3
    for profile in found.profiles:
        assert {
            o.layer for o in profile.operators if o.op.removeprefix("QLinear") in ("Conv", "Gemm", "QGemm")
        } == products
        assert all(o.median_us >= 0 for o in profile.operators)
    assert sorted(found.macs[name] for name in products) == [160, 16 * 16 * 8 * 3 * 9, 8 * 8 * 16 * 8 * 9]
    assert [fit.target for fit in found.fits] == ["host", "raspberry-pi-5"]
    assert found.causes == ()
    assert found.pruning is None


def test_the_report_can_be_made_again_from_its_folder(exported, toolchain):
    done = toolchain("compare out --format html -o again.html")
    assert (done.code, done.out, done.err) == (0, "", "written: again.html\n")
    assert Path("again.html").read_text() == Path("out/report.html").read_text()
    assert toolchain("compare out/results.json --format html").out == Path("again.html").read_text()


@pytest.mark.slow
def test_explained_and_pruned(toolchain, workplace, always_faster):
    recipe = Path("fast.toml").read_text() + "prune = { keep = 0.7 }\n"
    Path("prune.toml").write_text(recipe)
    done = toolchain("export net.onnx -t host -c samples.npz --recipe prune.toml --max-drop off --explain -o out")
    assert done.code == 0, done.err
    assert done.err.endswith("report: out/report.html\n")
    found = Findings.load("out/findings.json")
    assert found.pruning is not None
    assert found.pruning.groups[0].kept < found.pruning.groups[0].size
    assert sum(cause.share for cause in found.causes) == pytest.approx(1)
    assert "What was pruned" in Path("out/report.html").read_text()


def test_layers_have_the_names_that_onnxruntime_gives_to_what_it_fuses():
    body = "c = Conv(x, w) r = Relu(c) s = Sigmoid(r) y = Add(s, s)"
    model = ir.from_proto(proto(body, "float[1, 3, 8, 8] x", "float[1, 4, 8, 8] y", weights(w=(4, 3, 1, 1))))
    for node, name in zip(model.graph, ("conv", "relu", "sigmoid", "add"), strict=True):
        node.name = name
    found = _layers(model)
    assert (found["conv"], found["c"], found["r"]) == ("conv", "conv", "conv")
    assert (found["s"], found["y"], found["relu"]) == ("sigmoid", "add", "relu")


def test_a_table_is_not_written_to_a_file(toolchain, exported):
    done = toolchain("compare out -o table.txt")
    assert done.code == 2
    assert done.sentence.startswith("--output: needs another format than table, which is for the terminal; ")
    assert json.loads(toolchain("compare out --json").out)["regressions"] == []
