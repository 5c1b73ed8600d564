"""Texts of the report: the headline, the tiles with the main numbers, and the origin of the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolchain.formats.manifest import Manifest
from toolchain.formats.results import Conditions, Measurement, Score
from toolchain.report.amounts import bytes_text, plural
from toolchain.report.compare import Comparison
from toolchain.report.derive import Row


@dataclass(frozen=True)
class Tile:
    """A number in large type.

    Attributes:
        label: text above the number.
        value: the number.
        note: text below the number, in small type.
    """

    label: str
    value: str
    note: str


def _pair(comparison: Comparison) -> tuple[Row, Row] | None:
    """Return the baseline and the last row compared with it, if the report is about one model on one host."""
    rows = [row for block in comparison.blocks for row in block.rows]
    if len(comparison.blocks) != 1 or len({row.measurement.model for row in rows}) != 1:
        return None
    compared = [row for row in rows if row.speedup]
    candidates = [row for row in compared if row.measurement.evidence == "measured"] or compared
    base = next((row for row in rows if row.baseline and not row.speedup), None)
    return (base, candidates[-1]) if base and candidates else None


def headline(comparison: Comparison, manifests: Sequence[Manifest]) -> str:
    """Sum the report up in one sentence."""
    pair = _pair(comparison)
    if pair is None:
        rows = [row.measurement for block in comparison.blocks for row in block.rows]
        parts = [plural(len({m.model for m in rows}), "model"), plural(len({m.variant for m in rows}), "variant")]
        return f"{', '.join(parts)}, {plural(len(comparison.blocks), 'machine or setting', 'machines or settings')}."
    base, best = pair
    a, b = base.measurement, best.measurement
    parts = [f"{_speed(best)} as fast as {a.variant}"]
    parts.append(f"{a.size_bytes / b.size_bytes:.1f}× smaller" if b.size_bytes < a.size_bytes else "not smaller")
    if b.score and b.score.kind == "agreement":
        parts.append(f"agrees with float in {_score(b.score)}, which is not accuracy")
    elif a.score and b.score:
        parts.append(f"score {_score(a.score)} → {_score(b.score)}")
    if manifests:
        parts += _processors(manifests[0])
    text = f"{'; '.join(parts)}."
    return text[0].upper() + text[1:]


def _processors(manifest: Manifest) -> list[str]:
    """Say in a clause whether all processors compute the same; nothing of a model without int8."""
    exactness = manifest.exactness
    if exactness.differs:
        return ["numbers that may differ between processors, as said below"]
    if not any(node.int8 for node in manifest.precision):
        return []
    return ["the same integers on every processor" + (", with exceptions named below" if exactness.exceptions else "")]


def tiles(comparison: Comparison, manifests: Sequence[Manifest]) -> list[Tile]:
    """Show the gains in numbers; none if several models or hosts are compared."""
    pair = _pair(comparison)
    if pair is None:
        return []
    base, best = pair
    a, b = base.measurement, best.measurement
    shown = []
    if best.speedup and base.p50_ms and best.p50_ms:
        steady = all(row.verdict is None or row.verdict.kind == "steady" for row in pair)
        interval = f"95\xa0%: {best.speedup.low:.2f}–{best.speedup.high:.2f}×"
        note = f"{base.p50_ms.value:.3g} → {best.p50_ms.value:.3g} ms; {interval}"
        shown.append(Tile("speed-up" + ("" if steady else " !"), _speed(best), note))
    shown.append(Tile("file", bytes_text(b.size_bytes), f"{a.variant}: {bytes_text(a.size_bytes)}"))
    if b.score and b.score.kind == "agreement":
        samples = f" on {plural(b.score.samples, 'sample')}" if b.score.samples else ""
        shown.append(Tile("agreement", _score(b.score), f"with float{samples}, right or wrong; not accuracy"))
    elif a.score and b.score:
        samples = f", {b.score.samples} samples" if b.score.samples else ""
        shown.append(Tile("score", _score(b.score), f"{a.variant}: {_score(a.score)}{samples}"))
    verdict = manifests[0].verdict if manifests else None
    if verdict is not None and verdict.worst is not None:
        value = "lost" if verdict.lost else f"{verdict.worst.fidelity_db:.1f} dB"
        note = f"{verdict.worst.name}; 20 dB: an error of a tenth; 0 dB: nothing is left"
        shown.append(Tile("worst part", value, note))
    if a.memory and b.memory:
        peaks = [max(m.peak_load_bytes, m.peak_run_bytes) - m.baseline_bytes for m in (a.memory, b.memory)]
        note = f"{a.variant}: {peaks[0] / 1e6:.0f} MB; without the runtime itself"
        shown.append(Tile("memory", f"{peaks[1] / 1e6:.0f} MB", note))
    if manifests:
        exactness = manifests[0].exactness
        value = "may differ" if exactness.differs else "identical, except" if exactness.exceptions else "identical"
        note = "; ".join(exactness.exceptions) or "every integer, proven for each kernel"
        shown.append(Tile("other processors", value, note))
    return shown


def provenance(comparison: Comparison, manifests: Sequence[Manifest]) -> list[tuple[str, list[tuple[str, str]]]]:
    """List facts in titled groups: the machines, and for an export its source, data, recipe, versions and files."""
    groups = []
    for block in comparison.blocks:
        host = block.host
        facts = [
            ("machine", f"{host.name}, {host.architecture}, {host.os}"),
            ("processor", f"{host.cpu}, {plural(host.cores, 'core')} ({', '.join(host.features)})"),
            ("runtime", f"onnxruntime {host.onnxruntime}, Python {host.python}"),
        ]
        facts += [("memory", f"{host.memory_mib / 1024:.1f} GiB")] if host.memory_mib else []
        facts += [("governor", host.governor)] if host.governor else []
        facts += [("threads", str(block.threads))] if block.threads else []
        runs = dict.fromkeys((row.measurement.when, _conditions(row.measurement.conditions)) for row in block.rows)
        facts += [("measured", ", ".join(filter(None, [when, text]))) for when, text in runs]
        groups.append((f"Machine {host.name}", facts))
    if manifests:
        groups += [("Export", _export_facts(manifests[0])), ("Files", _files(manifests))]
    else:
        rows = [row.measurement for block in comparison.blocks for row in block.rows]
        groups.append(("Files", [(_label(m), f"SHA-256 {m.sha256}") for m in rows]))
    return groups


def _export_facts(manifest: Manifest) -> list[tuple[str, str]]:
    source, data, recipe = manifest.source, manifest.calibration, manifest.recipe
    facts = [
        ("source", f"{source.name} ({source.kind}, {source.exporter})"),
        ("source hash", f"SHA-256 {source.sha256}"),
        ("calibration", f"{data.samples} samples from {data.source}"),
        ("data hash", data.fingerprint),
    ]
    if data.preprocessing:
        facts.append(("preprocessing", ", ".join(f"{k} {v}" for k, v in data.preprocessing.items() if v is not None)))
    default = type(recipe)()
    changed = [
        f"{part}.{name} = {value}" if isinstance(chosen, dict) else f"{part} = {chosen}"
        for part, chosen in recipe.model_dump().items()
        for name, value in (chosen.items() if isinstance(chosen, dict) else ((part, chosen),))
        if value != (default.model_dump()[part][name] if isinstance(chosen, dict) else default.model_dump()[part])
    ]
    facts.append(("recipe", ", ".join(changed) or "default"))
    facts.append(("versions", ", ".join(f"{name} {number}" for name, number in manifest.versions.items())))
    facts.append(("created", manifest.created))
    return facts + [("note", note) for note in manifest.notes]


def _files(manifests: Sequence[Manifest]) -> list[tuple[str, str]]:
    return [
        (f"{m.target}/{file.name}", f"{bytes_text(file.size_bytes)}, SHA-256 {file.sha256}")
        for m in manifests
        for file in m.files
        if file.name.startswith("model.")
    ]


def _conditions(conditions: Conditions) -> str:
    pairs = {
        "load": (conditions.load_before, conditions.load_after, "", ".1f"),
        "clock": (conditions.clock_mhz_before, conditions.clock_mhz_after, " MHz", ".0f"),
        "temperature": (conditions.temperature_c_before, conditions.temperature_c_after, " °C", ".0f"),
    }
    return ", ".join(
        f"{name} {format(before, how)} → {format(after, how)}{unit}"
        for name, (before, after, unit, how) in pairs.items()
        if before is not None and after is not None
    )


def _label(m: Measurement) -> str:
    return f"{m.model} {m.variant}" + (f" for {m.target}" if m.target else "")


def _speed(row: Row) -> str:
    return f"{'~' if row.uncertain else ''}{row.speedup.value:.2f}×" if row.speedup else ""


def _score(score: Score) -> str:
    return f"{score.value:.2%}".replace("%", "\xa0%") if 0 <= score.value <= 1 else f"{score.value:.4g}"
