"""Equalization: the model computes the same, tensors are divided by their scales, and only suitable groups change."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import quantize_by_hand as by_hand
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import weights

from toolchain.graph import query
from toolchain.quantization.accuracy.cross_layer_equalization import (
    RANGE_MARGIN,
    apply_equalization,
    plan_equalization,
)
from toolchain.quantization.accuracy.scale_groups import scale_groups

IMAGE = "float[1, 4, 8, 8] x"
ZERO_SIX = {"zero": np.float32(0), "six": np.float32(6)}
SAME = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"


def close(found, expected):
    """Weights are rounded to float32 once more and sums are of tens of products, over a few layers."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * (1 + np.abs(expected).max()))


def image_feed(seed=0, shape=(1, 4, 8, 8)):
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def groups_of(body, inputs=IMAGE, constants=None, outputs="y"):
    model = by_hand.named(body, inputs, outputs, constants or {})
    return model, scale_groups(model)


def tensors_of(*args, **kwargs):
    return [set(group.tensors) for group in groups_of(*args, **kwargs)[1]]


# --- the same function ---


@st.composite
def nets(draw):
    """A stem and up to eight blocks, each reading a tensor computed before; images of 6 x 6 throughout."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    constants = dict(ZERO_SIX, low=np.float32(-3))
    lines, made, count = [], [], 0

    def fresh():
        nonlocal count
        count += 1
        return f"t{count}"

    def conv(source, taken, given, attributes="pads = [1, 1, 1, 1]", group=1, kernel=3):
        name = fresh()
        constants[f"{name}_w"] = (rng.standard_normal((given, taken // group, kernel, kernel)) / 3).astype(np.float32)
        constants[f"{name}_b"] = rng.standard_normal(given).astype(np.float32)
        bias = f", {name}_b" if draw(st.booleans()) else ""
        lines.append(f"{name} = Conv<{attributes}, group = {group}>({source}, {name}_w{bias})")
        return name

    def simple(text):
        name = fresh()
        lines.append(f"{name} = {text}")
        return name

    made.append((conv("x", 3, 4), 4))
    for _ in range(draw(st.integers(1, 8))):
        source, channels = made[draw(st.integers(max(0, len(made) - 3), len(made) - 1))]
        kinds = ("conv", "depthwise", "grouped", "point", "unary", "unary", "add", "gate", "concat", "split")
        kind = draw(st.sampled_from(kinds))
        if kind == "conv":
            wide = draw(st.sampled_from((4, 6)))
            made.append((conv(source, channels, wide), wide))
        elif kind == "depthwise":
            made.append((conv(source, channels, channels, group=channels), channels))
        elif kind == "concat":
            parts = [(source, channels), *draw(st.lists(st.sampled_from(made), min_size=1, max_size=2))]
            text = f"Concat<axis = {draw(st.sampled_from((1, -3)))}>({', '.join(name for name, _ in parts)})"
            made.append((simple(text), sum(wide for _, wide in parts)))
        elif kind == "split" and channels > 1:
            first, second = fresh(), fresh()
            constants[f"{first}_sizes"] = np.array([channels // 2, channels - channels // 2])
            lines.append(f"{first}, {second} = Split<axis = 1>({source}, {first}_sizes)")
            made += [(first, channels // 2), (second, channels - channels // 2)]
        elif kind == "grouped" and channels % 2 == 0:
            made.append((conv(source, channels, 4, group=2), 4))
        elif kind == "point":
            made.append((conv(source, channels, channels, "pads = [0, 0, 0, 0]", kernel=1), channels))
        elif kind == "unary":
            text = draw(
                st.sampled_from(
                    (
                        "Relu({})",
                        "Clip({}, zero, six)",
                        "Clip({}, low, six)",
                        "LeakyRelu<alpha = 0.1>({})",
                        f"MaxPool<{SAME}>({{}})",
                        f"AveragePool<{SAME}>({{}})",
                        "Tanh({})",
                    )
                )
            )
            made.append((simple(text.format(source)), channels))
        elif kind == "add":
            others = [name for name, c in made if c == channels]
            made.append((simple(f"Add({source}, {draw(st.sampled_from(others))})"), channels))
        else:
            pooled = simple(f"GlobalAveragePool({source})")
            score = conv(pooled, channels, channels, "pads = [0, 0, 0, 0]", kernel=1)
            made.append((simple(f"Mul({source}, {simple(f'Sigmoid({score})')})"), channels))
    last, channels = made[-1]
    constants["head"] = rng.standard_normal((3, channels, 1, 1)).astype(np.float32)
    lines.append(f"y = Conv({last}, head)")
    used = {name: array for name, array in constants.items() if any(name in line for line in lines)}
    return by_hand.named(" ".join(lines), "float[2, 3, 6, 6] x", "y", used), rng


@given(nets())
@settings(max_examples=60, deadline=None)
def test_every_tensor_of_a_group_is_divided_and_all_others_stay(net):
    """Any scales that keep observed values below a Clip's limit change nothing, compared with plain onnxruntime."""
    model, rng = net
    feed = {"x": rng.standard_normal((2, 3, 6, 6)).astype(np.float32)}
    before = small_models.every_value(ir.to_proto(model), feed)
    scales = {}
    for group in scale_groups(model):
        largest = np.zeros(group.channels)
        for name, numbers in group.members.items():
            np.maximum.at(largest, numbers, np.abs(before[name]).max(axis=(0, 2, 3)))
        least = np.minimum(1, 1.01 * largest / group.ceiling())
        scales[group] = np.maximum(rng.uniform(0.2, 1, group.channels), least)
        scales[group][group.fixed] = 1
    after = small_models.every_value(ir.to_proto(apply_equalization(model, scales)), feed)
    divisors = {
        name: s[numbers].reshape(1, -1, 1, 1) for group, s in scales.items() for name, numbers in group.members.items()
    }
    assert "y" in after, "what nothing reads may be gone"
    for name, array in after.items():
        close(array, before[name] / divisors.get(name, 1.0))


@given(nets())
@settings(max_examples=30, deadline=None)
def test_a_planned_equalization_changes_nothing_on_the_samples_it_was_planned_for(net):
    model, rng = net
    feed = {"x": (3 * rng.standard_normal((2, 3, 6, 6))).astype(np.float32)}
    groups = scale_groups(model)
    axes = {name: group.axis for group in groups for name in group.tensors}
    observed = by_hand.observation(model, [feed], axes)
    scales = plan_equalization(model, groups, observed, axes)
    for group, s in scales.items():
        assert s.shape == (group.channels,)
        assert (s > 0).all()
        assert (s[group.fixed] == 1).all()
        ceiling, largest = group.ceiling(), np.zeros(group.channels)
        for name, numbers in group.members.items():
            stats = observed.tensors[name].channels
            np.maximum.at(largest, numbers, np.abs(stats.minimum).clip(stats.maximum))
        limited = np.isfinite(ceiling)
        assert ((s * ceiling >= RANGE_MARGIN * largest * (1 - 1e-12)) | (s == 1))[limited].all(), "room below the limit"
        assert (s[limited] <= 1).all(), "what a Clip cut off is still cut off"
    equalized = apply_equalization(model, scales)
    close(small_models.plain(equalized, feed)["y"], small_models.plain(model, feed)["y"])


@pytest.mark.parametrize("first", ["Gemm(x, w, b)", "Gemm<transB = 1>(x, wt, b)", "MatMul(x, w)"])
@pytest.mark.parametrize("second", ["Gemm(r, v, k)", "Gemm<transB = 1, alpha = 0.5>(r, vt, k)", "MatMul(r, v)"])
def test_matrix_products_either_way_round(first, second):
    constants = weights(w=(5, 6), b=(6,), v=(6, 3), k=(1, 3))
    constants |= {"wt": constants["w"].T.copy(), "vt": constants["v"].T.copy()}
    body = f"a = {first} r = Relu(a) y = {second}"
    model, groups = groups_of(body, "float[7, 5] x", {n: c for n, c in constants.items() if f" {n}" in body})
    assert [(g.tensors, g.axis, g.channels) for g in groups] == [(("a", "r"), 1, 6)]
    s = np.linspace(0.1, 1, 6)
    feed = image_feed(shape=(7, 5))
    before = small_models.every_value(ir.to_proto(model), feed)
    after = small_models.every_value(ir.to_proto(apply_equalization(model, {groups[0]: s})), feed)
    close(after["r"], before["r"] / s)
    close(after["y"], before["y"])


def test_sequences_are_divided_along_their_last_axis():
    model, groups = groups_of(
        "a = MatMul(x, w) r = Relu(a) y = MatMul(r, v)", "float[2, 6, 5] x", weights(w=(5, 6), v=(6, 3))
    )
    assert groups[0].axis == 2
    s = np.linspace(0.1, 1, 6)
    feed = image_feed(shape=(2, 6, 5))
    before = small_models.plain(model, feed)["y"]
    close(small_models.plain(apply_equalization(model, {groups[0]: s}), feed)["y"], before)


def test_a_weight_that_is_read_elsewhere_is_not_rescaled():
    """It would become a copy: one weight is a producer's, a consumer's, and a third node's outside of every group."""
    _, groups = groups_of(
        "a = Conv(x, w, b) r = Relu(a) c = Conv(r, v, b) t = Tanh(c) o = Conv(x, w, b) y = Add(t, o)",
        IMAGE,
        weights(w=(4, 4, 1, 1), v=(4, 4, 1, 1), b=(4,)),
    )
    assert groups == []


def test_a_weight_that_all_consumers_share_stays_one():
    model, groups = groups_of(
        "a = Conv(x, w, b) r = Relu(a) c = Conv(r, v, b) d = Conv(r, v) y = Add(c, d)",
        IMAGE,
        weights(w=(4, 4, 1, 1), v=(4, 4, 1, 1), b=(4,)),
    )
    assert [set(g.tensors) for g in groups] == [{"a", "r"}]
    feed = image_feed()
    original = model.graph.initializers["v"].const_value.numpy().copy()
    result = apply_equalization(model, {groups[0]: np.array([0.1, 0.5, 0.9, 0.2])})
    close(small_models.plain(result, feed)["y"], small_models.plain(model, feed)["y"])
    np.testing.assert_array_equal(model.graph.initializers["v"].const_value.numpy(), original, "the model is a clone")
    assert len({node.inputs[1].name for node in result.graph if node.name in ("c", "d")}) == 1


def test_one_product_can_be_both_ends_of_a_group():
    """A residual stage has this case: the weight takes 1/s along the outputs and s along the inputs."""
    model, groups = groups_of(
        "a = Conv(x, w) d = Conv(a, v) e = Add(a, d) y = Conv(e, u)",
        IMAGE,
        weights(w=(4, 4, 1, 1), v=(4, 4, 1, 1), u=(2, 4, 1, 1)),
    )
    [group] = groups
    assert set(group.tensors) == {"a", "d", "e"}
    assert "d" in group.producers
    assert "d" in group.consumers
    s = np.array([0.2, 0.4, 0.6, 1.0])
    d = dict(zip(("model", "new"), (model, apply_equalization(model, {group: s})), strict=True))
    feed = image_feed()
    close(small_models.plain(d["new"], feed)["y"], small_models.plain(d["model"], feed)["y"])


# --- what may be divided ---

CONVS = weights(w=(4, 4, 1, 1), v=(4, 4, 1, 1))
WRAPPED = "a = Conv(x, w) {} y = Conv(r, v)"

CARRIED = {
    "relu": ("r = Relu(a)", {}),
    "nothing between": ("r = Identity(a)", {}),
    "clip from zero": ("r = Clip(a, zero, six)", ZERO_SIX),
    "clip without an upper limit": ("r = Clip(a, zero)", {"zero": np.float32(0)}),
    "leaky": ("r = LeakyRelu(a)", {}),
    "max pool": ("r = MaxPool<kernel_shape = [2, 2]>(a)", {}),
    "mean": ("r = GlobalAveragePool(a)", {}),
    "enlarged": ("r = Resize(a, , f)", {"f": np.array([1, 1, 2, 2], np.float32)}),
    "sum with itself": ("r = Add(a, a)", {}),
    "joined along another axis": ("r = Concat<axis = 2>(a, a)", {}),
}


@pytest.mark.parametrize("name", CARRIED)
def test_homogeneous_operators_carry_a_scale(name):
    body, constants = CARRIED[name]
    assert tensors_of(WRAPPED.format(body), constants={**CONVS, **constants}) == [{"a", "r"}]


REFUSED = {
    "not homogeneous": ("r = Sigmoid(a)", {}),
    "smooth": ("t = Softplus(a) r = Relu(t)", {}),
    "sum with a constant": ("r = Add(a, k)", {"k": np.ones((1, 4, 1, 1), np.float32)}),
    "sum with something fed": ("r = Add(a, x)", {}),
    "sum with a sigmoid": ("t = Sigmoid(a) r = Add(a, t)", {}),
    "sum that spreads one channel over all": ("p = Conv(x, one) r = Add(a, p)", weights(one=(1, 4, 1, 1))),
    "square": ("r = Mul(a, a)", {}),
    "product with a constant": ("r = Mul(a, k)", {"k": np.float32([2])}),
    "product with its own mean": ("g = GlobalAveragePool(a) r = Mul(a, g)", {}),
    "clip beside zero": ("r = Clip(a, one, six)", {"one": np.float32(1), "six": np.float32(6)}),
    "clip below zero": ("r = Clip(a, low, zero)", {"low": np.float32(-6), "zero": np.float32(0)}),
    "clip whose limit is computed": ("m = ReduceMax<keepdims = 0>(x) r = Clip(a, zero, m)", {"zero": np.float32(0)}),
    "pool that tells where": ("r, i = MaxPool<kernel_shape = [2, 2]>(a)", {}),
    "shape of it is read": ("r = Relu(a) s = Shape(a) q = Cast<to = 1>(s) n = ReduceSum(q)", {}),
    "joined with a constant": ("r = Concat<axis = 2>(a, k)", {"k": np.ones((1, 4, 1, 8), np.float32)}),
    "channels swapped": ("r = Transpose<perm = [0, 2, 1, 3]>(a)", {}),
    "another reader": ("r = Relu(a) t = Tanh(a) n = ReduceSum(t)", {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_others_do_not(name):
    body, constants = REFUSED[name]
    body = WRAPPED.format(body)
    constants = {**CONVS, **constants}
    if name == "channels swapped":
        constants["v"] = weights(v=(4, 8, 1, 1))["v"]
    outputs = "y, n" if " n = " in body else "y"
    assert tensors_of(body, constants=constants, outputs=outputs) == []


def test_channels_that_a_concat_joins_have_scales_of_their_own():
    body = "a = Conv(x, w) r = Relu(a) b = Conv(x, v) c = Concat<axis = 1>(r, b) y = Conv(c, u)"
    _, [group] = groups_of(body, constants={**CONVS, **weights(u=(2, 8, 1, 1))})
    assert {name: list(numbers) for name, numbers in group.members.items()} == {
        "a": [0, 1, 2, 3], "r": [0, 1, 2, 3], "b": [4, 5, 6, 7], "c": [0, 1, 2, 3, 4, 5, 6, 7],
    }  # fmt: skip
    assert len(set(group.blocks())) == 2
    assert set(group.producers) == {"a", "b"}
    assert group.consumers == ("y",)
    assert len(group.fixed) == 0


def test_an_operand_that_cannot_be_divided_keeps_scale_one():
    body = """a = Conv(x, w) t = Tanh(x) c = Concat<axis = 1>(t, a) p, q = Split<axis = 1>(c, parts)
    y = Conv(p, u) z = Conv(q, o)"""
    constants = {**CONVS, **weights(u=(2, 6, 1, 1), o=(2, 2, 1, 1)), "parts": np.array([6, 2])}
    _, [group] = groups_of(body, outputs="y, z", constants=constants)
    numbers = {name: list(of_channels) for name, of_channels in group.members.items()}
    assert numbers["c"] == numbers["t"] + numbers["a"] == numbers["p"] + numbers["q"]
    assert len(numbers["p"]) == 6
    assert list(group.fixed) == numbers["t"]


def test_what_leaves_or_enters_the_graph_is_not_divided():
    assert tensors_of(WRAPPED.format("r = Relu(a)"), constants=CONVS, outputs="y, a") == []
    assert tensors_of(WRAPPED.format("r = Relu(a)"), constants=CONVS, outputs="y, r") == []
    assert tensors_of("r = Relu(x) y = Conv(r, v)", constants=weights(v=(4, 4, 1, 1))) == []
    assert tensors_of("a = Conv(x, v) y = Relu(a)", constants=weights(v=(4, 4, 1, 1))) == []


def test_a_product_of_two_activations_or_with_an_odd_bias_ends_a_group():
    assert tensors_of("a = MatMul(x, w) y = MatMul(a, x)", "float[4, 4] x", weights(w=(4, 4))) == []
    assert tensors_of("a = MatMul(x, w) y = MatMul(k, a)", "float[4, 4] x", weights(w=(4, 4), k=(4, 4))) == []
    for gemm in ("Gemm<beta = 2.0>(x, w, b)", "Gemm<transA = 1>(x, w, b)", "Gemm(x, w, one)", "Gemm(x, w, x)"):
        constants = {**weights(w=(4, 4), v=(4, 4)), "b": np.ones(4, np.float32), "one": np.ones(1, np.float32)}
        constants = {n: c for n, c in constants.items() if n in ("w", "v") or f", {n})" in gemm}
        assert tensors_of(f"a = {gemm} y = MatMul(a, v)", "float[4, 4] x", constants) == [], gemm


def test_a_column_as_bias_is_added_to_every_channel():
    """[N, 1] with as many rows as there are channels: not one number a channel."""
    model, groups = groups_of(
        "a = Gemm(x, w, b) r = Relu(a) y = MatMul(r, v)", "float[4, 5] x", weights(w=(5, 4), b=(4, 1), v=(4, 4))
    )
    feed = image_feed(shape=(4, 5))
    result = apply_equalization(model, {group: np.array([0.1, 0.3, 0.6, 1]) for group in groups})
    close(small_models.plain(result, feed)["y"], small_models.plain(model, feed)["y"])


def test_a_gate_is_read_and_not_divided():
    _, groups = groups_of(
        "a = Conv(x, w) p = GlobalAveragePool(a) g = Conv(p, v) s = Sigmoid(g) m = Mul(s, a) y = Conv(m, u)",
        constants={**CONVS, **weights(u=(4, 4, 1, 1))},
    )
    assert [set(g.tensors) for g in groups] == [{"a", "p", "m"}]
    assert set(groups[0].consumers) == {"g", "y"}


def test_open_image_sizes_are_fine_and_open_channels_are_not():
    assert tensors_of(WRAPPED.format("r = Relu(a)"), "float[N, 4, H, W] x", CONVS) == [{"a", "r"}]
    body = "a = MatMul(x, w) q = Identity(a) y = MatMul(q, v)"
    model = by_hand.named(body, "float[N, 4] x", "y", weights(w=(4, 4), v=(4, 4)))
    next(n for n in model.graph if n.name == "q").outputs[0].shape = ir.Shape(["N", "C"])
    assert scale_groups(model) == []
    for node in model.graph:
        node.outputs[0].shape = None
    assert scale_groups(model) == [], "nothing known"


def test_pooling_over_the_channels_of_a_sequence_is_not_carried():
    """Behind a MatMul the channels are the last axis, which a pool of three takes together."""
    body = "a = MatMul(x, w) r = MaxPool<kernel_shape = [3], pads = [1, 1]>(a) y = MatMul(r, v)"
    assert tensors_of(body, "float[1, 6, 5] x", weights(w=(5, 4), v=(4, 4))) == []


def test_a_value_beside_the_picture_is_not_scaled():
    body = """r = Resize<mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize",
    extrapolation_value = 5.0>(a, roi, f)"""
    constants = {"roi": np.float32([0, 0, 0, 0, 1, 1, 2, 2]), "f": np.float32([1, 1, 1, 1])}
    assert tensors_of(WRAPPED.format(body), constants={**CONVS, **constants}) == []


def test_what_a_branch_reads_is_not_divided():
    """The tensors an If's branches read are no inputs of the node itself."""
    make = onnx.helper
    shape = [1, 4, 8, 8]
    branches = [
        make.make_graph([make.make_node(op, ["r"], [f"{op}_out"])], op, [], [_info(f"{op}_out", shape)])
        for op in ("Neg", "Abs")
    ]
    nodes = [
        make.make_node("Conv", ["x", "w"], ["a"], "a"),
        make.make_node("Relu", ["a"], ["r"], "r"),
        make.make_node("If", ["flag"], ["z"], "if", then_branch=branches[0], else_branch=branches[1]),
        make.make_node("Conv", ["r", "v"], ["y"], "y"),
    ]
    flag = make.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])
    outputs = [_info("y", shape), _info("z", shape)]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in CONVS.items()]
    graph = make.make_graph(nodes, "branches", [_info("x", shape), flag], outputs, constants)
    proto = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    groups = scale_groups(model)
    result = apply_equalization(model, {group: np.array([0.1, 0.3, 0.6, 1]) for group in groups})
    feed = {**image_feed(), "flag": np.array(True)}
    before, after = (small_models.plain(m, feed) for m in (model, result))
    close(after["z"], before["z"])
    close(after["y"], before["y"])


def _info(name, shape):
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def test_an_input_with_a_default_is_an_input():
    constants = {**weights(w=(4, 4, 1, 1)), "x": np.zeros((1, 4, 8, 8), np.float32)}
    model, groups = groups_of("y = Conv(x, w)", IMAGE, constants)
    assert query.constant(next(iter(model.graph)).inputs[0]) is None
    assert groups == []
