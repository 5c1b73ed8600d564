"""Small quantized models written by hand, so that tests of later stages do not depend on our own quantizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# 1/32 and odd multiples of 1/64: exact in float32, so that the arithmetic below is exact as well.
IN_SCALE, WEIGHT_SCALE, OUT_SCALE = 1 / 32, 1 / 64, 3 / 64


class Graph:
    """Collects nodes and initializers of a quantized graph. signed: activations are s8 instead of u8."""

    def __init__(self, signed: bool) -> None:
        self.kind, self.offset = (np.int8, -128) if signed else (np.uint8, 0)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name, array):
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, kind, inputs, output, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def requantized(self, name, scale, zero_point):
        """QuantizeLinear and DequantizeLinear. zero_point: as for u8."""
        s = self.constant(f"{name}_scale", np.float32(scale))
        z = self.constant(f"{name}_zero_point", self.kind(zero_point + self.offset))
        return self.op("DequantizeLinear", [self.op("QuantizeLinear", [name, s, z], f"{name}_q"), s, z], f"{name}_dq")

    def weight(self, name, array):
        s = self.constant(f"{name}_scale", np.full(len(array), WEIGHT_SCALE, np.float32))
        z = self.constant(f"{name}_zero_point", np.zeros(len(array), np.int8))
        return self.op("DequantizeLinear", [self.constant(f"{name}_q", array), s, z], f"{name}_dq", axis=0)

    def save(self, path, shape, output):
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.initializers,
        )
        opset = [helper.make_opsetid("", 17)]
        onnx.save(onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opset, ir_version=8)), path)


def residual(path: Path, *, signed: bool, channels: int = 16) -> Path:
    """Conv, Relu, Conv, Add with the first activation: fuses to three integer kernels where s8 or u8 is native.

    Output ``y_dq`` of input ``x`` [1, channels, 8, 8].
    """
    rng = np.random.default_rng(0)
    g = Graph(signed)
    data = g.requantized("x", IN_SCALE, 128)
    first = g.op(
        "Conv", [data, g.weight("w1", rng.integers(-60, 61, (channels, channels, 3, 3), np.int8))], "c1", pads=[1] * 4
    )
    data = g.requantized(g.op("Relu", [first], "r1"), OUT_SCALE, 0)
    second = g.op("Conv", [data, g.weight("w2", rng.integers(-60, 61, (channels, channels, 1, 1), np.int8))], "c2")
    other = g.requantized(second, OUT_SCALE, 120)
    g.save(path, [1, channels, 8, 8], g.requantized(g.op("Add", [data, other], "y"), OUT_SCALE, 100))
    return path


def heavy_conv(path: Path, *, signed: bool, channels: int = 64) -> Path:
    """A 1x1 Conv whose adjacent products overflow int16: 255 · 127 · 2 > 32767. Output ``y_dq`` [1, 16, 4, 4]."""
    g = Graph(signed)
    data = g.requantized("x", IN_SCALE, 0)
    sums = g.op("Conv", [data, g.weight("w", heavy_weights(channels))], "y")
    g.save(path, [1, channels, 4, 4], g.requantized(sums, 4.0, 0))
    return path


def heavy_weights(channels: int = 64):
    """Weights of :func:`heavy_conv`, [16, channels, 1, 1] int8."""
    weights = np.full((16, channels, 1, 1), 127, np.int8)
    weights[::2, channels // 2 :] = -64
    return weights


def heavy_answer(x):
    """Compute :func:`heavy_conv` by its definition, in 64-bit integers and exact float arithmetic."""
    quantized = np.clip(np.rint(x / IN_SCALE), 0, 255).astype(np.int64)
    sums = np.einsum("oc,nchw->nohw", heavy_weights(x.shape[1])[:, :, 0, 0].astype(np.int64), quantized)
    real = sums.astype(np.float64) * (IN_SCALE * WEIGHT_SCALE)
    return (np.clip(np.rint(real / 4.0), 0, 255) * 4.0).astype(np.float32)


def float_conv(path: Path, *, channels: int = 32) -> Path:
    """A float Conv with Relu, which x86 runs in the blocked NCHWc layout. Output ``y`` [1, channels, 8, 8]."""
    rng = np.random.default_rng(0)
    g = Graph(False)
    weight = g.constant("w", rng.standard_normal((channels, channels, 3, 3)).astype(np.float32))
    g.save(path, [1, channels, 8, 8], g.op("Relu", [g.op("Conv", ["x", weight], "c", pads=[1] * 4)], "y"))
    return path


def feed(shape, seed=0):
    """Normal numbers as input ``x``, wide enough to reach both ends of the quantized range."""
    return {"x": (np.random.default_rng(seed).standard_normal(shape) * 2).astype(np.float32)}
