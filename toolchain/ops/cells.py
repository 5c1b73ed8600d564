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
    """Convolution: input channels (G x I) are summed over with the weight; output channels (G x O) are also those of
    weight and bias.

    out, in_: axes of the weight. act: the channel axis of input and output. bias: its input. Depthwise is I = O = 1.
    """

    out: int
    in_: int
    act: int = 1
    bias: int | None = 2


@dataclass(frozen=True)
class Contracted:
    """Matrix product: the axes summed over are one space, so are batch axes; the other two pass. bias: its input."""

    bias: int | None = None


@dataclass(frozen=True)
class Elementwise:
    """Inputs of one shape, or broadcast: axes aligned at the right are one space; an axis of size 1 joins none."""


@dataclass(frozen=True)
class PerChannel:
    """Elementwise, with one-dimensional parameters along `axis`, which have its space."""

    axis: int
    parameters: tuple[int, ...]


@dataclass(frozen=True)
class SpatialOnly:
    """Batch and channel axes pass; the axes behind them are computed anew, and pinned."""


@dataclass(frozen=True)
class Joined:
    """Concat: along the attribute `axis` the spaces come one behind the other; every other axis is one space."""


@dataclass(frozen=True)
class Parted:
    """Split, Slice, Pad: a space is split, or extended by pinned ones."""


@dataclass(frozen=True)
class Reshaped:
    """Reshape: two row-major products take their common refinement, and are pinned where there is none."""


@dataclass(frozen=True)
class Permuted:
    """Axes move (Transpose), appear (Unsqueeze) or vanish (Squeeze)."""


@dataclass(frozen=True)
class Expanded:
    """An axis of size 1 becomes a new space; the number of copies of an axis is pinned."""


@dataclass(frozen=True)
class Reduced:
    """A reduced axis is summed over, or pinned if `weighs`: its size enters the result, as in a mean, or zeros do."""

    weighs: bool


@dataclass(frozen=True)
class Shuffled:
    """Channels are (r x r x c) or (c x r x r) for r x r pixels: c passes, r is pinned."""


@dataclass(frozen=True)
class Selected:
    """Gather: the axis that is selected from is pinned, the others pass."""


@dataclass(frozen=True)
class Recurrent:
    """W and R have rows (gates x H); H is one space in W, R, B, the initial states and the output."""

    gates: int


@dataclass(frozen=True)
class GroupedNorm:
    """Channels are (G x c): groups pass, channels within one are pinned. groups: 0 makes each channel its own group."""

    groups: int | None = None


@dataclass(frozen=True)
class Pinned:
    """Axes that keep their size, for `reason`: the one that the operator's attribute names, or all from `axis` on."""

    reason: str
    axis: int | None = None


Channels = (
    Weighted | Contracted | Elementwise | PerChannel | SpatialOnly | Joined | Parted | Reshaped | Permuted
    | Expanded | Reduced | Shuffled | Selected | Recurrent | GroupedNorm | Pinned
)  # fmt: skip

# -------------------------------------------------------------------------------------------------- int8


@dataclass(frozen=True)
class Kernel:
    """A product with a constant weight: activation u8 or s8, weight s8 per output channel, int32 bias.

    act, weight, bias: their inputs. float_output: the kernel may leave its result float, so the output is quantized
    only for int8 readers.
    """

    act: int = 0
    weight: int = 1
    bias: int | None = 2
    float_output: bool = False


@dataclass(frozen=True)
class OwnScale:
    """Every input and the output have scales of their own.

    inputs: those that are quantized; None: all. output_range: the range of the output where the operator fixes it.
    """

    inputs: tuple[int, ...] | None = (0,)
    output_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class SameScale:
    """The first input's integers pass unchanged: outputs share its scale and zero point.

    table: an input that may be a large constant of which single rows are read; its rows are then stored as int8.
    """

    table: int | None = None


@dataclass(frozen=True)
class Absorbed:
    """Left out if the quantized range ends where the operator clips: requantization before it then does the same."""


@dataclass(frozen=True)
class Dynamic:
    """Weights are int8; activations are rounded at every step, by their range at that step. Results stay float.

    op: onnxruntime's operator for it. weights: inputs of shape [directions, gates x H, K], constant.
    """

    op: str
    weights: tuple[int, ...]


@dataclass(frozen=True)
class Float:
    """Stays float, for `reason`."""

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
    """No arithmetic."""
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
