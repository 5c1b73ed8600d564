"""Clean-up of a model without changing what it computes: a fixed list of passes.

It runs before all other stages, which rely on it: constants are initializers, batch normalization is folded, shapes are
known and names are unique. The result is compared with the original in onnxruntime. If it computes something else, the
error names the pass that caused it, which is found by bisection over the list.

This is the only importer of onnxscript's optimizer and rewriter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

from toolchain.core.errors import GateError
from toolchain.data.tensors import Feed
from toolchain.graph import check, edit, query, shapes
from toolchain.optimization import composites, fold_affine, linear_to_gemm, product_forms, rewrites, share_constants
from toolchain.optimization.equivalence import Equivalence, compare, first_wrong

LOGGER = logging.getLogger(__name__)

Pass = Callable[[ir.Model], object]
"""A function that changes a model in place, but not what it computes."""


@dataclass(frozen=True)
class Optimized:
    """A cleaned-up model.

    Attributes:
        model: the model.
        nodes_before: number of nodes of the original, without Constant nodes.
        nodes_after: the same of `model`.
        max_relative_error: the largest change of an output, relative to its largest value; None if nothing was
            compared, because `verify` was off or the original ran on none of the inputs.
    """

    model: ir.Model
    nodes_before: int
    nodes_after: int
    max_relative_error: float | None


def optimize(model: ir.Model, *, verify: bool = True) -> Optimized:
    """Run :data:`PASSES` on a clone of `model`.

    Args:
        model: a float model; it is not changed.
        verify: compare the outputs of the two on random inputs.

    Raises:
        GateError: the cleaned-up model computes something else, or does not run where the original does.
        ModelError: the result is not a well-formed graph.
    """
    result = _cleaned(model, PASSES)
    check.check(result)
    equivalence = compare(model, result) if verify else Equivalence(None)
    if not equivalence.holds:
        raise _failed_pass(model, equivalence)
    error = None if equivalence.difference is None else equivalence.difference.error
    before, after = _count(model), _count(result)
    changed = "not compared" if error is None else f"largest relative change of an output {error:.1e}"
    LOGGER.info("clean-up: %d nodes became %d, %s", before, after, changed)
    return Optimized(result, before, after, error)


def compared_on(model: ir.Model, optimized: Optimized, samples: Sequence[Feed]) -> Optimized:
    """Compare a cleaned-up model with the original on samples, where it was not compared on random inputs.

    Args:
        model: the original.
        optimized: the cleaned-up model; returned as it is where it was compared already.
        samples: inputs of the model.

    Raises:
        GateError: the cleaned-up model computes something else, or does not run where the original does.
    """
    if optimized.max_relative_error is not None:
        return optimized
    equivalence = compare(model, optimized.model, samples)
    if not equivalence.holds:
        raise _failed_pass(model, equivalence, samples)
    error = None if equivalence.difference is None else equivalence.difference.error
    return replace(optimized, max_relative_error=error)


def _cleaned(model: ir.Model, passes: Sequence[Pass]) -> ir.Model:
    result, names = model.clone(), [str(value.name) for value in model.graph.outputs]
    for apply in passes:
        before = _count(result)
        apply(result)
        if (after := _count(result)) != before:
            LOGGER.debug("clean-up pass %s: %d nodes became %d", _name(apply), before, after)
    edit.name_outputs(result, names)
    return result


def _count(model: ir.Model) -> int:
    return sum(1 for node in model.graph if node.op_type != "Constant")


def _name(apply: Pass) -> str:
    return getattr(apply, "__name__", type(apply).__name__)


def _failed_pass(model: ir.Model, equivalence: Equivalence, samples: Sequence[Feed] = ()) -> GateError:
    """Find the first pass after which the model computes something else, and return an error that names it."""

    def is_right(count: int) -> bool:
        # Without the finishing passes, the graph between two passes may not run.
        return compare(model, _cleaned(model, (*PASSES[:count], *FINISHING)), samples).holds

    name = _name(PASSES[first_wrong(len(PASSES), is_right)])
    hint = "report the model"
    if equivalence.failure or equivalence.difference is None:
        what = f"after clean-up pass `{name}` it no longer runs in onnxruntime ({equivalence.failure})"
        return GateError(what, where="model", hint=hint)
    what = f"clean-up pass `{name}` changed it by {equivalence.difference.error:.1e} relative to its largest value"
    return GateError(what, where=f"output {equivalence.difference.output!r}", hint=hint)


# ---------------------------------------------------------------------- passes that need the rewriter


NO_SIZE_LIMIT = 2**40
"""Number of elements that no tensor has."""
EXPANDING_OPERATORS = frozenset(
    {"Expand", "Tile", "ConstantOfShape", "Resize", "Pad", "Range", "OneHot", "DequantizeLinear"}
)
"""Operators whose result may need more bytes in the file than their inputs (dequantized weights need four times)."""
MAX_EXPANDED_ELEMENTS = 4096
"""Number of elements up to which results of :data:`EXPANDING_OPERATORS` are folded."""


def _may_fold(node: ir.Node, copies: Collection[ir.Node]) -> bool | None:
    """Return False to keep a node, or None to let the optimizer choose."""
    if node in copies:
        return False
    too_large = (query.elements(node.outputs[0]) or NO_SIZE_LIMIT) > MAX_EXPANDED_ELEMENTS
    return False if node.op_type in EXPANDING_OPERATORS and too_large else None


def fold_constants(model: ir.Model) -> None:
    """Compute nodes that depend on constants alone, unless the file would hold a large constant twice.

    There is no other limit of their size, because exporters split and join the weights of recurrent layers.

    Nodes that onnx's reference evaluator cannot compute stay; its warnings about them are not shown.
    """
    optimizer_log = logging.getLogger("onnxscript.optimizer")
    level = optimizer_log.level
    optimizer_log.setLevel(logging.ERROR)
    try:
        optimizer.fold_constants_ir(
            model,
            onnx_shape_inference=True,
            input_size_limit=NO_SIZE_LIMIT,
            output_size_limit=NO_SIZE_LIMIT,
            should_fold=partial(_may_fold, copies=share_constants.copies(model)),
        )
    finally:
        optimizer_log.setLevel(level)


def fuse_hard_swish(model: ir.Model) -> None:
    """Replace ``x * clip(x + 3, 0, 6) / 6`` by ``HardSwish``, which exists since operator set 14."""
    if query.opset(model) >= 14:
        rewriter.RewritePass(rules.fuse_hardswish_rules())(model)


def _rewrite(name: str, *chosen: rewriter.RewriteRule) -> Pass:
    """Make a pass of rewrite rules, with a name for logs and errors."""
    rewrite = rewriter.RewritePass(chosen)

    def apply(model: ir.Model) -> None:
        rewrite(model)

    apply.__name__ = name
    return apply


_lift_constants = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)

FINISHING: tuple[Pass, ...] = (
    edit.remove_unused,
    common.TopologicalSortPass(),
    common.ClearMetadataAndDocStringPass(),
    rewrites.name_everything,
)
"""Passes that establish what the rest of the toolchain relies on: no dead code, sorted nodes, no stack traces of the
exporter, unique names."""

PASSES: tuple[Pass, ...] = (
    # constants become initializers, and fold
    common.InlinePass(),
    _lift_constants,
    common.RemoveInitializersFromInputsPass(),
    shapes.infer_shapes,
    rewrites.drop_identities,
    share_constants.share_initializers,
    fold_constants,
    _lift_constants,
    rewrites.read_known_sizes,
    fold_constants,
    _lift_constants,
    rewrites.write_out_pads,
    # operators without effect vanish
    rewrites.drop_identities,
    rewrites.move_constants_second,
    _rewrite("drop_dropout", rules.dropout_zero_rule, rules.dropout_inference_rule),
    rewrites.drop_neutral_terms,
    rewrites.drop_identities,  # the rules leave an Identity for every operator without effect
    _rewrite(
        "drop_neutral_moves",
        rules.no_op_cast_rule,
        rules.no_op_expand_rule,
        rules.no_op_transpose_rule,
        rules.transpose_transpose_rule,
    ),
    rewrites.drop_identities,
    # products take their common forms; normalization, activations, constant factors and offsets fold into them
    share_constants.read_transposed_constants,
    product_forms.einsum_to_matmul,
    product_forms.left_constant_to_conv,
    product_forms.matmul_and_bias_to_gemm,
    product_forms.fold_gemm_factors,
    fold_affine.fold_batchnorm,
    _rewrite("fold_pad", rules.fuse_pad_into_conv_rule),
    rewrites.move_relu_before_pool,
    rewrites.merge_clips,
    fuse_hard_swish,
    _lift_constants,
    fold_affine.fold_affine_after_conv,
    fold_affine.fold_affine_before_conv,
    rewrites.batchnorm_to_depthwise,
    common.RemoveUnusedNodesPass(),
    composites.join_layer_normalization,
    composites.normalize_gelu,
    # operators take the form that has an int8 kernel
    rewrites.infer_shapes_anew,
    rewrites.spatial_mean_to_pool,
    linear_to_gemm.fold_scale_into_linear,
    linear_to_gemm.linear_to_gemm,
    linear_to_gemm.merge_reshapes,
    rewrites.infer_shapes_anew,
    # equal parts are shared, unused ones removed
    common.CommonSubexpressionEliminationPass(),
    share_constants.share_initializers,
    common.RemoveUnusedFunctionsPass(),
    common.RemoveUnusedOpsetsPass(),
    *FINISHING,
)
"""All passes, in the order in which they run."""
