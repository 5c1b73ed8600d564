"""``toolchain inspect``: the parts of a model, its cost, what int8 would save, and how it fits a target.

The figures are for the model as an export works on it: converted to a current opset and cleaned up. A model that is
quantized already is not changed; it is described as it is in the file and as onnxruntime runs it.

The constants of an int8 model are counted as our exports write them: one byte for each weight of an int8 product, and
for each of its output channels a float32 scale and an int8 zero point. If the operator takes a bias, that adds an int32
with a scale and zero point of its own. All other constants stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.inspection.model import Inspection
from toolchain.quantization.qdq.reader import RunningGraph
from toolchain.report import certificate, fit, precision, verdict
from toolchain.report.amounts import bytes_text, count_text

LEAST_SHARE = 0.0005
"""Shares of the MACs below this are left blank; they would read 0.0 %."""
MOST_NAMES = 3
"""Nodes or constants that are named in one line."""


def render(inspection: Inspection) -> RenderableType:
    """Show an inspection within 100 columns."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(inspection):
        facts.add_row(name, Text(text))
    parts: list[RenderableType] = [facts, "", _operators(inspection), "", precision.render(inspection.choices)]
    if inspection.manifest is not None and inspection.manifest.verdict is not None:
        lost = [Text(warning, style="red") for warning in verdict.warnings(inspection.manifest.verdict)]
        parts += ["", verdict.render(inspection.manifest.verdict), *lost]
    if inspection.certificate is not None:
        parts += ["", certificate.render(inspection.certificate)]
    if inspection.fits:
        parts += ["", fit.summary(inspection.fits)]
    if inspection.fit:
        parts += ["", fit.render(inspection.fit)]
    return Group(*parts)


def _facts(inspection: Inspection) -> list[tuple[str, str]]:
    """Return names and texts of the facts, in the order they are shown; a line without a name continues the last."""
    cost = inspection.cost
    nodes = sum(operator.nodes for operator in cost.operators)
    before = f" after clean-up ({inspection.file_nodes} in the file)" if inspection.file_nodes != nodes else ""
    size = bytes_text(inspection.size_bytes)
    facts = [("model", f"{inspection.path}, {size}, opset {inspection.opset}, made by {inspection.producer}")]
    facts += [("", note) for note in inspection.notes]
    facts += [("inputs" if i == 0 else "", str(spec)) for i, spec in enumerate(inspection.inputs)]
    facts += [("outputs" if i == 0 else "", str(spec)) for i, spec in enumerate(inspection.outputs)]
    facts.append(("nodes", f"{nodes}{before}"))
    facts.append(("work", f"{count_text(cost.total_macs)} multiply-accumulates (MACs) for one inference"))
    if cost.unknown:
        unknown = {operator.op: operator.unknown for operator in cost.operators if operator.unknown}
        facts.append(("", f"not counted, because their MACs are unknown: {_counts_by_operator(unknown)}"))
    facts.append(("parameters", f"{count_text(cost.parameters)} in {bytes_text(cost.weight_bytes)}"))
    at = f", while {cost.peak_node} runs" if cost.peak_node else ""
    facts.append(("activations", f"{bytes_text(cost.peak_activation_bytes)} at the peak{at}"))
    if cost.dynamic:
        facts.append(("", _counted_for(cost.dynamic)))
    return facts + _int8_facts(inspection)


def _counted_for(dynamic: Sequence[str]) -> str:
    """Say which sizes were assumed for dynamic axes, each given as ``input.axis``; axis 0 is taken for the batch."""
    inner = [axis for axis in dynamic if not axis.endswith(".0")]
    if not inner:
        return "counted for a batch of 1"
    hint = f"for other sizes fix them first: toolchain optimize --freeze {inner[0]}=N"
    return f"counted for {' = '.join([*dynamic, '1'])}; {hint}"


def _int8_facts(inspection: Inspection) -> list[tuple[str, str]]:
    share = inspection.int8_share
    work = "an unknown share of the work" if share is None else f"{share:.0%} of the work"
    if inspection.running:
        return [("int8", f"{work}, as written in the file"), *_running_facts(inspection.running)]
    if inspection.manifest is not None:
        return [("int8", "none of the work: the model stayed float when it was exported")]
    return [
        ("as int8", f"{work}, weights in {bytes_text(inspection.int8_weight_bytes)};"),
        ("", "export keeps in float what it measures to be slower as int8"),
    ]


def _running_facts(running: RunningGraph) -> list[tuple[str, str]]:
    facts = [("runs here", f"int8: {_counts_by_operator(running.int8)}")]
    facts.append(("", f"float: {_counts_by_operator(running.float_)}"))
    facts.append(("", f"conversions between the two: {running.conversions}"))
    if running.foreign and running.unfused:
        facts.append(("", "its activations are signed, as ARM needs them: x86 has few kernels for that"))
    if running.weights:
        number = len(running.weights)
        facts.append(("", f"{number} constants are dequantized at every inference ({_first_names(running.weights)})"))
    if running.unfused:
        number = len(running.unfused)
        facts.append(("", f"{number} nodes are int8 in the file but run as float ({_first_names(running.unfused)})"))
    return facts


def _operators(inspection: Inspection) -> Table:
    int8 = Counter(choice.op for choice in inspection.choices if choice.int8)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("operator")
    for header in ("nodes", "int8", "MACs", "share"):
        table.add_column(header, justify="right")
    total = inspection.cost.total_macs
    for operator in inspection.cost.operators:
        share = operator.macs / total if total else 0
        macs = "unknown" if operator.unknown == operator.nodes else count_text(operator.macs) if operator.macs else ""
        partly = "+" if 0 < operator.unknown < operator.nodes else ""
        percent = f"{share:.1%}" if share >= LEAST_SHARE else ""
        table.add_row(Text(operator.op), str(operator.nodes), str(int8[operator.op] or ""), macs + partly, percent)
    return table


def _counts_by_operator(nodes: Mapping[str, int]) -> str:
    ordered = sorted(nodes.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} × {op}" for op, count in ordered) or "nothing"


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMES]) + (" and others" if len(names) > MOST_NAMES else "")
