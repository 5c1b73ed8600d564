"""The content of a model file, what int8 would change about it, and its fit to a target.

The numbers are those of the model as an export works on it: brought to a current opset and cleaned up. A quantized
model is analysed as it is: the file, and the graph that onnxruntime runs for it.

The size as int8 is that of the constants as an export writes them. Each weight of an int8 product takes one byte. Each
output channel takes a float32 scale and an int8 zero point in addition. Where the operator takes a bias, each channel
also takes an int32 bias with its own scale and zero point. All other constants keep their size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir
import pydantic

from toolchain.benchmark.model_files import model_bytes
from toolchain.conversion.source import convert
from toolchain.core.errors import DataError
from toolchain.devices.catalogue import shipped_targets
from toolchain.formats.findings import TargetFit
from toolchain.formats.manifest import Exactness, Manifest, NodePrecision
from toolchain.formats.target import Target
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.graph import io, query
from toolchain.inspection.precision import float_groups
from toolchain.inspection.target_fit import fit_to
from toolchain.ops import cost
from toolchain.ops.cells import Kernel
from toolchain.ops.table import rule
from toolchain.ops.weights import weight_axes
from toolchain.optimization.passes import optimize
from toolchain.optimization.rewrites import name_everything
from toolchain.quantization.qdq import reader
from toolchain.quantization.qdq.certify_file import certify_file, manifest_of
from toolchain.quantization.qdq.reader import RunningGraph
from toolchain.quantization.selection import select

_SPECS = pydantic.TypeAdapter(tuple[TensorSpec, ...])


@dataclass(frozen=True)
class Inspection:
    """The content of a model.

    Attributes:
        path: the model file.
        producer: the program that wrote it.
        opset: version of the standard operators.
        notes: what was changed to read the file.
        inputs: inputs of the model.
        outputs: outputs of the model.
        size_bytes: size of the file, external data included.
        file_nodes: number of nodes in the file, without constants.
        cost: operators and their cost, after clean-up.
        quantized: the file contains int8 already.
        choices: precision of every node: in the file for a quantized or exported model, after an export for another.
        int8_weight_bytes: size of all constants after an export to int8.
        running: the graph that onnxruntime runs for a quantized model; None for a float model.
        fit: comparison with the given target; None where none was given.
        certificate: exactness of a quantized model, from its manifest or proved from its integers.
        manifest: the evidence of an exported model; None for other files.
        fits: comparison with all shipped profiles, where no target was given.
    """

    path: str
    producer: str
    opset: int
    notes: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    size_bytes: int
    file_nodes: int
    cost: cost.Cost
    quantized: bool
    choices: tuple[NodePrecision, ...]
    int8_weight_bytes: int
    running: RunningGraph | None
    fit: TargetFit | None
    certificate: Exactness | None = None
    manifest: Manifest | None = None
    fits: tuple[TargetFit, ...] = ()

    @property
    def int8_macs(self) -> int:
        """Multiply-accumulates of the int8 nodes."""
        return sum(self.cost.macs[choice.node] or 0 for choice in self.choices if choice.int8)

    @property
    def int8_share(self) -> float | None:
        """Part of all multiply-accumulates that is int8; None where the number for an int8 node is unknown."""
        if any(choice.int8 and self.cost.macs[choice.node] is None for choice in self.choices):
            return None
        total = sum(self.cost.macs[choice.node] or 0 for choice in self.choices)
        return self.int8_macs / total if total else 0.0


def inspect(path: str | Path, target: Target | None = None, *, freeze: Mapping[str, int] | None = None) -> Inspection:
    """Read a model file and analyse it; nothing is written or measured.

    Args:
        path: an ``.onnx`` or ``.pt2`` file, or a folder that export wrote.
        target: a profile to compare with; None compares with all shipped ones.
        freeze: sizes for dynamic axes; the others count as 1.

    Raises:
        ModelError: the file is missing or damaged, or has an unsupported opset or operator.
        InputError: `freeze` names no dynamic axis of the model.
        GateError: the file has an old opset, and upgraded it computes something else.
        DataError: the folder is no export, or has no ``.onnx`` file.
    """
    path = Path(path)
    manifest = manifest_of(path)
    if path.is_dir():
        if manifest is None or not (path / "model.onnx").is_file():
            hint = "give a model file, or the folder that export wrote for one target"
            raise DataError("is not an exported folder with a model.onnx", where=path, hint=hint)
        path = path / "model.onnx"
    converted = convert(path, freeze=freeze)
    quantized = reader.is_quantized(converted.model)
    finished = quantized or manifest is not None
    model = converted.model if finished else optimize(converted.model, verify=False).model
    name_everything(model)  # nodes of the running graph are found in the file by name
    choices = reader.file_precisions(model) if finished else select(model).choices
    if manifest is not None:
        choices = _with_reasons(choices, manifest)
    counts = cost.count(model)
    # Which activations become int8 is not known before the export.
    peak = counts.peak_activation_bytes if finished else counts.int8_peak_activation_bytes
    runs = reader.running_graph(model, choices) if quantized else None
    certificate = manifest.exactness if manifest is not None else None
    if certificate is None and runs is not None:
        certificate = certify_file(model, choices, () if runs.foreign else runs.unfused)
    weights = counts.weight_bytes - _saved_bytes(model, {choice.node for choice in choices if choice.int8})
    return Inspection(
        path=str(path),
        producer=converted.source.exporter,
        opset=query.opset(model),
        notes=converted.notes,
        inputs=tuple(io.inputs(model)),
        outputs=tuple(io.outputs(model)),
        size_bytes=model_bytes(path),
        file_nodes=sum(node.op_type != "Constant" for node in converted.model.graph),
        cost=counts,
        quantized=quantized,
        choices=choices,
        int8_weight_bytes=weights,
        running=runs,
        fit=fit_to(target, model, counts, weights=weights, peak=peak) if target else None,
        certificate=certificate,
        manifest=manifest,
        fits=() if target else tuple(fit_to(t, model, counts, weights=weights, peak=peak) for t in shipped_targets()),
    )


def _with_reasons(choices: Sequence[NodePrecision], manifest: Manifest) -> tuple[NodePrecision, ...]:
    """Take the reasons for float from a manifest, where a file cannot tell them."""
    known = {choice.node: choice.reason for choice in manifest.precision if choice.precision == "float"}
    return tuple(
        choice.model_copy(update={"reason": known.get(choice.node, choice.reason)})
        if choice.precision == "float"
        else choice
        for choice in choices
    )


def _saved_bytes(model: ir.Model, int8: set[str]) -> int:
    """Count the bytes that the constants of int8 products lose when they become int8; shared weights count once."""
    saved: dict[ir.Value, int] = {}
    for node in model.graph:
        cell = rule(node).int8
        value = node.inputs[cell.weight] if isinstance(cell, Kernel) and query.label(node) in int8 else None
        shape = query.sizes(value)
        if value is None or shape is None or query.constant(value) is None or not isinstance(cell, Kernel):
            continue
        has_bias = cell.bias is not None and len(node.inputs) > cell.bias
        added = 4 + 1 + (0 if cell.bias is None else 8 if has_bias else 12)
        saved[value] = 3 * (query.elements(value) or 0) - added * shape[weight_axes(node).out]
    return sum(saved.values())


def record(inspection: Inspection) -> dict[str, object]:
    """Return an inspection as JSON data: full numbers, units in the names."""
    counts = inspection.cost
    verdict = inspection.manifest.verdict if inspection.manifest else None
    return {
        "path": inspection.path,
        "producer": inspection.producer,
        "opset": inspection.opset,
        "notes": list(inspection.notes),
        "inputs": _SPECS.dump_python(inspection.inputs, mode="json"),
        "outputs": _SPECS.dump_python(inspection.outputs, mode="json"),
        "size_bytes": inspection.size_bytes,
        "nodes_in_file": inspection.file_nodes,
        "nodes": sum(operator.nodes for operator in counts.operators),
        "quantized": inspection.quantized,
        "macs": counts.total_macs,
        "int8_macs": inspection.int8_macs,
        "int8_share": inspection.int8_share,
        "parameters": counts.parameters,
        "weight_bytes": counts.weight_bytes,
        "int8_weight_bytes": inspection.int8_weight_bytes,
        "peak_activation_bytes": counts.peak_activation_bytes,
        "peak_node": counts.peak_node,
        "axes_counted_as_1": list(counts.dynamic),
        "operators": [asdict(operator) for operator in counts.operators],
        "unknown_macs": dict(counts.unknown),
        "choices": [choice.model_dump(mode="json") for choice in inspection.choices],
        "float": [asdict(group) for group in float_groups(inspection.choices)],
        "running": asdict(inspection.running) if inspection.running else None,
        "fit": inspection.fit.model_dump(mode="json") if inspection.fit else None,
        "fits": [fit.model_dump(mode="json") for fit in inspection.fits],
        "exactness": inspection.certificate.model_dump(mode="json") if inspection.certificate else None,
        "verdict": verdict.model_dump(mode="json") if verdict else None,
    }
