"""A report as one HTML file that needs nothing else: no network, no other file.

`page` fills ``templates/report.html``. Tables are plain HTML; charts are Vega-Lite specifications that a script in the
file draws. Altair and vl-convert (the extra ``html``) make these; without them the page has its tables and says so.
What stands beside a results file (`details`) adds its chapters: findings and the manifests of the targets.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from toolchain.core.cache import cache_path, read_cache, write_cache
from toolchain.core.errors import InputError
from toolchain.formats.findings import Findings, TargetFit
from toolchain.formats.manifest import Manifest, NodePrecision
from toolchain.formats.results import Latency, Measurement, Results
from toolchain.report.amounts import count_text
from toolchain.report.cells import heading, is_text, table_cells
from toolchain.report.compare import Comparison
from toolchain.report.derive import Block, Row
from toolchain.report.html.charts import (
    Spec,
    accuracy,
    causes,
    curve,
    cuts,
    distributions,
    layers,
    learning,
    memory,
    operators,
    steadiness,
)
from toolchain.report.html.series import Series, colour_of, longest, series_of
from toolchain.report.html.words import headline, provenance, tiles
from toolchain.report.legend import legend, notes
from toolchain.report.trained import evaluation_text

LONGEST = 12
"""So many layers stand in the table of those that take longest."""
EXTRA = "pip install 'edge-toolchain[html]'"


@dataclass(frozen=True)
class Details:
    """What an export knows beside its results."""

    findings: Findings | None = None
    manifests: tuple[Manifest, ...] = ()


def details(results: str | Path) -> Details:
    """The findings and manifests that lie beside a results file (or in its folder), as far as they belong to it.

    Raises:
        ConfigError: one of them is malformed.
    """
    path = Path(results)
    path = path / "results.json" if path.is_dir() else path
    rows = Results.load(path).measurements
    findings = path.parent / "findings.json"
    found = Findings.load(findings) if findings.is_file() else None
    if found and found.when not in {row.when for row in rows}:
        found = None
    hashes = {row.sha256 for row in rows}
    targets = dict.fromkeys(row.target for row in rows if row.target and Path(row.target).name == row.target)
    paths = (path.parent / target / "manifest.json" for target in targets)
    manifests = (Manifest.load(p) for p in paths if p.is_file())
    return Details(found, tuple(m for m in manifests if hashes & {file.sha256 for file in m.files}))


def page(comparison: Comparison, known: Details | None = None) -> str:
    """The report.

    Args:
        comparison: derived rows, as for tables.
        known: what an export found; None: tables and charts of the rows alone.
    """
    import jinja2
    from markupsafe import Markup

    known = known or Details()
    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"count": count_text, "evaluation": evaluation_text}
    drawn = can_draw()
    return environment.get_template("report.html").render(
        title=_title(comparison),
        headline=headline(comparison, known.manifests),
        tiles=tiles(comparison, known.manifests),
        blocks=[_block(block, drawn) for block in comparison.blocks],
        legend=legend(comparison),
        notes=notes(comparison),
        findings=known.findings,
        profile_key=[(p.variant, colour_of(p.variant)) for p in known.findings.profiles] if known.findings else [],
        manifests=known.manifests,
        precision=_precision(known),
        charts=_charts(known) if drawn else {},
        longest=longest(known.findings.profiles, LONGEST) if known.findings else [],
        fits=[_fit(fit, comparison) for fit in known.findings.fits] if known.findings else [],
        provenance=provenance(comparison, known.manifests),
        extra=None if drawn else EXTRA,
        # A script ends at the first </script>, wherever it stands.
        bundle=Markup(bundle().replace("</script", "<\\/script")) if drawn else "",
    )


def can_draw() -> bool:
    """Whether the extra ``html`` is installed."""
    return all(importlib.util.find_spec(name) for name in ("altair", "vl_convert"))


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; made in seconds, and kept on disk."""
    import vl_convert

    path = None
    with suppress(InputError):  # where no cache can be made, the script is made again in every process
        path = cache_path("report", version("vl-convert-python"), suffix=".js")
    text = read_cache(path, bytes.decode) if path else None
    if text is None:
        text = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub forgets the default
        if path:
            with suppress(InputError):
                write_cache(path, text.encode())
    return text


def _title(comparison: Comparison) -> str:
    models = list(dict.fromkeys(row.measurement.model for block in comparison.blocks for row in block.rows))
    return models[0] if len(models) == 1 else f"{len(models)} models"


def _block(block: Block, drawn: bool) -> dict[str, Any]:
    headers, lines = table_cells(block)
    columns = [_column(header, [line[i] for line in lines]) for i, header in enumerate(headers)]
    found = series_of(block)
    return {
        "heading": heading(block)[-1],
        "headers": [(header, is_text(header)) for header in headers],
        "rows": [
            {
                "cells": [column[i] for column in columns],
                "steady": row.verdict is None or row.verdict.kind == "steady",
                "reason": row.verdict.reason if row.verdict else None,
                "regressed": row.regressed,
                "evidence": row.measurement.evidence,
                "variant": row.measurement.variant,
            }
            for i, row in enumerate(block.rows)
        ],
        "key": list({s.short: s.colour for s in found}.items()),
        "runs": [_run(s.name, latency) for s in found if (latency := s.measurement.latency)],
        "charts": _drawn(found) if drawn else {},
    }


def _column(header: str, texts: Sequence[str]) -> list[tuple[str, str, int]]:
    """Cells as their number, the marks behind it, and the most marks of the column, so that digits stand in line."""
    if is_text(header):
        return [(text, "", 0) for text in texts]
    heads = [text.rstrip("%×)! ") for text in texts]
    most = max((len(text) - len(head) for text, head in zip(texts, heads, strict=True)), default=0)
    return [(head, text[len(head) :], most) for text, head in zip(texts, heads, strict=True)]


def _drawn(found: Sequence[Series]) -> dict[str, Spec | None]:
    return {
        "accuracy": accuracy(found),
        "distributions": distributions(found),
        "steadiness": steadiness(found),
        "memory": memory(found),
    }


def _run(name: str, latency: Latency) -> dict[str, Any]:
    times = {
        "median ms": latency.p50_ms,
        "p90": latency.p90_ms,
        "p99": latency.p99_ms,
        "slowest": max(latency.samples_ms),
        "loading": latency.load_ms,
        "first": latency.first_ms,
    }
    return {"name": name, "samples": len(latency.samples_ms), "times": {k: f"{v:.3g}" for k, v in times.items()}}


def _charts(known: Details) -> dict[str, Spec | None]:
    charts: dict[str, Spec | None] = {}
    found = known.findings
    if found and found.profiles:
        charts |= {"operators": operators(found.profiles), "layers": layers(found.profiles)}
    if found and found.causes:
        charts["causes"] = causes(found.causes)
    if found and found.pruning and found.pruning.groups:
        charts["cuts"] = cuts(found.pruning)
    if found and found.training:
        charts |= {f"training_{m}": learning(found.training, m) for m in ("loss", "accuracy")}
    if known.manifests and len(known.manifests[0].tradeoff) > 1:
        charts["curve"] = curve(known.manifests[0].tradeoff)
    return charts


def _precision(known: Details) -> dict[str, Any] | None:
    """The map of the graph, and float nodes by reason, the most frequent first."""
    if not known.manifests:
        return None
    nodes, macs = known.manifests[0].precision, known.findings.macs if known.findings else {}
    groups: dict[tuple[str, str], list[NodePrecision]] = {}
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.precision] = counts.get(node.precision, 0) + 1
        if node.precision != "int8":
            groups.setdefault((node.precision, node.reason or "no reason is known"), []).append(node)
    whole, most = sum(macs.get(node.node, 0) for node in nodes), max(macs.values(), default=0)
    return {
        "nodes": [(node, macs.get(node.node, 0), _height(macs.get(node.node, 0), most)) for node in nodes],
        "counts": counts,
        "share": sum(macs.get(n.node, 0) for n in nodes if n.precision == "int8") / whole if whole else None,
        "reasons": [
            {"precision": precision, "reason": reason, "nodes": alike, "ops": ", ".join(sorted({n.op for n in alike}))}
            for (precision, reason), alike in sorted(groups.items(), key=lambda item: -len(item[1]))
        ],
    }


def _height(macs: int, most: int) -> int:
    """Pixels of a node in the map. The root, since layers differ by factors of thousands."""
    return 8 + round(18 * (macs / most) ** 0.5) if most else 14


def _fit(fit: TargetFit, comparison: Comparison) -> dict[str, Any]:
    """A fit with its latency, where that was measured on the target itself."""
    rows = [row for block in comparison.blocks for row in block.rows if row.measurement.target == fit.target]
    measured = next((_median(row) for row in reversed(rows) if _is_measured(row.measurement)), None)
    budgets = []
    for budget in fit.budgets:
        value = measured if budget.name == "latency" else budget.value
        budgets.append((budget, value, None if value is None else value <= budget.limit))
    return {"fit": fit, "budgets": budgets, "odd": sum(misfit.nodes for misfit in fit.misfits)}


def _is_measured(measurement: Measurement) -> bool:
    return measurement.evidence == "measured" and measurement.latency is not None


def _median(row: Row) -> float | None:
    return row.p50_ms.value if row.p50_ms else None
