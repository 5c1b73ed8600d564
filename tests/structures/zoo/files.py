"""Files as people have them: old and new versions, other types and programs, unusual inputs, outputs and operators."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantFormat

from zoo import changes
from zoo.net import Net
from zoo.row import row
from zoo.samples import N, as_type, chosen, constant, dynamic, features, image, positive

PICTURE = image(3, 16)
LAST = {"y": -1}
HALF = 1e-2
"""Difference between sums in float16, which the source computes, and in float32: 2⁻¹¹ for every term."""


def small(n: Net, x, classes=5, act="Relu"):
    """Two convolutions and a product."""
    return n.linear(n.flat_mean(n.conv(n.conv(x, 12, s=2, act=act), 16, act=act)), classes)


def text(n: Net, x):
    """A transformer block over features."""
    return n.linear(n.block(x), 5)


# -- versions ----------------------------------------------------------------------------------------------------------


@row(PICTURE, opset=7, int8_at_least=3)
def opset_7_with_weights_as_inputs(n, x):
    y = n.BatchNormalization(n.conv(x, 12, act=None), *statistics(n, 12))
    y = n.MaxPool(n.Relu(y), kernel_shape=[2, 2], strides=[2, 2])
    return n.linear(n.Dropout(n.linear(n.Flatten(n.conv(y, 12)), 16, act="Relu"), ratio=0.4), 5)


def statistics(n: Net, width: int):
    """Scale, bias, mean and variance of a batch normalization."""
    return np.ones(width, np.float32), n.normal(width), n.normal(width), np.exp(n.normal(width))


@row(PICTURE, opset=9, int8_at_least=2)
def upsample_of_opset_9(n, x):
    y = n.Upsample(n.conv(x, 12, s=2), np.float32([1, 1, 2, 2]), mode="linear")
    return n.conv(y, 4, act=None)


@row(PICTURE, opset=9, int8_at_least=2)
def upsample_by_a_broken_factor(n, x):
    y = n.Upsample(n.conv(x, 12), np.float32([1, 1, 1.7, 1.7]), mode="nearest")
    return n.conv(y, 4, act=None)


@row(PICTURE, opset=10, int8_at_least=2)
def resize_of_opset_10(n, x):
    y = n.Resize(n.conv(x, 12, s=2), np.float32([1, 1, 2, 2]), mode="linear")
    return n.conv(n.Slice(y, [1, 1], [15, 15], [2, 3]), 4, act=None)


@row(PICTURE, opset=21, int8_at_least=3, fast=True)
def opset_21(n, x):
    return small(n, x, act="HardSwish")


@row(PICTURE, opset=18, int8_at_least=3)
def opset_18_split_and_mish(n, x):
    first, second = n.Split(n.conv(x, 16, s=2, act=None), outputs=2, axis=1, num_outputs=2)
    return small(n, n.Concat(n.Mish(first), n.Relu(second), axis=1))


# -- forms of the file -------------------------------------------------------------------------------------------------


@row(PICTURE, change=changes.weights_as_inputs, int8_at_least=3)
def weights_that_are_inputs_too(n, x):
    return small(n, x)


@row(PICTURE, change=changes.weights_as_nodes, int8_at_least=3)
def weights_as_constant_nodes(n, x):
    return small(n, x)


@row(PICTURE, change=changes.weights_behind_identities, int8_at_least=3)
def weights_behind_identity_nodes(n, x):
    return small(n, x)


@row(PICTURE, change=changes.unsorted_nodes, int8_at_least=3, fast=True)
def nodes_in_reverse_order(n, x):
    return small(n, x)


@row(features(1, 16), change=changes.sparse_weights, int8_at_least=2)
def sparse_initializers(n, x):
    return n.linear(n.linear(x, 24, act="Relu"), 5)


@row(PICTURE, change=changes.without_names, int8_at_least=3)
def nodes_without_names(n, x):
    return small(n, x)


@row(PICTURE, change=changes.names_with_odd_letters, int8_at_least=3, exported=True)
def names_with_odd_letters(n, x):
    return small(n, x)


@row(PICTURE, change=changes.to_float16, optimized_within=HALF, fed_as=np.float16, int8_at_least=2, exported=True)
def everything_in_float16(n, x):
    return small(n, x)


@row(PICTURE, change=changes.to_float16_inside, optimized_within=HALF, int8_at_least=2)
def float16_between_casts(n, x):
    return small(n, x)


@row(PICTURE, change=changes.to_mixed_precision, optimized_within=HALF, int8_at_least=2)
def products_in_float16(n, x):
    return small(n, x, act="HardSwish")


@row(
    features(1, 10, 24),
    change=changes.to_float16,
    optimized_within=HALF,
    fed_as=np.float16,
    channels=LAST,
    int8_at_least=4,
)
def transformer_in_float16(n, x):
    return text(n, x)


@row(PICTURE, change=changes.to_bfloat16_weights, int8_at_least=2)
def weights_in_bfloat16(n, x):
    return small(n, x)


@row(as_type(features(1, 16), np.float64), int8_at_least=0, min_db=10)
def everything_in_doubles(n, x):
    w, v = n.weight(16, 24, fan=16).astype(np.float64), n.weight(24, 4, fan=24).astype(np.float64)
    return n.MatMul(n.Relu(n.MatMul(x, w)), v)


@row(image(3, 24), change=changes.basic, int8_at_least=3)
def saved_by_onnxruntime_basic(n, x):
    return small(n, x, act="SiLU")


@row(PICTURE, change=changes.extended, int8_at_least=2, exported=True)
def fused_convolutions_saved_by_onnxruntime(n, x):
    return small(n, x, act="LeakyRelu")


@row(features(1, 10, 24), change=changes.extended, channels=LAST, int8_at_least=4)
def transformer_saved_by_onnxruntime(n, x):
    return text(n, x)


@row(features(1, 10, 24), change=changes.basic, channels=LAST, int8_at_least=4, opset=13)
def parts_of_norms_saved_by_onnxruntime(n, x):
    return text(n, x)


@row(features(1, 8, 24), channels=LAST, int8_at_least=2)
def operators_of_onnxruntime(n, x):
    y = n.add("Gelu", n.linear(x, 32), domain="com.microsoft")
    y = n.add("FusedMatMul", y, n.weight(16, 32, fan=32), domain="com.microsoft", transB=1, alpha=0.7)
    return n.linear(n.add("QuickGelu", y, domain="com.microsoft", alpha=1.702), 5)


@row(PICTURE, change=changes.quantized(QuantFormat.QDQ), refused="quantized already")
def quantized_already_as_pairs(n, x):
    return small(n, x)


@row(PICTURE, change=changes.quantized(QuantFormat.QOperator), refused="quantized already")
def quantized_already_as_operators(n, x):
    return small(n, x)


def four_bits(n: Net, x, width: int):
    """A product whose weight is stored in four bits, in blocks of 16."""
    rows, kind = n.shape(x)[-1], helper.tensor_dtype_to_np_dtype(TensorProto.INT4)
    values = np.clip(np.round(n.normal(rows, width, scale=3)), -8, 7).astype(kind)
    scales = np.exp(n.normal(rows // 16, width, scale=0.3)) * np.float32(0.05)
    return n.MatMul(x, n.DequantizeLinear(values, scales, axis=0, block_size=16))


@row(features(1, 32), opset=21, refused="quantized already")
def weights_infour_bits(n, x):
    return four_bits(n, n.Relu(four_bits(n, x, 32)), 5)


@row(PICTURE, int8_at_least=3)
def functions_in_the_file(n, x):
    square = helper.make_function(
        "own", "Swish", ["a"], ["b"],
        [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    n.functions.append(square)
    y = n.add("Swish", n.conv(x, 12, s=2, act=None), domain="own")
    return small(n, n.add("Swish", n.conv(y, 12, act=None), domain="own"))


@row(features(1, 6), unreadable="classical machine learning model")
def linear_classifier_of_another_library(n, x):
    label, scores = n.add(
        "LinearClassifier", x, outputs=2, domain="ai.onnx.ml", coefficients=[0.5, -1.0, 0.2, 0.1, 0.4, -0.3] * 2,
        intercepts=[0.1, -0.1], classlabels_ints=[0, 1], post_transform="LOGISTIC", multi_class=1,
    )  # fmt: skip
    return {"label": label, "chances": scores}


# -- inputs and outputs ------------------------------------------------------------------------------------------------


@row(PICTURE, int8_at_least=2, fast=True)
def output_that_is_an_input(n, x):
    return {"y": n.conv(n.conv(x, 12), 4, act=None), "x": x}


@row(PICTURE, change=changes.first_output_twice, int8_at_least=1)
def output_listed_twice(n, x):
    return {"y": n.conv(n.conv(x, 12), 4, act=None)}


@row(PICTURE, int8_at_least=2)
def two_outputs_of_one_value(n, x):
    y = n.conv(n.conv(x, 12), 4, act=None)
    return {"a": y, "b": y, "after": n.Sigmoid(y)}


@row(PICTURE, int8_at_least=2, channels={"anchors": -1})
def constant_as_an_output(n, x):
    return {"y": n.conv(n.conv(x, 12), 4, act=None), "anchors": n.const(n.normal(6, 4), "anchors")}


@row(PICTURE, int8_at_least=2)
def inner_values_as_outputs(n, x):
    one = n.conv(x, 12)
    two = n.conv(one, 16, s=2)
    return {one: one, two: two, "y": n.linear(n.flat_mean(two), 5)}


@row(PICTURE, int8_at_least=2)
def number_without_axes(n, x):
    y = n.conv(n.conv(x, 12, s=2), 8)
    return {"score": n.reduce("ReduceMean", y, [0, 1, 2, 3], 0), "size": n.Size(y)}


@row(image(dynamic("C", 3), dynamic("H", 14, 18), dynamic("W", 14, 18), batch=N), int8_at_least=2)
def every_axis_dynamic(n, x):
    return n.conv(n.conv(x, 12), 4, act=None)


@row(image(3, 16, batch=N), change=changes.declared("batch"), int8_at_least=2)
def squeeze_without_axes(n, x):
    y = n.linear(n.Flatten(n.reduce("ReduceMax", n.conv(n.conv(x, 12), 16), [2, 3])), 1)
    return n.Mul(n.Sigmoid(n.Squeeze(y)), 4.0)


@row(PICTURE, int8_at_least=2, agree=0.8)
def text_as_an_output(n, x):
    scores = small(n, x, 3)
    best = n.ArgMax(scores, axis=1, keepdims=0)
    return {"name": n.Gather(np.array(["cat", "dog", "cow"], dtype=object), best), "scores": scores}


@row(PICTURE, int8_at_least=2, agree=0.8)
def truth_and_integers_as_outputs(n, x):
    y = small(n, x)
    return {"positive": n.Greater(y, 0.0), "rounded": n.Cast(n.Round(n.Mul(y, 3.0)), to=6), "y": y}


@row(PICTURE, int8_at_least=2)
def sequence_in_the_middle(n, x):
    parts = n.SplitToSequence(n.conv(x, 12), np.int64(4), axis=1)
    y = n.Concat(n.SequenceAt(parts, np.int64(2)), n.SequenceAt(parts, np.int64(0)), axis=1)
    return n.conv(y, 4, act=None)


@row(PICTURE, unreadable="is a list")
def sequence_as_an_output(n, x):
    y = n.conv(x, 12)
    return {"all": n.SequenceConstruct(y, n.conv(y, 12)), "y": y}


@row(as_type(chosen(range(256), 1, 16, 16, 3), np.uint8), int8_at_least=2)
def bytes_of_a_picture_last_axis_colour(n, x):
    y = n.Transpose(n.Cast(x, to=1), perm=[0, 3, 1, 2])
    return small(n, n.Div(n.Sub(y, np.float32([123, 116, 103]).reshape(1, 3, 1, 1)), 58.0))


@row(PICTURE, positive(1), int8_at_least=2)
def threshold_given_as_an_input(n, x, level):
    y = n.Sigmoid(n.conv(n.conv(x, 12), 4, act=None))
    return n.Where(n.Greater(y, level), y, np.float32(0))


@row(features(1, 8), features(1, 8), int8_at_least=1, calibration={"x": features(1, 8), "unused": constant(0, 1, 8)})
def input_that_nothing_reads(n, x, unused):
    return n.linear(n.linear(x, 16, act="Relu"), 3)
