"""`profile`: time every operator of the optimized graph with onnxruntime's own profiler.

The profiler reports names of nodes but not their domains, and a ``Conv`` can be the plain kernel or the blocked one of
``com.microsoft.nchwc``. The domains are therefore read from the optimized graph, which is saved.
"""

from __future__ import annotations

import json
import tempfile
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import onnx_ir as ir

from toolchain.core.errors import ModelError, one_line
from toolchain.data.tensors import Feed
from toolchain.formats.results import OperatorTime
from toolchain.graph.run import OrtError, session

_WARMUP_RUNS = 3
_SUFFIX = "_kernel_time"


def profile(
    model: ir.Model | str | Path,
    feeds: Feed,
    *,
    threads: int = 1,
    runs: int = 20,
    session_options: Mapping[str, str] | None = None,
) -> list[OperatorTime]:
    """Time the operators of a model in this process.

    The profiler rounds every execution down to a whole microsecond and takes a few microseconds itself.

    Args:
        model: a model, or the path of a file.
        feeds: one feed, the inputs of every run.
        threads: number of threads for the runtime's operators.
        runs: number of inferences that are timed, after a few that are not.
        session_options: configuration entries of the session.

    Returns:
        The operators in the order in which they first run.

    Raises:
        ModelError: onnxruntime cannot load or run the model.
    """
    with tempfile.TemporaryDirectory(prefix="toolchain-profile-") as name:
        folder = Path(name)
        # Only the graph is read: its weights go to another file, since a protobuf file cannot exceed 2 GB.
        weights_elsewhere = {"session.optimized_model_external_initializers_file_name": "weights"}
        engine = session(
            model,
            threads=threads,
            options={**(session_options or {}), **weights_elsewhere},
            optimized=folder / "optimized.onnx",
            profile=folder / "profile",
        )
        try:
            for _ in range(_WARMUP_RUNS + runs):
                engine.run(None, feeds)
        except OrtError as error:
            where = model.graph.name if isinstance(model, ir.Model) else model
            what = f"onnxruntime cannot run it ({one_line(error)})"
            raise ModelError(what, where=where, hint="check the feed") from None
        events = json.loads(Path(engine.end_profiling()).read_text(encoding="utf-8"))
        nodes = list(ir.load(folder / "optimized.onnx").graph.all_nodes())
    return _summary(events, {(n.name or "", n.op_type): n.domain for n in nodes})


def _summary(events: list[dict[str, Any]], domains: Mapping[tuple[str, str], str]) -> list[OperatorTime]:
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")[_WARMUP_RUNS:]
    totals: dict[tuple[str, str], list[int]] = {}  # for each node, microseconds in each run
    for event in sorted(events, key=lambda e: int(e["ts"])):
        run = bisect_right(starts, event["ts"]) - 1
        if run >= 0 and event["cat"] == "Node" and event["name"].endswith(_SUFFIX):
            key = event["name"].removesuffix(_SUFFIX), event["args"]["op_name"]
            totals.setdefault(key, [0] * len(starts))[run] += event["dur"]

    def domain(node: str, op: str) -> str:
        # The profiler makes up a name for a node without one, so it is not found under that name in the graph.
        return domains.get((node, op), domains.get(("", op), ""))

    return [
        OperatorTime(node=node, op=op, median_us=median(us), domain=domain(node, op))
        for (node, op), us in totals.items()
    ]
