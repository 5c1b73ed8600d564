"""Small float networks that can be quantized, one for each kind of int8 operator, and random ones."""

import numpy as np
import quantize_by_hand as by_hand
from hypothesis import strategies as st
from small_models import weights

from toolchain.graph import edit

IMAGE = "float[1, 4, 8, 8] x"
C44 = {"w": (4, 4, 3, 3), "v": (4, 4, 1, 1)}
CONV = "[conv] c = Conv<pads = [1, 1, 1, 1]>(x, w, b)"

CASES = {
    # name: (body, inputs, constants)
    "conv, stride and uneven padding": (
        "y = Conv<pads = [1, 0, 2, 1], strides = [2, 1]>(x, w, b)", IMAGE, weights(w=(6, 4, 3, 3), b=(6,)),
    ),
    "conv without bias, dilated": ("y = Conv<dilations = [2, 2]>(x, w)", IMAGE, weights(w=(6, 4, 3, 3))),
    "conv padded by name": ('y = Conv<auto_pad = "SAME_UPPER">(x, w)', IMAGE, weights(w=(6, 4, 2, 2))),
    "grouped conv": ("y = Conv<group = 2>(x, w, b)", IMAGE, weights(w=(6, 2, 3, 3), b=(6,))),
    "depthwise, clip, pointwise": (
        "d = Conv<group = 4, pads = [1, 1, 1, 1]>(x, w, b) r = Clip(d, zero, six) y = Conv(r, v)", IMAGE,
        {**weights(w=(4, 1, 3, 3), b=(4,), v=(8, 4, 1, 1)), "zero": np.float32(0), "six": np.float32(6)},
    ),
    "two outputs a group": ("y = Conv<group = 4>(x, w, b)", IMAGE, weights(w=(8, 1, 3, 3), b=(8,))),
    "gray image": ("y = Conv(x, w, b)", "float[1, 1, 8, 8] x", weights(w=(8, 1, 3, 3), b=(8,))),
    "sound": ("y = Conv<dilations = [2], pads = [2, 2]>(x, w)", "float[1, 3, 20] x", weights(w=(5, 3, 3))),
    "volume": ("y = Conv(x, w, b)", "float[1, 2, 4, 4, 4] x", weights(w=(3, 2, 2, 2, 2), b=(3,))),
    "Gemm, both ways round": (
        "a = Gemm(x, w, b) r = Relu(a) y = Gemm<transB = 1>(r, v, k)", "float[3, 10] x",
        weights(w=(10, 7), b=(7,), v=(5, 7), k=(5,)),
    ),
    "Gemm with a bias row": ("y = Gemm(x, w, b)", "float[3, 10] x", weights(w=(10, 7), b=(1, 7))),
    "MatMul of a sequence": (
        "a = MatMul(x, w) r = Relu(a) y = MatMul(r, v)", "float[1, 5, 6] x", weights(w=(6, 9), v=(9, 4)),
    ),
    "Gemm and relu in front of a softmax": (
        "a = Gemm(x, w, b) r = Relu(a) c = Gemm(r, v, k) s = Relu(c) y = Softmax(s)", "float[3, 10] x",
        weights(w=(10, 7), b=(7,), v=(7, 5), k=(5,)),
    ),
    "MatMul and clip in front of a tanh": (
        "a = MatMul(x, w) r = Clip(a, low, high) t = Tanh(r) y = MatMul(t, v)", "float[1, 5, 6] x",
        {**weights(w=(6, 9), v=(9, 4)), "low": np.float32(-1), "high": np.float32(2)},
    ),
    "odd contraction": ("y = MatMul(x, w)", "float[4, 7] x", weights(w=(7, 5))),
    "shortcut": (
        f"{CONV} r = Relu(c) d = Conv(r, v) s = Add(r, d) t = Relu(s) y = Conv(t, u)", IMAGE,
        weights(w=(4, 4, 3, 3), b=(4,), v=(4, 4, 1, 1), u=(4, 4, 1, 1)),
    ),
    "concatenation": (
        f"{CONV} d = Conv(x, v) e = Concat<axis = 1>(c, d) y = Conv(e, u)", IMAGE,
        weights(w=(4, 4, 3, 3), b=(4,), v=(3, 4, 1, 1), u=(4, 7, 1, 1)),
    ),
    "pool then relu": (
        f"{CONV} p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c) r = Relu(p) y = Conv(r, v)", IMAGE,
        weights(b=(4,), **C44),
    ),
    "relu then padded pool": (
        f"{CONV} r = Relu(c) p = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r) y = Conv(p, v)", IMAGE,
        weights(b=(4,), **C44),
    ),
    "averages": (
        f"{CONV} a = AveragePool<kernel_shape = [3, 3]>(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, k)",
        IMAGE, weights(b=(4,), k=(4, 3), **C44),
    ),
    "gate": (
        f"{CONV} p = GlobalAveragePool(c) e = Conv(p, v) s = Sigmoid(e) m = Mul(c, s) y = Conv(m, v)", IMAGE,
        weights(b=(4,), **C44),
    ),
    "leaky": (f"{CONV} l = LeakyRelu<alpha = 0.1>(c) y = Conv(l, v)", IMAGE, weights(b=(4,), **C44)),
    "leaky and clipped": (
        f"{CONV} l = LeakyRelu<alpha = 0.1>(c) q = Clip(l, low, high) y = Conv(q, v)", IMAGE,
        {**weights(b=(4,), **C44), "low": np.float32(-0.2), "high": np.float32(1)},
    ),
    "relu and clip in turn": (
        f"{CONV} r = Relu(c) q = Clip(r, low, high) y = Conv(q, v)", IMAGE,
        {**weights(b=(4,), **C44), "low": np.float32(-1), "high": np.float32(2)},
    ),
    "integers moved about": (
        f"""{CONV} a, k = Split<axis = 1>(c, parts) t = Transpose<perm = [0, 1, 3, 2]>(k)
        s = Reshape(t, shape) e = Concat<axis = 1>(s, a) y = Conv(e, v)""", IMAGE,
        {**weights(w=(4, 4, 3, 3), b=(4,), v=(4, 4, 1, 1)), "parts": np.array([1, 3]), "shape": np.array([1, 3, 8, 8])},
    ),
    "enlarged": (
        f'{CONV} u = Resize<mode = "nearest">(c, , s) y = Conv(u, v)', IMAGE,
        {**weights(b=(4,), **C44), "s": np.array([1, 1, 2, 2], np.float32)},
    ),
    "float island": (f"{CONV} t = Tanh(c) m = Mul(t, c) y = Conv(m, v)", IMAGE, weights(b=(4,), **C44)),
    "float tail": (
        f"{CONV} p = GlobalAveragePool(c) f = Flatten(p) g = Gemm(f, k, h) y = Softmax(g)", IMAGE,
        weights(b=(4,), k=(4, 3), h=(3,), **C44),
    ),
    "input read by both": (
        "r = Tanh(x) c = Conv(x, v) d = Conv(r, v) y = Add(c, d)", IMAGE, weights(v=(4, 4, 1, 1)),
    ),
    "one weight for two": ("a = Conv(x, v) r = Relu(a) y = Conv(r, v)", IMAGE, weights(v=(4, 4, 1, 1))),
    "output read again": (
        f"{CONV} y = Relu(c) z = Conv(y, v)", IMAGE, weights(b=(4,), **C44),
    ),
    "output of a pool and what it reads": (
        f"{CONV} y = MaxPool<kernel_shape = [2, 2]>(c)", IMAGE, weights(b=(4,), **C44),
    ),
}  # fmt: skip

OUTPUTS = {"output read again": "y, z", "output of a pool and what it reads": "y, c"}


def build(name):
    body, inputs, constants = CASES[name]
    return by_hand.named(body, inputs, OUTPUTS.get(name, "y"), constants)


def draw_feeds(model, n=4, seed=0):
    rng = np.random.default_rng(seed)
    [port] = model.graph.inputs
    return [{port.name: rng.standard_normal([int(d) for d in port.shape]).astype(np.float32)} for _ in range(n)]


BLOCKS = {
    "conv": ("{y} = Conv<pads = [1, 1, 1, 1]>({x}, w{i}, b{i})", {"w": (4, 4, 3, 3), "b": (4,)}),
    "pointwise": ("{y} = Conv({x}, w{i})", {"w": (4, 4, 1, 1)}),
    "depthwise": ("{y} = Conv<group = 4, pads = [1, 1, 1, 1]>({x}, w{i}, b{i})", {"w": (4, 1, 3, 3), "b": (4,)}),
    "grouped": ("{y} = Conv<group = 2>({x}, w{i})", {"w": (4, 2, 1, 1)}),
    "relu": ("{y} = Relu({x})", {}),
    "leaky": ("{y} = LeakyRelu({x})", {}),
    "tanh": ("{y} = Tanh({x})", {}),
    "sigmoid": ("{y} = Sigmoid({x})", {}),
    "pool": ("{y} = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>({x})", {}),
    "turn": ("{y} = Transpose<perm = [0, 1, 3, 2]>({x})", {}),
    "add": ("{y} = Add({x}, {z})", {}),
    "mul": ("{y} = Mul({x}, {z})", {}),
}


@st.composite
def networks(draw):
    """Up to seven random layers over [1, 4, 6, 6], each reading any earlier values; the last is the output."""
    values, lines, constants = ["x"], [], {}
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for i in range(draw(st.integers(2, 7))):
        body, shapes = BLOCKS[draw(st.sampled_from(sorted(BLOCKS)))]
        recent = st.sampled_from(values[-3:])
        lines.append(body.format(x=draw(recent), z=draw(recent), y=f"v{i}", i=i))
        for kind, shape in shapes.items():
            fan_in = np.sqrt(np.prod(shape[1:])) if kind == "w" else 1.0
            constants[f"{kind}{i}"] = (rng.standard_normal(shape) / fan_in).astype(np.float32)
        values.append(f"v{i}")
    model = by_hand.named(" ".join(lines), "float[1, 4, 6, 6] x", values[-1], constants)
    edit.remove_unused(model)
    return model
