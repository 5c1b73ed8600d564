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

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.inspection.model import Inspection
from toolchain.quantization.qdq.reader import Running
from toolchain.report import certificate, fit, precision
from toolchain.report.amounts import bytes_text, count_text

# ------------------------------------------------------------------------------------------------ reading


def render(found: Inspection) -> RenderableType:
    """An inspection for reading, 100 columns wide."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(found):
        facts.add_row(name, Text(text))
    parts: list[RenderableType] = [facts, "", _operators(found), "", precision.render(found.choices)]
    if found.certificate is not None:
        parts += ["", certificate.render(found.certificate)]
    if found.fits:
        parts += ["", fit.summary(found.fits)]
    return Group(*parts, *([""] if found.fit else []), *(fit.lines(found.fit) if found.fit else ()))


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
