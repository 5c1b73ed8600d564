"""Real models give the same bits on other processors, or float operators are shown to be the only cause."""

from __future__ import annotations

import pytest

from benchmarks import exactness
from benchmarks.models import MODELS, NAMES, missing
from toolchain.benchmark import emulator

pytestmark = pytest.mark.slow
REAL = emulator.folder()  # read now: a test's cache is another
EVERYWHERE = ("mobilenet_v2",)
ONCE_MORE = ("crepe_full",)  # what crepe_tiny computes, 45 times as much of it; `python -m benchmarks.exactness` has it
APART = ("cortex-a53", "max")  # the oldest core, and every feature there is


@pytest.fixture(scope="module", params=[name for name in NAMES if name not in ONCE_MORE])
def subject(request, tmp_path_factory):
    if reason := missing(request.param):
        pytest.skip(reason)
    return exactness.prepare(MODELS[request.param], tmp_path_factory.mktemp(request.param), samples=1)


@pytest.mark.parametrize("cpu", exactness.PROCESSORS)
def test_int8_is_the_same_everywhere(cpu, subject, monkeypatch):
    """u8 on x86 and s8 on ARM against u8 here."""
    if cpu not in APART and subject.name not in EVERYWHERE:
        pytest.skip("the two most different cores stand for all, with this model")
    monkeypatch.setenv("TOOLCHAIN_EMULATOR", str(REAL))
    if reason := emulator.unavailable(cpu):
        pytest.skip(reason)
    encoding = "u8" if cpu.startswith("x86") else "s8"
    whole = exactness.compare(subject.whole, encoding, cpu)
    if whole.differing:
        assert subject.exceptions, "differs, and nothing is named"
    if whole.differing and subject.proven:
        assert exactness.compare(subject.int8, encoding, cpu).differing == 0
