"""A small network with feeds, and its activations as NumPy arrays: what the streaming statistics are compared with."""

import numpy as np
import onnx_ir as ir
import small_models

from toolchain.data.calibration import open_data
from toolchain.graph import io, query


def integers(seed, **shapes):
    """Small integers as float32: every sum of products is exact, in whatever order a kernel adds."""
    rng = np.random.default_rng(seed)
    return {name: rng.integers(-3, 4, shape).astype(np.float32) for name, shape in shapes.items()}


def net():
    """Convolutions with a shortcut, pooled into a product; both image axes open."""
    return small_models.model(
        """a = Conv<pads = [1, 1, 1, 1]>(x, w) b = Relu(a) c = Conv(b, v) d = Add(c, a) e = Relu(d)
        p = GlobalMaxPool(e) f = Flatten(p) y = Gemm(f, k, kb)""",
        "float[N, 2, H, W] x",
        "float[N, 3] y",
        integers(0, w=(4, 2, 3, 3), v=(4, 4, 1, 1), k=(4, 3), kb=(3,)),
    )


def image_feeds(n=5, seed=1):
    rng = np.random.default_rng(seed)
    for i in range(n):
        yield {"x": rng.integers(-4, 5, (1 + i % 2, 2, 6 + i, 7)).astype(np.float32)}


def opened(model, feeds):
    return open_data(list(feeds), io.inputs(model))


def everything(model, axes=None):
    return {value.name: (axes or {}).get(value.name) for value in query.activations(model)}


def kept_whole(model, feeds):
    """Every value of every feed by name, as plain onnxruntime computes them node by node."""
    runs = [small_models.every_value(ir.to_proto(model), feed) for feed in feeds]
    return {name: [found[name] for found in runs] for name in runs[0]}
