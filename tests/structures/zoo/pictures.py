"""Pictures in, pictures or maps out: segmentation, super-resolution, generators, depth, poses, flow, matching."""

from __future__ import annotations

import numpy as np

from zoo.net import Net
from zoo.row import row
from zoo.samples import N, dynamic, features, image

PICTURE = image(3, 24)


def up(n: Net, x, mode="linear", times=2.0, **attributes):
    """Enlarge a map."""
    return n.Resize(x, None, [1.0, 1.0, times, times], mode=mode, **attributes)


def encode(n: Net, x, act="Relu"):
    """Maps at 1, 1/2 and 1/4 of the size."""
    one = n.conv(x, 12, act=act)
    two = n.conv(n.MaxPool(one, kernel_shape=[2, 2], strides=[2, 2]), 16, act=act)
    return one, two, n.conv(n.MaxPool(two, kernel_shape=[2, 2], strides=[2, 2]), 24, act=act)


# -- segmentation ------------------------------------------------------------------------------------------------------


@row(PICTURE, int8_at_least=5, fast=True, exported=True)
def u_net_with_transposed_convolutions(n, x):
    one, two, y = encode(n, x)
    y = n.conv(n.Concat(two, n.deconv(y, 16, act=None), axis=1), 16)
    y = n.conv(n.Concat(one, n.deconv(y, 12, act=None), axis=1), 12)
    return n.conv(y, 4, 1, act=None)


def skip(n: Net, x, ratio: float):
    """A network whose Concat joins maps of unlike range, which the next layer weighs alike."""
    near = n.conv(n.conv(x, 16), 16)
    far = n.Mul(n.conv(near, 16), float(ratio))
    weight = n.weight(16, 32, 3, 3, fan=288)
    weight[:, 16:] /= ratio
    y = n.Relu(n.Conv(n.Concat(near, far, axis=1), weight, n.normal(16, scale=0.2), pads=[1] * 4))
    return n.conv(y, 8, 1, act=None)


@row(PICTURE, int8_at_least=3)
def skip_joins_ranges_of_10_to_1(n, x):
    return skip(n, x, 10)


@row(PICTURE, int8_at_least=3, fast=True)
def skip_joins_ranges_of_200_to_1(n, x):
    return skip(n, x, 200)


@row(PICTURE, int8_at_least=3)
def skip_of_an_unscaled_convolution(n, x):
    near = n.conv(n.conv(x, 16), 16)
    far = n.conv(near, 16, gain=60.0)
    weight = n.weight(16, 32, 3, 3, fan=288)
    weight[:, 16:] /= 60
    return n.conv(n.Relu(n.Conv(n.Concat(near, far, axis=1), weight, pads=[1] * 4)), 8, 1, act=None)


@row(PICTURE, int8_at_least=4)
def picture_itself_joined_at_the_end(n, x):
    one, two, _ = encode(n, x)
    y = n.Concat(x, one, up(n, two), axis=1)
    return n.conv(n.conv(y, 16), 3, act="Sigmoid")


@row(image(3, 24, batch=N), int8_at_least=5)
def pyramid_added_top_down(n, x):
    one, two, three = encode(n, x, "SiLU")
    top = n.conv(three, 16, 1, act=None)
    middle = n.Add(n.conv(two, 16, 1, act=None), up(n, top, "nearest"))
    bottom = n.Add(n.conv(one, 16, 1, act=None), up(n, middle, "nearest"))
    return {f"p{k}": n.conv(level, 8, act=None) for k, level in enumerate((bottom, middle, top))}


@row(PICTURE, int8_at_least=6)
def dilated_branches_and_image_pooling(n, x):
    y = n.conv(n.conv(x, 16, s=2), 24)
    branches = [n.conv(y, 8, 1), n.conv(y, 8, d=2), n.conv(y, 8, d=4)]
    pooled = n.Resize(n.conv(n.GlobalAveragePool(y), 8, 1), None, None, [1, 8, 12, 12], mode="nearest")
    return up(n, n.conv(n.conv(n.Concat(*branches, pooled, axis=1), 16, 1), 5, 1, act=None))


@row(PICTURE, int8_at_least=3, agree=0.8)
def ends_in_arg_max(n, x):
    y = n.conv(n.conv(n.conv(x, 16, s=2), 24), 5, 1, act=None, gain=3.0)
    return n.ArgMax(up(n, y), axis=1, keepdims=0)


@row(PICTURE, int8_at_least=2, agree=0.85)
def ends_in_threshold_to_bytes(n, x):
    y = n.Sigmoid(n.conv(n.conv(x, 16, s=2), 1, 1, act=None, gain=3.0))
    return {"mask": n.Cast(n.Greater(y, 0.5), to=2), "share": n.reduce("ReduceMean", y, [1, 2, 3], 0)}


@row(PICTURE, int8_at_least=4, opset=13)
def resized_to_the_size_of_another(n, x):
    _, two, three = encode(n, x)
    size = n.Concat(n.Slice(n.Shape(three), [0], [2], [0]), n.Slice(n.Shape(two), [2], [4], [0]), axis=0)
    y = n.Resize(three, None, None, size, mode="linear", coordinate_transformation_mode="align_corners")
    return n.conv(n.Concat(y, two, axis=1), 6, act=None)


@row(PICTURE, int8_at_least=4)
def attention_gate_on_the_skip(n, x):
    one, two, _ = encode(n, x)
    coarse = up(n, two)
    gate = n.Sigmoid(n.conv(n.Relu(n.Add(n.conv(one, 8, 1, act=None), n.conv(coarse, 8, 1, act=None))), 1, 1, act=None))
    return n.conv(n.Concat(n.Mul(one, gate), coarse, axis=1), 5, act=None)


@row(PICTURE, int8_at_least=3)
def unpooled_with_the_places_of_the_maxima(n, x):
    y, places = n.MaxPool(n.conv(x, 12), outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    y = n.MaxUnpool(n.conv(y, 12), places, kernel_shape=[2, 2], strides=[2, 2])
    return n.conv(n.conv(y, 12), 4, 1, act=None)


# -- pictures made better ----------------------------------------------------------------------------------------------


@row(image(1, dynamic("H", 14, 18), dynamic("W", 14, 18)), int8_at_least=3, min_db=20)
def pixel_shuffle_super_resolution(n, x):
    y = n.conv(n.conv(n.conv(x, 24, 5), 24), 12)
    return n.DepthToSpace(n.conv(y, 4, act=None), blocksize=2, mode="CRD")


@row(image(3, 16), int8_at_least=4, min_db=20, exported=True)
def residual_over_an_enlarged_picture(n, x):
    y = n.conv(x, 16, act="PRelu")
    for _ in range(2):
        y = n.Add(y, n.conv(n.conv(y, 16, act="PRelu"), 16, act=None))
    detail = n.DepthToSpace(n.conv(y, 12, act=None, gain=0.05), blocksize=2, mode="DCR")
    return n.Add(up(n, x, "cubic", coordinate_transformation_mode="half_pixel"), detail)


@row(image(1, 20), int8_at_least=4, min_db=15)
def noise_taken_off_the_picture(n, x):
    y = n.conv(x, 16)
    for _ in range(3):
        y = n.conv(y, 16)
    return n.Sub(x, n.conv(y, 1, act=None, gain=0.1))


@row(image(3, 16), int8_at_least=5)
def residual_dense_block(n, x):
    maps = [n.conv(x, 12, act="LeakyRelu")]
    for _ in range(3):
        maps.append(n.conv(n.Concat(*maps, axis=1) if len(maps) > 1 else maps[0], 8, act="LeakyRelu"))
    y = n.Add(n.Mul(n.conv(n.Concat(*maps, axis=1), 12, 1, act=None), 0.2), maps[0])
    return n.conv(up(n, y, "nearest"), 3, act=None)


@row(image(3, 16), int8_at_least=3)
def simple_gates_and_layer_norm_of_channels(n, x):
    y = n.conv(x, 16, act=None)
    mean = n.reduce("ReduceMean", y, [1])
    centred = n.Sub(y, mean)
    z = n.Div(centred, n.Sqrt(n.Add(n.reduce("ReduceMean", n.Mul(centred, centred), [1]), 1e-6)))
    first, second = n.Split(n.conv(n.conv(z, 32, 1, act=None), 32, groups=32, act=None), outputs=2, axis=1)
    z = n.Mul(first, second)
    z = n.Mul(z, n.conv(n.GlobalAveragePool(z), 16, 1, act=None))
    return n.Add(x, n.conv(n.Add(y, n.conv(z, 16, 1, act=None)), 3, act=None, gain=0.3))


@row(image(3, 24), int8_at_least=3)
def low_light_curve_applied_repeatedly(n, x):
    curve = n.conv(n.conv(n.conv(x, 16), 16), 6, act="Tanh")
    y = n.Clip(n.Add(n.Mul(x, 0.25), 0.5), 0.0, 1.0)
    for part in n.Split(curve, outputs=2, axis=1):
        y = n.Add(y, n.Mul(part, n.Sub(n.Mul(y, y), y)))
    return y


# -- autoencoders and generators ---------------------------------------------------------------------------------------


@row(image(1, 16), int8_at_least=4, channels={"code": 1})
def autoencoder_with_a_narrow_code(n, x):
    code = n.linear(n.linear(n.Flatten(x), 48, act="Relu"), 8)
    y = n.linear(n.linear(code, 48, act="Relu"), 256, act="Sigmoid")
    return {"picture": n.Reshape(y, [1, 1, 16, 16]), "code": code}


@row(image(3, 16), features(1, 8), int8_at_least=4)
def variational_with_given_noise(n, x, noise):
    y = n.Flatten(n.conv(n.conv(x, 12, s=2), 12, s=2))
    mean, log_variance = n.linear(y, 8), n.linear(y, 8, gain=0.5)
    z = n.Add(mean, n.Mul(n.Exp(n.Mul(log_variance, 0.5)), noise))
    y = n.Reshape(n.linear(z, 192, act="Relu"), [1, 12, 4, 4])
    return n.conv(n.deconv(n.deconv(y, 12), 8), 3, act="Sigmoid")


@row(features(1, 16, 1, 1), int8_at_least=0)
def generator_of_transposed_convolutions(n, x):
    y = n.deconv(x, 24, 4, 1)
    y = n.deconv(y, 16, 4, 2, pads=[1] * 4)
    return n.deconv(y, 3, 4, 2, act="Tanh", pads=[1] * 4)


@row(image(3, 16), int8_at_least=4)
def style_transfer_with_instance_norms(n, x):
    def norm(y):
        width = n.shape(y)[1]
        return n.InstanceNormalization(y, np.exp(n.normal(width, scale=0.3)), n.normal(width, scale=0.3))

    y = n.Conv(n.Pad(x, [0, 0, 2, 2, 0, 0, 2, 2], mode="reflect"), n.weight(12, 3, 5, 5, fan=75))
    y = n.Relu(norm(y))
    y = n.Add(y, norm(n.conv(n.Relu(norm(n.conv(y, 12, act=None))), 12, act=None)))
    return n.conv(y, 3, act="Tanh")


@row(image(3, 16), features(1, 12), int8_at_least=3)
def adaptive_instance_norm_by_a_style(n, x, style):
    y = n.conv(x, 12)
    scale, shift = n.Split(n.Reshape(n.linear(style, 24), [1, 24, 1, 1]), outputs=2, axis=1)
    mean = n.reduce("ReduceMean", y, [2, 3])
    deviation = n.Sqrt(n.Add(n.reduce("ReduceMean", n.Pow(n.Sub(y, mean), 2.0), [2, 3]), 1e-5))
    y = n.Add(n.Mul(n.Div(n.Sub(y, mean), deviation), n.Add(scale, 1.0)), shift)
    return n.conv(n.conv(y, 12, act="LeakyRelu"), 3, act="Tanh")


@row(features(1, 12, 8, 8), features(1, 16), int8_at_least=2)
def weights_modulated_by_a_style(n, x, style):
    scale = n.Reshape(n.Add(n.linear(style, 12, gain=0.3), 1.0), [1, 12, 1, 1])
    weight = n.Mul(n.weight(12, 12, 3, 3, fan=108), scale)
    weight = n.Div(weight, n.Sqrt(n.Add(n.reduce("ReduceSum", n.Mul(weight, weight), [1, 2, 3]), 1e-8)))
    y = n.LeakyRelu(n.Conv(x, weight, pads=[1] * 4), alpha=0.2)
    return n.conv(n.conv(y, 12), 3, act=None)


@row(features(1, 4, 8, 8), features(1, 1), int8_at_least=4)
def diffusion_step_with_time_embedding(n, x, time):
    angles = n.Mul(time, np.geomspace(1, 0.01, 8, dtype=np.float32)[None])
    embedding = n.linear(n.Concat(n.Sin(angles), n.Cos(angles), axis=1), 16, act="SiLU")
    y = n.conv(x, 16, act=None)
    z = n.Reshape(
        n.InstanceNormalization(n.Reshape(y, [1, 4, -1]), np.ones(4, np.float32), np.zeros(4, np.float32)),
        [1, 16, 8, 8],
    )
    z = n.conv(n.act(z, "SiLU"), 16, act=None)
    z = n.Add(z, n.Reshape(n.linear(embedding, 16), [1, 16, 1, 1]))
    return n.conv(n.Add(y, n.conv(n.act(z, "SiLU"), 16, act=None)), 4, act=None)


# -- geometry ----------------------------------------------------------------------------------------------------------


@row(PICTURE, int8_at_least=4, parts={"y": [(1, 0, 1)]})
def depth_as_one_over_disparity(n, x):
    y = n.conv(n.conv(n.conv(x, 16, s=2, act="Elu"), 24, act="Elu"), 16, act="Elu")
    disparity = n.Add(n.Mul(n.Sigmoid(n.conv(up(n, y), 1, act=None, gain=1.5)), 9.99), 0.01)
    return n.Reciprocal(disparity)


@row(PICTURE, int8_at_least=3, parts={"y": [(1, 0, 6), (1, 6, 12)]})
def poses_as_heat_maps_and_offsets(n, x):
    y = n.conv(n.conv(x, 16, s=2, act="Relu6"), 24, s=2, act="Relu6")
    heat = n.Sigmoid(n.Sub(n.conv(y, 6, 1, act=None, gain=2.0), 3.0))
    return n.Concat(heat, n.conv(y, 6, 1, act=None, gain=15.0), axis=1)


@row(PICTURE, channels={"y": -1}, int8_at_least=2)
def expected_place_of_heat_maps(n, x):
    heat = n.Reshape(n.conv(n.conv(x, 16, s=2), 5, act=None, gain=4.0), [1, 5, 144])
    places = np.stack(np.meshgrid(np.linspace(0, 1, 12), np.linspace(0, 1, 12)), -1).reshape(144, 2).astype(np.float32)
    return n.MatMul(n.Softmax(heat, axis=-1), places)


@row(image(3, 16), image(3, 16), int8_at_least=3)
def cost_volume_of_two_pictures(n, left, right):
    kernel, bias = n.weight(12, 3, 3, 3, fan=27), n.normal(12, scale=0.2)
    kernel, bias = n.const(kernel), n.const(bias)
    a, b = (n.Relu(n.Conv(picture, kernel, bias, pads=[1] * 4)) for picture in (left, right))
    b = n.Pad(b, [0, 0, 0, 4, 0, 0, 0, 0])
    costs = [n.reduce("ReduceMean", n.Mul(a, n.Slice(b, [4 - k], [20 - k], [3])), [1]) for k in range(5)]
    chances = n.Softmax(n.conv(n.Concat(*costs, axis=1), 5, act=None, gain=2.0), axis=1)
    return n.reduce("ReduceSum", n.Mul(chances, np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1)), [1])


@row(image(3, 16), image(3, 16), int8_at_least=3, opset=16)
def picture_sampled_along_a_flow(n, first, second):
    flow = n.conv(n.conv(n.conv(n.Concat(first, second, axis=1), 16), 16), 2, act=None, gain=0.15)
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 16), np.linspace(-1, 1, 16)), -1)[None].astype(np.float32)
    places = n.Add(n.Transpose(flow, perm=[0, 2, 3, 1]), grid)
    return {"flow": flow, "moved": n.GridSample(second, places, align_corners=1, padding_mode="border")}


@row(features(1, 20, 16), features(1, 24, 16), channels={"y": -1}, int8_at_least=3)
def descriptors_matched_both_ways(n, a, b):
    width = n.weight(16, 16, fan=16)
    project = n.const(width)
    a, b = (n.MatMul(n.linear(side, 16, act="Relu"), project) for side in (a, b))
    scores = n.Mul(n.MatMul(a, n.Transpose(b, perm=[0, 2, 1])), 0.2)
    return n.Mul(n.Softmax(scores, axis=1), n.Softmax(scores, axis=2))


@row(features(1, 3, 48), channels={"points": 1}, int8_at_least=4)
def points_with_shared_layers_and_maximum(n, x):
    y = n.conv(n.conv(x, 16, 1), 32, 1)
    whole = n.GlobalMaxPool(y)
    y = n.Concat(y, n.Expand(whole, [1, 32, 48]), axis=1)
    return {"points": n.conv(n.conv(y, 16, 1), 5, 1, act=None), "class": n.linear(n.Flatten(whole), 6)}


@row(features(1, 1, 10, 10, 10), int8_at_least=3)
def volumes_with_three_dimensional_kernels(n, x):
    y = n.MaxPool(n.conv(x, 8), kernel_shape=[2, 2, 2], strides=[2, 2, 2])
    return n.linear(n.flat_mean(n.conv(n.conv(y, 12), 16, groups=4)), 5)


@row(features(1, 3, 6, 16, 16), int8_at_least=3)
def video_of_separate_space_and_time(n, x):
    y = n.conv(n.conv(x, 8, (1, 3, 3), act=None), 12, (3, 1, 1))
    y = n.AveragePool(
        n.conv(n.conv(y, 12, (1, 3, 3), act=None), 16, (3, 1, 1)), kernel_shape=[2, 2, 2], strides=[2, 2, 2]
    )
    return n.linear(n.flat_mean(y), 5)


@row(features(1, 8, 12, 12), int8_at_least=2)
def video_shifted_between_frames(n, x):
    y = n.conv(x, 16)
    still, moved = n.Split(y, [12, 4], outputs=2, axis=1)
    moved = n.Concat(n.Slice(moved, [1], [12], [2]), n.Slice(moved, [0], [1], [2]), axis=2)
    return n.conv(n.conv(n.Concat(still, moved, axis=1), 16), 6, 1, act=None)
