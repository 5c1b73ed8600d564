"""Types of the public API, as a type checker sees them: documented ways to call are accepted, mistakes are named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("mypy")
pytestmark = pytest.mark.slow  # mypy reads torch's own annotations

ROOT = Path(__file__).parents[2]

SCRIPT = """
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

import toolchain

net = torch.nn.Linear(3, 4)
loader = DataLoader(TensorDataset(torch.zeros(8, 3)), batch_size=2)
arrays = {"x": np.zeros((4, 3), np.float32)}
inputs = ["x:batch,3"]

def samples() -> Iterator[dict[str, np.ndarray]]:
    yield arrays

def score(run: Callable) -> float:
    return float(run({"x": np.zeros((1, 3))})[0].mean())

def progress(what: str, done: int = 0, total: int = 0) -> None:
    pass

toolchain.export("m.onnx", targets=["host"], calibration=arrays, inputs=["x:batch,3"], freeze={"batch": 1})
toolchain.export(net, targets=[toolchain.load_target("rk3588")], calibration=loader, inputs=inputs, evaluate=score)
toolchain.quantize(net, calibration=[arrays], output=Path("q.onnx"), inputs=(toolchain.parse_input("x:1,3"),))
toolchain.quantize(net, calibration=np.zeros((4, 3)), output="q.onnx", freeze=["batch=1"], recipe=toolchain.Recipe())
toolchain.quantize(net, calibration=torch.zeros(4, 3), output="q.onnx", progress=progress)
toolchain.quantize(net, calibration=samples, output="q.onnx")
toolchain.quantize(net, calibration=samples(), output="q.onnx")
toolchain.bench("a.onnx", threads=2)
toolchain.bench(["a.onnx", Path("b.onnx")], threads=[1, 2], max_regression="5%")

reveal_type(toolchain.export("m.onnx", targets=["host"], calibration=arrays).results)  # .Results"
reveal_type(toolchain.inspect("m.onnx"))  # .Inspection"
reveal_type(toolchain.inspect("m.onnx", groups=True))  # .Grouping"
toolchain.exprot("m.onnx")  # Module has no attribute "exprot"; maybe "export"?
toolchain.export("m.onnx", target="host", calibration=arrays)  # did you mean "targets"?
toolchain.export("m.onnx", targets=["host"], calibration=3)  # Argument "calibration" to "export" has incompatible type
"""


def test_a_type_checker_accepts_documented_calls_and_names_mistakes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=silent", f"--cache-dir={tmp_path}", str(script)],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = re.findall(r"script\.py:(\d+): (?:error|note): (.*)", run.stdout)
    expected = [
        (number, line.partition("  # ")[2])
        for number, line in enumerate(SCRIPT.splitlines(), 1)
        if (line.startswith("toolchain.exp") and "  # " in line) or line.startswith("reveal_type")
    ]
    assert {int(number) for number, _ in said} == {number for number, _ in expected}, run.stdout
    for number, message in expected:
        assert any(int(at) == number and message in text for at, text in said), (message, run.stdout)
