"""Models that answer one input in two ways: random numbers, or layers that were exported in training mode.

Nothing can be measured of such a model, neither what a change of it costs nor that a file was copied right. Layers in
training mode are a mistake of the export and refused where they stand: onnxruntime treats a Dropout in training mode as
one in inference mode if its optimizer comes across it, and as random if not.

Operators that draw random numbers are found in the graph; running the model twice then tells whether they reach an
output. A model whose noise is multiplied by zero is repeatable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from toolchain.core.errors import ModelError
from toolchain.data.tensors import Array, Feed
from toolchain.graph import query, run

RANDOM_OPERATORS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
MAX_NODES_NAMED = 3

# Several threads may add numbers in another order at each run; an answer that changes by less is the same answer.
REPEAT_TOLERANCE = 1e-4


def refuse_training_mode(model: ir.Model, where: str | Path) -> None:
    """Refuse layers in training mode: Dropout, and BatchNormalization, which then reads the statistics of each batch.

    Raises:
        ModelError: names the nodes.
    """
    nodes = list(_live_nodes(model))
    for operator, in_training, effect in (
        ("BatchNormalization", _reads_batch, "depends on the whole batch"),
        ("Dropout", _drops, "is random"),
    ):
        found = [node for node in nodes if query.op(node) == operator and in_training(model, node)]
        if found:
            verb = "is" if len(found) == 1 else "are"
            raise ModelError(
                f"{_listed(found)} {verb} in training mode, so that each answer {effect}",
                where=where,
                hint="call model.eval() before the export",
            )


def _reads_batch(model: ir.Model, node: ir.Node) -> bool:
    """True for a BatchNormalization in training mode: by an attribute, up to opset 13 by outputs after the first."""
    if query.opset(model) < 14:
        return any(output.name for output in node.outputs[1:])
    return bool(query.attribute(node, "training_mode", 0))


def _drops(model: ir.Model, node: ir.Node) -> bool:
    """True for a Dropout in training mode; its flag must be a constant, since a computed one depends on the input."""
    if query.opset(model) < 12:
        return False  # it has no flag, and is in inference mode since opset 7
    training, ratio = query.optional_input(node, 2), query.optional_input(node, 1)
    return query.scalar(training) not in (None, 0) and query.scalar(ratio) != 0


def check_repeatable(model: ir.Model, engine: ort.InferenceSession, feed: Feed, where: str | Path) -> None:
    """Run a model twice on one input, and refuse it if the answers differ.

    Args:
        model: the model, in which the causes are looked for.
        engine: a session of it, or of the file it was made from.
        feed: the input.
        where: the model's name in errors.

    Raises:
        ModelError: names the nodes that draw random numbers.
        onnxruntime's errors (`run.OrtError`): the model does not run on this input.
    """
    first, second = run.run(engine, [feed, feed])
    if _same(first, second):
        return
    found = random_nodes(model)
    if found:
        what = f"draws random numbers in {_listed(found)}, and so gives two different results for one input"
    else:
        what = "gives two different results for one input"
    raise ModelError(what, where=where, hint="make the random numbers an input of the model, or remove them")


def random_nodes(model: ir.Model) -> list[ir.Node]:
    """Nodes that draw random numbers and whose results an output needs."""
    return [node for node in _live_nodes(model) if query.op(node) in RANDOM_OPERATORS]


def _listed(nodes: Sequence[ir.Node]) -> str:
    names = [f"node {query.label(node)!r} ({node.op_type})" for node in nodes[:MAX_NODES_NAMED]]
    more = f" and {len(nodes) - MAX_NODES_NAMED} more" if len(nodes) > MAX_NODES_NAMED else ""
    return ", ".join(names) + more


def _same(first: Sequence[Array], second: Sequence[Array]) -> bool:
    return all(run.relative_error(a, b) <= REPEAT_TOLERANCE for a, b in zip(first, second, strict=True))


def _live_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Nodes that an output needs, in graph order; with those of their subgraphs and of functions that they call."""
    needed: set[ir.Node] = set()
    waiting = _writers(model.graph.outputs)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            reads = [*node.inputs, *(value for inner in query.inner_nodes(node) for value in inner.inputs)]
            reads += [value for graph in query.subgraphs(node) for value in graph.outputs]
            waiting += _writers(value for value in reads if value is not None)
    functions = set()
    for node in model.graph:
        if node in needed:
            for live in (node, *query.inner_nodes(node)):
                yield live
                functions.add(live.op_identifier())
    for identifier, function in model.functions.items():
        if identifier in functions:  # a function that only another function calls is rare, and found by the run
            yield from function.all_nodes()


def _writers(values: Iterable[ir.Value]) -> list[ir.Node]:
    return [node for value in values if (node := value.producer()) is not None]
