"""``toolchain inspect``: what a model is made of, what int8 would take of it, and how that fits a target.

The figures are of the model as an export works on it: brought to a current opset and cleaned up. A model that is
quantized already is taken as it stands, and looked at in the file and in the graph that onnxruntime makes of it.

The constants of the quantized model are counted as our exports write them: a byte for each weight of an int8
product; for each of its output channels a float32 scale and an int8 zero point, and where the operator takes a bias
that in int32 with a scale and zero point of its own; all other constants as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolchain import cost
from toolchain.artifact import Exactness
from toolchain.bench import model_bytes
from toolchain.convert import convert
from toolchain.errors import DataError
from toolchain.graph import io, query
from toolchain.graph.passes import name_everything
from toolchain.ops import rule
from toolchain.optimize import optimize
from toolchain.quantize import Choice, select
from toolchain.quantize.select import weight_axis
from toolchain.report import quantized
from toolchain.report.amounts import bytes_text, count_text
from toolchain.report.certified import certificate_of, certified, certify_file
from toolchain.report.fit import Fit, fit_lines, fit_to, fits_line
from toolchain.report.precision import float_groups, precision
from toolchain.report.quantized import Running
from toolchain.rules import Kernel
from toolchain.target import Target, known_targets, load_target
from toolchain.tensors import TensorSpec


@dataclass(frozen=True)
class Inspection:
    """What was found.

    size_bytes: of the file. notes: what was changed to read it. file_nodes: before clean-up, constants left out.
    quantized: whether it holds int8 already; `choices` then say what is, not what would be, and `running` what
        onnxruntime makes of it.
    int8_weight_bytes: of all constants once quantized. fit: on the target asked for; fits: else on all that are known.
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
    choices: tuple[Choice, ...]
    int8_weight_bytes: int
    running: Running | None
    fit: Fit | None
    certificate: Exactness | None = None
    fits: tuple[Fit, ...] = ()

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
    already = quantized.is_quantized(converted.model)
    model = converted.model if already else optimize(converted.model, verify=False).model
    name_everything(model)  # so that what runs can be told from what the file holds
    choices = quantized.choices(model) if already else select(model).choices
    counts = cost.count(model)
    # Of activations that become int8 a quarter stays; which do not is not known before the export.
    peak = counts.peak_activation_bytes if already else counts.peak_activation_bytes // 4
    runs = quantized.running(model, choices) if already else None
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
        saved[value] = 3 * (query.elements(value) or 0) - added * shape[weight_axis(node)]
    return sum(saved.values())


def record(found: Inspection) -> dict[str, object]:
    """An inspection as JSON data: full numbers, units in the names."""
    counts = found.cost
    return {
        "path": found.path,
        "producer": found.producer,
        "opset": found.opset,
        "notes": list(found.notes),
        "inputs": [_port(spec) for spec in found.inputs],
        "outputs": [_port(spec) for spec in found.outputs],
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
        "choices": [asdict(choice) for choice in found.choices],
        "float": [asdict(group) for group in float_groups(found.choices)],
        "running": asdict(found.running) if found.running else None,
        "fit": asdict(found.fit) if found.fit else None,
        "fits": [asdict(fit) for fit in found.fits],
        "exactness": found.certificate.model_dump(mode="json") if found.certificate else None,
    }


def _port(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "dtype": str(spec.dtype), "dims": list(spec.dims)}


# ------------------------------------------------------------------------------------------------ reading


def render(found: Inspection) -> RenderableType:
    """An inspection for reading, 100 columns wide."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(found):
        facts.add_row(name, Text(text))
    parts: list[RenderableType] = [facts, "", _operators(found), "", precision(found.choices)]
    if found.certificate is not None:
        parts += ["", certified(found.certificate)]
    if found.fits:
        parts += ["", fits_line(found.fits)]
    return Group(*parts, *([""] if found.fit else []), *(fit_lines(found.fit) if found.fit else ()))


def _facts(found: Inspection) -> list[tuple[str, str]]:
    counts = found.cost
    nodes = sum(operator.nodes for operator in counts.operators)
    before = f" ({found.file_nodes} in the file)" if found.file_nodes != nodes else ""
    facts = [("model", f"{found.path}, {bytes_text(found.size_bytes)}, opset {found.opset}, by {found.producer}")]
    facts += [("", note) for note in found.notes]
    facts += [("inputs" if i == 0 else "", str(spec)) for i, spec in enumerate(found.inputs)]
    facts += [("outputs" if i == 0 else "", str(spec)) for i, spec in enumerate(found.outputs)]
    facts.append(("nodes", f"{nodes}{' after clean-up' if before else ''}{before}"))
    facts.append(("work", f"{count_text(counts.total_macs)} multiply-accumulates (MACs) an inference"))
    if counts.unknown:
        unknown = {operator.op: operator.unknown for operator in counts.operators if operator.unknown}
        facts.append(("", f"and what these take, which is not known: {_counted(unknown)}"))
    facts.append(("parameters", f"{count_text(counts.parameters)} in {bytes_text(counts.weight_bytes)}"))
    facts.append(("activations", f"{bytes_text(counts.peak_activation_bytes)} at the peak{_at(counts.peak_node)}"))
    if counts.dynamic:
        text = f"work and activations are for {' = '.join([*counts.dynamic, '1'])}"
        inner = [axis for axis in counts.dynamic if not axis.endswith(".0")]
        hint = f"; for other sizes fix them first: toolchain optimize --freeze {inner[0]}=N" if inner else ""
        facts.append(("", text + hint))
    share = "an unknown part of the work" if found.int8_share is None else f"{found.int8_share:.0%} of the work"
    if found.running:
        return [*facts, ("int8", f"{share}, as the file has it"), *_running_facts(found.running)]
    facts.append(("as int8", f"{share}, weights in {bytes_text(found.int8_weight_bytes)};"))
    facts.append(("", "an export leaves float what it measures to run slower as int8"))
    return facts


def _at(node: str | None) -> str:
    return f", when {node} runs" if node else ""


def _running_facts(running: Running) -> list[tuple[str, str]]:
    facts = [("runs here", f"int8: {_counted(running.int8)}"), ("", f"float: {_counted(running.float_)}")]
    facts.append(("", f"conversions between the two: {running.conversions}"))
    if running.foreign and running.unfused:
        facts.append(("", "its signed activations are for ARM: x86 has few kernels for them"))
    if running.weights:
        number = len(running.weights)
        facts.append(("", f"{number} constants are dequantized at every inference ({_some(running.weights)})"))
    if running.unfused:
        number = len(running.unfused)
        facts.append(("", f"{number} nodes that are int8 in the file run as float ({_some(running.unfused)})"))
    return facts


def _operators(found: Inspection) -> Table:
    int8 = Counter(choice.op for choice in found.choices if choice.int8)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("operator")
    for header in ("nodes", "int8", "MACs", "share"):
        table.add_column(header, justify="right")
    for operator in found.cost.operators:
        share = operator.macs / found.cost.total_macs if found.cost.total_macs else 0
        macs = "not known" if operator.unknown == operator.nodes else count_text(operator.macs) if operator.macs else ""
        shares = f"{share:.1%}" if share >= 0.0005 else ""
        some = "+" if 0 < operator.unknown < operator.nodes else ""
        table.add_row(Text(operator.op), str(operator.nodes), str(int8[operator.op] or ""), macs + some, shares)
    return table


def _counted(operators: Mapping[str, int]) -> str:
    ordered = sorted(operators.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} × {op}" for op, count in ordered) or "nothing"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
