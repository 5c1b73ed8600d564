"""Values outside the ranges, counted by NumPy."""

import numpy as np
import pytest
import small_models

from toolchain.quantization.accuracy.clipping import count_clipped
from toolchain.quantization.ranges import Affine


def test_values_outside_the_grid_are_counted():
    model = small_models.model("y = Mul(x, k)", "float[1, 8] x", "y", {"k": np.float32(2)})
    feed = {"x": np.float32([[-1, 0, 1, 2, 3, 4, 5, 6]])}
    # y is -2 ... 12; a step of 0.02 from zero point 0 holds 0 to 5.1
    (found,) = count_clipped(model, {"y": Affine(0.02, 0), "x": Affine(0.1, 100)}, [feed])
    assert found.tensor == "y"
    assert found.share == pytest.approx(5 / 8)
    assert found.beyond == pytest.approx((12 - 5.1) / 5.1)


def test_rounding_at_the_end_of_the_grid_is_no_clipping():
    model = small_models.model("y = Neg(x)", "float[1, 2] x", "y", {})
    assert count_clipped(model, {"x": Affine(0.1, 0)}, [{"x": np.float32([[25.54, -0.04]])}]) == ()
    assert count_clipped(model, {}, [{"x": np.float32([[1, 2]])}]) == ()


def test_values_that_no_reader_tells_apart_do_not_count():
    model = small_models.model("c = Neg(x) y = HardSwish(c)", "float[1, 4] x", "y", {})
    feed = {"x": np.float32([[20, 5, 0, -1]])}  # c is -20, -5, 0, 1
    assert count_clipped(model, {"c": Affine(0.1, 30)}, [feed]) == ()
    (found,) = count_clipped(model, {"c": Affine(0.1, 20)}, [feed])
    assert found.share == pytest.approx(2 / 4), "below -2 HardSwish still tells values apart"
    assert found.beyond == pytest.approx(10 / 255), "the distance ends at the limit"
