"""The table: everything the toolchain knows about an ONNX operator, one row each.

The cells of a row (see ``cells.py``) say how *channels* pass through the operator, how it runs in *int8* on
onnxruntime's CPU provider, and what it *costs* in multiply-accumulates. An operator without a row is a barrier: it
stays float, nothing is pruned across it, and reports name it. Abilities of a target belong in its profile, not here.

To add an operator: one row here, one line in ``tests/ops/test_table.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from toolchain.graph import query
from toolchain.ops.cells import (
    Absorbed,
    Channels,
    Contracted,
    CountMacs,
    Dynamic,
    Elementwise,
    Expanded,
    Float,
    GroupedNorm,
    Int8,
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
    conv_macs,
    conv_transpose_macs,
    free,
    matmul_macs,
    per_input,
    per_output,
    pool_macs,
    recurrent_macs,
    reduced_macs,
)


@dataclass(frozen=True)
class OpRule:
    """One row of the table."""

    channels: Channels
    int8: Int8
    cost: CountMacs


NO_ROW = "its operator is not in the table"

# channels: reasons why an axis keeps its size
DEVIATION = "removing a channel changes the mean and deviation"
MEAN_SQUARE = "removing a channel changes the mean square"
NEIGHBOURS = "neighbouring channels divide it"
ENTERS_ALL = "every channel enters every output"
RUNNING_SUM = "every position enters all that follow"
NUMBERED = "its positions are numbered"
TRIANGLE = "the numbers of its positions decide which of them are set to zero"
SIZES_READ = "its sizes are read as data"
COUNTS_UP = "its output counts up"

# int8: cells of several words, and reasons why an operator stays float
GEMM_KERNEL = Kernel(float_output=True)
MATMUL_KERNEL = Kernel(bias=None, float_output=True)
DYNAMIC_LSTM = Dynamic("DynamicQuantizeLSTM", weights=(1, 2))
UNIT = (0.0, 1.0)
NO_KERNEL = Float("onnxruntime's CPU provider has no fused int8 kernel for it")
FLOAT_NORM = Float("normalization divides by a computed deviation; int8 has no kernel and loses accuracy")
FLOAT_SOFTMAX = Float("int8 Softmax loses small probabilities and wrapped around on older runtimes (onnxruntime#29727)")
BEFORE_BN = Float("folded into its convolution where possible; there is no int8 kernel for those that remain")
INTEGERS = Float("computes shapes or indices, not activations")
BOOLEANS = Float("computes true or false, not activations")
ALREADY = Float("is quantized already")

TABLE: Mapping[str, OpRule] = {
    # op                             channels (pruning)            int8 (quantization)          cost
    "Conv":                   OpRule(Weighted(out=0, in_=1),       Kernel(),                    conv_macs),
    "ConvTranspose":          OpRule(Weighted(out=1, in_=0),       NO_KERNEL,                   conv_transpose_macs),
    "Gemm":                   OpRule(Contracted(bias=2),           GEMM_KERNEL,                 matmul_macs),
    "MatMul":                 OpRule(Contracted(),                 MATMUL_KERNEL,               matmul_macs),
    "LSTM":                   OpRule(Recurrent(gates=4),           DYNAMIC_LSTM,                recurrent_macs),
    "GRU":                    OpRule(Recurrent(gates=3),           NO_KERNEL,                   recurrent_macs),
    # normalization
    "BatchNormalization":     OpRule(PerChannel(1, (1, 2, 3, 4)),  BEFORE_BN,                   per_output(2)),
    "LayerNormalization":     OpRule(Pinned(DEVIATION, axis=-1),   FLOAT_NORM,                  per_output(8)),
    "InstanceNormalization":  OpRule(GroupedNorm(groups=0),        FLOAT_NORM,                  per_output(8)),
    "GroupNormalization":     OpRule(GroupedNorm(),                FLOAT_NORM,                  per_output(8)),
    "RMSNormalization":       OpRule(Pinned(MEAN_SQUARE, axis=-1), FLOAT_NORM,                  per_output(6)),
    "LRN":                    OpRule(Pinned(NEIGHBOURS, axis=1),   FLOAT_NORM,                  per_output(8)),
    # activations
    "Relu":                   OpRule(Elementwise(),                Absorbed(),                  per_output(1)),
    "Clip":                   OpRule(Elementwise(),                Absorbed(),                  per_output(1)),
    "LeakyRelu":              OpRule(Elementwise(),                OwnScale(),                  per_output(1)),
    "PRelu":                  OpRule(Elementwise(),                NO_KERNEL,                   per_output(1)),
    "Sigmoid":                OpRule(Elementwise(),                OwnScale(output_range=UNIT), per_output(4)),
    "HardSigmoid":            OpRule(Elementwise(),                NO_KERNEL,                   per_output(2)),
    "HardSwish":              OpRule(Elementwise(),                NO_KERNEL,                   per_output(3)),
    "Tanh":                   OpRule(Elementwise(),                NO_KERNEL,                   per_output(4)),
    "Gelu":                   OpRule(Elementwise(),                NO_KERNEL,                   per_output(8)),
    "Erf":                    OpRule(Elementwise(),                NO_KERNEL,                   per_output(6)),
    "Elu":                    OpRule(Elementwise(),                NO_KERNEL,                   per_output(4)),
    "Softplus":               OpRule(Elementwise(),                NO_KERNEL,                   per_output(6)),
    "Mish":                   OpRule(Elementwise(),                NO_KERNEL,                   per_output(8)),
    "Softmax":                OpRule(Pinned(ENTERS_ALL),           FLOAT_SOFTMAX,               per_output(5)),
    "LogSoftmax":             OpRule(Pinned(ENTERS_ALL),           NO_KERNEL,                   per_output(5)),
    # arithmetic
    "Add":                    OpRule(Elementwise(),                OwnScale(inputs=None),       per_output(1)),
    "Mul":                    OpRule(Elementwise(),                OwnScale(inputs=None),       per_output(1)),
    "Sub":                    OpRule(Elementwise(),                NO_KERNEL,                   per_output(1)),
    "Div":                    OpRule(Elementwise(),                NO_KERNEL,                   per_output(1)),
    "Pow":                    OpRule(Elementwise(),                NO_KERNEL,                   per_output(4)),
    "Sqrt":                   OpRule(Elementwise(),                NO_KERNEL,                   per_output(2)),
    "Reciprocal":             OpRule(Elementwise(),                NO_KERNEL,                   per_output(1)),
    "Exp":                    OpRule(Elementwise(),                NO_KERNEL,                   per_output(4)),
    "Log":                    OpRule(Elementwise(),                NO_KERNEL,                   per_output(4)),
    "Sin":                    OpRule(Elementwise(),                NO_KERNEL,                   per_output(4)),
    "Cos":                    OpRule(Elementwise(),                NO_KERNEL,                   per_output(4)),
    "Neg":                    OpRule(Elementwise(),                NO_KERNEL,                   per_output(1)),
    "Abs":                    OpRule(Elementwise(),                NO_KERNEL,                   per_output(1)),
    "Sign":                   OpRule(Elementwise(),                NO_KERNEL,                   per_output(1)),
    "Floor":                  OpRule(Elementwise(),                NO_KERNEL,                   per_output(1)),
    "Ceil":                   OpRule(Elementwise(),                NO_KERNEL,                   per_output(1)),
    "Round":                  OpRule(Elementwise(),                NO_KERNEL,                   per_output(1)),
    "Min":                    OpRule(Elementwise(),                NO_KERNEL,                   per_output(1)),
    "Max":                    OpRule(Elementwise(),                NO_KERNEL,                   per_output(1)),
    "Mod":                    OpRule(Elementwise(),                NO_KERNEL,                   per_output(1)),
    "Where":                  OpRule(Elementwise(),                NO_KERNEL,                   per_output(1)),
    "Equal":                  OpRule(Elementwise(),                BOOLEANS,                    per_output(1)),
    "Greater":                OpRule(Elementwise(),                BOOLEANS,                    per_output(1)),
    "GreaterOrEqual":         OpRule(Elementwise(),                BOOLEANS,                    per_output(1)),
    "Less":                   OpRule(Elementwise(),                BOOLEANS,                    per_output(1)),
    "LessOrEqual":            OpRule(Elementwise(),                BOOLEANS,                    per_output(1)),
    "Not":                    OpRule(Elementwise(),                BOOLEANS,                    per_output(1)),
    "And":                    OpRule(Elementwise(),                BOOLEANS,                    per_output(1)),
    "Or":                     OpRule(Elementwise(),                BOOLEANS,                    per_output(1)),
    "IsNaN":                  OpRule(Elementwise(),                BOOLEANS,                    per_output(1)),
    # shape and layout
    "Concat":                 OpRule(Joined(),                     OwnScale(inputs=None),       free),
    "Split":                  OpRule(Parted(),                     SameScale(),                 free),
    "Slice":                  OpRule(Parted(),                     SameScale(),                 free),
    "Pad":                    OpRule(Parted(),                     NO_KERNEL,                   free),
    "Reshape":                OpRule(Reshaped(),                   SameScale(),                 free),
    "Flatten":                OpRule(Reshaped(),                   SameScale(),                 free),
    "Transpose":              OpRule(Permuted(),                   SameScale(),                 free),
    "Squeeze":                OpRule(Permuted(),                   SameScale(),                 free),
    "Unsqueeze":              OpRule(Permuted(),                   SameScale(),                 free),
    "Expand":                 OpRule(Expanded(),                   SameScale(),                 free),
    "Tile":                   OpRule(Expanded(),                   NO_KERNEL,                   free),
    "ConstantOfShape":        OpRule(Expanded(),                   NO_KERNEL,                   free),
    "Gather":                 OpRule(Selected(),                   SameScale(table=0),          free),
    "GatherElements":         OpRule(Pinned(NUMBERED, axis=0),     NO_KERNEL,                   free),
    "GatherND":               OpRule(Pinned(NUMBERED, axis=0),     NO_KERNEL,                   free),
    "ScatterElements":        OpRule(Pinned(NUMBERED, axis=0),     NO_KERNEL,                   free),
    "ScatterND":              OpRule(Pinned(NUMBERED, axis=0),     NO_KERNEL,                   free),
    "DepthToSpace":           OpRule(Shuffled(),                   NO_KERNEL,                   free),
    "SpaceToDepth":           OpRule(Shuffled(),                   NO_KERNEL,                   free),
    "Trilu":                  OpRule(Pinned(TRIANGLE, axis=-2),    NO_KERNEL,                   free),
    "Identity":               OpRule(Elementwise(),                NO_KERNEL,                   free),
    "Cast":                   OpRule(Elementwise(),                INTEGERS,                    free),
    "Shape":                  OpRule(Pinned(SIZES_READ),           INTEGERS,                    free),
    "Size":                   OpRule(Pinned(SIZES_READ),           INTEGERS,                    free),
    "Range":                  OpRule(Pinned(COUNTS_UP),            INTEGERS,                    free),
    # pooling and reduction
    "MaxPool":                OpRule(SpatialOnly(),                SameScale(),                 pool_macs),
    "AveragePool":            OpRule(SpatialOnly(),                OwnScale(),                  pool_macs),
    "GlobalAveragePool":      OpRule(SpatialOnly(),                OwnScale(),                  reduced_macs),
    "GlobalMaxPool":          OpRule(SpatialOnly(),                NO_KERNEL,                   reduced_macs),
    "ReduceMean":             OpRule(Reduced(pins=True),           NO_KERNEL,                   reduced_macs),
    "ReduceSum":              OpRule(Reduced(pins=False),          NO_KERNEL,                   reduced_macs),
    "ReduceL2":               OpRule(Reduced(pins=False),          NO_KERNEL,                   per_input(1)),
    "ReduceL1":               OpRule(Reduced(pins=False),          NO_KERNEL,                   reduced_macs),
    "ReduceSumSquare":        OpRule(Reduced(pins=False),          NO_KERNEL,                   per_input(1)),
    "ReduceMax":              OpRule(Reduced(pins=True),           NO_KERNEL,                   reduced_macs),
    "ReduceMin":              OpRule(Reduced(pins=True),           NO_KERNEL,                   reduced_macs),
    "ReduceProd":             OpRule(Reduced(pins=True),           NO_KERNEL,                   reduced_macs),
    "ArgMax":                 OpRule(Pinned(NUMBERED),             INTEGERS,                    reduced_macs),
    "TopK":                   OpRule(Pinned(NUMBERED),             NO_KERNEL,                   reduced_macs),
    "CumSum":                 OpRule(Pinned(RUNNING_SUM),          NO_KERNEL,                   per_output(1)),
    "Resize":                 OpRule(SpatialOnly(),                SameScale(),                 per_output(4)),
    # quantized already
    "QuantizeLinear":         OpRule(PerChannel(1, (1, 2)),        ALREADY,                     per_output(1)),
    "DequantizeLinear":       OpRule(PerChannel(1, (1, 2)),        ALREADY,                     per_output(1)),
}  # fmt: skip

BARRIER = OpRule(Pinned(NO_ROW), Float(NO_ROW), lambda node: None)
"""The row of an operator that has none."""


QUANTIZED_OPERATORS = frozenset(
    {
        "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear",
        *(
            f"com.microsoft::{name}"
            for name in (
                "MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "GatherBlockQuantized", "DynamicQuantizeMatMul",
                "DynamicQuantizeLSTM", "MatMulIntegerToFloat", "MatMulInteger16", "QAttention", "QEmbedLayerNormalization",
                "QGemm", "QMoE", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearConv", "QLinearAveragePool",
                "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere",
                "QLinearReduceMean", "QuantizeLinear", "DequantizeLinear",
            )
        ),
    }
)  # fmt: skip
"""Operators without a row whose weights or activations are integers of 4 or 8 bits; the second part is onnxruntime's."""

ALREADY_QUANTIZED = OpRule(Pinned(NO_ROW), ALREADY, lambda node: None)
"""The row of :data:`QUANTIZED_OPERATORS`: a barrier with another reason why it stays as it is."""


def rule(node: ir.Node) -> OpRule:
    """The row of a node's operator; :data:`ALREADY_QUANTIZED` or :data:`BARRIER` where the table has none."""
    op = query.op(node)
    return TABLE.get(op, ALREADY_QUANTIZED if op in QUANTIZED_OPERATORS else BARRIER)


def macs(node: ir.Node) -> int | None:
    """Multiply-accumulates of one node, dynamic axes taken as 1; None where its operator or shapes are unknown."""
    return rule(node).cost(node)
