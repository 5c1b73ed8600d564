"""Times of parts of a model: estimated, and measured once."""

import pytest
from small_models import model, weights

from toolchain.pruning.latency import counted_clock, measured_clock


def part(channels, seed=0):
    """A convolution with this number of output channels."""
    body = "y = Conv(x, w)"
    return model(body, "float[1, 8, 6, 6] x", f"float[1, {channels}, 6, 6] y", weights(seed, w=(channels, 8, 1, 1)))


def test_counted_channels_are_rounded_up_to_what_kernels_take():
    costs = dict(zip((16, 17, 32), counted_clock(16)([part(n) for n in (16, 17, 32)]), strict=True))
    finer = dict(zip((16, 17, 32), counted_clock(1)([part(n) for n in (16, 17, 32)]), strict=True))
    assert costs[16] < costs[17] < costs[32]
    assert costs[32] - costs[17] < finer[32] - finer[17]
    assert finer[17] - finer[16] == pytest.approx((finer[32] - finer[16]) / 16)


@pytest.mark.parametrize("int8", [False, True])
def test_more_work_takes_longer(int8):
    few, many = measured_clock(int8=int8)([part(16), part(1024)])
    assert 0 < few < many


def test_measured_times_are_cached_whatever_the_weights():
    first = measured_clock(int8=False)([part(16), part(32)])
    floats, integers = (
        measured_clock(int8=int8, time_parts=lambda parts: [0.0] * len(parts)) for int8 in (False, True)
    )
    assert floats([part(16, seed=1), part(32, seed=1)]) == first
    assert floats([part(16), part(48)]) == [0.0, 0.0]
    assert integers([part(16), part(32)]) == [0.0, 0.0]


def test_a_damaged_cache_entry_is_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLCHAIN_CACHE", str(tmp_path))
    measured_clock(int8=False)([part(16)])
    [file] = tmp_path.rglob("latency/*.json")
    file.write_text("[")
    assert measured_clock(int8=False)([part(16)])[0] > 0
