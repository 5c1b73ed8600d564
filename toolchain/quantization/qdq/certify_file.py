"""Certificates of quantized files: read integers and grids from a file, and certify them in the same way as a plan."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from toolchain.core.errors import ConfigError
from toolchain.core.files import sha256
from toolchain.data.tensors import Array
from toolchain.formats.manifest import MANIFEST_NAME, Exactness, Manifest, NodePrecision
from toolchain.graph import query
from toolchain.ops.cells import Kernel
from toolchain.ops.table import rule
from toolchain.ops.weights import weight_axes
from toolchain.quantization.exactness.certificate import certify, exactness
from toolchain.quantization.plan import Plan, ProductQuant
from toolchain.quantization.ranges import Affine
from toolchain.quantization.weights import WeightQuant, as_rows, is_overflow_free


def manifest_of(path: Path) -> Manifest | None:
    """Return the manifest of an exported folder, or of an unchanged model file in it; None without one."""
    folder = path if path.is_dir() else path.parent
    try:
        manifest = Manifest.load(folder / MANIFEST_NAME)
    except ConfigError:  # there is none, or it describes something else
        return None
    if path.is_dir():
        return manifest
    hashes = {entry.name: entry.sha256 for entry in manifest.files}
    return manifest if path.is_file() and hashes.get(path.name) == sha256(path) else None


def certify_file(model: ir.Model, choices: Sequence[NodePrecision], unfused: Collection[str]) -> Exactness:
    """Certify a quantized file, whose operators stand between QuantizeLinear and DequantizeLinear.

    Args:
        model: the file.
        choices: the precision of each node in the file.
        unfused: names of int8 nodes that onnxruntime runs as float.
    """
    choices = tuple(
        choice.model_copy(update={"precision": "float"}) if choice.int8 and choice.node in unfused else choice
        for choice in choices
    )
    grids, signed = _activation_grids(model)
    int8 = {choice.node for choice in choices if choice.int8}
    products = {
        query.label(node): product
        for node in model.graph
        if query.label(node) in int8 and (product := _product(node)) is not None
    }
    covered = {choice.node for choice in choices}
    verdicts = certify(model, Plan(tuple(choices), grids, products, {}))
    return exactness(model, [verdict for verdict in verdicts if verdict.node in covered], "s8" if signed else "u8")


def _activation_grids(model: ir.Model) -> tuple[dict[str, Affine], bool]:
    """Read the grids of all activations by tensor name; also return True where any has signed integers."""
    grids: dict[str, Affine] = {}
    signed = False
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and query.constant(node.inputs[0]) is None:
            grid, is_signed = _grid(node)
            value = node.inputs[0] if node.op_type == "QuantizeLinear" else node.outputs[0]
            if grid is not None and value is not None:
                grids[str(value.name)] = grid
                signed |= is_signed
    return grids, signed


def _grid(node: ir.Node) -> tuple[Affine | None, bool]:
    """Return a conversion's grid for unsigned integers, and True where the file has signed integers."""
    scale = query.scalar(node.inputs[1])
    zero = query.constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.uint8)
    if scale is None or zero is None or zero.size != 1 or zero.dtype not in (np.uint8, np.int8):
        return None, False
    is_signed = zero.dtype == np.int8
    return Affine(scale, int(zero.reshape(())) + (128 if is_signed else 0)), is_signed


def _product(node: ir.Node) -> ProductQuant | None:
    """Read the integers of a product with symmetric int8 weights; None for any other node."""
    cell = rule(node).int8
    if not isinstance(cell, Kernel):
        return None
    weight = _integers(node.inputs[cell.weight])
    if weight is None or weight[0].dtype != np.int8:
        return None
    values, scales = np.asarray(weight[0], np.int8), np.asarray(weight[1], np.float32)
    axis = weight_axes(node).out
    quant = WeightQuant(values, scales, axis, is_overflow_free(np.asarray(as_rows(values, axis), np.int8)))
    if cell.bias is None or len(node.inputs) <= cell.bias or node.inputs[cell.bias] is None:
        return ProductQuant(quant, None, None)
    bias = _integers(node.inputs[cell.bias])
    if bias is None or bias[0].dtype != np.int32:
        return None
    return ProductQuant(quant, np.asarray(bias[0], np.int32).reshape(-1), np.asarray(bias[1], np.float32))


def _integers(value: ir.Value | None) -> tuple[Array, Array] | None:
    """Return the constant integers that a DequantizeLinear with zero points 0 reads, and their scales; else None."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        return None
    values, scales = query.constant(node.inputs[0]), query.constant(node.inputs[1])
    zero = query.constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(1, np.int8)
    return None if values is None or scales is None or zero is None or zero.any() else (values, scales)
