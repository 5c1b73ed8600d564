"""Every operator against onnxruntime, and the graph against calculus done by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import model, plain, weights

from toolchain.core.errors import ModelError
from toolchain.graph import check, query, run
from toolchain.ops.table import TABLE

torch = pytest.importorskip("torch")

from toolchain.training.engine.torch_graph import TorchGraph
from toolchain.training.engine.torch_ops import table

IMAGE = "float[2,4,7,9] x"
ROWS = "float[2,3,8] x"
INTS = {"i": np.array([2, 0, -1])}


def ints(*values):
    return np.array(values, np.int64)


CASES = {
    # products
    "Conv": ("y = Conv <pads = [1, 1, 1, 1]> (x, w, b)", IMAGE, weights(w=(6, 4, 3, 3), b=6)),
    "Conv strided": ("y = Conv <strides = [2, 3], dilations = [2, 1]> (x, w)", IMAGE, weights(w=(6, 4, 3, 3))),
    "Conv uneven": ("y = Conv <pads = [0, 1, 2, 3]> (x, w)", IMAGE, weights(w=(6, 4, 3, 3))),
    "Conv upper": ('y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)', IMAGE, weights(w=(6, 4, 2, 4))),
    "Conv lower": ('y = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w)', IMAGE, weights(w=(6, 4, 2, 4))),
    "Conv valid": ('y = Conv <auto_pad = "VALID"> (x, w)', IMAGE, weights(w=(6, 4, 2, 4))),
    "Conv depthwise": ("y = Conv <group = 4> (x, w)", IMAGE, weights(w=(8, 1, 3, 3))),
    "Conv 1-D": ("y = Conv <pads = [2, 1]> (x, w, b)", ROWS, weights(w=(5, 3, 4), b=5)),
    "Conv 3-D": ("y = Conv (x, w)", "float[1,2,4,5,6] x", weights(w=(3, 2, 2, 3, 1))),
    "ConvTranspose": ("y = ConvTranspose <strides = [2, 2]> (x, w, b)", IMAGE, weights(w=(4, 3, 2, 3), b=3)),
    "ConvTranspose pads": (
        "y = ConvTranspose <strides = [2, 2], pads = [1, 0, 1, 2], output_padding = [1, 0], group = 2> (x, w)",
        IMAGE, weights(w=(4, 3, 3, 3)),
    ),
    "ConvTranspose same": (
        'y = ConvTranspose <strides = [2, 2], auto_pad = "SAME_UPPER"> (x, w)', IMAGE, weights(w=(4, 3, 3, 3)),
    ),
    "ConvTranspose 1-D": ("y = ConvTranspose <dilations = [2]> (x, w)", ROWS, weights(w=(3, 2, 3))),
    "Gemm": ("y = Gemm <transB = 1> (x, w, b)", "float[3,4] x", weights(w=(5, 4), b=5)),
    "Gemm scaled": (
        "y = Gemm <transA = 1, alpha = 0.5, beta = 2.0> (x, w, b)", "float[4,3] x", weights(w=(4, 5), b=(1, 5))),
    "MatMul": ("y = MatMul (x, w)", ROWS, weights(w=(8, 5))),
    # normalization
    "BatchNormalization": (
        "y = BatchNormalization <epsilon = 0.01> (x, s, b, m, v)", IMAGE,
        {**weights(s=4, b=4, m=4), "v": np.array([0.5, 1, 2, 3], np.float32)},
    ),
    "LayerNormalization": ("y = LayerNormalization (x, s, b)", ROWS, weights(s=8, b=8)),
    "LayerNormalization 2": ("y = LayerNormalization <axis = 1> (x, s)", ROWS, weights(s=(3, 8))),
    "InstanceNormalization": ("y = InstanceNormalization (x, s, b)", IMAGE, weights(s=4, b=4)),
    # pointwise
    "Clip": ("y = Clip (x, low, high)", ROWS, {"low": np.float32(-0.3), "high": np.float32(0.6)}),
    "Clip below": ("y = Clip (x, low)", ROWS, {"low": np.float32(-0.3)}),
    "PRelu": ("y = PRelu (x, s)", IMAGE, weights(s=(4, 1, 1))),
    "LeakyRelu": ("y = LeakyRelu <alpha = 0.3> (x)", ROWS, {}),
    "Elu": ("y = Elu <alpha = 0.3> (x)", ROWS, {}),
    "HardSigmoid": ("y = HardSigmoid <alpha = 0.3, beta = 0.4> (x)", ROWS, {}),
    "Softmax": ("y = Softmax <axis = 1> (x)", ROWS, {}),
    "LogSoftmax": ("y = LogSoftmax (x)", ROWS, {}),
    "Pow": ("y = Pow (x, p)", ROWS, {"p": np.float32(2)}),
    "Div of integers": ("i = Cast <to = 7> (x) j = Div (i, d) y = Cast <to = 1> (j)", ROWS, {"d": ints(-2)}),
    "Where": ("c = Greater (x, z) y = Where (c, x, z)", ROWS, {"z": np.float32(0.1)}),
    "Equal": ("a = Relu (x) c = Equal (a, x) y = Cast <to = 1> (c)", ROWS, {}),
    "Less, And, Or, Not": (
        "a = Less (x, z) b = Not (a) c = Less (z, x) d = And (b, c) e = Or (a, d) y = Cast <to = 1> (e)",
        ROWS, {"z": np.float32(0.1)},
    ),
    "Max": ("y = Max (x, z, w)", ROWS, weights(z=8, w=(3, 1))),
    "Min": ("y = Min (x, z)", ROWS, weights(z=8)),
    **{f"{name}": (f"a = {name} (x) y = Identity (a)", ROWS, {}) for name in (
        "Relu", "Sigmoid", "Tanh", "HardSwish", "Erf", "Softplus", "Exp", "Abs", "Neg", "Reciprocal")},
    "Sqrt, Log": ("a = Abs (x) b = Sqrt (a) y = Log (b)", ROWS, {}),
    **{name: (f"y = {name} (x, z)", ROWS, weights(z=(3, 1))) for name in ("Add", "Sub", "Mul", "Div")},
    # pools and reductions
    "MaxPool": ("y = MaxPool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 1, 1]> (x)", IMAGE, {}),
    "MaxPool ceil": ("y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)", IMAGE, {}),
    "MaxPool 1-D": ("y = MaxPool <kernel_shape = [2], strides = [2]> (x)", ROWS, {}),
    "MaxPool same": ('y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"> (x)', IMAGE, {}),
    "AveragePool": ("y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)", IMAGE, {}),
    "AveragePool counted": (
        "y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (x)", IMAGE, {}),
    "AveragePool plain": ("y = AveragePool <kernel_shape = [3, 2], strides = [3, 2]> (x)", IMAGE, {}),
    "GlobalAveragePool": ("y = GlobalAveragePool (x)", IMAGE, {}),
    "ReduceMean": ("y = ReduceMean <keepdims = 0, axes = [-1, 1]> (x)", ROWS, {}),
    "ReduceMean of all": ("y = ReduceMean (x)", ROWS, {}),
    "ReduceSum": ("y = ReduceSum (x, a)", ROWS, {"a": ints(1)}),
    "ReduceSum of none": ("y = ReduceSum <noop_with_empty_axes = 1> (x)", ROWS, {}),
    "ReduceMax": ("y = ReduceMax <axes = [2]> (x)", ROWS, {}),
    "ReduceMin": ("y = ReduceMin <axes = [2]> (x)", ROWS, {}),
    "ReduceL2": ("y = ReduceL2 <axes = [1]> (x)", ROWS, {}),
    # shape and layout
    "Reshape": ("y = Reshape (x, s)", ROWS, {"s": ints(0, -1, 4)}),
    "Shape": ("s = Shape <start = 1> (x) y = Cast <to = 1> (s)", ROWS, {}),
    "Shape, Gather, Concat": (
        "s = Shape (x) n = Gather (s, zero) m = Concat <axis = 0> (n, rest) y = Reshape (x, m)",
        ROWS, {"zero": ints(0), "rest": ints(-1)},
    ),
    "Flatten": ("y = Flatten <axis = 2> (x)", ROWS, {}),
    "Transpose": ("y = Transpose <perm = [2, 0, 1]> (x)", ROWS, {}),
    "Transpose all": ("y = Transpose (x)", ROWS, {}),
    "Squeeze": ("y = Squeeze (x, a)", "float[2,1,3,1] x", {"a": ints(-1)}),
    "Squeeze all": ("y = Squeeze (x)", "float[2,1,3,1] x", {}),
    "Unsqueeze": ("y = Unsqueeze (x, a)", ROWS, {"a": ints(0, -1)}),
    "Expand": ("y = Expand (x, s)", "float[3,1] x", {"s": ints(2, 1, 4)}),
    "DepthToSpace": ("y = DepthToSpace <blocksize = 2> (x)", "float[2,8,3,4] x", {}),
    "DepthToSpace CRD": ('y = DepthToSpace <blocksize = 2, mode = "CRD"> (x)', "float[2,8,3,4] x", {}),
    "Concat": ("a = Relu (x) y = Concat <axis = 1> (x, a)", ROWS, {}),
    "Split": ("a, b = Split <axis = 2> (x) y = Sub (a, b)", ROWS, {}),
    "Split by sizes": ("a, b = Split <axis = 2> (x, s) y = Concat <axis = 2> (b, a)", ROWS, {"s": ints(3, 5)}),
    "Slice": (
        "y = Slice (x, b, e, a, s)", ROWS, {"b": ints(1, -1), "e": ints(2**40, -9), "a": ints(1, 2), "s": ints(1, -3)}),
    "Slice plain": ("y = Slice (x, b, e)", ROWS, {"b": ints(0, 1), "e": ints(1, -1)}),
    "Gather": ("y = Gather <axis = 1> (x, i)", ROWS, {"i": np.array([[2, 0], [-1, 1]])}),
    "Pad": ("y = Pad (x, p, v)", ROWS, {"p": ints(0, 1, 2, 0, 0, 3), "v": np.float32(1.5)}),
    "Pad crops": ("y = Pad (x, p)", ROWS, {"p": ints(0, 0, -2, 0, 1, 0)}),
    **{f"Pad {mode}": (f'y = Pad <mode = "{mode}"> (x, p)', IMAGE, {"p": ints(0, 0, 2, 0, 0, 0, 1, 3)})
       for mode in ("reflect", "edge")},
    **{
        f"Resize {mode} {where} {by}": (
            f'y = Resize <mode = "{mode}", coordinate_transformation_mode = "{where}"> (x, , {by})', IMAGE,
            {"s": np.array([1, 1, 2, 1.5], np.float32)} if by == "s" else {"n": ints(2, 4, 11, 5)},
        )
        for mode in ("nearest", "linear")
        for where in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
        for by in ("s", ", n")
    },
    **{
        f"Resize {rounding}": (
            f'y = Resize <nearest_mode = "{rounding}", coordinate_transformation_mode = "asymmetric"> (x, , s)',
            IMAGE, {"s": np.array([1, 1, 2, 0.5], np.float32)},
        )
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    },
}  # fmt: skip


def built(name):
    body, inputs, constants = CASES[name]
    return model(body, inputs, "float[] y", constants)


@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_what_onnxruntime_computes(name):
    source = built(name)
    shape = source.graph.inputs[0].shape.numpy()
    feed = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    expected = plain(source, feed)["y"]
    with torch.no_grad():
        got = TorchGraph(source)({"x": torch.from_numpy(feed["x"])}, ["y"])["y"].numpy()
    assert got.dtype == expected.dtype
    assert run.relative_error(expected, got) < 1e-5


def test_every_operator_of_the_table_has_a_case():
    tested = {query.op(node) for name in CASES for node in built(name).graph}
    newer = {"Gelu"}  # of operator set 20: below
    assert set(table()) - tested == newer


def test_gelu():
    source = model("y = Gelu (x)", ROWS, "float[] y", opset=20, ir_version=9)
    x = np.linspace(-4, 4, 48, dtype=np.float32).reshape(2, 3, 8)
    got = TorchGraph(source)({"x": torch.from_numpy(x)}, ["y"])["y"].numpy()
    assert run.relative_error(plain(source, {"x": x})["y"], got) < 1e-5


def test_operators_that_pruning_supports_and_training_does_not():
    """Operators the op table knows that cannot be trained through: a change here is one to tell users."""
    assert sorted(set(TABLE) - set(table())) == [
        "ArgMax", "Ceil", "ConstantOfShape", "Cos", "CumSum", "DequantizeLinear", "Floor", "GRU", "GatherElements",
        "GatherND", "GlobalMaxPool", "GreaterOrEqual", "GroupNormalization", "IsNaN", "LRN", "LSTM", "LessOrEqual",
        "Mish", "Mod", "QuantizeLinear", "RMSNormalization", "Range", "ReduceL1", "ReduceProd", "ReduceSumSquare",
        "Round", "ScatterElements", "ScatterND", "Sign", "Sin", "Size", "SpaceToDepth", "Tile", "TopK", "Trilu",
    ]  # fmt: skip


NET = "h = Gemm <transB = 1> (x, w, b) r = Relu (h) y = Gemm <transB = 1> (r, v)"


def net():
    return model(NET, "float[n,4] x", "float[n,2] y", weights(w=(3, 4), b=3, v=(2, 3)))


def test_tensors_are_computed_from_any_others_and_nothing_else_is_run():
    graph = TorchGraph(net())
    r = torch.tensor([[1.0, 2.0, 3.0]])
    got = graph({"r": r}, ["y"])["y"]
    v = graph.parameters["v"].detach()
    assert torch.allclose(got, r @ v.T)
    with pytest.raises(ModelError, match="depends on 'x', which is not given"):
        graph({}, ["y"])


def test_inner_tensors_are_returned_with_the_outputs():
    found = TorchGraph(net())({"x": torch.ones(2, 4)}, ["y", "h", "x"])
    assert list(found) == ["y", "h", "x"]
    assert found["h"].shape == (2, 3)


def test_readers_of_a_tensor_get_its_transform():
    graph = TorchGraph(net())
    got = graph({"x": torch.ones(1, 4)}, ["r", "y"], {"r": torch.zeros_like, "v": lambda v: v + 1})
    assert got["y"].abs().sum() == 0
    assert got["r"].abs().sum() == 0


def test_gradients_are_those_of_calculus():
    graph = TorchGraph(net())
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    out = graph({"x": x}, ["y", "r"])
    out["y"].sum().backward()
    assert torch.allclose(graph.parameters["v"].grad, out["r"].detach().sum(0).expand(2, 3), atol=1e-5)


def test_trained_weights_are_written_back_into_a_copy():
    source = net()
    graph = TorchGraph(source)
    with torch.no_grad():
        graph.parameters["v"].zero_()
    written = graph.write_back()
    check.check(written)
    x = np.ones((1, 4), np.float32)
    assert np.abs(plain(written, {"x": x})["y"]).max() == 0
    assert np.abs(plain(source, {"x": x})["y"]).max() > 0
    assert isinstance(written, ir.Model)


def test_constants_that_are_no_weights_are_not_trained():
    source = model(
        "a = Mul (x, two) y = Clip (a, low)", ROWS, "float[] y", {"two": np.float32(2), "low": np.float32(0)}
    )
    assert TorchGraph(source).parameters == {}


def test_an_operator_that_cannot_be_trained_through_is_named():
    source = model("y = CumSum (x, a)", ROWS, "float[] y", {"a": ints(0)})
    with pytest.raises(ModelError, match="the operator CumSum cannot be trained through; leave training out"):
        TorchGraph(source)


def test_an_interpolation_that_cannot_be_trained_through_is_named():
    source = model(
        'y = Resize <mode = "cubic"> (x, , s)', IMAGE, "float[] y", {"s": np.array([1, 1, 2, 2], np.float32)}
    )
    with pytest.raises(ModelError, match="this kind of interpolation cannot be trained through"):
        TorchGraph(source)({"x": torch.zeros(2, 4, 7, 9)}, ["y"])


def test_an_old_operator_set_is_refused():
    source = model("y = Softmax (x)", ROWS, "float[] y", opset=11, ir_version=6)
    with pytest.raises(ModelError, match="operator set 11"):
        TorchGraph(source)
