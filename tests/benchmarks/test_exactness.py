"""Real models give the same bits on other processors, or float operators are shown to be the only cause."""

from __future__ import annotations

import pytest

from benchmarks import exactness
from benchmarks.models import MODELS, NAMES, missing
from toolchain.benchmark import emulator

pytestmark = pytest.mark.slow
EMULATOR = emulator.folder()  # read now: in a test the cache is another folder
EVERYWHERE = ("mobilenet_v2", "mnist_cnn", "svhn_cnn", "ppocr_cls", "crepe_tiny")
"""Models that run on every processor: the hardest one for int8, and those that take seconds."""
APART = ("cortex-a53", "max")
"""The oldest core, and one with every feature there is: the other models run on these two."""
LEFT_OUT = ("crepe_full", "yolov8n_layout", "picodet_layout", "waifu2x_resnet")
"""Models whose emulation takes minutes for each sample; `python -m benchmarks.exactness` runs them."""

PAIRS = [
    (name, cpu)
    for name in NAMES
    if name not in LEFT_OUT
    for cpu in (exactness.PROCESSORS if name in EVERYWHERE else APART)
]


@pytest.fixture(scope="module")
def subject(request, tmp_path_factory):
    if reason := missing(request.param):
        pytest.skip(reason)
    return exactness.prepare(MODELS[request.param], tmp_path_factory.mktemp(request.param), samples=1)


@pytest.mark.parametrize(("subject", "cpu"), PAIRS, indirect=["subject"])
def test_int8_is_the_same_everywhere(subject, cpu, monkeypatch):
    """u8 on x86 and s8 on ARM against u8 here."""
    monkeypatch.setenv("TOOLCHAIN_EMULATOR", str(EMULATOR))
    if reason := emulator.unavailable(cpu):
        pytest.skip(reason)
    encoding = "u8" if cpu.startswith("x86") else "s8"
    whole = exactness.compare(subject.whole, encoding, cpu)
    if whole.differing:
        assert subject.exceptions, "differs, and nothing is named"
    if whole.differing and subject.proven:
        assert exactness.compare(subject.int8, encoding, cpu).differing == 0
