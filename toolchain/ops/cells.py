"""The cells of the operator table: small records of how one operator behaves, and the cost functions.

Channels (pruning)
    Every axis of a tensor is an index space (``channels/index_spaces.py``): a leaf, a row-major product or a
    concatenation. A channel cell says which spaces of an operator's inputs, weights and outputs are the same.

Int8 (quantization)
    The inputs and outputs that are quantized, those that share a scale, and the fused kernels of onnxruntime's CPU
    provider (``qdq_selector_action_transformer.cc``). An operator without one is `Float`, with the reason that users
    read.

Cost
    Multiply-accumulates of one node from its shapes; dynamic axes count as 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.graph import query

# ---------------------------------------------------------------------------------------------- channels


@dataclass(frozen=True)
class Weighted:
    """Convolution with G groups, each of I input and O output channels; depthwise is I = O = 1.

    The channels of the input are (G x I) and are summed over. The channels of the output are (G x O), as are those of
    weight and bias.

    Attributes:
        out: axis of the weight with its output channels.
        in_: axis of the weight with its input channels.
        act: channel axis of input and output.
        bias: position of the bias among the inputs.
    """

    out: int
    in_: int
    act: int = 1
    bias: int | None = 2


@dataclass(frozen=True)
class Contracted:
    """Matrix product: the two axes that are summed over are one space, and so are batch axes; the other two pass.

    Attributes:
        bias: position of the bias among the inputs; None: the operator has none.
    """

    bias: int | None = None


@dataclass(frozen=True)
class Elementwise:
    """Inputs of one shape, or broadcast: axes aligned at the right are one space; an axis of size 1 joins none."""


@dataclass(frozen=True)
class PerChannel:
    """Elementwise, with one-dimensional parameters that have the space of one axis.

    Attributes:
        axis: of the input, counted from the front.
        parameters: positions of the parameters among the inputs.
    """

    axis: int
    parameters: tuple[int, ...]


@dataclass(frozen=True)
class SpatialOnly:
    """Batch and channel axes pass. The axes behind them are pinned, since the output has other positions there."""


@dataclass(frozen=True)
class Joined:
    """Concat: the spaces of the axis that its attribute names follow each other; every other axis is one space."""


@dataclass(frozen=True)
class Parted:
    """Split, Slice and Pad: a space is split, or extended by pinned ones."""


@dataclass(frozen=True)
class Reshaped:
    """Reshape: two row-major products get their common refinement, and are pinned where there is none."""


@dataclass(frozen=True)
class Permuted:
    """Axes move (Transpose), appear (Unsqueeze) or vanish (Squeeze)."""


@dataclass(frozen=True)
class Expanded:
    """Expand and Tile: an axis of size 1 becomes a new space; the number of copies of an axis is pinned."""


@dataclass(frozen=True)
class Reduced:
    """Reduction of axes, which are summed over or pinned.

    Attributes:
        pins: the axes are pinned, because the result depends on their size (a mean) or on zeros (a maximum).
    """

    pins: bool


@dataclass(frozen=True)
class Shuffled:
    """Blocks of r x r pixels are exchanged for channels, (r x r x c) or (c x r x r): c passes, r is pinned."""


@dataclass(frozen=True)
class Selected:
    """Gather: the axis that is selected from is pinned, the others pass."""


@dataclass(frozen=True)
class Recurrent:
    """Recurrent layer: W and R have rows (gates x H); H is one space in W, R, B, the initial states and the output.

    Attributes:
        gates: number of gates.
    """

    gates: int


@dataclass(frozen=True)
class GroupedNorm:
    """Normalization over groups of channels, (G x c): groups pass, the channels within one are pinned.

    Attributes:
        groups: None: the operator's attribute gives the number of groups; 0: each channel is a group.
    """

    groups: int | None = None


@dataclass(frozen=True)
class Pinned:
    """Axes that keep their size.

    Attributes:
        reason: shown to users.
        axis: all axes from this one on; None: the one that the operator's attribute names.
    """

    reason: str
    axis: int | None = None


Channels = (
    Weighted | Contracted | Elementwise | PerChannel | SpatialOnly | Joined | Parted | Reshaped | Permuted
    | Expanded | Reduced | Shuffled | Selected | Recurrent | GroupedNorm | Pinned
)  # fmt: skip

# -------------------------------------------------------------------------------------------------- int8


@dataclass(frozen=True)
class Kernel:
    """Product with a constant weight: activation u8 or s8, weight s8 per output channel, int32 bias.

    Attributes:
        act: position of the activation among the inputs.
        weight: position of the weight.
        bias: position of the bias; None: the operator has none.
        float_output: the kernel may leave its result float, so the output is quantized only for int8 readers.
    """

    act: int = 0
    weight: int = 1
    bias: int | None = 2
    float_output: bool = False


@dataclass(frozen=True)
class OwnScale:
    """Every input and the output have scales of their own.

    Attributes:
        inputs: positions of the inputs that are quantized; None: all.
        output_range: range of the output where the operator fixes it.
    """

    inputs: tuple[int, ...] | None = (0,)
    output_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class SameScale:
    """The first input's integers pass unchanged: outputs share its scale and zero point.

    Attributes:
        table: position of an input that may be a large constant of which single rows are read; its rows are then stored
            as int8.
    """

    table: int | None = None


@dataclass(frozen=True)
class Absorbed:
    """Removed if the quantized range ends where the operator clips, since rounding to that range then clips as well."""


@dataclass(frozen=True)
class Dynamic:
    """Weights are int8; activations are rounded at every step, by their range at that step. Results stay float.

    Attributes:
        op: onnxruntime's operator for it.
        weights: positions of the constant inputs of shape [directions, gates x H, K].
    """

    op: str
    weights: tuple[int, ...]


@dataclass(frozen=True)
class Float:
    """Stays float.

    Attributes:
        reason: shown to users.
    """

    reason: str


Int8 = Kernel | OwnScale | SameScale | Absorbed | Dynamic | Float

# -------------------------------------------------------------------------------------------------- cost

CountMacs = Callable[[ir.Node], int | None]
"""Multiply-accumulates of a node; None where its shapes are unknown."""


def per_output(operations: int) -> CountMacs:
    """`operations` for every output element."""

    def count(node: ir.Node) -> int | None:
        size = query.elements(node.outputs[0])
        return None if size is None else operations * size

    return count


def per_input(operations: int) -> CountMacs:
    """`operations` for every element of the first input."""

    def count(node: ir.Node) -> int | None:
        size = query.elements(node.inputs[0])
        return None if size is None else operations * size

    return count


def free(node: ir.Node) -> int | None:
    """Zero, for operators that only move or rename numbers."""
    return 0


def conv_macs(node: ir.Node) -> int | None:
    """Output elements x kernel elements x input channels of a group."""
    weight, out = query.sizes(node.inputs[1]), query.elements(node.outputs[0])
    return None if weight is None or out is None else out * int(np.prod(weight[1:], dtype=np.int64))


def conv_transpose_macs(node: ir.Node) -> int | None:
    """Input elements x kernel elements x output channels of a group."""
    weight, inputs = query.sizes(node.inputs[1]), query.elements(node.inputs[0])
    return None if weight is None or inputs is None else inputs * int(np.prod(weight[1:], dtype=np.int64))


def matmul_macs(node: ir.Node) -> int | None:
    """Output elements x contracted size."""
    left, out = query.sizes(node.inputs[0]), query.elements(node.outputs[0])
    if left is None or out is None:
        return None
    return out * (left[0] if query.attribute(node, "transA", 0) else left[-1])


def recurrent_macs(node: ir.Node) -> int | None:
    """Steps x batch x weights of W and R, over all directions."""
    x, w, r = (query.sizes(node.inputs[i]) for i in range(3))
    if x is None or w is None or r is None:
        return None
    return x[0] * x[1] * (int(np.prod(w)) + int(np.prod(r)))


def reduced_macs(node: ir.Node) -> int | None:
    """One addition for every input element."""
    return query.elements(node.inputs[0])


def pool_macs(node: ir.Node) -> int | None:
    """Output elements x window elements."""
    out = query.elements(node.outputs[0])
    window = int(np.prod(query.attribute(node, "kernel_shape", [1])))
    return None if out is None else out * window
