"""Transformer blocks by their parts, as exporters write them for old operator sets, and the kernels that run them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from toolchain.graph import run

WIDTH = 16


class Parts:
    """Builds a graph node by node; every method takes and returns names of values."""

    def __init__(self, opset):
        self.opset, self.nodes, self.constants = opset, [], []
        self.rng = np.random.default_rng(0)

    def const(self, array):
        name = f"const{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def num(self, number):
        return self.const(np.float32(number))

    def vector(self, size=WIDTH):
        return self.const(self.rng.uniform(0.5, 1.5, size).astype(np.float32))

    def op(self, kind, *inputs, **attributes):
        name = f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def mean(self, x):
        if self.opset >= 18:
            return self.op("ReduceMean", x, self.const(np.array([-1])), keepdims=1)
        return self.op("ReduceMean", x, axes=[-1], keepdims=1)

    def linear(self, x, rows, columns):
        weight = self.rng.standard_normal((rows, columns)).astype(np.float32) / np.float32(rows**0.5)
        return self.op("Add", self.op("MatMul", x, self.const(weight)), self.vector(columns))

    def square(self, x):
        return self.op("Pow", x, self.num(2))

    def layer_norm(self, x):
        d = self.op("Sub", x, self.mean(x))
        root = self.op("Sqrt", self.op("Add", self.mean(self.square(d)), self.num(1e-5)))
        return self.op("Add", self.op("Mul", self.op("Div", d, root), self.vector()), self.vector())

    def layer_norm_by_reciprocal(self, x):
        d, e = self.op("Sub", x, self.mean(x)), self.op("Sub", x, self.mean(x))
        root = self.op("Sqrt", self.op("Add", self.num(1e-5), self.mean(self.op("Mul", d, d))))
        return self.op("Mul", self.vector(), self.op("Mul", self.op("Reciprocal", root), e))

    def rms_norm(self, x):
        root = self.op("Sqrt", self.op("Add", self.mean(self.square(x)), self.num(1e-6)))
        return self.op("Mul", self.vector(), self.op("Mul", x, self.op("Div", self.num(1), root)))

    def erf(self, x):
        return self.op("Add", self.op("Erf", self.op("Div", x, self.num(2**0.5))), self.num(1))

    def gelu(self, x):
        return self.op("Mul", self.op("Mul", x, self.erf(x)), self.num(0.5))

    def gelu_half_first(self, x):
        return self.op("Mul", self.op("Mul", self.num(0.5), x), self.erf(x))

    def gelu_half_inside(self, x):
        inner = self.op("Erf", self.op("Mul", x, self.num(0.5**0.5)))
        return self.op("Mul", x, self.op("Mul", self.op("Add", self.num(1), inner), self.num(0.5)))

    def gelu_by_tanh(self, x):
        cube = self.op("Mul", self.op("Pow", x, self.num(3)), self.num(0.044715))
        tanh = self.op("Tanh", self.op("Mul", self.op("Add", x, cube), self.num((2 / np.pi) ** 0.5)))
        return self.op("Mul", self.op("Mul", x, self.num(0.5)), self.op("Add", tanh, self.num(1)))

    def silu(self, x):
        return self.op("Mul", x, self.op("Sigmoid", x))

    def hard_swish(self, x):
        clipped = self.op("Clip", self.op("Add", x, self.num(3)), self.num(0), self.num(6))
        return self.op("Div", self.op("Mul", x, clipped), self.num(6))

    def attention(self, x, heads=2):
        sizes = self.const(np.array([0, 0, heads, WIDTH // heads]))
        q, k, v = (self.op("Reshape", self.linear(x, WIDTH, WIDTH), sizes) for _ in range(3))
        q, v = (self.op("Transpose", value, perm=[0, 2, 1, 3]) for value in (q, v))
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 2, 3, 1]))
        shares = self.op("Softmax", self.op("Div", scores, self.num((WIDTH / heads) ** 0.5)), axis=3)
        mixed = self.op("Transpose", self.op("MatMul", shares, v), perm=[0, 2, 1, 3])
        return self.linear(self.op("Reshape", mixed, self.const(np.array([0, 0, WIDTH]))), WIDTH, WIDTH)

    def block(self, x, norm, activation):
        """Normalization before attention and before a feed-forward network, each with a residual sum."""
        x = self.op("Add", x, self.attention(norm(x)))
        return self.op("Add", x, self.linear(activation(self.linear(norm(x), WIDTH, 32)), 32, WIDTH))

    def block_normalized_last(self, x, norm, activation):
        """The original transformer: normalization after each residual sum."""
        x = norm(self.op("Add", self.attention(x), x))
        return norm(self.op("Add", self.linear(activation(self.linear(x, WIDTH, 32)), 32, WIDTH), x))

    def model(self, result, shape):
        """The finished model, whose input is ``x``."""
        self.nodes[-1].output[0] = "y"
        assert result == self.nodes[-1].name
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "decomposed",
            [value("x", TensorProto.FLOAT, shape)],
            [value("y", TensorProto.FLOAT, shape)],
            self.constants,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8 if self.opset <= 17 else 10)


def kernels(model):
    """Operators of the graph that onnxruntime runs: a path or an ``onnx_ir`` model, after its own optimizations."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimized.onnx")
        run.session(model, optimized=path)
        return sorted(node.op_type for node in onnx.load(path).graph.node)
