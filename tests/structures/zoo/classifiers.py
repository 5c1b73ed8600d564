"""Classifiers of pictures: plain, depthwise, residual, dense, gated, shuffled, with the activations of their time."""

from __future__ import annotations

import numpy as np

from zoo.net import Net
from zoo.row import row
from zoo.samples import N, dynamic, image

PICTURE = image(3, 24)


def head(n: Net, x, classes=8):
    return n.linear(n.flat_mean(x), classes)


def bottleneck(n: Net, x, width, act="Relu"):
    y = n.conv(n.conv(n.conv(x, width, 1, act=act), width, act=act), n.shape(x)[1], 1, act=None)
    return n.act(n.Add(y, x), act)


def squeeze_excite(n: Net, x, gate="HardSigmoid", act="Relu"):
    pooled = n.GlobalAveragePool(x)
    return n.Mul(x, n.act(n.conv(n.conv(pooled, 8, 1, act=act), n.shape(x)[1], 1, act=None, gain=2.0), gate))


@row(image(3, 24, batch=N), int8_at_least=4, fast=True, exported=True)
def plain_with_max_pool(n, x):
    y = n.MaxPool(n.conv(x, 16), kernel_shape=[2, 2], strides=[2, 2])
    y = n.MaxPool(n.conv(n.conv(y, 24), 24), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    return n.Softmax(n.linear(n.Flatten(y), 8), axis=-1)


@row(PICTURE, int8_at_least=6, opset=11)
def batch_norms_behind_convolutions(n, x):
    y = x
    for width, stride in ((16, 2), (16, 1), (32, 2), (32, 1)):
        y = n.Relu(n.batch_norm(n.conv(y, width, s=stride, act=None, bias=False)))
    return n.linear(n.linear(n.flat_mean(y), 16, act="Relu"), 8)


@row(PICTURE, int8_at_least=4)
def batch_norm_before_activation_before_convolution(n, x):
    y = n.conv(x, 16, s=2, act=None)
    for _ in range(2):
        y = n.Add(y, n.conv(n.Relu(n.batch_norm(n.conv(n.Relu(n.batch_norm(y)), 16, act=None))), 16, act=None))
    return head(n, n.Relu(n.batch_norm(y)))


@row(image(3, 24, batch=N), int8_at_least=9)
def residual_bottlenecks(n, x):
    y = n.conv(x, 32, 7, s=2)
    for _ in range(3):
        y = bottleneck(n, y, 16)
    return head(n, y)


@row(PICTURE, int8_at_least=7, fast=True, exported=True)
def inverted_residuals_with_relu6(n, x):
    y = n.conv(x, 16, s=2, act="Relu6")
    for _ in range(2):
        wide = n.conv(n.conv(y, 48, 1, act="Relu6"), 48, groups=48, act="Relu6")
        y = n.Add(y, n.conv(wide, 16, 1, act=None))
    return head(n, y)


@row(PICTURE, int8_at_least=6)
def hard_swish_and_squeeze_excite(n, x):
    y = n.conv(x, 16, s=2, act="HardSwish")
    for act in ("Relu", "HardSwish"):
        wide = n.conv(n.conv(y, 48, 1, act=act), 48, 5, groups=48, act=act)
        y = n.Add(y, n.conv(squeeze_excite(n, wide), 16, 1, act=None))
    return n.linear(n.linear(n.flat_mean(y), 24, act="HardSwish"), 8)


@row(PICTURE, int8_at_least=5, opset=9)
def hard_swish_from_clips(n, x):
    y = n.conv(x, 16, s=2, act=None)
    y = n.Mul(y, n.Div(n.add("Clip", n.Add(y, 3.0), min=0.0, max=6.0), 6.0))
    y = n.conv(n.conv(y, 32, 1, act="Relu"), 32, groups=32, act="Relu")
    return head(n, n.conv(y, 16, 1, act="Relu"))


@row(PICTURE, int8_at_least=6)
def silu_and_squeeze_excite(n, x):
    y = n.conv(x, 16, s=2, act="SiLU")
    for _ in range(2):
        wide = n.conv(n.conv(y, 32, 1, act="SiLU"), 32, groups=32, act="SiLU")
        y = n.Add(y, n.conv(squeeze_excite(n, wide, "Sigmoid", "SiLU"), 16, 1, act=None))
    return head(n, y)


@row(PICTURE, int8_at_least=5)
def dense_concatenations(n, x):
    y = n.conv(x, 16, s=2)
    for _ in range(3):
        y = n.Concat(y, n.conv(n.conv(y, 16, 1), 8), axis=1)
    return head(n, n.AveragePool(n.conv(y, 24, 1), kernel_shape=[2, 2], strides=[2, 2]))


@row(PICTURE, int8_at_least=5)
def channel_shuffle(n, x):
    y = n.conv(x, 32, s=2)
    for _ in range(2):
        left, right = n.Split(y, outputs=2, axis=1)
        right = n.conv(n.conv(n.conv(right, 16, 1), 16, groups=16, act=None), 16, 1)
        side = n.shape(y)[2]
        apart = n.Transpose(n.Reshape(n.Concat(left, right, axis=1), [1, 2, 16, side, side]), perm=[0, 2, 1, 3, 4])
        y = n.Reshape(apart, [1, 32, side, side])
    return head(n, n.conv(y, 48, 1))


@row(PICTURE, int8_at_least=5)
def cheap_features_by_depthwise(n, x):
    y = n.conv(x, 16, s=2)
    for _ in range(2):
        few = n.conv(y, 8, 1)
        y = n.Add(y, n.Concat(few, n.conv(few, 8, groups=8, act=None), axis=1))
    return head(n, y)


@row(PICTURE, int8_at_least=8)
def inception_branches(n, x):
    y = n.conv(x, 16, s=2)
    for _ in range(2):
        pooled = n.conv(n.MaxPool(y, kernel_shape=[3, 3], pads=[1] * 4), 8, 1)
        y = n.Concat(n.conv(y, 8, 1), n.conv(n.conv(y, 8, 1), 12), n.conv(n.conv(y, 4, 1), 8, 5), pooled, axis=1)
    return head(n, y)


@row(PICTURE, int8_at_least=4)
def asymmetric_kernels_and_average_pool(n, x):
    y = n.conv(x, 16, s=2)
    y = n.conv(n.conv(y, 16, (1, 7)), 16, (7, 1))
    pooled = n.AveragePool(y, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4, count_include_pad=0)
    return head(n, n.conv(pooled, 24, 1))


@row(image(3, 32), int8_at_least=4, exported=True)
def convnext_blocks(n, x):
    y = n.conv(x, 24, 4, s=4, act=None, pads=[0] * 4)
    for _ in range(2):
        z = n.layer_norm(n.Transpose(n.conv(y, 24, 7, groups=24, act=None), perm=[0, 2, 3, 1]))
        z = n.Mul(n.linear(n.linear(z, 48, act="Gelu"), 24), n.rng.uniform(0.1, 0.6, 24).astype(np.float32))
        y = n.Add(y, n.Transpose(z, perm=[0, 3, 1, 2]))
    return n.linear(n.layer_norm(n.flat_mean(y)), 8)


@row(PICTURE, int8_at_least=3)
def parametric_relu(n, x):
    y = n.conv(n.conv(x, 16, s=2, act="PRelu"), 16, groups=16, act="PRelu")
    return n.Flatten(n.conv(n.conv(y, 24, 1, act="PRelu"), 16, 12, groups=8, act=None, pads=[0] * 4))


@row(PICTURE, int8_at_least=3, opset=9)
def local_response_normalization(n, x):
    y = n.LRN(n.conv(x, 16, 5, s=2), size=5, alpha=0.1, beta=0.75, bias=1.0)
    y = n.LRN(n.MaxPool(n.conv(y, 24, groups=2), kernel_shape=[3, 3], strides=[2, 2]), size=5, alpha=0.1)
    return n.linear(n.Dropout(n.linear(n.Flatten(y), 24, act="Relu"), ratio=0.5), 8)


@row(PICTURE, int8_at_least=3)
def maxout_of_two_halves(n, x):
    y = x
    for width in (16, 24):
        first, second = n.Split(n.conv(y, 2 * width, s=2, act=None), outputs=2, axis=1)
        y = n.Max(first, second)
    return head(n, y)


@row(PICTURE, int8_at_least=3)
def concatenated_relu_of_both_signs(n, x):
    y = n.conv(x, 12, 5, s=2, act=None)
    y = n.Relu(n.Concat(y, n.Neg(y), axis=1))
    return head(n, n.conv(y, 24))


@row(PICTURE, int8_at_least=4)
def mish_and_elu(n, x):
    y = n.conv(x, 16, s=2, act=None)
    y = n.Mul(y, n.Tanh(n.Softplus(y)))
    return head(n, n.conv(n.conv(y, 16, act="Elu"), 24, act="Selu"))


@row(PICTURE, int8_at_least=5)
def selective_kernels(n, x):
    y = n.conv(x, 16, s=2)
    near, far = n.conv(y, 16, 3), n.conv(y, 16, 3, d=2)
    both = n.linear(n.linear(n.flat_mean(n.Add(near, far)), 8, act="Relu"), 32, gain=2)
    chances = n.Softmax(n.Reshape(both, [1, 2, 16, 1, 1]), axis=1)
    first, second = n.Split(chances, outputs=2, axis=1)
    y = n.Add(n.Mul(near, n.Squeeze(first, [1])), n.Mul(far, n.Squeeze(second, [1])))
    return head(n, y)


@row(PICTURE, int8_at_least=4)
def channel_and_place_attention(n, x):
    y = n.conv(x, 16, s=2)
    shared = [n.weight(16, 8, fan=16), n.weight(8, 16, fan=8)]
    down, up = (n.const(weight) for weight in shared)
    sides = [
        n.MatMul(n.Relu(n.MatMul(n.Flatten(pool(y)), down)), up) for pool in (n.GlobalAveragePool, n.GlobalMaxPool)
    ]
    y = n.Mul(y, n.Reshape(n.Sigmoid(n.Add(*sides)), [1, 16, 1, 1]))
    places = n.Concat(n.reduce("ReduceMean", y, [1]), n.reduce("ReduceMax", y, [1]), axis=1)
    return head(n, n.conv(n.Mul(y, n.conv(places, 1, 7, act="Sigmoid")), 24))


@row(image(3, dynamic("H", 20, 28), dynamic("W", 20, 28), batch=N), int8_at_least=3)
def any_size_of_picture(n, x):
    return head(n, n.conv(n.conv(n.conv(x, 16, s=2), 16, s=2), 24))


@row(image(1, 28), int8_at_least=4, opset=8)
def digits_with_tanh_and_average_pools(n, x):
    y = n.AveragePool(n.conv(x, 6, 5, act="Tanh"), kernel_shape=[2, 2], strides=[2, 2])
    y = n.AveragePool(n.conv(y, 16, 5, act="Tanh", pads=[0] * 4), kernel_shape=[2, 2], strides=[2, 2])
    return n.linear(n.linear(n.linear(n.Flatten(y), 32, act="Tanh"), 24, act="Tanh"), 10)


@row(PICTURE, int8_at_least=4)
def blurred_downsampling(n, x):
    y = n.conv(x, 16, act="Relu")
    blur = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32) / 16
    y = n.Conv(
        n.Pad(y, [0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"), np.tile(blur, (16, 1, 1, 1)), group=16, strides=[2, 2]
    )
    return head(n, n.conv(y, 24, act="Relu"))


@row(PICTURE, int8_at_least=3, channels={"y": -1})
def space_to_depth_patches(n, x):
    y = n.conv(n.SpaceToDepth(x, blocksize=4), 32, 1, act="Relu")
    y = n.Add(y, n.conv(y, 32, groups=32, act="Relu"))
    return n.linear(n.flat_mean(n.conv(y, 32, 1, act="Relu")), 8)


@row(PICTURE, int8_at_least=3, opset=13)
def several_heads_of_different_range(n, x):
    y = n.flat_mean(n.conv(n.conv(x, 16, s=2), 32, s=2))
    return {
        "age": n.linear(y, 1, gain=20.0), "gender": n.Softmax(n.linear(y, 2, gain=2.0), axis=-1),
        "pose": n.Mul(n.Tanh(n.linear(y, 3)), 90.0), "code": n.linear(y, 16, gain=0.05),
    }  # fmt: skip
