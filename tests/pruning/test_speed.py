"""Measuring the speed of two whole models in fresh processes."""

import numpy as np
import pytest
import small_models
from small_models import weights

from toolchain.latency.race import Race
from toolchain.pruning.speed import measure_here, race_speedup


def convolution(channels):
    source = "y = Conv<pads = [1, 1, 1, 1]>(x, w)"
    shape = "float[1, 16, 64, 64] x", f"float[1, {channels}, 64, 64] y"
    return small_models.model(source, *shape, weights(w=(channels, 16, 3, 3)))


@pytest.mark.slow
def test_a_smaller_model_is_faster_within_an_interval():
    feed = {"x": np.zeros((1, 16, 64, 64), np.float32)}
    speed = measure_here(convolution(64), convolution(16), feed)
    low, high = speed.interval
    assert 1.5 < low < speed.speedup.value < high
    assert speed.first_ms > 0


def test_a_race_is_summarized_by_the_median_of_its_rounds():
    assert race_speedup(Race((2.0, 4.0, 9.0), (1.0, 2.0, 3.0))) == 2.0
