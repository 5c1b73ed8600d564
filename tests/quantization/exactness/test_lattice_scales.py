"""Int8 sums on a lattice are never near a rounding tie: every pair of operands is tried."""

import numpy as np
import pytest
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.quantization.exactness import lattice_scales
from toolchain.quantization.exactness.lattice_scales import Site, align, lattice_sites
from toolchain.quantization.ranges import Affine

# What ARM's 22-bit fixed-point addition may be off by, over its operands of at most 255 steps: 255 · 2^-22 · 2.
KERNEL_ERROR = 2.0**-13


def nearest_tie(inputs, output, area=1):
    """Distance of Σ s_i q_i / (area s_out) from the nearest half-integer, over all integers q_i in -255..255.

    Sums beyond the output's 255 steps saturate and may be anything.
    """
    q = np.arange(-255, 256)
    sums = np.zeros(1)
    for grid in inputs:
        sums = np.unique(np.add.outer(sums, q * np.float64(grid.scale) / area).ravel())
    real = sums / np.float64(output.scale)
    real = real[np.abs(real) < 256]
    return np.abs(real - np.floor(real) - 0.5).min()


scales = st.floats(1e-4, 1e2).map(lambda x: float(np.float32(x)))
grids = st.builds(Affine, scales, st.integers(0, 255))


def comparable(draw_scale):
    """Grids whose scales are within a factor of about 8 of each other, as the operands of a residual sum are."""
    factor = st.floats(1 / 8, 8)
    return st.tuples(draw_scale, factor, factor).map(
        lambda t: [Affine(float(np.float32(t[0] * f)), 128) for f in (1.0, t[1], t[2])]
    )


@given(comparable(scales))
@settings(max_examples=30, deadline=None)
def test_no_two_operands_sum_to_a_tie(three):
    grids = dict(zip("abc", three, strict=True))
    assert align([Site("add", ("a", "b"), "c")], grids) == {}
    assert nearest_tie([grids["a"], grids["b"]], grids["c"]) > 4 * KERNEL_ERROR


@given(comparable(scales))
@settings(max_examples=30, deadline=None)
def test_scales_grow_slightly_and_never_shrink(three):
    """By at most two units, each about a five-hundredth of a step of the sum."""
    grids = dict(zip("abc", three, strict=True))
    align([Site("add", ("a", "b"), "c")], grids)
    for before, after in zip(three, grids.values(), strict=True):
        assert after.zero_point == before.zero_point
        assert after.scale >= before.scale * (1 - 1e-6)
        assert after.scale - before.scale <= three[2].scale * 2.1 / lattice_scales.DENOMINATOR


@given(scales, st.floats(1, 8), st.sampled_from((4, 9, 49, 64, 196)))
@settings(max_examples=30, deadline=None)
def test_no_average_is_a_tie(scale, ratio, area):
    """The sum of an area's integers is any integer up to 255 · area; all of them are tried."""
    grids = {"x": Affine(scale, 0), "y": Affine(float(np.float32(scale / ratio)), 0)}
    assert align([Site("pool", ("x",), "y", area)], grids) == {}
    sums = np.arange(255 * area + 1) * np.float64(grids["x"].scale) / area / np.float64(grids["y"].scale)
    reachable = sums[sums < 256]
    assert np.abs(reachable - np.floor(reachable) - 0.5).min() > KERNEL_ERROR


def test_an_addition_of_a_tensor_to_itself_is_no_tie():
    grids = {"a": Affine(0.01, 3), "c": Affine(0.02, 3)}
    assert align([Site("add", ("a", "a"), "c")], grids) == {}
    assert nearest_tie([grids["a"]] * 2, grids["c"]) > KERNEL_ERROR


def test_chains_keep_what_was_settled_before():
    """A residual network has this case: each sum is an operand of the next."""
    rng = np.random.default_rng(0)
    names = [f"t{i}" for i in range(9)]
    grids = {name: Affine(float(np.float32(rng.uniform(0.01, 0.05))), 100) for name in names}
    before = dict(grids)
    where = [Site(f"add{i}", (names[2 * i], names[2 * i + 1]), names[2 * i + 2]) for i in range(4)]
    assert align(where, grids) == {}
    for site in where:
        assert nearest_tie([grids[name] for name in site.inputs], grids[site.output]) > KERNEL_ERROR
    for name in names:
        assert grids[name].scale == pytest.approx(before[name].scale, rel=0.03)


def test_two_operands_settled_elsewhere_are_refused_with_the_reason():
    grids = {name: Affine(0.01 * i, 0) for i, name in enumerate("abcdef", start=1)}
    where = [Site("one", ("a", "b"), "c"), Site("two", ("d", "e"), "f"), Site("three", ("c", "f"), "g")]
    grids["g"] = Affine(0.1, 0)
    before = grids["g"]
    refused = align(where, grids)
    assert refused == {"three": lattice_scales.SCALES_FIXED}
    assert grids["g"] == before


def test_a_settled_scale_is_not_touched_and_a_settled_output_refuses():
    grids = {"a": Affine(0.01, 0), "b": Affine(0.013, 0), "c": Affine(0.02, 0)}
    align([Site("add", ("a", "b"), "c")], grids, settled=["b"])
    assert grids["b"].scale == 0.013
    assert nearest_tie([grids["a"], grids["b"]], grids["c"]) > KERNEL_ERROR
    assert align([Site("add", ("a", "b"), "c")], dict(grids), settled=["c"]) == {"add": lattice_scales.SCALES_FIXED}


@given(comparable(scales), st.sets(st.sampled_from("abc")))
@settings(max_examples=30, deadline=None)
def test_a_capped_grid_never_grows(three, capped):
    grids = dict(zip("abc", three, strict=True))
    align([Site("add", ("a", "b"), "c")], grids, capped=capped)
    for name, before in zip("abc", three, strict=True):
        if name in capped:
            assert grids[name].scale <= before.scale * (1 + 1e-6)
    assert nearest_tie([grids["a"], grids["b"]], grids["c"]) > KERNEL_ERROR


# --- which nodes sum ---


def test_sites_are_additions_and_averages():
    model = small_models.model(
        """[add] a = Add(x, z) [pool] b = AveragePool<kernel_shape = [2, 3]>(a) [global] c = GlobalAveragePool(a)
        [max] d = MaxPool<kernel_shape = [2, 2]>(a) [mul] y = Mul(c, c)""",
        "float[N, 2, 4, 5] x, float[N, 2, 4, 5] z",
        "float[N, 2, 1, 1] y, float[N, 2, 3, 3] b, float[N, 2, 3, 4] d",
    )
    group = {name: name.upper() for name in "xzabcdy"}
    output_of = {"add": "a", "pool": "b", "global": "c", "max": "d", "mul": "y"}
    assert lattice_sites(model.graph, group, output_of) == [
        Site("add", ("X", "Z"), "A", 1),
        Site("pool", ("A",), "B", 6),
        Site("global", ("A",), "C", 20),
    ]
