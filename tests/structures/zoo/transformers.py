"""Transformers: encoders, decoders, pictures in patches and windows, positions of several kinds, caches, mixers."""

from __future__ import annotations

import numpy as np

from zoo.net import Net
from zoo.row import row
from zoo.samples import N, dynamic, features, flags, image, tokens

LAST = {"y": -1}
IDS = tokens(60, 1, 12)


def embed(n: Net, ids, width=24, vocabulary=60, positions=12):
    """Rows of a table and of a table of places."""
    words = n.Gather(n.normal(vocabulary, width), ids)
    return n.Add(words, n.normal(1, positions, width, scale=0.3)) if positions else words


def causal(length: int) -> np.ndarray:
    """Large negative numbers above the diagonal, [1, 1, length, length]."""
    return np.triu(np.full((1, 1, length, length), -1e4, np.float32), 1)


@row(tokens(60, N, 12), channels=LAST, int8_at_least=6, fast=True, exported=True)
def encoder_that_normalizes_first(n, ids):
    return n.linear(n.layer_norm(n.block(embed(n, ids))), 5)


@row(IDS, channels=LAST, int8_at_least=6, opset=11)
def norms_and_gelu_in_parts_below_opset_17(n, ids):
    x = embed(n, ids)
    for _ in range(2):
        x = n.layer_norm(n.Add(x, n.attention(x)))
        x = n.layer_norm(n.Add(x, n.linear(n.linear(x, 48, act="Gelu"), 24)))
    return n.linear(x, 5)


@row(IDS, channels=LAST, int8_at_least=6, opset=13)
def gelu_by_tanh_in_parts(n, ids):
    def gelu(x):
        inner = n.Mul(n.Add(x, n.Mul(n.Pow(x, 3.0), 0.044715)), 0.7978846)
        return n.Mul(n.Mul(x, 0.5), n.Add(n.Tanh(inner), 1.0))

    x = embed(n, ids)
    x = n.Add(x, n.attention(n.layer_norm(x), mask=causal(12)))
    return n.linear(n.Add(x, n.linear(gelu(n.linear(n.layer_norm(x), 48)), 24)), 60, bias=False)


@row(IDS, channels=LAST, int8_at_least=6, opset=20)
def gelu_as_an_operator(n, ids):
    return n.linear(n.block(embed(n, ids)), 5)


@row(IDS, flags(1, 12, dtype=np.int64), channels=LAST, int8_at_least=6)
def attention_mask_given_as_integers(n, ids, mask):
    far = n.Mul(n.Sub(1.0, n.Cast(n.Unsqueeze(mask, [1, 2]), to=1)), -1e4)
    x = n.block(embed(n, ids), mask=far)
    pooled = n.linear(n.Squeeze(n.Slice(x, [0], [1], [1]), [1]), 24, act="Tanh")
    return n.linear(pooled, 4)


@row(tokens(60, 1, dynamic("T", 6, 14)), flags(1, dynamic("T", 6, 14), dtype=bool), channels=LAST, int8_at_least=5)
def mask_of_minus_infinity_by_where(n, ids, mask):
    x = n.Gather(n.normal(60, 24), ids)
    far = n.Where(n.Unsqueeze(mask, [1, 2]), np.float32(0), np.float32(-np.inf))
    return n.linear(n.block(x, mask=far), 5)


@row(IDS, channels=LAST, int8_at_least=5)
def one_product_for_queries_keys_values(n, ids):
    x = embed(n, ids)
    y = n.Reshape(n.linear(n.layer_norm(x), 72), [0, 0, 3, 2, 12])
    q, k, v = n.Split(n.Transpose(y, perm=[2, 0, 3, 1, 4]), outputs=3, axis=0)
    x = n.Add(x, n.linear(n.attend(*(n.Squeeze(part, [0]) for part in (q, k, v))), 24))
    return n.linear(n.Add(x, n.linear(n.linear(n.layer_norm(x), 48, act="Relu"), 24)), 5)


@row(IDS, channels=LAST, int8_at_least=6, exported=True)
def rotary_positions(n, ids):
    angles = np.outer(np.arange(12), 1 / 100 ** (np.arange(6) / 6)).astype(np.float32)
    cos, sin = np.cos(np.tile(angles, 2)), np.sin(np.tile(angles, 2))

    def turn(x):
        half = n.Concat(n.Neg(n.Slice(x, [6], [12], [3])), n.Slice(x, [0], [6], [3]), axis=3)
        return n.Add(n.Mul(x, cos), n.Mul(half, sin))

    x = embed(n, ids, positions=0)
    y = n.layer_norm(x)
    q, k, v = (n.heads(n.linear(y, 24), 2) for _ in range(3))
    x = n.Add(x, n.linear(n.attend(turn(q), turn(k), v, causal(12)), 24))
    gate, up = n.linear(n.layer_norm(x), 48, act="SiLU"), n.linear(n.layer_norm(x), 48)
    return n.linear(n.Add(x, n.linear(n.Mul(gate, up), 24)), 60)


@row(IDS, channels=LAST, int8_at_least=5, opset=17)
def grouped_heads_and_root_mean_square_norm(n, ids):
    def norm(x):
        square = n.reduce("ReduceMean", n.Pow(x, 2.0), [-1])
        return n.Mul(n.Mul(x, n.Reciprocal(n.Sqrt(n.Add(square, 1e-6)))), np.exp(n.normal(24, scale=0.3)))

    x = embed(n, ids)
    y = norm(x)
    q = n.heads(n.linear(y, 24), 4)
    k, v = (n.Expand(n.Unsqueeze(n.heads(n.linear(y, 12), 2), [2]), [1, 2, 2, 12, 6]) for _ in range(2))
    k, v = (n.Reshape(part, [1, 4, 12, 6]) for part in (k, v))
    x = n.Add(x, n.linear(n.attend(q, k, v, causal(12)), 24))
    return n.linear(norm(x), 60, bias=False)


@row(IDS, channels=LAST, int8_at_least=5)
def relative_positions_as_a_bias(n, ids):
    distance = np.clip(np.arange(12)[:, None] - np.arange(12)[None], -4, 4) + 4
    bias = n.Transpose(n.Unsqueeze(n.Gather(n.normal(9, 2), distance), [0]), perm=[0, 3, 1, 2])
    return n.linear(n.block(embed(n, ids, positions=0), mask=bias), 5)


@row(IDS, channels=LAST, int8_at_least=4)
def logits_by_the_table_of_the_words(n, ids):
    table = n.const(n.normal(60, 24, scale=0.5))
    x = n.block(n.Add(n.Gather(table, ids), n.normal(1, 12, 24, scale=0.2)), mask=causal(12))
    return n.MatMul(n.layer_norm(x), n.Transpose(table, perm=[1, 0]))


@row(IDS, channels=LAST, int8_at_least=4)
def one_block_used_three_times(n, ids):
    x = embed(n, ids)
    weights = [n.const(n.weight(24, 24, fan=24)) for _ in range(4)]
    wide, narrow = n.const(n.weight(24, 48, fan=24)), n.const(n.weight(48, 24, fan=48))
    for _ in range(3):
        y = n.layer_norm(x)
        q, k, v = (n.heads(n.MatMul(y, weight), 2) for weight in weights[:3])
        x = n.Add(x, n.MatMul(n.attend(q, k, v), weights[3]))
        x = n.Add(x, n.MatMul(n.Relu(n.MatMul(n.layer_norm(x), wide)), narrow))
    return n.linear(x, 5)


PAST = features(1, 2, dynamic("past", 0, 6), 12)


@row(tokens(60, 1, 1), PAST, PAST, channels={"logits": -1, "present_k": -1, "present_v": -1}, int8_at_least=4)
def decoder_with_a_cache_that_may_be_empty(n, ids, past_k, past_v):
    x = n.Gather(n.normal(60, 24), ids)
    y = n.layer_norm(x)
    q, k, v = (n.heads(n.linear(y, 24), 2) for _ in range(3))
    k, v = n.Concat(past_k, k, axis=2), n.Concat(past_v, v, axis=2)
    x = n.Add(x, n.linear(n.attend(q, k, v), 24))
    x = n.Add(x, n.linear(n.linear(n.layer_norm(x), 48, act="Gelu"), 24))
    return {"logits": n.linear(x, 60), "present_k": k, "present_v": v}


@row(tokens(60, 1, 8), features(1, 10, 16), channels=LAST, int8_at_least=8)
def decoder_that_looks_at_an_encoder(n, ids, sound):
    memory = n.linear(sound, 24)
    x = embed(n, ids, positions=8)
    x = n.Add(x, n.attention(n.layer_norm(x), mask=causal(8)))
    q = n.heads(n.linear(n.layer_norm(x), 24), 2)
    k, v = (n.heads(n.linear(memory, 24), 2) for _ in range(2))
    x = n.Add(x, n.linear(n.attend(q, k, v), 24))
    return n.LogSoftmax(n.linear(n.Add(x, n.linear(n.linear(x, 48, act="Relu"), 24)), 60), axis=-1)


@row(features(1, 10, 24), channels=LAST, int8_at_least=4)
def attention_written_with_einsum(n, x):
    q, k, v = (n.Einsum(x, n.weight(24, 2, 12, fan=24), equation="btc,chd->bthd") for _ in range(3))
    weights = n.Softmax(n.Mul(n.Einsum(q, k, equation="bqhd,bkhd->bhqk"), 0.3), axis=-1)
    mixed = n.Einsum(weights, v, equation="bhqk,bkhd->bqhd")
    y = n.Add(x, n.Einsum(mixed, n.weight(2, 12, 24, fan=24), equation="bqhd,hdc->bqc"))
    return n.linear(n.linear(y, 48, act="Relu"), 5)


@row(features(N, 10, 24), channels=LAST, int8_at_least=4)
def linear_attention_without_softmax(n, x):
    q, k = (n.Add(n.Elu(n.linear(x, 24)), 1.0) for _ in range(2))
    memory = n.MatMul(n.Transpose(k, perm=[0, 2, 1]), n.linear(x, 24))
    total = n.reduce("ReduceSum", k, [1])
    size = n.MatMul(q, n.Transpose(total, perm=[0, 2, 1]))
    return n.linear(n.Div(n.MatMul(q, memory), n.Add(size, 1e-6)), 8)


@row(image(3, 24), channels=LAST, int8_at_least=7)
def picture_in_patches_with_class_token(n, x):
    patches = n.Transpose(n.Reshape(n.conv(x, 24, 6, s=6, act=None, pads=[0] * 4), [1, 24, 16]), perm=[0, 2, 1])
    x = n.Add(n.Concat(n.normal(1, 1, 24, scale=0.3), patches, axis=1), n.normal(1, 17, 24, scale=0.2))
    x = n.layer_norm(n.block(x))
    return n.linear(n.Gather(x, np.int64(0), axis=1), 6)


@row(image(3, 32), channels=LAST, int8_at_least=6)
def shifted_windows(n, x):
    x = n.Transpose(n.conv(x, 16, 4, s=4, act=None, pads=[0] * 4), perm=[0, 2, 3, 1])

    def windows(y):
        y = n.Transpose(n.Reshape(y, [1, 2, 4, 2, 4, 16]), perm=[0, 1, 3, 2, 4, 5])
        y = n.Reshape(n.block(n.Reshape(y, [4, 16, 16])), [1, 2, 2, 4, 4, 16])
        return n.Reshape(n.Transpose(y, perm=[0, 1, 3, 2, 4, 5]), [1, 8, 8, 16])

    def roll(y, axis, by):
        return n.Concat(n.Slice(y, [by], [8], [axis]), n.Slice(y, [0], [by], [axis]), axis=axis)

    x = windows(x)
    x = roll(roll(windows(roll(roll(x, 1, 2), 2, 2)), 1, 6), 2, 6)
    parts = [n.Slice(x, [i, j], [8, 8], [1, 2], [2, 2]) for j in (0, 1) for i in (0, 1)]
    merged = n.linear(n.layer_norm(n.Concat(*parts, axis=3)), 32, bias=False)
    return n.linear(n.reduce("ReduceMean", merged, [1, 2], 0), 6)


@row(image(3, 32), int8_at_least=5)
def convolutions_then_attention_over_places(n, x):
    y = n.conv(n.conv(x, 16, s=2, act="SiLU"), 24, s=4, act="SiLU")
    places = n.Transpose(n.Reshape(y, [1, 24, 16]), perm=[0, 2, 1])
    back = n.Reshape(n.Transpose(n.block(places, act="SiLU"), perm=[0, 2, 1]), [1, 24, 4, 4])
    return n.linear(n.flat_mean(n.conv(n.Concat(y, back, axis=1), 32, act="SiLU")), 6)


@row(image(3, 24), channels=LAST, int8_at_least=5)
def mixer_of_places_and_channels(n, x):
    x = n.Transpose(n.Reshape(n.conv(x, 24, 6, s=6, act=None, pads=[0] * 4), [1, 24, 16]), perm=[0, 2, 1])
    across = n.Transpose(n.layer_norm(x), perm=[0, 2, 1])
    x = n.Add(x, n.Transpose(n.linear(n.linear(across, 32, act="Gelu"), 16), perm=[0, 2, 1]))
    x = n.Add(x, n.linear(n.linear(n.layer_norm(x), 48, act="Gelu"), 24))
    return n.linear(n.reduce("ReduceMean", x, [1], 0), 6)


@row(features(1, 10, 24), channels=LAST, int8_at_least=5)
def conformer_block(n, x):
    x = n.Add(x, n.Mul(n.linear(n.linear(n.layer_norm(x), 48, act="SiLU"), 24), 0.5))
    x = n.Add(x, n.attention(n.layer_norm(x)))
    y = n.conv(n.Transpose(n.layer_norm(x), perm=[0, 2, 1]), 48, 1, act=None)
    value, gate = n.Split(y, outputs=2, axis=1)
    y = n.conv(n.act(n.conv(n.Mul(value, n.Sigmoid(gate)), 24, 7, groups=24, act=None), "SiLU"), 24, 1, act=None)
    x = n.Add(x, n.Transpose(y, perm=[0, 2, 1]))
    return n.LogSoftmax(n.linear(n.layer_norm(x), 20), axis=-1)


@row(IDS, channels=LAST, int8_at_least=5)
def experts_chosen_by_a_router(n, ids):
    x = embed(n, ids)
    chances = n.Softmax(n.linear(x, 2, gain=2.0), axis=-1)
    first, second = n.Split(chances, outputs=2, axis=-1)
    each = [n.Mul(chance, n.linear(n.linear(x, 32, act="Relu"), 24)) for chance in (first, second)]
    return n.linear(n.Add(x, n.Add(*each)), 5)


@row(features(1, 12, 24), channels=LAST, int8_at_least=2)
def large_activations_in_a_few_channels(n, x):
    outliers = np.ones(24, np.float32)
    outliers[[3, 17]] = 60.0
    y = n.Mul(n.layer_norm(x), outliers)
    weight = n.weight(24, 32, fan=24) / outliers[:, None]
    return n.linear(n.Relu(n.MatMul(y, weight)), 8)


@row(IDS, channels={"start": -1, "end": -1}, int8_at_least=6, opset=14)
def question_answering_with_two_ends(n, ids):
    x = n.block(embed(n, ids))
    start, end = n.Split(n.linear(x, 2, gain=3.0), outputs=2, axis=-1)
    return {"start": n.Squeeze(start, [-1]), "end": n.Squeeze(end, [-1])}
