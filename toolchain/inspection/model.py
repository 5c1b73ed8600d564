"""TODO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir
import pydantic

from toolchain.benchmark.model_files import model_bytes
from toolchain.conversion.source import convert
from toolchain.core.errors import DataError
from toolchain.devices.catalogue import known_targets, load_target
from toolchain.formats.findings import TargetFit
from toolchain.formats.manifest import Exactness, NodePrecision
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
from toolchain.quantization.qdq.certify_file import certificate_of, certify_file
from toolchain.quantization.qdq.reader import RunningGraph
from toolchain.quantization.selection import select

_SPECS = pydantic.TypeAdapter(tuple[TensorSpec, ...])


@dataclass(frozen=True)
class Inspection:
    """What was found.

    size_bytes: of the file. notes: what was changed to read it. file_nodes: before clean-up, constants left out.
    quantized: whether it holds int8 already; `choices` then say what is, not what would be, and `running` what
        onnxruntime makes of it.
    int8_weight_bytes: of all constants once reader. fit: on the target asked for; fits: else on all that are known.
    certificate: of a quantized model, as it was
        exported or as its integers prove it.
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
    fits: tuple[TargetFit, ...] = ()

    @property
    def int8_macs(self) -> int:
        """MACs of the int8 nodes."""
        return sum(self.cost.macs[choice.node] or 0 for choice in self.choices if choice.int8)

    @property
    def int8_share(self) -> float | None:
        """Their part of all MACs but those of conversions; None where those of an int8 node are not known."""
        if any(choice.int8 and self.cost.macs[choice.node] is None for choice in self.choices):
            return None
        total = sum(self.cost.macs[choice.node] or 0 for choice in self.choices)
        return self.int8_macs / total if total else 0.0


def inspect(path: str | Path, target: Target | None = None, *, freeze: Mapping[str, int] | None = None) -> Inspection:
    """Look into a model file.

    Args:
        path: an ``.onnx`` or ``.pt2`` file, or a folder that export wrote.
        target: a profile whose budgets and channel multiple the model is held against.
        freeze: sizes for dynamic axes; the others count as 1.

    Raises:
        ModelError: missing, damaged, of an unsupported opset or operator.
        InputError: wrong `freeze`.
        GateError: the file is of an old opset, and upgraded it computes something else.
        DataError: the folder is no export, or holds no ``.onnx`` file.
    """
    path = Path(path)
    certificate = certificate_of(path)
    if path.is_dir():
        if certificate is None or not (path / "model.onnx").is_file():
            hint = "give a target's folder, as export writes it, or a file"
            raise DataError("is no exported folder with a model.onnx", where=path, hint=hint)
        path = path / "model.onnx"
    converted = convert(path, freeze=freeze)
    already = reader.is_quantized(converted.model)
    model = converted.model if already else optimize(converted.model, verify=False).model
    name_everything(model)  # so that what runs can be told from what the file holds
    choices = reader.file_precisions(model) if already else select(model).choices
    counts = cost.count(model)
    # Which activations become int8 is not known before the export.
    peak = counts.peak_activation_bytes if already else counts.int8_peak_activation_bytes
    runs = reader.running_graph(model, choices) if already else None
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
        quantized=already,
        choices=choices,
        int8_weight_bytes=weights,
        running=runs,
        fit=fit_to(target, model, counts, weights=weights, peak=peak) if target else None,
        certificate=certificate,
        fits=() if target else tuple(fit_to(t, model, counts, weights=weights, peak=peak) for t in _known()),
    )


def _known() -> list[Target]:
    """All profiles, in the order of their memory; this machine is not one of them."""
    targets = [load_target(name) for name in known_targets() if name != "host"]
    return sorted(targets, key=lambda target: target.memory_mib or 0)


def _saved_bytes(model: ir.Model, int8: set[str]) -> int:
    """What the constants of int8 products lose when they become int8, shared weights counted once."""
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


def record(found: Inspection) -> dict[str, object]:
    """An inspection as JSON data: full numbers, units in the names."""
    counts = found.cost
    return {
        "path": found.path,
        "producer": found.producer,
        "opset": found.opset,
        "notes": list(found.notes),
        "inputs": _SPECS.dump_python(found.inputs, mode="json"),
        "outputs": _SPECS.dump_python(found.outputs, mode="json"),
        "size_bytes": found.size_bytes,
        "nodes_in_file": found.file_nodes,
        "nodes": sum(operator.nodes for operator in counts.operators),
        "quantized": found.quantized,
        "macs": counts.total_macs,
        "int8_macs": found.int8_macs,
        "int8_share": found.int8_share,
        "parameters": counts.parameters,
        "weight_bytes": counts.weight_bytes,
        "int8_weight_bytes": found.int8_weight_bytes,
        "peak_activation_bytes": counts.peak_activation_bytes,
        "peak_node": counts.peak_node,
        "axes_counted_as_1": list(counts.dynamic),
        "operators": [asdict(operator) for operator in counts.operators],
        "unknown_macs": dict(counts.unknown),
        "choices": [choice.model_dump(mode="json") for choice in found.choices],
        "float": [asdict(group) for group in float_groups(found.choices)],
        "running": asdict(found.running) if found.running else None,
        "fit": found.fit.model_dump(mode="json") if found.fit else None,
        "fits": [fit.model_dump(mode="json") for fit in found.fits],
        "exactness": found.certificate.model_dump(mode="json") if found.certificate else None,
    }
