"""Device profiles: ``targets list`` and ``targets show``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.formats.target import Target
from toolchain.report.amounts import plural


def list_targets(targets: Iterable[Target]) -> RenderableType:
    """Show a row for each target."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for header in ("target", "device", "cores", "features", "threads", "int8"):
        table.add_column(header, no_wrap=header == "target", justify="right" if header == "threads" else "left")
    for t in targets:
        cores = " + ".join(f"{c.count}x {c.core}" for c in t.cores)
        table.add_row(
            *map(Text, [t.name, t.title, cores, " ".join(t.features), str(t.runtime.threads), t.int8.activations])
        )
    return table


def show_target(target: Target) -> RenderableType:
    """Show everything that a profile holds, a row for each fact."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(target):
        table.add_row(name, Text(value))
    return table


def _facts(t: Target) -> Iterator[tuple[str, str]]:
    yield "target", f"{t.name}, {t.title}"
    yield "processor", f"{t.architecture}, instruction sets: {', '.join(t.features) or 'unknown'}"
    yield "cores", _cores(t)
    caches = {"L1d": t.cache.l1d_kib, "L2": t.cache.l2_kib, "L3": t.cache.l3_kib}
    yield "caches", ", ".join(f"{name} {kib} KiB" for name, kib in caches.items() if kib) or "unknown"
    yield "memory", f"{t.memory_mib} MiB" if t.memory_mib else "unknown"
    threads = plural(t.runtime.threads, "thread")
    yield "runtime", f"onnxruntime {t.runtime.version}, {t.runtime.provider} provider, {threads}"
    for key, value in t.runtime.session_options.items():
        yield "", f"{key} = {value}"
    saturates = "sums may saturate, so weights are chosen overflow-free" if t.int8.saturates else "sums are exact"
    yield "int8", f"{t.int8.activations} activations; {saturates}"
    yield "channels", f"fastest in multiples of {t.channel_multiple}"
    yield "files", f"{', '.join(t.package.formats)} (.ort for {t.package.ort_platform})"
    limits = {"MiB of file": t.budget.size_mib, "MiB of memory": t.budget.memory_mib, "ms": t.budget.latency_ms}
    yield "budget", ", ".join(f"{limit:g} {unit}" for unit, limit in limits.items() if limit) or "none"


def _cores(t: Target) -> str:
    return " + ".join(f"{c.count}x {c.core}" + (f" at {c.clock_ghz:g} GHz" if c.clock_ghz else "") for c in t.cores)
