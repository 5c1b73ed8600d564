"""Time of parts of a model: measured on this machine in the precision of the deployment, or estimated.

A part is extracted with its shapes and run on its own. So the difference between two widths is reliable, but not the
time of one part. The parts of one comparison are timed in turn, round by round. Results are cached on disk by shapes,
operators, precision, processor and runtime; weights do not matter.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from toolchain.benchmark.host import describe_host
from toolchain.core.cache import cache_path, read_cache, write_cache
from toolchain.data.calibration import CalibrationData, open_data
from toolchain.data.tensors import Feed
from toolchain.formats.recipe import Quantize, Recipe
from toolchain.graph import io, query, run
from toolchain.ops import table
from toolchain.quantization.loop import quantize_model

PartClock = Callable[[Sequence[ir.Model]], list[float]]
"""A function that returns the milliseconds of several parts, comparable with each other."""
TimedPart = tuple[ir.Model, Feed]
"""A part and the inputs it is run with."""

TIMING_ROUNDS = 5
PART_SECONDS = 0.12
"""Time spent on one part, over all rounds."""
FAST_INT8 = Recipe(
    quantize=Quantize(
        ranges="minmax", equalize=False, bias_correction=False, rounding=False, mixed=False, measure=False
    )
)
"""int8 without the accuracy steps: equally fast, and planned in a moment."""


def quick_int8(model: ir.Model, data: CalibrationData) -> ir.Model:
    """Make an int8 model that is as fast as the final one, but less accurate."""
    quantized = quantize_model(model, data, FAST_INT8, check=data)
    return quantized.write(quantized.encoding)


def measured_clock(*, int8: bool, time_parts: Callable[[Sequence[TimedPart]], list[float]] | None = None) -> PartClock:
    """Make a clock that measures on this machine, one thread.

    Args:
        int8: parts are quantized first.
        time_parts: measures the milliseconds of parts; None: :func:`time_parts_here`.
    """
    host = describe_host()
    about = (host.cpu, host.features, host.onnxruntime, int8)

    def clock(parts: Sequence[ir.Model]) -> list[float]:
        path = cache_path("latency", *about, *(_shapes(part) for part in parts), suffix=".json")
        times_ms = read_cache(path, lambda content: [float(ms) for ms in json.loads(content)])
        if times_ms is None or len(times_ms) != len(parts):
            times_ms = (time_parts or time_parts_here)([_prepared(part, int8) for part in parts])
            write_cache(path, json.dumps(times_ms).encode())
        return times_ms

    return clock


def counted_clock(multiple: int) -> PartClock:
    """Make a clock that estimates, for a target that is not this machine.

    It counts multiply-accumulates, with channels rounded up to a multiple, and elements moved. Its milliseconds are not
    those of any machine; only their ratios are meaningful.

    Args:
        multiple: channels that the target's kernels process at once.
    """

    def clock(parts: Sequence[ir.Model]) -> list[float]:
        return [sum(_count(node, multiple) for node in part.graph) for part in parts]

    return clock


def _count(node: ir.Node, multiple: int) -> float:
    macs = float(table.macs(node) or 0)
    shape = query.sizes(node.outputs[0]) or ()
    if len(shape) > 1 and macs:
        channels = shape[1] if len(shape) > 2 else shape[-1]
        macs *= -(-channels // multiple) * multiple / max(channels, 1)
    moved = sum(query.elements(value) or 0 for value in (*node.inputs, *node.outputs) if value is not None)
    return (macs / 8 + moved) * 1e-6


def _shapes(model: ir.Model) -> object:
    """Return everything that the time depends on."""
    return [
        (
            query.op(node),
            [query.sizes(value) for value in (*node.inputs, *node.outputs)],
            sorted((name, str(attribute.value)) for name, attribute in node.attributes.items()),
        )
        for node in model.graph
    ]


def _prepared(model: ir.Model, int8: bool) -> tuple[ir.Model, Feed]:
    specs = io.inputs(model)
    feeds = [run.random_feed(specs, np.random.default_rng(seed), dynamic=1) for seed in range(2)]
    if not int8:
        return model, feeds[0]
    return quick_int8(model, open_data(lambda: iter(feeds), specs)), feeds[0]


def time_parts_here(parts: Sequence[TimedPart]) -> list[float]:
    """Measure the milliseconds of parts on this machine, one thread, in turn.

    The lower quartile of the thread's own time is taken, because disturbances only add time.
    """
    engines = [(run.session(model, threads=1), feed) for model, feed in parts]
    repeats = []
    for engine, feed in engines:
        engine.run(None, feed)
        started = time.thread_time()
        engine.run(None, feed)
        repeats.append(max(3, int(PART_SECONDS / TIMING_ROUNDS / max(time.thread_time() - started, 1e-6))))
    rounds: list[list[float]] = [[] for _ in engines]
    for _ in range(TIMING_ROUNDS):
        for (engine, feed), count, samples in zip(engines, repeats, rounds, strict=True):
            for _ in range(count):
                started = time.thread_time()
                engine.run(None, feed)
                samples.append(time.thread_time() - started)
    return [float(np.quantile(samples, 0.25)) * 1e3 for samples in rounds]
