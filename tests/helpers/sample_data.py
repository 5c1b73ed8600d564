"""Specs, arrays and samples that the tests of calibration data share."""

import numpy as np

from toolchain.formats.tensor_spec import TensorSpec

F32, I64 = np.dtype("float32"), np.dtype("int64")
X = TensorSpec("x", F32, ("batch", 3))
TEXT = (TensorSpec("ids", I64, ("batch", "seq")), TensorSpec("mask", I64, ("batch", "seq")))
GOOD = np.zeros((1, 3), np.float32)


def rows(n, *shape, seed=0):
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(np.float32)


def values(data):
    return [float(feed["x"][0, 0]) for feed in data]
