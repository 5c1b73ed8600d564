"""Tie margins, compared with the arithmetic of the kernels, written in NumPy step by step."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import quantize_by_hand as by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import proto, weights

from toolchain.quantization.exactness import tie_margins
from toolchain.quantization.exactness.tie_margins import (
    average_margin,
    nudge_clear,
    product_margin,
    sigmoid_margin,
    sum_margin,
)
from toolchain.quantization.ranges import Affine
from toolchain.quantization.selection import select

F = np.float32
Q = np.arange(256)


def spelt(grid, signed):
    """A grid's scale, zero point and operands as u8 or as s8."""
    shift = 128 if signed else 0
    return F(grid.scale), grid.zero_point - shift, Q - shift, shift


def saturated(rounded, zero, signed):
    low = -128 if signed else 0
    return np.clip(rounded, low, low + 255).astype(int) - low


def x86_sum(a, b, c, signed):
    """``MlasQLinearAddKernel`` with SSE: float32 from beginning to end, ties to even of what the zero point is in."""
    (sa, za, qa, _), (sb, zb, qb, _), (sc, zc, _, _) = (spelt(g, signed) for g in (a, b, c))
    ra, rb = F(sa / sc), F(sb / sc)
    fixed = F(F(zc) - F(F(ra * F(za)) + F(rb * F(zb))))
    first = (fixed + (qa.astype(F) * ra)).astype(F)
    return saturated(np.rint(first[:, None] + (qb.astype(F) * rb)[None, :]), zc, signed)


def arm_sum(a, b, c, signed):
    """The same with NEON: 22-bit multipliers, a rounding shift, ties away from zero."""
    (sa, za, qa, _), (sb, zb, qb, _), (sc, zc, _, _) = (spelt(g, signed) for g in (a, b, c))
    ra, rb = F(sa / sc), F(sb / sc)
    shift = 21 - int(np.floor(np.log2(max(ra, rb))))
    ma, mb = (int(np.rint(float(r) * 2.0**shift)) for r in (ra, rb))
    total = np.add.outer((qa - za) * ma, (qb - zb) * mb)
    rounded = np.sign(total) * ((np.abs(total) + (1 << (shift - 1))) >> shift)
    return saturated(rounded + zc, zc, signed)


def x86_product(a, b, c, signed, *, fused=False):
    """``MlasQLinearMulKernel``; `fused`: multiplication and addition rounded once, as compilers for ARM have it."""
    (sa, za, qa, _), (sb, zb, qb, _), (sc, zc, _, _) = (spelt(g, signed) for g in (a, b, c))
    ratio = F(F(sa * sb) / sc)
    products = np.multiply.outer(qa - za, qb - zb)
    # Exact in float64: 16 bits by 24 bits, and a small integer added.
    once = (products.astype(np.float64) * float(ratio) + zc).astype(F)
    return saturated(np.rint(once if fused else products.astype(F) * ratio + F(zc)), zc, signed)


def x86_average(x, y, area):
    ratio = F(F(x.scale) / F(F(y.scale) * F(area)))
    sums = np.arange(255 * area + 1) - area * x.zero_point
    return saturated(np.rint(sums.astype(F) * ratio) + y.zero_point, y.zero_point, False)


def arm_average(x, y, area):
    ratio = F(F(x.scale) / F(F(y.scale) * F(area)))
    mantissa, exponent = np.frexp(ratio)
    multiplier, shift = int(mantissa * 2**24), 24 - int(exponent)
    sums = (np.arange(255 * area + 1) - area * x.zero_point).astype(object) * multiplier
    rounded = np.array([(abs(s) + (1 << (shift - 1)) >> shift) * (1 if s >= 0 else -1) for s in sums])
    return saturated(rounded + y.zero_point, y.zero_point, False)


scales = st.floats(1e-3, 1.0).map(lambda value: float(F(value)))
grids = st.builds(Affine, scales, st.integers(0, 255))


@given(grids, grids, st.floats(0.5, 2.0), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_clear_sums_are_one_sum(a, b, factor, zero):
    out = Affine(float(F(max(a.scale, b.scale) * factor)), zero)
    kernels = [kernel(a, b, out, signed) for kernel in (x86_sum, arm_sum) for signed in (False, True)]
    same = all((kernel == kernels[0]).all() for kernel in kernels)
    assert same or not sum_margin(a, b, out).clear


def test_scales_of_an_even_ratio_make_ties():
    """(a + b) / 2 of two grids of the same scale: a quarter of all sums are ties, and the kernels differ."""
    a, out = Affine(0.01, 100), Affine(0.02, 100)
    assert not np.array_equal(x86_sum(a, a, out, False), arm_sum(a, a, out, False))
    near = sum_margin(a, a, out)
    assert near.distance < 1e-6
    assert not near.clear


@given(grids, grids, st.floats(50, 60000), st.integers(0, 255))
@settings(max_examples=80, deadline=None)
def test_clear_products_are_one_product(a, b, factor, zero):
    out = Affine(float(F(a.scale * b.scale * factor)), zero)
    kernels = [x86_product(a, b, out, signed, fused=fused) for signed in (False, True) for fused in (False, True)]
    same = all((kernel == kernels[0]).all() for kernel in kernels)
    assert same or not product_margin(a, b, out).clear


def test_a_scale_clear_of_ties_is_slightly_larger():
    rng = np.random.default_rng(0)
    parted = 0
    for _ in range(60):
        a, b = (Affine(float(F(rng.uniform(0.01, 0.1))), int(rng.integers(256))) for _ in range(2))
        out = Affine(float(F(a.scale * b.scale * rng.uniform(60, 255))), int(rng.integers(256)))
        found = nudge_clear(lambda grid, a=a, b=b: product_margin(a, b, grid), out)
        assert out.scale <= found.scale <= out.scale * 1.01
        assert found.zero_point == out.zero_point
        u8, s8 = (x86_product(a, b, found, signed) for signed in (False, True))
        assert (u8 == s8).all()
        parted += not (x86_product(a, b, out, False) == x86_product(a, b, out, True, fused=True)).all()
    assert parted, "without it some differ, or this test shows nothing"


def test_where_no_scale_is_clear_none_is_given():
    assert nudge_clear(lambda grid: tie_margins.Margin(0.1, 0.2), Affine(1.0, 0)) is None


@given(grids, st.floats(0.5, 4.0), st.integers(0, 255), st.sampled_from([4, 9, 49, 64]))
@settings(max_examples=30, deadline=None)
def test_clear_averages_are_one_average(x, factor, zero, area):
    out = Affine(float(F(x.scale / factor)), zero)
    same = (x86_average(x, out, area) == arm_average(x, out, area)).all()
    assert same or not average_margin(x, out, area, window=False).clear


def test_halves_of_an_even_area_are_ties():
    x = Affine(0.5, 0)
    assert not np.array_equal(x86_average(x, x, 4), arm_average(x, x, 4))
    assert average_margin(x, x, 4, window=False).distance == 0
    assert not average_margin(x, x, 4, window=True).clear


def test_the_error_of_onnxruntimes_sigmoid_is_within_the_stated_bound():
    x = np.random.default_rng(0).uniform(-18, 18, 200_000).astype(F)
    model = proto("y = Sigmoid(x)", "float[N] x", "float[N] y").SerializeToString()
    (y,) = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert np.abs(y - 1 / (1 + np.exp(-x.astype(np.float64)))).max() < tie_margins.SIGMOID_ERROR


@given(grids)
@settings(max_examples=40, deadline=None)
def test_a_clear_sigmoid_is_the_functions_own_table(x):
    out = Affine(1 / 256, 0)
    if sigmoid_margin(x, out).clear:
        near = [
            1 / (1 + np.exp(-(Q - x.zero_point) * x.scale)) + e
            for e in (-tie_margins.SIGMOID_ERROR, tie_margins.SIGMOID_ERROR)
        ]
        first, last = (np.clip(np.rint(real * 256), 0, 255) for real in near)
        assert (first == last).all()


def test_what_saturates_is_no_tie():
    """All sums are half-integers beyond the ends, where rounding has no effect."""
    a, out = Affine(1.0, 255), Affine(1.0, 0)  # a is never positive, the result never negative
    assert sum_margin(a, Affine(0.5, 255), out).distance == 0.5


# ----------------------------------------------------------------------------------------------- of a model


NET = (
    """[conv] c = Conv(x, w) [pool] p = GlobalAveragePool(c) [se] e = Conv(p, v) [gate] g = Sigmoid(e)
       [scale] m = Mul(c, g) [sum] s = Add(m, c) [join] j = Concat<axis = 1>(s, m) [last] y = Conv(j, u)""",
    "float[1, 4, 7, 7] x",
    "float[1, 4, 7, 7] y",
    weights(w=(4, 4, 1, 1), v=(4, 4, 1, 1), u=(4, 8, 1, 1)),
)


@pytest.fixture(scope="module")
def net():
    model = by_hand.named(*NET)
    rng = np.random.default_rng(0)
    plan = by_hand.planned(model, [{"x": rng.standard_normal((1, 4, 7, 7)).astype(F)}])
    return model, plan.activations


def test_nodes_near_ties_are_reported_with_their_distance(net):
    model, grids = net
    tied = {"c": 0.5, "p": 1 / 49, "e": 0.1, "g": 1 / 256, "m": 1 / 128, "s": 0.5}
    grids = {**grids, **{name: Affine(float(F(scale)), 128 if name != "g" else 0) for name, scale in tied.items()}}
    found = tie_margins.nodes_near_ties(model, select(model), grids)
    # 0.5 m / 49 over 1/49 is m / 2; c g / 256 · 0.5 · 128 is c g / 4; m / 64 + c has ties where m / 64 has.
    assert set(found) == {"pool", "scale", "sum"}
    assert found["pool"] == "a result is 1.0e-08 steps from a rounding tie, within the kernels' error of 6.1e-05"


def test_an_average_over_an_unknown_size_is_in_doubt(net):
    model = by_hand.named(NET[0], "float[1, 4, H, W] x", "float[1, 4, H, W] y", NET[3])
    doubts = tie_margins.nodes_near_ties(model, select(model), net[1])
    assert doubts["pool"] == "it averages an unknown number of elements, so there is no proof for its int8 kernel"


def settled(net, tied, kept=()):
    model, grids = net
    grids = {**grids, **{name: Affine(float(F(scale)), zero) for name, (scale, zero) in tied.items()}}
    chosen = select(model).int8_nodes()
    nodes = [node for node in model.graph if node.name in chosen]
    group, output_of = {name: name for name in grids}, {node.name: node.outputs[0].name for node in nodes}
    before, refused = dict(grids), tie_margins.move_clear_of_ties(nodes, group, output_of, grids, kept)
    return (
        {name: grid.scale / before[name].scale for name, grid in grids.items() if grid != before[name]},
        refused,
        grids,
    )


GATED = {"c": (0.5, 128), "g": (1 / 256, 0), "m": (1 / 128, 128), "e": (0.1, 128)}


def test_a_product_is_settled_by_its_result(net):
    grown, refused, grids = settled(net, GATED)
    assert (set(grown), refused) == ({"m"}, {})
    assert 1 < grown["m"] < 1.03
    assert "scale" not in tie_margins.nodes_near_ties(net[0], select(net[0]), grids)


def test_a_product_is_settled_by_an_operand_where_the_result_is_kept(net):
    grown, refused, _ = settled(net, GATED, kept={"m", "g"})
    assert (set(grown), refused) == ({"c"}, {})


def test_where_everything_is_kept_the_reason_is_returned(net):
    grown, refused, _ = settled(net, GATED, kept={"m", "g", "c", "e"})
    assert (grown, list(refused)) == ({}, ["scale"])
    assert "steps from a rounding tie" in refused["scale"]


def test_what_an_earlier_node_was_settled_with_stays(net):
    """The gate's operand must not move once its sigmoid is clear; and a sigmoid in doubt moves its operand."""
    rng = np.random.default_rng(0)
    doubtful = (Affine(float(F(rng.uniform(0.02, 0.05))), 128) for _ in range(2000))
    bad = next(grid for grid in doubtful if not sigmoid_margin(grid, Affine(1 / 256, 0)).clear)
    grown, refused, grids = settled(net, {**GATED, "e": (bad.scale, bad.zero_point)}, kept={"g"})
    assert (set(grown), refused) == ({"e", "m"}, {})
    assert sigmoid_margin(grids["e"], grids["g"]).clear


def test_what_is_not_quantized_is_in_no_doubt(net):
    model, _ = net
    assert tie_margins.nodes_near_ties(model, select(model), {}) == {}
    onnx.checker.check_model(proto(*NET))
