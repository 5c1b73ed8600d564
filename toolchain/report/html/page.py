"""The report: one HTML file that works without network and without any other file.

`render` fills ``templates/report.html``. Tables are plain HTML. Charts are Vega-Lite specifications that a script in
the file draws; making them needs Altair and vl-convert (the extra ``html``). Without these the page has only tables,
and says so. Files beside a results file (`read_details`) add sections: findings, and the manifests of the targets.
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
from toolchain.formats.manifest import MANIFEST_NAME, Manifest, NodePrecision
from toolchain.formats.results import Latency, Measurement, Results
from toolchain.report.amounts import capitalized, count_text
from toolchain.report.cells import heading, is_text, table_cells
from toolchain.report.compare import Comparison
from toolchain.report.derive import Block, Row
from toolchain.report.explain import MOST_CAUSES
from toolchain.report.html.answer import answer
from toolchain.report.html.charts import (
    Spec,
    accuracy,
    causes,
    distributions,
    layers,
    memory,
    operators,
    pruned_groups,
    steadiness,
    tradeoff,
    training,
)
from toolchain.report.html.series import Series, colour_of, series_of, slowest_layers
from toolchain.report.html.words import headline, provenance, tiles
from toolchain.report.legend import legend, notes, score_header
from toolchain.report.pruning import check_text, int8_text, speed_text
from toolchain.report.trained import evaluation_text
from toolchain.report.verdict import DECISIONS_MEANING, FIDELITY_MEANING, WORST_MEANING

MOST_SLOW_LAYERS = 12
"""Layers in the table of the slowest."""
INSTALL_CHARTS = "pip install 'edge-toolchain[html]'"


@dataclass(frozen=True)
class Details:
    """The files that an export writes beside its results.

    Attributes:
        findings: the findings; None if there are none for these results.
        manifests: the manifests, one for each target.
    """

    findings: Findings | None = None
    manifests: tuple[Manifest, ...] = ()


def read_details(results: str | Path) -> Details:
    """Read the findings and manifests beside a results file, or in its folder; those of other results are ignored.

    Raises:
        ConfigError: a file is malformed.
    """
    path = Path(results)
    path = path / "results.json" if path.is_dir() else path
    rows = Results.load(path).measurements
    findings = path.parent / "findings.json"
    loaded = Findings.load(findings) if findings.is_file() else None
    if loaded and loaded.when not in {row.when for row in rows}:
        loaded = None
    hashes = {row.sha256 for row in rows}
    targets = dict.fromkeys(row.target for row in rows if row.target and Path(row.target).name == row.target)
    paths = (path.parent / target / MANIFEST_NAME for target in targets)
    manifests = (Manifest.load(p) for p in paths if p.is_file())
    return Details(loaded, tuple(m for m in manifests if hashes & {file.sha256 for file in m.files}))


def render(comparison: Comparison, details: Details | None = None) -> str:
    """Return the report as HTML text.

    Args:
        comparison: the rows of its tables.
        details: of the export the rows come from; None: no sections beyond the tables and charts of the rows.
    """
    import jinja2
    from markupsafe import Markup

    details = details or Details()
    findings, manifests = details.findings, details.manifests
    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": count_text, "evaluation": evaluation_text, "check_text": check_text, "int8_text": int8_text,
        "speed_text": speed_text,
        "capitalized": capitalized,
    }  # fmt: skip
    drawn = can_draw()
    return environment.get_template("report.html").render(
        title=_title(comparison),
        headline=headline(comparison, manifests),
        tiles=tiles(comparison, manifests),
        answer=answer(manifests[0]) if manifests else None,
        fidelity_meaning=FIDELITY_MEANING,
        worst_meaning=WORST_MEANING,
        decisions_meaning=DECISIONS_MEANING,
        blocks=[_block(block, drawn) for block in comparison.blocks],
        legend=legend(comparison),
        notes=notes(comparison),
        findings=findings,
        profile_key=[(p.variant, colour_of(p.variant)) for p in findings.profiles] if findings else [],
        manifests=manifests,
        precision=_precision(details),
        most_causes=MOST_CAUSES,
        charts=_charts(details) if drawn else {},
        slowest=slowest_layers(findings.profiles, MOST_SLOW_LAYERS) if findings else [],
        fits=[_fit(fit, comparison) for fit in findings.fits] if findings else [],
        provenance=provenance(comparison, manifests),
        install_charts=None if drawn else INSTALL_CHARTS,
        # A browser ends a script at the first </script>, even inside a string.
        bundle=Markup(bundle().replace("</script", "<\\/script")) if drawn else "",
    )


def can_draw() -> bool:
    """Tell whether the extra ``html``, which makes the charts, is installed."""
    return all(importlib.util.find_spec(name) for name in ("altair", "vl_convert"))


@cache
def bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script. Making it takes seconds, so it is cached on disk."""
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
    series = series_of(block)
    return {
        "heading": heading(block)[-1],
        "headers": [(header, is_text(header)) for header in headers],
        "score": capitalized(score_header(block.rows)),
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
        "key": list({s.short: s.colour for s in series}.items()),
        "runs": [_run(s.name, latency) for s in series if (latency := s.measurement.latency)],
        "charts": _row_charts(series) if drawn else {},
    }


def _column(header: str, texts: Sequence[str]) -> list[tuple[str, str, int]]:
    """Split each cell into its number, the marks behind it, and the column's largest number of marks.

    With that width for the marks, the digits of a column are aligned.
    """
    if is_text(header):
        return [(text, "", 0) for text in texts]
    heads = [text.rstrip("%×)! ") for text in texts]
    most = max((len(text) - len(head) for text, head in zip(texts, heads, strict=True)), default=0)
    return [(head, text[len(head) :], most) for text, head in zip(texts, heads, strict=True)]


def _row_charts(series: Sequence[Series]) -> dict[str, Spec | None]:
    return {
        "accuracy": accuracy(series),
        "distributions": distributions(series),
        "steadiness": steadiness(series),
        "memory": memory(series),
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


def _charts(details: Details) -> dict[str, Spec | None]:
    charts: dict[str, Spec | None] = {}
    findings = details.findings
    if findings and findings.profiles:
        charts |= {"operators": operators(findings.profiles), "layers": layers(findings.profiles)}
    if findings and findings.causes:
        charts["causes"] = causes(findings.causes)
    if findings and findings.pruning and findings.pruning.groups:
        charts["pruned_groups"] = pruned_groups(findings.pruning)
    if findings and findings.training:
        charts |= {f"training_{m}": training(findings.training, m) for m in ("loss", "accuracy")}
    if details.manifests and len(details.manifests[0].tradeoff) > 1:
        charts["tradeoff"] = tradeoff(details.manifests[0].tradeoff)
    return charts


def _precision(details: Details) -> dict[str, Any] | None:
    """Collect the bars that show the graph, and the float nodes by reason, the most frequent first."""
    if not details.manifests:
        return None
    nodes, macs = details.manifests[0].precision, details.findings.macs if details.findings else {}
    groups: dict[tuple[str, str], list[NodePrecision]] = {}
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.precision] = counts.get(node.precision, 0) + 1
        if node.precision != "int8":
            groups.setdefault((node.precision, node.reason or "reason unknown"), []).append(node)
    total, most = sum(macs.get(node.node, 0) for node in nodes), max(macs.values(), default=0)
    return {
        "nodes": [(node, macs.get(node.node, 0), _height(macs.get(node.node, 0), most)) for node in nodes],
        "counts": counts,
        "share": sum(macs.get(n.node, 0) for n in nodes if n.precision == "int8") / total if total else None,
        "reasons": [
            {"precision": precision, "reason": reason, "nodes": alike, "ops": ", ".join(sorted({n.op for n in alike}))}
            for (precision, reason), alike in sorted(groups.items(), key=lambda item: -len(item[1]))
        ],
    }


def _height(macs: int, most: int) -> int:
    """Return the height of a node's bar in pixels, by the square root, because MACs differ by factors of thousands."""
    return 8 + round(18 * (macs / most) ** 0.5) if most else 14


def _fit(fit: TargetFit, comparison: Comparison) -> dict[str, Any]:
    """Complete a fit with the latency, if that was measured on the target itself."""
    rows = [row for block in comparison.blocks for row in block.rows if row.measurement.target == fit.target]
    measured = next((_median(row) for row in reversed(rows) if _is_measured(row.measurement)), None)
    budgets = []
    for budget in fit.budgets:
        value = measured if budget.name == "latency" else budget.value
        budgets.append((budget, value, None if value is None else value <= budget.limit))
    return {"fit": fit, "budgets": budgets, "misfit_nodes": sum(misfit.nodes for misfit in fit.misfits)}


def _is_measured(measurement: Measurement) -> bool:
    return measurement.evidence == "measured" and measurement.latency is not None


def _median(row: Row) -> float | None:
    return row.p50_ms.value if row.p50_ms else None
