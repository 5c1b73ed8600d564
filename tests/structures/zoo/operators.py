"""Operators with unusual attributes and values: pads, factors, groups, branches, ranges, training; useless samples."""

from __future__ import annotations

import numpy as np

from zoo.files import small, statistics
from zoo.row import row
from zoo.samples import constant, features, image

PICTURE = image(3, 16)
LAST = {"y": -1}


@row(image(3, 15), int8_at_least=3)
def auto_pad_same_upper_and_lower(n, x):
    y = n.conv(x, 12, 3, s=2, auto_pad="SAME_UPPER")
    y = n.AveragePool(y, kernel_shape=[2, 2], strides=[1, 1], auto_pad="SAME_UPPER")
    y = n.MaxPool(n.conv(y, 12, 2, auto_pad="SAME_LOWER"), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")
    return n.conv(y, 4, 1, act=None, auto_pad="VALID")


@row(image(3, 15), int8_at_least=1)
def pools_rounded_up_and_dilated(n, x):
    y = n.MaxPool(n.conv(x, 12), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    y = n.MaxPool(y, kernel_shape=[3, 3], dilations=[2, 2], pads=[2] * 4)
    y = n.AveragePool(y, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, count_include_pad=1)
    return n.conv(y, 4, act=None)


@row(PICTURE, int8_at_least=3)
def uneven_pads_and_strides(n, x):
    y = n.conv(x, 12, (3, 4), pads=[0, 2, 1, 1])
    weight = n.weight(16, 12, 1, 3, fan=36)
    y = n.Relu(n.Conv(y, weight, n.normal(16, scale=0.2), strides=[1, 2], dilations=[1, 2], pads=[0, 3, 0, 1]))
    return n.conv(n.Pad(y, [0, 0, 1, 0, 0, 0, 2, 1], np.float32(0.5)), 4, act=None)


@row(features(4, 16), int8_at_least=1)
def gemm_with_alpha_beta_and_transposes(n, x):
    turned = n.Transpose(x, perm=[1, 0])
    y = n.Gemm(turned, n.weight(24, 16, fan=16), n.normal(24), transA=1, transB=1, alpha=0.5, beta=2.0)
    return n.Gemm(n.Relu(y), n.weight(24, 5, fan=24), n.normal(1, 5), alpha=1.5)


@row(features(1, 16, 6), int8_at_least=2)
def constant_on_the_left(n, x):
    return n.MatMul(n.weight(8, 24, fan=24), n.Relu(n.MatMul(n.weight(24, 16, fan=16), x)))


@row(features(1, 16), int8_at_least=2)
def biases_of_one_number(n, x):
    y = n.Gemm(x, n.weight(16, 24, fan=16), np.float32(0.3))
    return n.Gemm(n.Relu(y), n.weight(24, 4, fan=24), np.float32([[-0.2]]))


@row(features(1, 4, 6, 16), channels=LAST, int8_at_least=1)
def products_of_four_axes(n, x):
    y = n.Add(n.MatMul(x, n.weight(16, 24, fan=16)), n.normal(24))
    y = n.MatMul(n.Relu(y), n.weight(4, 24, 8, fan=24))
    return n.Add(y, n.normal(1, 1, 1, 8))


@row(features(1, 12, 40), int8_at_least=3)
def grouped_in_one_dimension(n, x):
    y = n.conv(n.conv(x, 24, 5, groups=4), 24, 3, groups=24)
    return n.conv(n.conv(y, 16, 1), 6, 3, groups=2, act=None)


@row(PICTURE, unreadable="in training mode")
def dropout_left_in_training_mode(n, x):
    y = n.Dropout(n.conv(x, 12), np.float32(0.5), np.bool_(True))
    return n.conv(y, 4, act=None)


@row(PICTURE, unreadable="draws random numbers")
def random_numbers_inside(n, x):
    y = n.conv(x, 12)
    return n.conv(n.Add(y, n.RandomNormalLike(y)), 4, act=None)


@row(image(3, 16, batch=4), unreadable="in training mode", opset=15)
def batch_norm_in_training_mode(n, x):
    y = n.conv(x, 12, act=None)
    scale, bias, mean, variance = statistics(n, 12)
    y, _, _ = n.BatchNormalization(y, scale, bias, mean, variance, outputs=3, training_mode=1)
    return n.conv(n.Relu(y), 4, act=None)


@row(PICTURE, refused="one value only", calibration={"x": constant(0, 1, 3, 16, 16)})
def calibrated_on_zeros(n, x):
    return small(n, x)


@row(PICTURE, refused="one value only", calibration={"x": constant(0.7, 1, 3, 16, 16)})
def calibrated_on_one_picture(n, x):
    return small(n, x)


@row(PICTURE, int8_at_least=2)
def if_with_two_networks(n, x):
    y = n.conv(x, 12)
    weights = [n.const(n.weight(8, 12, 3, 3, fan=108)) for _ in range(2)]

    def branch(weight):
        return n.body(lambda b: [b.Relu(b.Conv(y, weight, pads=[1] * 4))])

    bright = n.Greater(n.reduce("ReduceMean", x, [0, 1, 2, 3], 0), 0.0)
    z = n.If(bright, then_branch=branch(weights[0]), else_branch=branch(weights[1]))
    return n.conv(z, 4, act=None)


@row(PICTURE, int8_at_least=2)
def if_whose_answer_is_known(n, x):
    y = n.conv(x, 12)
    unused = n.const(n.weight(8, 12, 7, 7, fan=588))
    used = n.const(n.weight(8, 12, 3, 3, fan=108))
    first = n.body(lambda b: [b.Conv(y, used, pads=[1] * 4)])
    second = n.body(lambda b: [b.Conv(y, unused, pads=[3] * 4)])
    return n.conv(n.If(n.const(np.bool_(True)), then_branch=first, else_branch=second), 4, act=None)


@row(PICTURE, int8_at_least=2)
def layers_between_that_do_nothing(n, x):
    y = n.Identity(n.Dropout(n.conv(n.Identity(x), 12), np.float32(0.5)))
    y = n.Mul(n.Add(n.Cast(n.Transpose(y, perm=[0, 1, 2, 3]), to=1), 0.0), 1.0)
    return n.conv(n.Pad(n.Reshape(y, [0, 0, 0, 0]), [0] * 8), 4, act=None)


@row(PICTURE, int8_at_least=2)
def shapes_computed_in_the_graph(n, x):
    y = n.conv(x, 12)
    batch = n.Unsqueeze(n.Gather(n.Shape(y), np.int64(0), axis=0), [0])
    y = n.Reshape(y, n.Concat(batch, n.const([12]), n.const([-1]), axis=0))
    return n.linear(n.reduce("ReduceMean", y, [2], 0), 5)


@row(features(1, 16), int8_at_least=2)
def weights_computed_from_constants(n, x):
    direction, length = n.const(n.weight(24, 16, fan=16)), np.exp(n.normal(24, 1, scale=0.3))
    norm = n.Sqrt(n.reduce("ReduceSum", n.Mul(direction, direction), [1]))
    weight = n.Transpose(n.Mul(n.Div(direction, norm), length), perm=[1, 0])
    return n.linear(n.Relu(n.MatMul(x, weight)), 4)


@row(PICTURE, int8_at_least=2)
def channels_that_are_always_zero(n, x):
    weight, bias = n.weight(16, 3, 3, 3, fan=27), n.normal(16, scale=0.2)
    weight[::4], bias[::4] = 0, -1
    return n.conv(n.Relu(n.Conv(x, weight, bias, pads=[1] * 4)), 4, act=None)


@row(PICTURE, int8_at_least=2)
def one_channel_a_thousand_times_larger(n, x):
    weight, bias = n.weight(16, 3, 3, 3, fan=27), n.normal(16, scale=0.2)
    weight[5] *= 1000
    y = n.Relu(n.Conv(x, weight, bias, pads=[1] * 4))
    back = n.weight(12, 16, 3, 3, fan=144)
    back[:, 5] /= 1000
    return n.conv(n.Relu(n.Conv(y, back, n.normal(12, scale=0.2), pads=[1] * 4)), 4, act=None)


@row(PICTURE, int8_at_least=2)
def scaled_by_tiny_numbers(n, x):
    y = n.conv(x, 12, gain=1e-5)
    return n.conv(y, 4, act=None, gain=1e-4)
