"""Axes that each operator of the table unifies, against those worked out by hand."""

import numpy as np
import onnx_ir as ir
import pytest

from toolchain.channels import layout
from toolchain.channels.compute_ops import GATES, KERNEL_AXIS, LayoutBuilder
from toolchain.ops.table import TABLE

IMAGE, ROWS = "float[1, 8, 5, 5] x", "float[3, 8] x"


def value(text):
    """`float[1, 8] x` as an input; an integer constant where numbers are given: `n = 1, 8`."""
    if "=" in text:
        name, numbers = text.split(" = ")
        array = np.array([int(n) for n in numbers.split(", ")], np.int64)
        return ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(array.shape),
                        const_value=ir.tensor(array, name=name))  # fmt: skip
    kind, name = text.rsplit(" ", 1)
    sizes = kind[kind.index("[") + 1 : -1] if "[" in kind else ""
    dims = [int(n) if n.isdigit() else n for n in sizes.split(", ") if n]
    dtype = ir.DataType.INT64 if kind.startswith("int") else ir.DataType.FLOAT
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims))


def axes_and_reasons(op, inputs, outputs, attributes=None):
    """The axes of all values as letters, one for each leaf: `-` pinned, `.` of size 1; and the reasons of pins."""
    read, made = [value(text) for text in inputs], [value(text) for text in outputs]
    node = ir.Node("", op, read, ir.convenience.convert_attributes(attributes or {}), name="it", outputs=made)
    constants = [v for v in read if v.const_value is not None]
    ir.Graph([v for v in read if v.const_value is None], made, nodes=[node], initializers=constants,
             opset_imports={"": 23})  # fmt: skip
    builder = LayoutBuilder()
    layout._visit(builder, node)
    names, why = {}, set()

    def leaf(space):
        why.update(space.pins if space.size != 1 else ())
        if space.size == 1:
            return "."
        return "-" if space.pins or space.size is None else names.setdefault(space, "abcdefgh"[len(names)])

    def axis(space):
        space = space.root
        if not space._parts:
            return leaf(space)
        return (" + " if space._is_concatenation else " x ").join(axis(part) for part in space._parts).join("()")

    shown = [f"{v.name}[{' '.join(axis(s) for s in builder.axes[v])}]" for v in (*read, *made) if v in builder.axes]
    return " ".join(shown), why


UNARY = [
    "Relu",
    "LeakyRelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Gelu",
    "Erf",
    "Elu",
    "Softplus",
    "Mish",
    "Sqrt",
    "Reciprocal",
    "Exp",
    "Log",
    "Sin",
    "Cos",
    "Neg",
    "Abs",
    "Sign",
    "Floor",
    "Ceil",
    "Round",
    "Not",
    "IsNaN",
    "Identity",
    "Cast",
]
BINARY = [
    "Add",
    "Mul",
    "Sub",
    "Div",
    "Pow",
    "Min",
    "Max",
    "Mod",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "And",
    "Or",
]
POOLS = ["MaxPool", "AveragePool", "Resize"]

CASES = {
    "Conv": (["float[1, 8, 5, 5] x", "float[6, 8, 3, 3] w", "float[6] b"], ["float[1, 6, 3, 3] y"], {}),
    "ConvTranspose": (
        ["float[1, 8, 5, 5] x", "float[8, 3, 2, 2] w", "float[6] b"],
        ["float[1, 6, 6, 6] y"],
        {"group": 2},
    ),
    "Gemm": (["float[3, 8] x", "float[6, 8] w", "float[6] b"], ["float[3, 6] y"], {"transB": 1}),
    "MatMul": (["float[2, 3, 8] x", "float[8, 6] w"], ["float[2, 3, 6] y"], {}),
    "LSTM": (
        ["float[5, 2, 8] x", "float[1, 16, 8] w", "float[1, 16, 4] r", "float[1, 32] b"],
        ["float[5, 1, 2, 4] y"],
        {"hidden_size": 4},
    ),
    "GRU": (
        ["float[5, 2, 8] x", "float[1, 12, 8] w", "float[1, 12, 4] r", "float[1, 24] b"],
        ["float[5, 1, 2, 4] y"],
        {"hidden_size": 4},
    ),
    "BatchNormalization": (
        [IMAGE, "float[8] s", "float[8] b", "float[8] m", "float[8] v"],
        ["float[1, 8, 5, 5] y"],
        {},
    ),
    "LayerNormalization": ([ROWS, "float[8] s", "float[8] b"], ["float[3, 8] y"], {}),
    "RMSNormalization": ([ROWS, "float[8] s"], ["float[3, 8] y"], {}),
    "LRN": ([IMAGE], ["float[1, 8, 5, 5] y"], {}),
    "InstanceNormalization": ([IMAGE, "float[8] s", "float[8] b"], ["float[1, 8, 5, 5] y"], {}),
    "GroupNormalization": ([IMAGE, "float[8] s", "float[8] b"], ["float[1, 8, 5, 5] y"], {"num_groups": 4}),
    "Clip": ([IMAGE, "float low", "float high"], ["float[1, 8, 5, 5] y"], {}),
    "PRelu": ([IMAGE, "float[8, 1, 1] s"], ["float[1, 8, 5, 5] y"], {}),
    "Softmax": (["float[3, 8] x"], ["float[3, 8] y"], {}),
    "LogSoftmax": (["float[3, 8] x"], ["float[3, 8] y"], {"axis": 0}),
    "Where": (["float[8] c", "float[3, 8] x", "float[3, 1] z"], ["float[3, 8] y"], {}),
    "Concat": (["float[3, 8] x", "float[3, 6] z"], ["float[3, 14] y"], {"axis": 1}),
    "Split": (["float[3, 8] x", "s = 2, 6"], ["float[3, 2] y", "float[3, 6] z"], {"axis": -1}),
    "Slice": (["float[3, 8] x", "s = -6", "e = 9223372036854775807", "a = 1"], ["float[3, 6] y"], {}),
    "Slice in steps": (["float[3, 8] x", "s = 1", "e = 8", "a = 1", "t = 2"], ["float[3, 4] y"], {}),
    "Slice backwards": (["float[3, 8] x", "s = 7", "e = -9", "a = 1", "t = -1"], ["float[3, 8] y"], {}),
    "Pad": (["float[3, 8] x", "p = 0, 1, 0, 2"], ["float[3, 11] y"], {}),
    "Pad of a named axis": (["float[3, 8] x", "p = 2, 0", "float v", "a = 1"], ["float[3, 10] y"], {}),
    "Pad by copies": (["float[3, 8] x", "p = 0, 1, 0, 2"], ["float[3, 11] y"], {"mode": "reflect"}),
    "Reshape": (["float[3, 8] x", "s = 3, 2, 4"], ["float[3, 2, 4] y"], {}),
    "Reshape that mixes": (["float[6, 4] x", "s = 4, 6"], ["float[4, 6] y"], {}),
    "Reshape of an open batch": (["float[N, 7, 8] x", "s = -1, 7, 2, 4"], ["float[N, 7, 2, 4] y"], {}),
    "Reshape to sizes computed": (["float[3, 8] x", "int64[2] s"], ["float[4, 6] y"], {}),
    "Flatten": (["float[1, 8, 5, 5] x"], ["float[1, 200] y"], {}),
    "Transpose": (["float[3, 8] x"], ["float[8, 3] y"], {"perm": [1, 0]}),
    "Squeeze": (["float[1, 8, 1] x", "a = 0, -1"], ["float[8] y"], {}),
    "Unsqueeze": (["float[8] x", "a = 0, -1"], ["float[1, 8, 1] y"], {}),
    "Expand": (["float[8, 1] x", "s = 3, 8, 5"], ["float[3, 8, 5] y"], {}),
    "Tile": (["float[3, 8] x", "r = 1, 2"], ["float[3, 16] y"], {}),
    "ConstantOfShape": (["s = 3, 8"], ["float[3, 8] y"], {}),
    "Gather": (["float[9, 8] x", "int64[3] i"], ["float[3, 8] y"], {}),
    "GatherElements": (["float[9, 8] x", "int64[3, 8] i"], ["float[3, 8] y"], {}),
    "GatherND": (["float[9, 8] x", "int64[3, 1] i"], ["float[3, 8] y"], {}),
    "ScatterElements": (["float[9, 8] x", "int64[3, 8] i", "float[3, 8] u"], ["float[9, 8] y"], {}),
    "ScatterND": (["float[9, 8] x", "int64[3, 1] i", "float[3, 8] u"], ["float[9, 8] y"], {}),
    "DepthToSpace": (["float[1, 8, 5, 5] x"], ["float[1, 2, 10, 10] y"], {"blocksize": 2}),
    "DepthToSpace by columns": (["float[1, 8, 5, 5] x"], ["float[1, 2, 10, 10] y"], {"blocksize": 2, "mode": "CRD"}),
    "SpaceToDepth": (["float[1, 2, 10, 10] x"], ["float[1, 8, 5, 5] y"], {"blocksize": 2}),
    "Trilu": (["float[3, 5, 5] x"], ["float[3, 5, 5] y"], {}),
    "Shape": ([IMAGE], ["int64[4] y"], {}),
    "Size": ([IMAGE], ["int64 y"], {}),
    "Range": (["int64 a", "int64 e", "int64 t"], ["int64[9] y"], {}),
    "GlobalAveragePool": ([IMAGE], ["float[1, 8, 1, 1] y"], {}),
    "GlobalMaxPool": ([IMAGE], ["float[1, 8, 1, 1] y"], {}),
    "ReduceMean": ([ROWS, "a = 1"], ["float[3, 1] y"], {}),
    "ReduceSum": ([ROWS, "a = 1"], ["float[3] y"], {"keepdims": 0}),
    "ReduceSum of nothing": ([ROWS], ["float[3, 8] y"], {"noop_with_empty_axes": 1}),
    "ReduceL2": ([ROWS, "a = -1"], ["float[3, 1] y"], {}),
    "ReduceL1": ([ROWS, "a = 1"], ["float[3, 1] y"], {}),
    "ReduceSumSquare": ([ROWS], ["float[1, 1] y"], {}),
    "ReduceMax": ([ROWS, "a = 1"], ["float[3, 1] y"], {}),
    "ReduceMin": ([ROWS, "a = 1"], ["float[3, 1] y"], {}),
    "ReduceProd": ([ROWS, "a = 1"], ["float[3, 1] y"], {}),
    "ArgMax": ([ROWS], ["int64[8] y"], {"keepdims": 0}),
    "TopK": ([ROWS, "k = 2"], ["float[3, 2] y", "int64[3, 2] i"], {}),
    "CumSum": (["float[3, 8] x", "a = 0"], ["float[3, 8] y"], {}),
    "QuantizeLinear": ([IMAGE, "float[8] s", "float[8] z"], ["float[1, 8, 5, 5] y"], {}),
    "DequantizeLinear": ([IMAGE, "float s"], ["float[1, 8, 5, 5] y"], {}),
    **{op: ([ROWS], ["float[3, 8] y"], {}) for op in UNARY},
    **{op: ([ROWS, "float[8] z"], ["float[3, 8] y"], {}) for op in BINARY},
    **{op: ([IMAGE], ["float[1, 8, 3, 3] y"], {}) for op in POOLS},
}

# operator (and its special form): unified axes as letters, reasons of pinned axes
EXPECTED = {
    "Conv": (
        "x[. a - -] w[b a - -] b[b] y[. b - -]",
        ["Conv gives it other positions", KERNEL_AXIS],
    ),
    "ConvTranspose": (
        "x[. (a x b) - -] w[(a x b) c - -] b[(a x c)] y[. (a x c) - -]",
        ["ConvTranspose gives it other positions", KERNEL_AXIS],
    ),
    "Gemm": ("x[a b] w[c b] b[c] y[a c]", []),
    "MatMul": ("x[a b c] w[c d] y[a b d]", []),
    "LSTM": (
        "x[a b c] w[. (- x d) c] r[. (- x d) d] b[. (- x d)] y[a . b d]",
        [GATES],
    ),
    "GRU": (
        "x[a b c] w[. (- x d) c] r[. (- x d) d] b[. (- x d)] y[a . b d]",
        [GATES],
    ),
    "BatchNormalization": ("x[. a b c] s[a] b[a] m[a] v[a] y[. a b c]", []),
    "LayerNormalization": (
        "x[a -] s[-] b[-] y[a -]",
        ["LayerNormalization: removing a channel changes the mean and deviation"],
    ),
    "RMSNormalization": ("x[a -] s[-] y[a -]", ["RMSNormalization: removing a channel changes the mean square"]),
    "LRN": ("x[. - - -] y[. - - -]", ["LRN: neighbouring channels divide it"]),
    "InstanceNormalization": (
        "x[. a - -] s[a] b[a] y[. a - -]",
        ["InstanceNormalization divides by a deviation over it"],
    ),
    "GroupNormalization": (
        "x[. (a x -) - -] s[(a x -)] b[(a x -)] y[. (a x -) - -]",
        ["GroupNormalization divides by a deviation over it"],
    ),
    "Clip": ("x[. a b c] low[] high[] y[. a b c]", []),
    "PRelu": ("x[. a b c] s[a . .] y[. a b c]", []),
    "Softmax": ("x[a -] y[a -]", ["Softmax: every channel enters every output"]),
    "LogSoftmax": ("x[- a] y[- a]", ["LogSoftmax: every channel enters every output"]),
    "Where": ("c[a] x[b a] z[b .] y[b a]", []),
    "Concat": ("x[a b] z[a c] y[a (b + c)]", []),
    "Split": ("x[a (b + c)] y[a b] z[a c]", []),
    "Slice": ("x[a (b + c)] y[a c]", []),
    "Slice in steps": ("x[a (b x -)] y[a b]", ["Slice counts its positions in steps"]),
    "Slice backwards": ("x[a -] y[a -]", ["Slice counts its positions in steps"]),
    "Pad": ("x[a b] y[a (. + b + -)]", ["Pad gives it other positions"]),
    "Pad of a named axis": ("x[a b] y[a (- + b)]", ["Pad gives it other positions"]),
    "Pad by copies": (
        "x[a -] y[a (. + - + -)]",
        ["Pad gives it other positions", "Pad fills it with copies of its edge"],
    ),
    "Reshape": ("x[a (b x c)] y[a b c]", []),
    "Reshape that mixes": ("x[- -] y[- -]", ["a reshape mixes its positions with others"]),
    "Reshape of an open batch": ("x[- a (b x c)] y[- a b c]", ["its size is only known when the model runs"]),
    "Reshape to sizes computed": ("x[- -] s[-] y[- -]", ["Reshape takes sizes that the model computes"]),
    "Flatten": ("x[. a b c] y[. (a x b x c)]", []),
    "Transpose": ("x[a b] y[b a]", []),
    "Squeeze": ("x[. a .] y[a]", []),
    "Unsqueeze": ("x[a] y[. a .]", []),
    "Expand": ("x[a .] y[b a c]", []),
    "Tile": ("x[a b] y[a (- x b)]", ["it counts the copies that Tile makes"]),
    "ConstantOfShape": ("y[a b]", []),
    "Gather": ("x[- a] i[b] y[b a]", ["Gather selects from it by number"]),
    "GatherElements": ("x[- -] i[- -] y[- -]", ["GatherElements: its positions are numbered"]),
    "GatherND": ("x[- -] i[- .] y[- -]", ["GatherND: its positions are numbered"]),
    "ScatterElements": ("x[- -] i[- -] u[- -] y[- -]", ["ScatterElements: its positions are numbered"]),
    "ScatterND": ("x[- -] i[- .] u[- -] y[- -]", ["ScatterND: its positions are numbered"]),
    "DepthToSpace": ("x[. (- x a) - -] y[. a - -]", ["DepthToSpace gives it other positions"]),
    "DepthToSpace by columns": ("x[. (a x -) - -] y[. a - -]", ["DepthToSpace gives it other positions"]),
    "SpaceToDepth": ("x[. a - -] y[. (- x a) - -]", ["SpaceToDepth gives it other positions"]),
    "Trilu": ("x[a - -] y[a - -]", ["Trilu: the numbers of its positions decide which of them are set to zero"]),
    "Shape": ("x[. - - -] y[-]", ["Shape: its sizes are read as data", "its sizes are read as data"]),
    "Size": ("x[. - - -] y[]", ["its sizes are read as data"]),
    "Range": ("y[-]", ["Range: its output counts up"]),
    "GlobalAveragePool": ("x[. a - -] y[. a . .]", ["GlobalAveragePool gives it other positions"]),
    "GlobalMaxPool": ("x[. a - -] y[. a . .]", ["GlobalMaxPool gives it other positions"]),
    "ReduceMean": ("x[a -] y[a .]", ["ReduceMean divides by its size"]),
    "ReduceSum": ("x[a b] y[a]", []),
    "ReduceSum of nothing": ("x[a b] y[a b]", []),
    "ReduceL2": ("x[a b] y[a .]", []),
    "ReduceL1": ("x[a b] y[a .]", []),
    "ReduceSumSquare": ("x[a b] y[. .]", []),
    "ReduceMax": ("x[a -] y[a .]", ["ReduceMax combines all of it"]),
    "ReduceMin": ("x[a -] y[a .]", ["ReduceMin combines all of it"]),
    "ReduceProd": ("x[a -] y[a .]", ["ReduceProd combines all of it"]),
    "ArgMax": ("x[- a] y[a]", ["ArgMax: its positions are numbered"]),
    "TopK": ("x[a -] k[.] y[a -] i[a -]", ["TopK: its positions are numbered"]),
    "CumSum": ("x[- a] a[.] y[- a]", ["CumSum: every position enters all that follow"]),
    "QuantizeLinear": ("x[. a b c] s[a] z[a] y[. a b c]", []),
    "DequantizeLinear": ("x[. a b c] s[] y[. a b c]", []),
    **{op: ("x[a b] y[a b]", []) for op in UNARY},
    **{op: ("x[a b] z[b] y[a b]", []) for op in BINARY},
    **{op: ("x[. a - -] y[. a - -]", [f"{op} gives it other positions"]) for op in POOLS},
}


def test_every_row_has_a_case():
    assert {case.split()[0] for case in CASES} == set(TABLE)
    assert list(CASES) == list(EXPECTED)


@pytest.mark.parametrize("case", CASES)
def test_axes_that_a_row_unifies(case):
    text, why = EXPECTED[case]
    assert axes_and_reasons(case.split()[0], *CASES[case]) == (text, set(why))


def test_an_operator_without_a_row_pins_its_inputs_and_outputs():
    text, why = axes_and_reasons("Selu", [ROWS], ["float[3, 8] y"])
    assert (text, why) == ("x[- -] y[- -]", {"Selu has no row in the operator table"})


def test_an_operator_whose_axes_disagree_with_its_shapes_is_a_barrier():
    text, why = axes_and_reasons("Add", [ROWS, "float[8] z"], ["float[3, 9] y"])
    assert (text, why) == ("x[- -] z[-] y[- -]", {"Add uses it in a way that is not understood"})
