"""Rows of results as benchmarks make them, and their table as text."""

from __future__ import annotations

import numpy as np
from rendered import rendered

from toolchain.formats.results import Evidence, Host, Latency, Measurement, Memory, Results, Score
from toolchain.report.render import render


def latency(ms: float, *, seed: int = 0, spread: float = 0.01, threads: int = 2) -> Latency:
    samples = ms * np.random.default_rng(seed).normal(1, spread, 90)
    return Latency(samples_ms=tuple(samples), rounds=(0, 30, 60), load_ms=50, first_ms=2 * ms, threads=threads)


AGREEMENT = Score(kind="agreement", value=0.98234, samples=64)


HOST = Host(
    name="bench-box",
    architecture="x86_64",
    cpu="AMD EPYC 9R14 96-Core Processor",
    features=("avx2",),
    cores=2,
    memory_mib=24105,
    os="Linux 6.18",
    python="3.11.7",
    onnxruntime="1.32.0",
)


OTHER = HOST.model_copy(update={"name": "pi", "cpu": "Raspberry Pi 5 Model B, 4x cortex-a76", "cores": 4})


def row(
    variant: str,
    ms: float | None,
    *,
    model: str = "mobilenetv2",
    target: str | None = None,
    evidence: Evidence = "measured",
    host: Host = HOST,
    threads: int = 2,
    score: Score | None = None,
    when: str = "2026-01-01T00:00:00+00:00",
    spread: float = 0.01,
    note: str | None = None,
) -> Measurement:
    return Measurement(
        model=model,
        variant=variant,
        sha256="0" * 64,
        size_bytes=14_000_000,
        target=target,
        evidence=evidence,
        host=host,
        latency=None if ms is None else latency(ms, threads=threads, spread=spread, seed=len(variant)),
        memory=Memory(baseline_bytes=49_000_000, peak_load_bytes=90_000_000, peak_run_bytes=71_000_000),
        score=score,
        note=note,
        when=when,
    )


def results(*rows: Measurement) -> Results:
    return Results(measurements=rows)


ACCURACY = Score(kind="evaluate", value=0.70731, samples=64)


DEMO = results(
    row("fp32", 24.0, score=ACCURACY),
    row("int8", 12.0, target="host", score=ACCURACY),
    row("int8", 10.0, target="android-arm64-dotprod", evidence="host", score=AGREEMENT, note="Softmax stays float"),
    row("int8", 10.0, target="raspberry-pi-zero-2w", evidence="host", score=AGREEMENT, spread=0.3),
)


def text(results: Results, width: int = 100) -> str:
    """Return the table as the terminal shows it."""
    return rendered(render(results), width)
