"""Sound models: a spectrum (products, a square, a logarithm or a power), and small networks that listen to it."""

from __future__ import annotations

import numpy as np

from zoo.net import Net
from zoo.row import row
from zoo.samples import Input, N, dynamic, features, positive, wave


def fourier(size: int) -> np.ndarray:
    """Windowed cosines and sines as kernels of a convolution, [size + 2, 1, size]."""
    time, window = np.arange(size), np.hanning(size)
    angles = 2 * np.pi * np.outer(np.arange(size // 2 + 1), time) / size
    return np.concatenate([np.cos(angles) * window, np.sin(angles) * window])[:, None].astype(np.float32)


def constant_q(bins: int, size: int) -> np.ndarray:
    """Kernels whose frequencies are a musical scale, low ones longer than high ones: [2 bins, 1, size]."""
    time, kernels = np.arange(size) - size / 2, []
    for wave_ in (np.cos, np.sin):
        for frequency in 0.02 * 2 ** (np.arange(bins) / 6):
            window = np.exp(-((time * frequency) ** 2) / 8)
            kernels.append(wave_(2 * np.pi * frequency * time) * window / window.sum())
    return np.array(kernels)[:, None].astype(np.float32)


def mel(bins: int, bands: int) -> np.ndarray:
    """Triangles that are wider at high frequencies, [bands, bins]."""
    centres = (np.geomspace(1, bins, bands + 2) - 1).astype(np.float64)
    at = np.arange(bins)[None]
    up = (at - centres[:-2, None]) / np.maximum(np.diff(centres)[:-1, None], 1)
    down = (centres[2:, None] - at) / np.maximum(np.diff(centres)[1:, None], 1)
    return np.maximum(1e-3, np.minimum(up, down)).astype(np.float32)


def spectrum(n: Net, x, size=64, hop=32):
    """Power of a short-time Fourier transform by convolution, [N, size / 2 + 1, frames]."""
    real, imaginary = n.Split(n.Conv(x, fourier(size), strides=[hop]), outputs=2, axis=1)
    return n.Add(n.Mul(real, real), n.Mul(imaginary, imaginary))


def tagger(n: Net, x, classes=6):
    """A small network over [N, bands, frames]."""
    y = n.conv(n.conv(x, 16), 16, s=2)
    return n.linear(n.Flatten(n.GlobalMaxPool(y)), classes)


@row(wave(), int8_at_least=0)
def log_power_spectrum(n, x):
    return n.Log(n.Add(spectrum(n, x), 1e-6))


@row(wave(), int8_at_least=0, fast=True, exported=True)
def log_mel_spectrogram(n, x):
    return n.Log(n.Clip(n.MatMul(mel(33, 12), spectrum(n, x)), 1e-6))


@row(wave(batch=N), int8_at_least=2)
def log_mel_in_front_of_a_network(n, x):
    bands = n.Log(n.Add(n.MatMul(mel(33, 12), spectrum(n, x)), 1e-5))
    return n.Softmax(tagger(n, n.Mul(n.Add(bands, 5.0), 0.2)), axis=-1)


@row(wave(1024), int8_at_least=2, exported=True)
def constant_q_in_front_of_a_network(n, x):
    real, imaginary = n.Split(n.Conv(x, constant_q(24, 256), strides=[64], pads=[128, 128]), outputs=2, axis=1)
    power = n.Add(n.Pow(real, 2.0), n.Pow(imaginary, 2.0))
    level = n.Mul(n.Log(n.Add(power, 1e-10)), 10 / 2.302585)
    level = n.Sub(level, n.reduce("ReduceMin", level, [1, 2]))
    level = n.Div(level, n.Add(n.reduce("ReduceMax", level, [1, 2]), 1e-6))
    maps = n.conv(n.conv(n.Unsqueeze(level, [1]), 8), 8, act="Relu")
    return n.Sigmoid(n.Squeeze(n.conv(maps, 1, act=None, gain=2.0), [1]))


@row(wave(1024), int8_at_least=2)
def eight_filter_banks_side_by_side(n, x):
    maps = []
    for octave in range(4):
        kernels = constant_q(6, 64)
        real, imaginary = (n.Conv(x, half, strides=[64], pads=[32, 32]) for half in np.split(kernels * 2.0**-octave, 2))
        maps.append(n.Add(n.Mul(real, real), n.Mul(imaginary, imaginary)))
        x = n.AveragePool(x, kernel_shape=[3], strides=[1], pads=[1, 1])
    level = n.Log(n.Add(n.Concat(*maps, axis=1), 1e-9))
    return n.conv(n.conv(n.Mul(level, 0.2), 24), 12, act="Sigmoid")


@row(wave(), int8_at_least=0)
def mfcc_with_cosine_product(n, x):
    bands = n.Log(n.Add(n.MatMul(mel(33, 12), spectrum(n, x)), 1e-5))
    cosines = np.cos(np.pi * np.outer(np.arange(8), np.arange(12) + 0.5) / 12).astype(np.float32)
    return n.MatMul(cosines, bands)


@row(wave(), int8_at_least=1)
def mfcc_liftered_with_deltas_and_network(n, x):
    bands = n.Log(n.Add(n.MatMul(mel(33, 12), spectrum(n, x)), 1e-4))
    cosines = np.cos(np.pi * np.outer(np.arange(10), np.arange(12) + 0.5) / 12).astype(np.float32)
    lifter = (1 + 5 * np.sin(np.pi * np.arange(10) / 10)).astype(np.float32)[:, None]
    base = n.Mul(n.MatMul(cosines, bands), lifter)
    delta = n.Conv(base, np.eye(10, dtype=np.float32)[:, :, None] * np.float32([-0.5, 0, 0.5]), pads=[1, 1])
    return tagger(n, n.Concat(base, delta, axis=1))


@row(wave(), int8_at_least=2)
def power_compression(n, x):
    bands = n.Pow(n.Add(n.MatMul(mel(33, 12), spectrum(n, x)), 1e-7), 0.3)
    return tagger(n, bands)


@row(wave(), int8_at_least=1)
def per_channel_energy_normalization(n, x):
    energy = n.MatMul(mel(33, 12), spectrum(n, x))
    slow = n.Conv(n.Pad(energy, [0, 0, 7, 0, 0, 0]), np.full((12, 1, 8), 1 / 8, np.float32), group=12)
    ratio = n.Div(energy, n.Pow(n.Add(slow, 1e-6), 0.98))
    return tagger(n, n.Sub(n.Pow(n.Add(ratio, 2.0), 0.5), 1.4142135))


@row(wave(), int8_at_least=2)
def magnitude_by_square_root(n, x):
    return tagger(n, n.Sqrt(n.Add(spectrum(n, x), 1e-12)))


@row(wave(), int8_at_least=2)
def magnitude_and_phase(n, x):
    real, imaginary = n.Split(n.Conv(x, fourier(64), strides=[32]), outputs=2, axis=1)
    size = n.Sqrt(n.Add(n.Add(n.Mul(real, real), n.Mul(imaginary, imaginary)), 1e-9))
    return tagger(n, n.Concat(size, n.Div(real, size), n.Div(imaginary, size), axis=1))


@row(wave(1024, channels=None), int8_at_least=1)
def learned_filters_then_logarithm(n, x):
    y = n.conv(n.Unsqueeze(x, [1]), 16, 33, s=8, act=None)
    return tagger(n, n.Log(n.Add(n.Abs(n.MaxPool(y, kernel_shape=[4], strides=[4])), 1.0)))


@row(wave(), int8_at_least=1)
def instance_normalized_log_mel(n, x):
    bands = n.Log(n.Add(n.MatMul(mel(33, 12), spectrum(n, x)), 1e-5))
    mean = n.reduce("ReduceMean", bands, [2])
    deviation = n.Sqrt(n.Add(n.reduce("ReduceMean", n.Pow(n.Sub(bands, mean), 2.0), [2]), 1e-5))
    return tagger(n, n.Div(n.Sub(bands, mean), deviation))


@row(wave(512, channels=None), int8_at_least=1)
def frames_by_gather_then_matrix_product(n, x):
    places = (np.arange(15)[:, None] * 32 + np.arange(64)).astype(np.int64)
    frames = n.Mul(n.Gather(x, places, axis=1), np.hanning(64).astype(np.float32))
    both = n.MatMul(frames, (fourier(64)[:, 0] / np.hanning(64).clip(1e-3)).T.astype(np.float32))
    real, imaginary = n.Split(both, outputs=2, axis=-1)
    power = n.Add(n.Mul(real, real), n.Mul(imaginary, imaginary))
    bands = n.Log(n.Add(n.MatMul(power, mel(33, 12).T.copy()), 1e-4))
    return tagger(n, n.Transpose(bands, perm=[0, 2, 1]))


@row(wave(channels=None), int8_at_least=1, float_because=("not in the table",))
def operator_stft_and_log(n, x):
    both = n.STFT(x, np.int64(32), np.hanning(64).astype(np.float32), np.int64(64), onesided=1)
    power = n.reduce("ReduceSum", n.Mul(both, both), [-1], 0)
    return tagger(n, n.Transpose(n.Log(n.Add(power, 1e-5)), perm=[0, 2, 1]))


@row(positive(1, dynamic("T", 16, 40), 32, high=3.0), int8_at_least=1)
def division_by_a_running_level(n, x):
    y = n.conv(n.Transpose(x, perm=[0, 2, 1]), 16, act="Softplus")
    level = n.AveragePool(y, kernel_shape=[9], strides=[1], pads=[4, 4], count_include_pad=1)
    return n.conv(n.Div(y, n.Add(level, 1e-3)), 8, act=None)


@row(features(1, 1, 16, 96), int8_at_least=4)
def wake_word_depthwise_separable(n, x):
    y = n.conv(x, 16, (5, 5), s=2)
    for _ in range(2):
        y = n.conv(n.conv(y, 16, groups=16), 16, 1)
    return n.Softmax(n.linear(n.flat_mean(y), 4), axis=-1)


@row(features(1, 16, 96), int8_at_least=3, fast=True, exported=True)
def wake_word_gemm_chain(n, x):
    y = n.linear(n.Flatten(x), 32, act="Relu")
    y = n.linear(n.linear(y, 32, act="Relu"), 1, gain=2.0)
    return n.Sigmoid(n.Sub(y, 6.0))


@row(features(1, 16, 48), int8_at_least=2)
def gemm_chain_read_by_a_float_node(n, x):
    y = n.linear(n.linear(n.linear(n.Flatten(x), 32, act="Relu"), 32, act="Relu"), 24, act="Relu")
    return n.linear(n.Div(y, n.Add(n.reduce("ReduceL2", y, [1]), 0.1)), 4)


def word(shares: list[float]) -> Input:
    """Frames of noise; a pattern is added in a share of the samples."""
    pattern = np.random.default_rng(7).standard_normal((1, 16, 24)).astype(np.float32)
    noise = features(1, 16, 24)
    return Input(noise.shape, lambda rng, size: noise.draw(rng, size) + np.float32(rng.choice(shares)) * pattern)


@row(word([0, 0, 0.8]), calibration={"x": word([0])}, int8_at_least=2, min_db=6.0)
def wake_word_never_spoken_in_calibration(n, x):
    pattern = np.random.default_rng(7).standard_normal((1, 16, 24)).astype(np.float32).reshape(384, 1)
    weights = n.weight(384, 16, fan=384)
    weights[:, :4] += 0.01 * pattern
    y = n.linear(n.Gemm(n.Flatten(x), weights, n.normal(16, scale=0.1)), 16, act="Relu")
    return n.Sigmoid(n.Sub(n.linear(y, 1, gain=3.0), 2.0))


@row(features(1, 40, 30), channels={"clip": -1, "frames": -1}, int8_at_least=3)
def tagger_with_attention_over_frames(n, x):
    y = n.Transpose(n.conv(n.conv(x, 24, 5), 24, 3), perm=[0, 2, 1])
    attention = n.Softmax(n.linear(y, 8), axis=1)
    frames = n.Sigmoid(n.Sub(n.linear(y, 8, gain=2.0), 3.0))
    return {"clip": n.reduce("ReduceSum", n.Mul(attention, frames), [1], 0), "frames": frames}
