"""The exactness certificate of a quantized model in a few lines: each kernel with its proof, then what may differ.

An export carries it in its manifest. A file alone is certified from what it holds: the scales and zero points of its
conversions, its integer weights and biases. Whoever wrote the file, the proof is the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toolchain.artifact import Exactness, Manifest
from toolchain.errors import ConfigError
from toolchain.files import sha256
from toolchain.graph import query
from toolchain.ops import rule
from toolchain.quantize import Choice, Plan, certify, exactness
from toolchain.quantize.plan import ProductQuant
from toolchain.quantize.ranges import Affine
from toolchain.quantize.select import weight_axis
from toolchain.quantize.weights import WeightQuant, as_rows, is_overflow_free
from toolchain.rules import Kernel
from toolchain.tensors import Array

MANIFEST = "manifest.json"


def certificate_of(path: Path) -> Exactness | None:
    """The certificate of an exported folder, or of a model file that lies in one as it was exported; else None."""
    folder = path if path.is_dir() else path.parent
    try:
        manifest = Manifest.load(folder / MANIFEST)
    except ConfigError:  # none, or a manifest of something else
        return None
    if path.is_dir():
        return manifest.exactness
    known = {entry.name: entry.sha256 for entry in manifest.files}
    return manifest.exactness if path.is_file() and known.get(path.name) == sha256(path) else None


def certify_file(model: ir.Model, choices: Sequence[Choice], unfused: Collection[str]) -> Exactness:
    """Of a quantized file, whose operators stand between conversions.

    Args:
        model: the file.
        choices: what is int8 in it.
        unfused: names of those that run as float all the same.
    """
    choices = tuple(replace(choice, int8=choice.int8 and choice.node not in unfused) for choice in choices)
    grids: dict[str, Affine] = {}
    signed = False
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and query.constant(node.inputs[0]) is None:
            grid, is_signed = _grid(node)
            value = node.inputs[0] if node.op_type == "QuantizeLinear" else node.outputs[0]
            if grid is not None and value is not None:
                grids[str(value.name)] = grid
                signed |= is_signed
    int8 = {choice.node for choice in choices if choice.int8}
    products = {query.label(node): p for node in model.graph if query.label(node) in int8 and (p := _product(node))}
    known = {choice.node for choice in choices}
    verdicts = certify(model, Plan(tuple(choices), grids, products, {}))
    return exactness(model, [verdict for verdict in verdicts if verdict.node in known], "s8" if signed else "u8")


def _grid(node: ir.Node) -> tuple[Affine | None, bool]:
    """A conversion's grid as unsigned numbers have it, and whether it is written as signed ones."""
    scale = query.scalar(node.inputs[1])
    zero = query.constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.uint8)
    if scale is None or zero is None or zero.size != 1 or zero.dtype not in (np.uint8, np.int8):
        return None, False
    is_signed = zero.dtype == np.int8
    return Affine(scale, int(zero.reshape(())) + (128 if is_signed else 0)), is_signed


def _product(node: ir.Node) -> ProductQuant | None:
    """The integers of a product with symmetric int8 weights; None for any other."""
    cell = rule(node).int8
    if not isinstance(cell, Kernel):
        return None
    weight = _integers(node.inputs[cell.weight])
    if weight is None or weight[0].dtype != np.int8:
        return None
    values, scales = np.asarray(weight[0], np.int8), np.asarray(weight[1], np.float32)
    axis = weight_axis(node)
    quant = WeightQuant(values, scales, axis, is_overflow_free(np.asarray(as_rows(values, axis), np.int8)))
    if cell.bias is None or len(node.inputs) <= cell.bias or node.inputs[cell.bias] is None:
        return ProductQuant(quant, None, None)
    bias = _integers(node.inputs[cell.bias])
    if bias is None or bias[0].dtype != np.int32:
        return None
    return ProductQuant(quant, np.asarray(bias[0], np.int32).reshape(-1), np.asarray(bias[1], np.float32))


def _integers(value: ir.Value | None) -> tuple[Array, Array] | None:
    """The constant integers that a DequantizeLinear with zero points 0 reads, and their scales."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        return None
    values, scales = query.constant(node.inputs[0]), query.constant(node.inputs[1])
    zero = query.constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(1, np.int8)
    return None if values is None or scales is None or zero is None or zero.any() else (values, scales)


def certified(found: Exactness) -> RenderableType:
    """For reading, 100 columns wide."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for proof in found.proofs:
        used = "" if proof.used is None else f" (at most {proof.used:.2%} of what that allows)"
        table.add_row(Text(f"{len(proof.nodes)} × {proof.kernel}"), Text(proof.proof + used))
    lines: list[RenderableType] = [Text(_verdict(found)), Padding(table, (0, 0, 0, 2))]
    if found.doubts:
        lines += [Text("may differ:"), Padding(_doubts(found), (0, 0, 0, 2))]
    return Group(*lines)


def _verdict(found: Exactness) -> str:
    spelt = f"activations as {found.activations}"
    if any(doubt.kernel for doubt in found.doubts) or not found.overflow_free:
        return f"exactness: not every int8 operator is proven to give the same integers everywhere ({spelt})"
    if found.exceptions:
        return f"exactness: int8 is exact on every processor, float operators may differ in the last place ({spelt})"
    return f"exactness: exact on every processor, bit for bit ({spelt})"


def _doubts(found: Exactness) -> RenderableType:
    """Nodes of one operator together, with the reason of the first."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    first = {(doubt.op, doubt.kernel): doubt for doubt in reversed(found.doubts)}
    for (op, kernel), doubt in reversed(first.items()):
        nodes = sum(len(other.nodes) for other in found.doubts if (other.op, other.kernel) == (op, kernel))
        table.add_row(Text(f"{nodes} × {kernel or op}"), Text(f"{doubt.reason} (e.g. {doubt.nodes[0]})"))
    return table
