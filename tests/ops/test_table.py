"""The operator table: one line for each operator, and the behaviour for operators and nodes without a row.

To add an operator: one row in ``toolchain/ops/table.py``, one line here.
"""

from __future__ import annotations

import ast
import importlib
import inspect

import onnx
import onnx_ir as ir
import pytest

from toolchain.ops import table
from toolchain.ops.cells import (
    Absorbed,
    Contracted,
    Dynamic,
    Elementwise,
    Expanded,
    Float,
    GroupedNorm,
    Joined,
    Kernel,
    OwnScale,
    Parted,
    PerChannel,
    Permuted,
    Pinned,
    Recurrent,
    Reduced,
    Reshaped,
    SameScale,
    Selected,
    Shuffled,
    SpatialOnly,
    Weighted,
)
from toolchain.ops.table import BARRIER, TABLE, macs, rule
from toolchain.optimization.passes import optimize
from toolchain.quantization.selection import select

IMAGE = (1, 4, 6, 6)  # 144 elements
SMALL = (1, 4, 3, 3)  # 36

# operator, channels, int8, shapes of the inputs, shape of the output, multiply-accumulates worked out by hand
LINES = [
    ("Conv", Weighted, Kernel, [IMAGE, (8, 4, 3, 3)], (1, 8, 4, 4), 128 * 4 * 9),
    ("ConvTranspose", Weighted, Float, [SMALL, (4, 5, 2, 2)], (1, 5, 4, 4), 36 * 5 * 4),
    ("Gemm", Contracted, Kernel, [(2, 6), (6, 5), (5,)], (2, 5), 10 * 6),
    ("MatMul", Contracted, Kernel, [(2, 7, 6), (6, 5)], (2, 7, 5), 70 * 6),
    ("LSTM", Recurrent, Dynamic, [(5, 2, 3), (1, 16, 3), (1, 16, 4)], (5, 1, 2, 4), 10 * 16 * 7),
    ("GRU", Recurrent, Float, [(5, 2, 3), (1, 12, 3), (1, 12, 4)], (5, 1, 2, 4), 10 * 12 * 7),
    ("BatchNormalization", PerChannel, Float, [IMAGE, (4,), (4,), (4,), (4,)], IMAGE, 2 * 144),
    ("LayerNormalization", Pinned, Float, [(2, 6), (6,), (6,)], (2, 6), 8 * 12),
    ("InstanceNormalization", GroupedNorm, Float, [IMAGE, (4,), (4,)], IMAGE, 8 * 144),
    ("GroupNormalization", GroupedNorm, Float, [IMAGE, (4,), (4,)], IMAGE, 8 * 144),
    ("RMSNormalization", Pinned, Float, [(2, 6), (6,)], (2, 6), 6 * 12),
    ("LRN", Pinned, Float, [IMAGE], IMAGE, 8 * 144),
    ("Relu", Elementwise, Absorbed, [IMAGE], IMAGE, 144),
    ("Clip", Elementwise, Absorbed, [IMAGE, (), ()], IMAGE, 144),
    ("LeakyRelu", Elementwise, OwnScale, [IMAGE], IMAGE, 144),
    ("PRelu", Elementwise, Float, [IMAGE, (4, 1, 1)], IMAGE, 144),
    ("Sigmoid", Elementwise, OwnScale, [IMAGE], IMAGE, 4 * 144),
    ("HardSigmoid", Elementwise, Float, [IMAGE], IMAGE, 2 * 144),
    ("HardSwish", Elementwise, Float, [IMAGE], IMAGE, 3 * 144),
    ("Tanh", Elementwise, Float, [IMAGE], IMAGE, 4 * 144),
    ("Gelu", Elementwise, Float, [IMAGE], IMAGE, 8 * 144),
    ("Erf", Elementwise, Float, [IMAGE], IMAGE, 6 * 144),
    ("Elu", Elementwise, Float, [IMAGE], IMAGE, 4 * 144),
    ("Softplus", Elementwise, Float, [IMAGE], IMAGE, 6 * 144),
    ("Mish", Elementwise, Float, [IMAGE], IMAGE, 8 * 144),
    ("Softmax", Pinned, Float, [(2, 6)], (2, 6), 5 * 12),
    ("LogSoftmax", Pinned, Float, [(2, 6)], (2, 6), 5 * 12),
    ("Add", Elementwise, OwnScale, [IMAGE, (1,)], IMAGE, 144),
    ("Mul", Elementwise, OwnScale, [(4, 1, 1), IMAGE], IMAGE, 144),
    ("Sub", Elementwise, Float, [IMAGE, IMAGE], IMAGE, 144),
    ("Div", Elementwise, Float, [IMAGE, IMAGE], IMAGE, 144),
    ("Pow", Elementwise, Float, [IMAGE, ()], IMAGE, 4 * 144),
    ("Sqrt", Elementwise, Float, [IMAGE], IMAGE, 2 * 144),
    ("Reciprocal", Elementwise, Float, [IMAGE], IMAGE, 144),
    ("Exp", Elementwise, Float, [IMAGE], IMAGE, 4 * 144),
    ("Log", Elementwise, Float, [IMAGE], IMAGE, 4 * 144),
    ("Sin", Elementwise, Float, [IMAGE], IMAGE, 4 * 144),
    ("Cos", Elementwise, Float, [IMAGE], IMAGE, 4 * 144),
    ("Neg", Elementwise, Float, [IMAGE], IMAGE, 144),
    ("Abs", Elementwise, Float, [IMAGE], IMAGE, 144),
    ("Sign", Elementwise, Float, [IMAGE], IMAGE, 144),
    ("Floor", Elementwise, Float, [IMAGE], IMAGE, 144),
    ("Ceil", Elementwise, Float, [IMAGE], IMAGE, 144),
    ("Round", Elementwise, Float, [IMAGE], IMAGE, 144),
    ("Min", Elementwise, Float, [IMAGE, IMAGE], IMAGE, 144),
    ("Max", Elementwise, Float, [IMAGE, IMAGE], IMAGE, 144),
    ("Mod", Elementwise, Float, [IMAGE, IMAGE], IMAGE, 144),
    ("Where", Elementwise, Float, [IMAGE, IMAGE, IMAGE], IMAGE, 144),
    ("Equal", Elementwise, Float, [IMAGE, IMAGE], IMAGE, 144),
    ("Greater", Elementwise, Float, [IMAGE, IMAGE], IMAGE, 144),
    ("GreaterOrEqual", Elementwise, Float, [IMAGE, IMAGE], IMAGE, 144),
    ("Less", Elementwise, Float, [IMAGE, IMAGE], IMAGE, 144),
    ("LessOrEqual", Elementwise, Float, [IMAGE, IMAGE], IMAGE, 144),
    ("Not", Elementwise, Float, [IMAGE], IMAGE, 144),
    ("And", Elementwise, Float, [IMAGE, IMAGE], IMAGE, 144),
    ("Or", Elementwise, Float, [IMAGE, IMAGE], IMAGE, 144),
    ("IsNaN", Elementwise, Float, [IMAGE], IMAGE, 144),
    ("Concat", Joined, OwnScale, [(2, 3), (2, 4)], (2, 7), 0),
    ("Split", Parted, SameScale, [(2, 6)], (2, 3), 0),
    ("Slice", Parted, SameScale, [(2, 6), (1,), (1,)], (2, 3), 0),
    ("Pad", Parted, Float, [SMALL, (8,)], (1, 4, 5, 5), 0),
    ("Reshape", Reshaped, SameScale, [IMAGE, (2,)], (4, 36), 0),
    ("Flatten", Reshaped, SameScale, [IMAGE], (1, 144), 0),
    ("Transpose", Permuted, SameScale, [(2, 6)], (6, 2), 0),
    ("Squeeze", Permuted, SameScale, [(1, 6), (1,)], (6,), 0),
    ("Unsqueeze", Permuted, SameScale, [(6,), (1,)], (1, 6), 0),
    ("Expand", Expanded, SameScale, [(1, 6), (2,)], (5, 6), 0),
    ("Tile", Expanded, Float, [(2, 3), (2,)], (2, 6), 0),
    ("ConstantOfShape", Expanded, Float, [(2,)], (2, 6), 0),
    ("Gather", Selected, SameScale, [(9, 6), (2,)], (2, 6), 0),
    ("GatherElements", Pinned, Float, [(9, 6), (2, 6)], (2, 6), 0),
    ("GatherND", Pinned, Float, [(9, 6), (2, 1)], (2, 6), 0),
    ("ScatterElements", Pinned, Float, [(9, 6), (2, 6), (2, 6)], (9, 6), 0),
    ("ScatterND", Pinned, Float, [(9, 6), (2, 1), (2, 6)], (9, 6), 0),
    ("DepthToSpace", Shuffled, Float, [(1, 4, 3, 3)], (1, 1, 6, 6), 0),
    ("SpaceToDepth", Shuffled, Float, [(1, 1, 6, 6)], (1, 4, 3, 3), 0),
    ("Trilu", Pinned, Float, [(6, 6)], (6, 6), 0),
    ("Identity", Elementwise, Float, [IMAGE], IMAGE, 0),
    ("Cast", Elementwise, Float, [IMAGE], IMAGE, 0),
    ("Shape", Pinned, Float, [IMAGE], (4,), 0),
    ("Size", Pinned, Float, [IMAGE], (), 0),
    ("Range", Pinned, Float, [(), (), ()], (6,), 0),
    ("MaxPool", SpatialOnly, SameScale, [IMAGE], SMALL, 36 * 4),
    ("AveragePool", SpatialOnly, OwnScale, [IMAGE], SMALL, 36 * 4),
    ("GlobalAveragePool", SpatialOnly, OwnScale, [IMAGE], (1, 4, 1, 1), 144),
    ("GlobalMaxPool", SpatialOnly, Float, [IMAGE], (1, 4, 1, 1), 144),
    ("ReduceMean", Reduced, Float, [IMAGE, (2,)], (1, 4), 144),
    ("ReduceSum", Reduced, Float, [IMAGE, (2,)], (1, 4), 144),
    ("ReduceL2", Reduced, Float, [IMAGE, (2,)], (1, 4), 144),
    ("ReduceL1", Reduced, Float, [IMAGE, (2,)], (1, 4), 144),
    ("ReduceSumSquare", Reduced, Float, [IMAGE, (2,)], (1, 4), 144),
    ("ReduceMax", Reduced, Float, [IMAGE, (2,)], (1, 4), 144),
    ("ReduceMin", Reduced, Float, [IMAGE, (2,)], (1, 4), 144),
    ("ReduceProd", Reduced, Float, [IMAGE, (2,)], (1, 4), 144),
    ("ArgMax", Pinned, Float, [IMAGE], (1, 4, 6, 6), 144),
    ("TopK", Pinned, Float, [IMAGE, (1,)], (1, 4, 6, 2), 144),
    ("CumSum", Pinned, Float, [IMAGE, ()], IMAGE, 144),
    ("Resize", SpatialOnly, SameScale, [SMALL], IMAGE, 4 * 144),
    ("QuantizeLinear", PerChannel, Float, [IMAGE, (), ()], IMAGE, 144),
    ("DequantizeLinear", PerChannel, Float, [IMAGE, (), ()], IMAGE, 144),
]
ATTRIBUTES = {"MaxPool": {"kernel_shape": [2, 2]}, "AveragePool": {"kernel_shape": [2, 2]}}


def value(name, shape):
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def single(op, inputs, output, domain=""):
    """A model of one node."""
    fed = [value(f"x{i}", shape) for i, shape in enumerate(inputs)]
    node = ir.Node(domain, op, fed, ir.convenience.convert_attributes(ATTRIBUTES.get(op, {})), name="it",
                   outputs=[value("y", output)])  # fmt: skip
    return ir.Model(ir.Graph(fed, node.outputs, nodes=[node], opset_imports={"": 21}), ir_version=10)


def test_the_cells_of_all_rows_begin_in_the_same_columns():
    """The table is for reading; a cell that is too wide gets a name above it."""
    (rows,) = [node for node in ast.walk(ast.parse(inspect.getsource(table))) if isinstance(node, ast.Dict)]
    columns = {tuple(cell.col_offset for cell in (row, *row.args)) for row in rows.values}
    assert len(columns) == 1
    assert len(rows.values) == len(TABLE)


def test_every_row_has_its_line():
    assert [line[0] for line in LINES] == list(TABLE)


@pytest.mark.parametrize(("op", "channels", "int8", "inputs", "output", "count"), LINES, ids=lambda x: str(x)[:24])
def test_a_row(op, channels, int8, inputs, output, count):
    model = single(op, inputs, output)
    row = rule(model.graph[0])
    assert row is TABLE[op]
    assert type(row.channels) is channels
    assert type(row.int8) is int8
    assert macs(model.graph[0]) == count
    (choice,) = select(model).choices
    assert (choice.op, choice.int8) == (op, choice.reason is None)
    assert not (int8 is Float and choice.int8)


@pytest.mark.parametrize("op", TABLE)
def test_a_row_is_of_an_operator_that_exists(op):
    assert onnx.defs.has(op)


@pytest.mark.parametrize("op", TABLE)
def test_parameters_of_a_row_are_inputs_of_its_operator(op):
    """No cell names an input that the operator does not have."""
    most = onnx.defs.get_schema(op).max_input
    row = TABLE[op]
    pointed = [*getattr(row.channels, "parameters", ())]
    pointed += [getattr(cell, name, None) for cell in (row.channels, row.int8) for name in ("act", "weight", "bias")
                if not (cell is row.channels and name == "act")]  # fmt: skip
    assert all(index < most for index in pointed if index is not None)


@pytest.mark.parametrize("op", [op for op, row in TABLE.items() if isinstance(row.int8, Float)])
def test_a_float_row_gives_its_reason(op):
    assert len(TABLE[op].int8.reason.split()) > 2


def test_shapes_that_are_not_known_give_no_number():
    model = single("Conv", [IMAGE, (8, 4, 3, 3)], (1, 8, 4, 4))
    model.graph[0].outputs[0].shape = None
    assert macs(model.graph[0]) is None


@pytest.mark.parametrize(("op", "domain"), [("Selu", ""), ("FusedConv", "com.microsoft"), ("Magic", "my.domain")])
def test_an_operator_without_a_row_is_a_barrier_that_reports_can_name(op, domain):
    model = single(op, [IMAGE], IMAGE, domain)
    assert rule(model.graph[0]) is BARRIER
    assert macs(model.graph[0]) is None
    (choice,) = select(model).choices
    assert (choice.op, choice.int8) == (f"{domain}::{op}" if domain else op, False)
    assert choice.reason == BARRIER.int8.reason == BARRIER.channels.reason == "its operator is not in the table"


@pytest.mark.parametrize("op", ["MatMulNBits", "DynamicQuantizeMatMul"])
def test_an_operator_on_integers_is_a_barrier_that_is_quantized_already(op):
    model = single(op, [IMAGE], IMAGE, "com.microsoft")
    assert macs(model.graph[0]) is None
    (choice,) = select(model).choices
    assert (choice.int8, choice.reason) == (False, "is quantized already")


def test_an_operator_of_the_same_name_in_another_domain_is_not_the_standard_one():
    assert rule(single("Conv", [IMAGE, (8, 4, 3, 3)], (1, 8, 4, 4), "my.domain").graph[0]) is BARRIER


MODELS = ("crepe_tiny", "minilm_l6", "mnist_cnn", "mobilenet_v2", "ppocr_cls", "resemblyzer_lstm", "svhn_cnn")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_float_node_of_a_real_model_has_a_reason(name):
    store = pytest.importorskip("benchmarks.models.store")
    loader = importlib.import_module(f"benchmarks.models.{name}")
    if absent := store.missing(loader.REQUIRES):
        pytest.skip(f"not fetched: {', '.join(absent)} (benchmarks/fetch.sh all)")
    from toolchain.conversion.source import convert

    choices = select(optimize(convert(loader.onnx_path()).model, verify=False).model).choices
    assert choices
    assert [choice for choice in choices if choice.int8 == bool(choice.reason)] == []
