"""Totals against numbers worked out by hand, and against those published for MobileNetV2."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from qdq_models import residual
from small_models import model, weights

from toolchain.graph import edit, io
from toolchain.ops import cost


def counted(body, inputs, outputs, constants=None, **kwargs):
    return cost.count(model(body, inputs, outputs, constants, **kwargs))


CONV_NET = (
    """c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b)
       r = Relu (c)
       f = Flatten (r)
       y = Gemm (f, v, d)""",
    "float[1, 3, 8, 8] x",
    "float[1, 10] y",
    weights(w=(4, 3, 3, 3), b=(4,), v=(64, 10), d=(10,)),
)


def test_a_convolution_and_a_matrix_product():
    found = counted(*CONV_NET)
    assert found.macs == {"c": 4 * 4 * 4 * 27, "r": 64, "f": 0, "y": 640}
    assert found.total_macs == cost.total_macs(model(*CONV_NET)) == 1728 + 64 + 640
    assert found.parameters == 4 * 27 + 4 + 640 + 10
    assert found.weight_bytes == 4 * found.parameters
    assert found.unknown == {}
    assert found.dynamic == ()
    assert [(o.op, o.nodes, o.macs) for o in found.operators] == [
        ("Conv", 1, 1728), ("Gemm", 1, 640), ("Relu", 1, 64), ("Flatten", 1, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "x", "y", "constants", "macs"),
    [
        # 6 x 6 outputs of 8 channels, each 3 x 3 of the one channel of its group
        ("y = Conv <group = 8> (x, w)", "1, 8, 8, 8", "1, 8, 6, 6", {"w": (8, 1, 3, 3)}, 288 * 9),
        # every input element meets 2 x 2 x 5 weights
        ("y = ConvTranspose <strides = [2, 2]> (x, w)", "1, 4, 3, 3", "1, 5, 6, 6", {"w": (4, 5, 2, 2)}, 36 * 20),
        ("y = MatMul (x, w)", "2, 7, 6", "2, 7, 5", {"w": (6, 5)}, 2 * 7 * 5 * 6),
        ("y = Gemm <transA = 1> (x, w)", "6, 7", "7, 5", {"w": (6, 5)}, 7 * 5 * 6),
        # 5 steps, batch 2: 4 gates of 4 rows, each over 3 inputs and 4 states
        ("y = LSTM <hidden_size = 4> (x, w, r)", "5, 2, 3", "5, 1, 2, 4", {"w": (1, 16, 3), "r": (1, 16, 4)},
         10 * 16 * (3 + 4)),
        # two directions, 3 gates
        ('y = GRU <hidden_size = 4, direction = "bidirectional"> (x, w, r)', "5, 2, 3", "5, 2, 2, 4",
         {"w": (2, 12, 3), "r": (2, 12, 4)}, 10 * 2 * 12 * (3 + 4)),
    ],
    ids=["depthwise", "transposed", "matmul", "gemm", "lstm", "gru"],
)  # fmt: skip
def test_macs_of_one_node(body, x, y, constants, macs):
    assert counted(body, f"float[{x}] x", f"float[{y}] y", weights(**constants)).total_macs == macs


def test_dynamic_axes_count_as_one_also_behind_a_reshape():
    """32*batch rows become 32; taking the unknown axis itself as 1 would count one row."""
    body = "s = Reshape (x, to) y = MatMul (s, w)"
    constants = weights(w=(6, 5)) | {"to": np.array([-1, 6])}
    found = counted(body, "float[batch, 32, 6] x", "float[rows, 5] y", constants)
    assert found.macs["y"] == 32 * 5 * 6
    assert found.dynamic == ("x.0",)
    assert found.parameters == 30  # the shape to reshape to is none


def test_dynamic_axes_have_the_sizes_that_are_given():
    constants = weights(w=(4, 3, 3, 3), v=(5, 4, 1, 1))
    source = model("a = Conv(x, w) y = Conv(a, v)", "float[batch, 3, H, W] x", "float[batch, 5, P, Q] y", constants)
    places = 2 * 8 * 18
    assert cost.total_macs(source, {"x": (2, 3, 10, 20)}) == places * (4 * 27 + 5 * 4)
    assert [str(dim) for dim in source.graph.inputs[0].shape] == ["batch", "3", "H", "W"]
    body = "s = Reshape (x, to) y = MatMul (s, w)"
    source = model(body, "float[batch, 32, 6] x", "float[rows, 5] y", weights(w=(6, 5)) | {"to": np.array([-1, 6])})
    assert cost.total_macs(source, {"x": (3, 32, 6)}) == 3 * 32 * 5 * 6


def test_counting_leaves_the_model_alone():
    source = model("y = Relu (x)", "float[batch, 3] x", "float[batch, 3] y")
    assert cost.count(source).total_macs == 3
    assert [str(dim) for dim in source.graph.inputs[0].shape] == ["batch", "3"]


def test_nodes_without_a_row_or_a_shape_are_counted_and_named():
    source = model("a = Selu (x) b = Selu (a) y = Add (b, x)", "float[4] x", "float[4] y")
    found = cost.count(source)
    assert found.unknown == {"a": "its operator is not in the table", "b": "its operator is not in the table"}
    assert {o.op: (o.nodes, o.macs, o.unknown) for o in found.operators} == {"Add": (1, 4, 0), "Selu": (2, 0, 2)}
    assert found.total_macs == 4
    custom = ir.node("Magic", [source.graph.inputs[0]], domain="my.domain", name="spell")
    product = ir.node("MatMul", [custom.outputs[0], source.graph.inputs[0]], name="product")
    source.graph.insert_before(source.graph[0], [custom, product])
    edit.redirect(source.graph.inputs[0], product.outputs[0], [source.graph[2]])
    found = cost.count(source)
    assert found.unknown["spell"] == "its operator is not in the table"
    assert found.unknown["product"] == "its shapes are not known"
    assert "my.domain::Magic" in {o.op for o in found.operators}


# ------------------------------------------------------------------------------------------------ peaks


@pytest.mark.parametrize(
    ("body", "floats"),
    [
        ("y = Tanh (x)", 100 + 100),
        ("a = Tanh (x) y = Tanh (a)", 100 + 100),
        ("a = Tanh (x) b = Tanh (a) y = Add (b, x)", 3 * 100),  # x waits for the Add
        ("a = Tanh (x) b = Tanh (a) c = Tanh (b) y = Add (c, a)", 3 * 100),
        ("a = Tanh (x) b = Concat <axis = 0> (a, a, a) y = ReduceSum <keepdims = 0> (b)", 100 + 300),
        ("a = Tanh (x) b = Relu (a) y = Tanh (b)", 100 + 100),  # b takes the place of a
        ("a = Tanh (x) b = Relu (a) y = Add (a, b)", 100 + 100 + 100),  # a is still read
    ],
)
def test_peak_of_live_tensors(body, floats):
    y = "float y" if "ReduceSum" in body else "float[100] y"
    assert counted(body, "float[100] x", y).peak_activation_bytes == 4 * floats


def test_the_peak_is_at_a_node():
    found = counted("h = Concat <axis = 0> (x, x, x) y = ReduceMax <keepdims = 0> (h)", "float[100] x", "float y")
    assert (found.peak_activation_bytes, found.peak_node) == (4 * 400, "h")
    assert found.int8_peak_activation_bytes == 400


def test_peak_counts_each_type_as_it_is():
    assert counted("y = Cast <to = 11> (x)", "float[100] x", "double[100] y").peak_activation_bytes == 400 + 800


def test_a_quantized_model_is_counted_as_it_runs(tmp_path):
    """Conv, Relu, Conv, Add on [1, 16, 8, 8] in uint8, the float input before it."""
    found = cost.count(io.load(residual(tmp_path / "m.onnx", signed=False)))
    tensor = 16 * 8 * 8
    assert found.peak_activation_bytes == tensor * 4 + tensor  # the input as float and as integers
    assert found.parameters == 16 * 16 * 9 + 16 * 16  # and no scale among them
    weights_in_bytes = found.parameters + (16 + 16) * (4 + 1)
    assert found.weight_bytes - weights_in_bytes < 40  # scales and zero points of activations
    by_op = {o.op: o.macs for o in found.operators}
    assert by_op["Conv"] == 64 * 16 * 16 * 9 + 64 * 16 * 16
    assert by_op["DequantizeLinear"] == 4 * tensor  # of activations; those of weights are folded


# ------------------------------------------------------------------------------------------ published


def mobilenet_v2():
    """Sandler et al., 2018, arXiv:1801.04381, table 2, batch normalization folded; shapes only, no weights."""
    lines, constants, number = [], {}, 0

    def conv(source, inner, outer, kernel=1, stride=1, group=1, relu=True):
        nonlocal number
        number += 1
        pad = kernel // 2
        constants[f"w{number}"] = np.zeros((outer, inner // group, kernel, kernel), np.float32)
        constants[f"b{number}"] = np.zeros(outer, np.float32)
        attributes = f"group = {group}, strides = [{stride}, {stride}], pads = [{pad}, {pad}, {pad}, {pad}]"
        lines.append(f"c{number} = Conv <{attributes}> ({source}, w{number}, b{number})")
        if relu:
            lines.append(f"r{number} = Clip (c{number}, zero, six)")
        return f"{'r' if relu else 'c'}{number}"

    x, channels = conv("x", 3, 32, kernel=3, stride=2), 32
    blocks = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, outer, repeats, first_stride in blocks:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            wide = channels * expansion
            y = x if expansion == 1 else conv(x, channels, wide)
            y = conv(conv(y, wide, wide, 3, stride, group=wide), wide, outer, relu=False)
            if stride == 1 and channels == outer:
                lines.append(f"a{number} = Add ({x}, {y})")
                y = f"a{number}"
            x, channels = y, outer
    lines += [f"p = GlobalAveragePool ({conv(x, 320, 1280)})", "f = Flatten (p)", "y = Gemm (f, v, d)"]
    constants |= {"v": np.zeros((1280, 1000), np.float32), "d": np.zeros(1000, np.float32)}
    constants |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    return model("\n".join(lines), "float[N, 3, 224, 224] x", "float[N, 1000] y", constants)


def test_mobilenet_v2_costs_what_is_published():
    found = cost.count(mobilenet_v2())
    by_op = {o.op: o.macs for o in found.operators}
    # The paper says 300M multiply-adds and 3.4M parameters; torchvision says 0.30 GFLOPS and 3,504,872, of which
    # 17,056 are second parameters of batch normalization, here folded into biases.
    assert by_op["Conv"] + by_op["Gemm"] == 300_774_272
    assert found.parameters == 3_504_872 - 17_056 + 2  # and the two limits of Clip
    assert found.total_macs == pytest.approx(300e6, rel=0.03)
    # Widest moment: the second block's 96 channels at 112 x 112 while its depthwise convolution halves them.
    assert found.peak_activation_bytes == 4 * (96 * 112 * 112 + 96 * 56 * 56)
    assert found.dynamic == ("x.0",)
