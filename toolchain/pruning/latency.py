"""What a part of a model costs: measured on this machine in the precision it will be deployed in, or counted.

Parts are cut out of the model with their shapes as they are, and run by themselves; so the difference of two widths is
what counts, not the time of one. The parts of one question are timed in turn, round by round. Answers are kept on disk,
by shapes, operators, precision, processor and runtime: weights do not matter.
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

Clock = Callable[[Sequence[ir.Model]], list[float]]
"""Milliseconds of each of several parts, comparable with each other."""

ROUNDS = 5
SECONDS = 0.12
"""For one part, over all rounds."""
PLAIN = Recipe(
    quantize=Quantize(
        ranges="minmax", equalize=False, bias_correction=False, rounding=False, mixed=False, measure=False
    )
)
"""int8 without any of what makes it accurate: as fast, and planned in a moment."""


def quick_int8(model: ir.Model, data: CalibrationData) -> ir.Model:
    """An int8 model as fast as the one that will be made, not as accurate."""
    quantized = quantize_model(model, data, PLAIN, check=data)
    return quantized.write(quantized.encoding)


def measured(*, int8: bool) -> Clock:
    """A clock for this machine, one thread."""
    host = describe_host()
    about = (host.cpu, host.features, host.onnxruntime, int8)

    def clock(parts: Sequence[ir.Model]) -> list[float]:
        path = cache_path("latency", *about, *(_shapes(part) for part in parts), suffix=".json")
        times_ms = read_cache(path, lambda content: [float(ms) for ms in json.loads(content)])
        if times_ms is None or len(times_ms) != len(parts):
            times_ms = _time([_prepared(part, int8) for part in parts])
            write_cache(path, json.dumps(times_ms).encode())
        return times_ms

    return clock


def counted(multiple: int) -> Clock:
    """A clock for a machine that is not here: multiply-accumulates, channels rounded up to what its kernels take, and
    bytes moved. Its milliseconds are of no machine; only shares of them mean anything.
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
    """Everything that time depends on."""
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


def _time(subjects: Sequence[tuple[ir.Model, Feed]]) -> list[float]:
    engines = [(run.session(model, threads=1), feed) for model, feed in subjects]
    repeats = []
    for engine, feed in engines:
        engine.run(None, feed)
        started = time.thread_time()
        engine.run(None, feed)
        repeats.append(max(3, int(SECONDS / ROUNDS / max(time.thread_time() - started, 1e-6))))
    rounds: list[list[float]] = [[] for _ in engines]
    for _ in range(ROUNDS):
        for (engine, feed), count, samples in zip(engines, repeats, rounds, strict=True):
            for _ in range(count):
                started = time.thread_time()
                engine.run(None, feed)
                samples.append(time.thread_time() - started)
    # Time of the thread itself, and of that the lower quartile: what disturbs only ever adds.
    return [float(np.quantile(samples, 0.25)) * 1e3 for samples in rounds]
