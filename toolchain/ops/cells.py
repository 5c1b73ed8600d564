"""The cells of the op table: small data saying how one operator behaves, and the cost functions.

Channels (pruning)
    Every axis of a tensor is a concatenation of segments, every segment a row-major product of *dims*;
    a dim is an index space shared by all the places that must be cut together. A channel cell says how
    an operator ties the dims of its inputs, weights and outputs.

Int8 (quantization)
    Which inputs and outputs are quantized, which of them share a scale, and what onnxruntime's CPU
    provider has a fused kernel for (``qdq_selector_action_transformer.cc``). What has none is `Float`,
    with the reason that users read.

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
    """Input channels (G x I) are contracted with the weight; output channels (G x O) join weight and bias.

    `out` and `in_` are axes of the weight, `act` the channel axis of input and output. Depthwise is I = O = 1.
    """

    out: int
    in_: int
    act: int = 1
    bias: int | None = 2


@dataclass(frozen=True)
class Contracted:
    """Matrix product: the contracted axes unify and close, batch axes unify, free axes pass."""

    bias: int | None = None


@dataclass(frozen=True)
class Elementwise:
    """Same-shaped or broadcast inputs: aligned right, equal axes unify, a size-1 axis joins nothing."""


@dataclass(frozen=True)
class PerChannel:
    """Elementwise, with one-dimensional parameters along `axis` that join its dim."""

    axis: int
    parameters: tuple[int, ...]


@dataclass(frozen=True)
class SpatialOnly:
    """Batch and channel axes pass; the axes behind them are computed anew and pinned."""


@dataclass(frozen=True)
class Joined:
    """Segments are appended along the attribute `axis`; all other axes unify."""


@dataclass(frozen=True)
class Parted:
    """Split, Slice, Pad: segments are divided, selected or extended by pinned ones."""


@dataclass(frozen=True)
class Reshaped:
    """Both row-major products are refined to a common factorization, or pinned where there is none."""


@dataclass(frozen=True)
class Permuted:
    """Axes move (Transpose), appear (Unsqueeze) or vanish (Squeeze)."""


@dataclass(frozen=True)
class Expanded:
    """A size-1 axis becomes a new dim of its own; copies of a whole axis are pinned."""


@dataclass(frozen=True)
class Reduced:
    """A reduced dim is closed (sum) or pinned (`weighs`: its size enters the result, as in a mean, or zeros do)."""

    weighs: bool


@dataclass(frozen=True)
class Shuffled:
    """Channels are (r x r x c) or (c x r x r) with pixels: c passes, r is pinned."""


@dataclass(frozen=True)
class Selected:
    """Gather: constant indices select segments; an embedding's width joins the output."""


@dataclass(frozen=True)
class Recurrent:
    """W and R have rows (gates x H); H couples W, R, B, the initial states and the output."""

    gates: int


@dataclass(frozen=True)
class GroupedNorm:
    """Channels are (G x c): groups are free, channels within one are pinned (`groups` 0: each its own)."""

    groups: int | None = None


@dataclass(frozen=True)
class Pinned:
    """The axis that the attribute names (None: the last), or all from `axis` on, keep their size, for `reason`."""

    reason: str
    axis: int | None = None


Channels = (
    Weighted | Contracted | Elementwise | PerChannel | SpatialOnly | Joined | Parted | Reshaped | Permuted
    | Expanded | Reduced | Shuffled | Selected | Recurrent | GroupedNorm | Pinned
)  # fmt: skip

# -------------------------------------------------------------------------------------------------- int8


@dataclass(frozen=True)
class Kernel:
    """A product with a constant weight: activation u8/s8, weight s8 per output channel, int32 bias.

    float_output: the kernel may leave its result float, so the output is quantized only for int8 readers.
    """

    act: int = 0
    weight: int = 1
    bias: int | None = 2
    float_output: bool = False


@dataclass(frozen=True)
class OwnScale:
    """Every input and the output have scales of their own.

    output_range: fixed range of the output where the operator's image is known.
    """

    inputs: tuple[int, ...] | None = (0,)
    output_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class SameScale:
    """The first input's integers pass unchanged: outputs share its scale and zero point.

    table: this input may be a large constant of which single rows are read; its rows are then stored as int8.
    """

    table: int | None = None


@dataclass(frozen=True)
class Absorbed:
    """Vanishes into the producer's requantization when the quantized range ends where it clips."""


@dataclass(frozen=True)
class Dynamic:
    """Weights are int8; activations are rounded anew at every step, to what they span there. Results stay float.

    op: the operator of onnxruntime that does so. weights: [directions, gates x H, K], constant.
    """

    op: str
    weights: tuple[int, ...]


@dataclass(frozen=True)
class Float:
    """Stays float, for `reason`."""

    reason: str


Int8 = Kernel | OwnScale | SameScale | Absorbed | Dynamic | Float

# -------------------------------------------------------------------------------------------------- cost

Cost = Callable[[ir.Node], int | None]


def per_output(operations: int) -> Cost:
    """`operations` for every output element."""

    def count(node: ir.Node) -> int | None:
        size = query.elements(node.outputs[0])
        return None if size is None else operations * size

    return count


def per_input(operations: int) -> Cost:
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
