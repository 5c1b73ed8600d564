"""Proof that a cut only removed channels: the pruned graph is compared with the dense graph with masks.

The reference is the dense graph in which every operator that sums over channels reads them through a mask, which is 0
for those that were cut. It shares only the layout with the cutting, no slices, sizes or attributes. (It would be wrong
to set the weights that *make* the channels to zero: the bias, and f(0) of the operators behind it, would remain.)

Both graphs are run on random inputs twice:

real weights        The outputs are equal up to a relative tolerance, since sums over fewer terms are rounded in another
                    order.
selection weights   Every row of a weight has a single entry, +1 or -1, at a random position; biases are small whole
                    numbers. A sum then has only one term that is not zero, so rounding does not depend on the number of
                    terms, and the outputs must be equal bit for bit. Where activations are multiplied with each other,
                    as in attention, the tolerance applies here as well.
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
# normalization may divide by a small number.
PROOF_TOLERANCE = 1e-4
PROOF_SEEDS = (0, 1)
REORDERING_TRANSFORMERS = ("NchwcTransformer", "ConvBNFusion", "ConvMulFusion", "MatMul_BatchNormalization_Fusion")
"""Graph transformers of onnxruntime after which rounding depends on the number of channels. They sum an average over
blocks of channels in another order, or multiply weights by a scale, so that they are no longer selection weights."""


def verify_cuts(model: ir.Model, cuts: Cuts, pruned: ir.Model | None = None, *, dynamic: int = 1) -> CutProof:
    """Compare a pruned model with the masked dense one.

    Args:
        model: the dense model, as :func:`separate` returns it.
        cuts: the positions that are kept.
        pruned: the pruned model with the weights it had after cutting; None: `model` is cut here.
        dynamic: size for dynamic axes.
    """
    pruned = apply_cuts(model, cuts) if pruned is None else pruned
    mismatches: list[str] = []
    errors: list[float] = []
    names = [spec.name for spec in io.outputs(model)]
    exact = not any(_multiplies_activations(node) for node in model.graph)
    identical = True
    for seed in PROOF_SEEDS:
        feed = run.random_feed(io.inputs(model), np.random.default_rng(seed), dynamic=dynamic)
        reference, result = _run_both(model, pruned, cuts, feed)
        distance = run.difference(names, [reference], [result])
        errors.append(distance.error)
        if not distance.error <= PROOF_TOLERANCE:
            mismatches.append(f"output {distance.output!r} differs by {distance.error:.1e} of its largest value")
        selecting = with_selection_weights(model, seed)
        whole = {spec.name: _whole_numbers(spec, feed[spec.name], seed) for spec in io.inputs(model)}
        reference, result = _run_both(selecting, apply_cuts(selecting, cuts), cuts, whole)
        for name, a, b in zip(names, reference, result, strict=True):
            same = bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
            identical &= same
            if not same and (exact or not np.allclose(a, b, rtol=PROOF_TOLERANCE, atol=PROOF_TOLERANCE * _largest(a))):
                mismatches.append(f"output {name!r} is not the same with selection weights")
    return CutProof(error=max(errors), identical=identical, exact=exact, mismatches=tuple(dict.fromkeys(mismatches)))


def _largest(array: Array) -> float:
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) if array.dtype.kind == "f" else 0.0


def _run_both(model: ir.Model, pruned: ir.Model, cuts: Cuts, feed: Feed) -> tuple[Sequence[Array], Sequence[Array]]:
    engines = [run.session(m, threads=1, without=REORDERING_TRANSFORMERS) for m in (masked(model, cuts), pruned)]
    reference, result = (engine.run(None, feed) for engine in engines)
    return reference, result


def masked(model: ir.Model, cuts: Cuts) -> ir.Model:
    """Make every operator that sums over cut channels read them as zero, in a clone."""
    clone = model.clone()
    model_layout = layout(clone)
    keep = keep_sets(clone, model_layout, cuts)
    names = edit.Names(clone.graph)
    for node, where in model_layout.summed.items():
        for index, at in where:
            value = node.inputs[index]
            if value is None:
                continue
            space = model_layout.axes[value][at]
            kept = kept_positions(space, keep)
            if space.root.size is None or len(kept) == space.root.size:
                continue
            mask = np.zeros(space.root.size, (value.dtype or ir.DataType.FLOAT).numpy())
            mask[kept] = 1
            mask = mask.reshape([-1 if a == at else 1 for a in range(len(model_layout.axes[value]))])
            factor = edit.add_constant(clone.graph, names.fresh(f"{value.name}_mask"), mask)
            product = ir.node("Mul", [value, factor], name=names.fresh(f"{value.name}_masked"))
            product.outputs[0].name = names.fresh(f"{value.name}_masked_out")
            product.outputs[0].type, product.outputs[0].shape = value.type, value.shape
            clone.graph.insert_before(node, product)
            node.replace_input_with(index, product.outputs[0])
    return clone


def with_selection_weights(model: ir.Model, seed: int) -> ir.Model:
    """Replace the weights of a clone by selection weights; see the module's docstring."""
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
                chosen = _selection_weight(node, cell, index, array, rng)
            written[str(value.name)] = chosen
    for name, chosen in written.items():
        values[name].const_value = ir.tensor(chosen, name=name)
    return clone


def _selection_weight(node: ir.Node, cell: cells.Channels, index: int, array: Array, rng: np.random.Generator) -> F32:
    """Draw a weight of the shape of `array` with one entry in each of its sums."""
    split = (1, *array.shape)
    if isinstance(cell, cells.Weighted):
        # A ConvTranspose sums over the rows of its weight, which are those of all groups, for each group by itself.
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
    """True for an operator in whose sums several terms may differ from zero, whatever the weights are."""
    cell = rule(node).channels
    if isinstance(cell, cells.Contracted):
        return all(query.constant(value) is None for value in node.inputs[:2])
    if isinstance(cell, cells.Weighted):
        return query.constant(node.inputs[1]) is None
    # A recurrent cell reads its own state; a sum over channels is rounded in another order once some are cut.
    return isinstance(cell, cells.Recurrent) or (isinstance(cell, cells.Reduced) and not cell.pins)


def _whole_numbers(spec: TensorSpec, array: Array, seed: int) -> Array:
    if array.dtype.kind != "f":
        return array
    return np.random.default_rng(seed).integers(-8, 9, array.shape).astype(spec.dtype)
