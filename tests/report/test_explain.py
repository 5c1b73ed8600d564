"""What ``--explain`` shows."""

from rich.console import Console

from toolchain.quantization.accuracy.mixed_precision import Point
from toolchain.quantization.accuracy.sensitivity import Noise
from toolchain.quantization.accuracy.steps import Step
from toolchain.quantization.selection import Choice
from toolchain.report import explain


def text(renderable):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_every_step_with_its_verdict():
    found = text(explain.steps([Step("ranges", 10.0, 12.34, True), Step("rounding", 12.34, 12.3, False)]))
    ranges, rounding = found.splitlines()[2:4]
    assert ranges.split() == ["ranges", "10.0", "dB", "12.3", "dB"]
    assert rounding.endswith("left out")


def test_the_worst_causes_and_the_rest_together():
    noises = [Noise("weight", "conv", "Conv", 1e-2, 0.5), Noise("activation", "t", "Relu", 1e-3, 0.3)]
    noises += [Noise("activation", f"u{i}", "Add", 1e-4, 0.1) for i in range(2)]
    lines = text(explain.causes(noises, [Choice("conv", "Conv", True)], worst=2)).splitlines()
    assert lines[2].split() == ["50.0%", "20.0", "dB", "Conv", "conv", "(weight)", "int8"]
    assert lines[3].split() == ["30.0%", "30.0", "dB", "Relu", "t"]
    assert lines[4].split() == ["20.0%", "2", "others"]


def test_the_curve():
    lines = text(explain.tradeoff([Point(0, 0.7, 2.1), Point(12, 0.72, 1.5)])).splitlines()
    assert lines[2].split() == ["0", "0.7000", "2.10x"]
    assert lines[3].split() == ["12", "0.7200", "1.50x"]
