"""SmoothQuant: the model computes the same, whoever reads the tensor, with less noise where few channels are large."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import quantize_by_hand as by_hand
import small_models
from small_models import weights

from toolchain.quantization.accuracy.cross_layer_equalization import plan_equalization
from toolchain.quantization.accuracy.smooth_quant import MIN_NORMALIZED_SHARE, apply_smooth_quant, smooth_quant_groups
from toolchain.quantization.selection import select

SEQUENCE = "float[2, 5, 8] x"
NORM = "n = LayerNormalization(x, g, h)"
S = np.geomspace(1 / 30, 1, 8)
ALL = weights(g=(8,), h=(8,), w=(8, 6), v=(8, 3), vt=(3, 8), k=(6,), wide=(5, 8), gg=(5, 8))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * (1 + np.abs(expected).max()))


def build(body, inputs=SEQUENCE, outputs="y", **more):
    constants = {n: c for n, c in {**ALL, **more}.items() if any(f"{a}{n}{b}" in body for a in " (" for b in ",)")}
    return by_hand.named(body, inputs, outputs, constants)


def feed(shape=(2, 5, 8), seed=0):
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def assert_same(model, result, feed):
    before, after = (small_models.plain(m, feed) for m in (model, result))
    assert list(before) == list(after)
    for name, array in before.items():
        close(after[name], array)


CASES = {
    # name: (body, outputs, int8 nodes, how many multiplications are put in)
    "normalization alone": (f"{NORM} y = MatMul(n, w)", "y", {"y"}, 0),
    "without a bias": ("n = LayerNormalization(x, g) y = MatMul(n, w)", "y", {"y"}, 0),
    "three products, as in attention": (
        f"{NORM} y = MatMul(n, w) a = MatMul(n, v) b = MatMul(n, w)", "y, a, b", {"y", "a", "b"}, 0,
    ),
    "one of the products is float": (f"{NORM} y = MatMul(n, w) a = MatMul(n, v)", "y, a", {"y"}, 1),
    "and a shortcut": (f"{NORM} a = MatMul(n, w) t = Tanh(n) y = MatMul(t, v)", "y, a", {"a"}, 1),
    "that leaves the graph": (f"{NORM} y = MatMul(n, w)", "n, y", {"y"}, 1),
    "over two axes": ("n = LayerNormalization<axis = 1>(x, gg, wide) y = MatMul(n, w)", "y", {"y"}, 1),
    "over two axes by vectors": ("n = LayerNormalization<axis = 1>(x, g, h) y = MatMul(n, w)", "y", {"y"}, 0),
    "with its mean": ("n, m = LayerNormalization(x, g, h) y = MatMul(n, w)", "y, m", {"y"}, 0),
    "scale shared by another": (f"{NORM} y = MatMul(n, w) a = LayerNormalization(x, g, h)", "y, a", {"y"}, 0),
    "scale that is fed": ("n = LayerNormalization(x, q, h) y = MatMul(n, w)", "y", {"y"}, 1),
    "gelu": ("n = Erf(x) y = MatMul(n, w)", "y", {"y"}, 1),
    "one behind the other": (f"{NORM} a = MatMul(n, w) t = Tanh(a) y = MatMul(t, u)", "y", {"a", "y"}, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_function_stays(name):
    body, outputs, int8, put_in = CASES[name]
    fed = name == "scale that is fed"
    model = build(body, SEQUENCE + (", float[8] q" if fed else ""), outputs, **weights(u=(6, 4)))
    groups = smooth_quant_groups(model, int8)
    assert {consumer for group in groups for consumer in group.consumers} == int8
    result = apply_smooth_quant(model, {group: S[-group.channels :] for group in groups})
    assert small_models.ops(result).count("Mul") == put_in
    assert_same(model, result, {**feed(), **({"q": ALL["g"]} if fed else {})})
    changed = small_models.every_value(ir.to_proto(result), {**feed(), **({"q": ALL["g"]} if fed else {})})
    [first] = [group for group in groups if group.tensors == ("n",)]
    original = small_models.every_value(ir.to_proto(model), {**feed(), **({"q": ALL["g"]} if fed else {})})["n"]
    reader = next(node for node in result.graph if node.name == first.consumers[0])
    close(changed[reader.inputs[0].name], original / S)


@pytest.mark.parametrize("product", ["MatMul(t, w)", "Gemm(t, w, k)", "Gemm<transB = 1, alpha = 2.0>(t, vt)"])
def test_every_matrix_product(product):
    model = build(f"t = Tanh(x) y = {product}", "float[4, 8] x")
    [group] = smooth_quant_groups(model, {"y"})
    assert (group.tensors, group.channels, group.min_share) == (("t",), 8, MIN_NORMALIZED_SHARE)
    assert_same(model, apply_smooth_quant(model, {group: S}), feed((4, 8)))


def test_open_sizes_and_vectors():
    for inputs, shape in (("float[N, L, 8] x", (3, 2, 8)), ("float[8] x", (8,))):
        model = build("t = Tanh(x) y = MatMul(t, w)", inputs)
        [group] = smooth_quant_groups(model, {"y"})
        assert_same(model, apply_smooth_quant(model, {group: S}), feed(shape))


REFUSED = {
    "computed in int8": (f"{NORM} y = MatMul(n, w)", SEQUENCE, {"n", "y"}),
    "a weight that a float product reads": (f"{NORM} y = MatMul(n, w) a = MatMul(x, w)", SEQUENCE, {"y"}),
    "no int8 reader": (f"{NORM} y = MatMul(n, w)", SEQUENCE, set()),
    "fed": ("y = MatMul(x, w)", SEQUENCE, {"y"}),
    "read by other int8 operators": (f"{NORM} y = MatMul(n, w) a = Add(n, x)", SEQUENCE, {"y", "a"}),
    "convolution": ("t = Tanh(x) y = Conv(t, c)", "float[1, 5, 8] x", {"y"}),
    "product of two activations": ("t = Tanh(x) y = MatMul(t, x)", "float[8, 8] x", {"y"}),
    "second factor": ("t = Tanh(x) y = MatMul(w, t)", "float[6, 6] x", {"y"}),
    "turned around": ("t = Tanh(x) y = Gemm<transA = 1>(t, w)", "float[8, 5] x", {"y"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_left_alone(name):
    body, inputs, int8 = REFUSED[name]
    outputs = "y, a" if " a = " in body else "y"
    model = build(body, inputs, outputs, **weights(c=(3, 5, 1)))
    assert smooth_quant_groups(model, int8) == []


def test_nothing_is_known_of_an_open_last_axis():
    model = build("t = Tanh(x) y = MatMul(t, w)")
    tanh = next(iter(model.graph))
    for shape in (ir.Shape([2, 5, "C"]), ir.Shape([]), None):
        tanh.outputs[0].shape = shape
        assert smooth_quant_groups(model, {"y"}) == []


def test_what_a_branch_reads_stays():
    """The branches of an If read the normalization's result too: it is divided behind them."""
    make = onnx.helper

    def info(name, shape):
        return make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    branches = [
        make.make_graph([make.make_node(op, ["n"], [f"{op}_out"])], op, [], [info(f"{op}_out", [2, 5, 8])])
        for op in ("Neg", "Abs")
    ]
    nodes = [
        make.make_node("LayerNormalization", ["x", "g", "h"], ["n"], "n"),
        make.make_node("If", ["flag"], ["z"], "if", then_branch=branches[0], else_branch=branches[1]),
        make.make_node("MatMul", ["n", "w"], ["y"], "y"),
    ]
    flag = make.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])
    constants = [onnx.numpy_helper.from_array(ALL[name], name) for name in "ghw"]
    outputs = [info("y", [2, 5, 6]), info("z", [2, 5, 8])]
    graph = make.make_graph(nodes, "branches", [info("x", [2, 5, 8]), flag], outputs, constants)
    proto = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    [group] = smooth_quant_groups(model, {"y"})
    result = apply_smooth_quant(model, {group: S})
    for flag in (True, False):
        assert_same(model, result, {**feed(), "flag": np.array(flag)})


def test_outlying_channels_are_brought_in_and_the_noise_falls():
    """Two of sixty-four channels are fifty times as large and read by small weights, as in language models."""
    rng = np.random.default_rng(0)
    scale = np.ones(64, np.float32)
    scale[[3, 40]] = 50
    w = rng.standard_normal((64, 32)).astype(np.float32) / scale[:, None]
    constants = {"g": scale, "h": np.zeros(64, np.float32), "w": w}
    model = by_hand.named("n = LayerNormalization(x, g, h) y = MatMul(n, w)", "float[16, 64] x", "y", constants)
    feeds = [feed((16, 64), seed) for seed in range(4)]
    selection = select(model)
    assert selection.int8_nodes() == {"y"}
    groups = smooth_quant_groups(model, selection.int8_nodes())
    seen = by_hand.observation(model, feeds, selection.tensors)
    scales = plan_equalization(model, groups, seen, selection.tensors)
    [s] = scales.values()
    assert (s[[3, 40]] > 4 * np.delete(s, [3, 40]).max()).all()
    assert s.min() >= MIN_NORMALIZED_SHARE

    def error(changed):
        plan = by_hand.planned(changed, feeds, ranges="minmax")
        pairs = [(small_models.plain(model, f)["y"], by_hand.simulate(changed, plan, f)["y"]) for f in feeds]
        return sum(float(np.sum((a - b) ** 2)) for a, b in pairs)

    assert error(apply_smooth_quant(model, scales)) < error(model) / 10


def test_a_channel_that_is_always_zero_is_handled():
    constants = {**ALL, "g": ALL["g"] * (np.arange(8) > 2), "h": np.zeros(8, np.float32)}
    model = by_hand.named(f"{NORM} y = MatMul(n, w)", SEQUENCE, "y", {n: constants[n] for n in "ghw"})
    groups = smooth_quant_groups(model, {"y"})
    seen = by_hand.observation(model, [feed()], {"n": 2})
    with np.errstate(all="raise", under="ignore"):
        scales = plan_equalization(model, groups, seen, {"n"})
    assert all(np.isfinite(s).all() and (s >= MIN_NORMALIZED_SHARE).all() for s in scales.values())
    assert_same(model, apply_smooth_quant(model, scales), feed())
