"""Recurrent networks, loops, sound that is changed, series, and embeddings."""

from __future__ import annotations

import numpy as np

from zoo.changes import without_shapes
from zoo.net import Net
from zoo.row import row
from zoo.samples import N, chosen, dynamic, features, positive

LAST = {"y": -1}
SERIES = features(1, 12, 16)


def rows_first(n: Net, x):
    """[N, T, C] and [T, N, C] changed into each other."""
    return n.Transpose(x, perm=[1, 0, 2])


def states(n: Net, y):
    """[T, directions, N, H] becomes [N, T, directions H]."""
    size = n.shape(y)[1] * n.shape(y)[3]
    return n.Reshape(n.Transpose(y, perm=[2, 0, 1, 3]), [0, 0, size])


@row(SERIES, channels=LAST, int8_at_least=1, fast=True)
def lstm_then_classes(n, x):
    _, last, _ = n.recurrent("LSTM", rows_first(n, x), 20, outputs=["all", "last", "cell"])
    return n.linear(n.Squeeze(last, [0]), 6)


@row(features(N, dynamic("T", 8, 20), 16), channels=LAST, int8_at_least=1, exported=True)
def lstm_of_both_directions_and_any_length(n, x):
    y = states(n, n.recurrent("LSTM", rows_first(n, n.linear(x, 24, act="Relu")), 16, "bidirectional"))
    return n.LogSoftmax(n.linear(y, 12), axis=-1)


@row(SERIES, channels=LAST, int8_at_least=1)
def gru_between_products(n, x):
    y = states(n, n.recurrent("GRU", rows_first(n, n.linear(x, 24, act="Relu")), 24, linear_before_reset=1))
    return n.linear(n.linear(y, 24, act="Relu"), 5)


@row(features(12, 1, 16), channels=LAST, int8_at_least=0)
def time_first_two_layers(n, x):
    y = n.Squeeze(n.recurrent("LSTM", x, 20), [1])
    return n.Squeeze(n.recurrent("LSTM", y, 12, "reverse"), [1])


@row(features(2, 12, 16), chosen([6, 9, 12], 2, dtype=np.int32), channels=LAST, int8_at_least=0)
def lengths_given_for_every_sequence(n, x, lengths):
    y = n.recurrent("GRU", rows_first(n, x), 16, lengths=lengths)
    return n.linear(states(n, y), 5)


@row(
    features(1, 8, 16), features(1, 1, 16), features(1, 1, 16), channels={"y": -1, "h2": -1, "c2": -1}, int8_at_least=1
)
def state_goes_in_and_comes_out(n, x, h, c):
    w, r, b = n.weight(1, 64, 16, fan=16), n.weight(1, 64, 16, fan=16), n.normal(1, 128, scale=0.2)
    y, h2, c2 = n.LSTM(rows_first(n, n.linear(x, 16)), w, r, b, None, h, c, outputs=3, hidden_size=16)
    return {"y": n.linear(states(n, y), 8), "h2": n.Identity(h2), "c2": n.Identity(c2)}


@row(features(1, 10, 16), channels=LAST, int8_at_least=2)
def cells_unrolled_over_one_weight(n, x):
    kernel, recurrent = n.const(n.weight(16, 20, fan=16)), n.const(n.weight(20, 20, fan=20))
    state = np.zeros((1, 20), np.float32)
    for step in n.Split(x, outputs=10, axis=1):
        state = n.Tanh(n.Add(n.MatMul(n.Squeeze(step, [1]), kernel), n.MatMul(state, recurrent)))
    return n.linear(state, 5)


@row(features(1, 8, 8), channels=LAST, int8_at_least=1)
def gated_cells_unrolled(n, x):
    weight, bias = n.const(n.weight(24, 64, fan=24)), n.const(n.normal(64, scale=0.2))
    state, cell = n.const(np.zeros((1, 16), np.float32)), n.const(np.zeros((1, 16), np.float32))
    for step in n.Split(x, outputs=8, axis=1):
        gates = n.Gemm(n.Concat(n.Squeeze(step, [1]), state, axis=1), weight, bias)
        i, f, g, o = n.Split(gates, outputs=4, axis=1)
        cell = n.Add(n.Mul(n.Sigmoid(f), cell), n.Mul(n.Sigmoid(i), n.Tanh(g)))
        state = n.Mul(n.Sigmoid(o), n.Tanh(cell))
    return n.linear(state, 5)


def loop(n: Net, x, shapes: bool):
    """A convolution between two that is applied three times."""
    weight = n.const(n.weight(8, 8, 3, 3, fan=90))

    def turn(b, step, going, state):
        return b.Identity(going), b.Add(state, b.Relu(b.Conv(state, weight, pads=[1] * 4)))

    start = n.conv(x, 8)
    body = n.body(turn, shapes=shapes, step=np.int64(0), going=np.bool_(True), state=n.value(start))
    return n.conv(n.Loop(np.int64(3), np.bool_(True), start, body=body), 4, 1, act=None)


@row(features(1, 8, 8, 8), int8_at_least=2)
def convolution_in_a_loop(n, x):
    return loop(n, x, shapes=True)


@row(features(1, 8, 8, 8), change=without_shapes, int8_at_least=2)
def loop_whose_body_has_no_shapes(n, x):
    return loop(n, x, shapes=False)


@row(features(6, 12), channels={"y": -1}, int8_at_least=1)
def cell_in_a_scan(n, x):
    kernel, recurrent = n.const(n.weight(12, 16, fan=12)), n.const(n.weight(16, 16, fan=16))

    def turn(b, state, step):
        mixed = b.Add(b.MatMul(b.Unsqueeze(step, [0]), kernel), b.MatMul(b.Unsqueeze(state, [0]), recurrent))
        new = b.Squeeze(b.Tanh(mixed), [0])
        return new, b.Identity(new)

    start = n.const(np.zeros(16, np.float32))
    body = n.body(turn, state=np.zeros(16, np.float32), step=n.value(x)[0])
    _, every = n.Scan(start, x, outputs=2, body=body, num_scan_inputs=1)
    return n.linear(every, 5)


@row(features(1, 1, 16, dynamic("W", 24, 48)), channels=LAST, int8_at_least=3)
def text_line_read_by_convolutions_and_lstm(n, x):
    y = n.MaxPool(n.conv(n.conv(x, 16, s=2), 16), kernel_shape=[2, 1], strides=[2, 1])
    y = n.Squeeze(n.reduce("ReduceMean", y, [2]), [2])
    y = n.recurrent("LSTM", n.Transpose(y, perm=[2, 0, 1]), 12, "bidirectional")
    return n.Softmax(n.linear(states(n, y), 11), axis=-1)


@row(features(1, 24, 8), agree=0.7, int8_at_least=2)
def best_path_of_a_text_line(n, x):
    y = n.conv(n.conv(n.Transpose(x, perm=[0, 2, 1]), 16, 5), 9, act=None, gain=3.0)
    return n.ArgMax(y, axis=1, keepdims=0)


# -- sound that is changed ---------------------------------------------------------------------------------------------

SPECTRUM = positive(1, 12, 32, high=4.0)


@row(SPECTRUM, channels=LAST, int8_at_least=2, fast=True)
def mask_times_its_own_input(n, x):
    mask = n.Sigmoid(n.linear(n.linear(n.Log(n.Add(x, 1e-3)), 32, act="Relu"), 32, gain=2.0))
    return n.Mul(mask, x)


@row(features(1, 12, 32), features(1, 12, 32), channels={"real_out": -1, "imaginary_out": -1}, int8_at_least=2)
def complex_mask_of_an_echo_estimator(n, real, imaginary):
    size = n.Sqrt(n.Add(n.Add(n.Mul(real, real), n.Mul(imaginary, imaginary)), 1e-8))
    y = n.linear(n.Log(n.Add(size, 1e-2)), 32, act="Relu")
    y = states(n, n.recurrent("GRU", rows_first(n, y), 24))
    a, b = n.Split(n.Tanh(n.linear(y, 64)), outputs=2, axis=-1)
    return {
        "real_out": n.Sub(n.Mul(real, a), n.Mul(imaginary, b)),
        "imaginary_out": n.Add(n.Mul(real, b), n.Mul(imaginary, a)),
    }


@row(features(1, 1, 256), int8_at_least=3)
def waveform_masked_in_a_learned_basis(n, x):
    basis = n.conv(x, 24, 16, s=8, act="Relu", bias=False, pads=[4, 4])
    y = n.conv(n.conv(basis, 16, 1, act="PRelu"), 16, groups=16, d=2, act="PRelu")
    mask = n.Sigmoid(n.conv(y, 24, 1, act=None))
    return n.ConvTranspose(n.Mul(basis, mask), n.weight(24, 1, 16, fan=48), strides=[8], pads=[4, 4])


@row(features(1, 8, 64), int8_at_least=4)
def gated_dilated_convolutions(n, x):
    y, sums = n.conv(x, 16, 1, act=None), []
    for dilation in (1, 2, 4):
        a, b = n.Split(n.conv(y, 32, 3, d=dilation, act=None), outputs=2, axis=1)
        z = n.Mul(n.Tanh(a), n.Sigmoid(b))
        sums.append(n.conv(z, 16, 1, act=None))
        y = n.Add(y, n.conv(z, 16, 1, act=None))
    return n.conv(n.Relu(n.Sum(*sums)), 6, 1, act=None)


@row(features(1, 12, 20), int8_at_least=3)
def vocoder_with_transposed_convolutions(n, x):
    y = n.conv(x, 24, 7, act="LeakyRelu")
    y = n.deconv(y, 16, 8, 4, act="LeakyRelu", pads=[2, 2])
    y = n.Add(y, n.conv(n.conv(y, 16, 3, d=3, act="LeakyRelu"), 16, act=None))
    return n.conv(n.LeakyRelu(y, alpha=0.1), 1, 7, act="Tanh")


@row(features(1, 20, 40), channels={"e": 1}, int8_at_least=3, exported=True)
def speaker_embedding_of_statistics(n, x):
    y = n.conv(n.conv(x, 32, 5), 32, d=2)
    mean = n.reduce("ReduceMean", y, [2], 0)
    square = n.reduce("ReduceMean", n.Pow(n.Sub(y, n.Unsqueeze(mean, [2])), 2.0), [2], 0)
    e = n.linear(n.Concat(mean, n.Sqrt(n.Clip(square, 1e-7)), axis=1), 16)
    return {"e": n.Div(e, n.reduce("ReduceL2", e, [1]))}


@row(features(1, 20, 40), int8_at_least=3)
def attentive_pooling_of_frames(n, x):
    y = n.conv(x, 24, 5)
    weights = n.Softmax(n.conv(n.conv(y, 12, 1, act="Tanh"), 24, 1, act=None), axis=2)
    mean = n.reduce("ReduceSum", n.Mul(weights, y), [2], 0)
    return n.LpNormalization(n.linear(mean, 16), axis=1, p=2)


# -- series ------------------------------------------------------------------------------------------------------------


@row(features(1, 4, 48), int8_at_least=4)
def causal_dilated_series(n, x):
    y = x
    for dilation in (1, 2, 4):
        padded = n.Pad(y, [0, 0, 2 * dilation, 0, 0, 0])
        z = n.conv(padded, 16, 3, d=dilation, pads=[0, 0])
        y = n.Relu(n.Add(z, n.conv(y, 16, 1, act=None)))
    return n.linear(n.Squeeze(n.Slice(y, [47], [48], [2]), [2]), 3)


@row(features(N, 48, 4), channels=LAST, int8_at_least=2)
def series_split_into_trend_and_rest(n, x):
    y = n.Transpose(x, perm=[0, 2, 1])
    trend = n.AveragePool(n.Pad(y, [0, 0, 4, 0, 0, 4], mode="edge"), kernel_shape=[9], strides=[1])
    both = n.Add(n.linear(trend, 12), n.linear(n.Sub(y, trend), 12))
    return n.Transpose(both, perm=[0, 2, 1])


@row(features(1, 48), int8_at_least=4)
def forecast_and_backcast_blocks(n, x):
    forecast = None
    for _ in range(2):
        y = n.linear(n.linear(x, 32, act="Relu"), 32, act="Relu")
        x = n.Sub(x, n.linear(y, 48))
        ahead = n.linear(y, 8)
        forecast = ahead if forecast is None else n.Add(forecast, ahead)
    return forecast


@row(features(1, 48, 3), channels=LAST, int8_at_least=2)
def series_normalized_and_put_back(n, x):
    mean = n.reduce("ReduceMean", x, [1])
    deviation = n.Sqrt(n.Add(n.reduce("ReduceMean", n.Pow(n.Sub(x, mean), 2.0), [1]), 1e-5))
    y = n.Transpose(n.Div(n.Sub(x, mean), deviation), perm=[0, 2, 1])
    y = n.Transpose(n.linear(n.linear(y, 32, act="Gelu"), 12), perm=[0, 2, 1])
    return n.Add(n.Mul(y, deviation), mean)


@row(features(1, 1, 96), int8_at_least=4)
def heart_beats_residual_in_one_dimension(n, x):
    y = n.conv(x, 16, 7, s=2)
    for _ in range(2):
        y = n.Relu(n.Add(y, n.conv(n.conv(y, 16, 5), 16, 5, act=None)))
    return n.Softmax(n.linear(n.flat_mean(y), 5, gain=2.0), axis=-1)
