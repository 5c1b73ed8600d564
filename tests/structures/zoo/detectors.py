"""Detectors: outputs that join pixels and scores, several levels, boxes decoded in the graph, sets at the end."""

from __future__ import annotations

import numpy as np

from zoo.net import Net
from zoo.row import row
from zoo.samples import N, image

PICTURE = image(3, 32)
CENTRES = (np.stack(np.meshgrid(np.arange(8), np.arange(8)), 0).reshape(1, 2, 64) + 0.5).astype(np.float32)
"""Centres of the cells of an 8 x 8 map, in cells: [1, 2, 64]."""


def backbone(n: Net, x, act="SiLU", width=12):
    """A picture [N, 3, 32, 32] becomes a map [N, 2 width, 8, 8]."""
    return n.conv(n.conv(n.conv(x, width, s=2, act=act), width, act=act), 2 * width, s=2, act=act)


def flat(n: Net, x):
    """[N, C, H, W] becomes [N, C, H W]."""
    return n.Reshape(x, [0, n.shape(x)[1], -1])


def scores(n: Net, x, classes, k=1):
    """Logits of which few are high."""
    return n.Sub(n.conv(x, classes, k, act=None, gain=2.0), 3.0)


@row(PICTURE, parts={"y": [(1, 0, 2), (1, 2, 4), (1, 4, 10)]}, int8_at_least=5, fast=True, exported=True)
def yolov8_boxes_and_scores(n, x):
    f = backbone(n, x)
    sides = n.Softplus(flat(n, n.conv(f, 4, 1, act=None)))
    near, far = n.Split(sides, outputs=2, axis=1)
    low, high = n.Sub(CENTRES, near), n.Add(CENTRES, far)
    boxes = n.Concat(n.Mul(n.Add(low, high), 0.5), n.Sub(high, low), axis=1)
    return n.Concat(n.Mul(boxes, 80.0), n.Sigmoid(flat(n, scores(n, f, 6))), axis=1)


@row(image(3, 32, batch=N), parts={"y": [(1, 0, 4), (1, 4, 9)]}, int8_at_least=5)
def yolov8_distribution_of_distances(n, x):
    f = backbone(n, x)
    bins = n.Reshape(n.conv(n.conv(f, 24, act="SiLU"), 32, 1, act=None, gain=2.0), [0, 4, 8, 64])
    chances = n.Softmax(n.Transpose(bins, perm=[0, 2, 1, 3]), axis=1)
    sides = n.Reshape(n.Conv(chances, np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1)), [0, 4, 64])
    low = n.Sub(CENTRES, n.Slice(sides, [0], [2], [1]))
    high = n.Add(CENTRES, n.Slice(sides, [2], [4], [1]))
    return n.Concat(n.Mul(n.Concat(low, high, axis=1), 8.0), n.Sigmoid(flat(n, scores(n, f, 5))), axis=1)


@row(PICTURE, parts={"y": [(-1, 0, 2), (-1, 2, 4), (-1, 4, 5), (-1, 5, 9)]}, channels={"y": -1}, int8_at_least=4)
def yolov5_anchors_decoded(n, x):
    f = backbone(n, x)
    raw = n.Sigmoid(n.Transpose(n.Reshape(n.conv(f, 27, 1, act=None), [1, 3, 9, 8, 8]), perm=[0, 1, 3, 4, 2]))
    place, size, rest = n.Split(raw, [2, 2, 5], outputs=3, axis=-1)
    grid = CENTRES.reshape(1, 1, 2, 8, 8).transpose(0, 1, 3, 4, 2) - 1
    anchors = np.array([[10, 13], [16, 30], [33, 23]], np.float32).reshape(1, 3, 1, 1, 2)
    place = n.Mul(n.Add(n.Mul(place, 2.0), grid), 4.0)
    return n.Reshape(n.Concat(place, n.Mul(n.Pow(n.Mul(size, 2.0), 2.0), anchors), rest, axis=-1), [1, -1, 9])


@row(PICTURE, parts={"y": [(-1, 0, 2), (-1, 2, 4), (-1, 4, 9)]}, channels={"y": -1}, int8_at_least=5, fast=True)
def yolox_levels_transposed_at_the_end(n, x):
    f = backbone(n, x)
    levels = []
    for level in (f, n.conv(f, 24, s=2, act="SiLU")):
        stem = n.conv(level, 16, act="SiLU")
        boxes, object_, classes = n.conv(stem, 4, 1, act=None), scores(n, stem, 1), scores(n, stem, 4)
        levels.append(flat(n, n.Concat(boxes, n.Sigmoid(object_), n.Sigmoid(classes), axis=1)))
    raw = n.Transpose(n.Concat(*levels, axis=2), perm=[0, 2, 1])
    stride = np.repeat(np.array([4, 8], np.float32), [64, 16]).reshape(1, 80, 1)
    place = n.Mul(n.Slice(raw, [0], [2], [2]), stride)
    size = n.Mul(n.Exp(n.Mul(n.Slice(raw, [2], [4], [2]), 0.4)), stride)
    return n.Concat(place, size, n.Slice(raw, [4], [9], [2]), axis=2)


@row(PICTURE, int8_at_least=6)
def nas_two_outputs_of_two_levels(n, x):
    f = backbone(n, x, "Relu")
    boxes, chances = [], []
    for level in (f, n.conv(f, 32, s=2)):
        bins = n.Softmax(n.Reshape(n.conv(n.conv(level, 16), 32, act=None, gain=2), [1, 4, 8, -1]), axis=2)
        boxes.append(n.reduce("ReduceSum", n.Mul(bins, np.arange(8, dtype=np.float32).reshape(1, 1, 8, 1)), [2], 0))
        chances.append(n.Sigmoid(flat(n, scores(n, n.conv(level, 16), 5))))
    boxes, chances = (n.Transpose(n.Concat(*levels, axis=2), perm=[0, 2, 1]) for levels in (boxes, chances))
    return {"boxes": boxes, "scores": chances}


@row(PICTURE, parts={"y": [(1, 0, 4), (1, 4, 8)]}, int8_at_least=4)
def boxes_changed_in_place_by_scatter(n, x):
    f = backbone(n, x)
    raw = n.Concat(flat(n, n.conv(f, 4, 1, act=None)), n.Sigmoid(flat(n, scores(n, f, 4))), axis=1)
    places = np.stack(np.meshgrid([0], [0, 1], np.arange(64), indexing="ij"), -1).astype(np.int64)
    moved = n.Mul(n.Add(n.Slice(raw, [0], [2], [1]), CENTRES), 4.0)
    return n.ScatterND(raw, places, moved)


@row(PICTURE, parts={"y": [(1, 0, 80), (1, 80, 400)]}, int8_at_least=5)
def rows_of_levels_joined_then_widened(n, x):
    f = backbone(n, x, "LeakyRelu")
    deep = n.conv(f, 24, s=2, act="LeakyRelu")
    rows = [n.Reshape(n.Transpose(n.conv(level, 7, 1, act=None), perm=[0, 2, 3, 1]), [1, -1, 7]) for level in (deep, f)]
    joined = n.Concat(*rows, axis=1)
    boxes = n.Mul(n.Slice(joined, [0], [4], [2]), 64.0)
    chances = n.Sigmoid(n.Slice(joined, [4], [7], [2]))
    return n.Concat(n.Reshape(boxes, [1, -1]), n.Reshape(chances, [1, -1]), axis=1)


@row(PICTURE, channels={"boxes": -1, "scores": -1}, int8_at_least=6, exported=True)
def ssd_priors_and_softmax(n, x):
    f = backbone(n, x, "Relu6")
    places, chances = [], []
    for level in (f, n.conv(f, 32, s=2, act="Relu6")):
        places.append(n.Reshape(n.Transpose(n.conv(level, 8, act=None), perm=[0, 2, 3, 1]), [1, -1, 4]))
        chances.append(n.Reshape(n.Transpose(n.conv(level, 8, act=None, gain=2.0), perm=[0, 2, 3, 1]), [1, -1, 4]))
    offsets, priors = n.Concat(*places, axis=1), n.rng.uniform(0.2, 0.8, (1, 160, 2)).astype(np.float32)
    centre = n.Add(n.Mul(n.Mul(n.Slice(offsets, [0], [2], [2]), 0.1), 0.3), priors)
    size = n.Mul(n.Exp(n.Mul(n.Slice(offsets, [2], [4], [2]), 0.2)), 0.3)
    half = n.Div(size, 2.0)
    boxes = n.Concat(n.Sub(centre, half), n.Add(centre, half), axis=2)
    return {"boxes": boxes, "scores": n.Softmax(n.Concat(*chances, axis=1), axis=-1)}


@row(image(3, 32, batch=N), parts={"y": [(1, 0, 3), (1, 3, 5), (1, 5, 7)]}, int8_at_least=6)
def centre_net_peaks_sizes_offsets(n, x):
    f = n.deconv(n.conv(backbone(n, x, "Relu"), 24, s=2), 16)
    heat = n.Sigmoid(scores(n, n.conv(f, 16), 3))
    peaks = n.Mul(heat, n.Cast(n.Equal(heat, n.MaxPool(heat, kernel_shape=[3, 3], pads=[1] * 4)), to=1))
    return n.Concat(
        peaks, n.conv(n.conv(f, 16), 2, 1, act=None, gain=20.0), n.conv(n.conv(f, 16), 2, 1, act=None), axis=1
    )


@row(PICTURE, int8_at_least=4, agree=0.6)
def ends_in_non_max_suppression(n, x):
    f = backbone(n, x, "Relu")
    centre = n.Transpose(n.Add(flat(n, n.Tanh(n.conv(f, 2, 1, act=None))), CENTRES), perm=[0, 2, 1])
    size = n.Transpose(n.Exp(n.Mul(flat(n, n.conv(f, 2, 1, act=None)), 0.3)), perm=[0, 2, 1])
    boxes = n.Concat(centre, size, axis=2)
    chances = n.Sigmoid(flat(n, scores(n, f, 3)))
    kept = n.NonMaxSuppression(boxes, chances, np.array([20]), np.float32(0.4), np.float32(0.3), center_point_box=1)
    return {"kept": kept, "boxes": boxes, "scores": chances}


@row(PICTURE, int8_at_least=4, agree=0.4, channels={"best": -1})
def ends_in_top_k(n, x):
    f = backbone(n, x, "Relu")
    chances = n.Reshape(n.Sigmoid(scores(n, f, 4)), [1, -1])
    best, places = n.TopK(chances, [20], outputs=2, axis=-1)
    return {"best": best, "places": places, "all": chances}


@row(PICTURE, int8_at_least=4, agree=0.5, sets=("boxes",), channels={"best": 0, "every": -1})
def boxes_gathered_behind_top_k(n, x):
    f = backbone(n, x, "SiLU")
    boxes = n.Transpose(n.Mul(n.Add(flat(n, n.conv(f, 2, 1, act=None)), CENTRES), 4.0), perm=[0, 2, 1])
    best, places = n.TopK(n.Reshape(scores(n, f, 1), [1, 64]), [8], outputs=2, axis=-1)
    chosen = n.GatherElements(boxes, n.Expand(n.Unsqueeze(places, [2]), [1, 8, 2]), axis=1)
    return {"boxes": chosen, "best": best, "every": boxes}


@row(PICTURE, int8_at_least=5)
def one_output_for_every_level(n, x):
    f = backbone(n, x, "Relu")
    deep = n.conv(f, 32, s=2)
    up = n.Resize(n.conv(deep, 16, 1), None, [1.0, 1.0, 2.0, 2.0], mode="nearest")
    both = n.conv(n.Concat(up, f, axis=1), 24)
    return {f"level{k}": n.conv(level, 18, 1, act=None) for k, level in enumerate((both, deep))}


@row(PICTURE, parts={"y": [(1, 0, 1), (1, 1, 5), (1, 5, 15)]}, int8_at_least=4)
def face_scores_boxes_landmarks(n, x):
    f = n.conv(backbone(n, x, "PRelu"), 24, groups=24, act="PRelu")
    return n.Concat(
        n.Softmax(n.conv(f, 2, 1, act=None, gain=2), axis=1), n.conv(f, 4, 1, act=None, gain=8.0),
        n.Mul(n.conv(f, 10, 1, act=None), 100.0), axis=1,
    )  # fmt: skip


@row(PICTURE, parts={"y": [(1, 0, 4), (1, 4, 8), (1, 8, 24)]}, int8_at_least=6)
def instance_masks_beside_boxes(n, x):
    f = backbone(n, x)
    heads = n.Concat(
        n.Mul(flat(n, n.conv(f, 4, 1, act="Relu")), 32.0), n.Sigmoid(flat(n, scores(n, f, 4))),
        n.Tanh(flat(n, n.conv(f, 16, 1, act=None, gain=0.5))), axis=1,
    )  # fmt: skip
    return {"y": heads, "prototypes": n.conv(n.Resize(f, None, [1.0, 1.0, 2.0, 2.0], mode="nearest"), 16, act="SiLU")}


@row(PICTURE, parts={"y": [(-1, 0, 5), (-1, 5, 6)]}, channels={"y": -1}, int8_at_least=4)
def rotated_boxes_with_angle(n, x):
    f = backbone(n, x)
    angle = n.Mul(n.Sub(n.Sigmoid(flat(n, n.conv(f, 1, 1, act=None))), 0.25), 3.14159)
    turned = n.Mul(n.Concat(n.Cos(angle), n.Sin(angle), axis=1), flat(n, n.conv(f, 2, 1, act=None)))
    boxes = n.Mul(n.Concat(n.Add(turned, CENTRES), n.Exp(n.Mul(flat(n, n.conv(f, 2, 1, act=None)), 0.5)), axis=1), 4.0)
    chances = n.Sigmoid(flat(n, scores(n, f, 1)))
    return n.Transpose(n.Concat(boxes, chances, angle, axis=1), perm=[0, 2, 1])
