"""Cuts of operators that state a size: free groups by hand; the masked graph is the reference for the results."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from small_models import weights

from toolchain.channels.cut import apply_cuts, parameter_count, separate
from toolchain.channels.groups import by_name, groups
from toolchain.channels.layout import layout
from toolchain.channels.proof import verify_cuts
from toolchain.core.errors import ModelError
from toolchain.graph import query, run

IMAGE, SMALL = "float[1, 3, 8, 8] x", "float[1, 4, 8, 8] y"
FIRST, LAST = "[first] a = Conv<kernel_shape = [1, 1]>(x, w, u) ", " [last] y = Conv<kernel_shape = [1, 1]>(z, v, t)"


def i(*numbers):
    return np.array(numbers, np.int64)


def chain(body, channels, after=None, opset=17, size="8, 8", **constants):
    """Between a convolution that makes `channels` and one that sums over `after` of them."""
    made = weights(w=(channels, 3, 1, 1), u=(channels,), v=(4, after or channels, 1, 1), t=(4,))
    return (
        FIRST + body + LAST, IMAGE, f"float[1, 4, {size}] y",
        {**made, **{n: weights(**{n: c})[n] if isinstance(c, tuple) else c for n, c in constants.items()}}, opset,
    )  # fmt: skip


def rows(body, inputs="float[2, 6] x", outputs="float[2, 4] y", opset=17, **constants):
    made = {n: weights(**{n: c})[n] if isinstance(c, tuple) else c for n, c in constants.items()}
    return body, inputs, outputs, made, opset


ATTENTION = """
    [q] q = MatMul(x, wq) [k] k = MatMul(x, wk) [v] v = MatMul(x, wv)
    q4 = Reshape(q, by_heads) qt = Transpose<perm = [0, 2, 1, 3]>(q4)
    k4 = Reshape(k, by_few) kt = Transpose<perm = [0, 2, 3, 1]>(k4)
    v4 = Reshape(v, by_few) vt = Transpose<perm = [0, 2, 1, 3]>(v4)
    {more} s = MatMul(qt, {kt}) p = Softmax(s) c = MatMul(p, {vt})
    ct = Transpose<perm = [0, 2, 1, 3]>(c) cc = Reshape(ct, joined) [out] y = MatMul(cc, wo)"""
REPEAT = """
    k5 = Unsqueeze(kt, two) ke = Expand(k5, thrice_k) kr = Reshape(ke, again_k)
    v5 = Unsqueeze(vt, two) ve = Expand(v5, thrice_v) vr = Reshape(ve, again_v)"""

# name: (body, inputs, outputs, constants, opset), free groups by hand: {name: size}
CASES = {
    "grouped Conv": (
        chain("[grouped] b = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 4>(a, g, h) z = Sigmoid(b)",
              8, 12, g=(12, 2, 3, 3), h=(12,)), {"first": 4, "first:2": 2, "grouped": 3}),
    "depthwise Conv": (
        chain("[deep] z = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 8>(a, g, h)",
              8, g=(8, 1, 3, 3), h=(8,)), {"first": 8}),
    "ConvTranspose": (
        chain("[up] z = ConvTranspose<kernel_shape = [2, 2], strides = [2, 2]>(a, g, h)",
              8, 5, size="16, 16", g=(8, 5, 2, 2), h=(5,)), {"first": 8, "up": 5}),
    "grouped ConvTranspose": (
        chain("[up] z = ConvTranspose<kernel_shape = [2, 2], strides = [2, 2], group = 4>(a, g, h)",
              8, 12, size="16, 16", g=(8, 3, 2, 2), h=(12,)), {"first": 4, "first:2": 2, "up": 3}),
    "GroupNorm": (
        chain("z = GroupNormalization<num_groups = 4>(a, s, c)", 8, opset=21, s=(8,), c=(8,)), {"first": 4}),
    "GroupNorm by InstanceNorm": (
        chain("b = Reshape(a, flat) n = InstanceNormalization(b, ones, none) z = Reshape(n, back)", 8,
              flat=i(1, 4, -1), back=i(1, 8, 8, 8), ones=np.ones(4, np.float32), none=np.zeros(4, np.float32)),
        {"first": 4}),
    "InstanceNorm": (chain("z = InstanceNormalization(a, s, c)", 8, s=(8,), c=(8,)), {"first": 8}),
    "PRelu": (chain("z = PRelu(a, s)", 8, s=(8, 1, 1)), {"first": 8}),
    "BatchNorm": (
        chain("z = BatchNormalization(a, s, c, m, var)", 8, s=(8,), c=(8,), m=(8,), var=np.full(8, 2, np.float32)),
        {"first": 8}),
    "LSTM": (
        rows("[lstm] h = LSTM<hidden_size = 5>(x, w, r, b) s = Squeeze(h, one) [last] y = MatMul(s, v)",
             "float[3, 2, 6] x", "float[3, 2, 4] y", w=(1, 20, 6), r=(1, 20, 5), b=(1, 40), v=(5, 4), one=i(1)),
        {"lstm": 5}),
    "GRU of two directions": (
        rows("[gru] h = GRU<hidden_size = 5, direction = \"bidirectional\">(x, w, r, b) "
             "p = Transpose<perm = [0, 2, 1, 3]>(h) s = Reshape(p, joined) [last] y = MatMul(s, v)",
             "float[3, 2, 6] x", "float[3, 2, 4] y",
             w=(2, 15, 6), r=(2, 15, 5), b=(2, 30), v=(10, 4), joined=i(3, 2, 10)), {"gru:2": 5}),
    "Reshape by a constant": (
        chain("b = Reshape(a, r) c = Sigmoid(b) z = Reshape(c, back)", 8, r=i(1, 2, 4, 64), back=i(1, 8, 8, 8)),
        {"first": 2, "first:2": 4}),
    "Reshape by sizes the run tells": (
        rows("[first] a = MatMul(x, w) s = Shape(x) n = Gather(s, none) k = Concat<axis = 0>(n, parts) "
             "b = Reshape(a, k) c = Sigmoid(b) k2 = Concat<axis = 0>(n, whole) d = Reshape(c, k2) "
             "[last] y = MatMul(d, v)",
             "float[N, 6] x", "float[N, 4] y", w=(6, 12), v=(12, 4), none=i(0), parts=i(3, 4), whole=i(12)),
        {"first:2": 3, "first:3": 4}),
    "Expand": (
        rows("[first] a = MatMul(x, w) b = Unsqueeze(a, one) c = Expand(b, s) d = Mul(c, k) "
             "e = Transpose<perm = [0, 2, 1]>(d) f = MatMul(e, m) g = Reshape(f, back) [last] y = MatMul(g, v)",
             w=(6, 8), one=i(1), s=i(2, 5, 8), k=(5, 8), m=(5, 1), back=i(2, 8), v=(8, 4)),
        {"first:2": 8, "n3": 5}),
    "Split by sizes": (
        chain("p, q = Split<axis = 1>(a, s) r = Sigmoid(p) z = Concat<axis = 1>(q, r)", 8, s=i(3, 5)),
        {"first": 3, "first:2": 5}),
    "Split in equal parts": (
        chain("p, q = Split<axis = -3, num_outputs = 2>(a) z = Mul(p, q)", 8, 4, opset=18), {"first": 4}),
    "Slices from the end": (
        chain("p = Slice(a, n3, far, c) q = Slice(a, zero, n3, c) r = Tanh(p) z = Concat<axis = 1>(q, r)", 8,
              n3=i(-3), far=i(2**31 - 1), zero=i(0), c=i(1)), {"first": 5, "first:2": 3}),
    "Slice with int32": (
        chain("z = Slice(a, s, e, c)", 8, 5, s=np.array([1], np.int32), e=np.array([6], np.int32),
              c=np.array([-3], np.int32)), {"first": 5}),
    "Slices in steps": (
        chain("p = Slice(a, s0, far, c, two) q = Slice(a, s1, far, c, two) z = Mul(p, q)", 8, 4,
              s0=i(0), s1=i(1), far=i(2**63 - 1), c=i(1), two=i(2)), {"first": 4}),
    "Resize by sizes": (
        chain("z = Resize<mode = \"nearest\">(a, , , s)", 8, size="16, 16", s=i(1, 8, 16, 16)), {"first": 8}),
    "Pad of channels": (
        chain("b = Pad(a, p) [wide] c = Conv<kernel_shape = [1, 1]>(x, ww) z = Add(b, c)", 8, 12,
              p=i(0, 1, 0, 0, 0, 3, 0, 0), ww=(12, 3, 1, 1)), {"first": 8}),
    "DepthToSpace": (
        chain("z = DepthToSpace<blocksize = 2>(a)", 12, 3, size="16, 16"), {"first:2": 3}),
    "DepthToSpace by columns": (
        chain("z = DepthToSpace<blocksize = 2, mode = \"CRD\">(a)", 12, 3, size="16, 16"), {"first": 3}),
    "SpaceToDepth": (chain("z = SpaceToDepth<blocksize = 2>(a)", 5, 20, size="4, 4"), {"first": 5}),
    "channel shuffle": (
        chain("b = Reshape(a, r) c = Transpose<perm = [0, 2, 1, 3, 4]>(b) z = Reshape(c, back)", 8,
              r=i(1, 2, 4, 8, 8), back=i(1, 8, 8, 8)), {"first": 2, "first:2": 4}),
    "squeeze and excite": (
        chain("g = GlobalAveragePool(a) [down] d = Conv(g, g1) e = Relu(d) [up] f = Conv(e, g2) h = HardSigmoid(f) "
              "z = Mul(a, h)", 8, g1=(3, 8, 1, 1), g2=(8, 3, 1, 1)), {"first": 8, "down": 3}),
    "Flatten and Gemm": (
        rows(FIRST + "p = MaxPool<kernel_shape = [4, 4], strides = [4, 4]>(a) f = Flatten(p) [last] y = Gemm(f, v, t)",
             IMAGE, "float[1, 4] y", w=(6, 3, 1, 1), u=(6,), v=(24, 4), t=(4,)), {"first": 6}),
    "fused QKV": (
        rows("[qkv] a = MatMul(x, w) r = Reshape(a, parts) t = Transpose<perm = [2, 0, 3, 1, 4]>(r) "
             "q = Gather<axis = 0>(t, n0) k = Gather<axis = 0>(t, n1) v = Gather<axis = 0>(t, n2) "
             "kt = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, kt) p = Softmax(s) c = MatMul(p, v) "
             "ct = Transpose<perm = [0, 2, 1, 3]>(c) cc = Reshape(ct, joined) [out] y = MatMul(cc, wo)",
             "float[1, 3, 6] x", "float[1, 3, 4] y", w=(6, 24), wo=(8, 4), parts=i(1, 3, 3, 2, 4), joined=i(1, 3, 8),
             n0=np.array(0), n1=np.array(1), n2=np.array(2)), {"qkv:3": 2, "qkv:4": 4}),
    "attention": (
        rows(ATTENTION.format(more="", kt="kt", vt="vt"), "float[1, 3, 6] x", "float[1, 3, 4] y",
             wq=(6, 8), wk=(6, 8), wv=(6, 8), wo=(8, 4), by_heads=i(1, 3, 2, 4), by_few=i(1, 3, 2, 4),
             joined=i(1, 3, 8)), {"q:2": 2, "q:3": 4, "v": 4}),
    "grouped-query attention": (
        rows(ATTENTION.format(more=REPEAT, kt="kr", vt="vr"), "float[1, 3, 6] x", "float[1, 3, 4] y",
             wq=(6, 24), wk=(6, 8), wv=(6, 8), wo=(24, 4), by_heads=i(1, 3, 6, 4), by_few=i(1, 3, 2, 4),
             joined=i(1, 3, 24), two=i(2), thrice_k=i(1, 2, 3, 4, 3), again_k=i(1, 6, 4, 3),
             thrice_v=i(1, 2, 3, 3, 4), again_v=i(1, 6, 3, 4)), {"q:2": 2, "q:3": 3, "q:4": 4, "v": 4}),
    "tied embedding": (
        rows("[words] e = Gather(table, x) [inner] a = MatMul(e, w) [outer] b = MatMul(a, v) z = Add(e, b) "
             "[last] y = Gemm<transB = 1>(z, table)", "int64[2] x", "float[2, 9] y",
             table=(9, 6), w=(6, 5), v=(5, 6)), {"words:2": 6, "inner": 5}),
    "weights that are computed": (
        chain("g1 = Exp(g) [made] z = Conv<kernel_shape = [1, 1]>(a, g1)", 8, 5, g=(5, 8, 1, 1)),
        {"first": 8, "n1": 5}),
    "sums of squares": (
        chain("q = ReduceSumSquare<axes = [1]>(a) r = Sqrt(q) z = Div(a, r)", 8), {"first": 8}),
}  # fmt: skip


def built(name):
    body, inputs, outputs, constants, opset = CASES[name][0]
    proto = small_models.proto(body, inputs, outputs, constants, opset=opset, ir_version=10)
    if "GroupNormalization" in body:  # onnx infers nothing for it
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info("z", 1, [1, 8, 8, 8]))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))
    for index, node in enumerate(model.graph):
        node.name = node.name or f"n{index}"
    return separate(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_free_groups_are_as_worked_out_by_hand_and_random_cuts_are_proved(name):
    model = built(name)
    found = [group for group in groups(model, layout(model)) if group.free]
    assert {group.name: group.size for group in found} == CASES[name][1]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        cuts = {
            group.name: np.sort(rng.choice(group.size, rng.integers(1, group.size + (seed > 1)), replace=False))
            for group in found
            if seed < 2 or rng.random() < 0.7
        }
        assert verify_cuts(model, cuts, dynamic=2).mismatches == ()
        assert parameter_count(apply_cuts(model, cuts)) <= parameter_count(model)


def test_cut_channels_are_removed_from_every_member():
    model = built("depthwise Conv")
    cut = apply_cuts(model, {"first": [1, 4, 6]})
    sizes = {value.name: query.sizes(value) for value in cut.graph.initializers.values()}
    assert sizes == {"w": (3, 3, 1, 1), "u": (3,), "g": (3, 1, 3, 3), "h": (3,), "v": (4, 3, 1, 1), "t": (4,)}
    assert [node.attributes["group"].as_int() for node in cut.graph if "group" in node.attributes] == [3]
    np.testing.assert_array_equal(
        query.constant(cut.graph.initializers["w"]), query.constant(model.graph.initializers["w"])[[1, 4, 6]]
    )


def test_nothing_cut_is_the_same_model():
    model = built("attention")
    assert parameter_count(apply_cuts(model, {})) == parameter_count(model)
    feed = run.random_feed([], np.random.default_rng(0)) | {"x": weights(x=(1, 3, 6))["x"]}
    for a, b in zip(*(run.run(m, [feed])[0] for m in (model, apply_cuts(model, {}))), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_given_model_is_not_changed():
    model = built("Slices from the end")
    before = parameter_count(model), str(model.graph)
    apply_cuts(model, {"first": [0], "first:2": [1]})
    assert (parameter_count(model), str(model.graph)) == before


@pytest.mark.parametrize("separated", [True, False])
def test_equal_constants_do_not_join_two_groups(separated):
    body = (
        "[one] a = Conv<kernel_shape = [1, 1]>(x, w, b) r = Relu(a) "
        "[two] c = Conv<kernel_shape = [1, 1]>(r, v, b) [three] y = Conv<kernel_shape = [1, 1]>(c, u)"
    )
    constants = {**weights(w=(6, 3, 1, 1), v=(6, 6, 1, 1), u=(4, 6, 1, 1)), "b": np.zeros(6, np.float32)}
    model = small_models.model(body, IMAGE, SMALL, constants)
    model = separate(model) if separated else model
    free = {group.name: group.size for group in groups(model, layout(model)) if group.free}
    assert free == ({"one": 6, "two": 6} if separated else {"one": 6})


def test_an_input_with_a_default_value_is_not_cut():
    """An initializer that is an input as well, so that its values are not known."""
    body, inputs, outputs, constants, _ = chain("z = Relu(a)", 8)
    model = small_models.model(body, f"{inputs}, float[8, 3, 1, 1] w", outputs, constants, ir_version=8)
    found = by_name(groups(model, layout(model)))
    assert all(not group.free for group in found.values() if group.size == 8)


@pytest.mark.parametrize(
    ("cuts", "what"),
    [
        ({"nobody": [0]}, "there is no such group"),
        ({"last": [0]}, "it is an output of the model"),
        ({"first": []}, "at least one"),
        ({"first": [1, 1]}, "sorted"),
        ({"first": [2, 1]}, "sorted"),
        ({"first": [8]}, "numbers below 8"),
        ({"first": [-1, 2]}, "numbers below 8"),
    ],
)
def test_impossible_cuts_are_refused_in_one_sentence(cuts, what):
    with pytest.raises(ModelError, match=what) as error:
        apply_cuts(built("PRelu"), cuts)
    assert "group" in str(error.value)
