"""Clean-up of a model without changing what it computes: one literal list of passes.

It runs before anything else reads a graph, so that later stages find constants as initializers, batch normalization
folded, shapes known and names unique. The result is compared with the original in onnxruntime; if it computes something
else, the pass that is to blame is found by bisection over the list, and named.

This is the only importer of onnxscript's optimizer and rewriter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

from toolchain.core.errors import GateError
from toolchain.graph import check, query
from toolchain.optimization import fold_affine, linear_to_gemm, rewrites
from toolchain.optimization.equivalence import Equivalence, compare, first_wrong

log = logging.getLogger(__name__)

Pass = Callable[[ir.Model], object]
"""Changes a model in place, and nothing that it computes."""


@dataclass(frozen=True)
class Optimized:
    """A cleaned-up model.

    nodes_before, nodes_after: without Constant nodes.
    max_relative_error: the largest change of an output, relative to its largest value; None if nothing was compared,
        because `verify` was off or the original ran on no random input.
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
    found = compare(model, result) if verify else Equivalence(None)
    if not found.holds:
        raise _blame(model, found)
    error = None if found.difference is None else found.difference.error
    before, after = _count(model), _count(result)
    changed = "not compared" if error is None else f"largest relative change of an output {error:.1e}"
    log.info("clean-up: %d nodes became %d, %s", before, after, changed)
    return Optimized(result, before, after, error)


def _cleaned(model: ir.Model, passes: Sequence[Pass]) -> ir.Model:
    result = model.clone()
    for apply in passes:
        before = _count(result)
        apply(result)
        if (after := _count(result)) != before:
            log.debug("clean-up pass %s: %d nodes became %d", _name(apply), before, after)
    return result


def _count(model: ir.Model) -> int:
    return sum(1 for node in model.graph if node.op_type != "Constant")


def _name(apply: Pass) -> str:
    return getattr(apply, "__name__", type(apply).__name__)


def _blame(model: ir.Model, found: Equivalence) -> GateError:
    """The error that names the first pass after which the model is another one."""

    def is_right(count: int) -> bool:
        # The last passes make any graph one that can be saved and run.
        return compare(model, _cleaned(model, (*PASSES[:count], *FINISHING))).holds

    name = _name(PASSES[first_wrong(len(PASSES), is_right)])
    hint = "report the model"
    if found.failure or found.difference is None:
        what = f"after clean-up pass `{name}` it does not run where it did before ({found.failure})"
        return GateError(what, where="model", hint=hint)
    what = f"clean-up pass `{name}` changed it by {found.difference.error:.1e} relative to its largest value"
    return GateError(what, where=f"output {found.difference.output!r}", hint=hint)


# ---------------------------------------------------------------------- passes that need the rewriter


FOLD_ANY_SIZE = 2**40
"""Elements: above any tensor."""
EXPANDING = frozenset({"Expand", "Tile", "ConstantOfShape", "Resize", "Pad", "Range", "OneHot", "DequantizeLinear"})
"""Operators whose constant result may need more bytes in the file than its inputs; integer weights stay integers."""
EXPANDED_ELEMENTS = 4096
"""Larger results of those are not folded."""


def _may_fold(node: ir.Node) -> bool | None:
    """False keeps a node; None leaves the choice to the optimizer."""
    too_large = (query.elements(node.outputs[0]) or FOLD_ANY_SIZE) > EXPANDED_ELEMENTS
    return False if node.op_type in EXPANDING and too_large else None


def fold_constants(model: ir.Model) -> None:
    """Compute nodes that depend on constants alone, of any size, since exporters split and join recurrent weights.

    Nodes that onnx's reference evaluator cannot compute stay; its warnings about them are not shown.
    """
    optimizer_log = logging.getLogger("onnxscript.optimizer")
    level = optimizer_log.level
    optimizer_log.setLevel(logging.ERROR)
    try:
        optimizer.fold_constants_ir(
            model,
            onnx_shape_inference=True,
            input_size_limit=FOLD_ANY_SIZE,
            output_size_limit=FOLD_ANY_SIZE,
            should_fold=_may_fold,
        )
    finally:
        optimizer_log.setLevel(level)


def fuse_hard_swish(model: ir.Model) -> None:
    """Replace ``x * clip(x + 3, 0, 6) / 6`` by ``HardSwish``, which operator sets have from 14 on."""
    if query.opset(model) >= 14:
        rewriter.RewritePass(rules.fuse_hardswish_rules())(model)


def _rewrite(name: str, *chosen: rewriter.RewriteRule) -> Pass:
    """A pass of some rewrite rules, under a name for logs and errors."""
    rewrite = rewriter.RewritePass(chosen)

    def apply(model: ir.Model) -> None:
        rewrite(model)

    apply.__name__ = name
    return apply


_lift_constants = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)

FINISHING: tuple[Pass, ...] = (
    common.RemoveUnusedNodesPass(),
    common.TopologicalSortPass(),
    common.ClearMetadataAndDocStringPass(),
    common.OutputFixPass(),
    rewrites.name_everything,
)
"""Properties that the rest of the toolchain relies on: no dead code, sorted nodes, no stack traces of the exporter, no
value that is an output twice, unique names."""

PASSES: tuple[Pass, ...] = (
    # constants become initializers, and fold
    common.InlinePass(),
    _lift_constants,
    common.RemoveInitializersFromInputsPass(),
    common.ShapeInferencePass(),
    fold_constants,
    _lift_constants,
    rewrites.read_known_sizes,
    fold_constants,
    _lift_constants,
    # operators without effect vanish
    rewrites.drop_identities,
    rewrites.move_constants_second,
    _rewrite("drop_dropout", rules.dropout_zero_rule, rules.dropout_inference_rule),
    _rewrite("drop_neutral_terms", rules.add_0_rule, rules.sub_0_rule, rules.mul_by_1_rule, rules.div_by_1_rule),
    rewrites.drop_identities,  # the rules leave an Identity for every operator without effect
    _rewrite(
        "drop_neutral_moves",
        rules.no_op_cast_rule,
        rules.no_op_expand_rule,
        rules.no_op_transpose_rule,
        rules.transpose_transpose_rule,
    ),
    rewrites.drop_identities,
    # normalization, activations, constant factors and offsets fold into products
    _rewrite(
        "fold_batchnorm_into_conv", rules.fuse_batchnorm_into_conv_rule, rules.fuse_batchnorm_into_conv_transpose_rule
    ),
    _rewrite("fold_batchnorm_and_pad", rules.fuse_batchnorm_into_gemm_rule, rules.fuse_pad_into_conv_rule),
    rewrites.move_relu_before_pool,
    _rewrite(
        "merge_activations", rules.successive_relu_rule, rules.successive_clip_rule, rules.successive_relu_clip_rule
    ),
    fuse_hard_swish,
    _lift_constants,
    _rewrite("matmul_add_to_gemm", rules.matmul_add_to_gemm_rule, rules.transpose_b_matmul_add_to_gemm_rule),
    _lift_constants,
    fold_affine.fold_affine_after_conv,
    fold_affine.fold_affine_before_conv,
    rewrites.batchnorm_to_depthwise,
    common.RemoveUnusedNodesPass(),
    rewrites.gelu_half_last,
    common.RemoveUnusedNodesPass(),
    # operators take the form that has an int8 kernel
    rewrites.infer_shapes_anew,
    rewrites.spatial_mean_to_pool,
    linear_to_gemm.fold_scale_into_linear,
    linear_to_gemm.linear_to_gemm,
    linear_to_gemm.merge_reshapes,
    rewrites.infer_shapes_anew,
    # equal parts are shared, unused ones removed
    common.CommonSubexpressionEliminationPass(),
    common.DeduplicateInitializersPass(),
    common.RemoveUnusedFunctionsPass(),
    common.RemoveUnusedOpsetsPass(),
    *FINISHING,
)
"""All passes, in the order in which they run."""
