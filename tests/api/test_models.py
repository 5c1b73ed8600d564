"""The main job on real pretrained models: every model exports for every target, and its manifest is true.

The weights and samples come from packages that ``benchmarks/fetch.sh`` unpacks; a model whose data is absent is
skipped with the reason.
"""

from __future__ import annotations

from itertools import islice

import pytest

from benchmarks.models import MODELS, NAMES, missing
from toolchain import export
from toolchain.api.verify import verify
from toolchain.benchmark import emulator
from toolchain.devices.catalogue import known_targets
from toolchain.formats.recipe import Bench, Recipe

pytestmark = pytest.mark.slow

QUICK = Recipe(bench=Bench(warmup_s=0.0, min_time_s=0.0, min_runs=3, rounds=1))
SAMPLES = 12
LARGE_INPUTS = ("yolov8n_layout", "picodet_layout", "waifu2x_resnet")
"""Models of several GMAC for each sample; `python -m benchmarks.quantize` measures them."""


def exported(name, folder, targets):
    if reason := missing(name):
        pytest.skip(reason)
    model = MODELS[name]
    feeds = list(islice(model.calibration(SAMPLES), SAMPLES))
    return export(model.onnx_path(), targets=targets, calibration=feeds, output=folder, recipe=QUICK)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LARGE_INPUTS])
def test_every_model_exports_for_every_target(name, tmp_path):
    done = exported(name, tmp_path / "out", known_targets())
    assert [m.target for m in done.manifests] == known_targets()
    for manifest in done.manifests:
        silent = [p.node for p in manifest.precision if p.precision == "float" and not p.reason]
        assert not silent, f"float without a reason: {silent}"
        assert manifest.exactness.overflow_free
        assert not verify(tmp_path / "out" / manifest.target).mismatches
    assert done.quantized.audit.clean
    rows = {(row.target, row.evidence) for row in done.results.measurements}
    assert {target for target, evidence in rows if evidence == "measured"} == {"host"}


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mobilenet") / "out"
    exported("mobilenet_v2", folder, ["x86-avx2", "raspberry-pi-5"])
    return folder


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a72", "cortex-a76", "x86-avx2"])
@pytest.mark.parametrize("target", ["x86-avx2", "raspberry-pi-5"])
def test_mobilenet_gives_the_same_bits_on_every_processor(mobilenet, target, cpu):
    if reason := emulator.unavailable(cpu):
        pytest.skip(reason)
    verification = verify(mobilenet / target, on=f"emulator:{cpu}")
    assert verification.tolerance == 0.0
    assert not verification.mismatches
