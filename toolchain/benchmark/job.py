"""`BenchJob`: one model file and the way it is run, the argument of every runner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolchain.data.tensors import Feed

FEED_SEED = 0
"""Seed of the noise in a generated feed."""


@dataclass(frozen=True)
class BenchJob:
    """A model file and the way it is run.

    Attributes:
        path: ``.onnx`` or ``.ort`` on this machine; external data lies beside it.
        threads: number of threads for the runtime's operators.
        session_options: configuration entries of the onnxruntime session.
        feed: inputs of every inference; None lets the runner generate them for the model's input shapes.
        dims: sizes of named axes of a generated feed; axes not listed have size 1.
        arena: True lets the runtime keep freed memory for itself (onnxruntime's CPU memory arena).
        cpus: processors to run on: a list such as ``0-3,6``, or ``big`` or ``little``; None is all.
    """

    path: Path
    threads: int = 1
    session_options: Mapping[str, str] = field(default_factory=dict)
    feed: Feed | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    arena: bool = True
    cpus: str | None = None


def first_line(job: BenchJob, model: str, stored_feed: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the first line that a runner reads, as described in ``runner.py``.

    Args:
        job: what is run.
        model: path of the model where the runner runs.
        stored_feed: path and input names of the stored feed, as `local.store_feed_npz` or
            `native.runner.store_feed_npy` returns them; None where the runner generates the feed.
    """
    return {
        "model": model,
        "threads": job.threads,
        "session_options": dict(job.session_options),
        "feed": stored_feed,
        "dims": dict(job.dims),
        "seed": FEED_SEED,
        "arena": job.arena,
        "cpus": job.cpus,
    }
