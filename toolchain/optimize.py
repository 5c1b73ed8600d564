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

from toolchain.errors import GateError
from toolchain.graph import check, edit, io, query, run
from toolchain.tensors import Array, Feed

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
        what = f"cleaned up, it does not run where it did before ({run.one_line(error)})"
        raise GateError(what, where="model", hint=hint) from None
    if not found.error <= TOLERANCE:
        what = f"clean-up changed it by {found.error:.1e} relative to its largest value"
        raise GateError(what, where=f"output {found.output!r}", hint=hint)
    return found.error


# ------------------------------------------------------------------------------------------- our own passes


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


def constants_second(model: ir.Model) -> None:
    """Sums and products read their constant second, where every rule behind this looks for it."""
    for node in model.graph:
        if node.op_type not in ("Add", "Mul") or len(node.inputs) != 2:
            continue
        first, second = node.inputs
        if query.constant(first) is not None and query.constant(second) is None:
            edit.set_input(node, 0, second)
            edit.set_input(node, 1, first)


def spatial_mean_to_pool(model: ir.Model) -> None:
    """``ReduceMean`` over all spatial axes becomes ``GlobalAveragePool`` (+ Flatten without keepdims).

    The two compute the same; the pool has an int8 kernel and the reduction has none.
    """
    names = edit.Names(model.graph)
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "ReduceMean" and node.inputs else None
        rank = query.rank(source) if source is not None else None
        if source is None or rank not in (3, 4, 5) or not query.is_float(source):
            continue
        axes = query.ints(node.inputs[1]) if len(node.inputs) > 1 else query.attribute(node, "axes")
        if axes is None or sorted(a % rank for a in axes) != list(range(2, rank)):
            continue
        name = query.label(node)
        if query.attribute(node, "keepdims", 1):
            edit.replace_node(node, ir.node("GlobalAveragePool", [source], name=name))
            continue
        pool = ir.node("GlobalAveragePool", [source], name=names.fresh(f"{name}_pool"))
        pool.outputs[0].name = names.fresh(f"{node.outputs[0].name}_pool")
        pool.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        pool.outputs[0].shape = ir.Shape([*list(source.shape or ())[:2], *[1] * (rank - 2)])
        model.graph.insert_before(node, pool)
        edit.replace_node(node, ir.node("Flatten", [pool.outputs[0]], {"axis": 1}, name=name))


def add_to_bias(model: ir.Model) -> None:
    """``Conv`` followed by ``Add`` of a per-channel constant: the constant joins the convolution's bias."""
    names = edit.Names(model.graph)
    for node in list(model.graph):
        conv = node.inputs[0].producer() if node.op_type == "Add" and node.inputs[0] is not None else None
        if conv is None or conv.op_type != "Conv" or query.sole_consumer(conv.outputs[0]) is not node:
            continue
        weight, offset = query.float_array(conv.inputs[1]), query.float_array(node.inputs[1])
        if weight is None or offset is None:
            continue
        channels = (weight.shape[0], *[1] * (weight.ndim - 2))
        if offset.shape not in (channels, (1, *channels)):
            continue
        old = conv.inputs[2] if len(conv.inputs) > 2 else None
        bias = query.float_array(old)
        if old is not None and bias is None:
            continue
        total = offset.reshape(-1) + (0 if bias is None else bias)
        name = names.fresh(f"{query.label(conv)}_bias")
        edit.set_input(conv, 2, edit.add_constant(model.graph, name, total.astype(np.float32)))
        edit.bypass(node)


def batchnorm_to_depthwise(model: ir.Model) -> None:
    """A batch normalization that could not be folded becomes a depthwise 1x1 convolution.

    y = γ (x - μ) / sqrt(σ² + ε) + β is one multiplication and one addition a channel. As a convolution it keeps the
    blocked layout of its neighbours and has an int8 kernel; as BatchNormalization it has neither.
    """
    names = edit.Names(model.graph)
    for node in list(model.graph):
        rank = query.rank(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
        if node.op_type != "BatchNormalization" or rank not in (3, 4, 5) or len(node.outputs) > 1:
            continue
        gamma, beta, mean, variance = (query.float_array(value) for value in node.inputs[1:5])
        if gamma is None or beta is None or mean is None or variance is None:
            continue
        scale = gamma / np.sqrt(variance + np.float32(query.attribute(node, "epsilon", 1e-5)))
        name = query.label(node)
        weight = scale.reshape(-1, *[1] * (rank - 1))
        node_inputs = [
            node.inputs[0],
            edit.add_constant(model.graph, names.fresh(f"{name}_weight"), weight.astype(np.float32)),
            edit.add_constant(model.graph, names.fresh(f"{name}_bias"), (beta - mean * scale).astype(np.float32)),
        ]
        conv = ir.node("Conv", node_inputs, {"group": len(gamma), "kernel_shape": [1] * (rank - 2)}, name=name)
        edit.replace_node(node, conv)


def drop_stale_value_info(model: ir.Model) -> None:
    """Shapes of computed values are forgotten and inferred anew, so that none outlives what it described."""
    for node in model.graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None
    common.ShapeInferencePass()(model)


def name_everything(model: ir.Model) -> None:
    """Every node and value gets a name, unique in the graph; given names are kept."""
    common.NameFixPass()(model)
    names = edit.Names(model.graph)
    seen: set[str] = set()
    for node in model.graph:
        if not node.name or node.name in seen:
            node.name = names.fresh(node.name or f"{node.op_type}_{node.outputs[0].name}")
        seen.add(node.name)


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
    common.IdentityEliminationPass(),
    constants_second,
    _rewrite(rules.dropout_zero_rule, rules.dropout_inference_rule),
    _rewrite(rules.add_0_rule, rules.sub_0_rule, rules.mul_by_1_rule, rules.div_by_1_rule),
    common.IdentityEliminationPass(),  # the rules leave an Identity for every no-op
    _rewrite(
        rules.no_op_cast_rule, rules.no_op_expand_rule, rules.no_op_transpose_rule, rules.transpose_transpose_rule
    ),
    common.IdentityEliminationPass(),
    _rewrite(rules.fuse_batchnorm_into_conv_rule, rules.fuse_batchnorm_into_conv_transpose_rule),
    _rewrite(rules.fuse_batchnorm_into_gemm_rule, rules.fuse_pad_into_conv_rule),
    _rewrite(rules.successive_relu_rule, rules.successive_clip_rule, rules.successive_relu_clip_rule),
    fuse_hard_swish,
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    _rewrite(rules.matmul_add_to_gemm_rule, rules.transpose_b_matmul_add_to_gemm_rule),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    add_to_bias,
    batchnorm_to_depthwise,
    common.RemoveUnusedNodesPass(),
    drop_stale_value_info,
    spatial_mean_to_pool,
    common.CommonSubexpressionEliminationPass(),
    common.DeduplicateInitializersPass(),
    common.RemoveUnusedFunctionsPass(),
    common.RemoveUnusedOpsetsPass(),
    common.RemoveUnusedNodesPass(),
    common.TopologicalSortPass(),
    common.ClearMetadataAndDocStringPass(),
    common.OutputFixPass(),
    name_everything,
)
"""In order: constants become initializers and fold, no-ops vanish, normalization folds, shapes are inferred anew,
then what the rest of the toolchain relies on: no dead code, sorted nodes, no exporter's stack traces, unique names."""
