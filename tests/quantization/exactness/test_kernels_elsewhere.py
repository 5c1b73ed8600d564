"""The int8 kernels on every emulated processor: results proven equal are equal, others can differ."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
import quantize_by_hand as by_hand
from onnx import TensorProto, helper, numpy_helper

from toolchain.benchmark import emulator
from toolchain.graph import io, run
from toolchain.quantization.exactness.certificate import certify
from toolchain.quantization.exactness.tie_margins import nudge_clear, product_margin
from toolchain.quantization.qdq.fusion_audit import audit, optimized_graph
from toolchain.quantization.qdq.writer import apply_quantization
from toolchain.quantization.ranges import Affine

pytestmark = pytest.mark.slow
REAL = emulator.folder()  # read now: a test's cache is another
ARM = ["cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76", "cortex-a710", "max"]
CPUS = [
    pytest.param(cpu, marks=pytest.mark.skipif(bool(why := emulator.unavailable(cpu)), reason=str(why)))
    for cpu in (*ARM, "x86-avx2")
]

# name: (nodes, input shape, output rank, weight shapes). Channel counts take the symmetric, the packed, the depthwise
# and the general kernels of either architecture, with and without odd ends.
CASES = {
    "dense": ("y = Conv<pads = [1, 1, 1, 1]>(x, w, b)", (1, 64, 9, 9), 4, {"w": (32, 64, 3, 3), "b": (32,)}),
    "odd": ("y = Conv<strides = [2, 2]>(x, w, b)", (1, 3, 15, 15), 4, {"w": (17, 3, 3, 3), "b": (17,)}),
    "pointwise": ("y = Conv(x, w, b)", (1, 33, 9, 9), 4, {"w": (24, 33, 1, 1), "b": (24,)}),
    "grouped": ("y = Conv<group = 4>(x, w)", (1, 20, 9, 9), 4, {"w": (12, 5, 3, 3)}),
    "depth3": ("y = Conv<group = 32, pads = [1, 1, 1, 1]>(x, w)", (1, 32, 9, 9), 4, {"w": (32, 1, 3, 3)}),
    "depth5": ("y = Conv<group = 32, pads = [2, 2, 2, 2]>(x, w)", (1, 32, 9, 9), 4, {"w": (32, 1, 5, 5)}),
    "depth7": ("y = Conv<group = 16>(x, w)", (1, 16, 9, 9), 4, {"w": (16, 1, 7, 7)}),
    "depthodd": ("y = Conv<group = 13>(x, w)", (1, 13, 9, 9), 4, {"w": (13, 1, 3, 3)}),
    "sound": ("y = Conv<pads = [2, 2]>(x, w)", (1, 5, 40), 3, {"w": (7, 5, 5)}),
    "volume": ("y = Conv(x, w)", (1, 3, 6, 6, 6), 5, {"w": (5, 3, 3, 3, 3)}),
    "gemm": ("y = Gemm(x, w, b)", (7, 129), 2, {"w": (129, 33), "b": (33,)}),
    "gemv": ("g = Gemm(x, w, b) y = Gemm(g, v)", (1, 130), 2, {"w": (130, 64), "b": (64,), "v": (64, 10)}),
    "matmul": ("y = MatMul(x, w)", (1, 5, 77), 3, {"w": (77, 20)}),
    "glue": (
        """c = Conv(x, w) a = AveragePool<kernel_shape = [3, 3]>(c) l = LeakyRelu<alpha = 0.3>(a)
           t = Conv(l, w) s = Add(l, t) n = Resize<mode = "nearest">(s, e, s2) m = MaxPool<kernel_shape = [2, 2]>(n)
           k = Concat<axis = 1>(m, m) j = Conv(k, v) g = GlobalAveragePool(j) y = Conv(g, w)""",
        (1, 8, 15, 15), 4, {"w": (8, 8, 1, 1), "v": (8, 16, 1, 1)},
    ),
}  # fmt: skip


def extreme(rng, shape, sign):
    """Mostly weights at the end of their range: of one sign, which saturates first, or of both."""
    size = np.where(rng.random(shape) < 0.7, 1.0, rng.random(shape))
    return (size * (sign or np.where(rng.random(shape) < 0.5, 1, -1))).astype(np.float32)


def renamed(text, prefix, names):
    """Nodes of a case with all names in `names` made unique to it."""
    words = re.split(r"(\w+)", text)
    return "".join(f"{prefix}_{word}" if word in names else word for word in words)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """All cases with weights of one sign, of the other and of both, side by side in one model, in either spelling."""
    rng = np.random.default_rng(0)
    bodies, inputs, outputs, constants, feed = [], [], [], {}, {}
    for sign in (1, -1, 0):
        for case, (text, shape, rank, shapes) in CASES.items():
            prefix = case + {1: "p", -1: "n", 0: "b"}[sign]
            names = {*"abcdefghijklmnopqrstuvwxyz", "s2"}
            bodies.append(renamed(text, prefix, names))
            inputs.append(f"float[{','.join(map(str, shape))}] {prefix}_x")
            outputs.append(f"float[{','.join(f'{prefix}{i}' for i in range(rank))}] {prefix}_y")
            constants |= {f"{prefix}_{name}": extreme(rng, of, sign) for name, of in shapes.items()}
            if case == "glue":
                constants |= {f"{prefix}_e": np.zeros(0, np.float32)}
                constants |= {f"{prefix}_s2": np.array([1, 1, 2, 2], np.float32)}
            x = np.where(rng.random(shape) < 0.6, 1.0, rng.random(shape)) * rng.choice([1, 1, 1, 1, -0.3], shape)
            feed[f"{prefix}_x"] = x.astype(np.float32)
    model = by_hand.named(" ".join(bodies), ", ".join(inputs), ", ".join(outputs), constants)
    plan = by_hand.planned(model, [feed])
    folder = tmp_path_factory.mktemp("zoo")
    for encoding in ("u8", "s8"):
        io.save_in_place(apply_quantization(model, plan, encoding), folder / f"{encoding}.onnx")
    assert audit(optimized_graph(folder / "u8.onnx"), plan.int8_nodes()).clean
    return model, plan, folder, feed


def here(path, feed):
    engine = run.session(path, threads=1)
    return dict(zip([output.name for output in engine.get_outputs()], engine.run(None, feed), strict=True))


@pytest.mark.parametrize("cpu", CPUS)
def test_what_is_proven_is_the_same(cpu, zoo, monkeypatch):
    model, plan, folder, feed = zoo
    monkeypatch.setenv("TOOLCHAIN_EMULATOR", str(REAL))
    assert [verdict for verdict in certify(model, plan) if verdict.fault] == []
    expected = here(folder / "u8.onnx", feed)
    for encoding in ("u8",) if cpu == "x86-avx2" else ("u8", "s8"):
        options = {"session.qdqisint8allowed": "1"} if encoding == "s8" else {}
        (found,) = emulator.run(cpu, folder / f"{encoding}.onnx", [feed], options=options)
        differing = [name for name, want in expected.items() if found[name].tobytes() != want.tobytes()]
        assert differing == []


def products(path, grids, *, signed):
    """One QLinearMul for each triple of grids, over all pairs of operands."""
    kind, shift, element = (np.int8, 128, TensorProto.INT8) if signed else (np.uint8, 0, TensorProto.UINT8)
    nodes, constants, outputs = [], [], []
    for i, triple in enumerate(grids):
        names = []
        for side, grid in zip("abc", triple, strict=True):
            names += [*(side if side != "c" else ""), f"{side}s{i}", f"{side}z{i}"]
            constants.append(numpy_helper.from_array(np.float32(grid.scale), f"{side}s{i}"))
            constants.append(numpy_helper.from_array(np.array(grid.zero_point - shift, kind), f"{side}z{i}"))
        nodes.append(helper.make_node("QLinearMul", names, [f"y{i}"], domain="com.microsoft"))
        outputs.append(helper.make_tensor_value_info(f"y{i}", element, [65536]))
    inputs = [helper.make_tensor_value_info(name, element, [65536]) for name in "ab"]
    graph = helper.make_graph(nodes, "products", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    operands = (np.arange(256) - shift).astype(kind)
    return {"a": np.repeat(operands, 256), "b": np.tile(operands, 256)}, shift


@pytest.mark.parametrize("cpu", [param for param in CPUS if param.values[0] in ("cortex-a53", "max")])
def test_products_in_doubt_differ_and_cleared_ones_do_not(cpu, tmp_path, monkeypatch):
    """All 65536 pairs of operands of 60 triples of grids, as u8 here and as s8 there."""
    monkeypatch.setenv("TOOLCHAIN_EMULATOR", str(REAL))
    rng = np.random.default_rng(1)
    plain, cleared = [], []
    for _ in range(60):
        a, b = (Affine(float(np.float32(rng.uniform(0.005, 0.1))), int(rng.integers(256))) for _ in range(2))
        out = Affine(float(np.float32(a.scale * b.scale * rng.uniform(60, 255))), int(rng.integers(256)))
        plain.append((a, b, out))
        cleared.append((a, b, nudge_clear(lambda grid, a=a, b=b: product_margin(a, b, grid), out)))
    feed, _ = products(tmp_path / "u8.onnx", plain + cleared, signed=False)
    expected = here(tmp_path / "u8.onnx", feed)
    feed, shift = products(tmp_path / "s8.onnx", plain + cleared, signed=True)
    (found,) = emulator.run(cpu, tmp_path / "s8.onnx", [feed])
    same = [np.array_equal(expected[f"y{i}"], found[f"y{i}"].astype(int) + shift) for i in range(120)]
    in_doubt = [not product_margin(*triple).clear for triple in plain]
    assert all(same[60:])
    assert all(equal or doubt for equal, doubt in zip(same, in_doubt, strict=False))
    assert not all(same[:60]), "in doubt without need"
