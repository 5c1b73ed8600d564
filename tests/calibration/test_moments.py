"""Second moments, compared with patches that onnxruntime cuts out by convolutions with one-hot kernels."""

import numpy as np
import pytest
import quantize_by_hand as by_hand
import small_models
from small_models import weights

from toolchain.calibration import moments
from toolchain.calibration.moments import second_moments
from toolchain.data.calibration import open_data
from toolchain.graph import io

CONVS = {
    # name: (attributes, input, weight)
    "plain": ("strides = [1, 1]", (2, 3, 7, 6), (4, 3, 3, 2)),
    "strides": ("strides = [2, 3]", (2, 3, 8, 9), (4, 3, 3, 3)),
    "uneven pads": ("pads = [2, 0, 1, 1]", (1, 3, 6, 5), (4, 3, 3, 3)),
    "dilations": ("dilations = [2, 1], pads = [2, 1, 2, 1]", (1, 3, 7, 6), (4, 3, 3, 3)),
    "all of it": ("dilations = [1, 2], strides = [3, 2], pads = [0, 3, 2, 1]", (2, 2, 9, 8), (4, 2, 2, 3)),
    "same upper": ('auto_pad = "SAME_UPPER"', (1, 2, 5, 6), (3, 2, 2, 4)),
    "same lower": ('auto_pad = "SAME_LOWER"', (1, 2, 5, 6), (3, 2, 2, 4)),
    "same upper, strides": ('auto_pad = "SAME_UPPER", strides = [2, 3]', (1, 2, 8, 7), (3, 2, 3, 3)),
    "same lower, strides": ('auto_pad = "SAME_LOWER", strides = [3, 2]', (1, 2, 8, 7), (3, 2, 3, 2)),
    "strides wider than the kernel": ('auto_pad = "SAME_UPPER", strides = [3, 3]', (1, 2, 8, 7), (3, 2, 1, 2)),
    "valid": ('auto_pad = "VALID", strides = [2, 2]', (1, 2, 8, 7), (3, 2, 3, 3)),
    "groups": ("group = 2, pads = [1, 1, 1, 1]", (2, 6, 5, 5), (4, 3, 3, 3)),
    "depthwise": ("group = 4, pads = [1, 1, 1, 1]", (1, 4, 5, 5), (8, 1, 3, 3)),
    "sound": ("dilations = [3], pads = [3, 0], strides = [2]", (2, 3, 20), (5, 3, 3)),
    "volume": ("pads = [1, 0, 1, 0, 1, 0], strides = [2, 1, 1]", (1, 2, 4, 3, 5), (3, 2, 2, 2, 3)),
}


def text_of(shape):
    return f"float[{', '.join(map(str, shape))}] x"


def found(model, feeds, names=None, **settings):
    nodes = [node for node in model.graph if node.name in (names or ("y",))]
    data = open_data(feeds, io.inputs(model))
    return {node.name: result for node, result in second_moments(model, data, nodes, threads=1, **settings)}


def patches(attributes, x, weight, groups):
    """[groups, positions, K]: a kernel for every tap and channel that is one there, and zero elsewhere."""
    kernel, inputs = weight[2:], weight[1]
    taps = int(np.prod(kernel))
    ones = np.eye(taps * inputs, dtype=np.float32).reshape(*kernel, inputs, taps * inputs)  # (kh, kw, channel) → column
    ones = np.moveaxis(ones, (-1, -2), (0, 1))
    body = f"y = Conv<{attributes}>(x, w)"
    model = small_models.model(body, text_of(x.shape), "y", {"w": np.tile(ones, (groups, *[1] * (ones.ndim - 1)))})
    out = np.moveaxis(small_models.plain(model, {"x": x})["y"], 1, -1)
    return np.moveaxis(out.reshape(-1, groups, taps * inputs), 1, 0).astype(np.float64)


@pytest.fixture
def everything(monkeypatch):
    """Every position is taken."""
    monkeypatch.setattr(moments, "MIN_POSITIONS_PER_SAMPLE", 10**6)


@pytest.mark.parametrize("name", CONVS)
def test_a_convolution_reads_the_patches_that_onnxruntime_cuts_out(name, everything):
    attributes, shape, weight = CONVS[name]
    model = by_hand.named(f"y = Conv<{attributes}>(x, w)", text_of(shape), "y", weights(w=weight))
    groups = shape[1] // weight[1]
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(3)]
    rows = np.concatenate([patches(attributes, feed["x"], weight, groups) for feed in feeds], axis=1)
    got = found(model, feeds)["y"]
    assert got.positions == rows.shape[1]
    [block] = got.blocks
    assert block.dtype == np.float64
    np.testing.assert_allclose(block, rows.transpose(0, 2, 1) @ rows / rows.shape[1], rtol=1e-4, atol=1e-5)


PRODUCTS = {
    "MatMul(x, w)": ((4, 5), (5, 3)),
    "MatMul (x, w)": ((2, 3, 4, 5), (5, 3)),
    "MatMul  (x, w)": ((5,), (5, 3)),
    "Gemm(x, w)": ((4, 5), (5, 3)),
    "Gemm<transB = 1>(x, w)": ((4, 5), (3, 5)),
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_matrix_product_reads_rows(product, everything):
    shape, weight = PRODUCTS[product]
    model = by_hand.named(f"y = {product}", text_of(shape), "y", weights(w=weight))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(3)]
    rows = np.concatenate([feed["x"].reshape(-1, 5) for feed in feeds]).astype(np.float64)
    got = found(model, feeds)["y"]
    assert got.positions == len(rows)
    np.testing.assert_allclose(got.blocks[0], [rows.T @ rows / len(rows)], rtol=1e-5, atol=1e-6)


def test_samples_of_other_sizes(everything):
    model = by_hand.named("y = Conv<pads = [1, 1, 1, 1]>(x, w)", "float[N, 2, H, W] x", "y", weights(w=(3, 2, 3, 3)))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1 + n % 2, 2, 4 + n, 6)).astype(np.float32)} for n in range(3)]
    rows = np.concatenate([patches("pads = [1, 1, 1, 1]", f["x"], (3, 2, 3, 3), 1) for f in feeds], axis=1)
    got = found(model, feeds)["y"]
    assert got.positions == rows.shape[1]
    np.testing.assert_allclose(got.blocks[0], rows.transpose(0, 2, 1) @ rows / rows.shape[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("columns", "sizes"), [(8, [8]), (9, [6, 3]), (10, [6, 4]), (16, [8, 8]), (17, [6, 6, 5])])
def test_of_many_columns_only_blocks_are_kept(columns, sizes, monkeypatch, everything):
    monkeypatch.setattr(moments, "MAX_BLOCK_COLUMNS", 8)
    model = by_hand.named("y = MatMul(x, w)", f"float[6, {columns}] x", "y", weights(w=(columns, 2)))
    x = np.random.default_rng(0).standard_normal((6, columns)).astype(np.float32)
    blocks = found(model, [{"x": x}])["y"].blocks
    assert [block.shape for block in blocks] == [(1, n, n) for n in sizes]
    whole = x.T.astype(np.float64) @ x / 6
    start = 0
    for block in blocks:
        stop = start + block.shape[1]
        np.testing.assert_allclose(block[0], whole[start:stop, start:stop], rtol=1e-4, atol=1e-6)
        start = stop


@pytest.mark.parametrize(("most", "sizes"), [(1e9, [192]), (8 * 192 * 64**2, [64] * 3), (1, [64] * 3)])
def test_blocks_are_smaller_where_moments_are_too_much_work(most, sizes, monkeypatch):
    """192 columns times 8 · 192 positions times 192 columns of a block are 5.7e7 multiplications."""
    monkeypatch.setattr(moments, "MAX_MULTIPLICATIONS", most)
    model = by_hand.named("y = MatMul(x, w)", "float[6, 192] x", "y", weights(w=(192, 2)))
    x = np.random.default_rng(0).standard_normal((6, 192)).astype(np.float32)
    assert [block.shape[1] for block in found(model, [{"x": x}])["y"].blocks] == sizes


def three():
    model = by_hand.named(
        """a = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(a) b = Conv<group = 2>(r, v) c = Conv(x, v4)
        p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, k)""",
        "float[1, 4, 9, 9] x",
        "y, c",
        weights(w=(4, 4, 3, 3), v=(4, 2, 3, 3), v4=(3, 4, 1, 1), k=(4, 3)),
    )
    rng = np.random.default_rng(1)
    return model, [{"x": rng.standard_normal((1, 4, 9, 9)).astype(np.float32)} for _ in range(5)]


@pytest.mark.parametrize("budget", [1e-6, 0.01, 0.02, 100])
def test_passes_change_nothing_but_their_number(budget):
    model, feeds = three()
    names = ("a", "b", "c", "y")
    whole = found(model, feeds, names)
    told = []
    parts = found(model, feeds, names, budget_mib=budget, progress=lambda *news: told.append(news[2]))
    assert list(parts) == list(whole) == list(names)
    assert set(told) == {{1e-6: 4, 0.01: 2, 0.02: 1, 100: 1}[budget] * len(feeds)}
    for name, result in parts.items():
        assert result.positions == whole[name].positions
        np.testing.assert_allclose(result.blocks[0], whole[name].blocks[0], rtol=1e-5, atol=1e-6)


def test_some_positions_of_every_sample_are_drawn_the_same_each_time(monkeypatch):
    monkeypatch.setattr(moments, "MIN_POSITIONS_PER_SAMPLE", 7)
    monkeypatch.setattr(moments, "POSITIONS_PER_COLUMN", 0)
    model, feeds = three()
    first, second = (found(model, feeds, ("a", "y")) for _ in range(2))
    assert first["a"].positions == 5 * 7
    assert first["y"].positions == 5 * 1, "all there are"
    np.testing.assert_array_equal(first["a"].blocks[0], second["a"].blocks[0])


def test_drawn_positions_stand_for_all():
    """The mean of x xᵀ over a few hundred positions is near that over all; no position is drawn twice."""
    model = by_hand.named("y = MatMul(x, w)", "float[N, 2] x", "y", weights(w=(2, 2)))
    x = np.stack([np.arange(1000), np.ones(1000)], axis=1).astype(np.float32)
    got = found(model, [{"x": x}])["y"]
    assert got.positions == moments.MIN_POSITIONS_PER_SAMPLE
    assert got.blocks[0][0, 1, 1] == 1
    rows = moments.position_sampler(100, 3)(120)
    assert len(set(rows)) == 100
    assert got.blocks[0][0, 0, 1] == pytest.approx(499.5, rel=0.4), "32 of 1000: a spread of 288 / √32 = 51, four of it"
