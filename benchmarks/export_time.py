"""Measures what an export costs, stage by stage:

    python -m benchmarks.export_time [MODEL ...] [-o FILE]

Every export runs in a fresh process with an empty cache, for the target ``host``. Counted are seconds of processor time
(of all threads and of the processes that an export starts, so that waiting for other programs does not count),
onnxruntime sessions and inferences. MODEL is a model of `benchmarks.models`, or a generated one of `STRUCTURES`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from benchmarks import feeds, fresh, tables
from benchmarks.models import MODELS, missing
from toolchain import export
from toolchain.benchmark.host import describe_host
from toolchain.core.files import write_text
from toolchain.core.progress import StageClock
from toolchain.data.tensors import Array, Feed
from toolchain.graph import io

REAL = ("mobilenet_v2", "ppocr_det", "ppocr_rec", "ddddocr_yolox", "minilm_l6", "crepe_full", "resemblyzer_lstm")
SAMPLES = 64
ABOUT = (
    "s: seconds of processor time of `toolchain.export` for the target host, in a fresh process with an empty cache, "
    "over all threads and child processes. sessions, runs: onnxruntime sessions that were made and inferences that "
    "were run, without those of the benchmark's processes. Stages below 0.5 s are added up."
)


class _Builder:
    """A small float model, written node by node; weights are normal numbers of the usual variance."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self._rng = np.random.default_rng(0)
        self.input = ir.val("x", ir.DataType.FLOAT, shape)
        self._name, self._nodes, self._constants = name, list[ir.Node](), list[ir.Value]()

    def weight(self, *shape: int, fan_in: int) -> ir.Value:
        return self.constant((self._rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32))

    def constant(self, array: Array) -> ir.Value:
        value = ir.val(f"w{len(self._constants)}", const_value=ir.tensor(array, name=f"w{len(self._constants)}"))
        self._constants.append(value)
        return value

    def add(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        node = ir.node(op, list(inputs), attributes, name=f"{op}_{len(self._nodes)}")
        node.outputs[0].name = f"t{len(self._nodes)}"
        self._nodes.append(node)
        return node.outputs[0]

    def conv(self, x: ir.Value, channels: tuple[int, int], kernel: int, stride: int = 1, dims: int = 2) -> ir.Value:
        inside, outside = channels
        w = self.weight(outside, inside, *[kernel] * dims, fan_in=inside * kernel**dims)
        return self.add("Conv", x, w, pads=[kernel // 2] * 2 * dims, strides=[stride] * dims)

    def model(self, *outputs: ir.Value) -> ir.Model:
        for value in outputs:
            value.dtype = ir.DataType.FLOAT
        graph = ir.Graph(
            [self.input],
            outputs,
            nodes=self._nodes,
            initializers=self._constants,
            opset_imports={"": 18},
            name=self._name,
        )
        return ir.Model(graph, ir_version=9)


def _unrolled_network() -> ir.Model:
    """A recurrent network that was unrolled over 40 steps: 80 products with two weights."""
    net, width = _Builder("unrolled", (1, 40, 256)), 256
    w, u = net.weight(width, width, fan_in=2 * width), net.weight(width, width, fan_in=2 * width)
    index = [net.add("Constant", value=ir.tensor(np.array(step, np.int64))) for step in range(40)]
    state = net.add("MatMul", net.add("Gather", net.input, index[0], axis=1), w)
    for step in range(1, 40):
        read = net.add("MatMul", net.add("Gather", net.input, index[step], axis=1), w)
        state = net.add("Relu", net.add("Add", read, net.add("MatMul", state, u)))
    return net.model(net.add("MatMul", state, net.weight(width, 64, fan_in=width)))


def _deep_network() -> ir.Model:
    """300 small operators: 100 residual blocks of a convolution on 16 x 14 x 14."""
    net = _Builder("deep", (1, 3, 28, 28))
    tenth = net.constant(np.array(0.1, np.float32))
    x = net.conv(net.input, (3, 16), 3, stride=2)
    for _ in range(100):
        branch = net.add("Mul", net.conv(x, (16, 16), 3), tenth)  # or values would double in every block
        x = net.add("Relu", net.add("Add", x, branch))
    return net.model(net.add("Flatten", net.add("GlobalAveragePool", x)))


def _large_image_network() -> ir.Model:
    """0.26 MB of weights on an image of 640 x 480, with an image as its result."""
    net = _Builder("large_image", (1, 3, 480, 640))
    x = net.add("Relu", net.conv(net.input, (3, 16), 3, stride=2))
    for inside, outside in ((16, 32), (32, 32), (32, 32), (32, 48)):
        x = net.add("Relu", net.conv(x, (inside, outside), 3))
    y = net.add("Relu", net.conv(x, (48, 48), 3))
    return net.model(net.conv(net.add("Add", x, y), (48, 3), 3))


def _long_audio_network() -> ir.Model:
    """Convolutions over ten seconds of audio, with a result for every sample of it."""
    net = _Builder("long_audio", (1, 1, 160_000))
    x = net.add("Relu", net.conv(net.input, (1, 16), 9, dims=1))
    for _ in range(6):
        x = net.add("Relu", net.add("Add", x, net.conv(x, (16, 16), 9, dims=1)))
    return net.model(net.add("Tanh", net.conv(x, (16, 1), 9, dims=1)))


STRUCTURES: dict[str, Callable[[], ir.Model]] = {
    "unrolled": _unrolled_network,
    "deep": _deep_network,
    "large_image": _large_image_network,
    "long_audio": _long_audio_network,
}


def _random_feeds(model: ir.Model, count: int) -> Iterator[Feed]:
    rng = np.random.default_rng(1)
    spec = io.inputs(model)[0]
    shape = tuple(size for size in spec.dims if isinstance(size, int))
    for _ in range(count):
        yield {spec.name: (rng.standard_normal(shape) * rng.uniform(0.3, 1.5)).astype(np.float32)}


class _Counts:
    """Sessions and inferences of this process so far."""

    def __init__(self) -> None:
        self.sessions = self.runs = 0
        counts, plain = self, ort.InferenceSession

        class Counted(plain):  # type: ignore[misc, valid-type]
            def __init__(self, *arguments: Any, **named: Any) -> None:
                counts.sessions += 1
                super().__init__(*arguments, **named)

            def run(self, *arguments: Any, **named: Any) -> Any:
                counts.runs += 1
                return super().run(*arguments, **named)

        ort.InferenceSession = Counted


def _cpu_s() -> float:
    return sum(os.times()[:4])


def timed_export(model: str, samples: str) -> dict[str, tuple[float, int, int]]:
    """Export an ONNX file; return seconds of processor time, sessions and runs by stage."""
    counts = _Counts()
    clocks = [StageClock(clock=clock) for clock in (_cpu_s, lambda: counts.sessions, lambda: counts.runs)]

    def progress(what: str, done: int = 0, total: int = 0) -> None:
        for clock in clocks:
            clock(what, done, total)

    progress("starting")
    with tempfile.TemporaryDirectory() as folder:
        export(model, targets=["host"], calibration=lambda: feeds.read(Path(samples)), output=folder, progress=progress)
    seconds, sessions, runs = (clock.seconds() for clock in clocks)
    return {stage: (seconds[stage], int(sessions[stage]), int(runs[stage])) for stage in seconds}


def _measure(name: str) -> dict[str, tuple[float, int, int]]:
    with tempfile.TemporaryDirectory() as folder:
        path, samples = Path(folder, "model.onnx"), Path(folder, "samples")
        if name in STRUCTURES:
            made = STRUCTURES[name]()
            io.save(made, path)
            feeds.write(_random_feeds(made, SAMPLES), samples)
        else:
            path = MODELS[name].onnx_path()
            feeds.write(MODELS[name].calibration(SAMPLES), samples)
        stages: dict[str, tuple[float, int, int]] = fresh.call(
            "benchmarks.export_time:timed_export", str(path), str(samples)
        ).returned
    return stages


def _table(name: str, stages: dict[str, tuple[float, int, int]]) -> str:
    total = [sum(column) for column in zip(*stages.values(), strict=True)]
    long = {stage: row for stage, row in stages.items() if row[0] >= 0.5}
    rest = [sum(column) for column in zip(*([0, 0, 0], *(stages[s] for s in stages.keys() - long)), strict=True)]
    rows = [*sorted(long.items(), key=lambda item: -item[1][0]), ("others", rest), ("all", total)]
    cells = [[stage, f"{row[0]:.1f}", f"{row[1]:.0f}", f"{row[2]:.0f}"] for stage, row in rows]
    return f"## {name}\n\n{tables.markdown(('stage', 's', 'sessions', 'runs'), cells)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", choices=[*REAL, *STRUCTURES], default=None)
    parser.add_argument("-o", "--output", type=Path, help="the Markdown page; default: in benchmarks/results")
    options = parser.parse_args()
    host = describe_host()
    parts = [f"# Time of an export\n\n{tables.describe(host)} {time.strftime('%Y-%m-%d')}.\n\n{ABOUT}"]
    for name in options.models or (*(name for name in REAL if not missing(name)), *STRUCTURES):
        try:
            parts.append(_table(name, _measure(name)))
        except fresh.FreshError as error:
            parts.append(f"## {name}\n\n{error}")
        print(parts[-1], flush=True)
        write_text(options.output or tables.RESULTS / f"export-time-{tables.slug(host)}.md", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
