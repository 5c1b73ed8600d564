"""ONNX operators as differentiable torch functions.

Every function takes the node, for its attributes, and its inputs in order, with None for an input that is left off.
Integer tensors (shapes, axes, indices) are tensors like any other, so the nodes that compute them are run as well.
Semantics are those of operator sets 13 to 21 (https://onnx.ai/onnx/operators). The table is built inside functions so
that torch is imported only when it is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from toolchain.core.errors import ModelError
from toolchain.data.tensors import Array
from toolchain.graph.query import attribute, label, op, window
from toolchain.ops.weights import is_transposed

if TYPE_CHECKING:
    from torch import Tensor

Op = Callable[..., Any]
"""A function from a node and its inputs to its output, or to a sequence of outputs."""


@functools.cache
def table() -> Mapping[str, Op]:
    """Return every operator that can be trained through, by the key of the operator table."""
    return {**_pointwise(), **_products(), **_norms(), **_pools(), **_reductions(), **_views(), **_selections()}


def _refuse(node: ir.Node, what: str) -> ModelError:
    return ModelError(
        f"{what} cannot be trained through", where=f"{op(node)} {label(node)!r}", hint="leave training out"
    )


def _plain(**functions: Callable[..., Any]) -> dict[str, Op]:
    """Wrap torch functions of operators without attributes."""
    return {name: lambda node, *x, call=call: call(*x) for name, call in functions.items()}


def _pointwise() -> dict[str, Op]:
    import torch
    from torch.nn import functional

    def div(node: ir.Node, a: Tensor, b: Tensor) -> Tensor:
        return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")

    def clip(node: ir.Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        if not x.is_floating_point():
            return torch.clamp(x, low, high)
        # Not torch.clamp: its gradient takes four passes over the tensor, that of hardtanh takes one.
        lowest, highest = (-torch.inf if low is None else low.item()), (torch.inf if high is None else high.item())
        return functional.hardtanh(x, lowest, highest)

    def hard_sigmoid(node: ir.Node, x: Tensor) -> Tensor:
        return (attribute(node, "alpha", 0.2) * x + attribute(node, "beta", 0.5)).clamp(0, 1)

    def prelu(node: ir.Node, x: Tensor, slope: Tensor) -> Tensor:
        return torch.where(x < 0, x * slope, x)

    def cast(node: ir.Node, x: Tensor) -> Tensor:
        return x.to(torch.from_numpy(np.empty(0, ir.DataType(attribute(node, "to")).numpy())).dtype)

    return {
        **_plain(
            Add=torch.add, Sub=torch.sub, Mul=torch.mul, Pow=torch.pow, Sqrt=torch.sqrt, Neg=torch.neg, Abs=torch.abs,
            Exp=torch.exp, Log=torch.log, Reciprocal=torch.reciprocal, Erf=torch.erf, Relu=torch.relu,
            Sigmoid=torch.sigmoid, Tanh=torch.tanh, HardSwish=functional.hardswish, Softplus=functional.softplus,
            Where=torch.where, Equal=torch.eq, Greater=torch.gt, Less=torch.lt, And=torch.logical_and,
            Or=torch.logical_or, Not=torch.logical_not, Identity=lambda x: x,
            Max=lambda *x: functools.reduce(torch.maximum, x), Min=lambda *x: functools.reduce(torch.minimum, x),
        ),
        "Div": div,
        "Clip": clip,
        "HardSigmoid": hard_sigmoid,
        "PRelu": prelu,
        "Cast": cast,
        "LeakyRelu": lambda node, x: functional.leaky_relu(x, attribute(node, "alpha", 0.01)),
        "Elu": lambda node, x: functional.elu(x, attribute(node, "alpha", 1.0)),
        "Gelu": lambda node, x: functional.gelu(x, approximate=attribute(node, "approximate", "none")),
        "Softmax": lambda node, x: torch.softmax(x, attribute(node, "axis", -1)),
        "LogSoftmax": lambda node, x: torch.log_softmax(x, attribute(node, "axis", -1)),
    }  # fmt: skip


def _products() -> dict[str, Op]:
    import torch
    from torch.nn import functional

    def conv(node: ir.Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        strides, dilations, before, behind = window(node, x.shape[2:])
        if before != behind:
            x, before = functional.pad(x, _innermost_first(before, behind)), [0] * len(before)
        groups = attribute(node, "group", 1)
        return torch.convolution(x, weight, bias, strides, before, dilations, False, [0] * len(before), groups)

    def conv_transpose(node: ir.Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank, sizes = x.ndim - 2, x.shape[2:]
        strides, dilations = attribute(node, "strides", [1] * rank), attribute(node, "dilations", [1] * rank)
        more = attribute(node, "output_padding", [0] * rank)
        groups = attribute(node, "group", 1)
        full = torch.convolution(x, weight, bias, strides, [0] * rank, dilations, True, more, groups)
        pads = attribute(node, "pads", [0] * 2 * rank)
        wanted, mode = attribute(node, "output_shape"), attribute(node, "auto_pad", "NOTSET")
        if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
            wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)]
        if wanted is not None:
            total = [size - goal for size, goal in zip(full.shape[2:], wanted, strict=True)]
            small, large = [t // 2 for t in total], [t - t // 2 for t in total]
            pads = [*small, *large] if mode == "SAME_UPPER" else [*large, *small]
        return functional.pad(full, _innermost_first([-p for p in pads[:rank]], [-p for p in pads[rank:]]))

    def gemm(node: ir.Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a = a.T if is_transposed(node, 0) else a
        b = b.T if is_transposed(node, 1) else b
        product = attribute(node, "alpha", 1.0) * (a @ b)
        return product if c is None else product + attribute(node, "beta", 1.0) * c

    return {"Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, **_plain(MatMul=torch.matmul)}


def _innermost_first(before: Sequence[int], behind: Sequence[int]) -> list[int]:
    """Order pads as torch takes them: the last axis first."""
    return list(chain.from_iterable(zip(reversed(before), reversed(behind), strict=True)))


def _norms() -> dict[str, Op]:
    from torch.nn import functional

    def batch(node: ir.Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return functional.batch_norm(x, mean, var, scale, bias, eps=attribute(node, "epsilon", 1e-5))

    def layer(node: ir.Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> list[Tensor]:
        shape = x.shape[attribute(node, "axis", -1) :]
        scale, bias = scale.expand(shape), None if bias is None else bias.expand(shape)
        return [functional.layer_norm(x, shape, scale, bias, eps=attribute(node, "epsilon", 1e-5))]

    def instance(node: ir.Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return functional.instance_norm(x, weight=scale, bias=bias, eps=attribute(node, "epsilon", 1e-5))

    return {"BatchNormalization": batch, "LayerNormalization": layer, "InstanceNormalization": instance}


def batch_normalized(node: ir.Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Normalize by the statistics of the batch; `mean` and `var` move a tenth of the way towards them, in place."""
    from torch.nn import functional

    return functional.batch_norm(x, mean, var, scale, bias, training=True, eps=attribute(node, "epsilon", 1e-5))


def _pools() -> dict[str, Op]:
    import torch
    from torch.nn import functional

    def max_pool(node: ir.Node, x: Tensor) -> list[Tensor]:
        strides, dilations, before, behind = window(node, x.shape[2:])
        if any((*before, *behind)):
            x = functional.pad(x, _innermost_first(before, behind), value=-torch.inf)
        pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[x.ndim - 3]
        ceil = bool(attribute(node, "ceil_mode", 0))
        return [pool(x, attribute(node, "kernel_shape"), strides, 0, dilations, ceil)]

    def average_pool(node: ir.Node, x: Tensor) -> Tensor:
        strides, dilations, before, behind = window(node, x.shape[2:])
        if set(dilations) != {1}:
            raise _refuse(node, "a dilated window")
        pool = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[x.ndim - 3]
        kernel, ceil = attribute(node, "kernel_shape"), bool(attribute(node, "ceil_mode", 0))
        if not any((*before, *behind)):
            return pool(x, kernel, strides, 0, ceil)
        pads = _innermost_first(before, behind)
        total = pool(functional.pad(x, pads), kernel, strides, 0, ceil)
        if attribute(node, "count_include_pad", 0):
            return total
        return total / pool(functional.pad(torch.ones_like(x[:1, :1]), pads), kernel, strides, 0, ceil)

    def global_average(node: ir.Node, x: Tensor) -> Tensor:
        return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)

    return {"MaxPool": max_pool, "AveragePool": average_pool, "GlobalAveragePool": global_average}


def _reductions() -> dict[str, Op]:
    import torch

    def over(call: Callable[..., Tensor]) -> Op:
        def reduced(node: ir.Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
            chosen = attribute(node, "axes", []) if axes is None else axes.tolist()
            if not chosen and attribute(node, "noop_with_empty_axes", 0):
                return x
            return call(x, dim=tuple(chosen or range(x.ndim)), keepdim=bool(attribute(node, "keepdims", 1)))

        return reduced

    return {
        "ReduceMean": over(torch.mean),
        "ReduceSum": over(torch.sum),
        "ReduceMax": over(torch.amax),
        "ReduceMin": over(torch.amin),
        "ReduceL2": over(torch.linalg.vector_norm),
    }


def _views() -> dict[str, Op]:
    """Operators that change shape or order of the numbers."""
    import torch

    def reshape(node: ir.Node, x: Tensor, shape: Tensor) -> Tensor:
        copies = not attribute(node, "allowzero", 0)
        return x.reshape([x.shape[i] if size == 0 and copies else size for i, size in enumerate(shape.tolist())])

    def flatten(node: ir.Node, x: Tensor) -> Tensor:
        axis = attribute(node, "axis", 1)
        return x.reshape(prod(x.shape[:axis]), -1)

    def transpose(node: ir.Node, x: Tensor) -> Tensor:
        return x.permute(attribute(node, "perm", list(reversed(range(x.ndim)))))

    def squeeze(node: ir.Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        return x.squeeze() if axes is None else x.squeeze(tuple(axes.reshape(-1).tolist()))

    def unsqueeze(node: ir.Node, x: Tensor, axes: Tensor) -> Tensor:
        places = axes.reshape(-1).tolist()
        rank = x.ndim + len(places)
        for place in sorted(place % rank for place in places):
            x = x.unsqueeze(place)
        return x

    def expand(node: ir.Node, x: Tensor, shape: Tensor) -> Tensor:
        return x.expand(torch.broadcast_shapes(x.shape, shape.tolist()))

    def depth_to_space(node: ir.Node, x: Tensor) -> Tensor:
        (n, c, h, w), r = x.shape, attribute(node, "blocksize")
        if attribute(node, "mode", "DCR") == "DCR":
            parts = x.reshape(n, r, r, c // r**2, h, w).permute(0, 3, 4, 1, 5, 2)
        else:
            parts = x.reshape(n, c // r**2, r, r, h, w).permute(0, 1, 4, 2, 5, 3)
        return parts.reshape(n, c // r**2, h * r, w * r)

    def shape(node: ir.Node, x: Tensor) -> Tensor:
        return torch.tensor(x.shape[attribute(node, "start", 0) : attribute(node, "end")], dtype=torch.int64)

    return {
        "Reshape": reshape,
        "Flatten": flatten,
        "Transpose": transpose,
        "Squeeze": squeeze,
        "Unsqueeze": unsqueeze,
        "Expand": expand,
        "DepthToSpace": depth_to_space,
        "Shape": shape,
    }


def _selections() -> dict[str, Op]:
    """Operators that select, join, pad and resize."""
    import torch
    from torch.nn import functional

    def picked(x: Tensor, axis: int, places: Array) -> Tensor:
        return x.index_select(axis, torch.from_numpy(np.array(places, np.int64, order="C")))

    def concat(node: ir.Node, *x: Tensor) -> Tensor:
        return torch.cat(x, attribute(node, "axis"))

    def split(node: ir.Node, x: Tensor, sizes: Tensor | None = None) -> Any:
        axis, parts = attribute(node, "axis", 0), len(node.outputs)
        return torch.split(x, -(-x.shape[axis] // parts) if sizes is None else sizes.tolist(), axis)

    def slice_(node: ir.Node, x: Tensor, starts: Tensor, ends: Tensor, *rest: Tensor | None) -> Tensor:
        axes, steps = (*(None if r is None else r.tolist() for r in rest), None, None)[:2]
        count = len(starts)
        spans = zip(starts.tolist(), ends.tolist(), axes or range(count), steps or [1] * count, strict=True)
        for start, end, axis, step in spans:
            places = np.arange(x.shape[axis])[start:end:step]
            x = (
                picked(x, axis, places)
                if step != 1
                else x.narrow(axis, int(places[0]) if len(places) else 0, len(places))
            )
        return x

    def pad(node: ir.Node, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        chosen = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes.tolist()]
        amounts, mode = pads.tolist(), attribute(node, "mode", "constant")
        around = [(0, 0)] * x.ndim
        for axis, before, behind in zip(chosen, amounts[: len(chosen)], amounts[len(chosen) :], strict=True):
            around[axis] = (before, behind)
        if mode == "constant":
            flat = _innermost_first(*zip(*around, strict=True))
            return functional.pad(x, flat, value=0.0 if value is None else value.item())
        for axis, both in enumerate(around):
            x = picked(x, axis, np.pad(np.arange(x.shape[axis]), both, mode=mode)) if any(both) else x
        return x

    def gather(node: ir.Node, x: Tensor, places: Tensor) -> Tensor:
        axis = attribute(node, "axis", 0) % x.ndim
        places = torch.where(places < 0, places + x.shape[axis], places)
        return x.index_select(axis, places.reshape(-1)).reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])

    def resize(
        node: ir.Node, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
    ) -> Tensor:
        axes, mode = attribute(node, "axes", list(range(x.ndim))), attribute(node, "mode", "nearest")
        if (
            mode == "cubic"
            or attribute(node, "antialias", 0)
            or attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch"
        ):
            raise _refuse(node, "this kind of interpolation")
        given: Any = scales if sizes is None else sizes
        for place, axis in enumerate(axes):
            size, amount = x.shape[axis], given[place].item()
            wanted = int(np.floor(size * amount)) if sizes is None else int(amount)
            scale = amount if sizes is None else wanted / size
            if wanted == size and scale == 1:
                continue
            at = _coordinates(node, wanted, size, scale)
            if mode == "nearest":
                x = picked(x, axis, np.clip(_rounded(node, at), 0, size - 1))
                continue
            low = np.clip(np.floor(at), 0, size - 1)
            share = torch.from_numpy(np.clip(at, 0, size - 1) - low).to(x.dtype)
            share = share.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
            x = torch.lerp(picked(x, axis, low), picked(x, axis, np.minimum(low + 1, size - 1)), share)
        return x

    return {"Concat": concat, "Split": split, "Slice": slice_, "Pad": pad, "Gather": gather, "Resize": resize}


def _coordinates(node: ir.Node, wanted: int, size: int, scale: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Compute the positions of `wanted` samples among `size` given ones (ONNX, Resize)."""
    places, mode = np.arange(wanted, dtype=np.float64), attribute(node, "coordinate_transformation_mode", "half_pixel")
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and wanted > 1):
        return (places + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return places
    if mode == "align_corners":
        return places * (size - 1) / max(wanted - 1, 1)
    if mode == "asymmetric":
        return places / scale
    raise _refuse(node, f"{mode} coordinates")


def _rounded(node: ir.Node, at: np.ndarray[Any, np.dtype[np.float64]]) -> Array:
    mode = attribute(node, "nearest_mode", "round_prefer_floor")
    rounding: dict[str, Callable[[Any], Array]] = {
        "round_prefer_floor": lambda a: np.ceil(a - 0.5),
        "round_prefer_ceil": lambda a: np.floor(a + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    return rounding[mode](at)
