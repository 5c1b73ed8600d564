"""The proof that a cut is a cut and nothing else: the pruned graph against the dense one with masks.

The reference is the dense graph in which every operator that sums over channels reads them through a mask: zero where
they were cut. It shares nothing with the cutting but the layout: no slices, no sizes, no attributes. (To zero what
*makes* the channels instead would be wrong: their bias, and f(0) of what follows, leak through.)

Both are run on random inputs twice:

real weights        to a relative tolerance, because sums over fewer terms are rounded in another order
selection weights   every row of a weight has one single entry, +1 or -1, at a random place, and biases are small
                    whole numbers. A sum then has one term that is not zero, so that no rounding depends on its length,
                    whatever non-linearities stand between, and the two must be equal bit for bit. Where activations are
                    multiplied with each other, as in attention, the tolerance holds here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from toolchain.channels.cut import Cuts, apply_cuts, keep_sets
from toolchain.channels.index_spaces import kept_positions
from toolchain.channels.layout import layout
from toolchain.core.arrays import F32
from toolchain.data.tensors import Array, Feed
from toolchain.formats.findings import CutProof
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.graph import edit, io, query, run
from toolchain.ops import cells
from toolchain.ops.table import rule
from toolchain.ops.weights import operand_axes

# float32 sums of a few thousand terms in another order differ by 1e-6 of their size; a hundred layers add up, and a
# normalization may divide by something small.
TOLERANCE = 1e-4
SEEDS = (0, 1)
REORDERING = ("NchwcTransformer", "ConvBNFusion", "ConvMulFusion", "MatMul_BatchNormalization_Fusion")
"""Of onnxruntime's own transformers, those after which rounding depends on how many channels there are: in blocks of
them an average is summed in another order, and weights that a scale was multiplied into are no selection any more.
"""


def verify_cuts(model: ir.Model, cuts: Cuts, pruned: ir.Model | None = None, *, dynamic: int = 1) -> CutProof:
    """Hold a pruned model against the masked dense one.

    Args:
        model: the dense model the cuts are of, as :func:`separate` leaves it.
        cuts: what was kept.
        pruned: the result, with weights as they were cut; None cuts anew.
        dynamic: size of dynamic axes.
    """
    pruned = apply_cuts(model, cuts) if pruned is None else pruned
    mismatches: list[str] = []
    errors: list[float] = []
    names = [spec.name for spec in io.outputs(model)]
    exact = not any(_multiplies_activations(node) for node in model.graph)
    identical = True
    for seed in SEEDS:
        feed = run.random_feed(io.inputs(model), np.random.default_rng(seed), dynamic=dynamic)
        reference, result = _both(model, pruned, cuts, feed)
        distance = run.difference(names, [reference], [result])
        errors.append(distance.error)
        if not distance.error <= TOLERANCE:
            mismatches.append(f"output {distance.output!r} moved by {distance.error:.1e} of its largest value")
        selecting = selection(model, seed)
        whole = {spec.name: _whole(spec, feed[spec.name], seed) for spec in io.inputs(model)}
        reference, result = _both(selecting, apply_cuts(selecting, cuts), cuts, whole)
        for name, a, b in zip(names, reference, result, strict=True):
            same = bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
            identical &= same
            if not same and (exact or not np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * _largest(a))):
                mismatches.append(f"output {name!r} is not the same with selection weights")
    return CutProof(error=max(errors), identical=identical, exact=exact, mismatches=tuple(dict.fromkeys(mismatches)))


def _largest(array: Array) -> float:
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) if array.dtype.kind == "f" else 0.0


def _both(model: ir.Model, pruned: ir.Model, cuts: Cuts, feed: Feed) -> tuple[Sequence[Array], Sequence[Array]]:
    engines = [run.session(m, threads=1, without=REORDERING) for m in (masked(model, cuts), pruned)]
    reference, result = (engine.run(None, feed) for engine in engines)
    return reference, result


def masked(model: ir.Model, cuts: Cuts) -> ir.Model:
    """A clone in which whoever sums over cut channels reads them as zero."""
    clone = model.clone()
    found = layout(clone)
    keep = keep_sets(clone, found, cuts)
    names = edit.Names(clone.graph)
    for node, where in found.summed.items():
        for index, at in where:
            value = node.inputs[index]
            if value is None:
                continue
            space = found.axes[value][at]
            kept = kept_positions(space, keep)
            if space.root.size is None or len(kept) == space.root.size:
                continue
            mask = np.zeros(space.root.size, (value.dtype or ir.DataType.FLOAT).numpy())
            mask[kept] = 1
            mask = mask.reshape([-1 if a == at else 1 for a in range(len(found.axes[value]))])
            factor = edit.add_constant(clone.graph, names.fresh(f"{value.name}_mask"), mask)
            product = ir.node("Mul", [value, factor], name=names.fresh(f"{value.name}_masked"))
            product.outputs[0].name = names.fresh(f"{value.name}_masked_out")
            product.outputs[0].type, product.outputs[0].shape = value.type, value.shape
            clone.graph.insert_before(node, product)
            node.replace_input_with(index, product.outputs[0])
    return clone


def selection(model: ir.Model, seed: int) -> ir.Model:
    """A clone with selection weights: see above."""
    rng = np.random.default_rng(seed)
    clone = model.clone()
    values = {value.name: value for value in clone.graph.initializers.values()}
    written: dict[str, Array] = {}
    for node in model.graph:
        cell = rule(node).channels
        if not isinstance(cell, cells.Weighted | cells.Contracted | cells.Recurrent):
            continue
        for index, value in enumerate(node.inputs):
            array = query.float_array(value)
            if array is None or value is None or value.name in written:
                continue
            if array.ndim < 2 or (isinstance(cell, cells.Contracted) and index == 2):
                chosen: Array = rng.integers(0, 4, array.shape).astype(np.float32)
            elif isinstance(cell, cells.Recurrent) and index not in (1, 2):
                chosen = np.zeros_like(array)
            else:
                chosen = _selecting(node, cell, index, array, rng)
            written[str(value.name)] = chosen
    for name, chosen in written.items():
        values[name].const_value = ir.tensor(chosen, name=name)
    return clone


def _selecting(node: ir.Node, cell: cells.Channels, index: int, array: Array, rng: np.random.Generator) -> F32:
    """A weight of this shape with one entry in each of its sums."""
    split = (1, *array.shape)
    if isinstance(cell, cells.Weighted):
        # The rows of a ConvTranspose's weight, which it sums over, are those of all groups; each has sums of its own.
        groups = query.attribute(node, "group", 1) if cell.in_ == 0 else 1
        split = (groups, array.shape[0] // groups, *array.shape[1:])
        axes: tuple[int, ...] = (cell.in_ + 1, *range(3, len(split)))
    elif isinstance(cell, cells.Recurrent):
        axes = (3,)
    else:
        axes = (operand_axes(node, index, array.ndim)[1] + 1,)
    summed = [split[axis] for axis in axes]
    others = [size for axis, size in enumerate(split) if axis not in axes]
    flat = np.zeros((prod(others), prod(summed)), np.float32)
    flat[np.arange(len(flat)), rng.integers(flat.shape[1], size=len(flat))] = rng.choice([-1.0, 1.0], len(flat))
    last = range(-len(axes), 0)
    return np.ascontiguousarray(np.moveaxis(flat.reshape(*others, *summed), last, axes).reshape(array.shape))


def _multiplies_activations(node: ir.Node) -> bool:
    """Sums whose terms are all alive, whatever the weights are."""
    cell = rule(node).channels
    if isinstance(cell, cells.Contracted):
        return all(query.constant(value) is None for value in node.inputs[:2])
    if isinstance(cell, cells.Weighted):
        return query.constant(node.inputs[1]) is None
    # A recurrent cell reads its own state; sums over channels that are cut are rounded in another order.
    return isinstance(cell, cells.Recurrent) or (isinstance(cell, cells.Reduced) and not cell.weighs)


def _whole(spec: TensorSpec, array: Array, seed: int) -> Array:
    if array.dtype.kind != "f":
        return array
    return np.random.default_rng(seed).integers(-8, 9, array.shape).astype(spec.dtype)
