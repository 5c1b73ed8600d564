"""Single weights set to zero, for a smaller download; the model does not get faster.

unstructured   the smallest magnitudes over all weights of products (Han et al. 2015, arXiv 1506.02626)
N:M            of every M consecutive weights along the summed axis, the N largest are kept (Mishra et al. 2021, arXiv
               2104.08378)

onnxruntime's CPU provider multiplies zeros like any other number. Only the compressed file gets smaller.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import Bool
from toolchain.core.errors import InputError
from toolchain.data.tensors import Array
from toolchain.graph import io
from toolchain.graph.sizes import zipped_bytes
from toolchain.ops.weights import product_weights


@dataclass(frozen=True)
class Sparse:
    """A model with zeros.

    Attributes:
        model: a clone with zeros in its weights.
        zeros: share of the weights of products that are zero.
        compressed_bytes: size of the compressed file, before and after.
    """

    model: ir.Model
    zeros: float
    compressed_bytes: tuple[int, int]


def parse_sparsity(text: str) -> float | tuple[int, int]:
    """Read a share such as ``0.5`` or a pattern such as ``2:4``.

    Raises:
        InputError: the text is neither a share between 0 and 1 nor N:M with N below M.
    """
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        n, m = int(match[1]), int(match[2])
        if 0 < n < m:
            return n, m
    else:
        try:
            share = float(text)
        except ValueError:
            share = -1.0
        if 0 < share < 1:
            return share
    raise InputError(
        f"{text!r} is neither a share nor a pattern",
        where="--sparsity",
        hint="give a share such as 0.5, or a pattern such as 2:4",
    )


def sparsify(model: ir.Model, sparsity: float | tuple[int, int]) -> Sparse:
    """Set weights of all products to zero, in a clone.

    Args:
        model: a float model.
        sparsity: the share of zeros, or (n, m): n of every m weights along the summed axis are kept.
    """
    clone = model.clone()
    weights = {weight.value: (weight.array, weight.axes.in_) for weight in product_weights(clone)}
    limit = 0.0
    if isinstance(sparsity, float) and weights:
        magnitudes = np.concatenate([np.abs(array).reshape(-1) for array, _ in weights.values()])
        pruned = int(sparsity * len(magnitudes))
        limit = float(np.partition(magnitudes, pruned)[pruned])
    zeros = total = 0
    for value, (array, axis) in weights.items():
        kept = np.abs(array) >= limit if isinstance(sparsity, float) else _largest(array, axis, *sparsity)
        value.const_value = ir.tensor(np.where(kept, array, np.float32(0)), name=value.name)
        zeros, total = zeros + int((~kept).sum()), total + kept.size
    before, after = (zipped_bytes(io.to_bytes(m)) for m in (model, clone))
    return Sparse(clone, zeros / max(total, 1), (before, after))


def _largest(array: Array, axis: int, n: int, m: int) -> Bool:
    """Keep the n largest of every m consecutive weights along an axis, and all that do not fill a block."""
    moved = np.moveaxis(np.abs(array), axis, -1)
    whole = moved.shape[-1] // m * m
    blocks = moved[..., :whole].reshape(*moved.shape[:-1], -1, m)
    kept = np.ones(moved.shape, bool)
    rank = np.argsort(np.argsort(-blocks, axis=-1, kind="stable"), axis=-1)
    kept[..., :whole] = (rank < n).reshape(*moved.shape[:-1], whole)
    return np.moveaxis(kept, -1, axis)
