"""Points: the tensors of a float model that are compared, which are outputs and what stands behind them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from toolchain.evaluation.fidelity import saturating_tail
from toolchain.evaluation.parts import is_moving, pieces_of
from toolchain.graph import query

SELECTING_OPERATORS = frozenset({"NonMaxSuppression", "TopK", "ArgMax", "ArgMin"})
"""Operators that choose elements by their order; the numbers in front of them are compared."""


@dataclass(frozen=True)
class Point:
    """A tensor that is compared.

    Attributes:
        title: its name in messages.
        tensor: its name in the float model.
        reader: label of the node that reads it, and the index of the input; None for a graph output.
    """

    title: str
    tensor: str
    reader: tuple[str, int] | None = None


def compared_points(model: ir.Model) -> list[Point]:
    """List the tensors to compare: float outputs, and the scores and choices behind outputs."""
    points: dict[str, Point] = {}
    for output in model.graph.outputs:
        name = str(output.name)
        if query.constant(output) is not None:
            continue
        selections = selections_behind(output)
        for node in selections:
            for index, value in enumerate(node.inputs):
                if query.is_float(value) and query.constant(value) is None and value is not None:
                    title = f"numbers that {node.op_type} {query.label(node)!r} chooses from"
                    points.setdefault(str(value.name), Point(title, str(value.name), (query.label(node), index)))
        if not query.is_float(output) or selections:
            continue
        points.setdefault(name, Point(name, name))
        for piece in pieces_of(output):
            tail = saturating_tail(piece)
            scores = tail[-1].inputs[0] if tail else None
            if scores is not None and query.constant(scores) is None and str(scores.name) not in points:
                title = f"scores behind {name}"
                points[str(scores.name)] = Point(title, str(scores.name), (query.label(tail[-1]), 0))
    return list(points.values())


def selections_behind(output: ir.Value) -> list[ir.Node]:
    """List the selecting operators whose choice reaches an output through operators that only move or count."""
    found: dict[ir.Node, None] = {}
    seen: set[ir.Node] = set()
    waiting = [output]
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in SELECTING_OPERATORS:
            found.setdefault(node)
        elif is_moving(node):
            waiting += [value for value in node.inputs if value is not None]
        elif node.op_type == "Cast" or not any(query.is_float(value) for value in node.outputs):
            waiting += [value for value in node.inputs if value is not None and not query.is_float(value)]
    return list(found)
