"""Races of int8 against float on this machine: each fragment against its float version, then the whole model.

A node stays int8 only where that is not slower. Otherwise the reason to leave it float states both times.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from pathlib import Path

import onnx_ir as ir

from toolchain.core.progress import Progress, Stage
from toolchain.data.tensors import Feed
from toolchain.formats.target import Encoding
from toolchain.graph import query, run, tap
from toolchain.latency.race import Race, race
from toolchain.quantization.plan import Plan
from toolchain.quantization.qdq.fragments import Fragment, fragments
from toolchain.quantization.qdq.writer import apply_quantization

WHOLE_MODEL_RACE_SECONDS = 0.5

_log = logging.getLogger(__name__)


def slower_fragments(model: ir.Model, plan: Plan, encoding: Encoding, feed: Feed, progress: Progress) -> dict[str, str]:
    """Race each int8 fragment of the plan against its float version; fragments of one form are raced once.

    Returns:
        The nodes of the fragments that are slower as int8, each with the reason to leave it float.
    """
    parts = fragments(model, plan, encoding)
    if len(parts) == 1 and len(parts[0].nodes) * 2 > len(plan.choices):
        return {}  # the fragment is most of the model, so the race of the whole model decides
    inputs = _fragment_inputs(model, parts, feed)
    reasons: dict[str, str] = {}
    results: dict[object, Race] = {}
    stage = Stage("racing int8 against float", len(parts), progress)
    for part in parts:
        entering = {name: inputs[name] for value in part.float_model.graph.inputs if (name := str(value.name))}
        form = _form(part.int8_model, [array.shape for array in entering.values()])
        if form not in results:
            results[form] = race_models(part.float_model, part.int8_model, entering, decide=True)
        result = results[form]
        float_s, int8_s = result.medians_s
        _log.debug("fragment of %s: float %.1f µs, int8 %.1f µs", part.name, float_s * 1e6, int8_s * 1e6)
        if result.second_is_slower():
            times = f"{int8_s * 1e6:.1f} µs, in float {float_s * 1e6:.1f} µs"
            around = f", measured for the {len(part.nodes)} connected nodes around it" if len(part.nodes) > 1 else ""
            reasons.update(dict.fromkeys(part.nodes, f"int8 is slower on this machine: {times}{around}"))
        stage.step()
    return reasons


def slower_whole_model(model: ir.Model, plan: Plan, encoding: Encoding, feed: Feed) -> str | None:
    """Race the whole int8 model against the float model; return the reason to stay float where int8 is slower."""
    int8 = apply_quantization(model, plan, encoding)
    result = race_models(model, int8, feed, seconds=WHOLE_MODEL_RACE_SECONDS, decide=True)
    float_s, int8_s = result.medians_s
    _log.info("whole model: float %.2f ms, int8 %.2f ms", float_s * 1e3, int8_s * 1e3)
    if not result.second_is_slower():
        return None
    return f"the whole model is slower as int8 on this machine: {int8_s * 1e3:.2f} ms, in float {float_s * 1e3:.2f} ms"


def race_models(
    first: ir.Model | Path, second: ir.Model | Path, feed: Feed, seconds: float = 0.1, *, decide: bool = False
) -> Race:
    """Race two models, each on one thread; see :func:`toolchain.latency.race.race`."""
    return race(run.session(first, threads=1), run.session(second, threads=1), feed, seconds=seconds, decide=decide)


def _form(model: ir.Model, shapes: Sequence[tuple[int, ...]]) -> Hashable:
    """Describe all that the time of a model depends on: operators, attributes, connections and sizes, but no weights.

    Args:
        model: the model.
        shapes: shapes of its inputs.
    """
    numbers = {value: number for number, value in enumerate(query.activations(model))}
    nodes = tuple(
        (
            node.op_type,
            tuple(sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())),
            tuple(None if v is None else numbers.get(v, (str(v.dtype), query.sizes(v))) for v in node.inputs),
        )
        for node in model.graph
    )
    return tuple(shapes), nodes, tuple(numbers[value] for value in model.graph.outputs)


def _fragment_inputs(model: ir.Model, parts: Sequence[Fragment], feed: Feed) -> Feed:
    """Compute the tensors that enter the fragments, for one feed of the model."""
    names = [str(value.name) for part in parts for value in part.float_model.graph.inputs]
    return tap.capture(model, names, [feed], threads=1)[0]
