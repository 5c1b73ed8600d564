"""Running the command line in this process, and the small model and samples its tests use."""

from __future__ import annotations

import json
import logging
import re
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
from small_models import proto, weights

from toolchain.cli import main

STAGE = re.compile(r"^ *\d+\.\d s  (.+)\n", re.MULTILINE)
"""A line of progress, as it is printed where stderr is no terminal."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Done:
    """Result of a command: its exit code and its output. err: stderr without the lines of stages."""

    code: int
    out: str
    err: str
    stages: tuple[str, ...] = ()

    @property
    def result(self):
        """The result printed with ``--json``."""
        return json.loads(self.out)

    @property
    def sentence(self):
        """The error: all that was printed, one line of stderr."""
        assert self.out == ""
        assert self.err.endswith("\n")
        line = self.err[:-1]
        assert "\n" not in line, self.err
        assert line.startswith("error: ")
        return line.removeprefix("error: ")


class CommandLine:
    """Calls ``main`` as the shell would, and puts back what it sets up for a process of its own."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, line: str, *more: object) -> Done:
        """`line` is split as a shell does, `more` are arguments as they stand."""
        self._capture.readouterr()
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        filters = list(logging.getLogger().handlers)
        arguments = mock.patch.object(sys, "argv", ["toolchain", *shlex.split(line), *map(str, more)])
        # Or help would speak of `python -m pytest.toolchain` where tests run in the process they were started in.
        started = mock.patch.object(sys.modules["__main__"], "__package__", None)
        try:
            with arguments, started:
                main.main()
            raise AssertionError("main must end the process")
        except SystemExit as end:
            code = end.code or 0
        finally:
            logging.getLogger().handlers[:] = filters
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out, err = self._capture.readouterr()
        return Done(code, out, STAGE.sub("", err), tuple(STAGE.findall(err)))


FAST = """
quantize.measure = false
bench = { warmup_s = 0.0, min_time_s = 0.0, min_runs = 3, rounds = 1 }
"""
"""A recipe for tests that look at everything but speed."""
QUANTIZE = "quantize net.onnx --recipe fast.toml -o q.onnx"


def save_net(path: Path) -> Path:
    """Input ``x`` [1, 3, 16, 16], output ``y`` [1, 10]: seven nodes, all of which int8 takes."""
    constants = weights(w1=(8, 3, 3, 3), b1=(8,), w2=(16, 8, 3, 3), b2=(16,), w3=(10, 16), b3=(10,))
    body = """
        c1 = Conv<pads = [1, 1, 1, 1]>(x, w1, b1) r1 = Relu(c1)
        c2 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(r1, w2, b2) r2 = Relu(c2)
        g = GlobalAveragePool(r2) f = Flatten(g) y = Gemm<transB = 1>(f, w3, b3)
    """
    onnx.save(proto(body, "float[1, 3, 16, 16] x", "float[1, 10] y", constants), path)
    return path


def samples(count: int = 12, shape: tuple[int, ...] = (3, 16, 16)):
    """Normal numbers, float32 [count, *shape]."""
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)


def content(folder: Path) -> dict[str, bytes | None]:
    """Everything below `folder`, hidden things too: files with their bytes, folders with None."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}
