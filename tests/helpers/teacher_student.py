"""A small network as a teacher, the same with fewer channels as its student, and samples for them."""

from __future__ import annotations

import numpy as np
from small_models import model, weights

from toolchain.data.calibration import open_data
from toolchain.graph import io

NET = """
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)
    s = Relu (c)
    g = GlobalAveragePool (s)
    f = Flatten (g)
    y = Gemm (f, w3)
"""


def net(hidden=8, *, batch="n", tail=""):
    """Build a convolutional net with the first `hidden` of the teacher's 8 inner channels."""
    arrays = weights(w1=(8, 3, 3, 3), b1=8, w2=(4, 8, 3, 3), b2=4, w3=(4, 5))
    arrays |= {"w1": arrays["w1"][:hidden], "b1": arrays["b1"][:hidden], "w2": arrays["w2"][:, :hidden]}
    return model(NET.replace("y = Gemm", "y = Gemm" if not tail else "z = Gemm") + tail,
                 f"float[{batch},3,32,32] x", f"float[{batch},5] y", arrays)  # fmt: skip


def samples(teacher, count=24, seed=5):
    rng = np.random.default_rng(seed)
    return open_data([{"x": rng.standard_normal((1, 3, 32, 32)).astype(np.float32)} for _ in range(count)],
                     io.inputs(teacher))  # fmt: skip
