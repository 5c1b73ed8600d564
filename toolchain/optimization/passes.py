"""Cleaning a model up without changing what it computes: one literal list of passes.

Run before anything else looks at a graph, so that later stages meet constants as initializers, folded
batch normalization, known shapes and unique names. The result is compared with the input in onnxruntime.

This is the only importer of onnxscript's optimizer and rewriter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxruntime import InferenceSession
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

from toolchain.core.errors import GateError, one_line
from toolchain.data.tensors import Array, Feed
from toolchain.graph import check, io, query, run
from toolchain.optimization import fold_affine, linear_to_gemm, rewrites

# Folding batch normalization or constants reassociates float32 sums; 24-bit mantissas and a few hundred
# terms leave relative errors near 1e-6, a hundred layers may add up to 1e-5.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Optimized:
    """The cleaned model, what it cost in operators, and how far its outputs moved (relative to the largest).

    max_relative_error: None where nothing was compared: not asked for, or the source runs on no random input.
    """

    model: ir.Model
    nodes_before: int
    nodes_after: int
    max_relative_error: float | None


def optimize(model: ir.Model, *, verify: bool = True) -> Optimized:
    """Run :data:`PASSES` on a clone of `model`.

    Raises:
        GateError: the outputs moved by more than :data:`TOLERANCE` on random inputs.
        ModelError: the result is not a well-formed graph.
    """
    result = model.clone()
    for apply in PASSES:
        apply(result)
    check.check(result)
    error = _equivalence(model, result) if verify else None
    return Optimized(result, _count(model), _count(result), error)


def _count(model: ir.Model) -> int:
    return sum(1 for node in model.graph if node.op_type != "Constant")


def _equivalence(before: ir.Model, after: ir.Model) -> float | None:
    """Largest relative difference on random inputs, dynamic axes at 1 and 2, or more where the model needs more."""
    engines = run.session(before), run.session(after)
    names, specs = [spec.name for spec in io.outputs(before)], io.inputs(before)
    worst: float | None = None
    for seed, size in enumerate((1, 1, 2, 8, 32, 128, 512)):
        if size > 2 and worst is not None:
            break
        feed = run.random_feed(specs, np.random.default_rng(seed), dynamic=size)
        try:
            reference = run.run(engines[0], [feed])
        except run.OrtError:
            continue  # this size of the dynamic axes is not one the source model can run
        worst = max(worst or 0.0, _moved(names, reference, engines[1], feed))
    return worst


def _moved(names: Sequence[str], reference: list[list[Array]], engine: InferenceSession, feed: Feed) -> float:
    hint = "report the model"
    try:
        found = run.difference(names, reference, run.run(engine, [feed]))
    except run.OrtError as error:
        what = f"cleaned up, it does not run where it did before ({one_line(error)})"
        raise GateError(what, where="model", hint=hint) from None
    if not found.error <= TOLERANCE:
        what = f"clean-up changed it by {found.error:.1e} relative to its largest value"
        raise GateError(what, where=f"output {found.output!r}", hint=hint)
    return found.error


# ---------------------------------------------------------------------- passes that need the rewriter


NO_LIMIT = 2**40
GROWING = frozenset({"Expand", "Tile", "ConstantOfShape", "Resize", "Pad", "Range", "OneHot", "DequantizeLinear"})
"""Small in the file, large when computed; weights that are stored as integers stay so."""


def _may_fold(node: ir.Node) -> bool | None:
    return False if node.op_type in GROWING and (query.elements(node.outputs[0]) or NO_LIMIT) > 4096 else None


def fold_constants(model: ir.Model) -> None:
    """Compute what depends on constants alone, of any size, as recurrent weights are cut and joined.

    What onnx's reference cannot compute stays, and is no news to users.
    """
    log = logging.getLogger("onnxscript.optimizer")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        optimizer.fold_constants_ir(
            model,
            onnx_shape_inference=True,
            input_size_limit=NO_LIMIT,
            output_size_limit=NO_LIMIT,
            should_fold=_may_fold,
        )
    finally:
        log.setLevel(level)


def fuse_hard_swish(model: ir.Model) -> None:
    """``x * clip(x + 3, 0, 6) / 6`` becomes ``HardSwish`` where the operator set has it (14 and later)."""
    if query.opset(model) >= 14:
        rewriter.RewritePass(rules.fuse_hardswish_rules())(model)


def _rewrite(*chosen: rewriter.RewriteRule) -> Callable[[ir.Model], object]:
    apply: Callable[[ir.Model], object] = rewriter.RewritePass(chosen)
    return apply


PASSES: tuple[Callable[[ir.Model], object], ...] = (
    common.InlinePass(),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.RemoveInitializersFromInputsPass(),
    common.ShapeInferencePass(),
    fold_constants,
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    rewrites.read_known_sizes,
    fold_constants,
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    rewrites.drop_identities,
    rewrites.constants_second,
    _rewrite(rules.dropout_zero_rule, rules.dropout_inference_rule),
    _rewrite(rules.add_0_rule, rules.sub_0_rule, rules.mul_by_1_rule, rules.div_by_1_rule),
    rewrites.drop_identities,  # the rules leave an Identity for every no-op
    _rewrite(
        rules.no_op_cast_rule, rules.no_op_expand_rule, rules.no_op_transpose_rule, rules.transpose_transpose_rule
    ),
    rewrites.drop_identities,
    _rewrite(rules.fuse_batchnorm_into_conv_rule, rules.fuse_batchnorm_into_conv_transpose_rule),
    _rewrite(rules.fuse_batchnorm_into_gemm_rule, rules.fuse_pad_into_conv_rule),
    rewrites.relu_before_pool,
    _rewrite(rules.successive_relu_rule, rules.successive_clip_rule, rules.successive_relu_clip_rule),
    fuse_hard_swish,
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    _rewrite(rules.matmul_add_to_gemm_rule, rules.transpose_b_matmul_add_to_gemm_rule),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    fold_affine.affine_into_conv,
    fold_affine.affine_into_next,
    rewrites.batchnorm_to_depthwise,
    common.RemoveUnusedNodesPass(),
    rewrites.halve_last,
    common.RemoveUnusedNodesPass(),
    rewrites.drop_stale_value_info,
    rewrites.spatial_mean_to_pool,
    linear_to_gemm.scale_into_linear,
    linear_to_gemm.linear_to_gemm,
    linear_to_gemm.merge_reshapes,
    rewrites.drop_stale_value_info,
    common.CommonSubexpressionEliminationPass(),
    common.DeduplicateInitializersPass(),
    common.RemoveUnusedFunctionsPass(),
    common.RemoveUnusedOpsetsPass(),
    common.RemoveUnusedNodesPass(),
    common.TopologicalSortPass(),
    common.ClearMetadataAndDocStringPass(),
    common.OutputFixPass(),
    rewrites.name_everything,
)
"""In order: constants become initializers and fold, no-ops vanish, normalization folds, shapes are inferred anew,
then what the rest of the toolchain relies on: no dead code, sorted nodes, no exporter's stack traces, unique names."""
