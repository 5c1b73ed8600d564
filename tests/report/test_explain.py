"""The explanation of an int8 model's accuracy (``--explain``)."""

from rendered import one_line, rendered

from toolchain.formats.findings import ClippedTensor, NoiseSource
from toolchain.formats.manifest import AccuracyStep, NodePrecision, TradeOff
from toolchain.report import explain


def test_values_outside_of_ranges_are_listed():
    tensors = [ClippedTensor(tensor=f"t{i}", share=0.5 / (i + 1), beyond=0.25) for i in range(explain.MOST_CLIPPED + 2)]
    shown = one_line(explain.clipped(tensors))
    assert "50.00% 25% of the range t0" in shown
    assert shown.endswith("and 2 tensors with fewer")
    assert "no value" in one_line(explain.clipped(()))


def test_every_step_with_its_verdict():
    shown = rendered(
        explain.steps(
            [
                AccuracyStep(name="ranges", without_db=10.0, with_db=12.34, used=True),
                AccuracyStep(name="rounding", without_db=12.34, with_db=12.3, used=False),
            ]
        )
    )
    ranges, rounding = shown.splitlines()[2:4]
    assert ranges.split() == ["ranges", "10.0", "dB", "12.3", "dB"]
    assert rounding.endswith("not kept")


def test_the_worst_causes_and_the_rest_together():
    noises = [
        NoiseSource(kind="weight", at="conv", op="Conv", share=0.5, fidelity_db=20.0),
        NoiseSource(kind="activation", at="t", op="Relu", share=0.3, fidelity_db=30.0),
        *(NoiseSource(kind="activation", at=f"u{i}", op="Add", share=0.1, fidelity_db=40.0) for i in range(2)),
    ]
    conv = NodePrecision(node="conv", op="Conv", precision="int8")
    lines = rendered(explain.causes(noises, [conv], most=2)).splitlines()
    assert lines[2].split() == ["50.0%", "20.0", "dB", "Conv", "conv", "(weight)", "int8"]
    assert lines[3].split() == ["30.0%", "30.0", "dB", "Relu", "t"]
    assert lines[4].split() == ["20.0%", "2", "others"]


def test_the_curve():
    lines = rendered(
        explain.tradeoff(
            [TradeOff(float_nodes=0, score=0.7, speedup=2.1), TradeOff(float_nodes=12, score=0.72, speedup=1.5)]
        )
    ).splitlines()
    assert lines[2].split() == ["0", "0.7000", "2.10×"]
    assert lines[3].split() == ["12", "0.7200", "1.50×"]
