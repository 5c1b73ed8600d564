"""Run a model on given inputs and write its outputs; nothing is timed.

It needs only the standard library, numpy and onnxruntime, so it runs wherever those run:

    python answers.py FOLDER

reads ``request.json`` and ``feeds.npz`` in FOLDER and writes ``outputs.npz`` and, last, ``answer.json`` there.

    request.json   model: path; inputs: names; feeds: number of feeds; options: configuration entries of the session;
                   optimized: null, or the file to which onnxruntime writes the graph that it really runs
    feeds.npz      ``i/j``: input j of feed i
    answer.json    outputs: names; onnxruntime: its version; machine: e.g. aarch64
    outputs.npz    ``i/j``: output j for feed i
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as in toolchain/__init__.py; read when imported
import onnxruntime as ort


def answer(folder: Path) -> None:
    """Run the request in `folder`. An exception of onnxruntime ends the program with its message."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    settings.inter_op_num_threads = 1
    for key, value in request["options"].items():
        settings.add_session_config_entry(key, value)
    if request["optimized"]:
        settings.optimized_model_filepath = request["optimized"]
    session = ort.InferenceSession(request["model"], settings, providers=["CPUExecutionProvider"])

    outputs = {}
    with np.load(folder / "feeds.npz") as feeds:
        for i in range(request["feeds"]):
            feed = {name: feeds[f"{i}/{j}"] for j, name in enumerate(request["inputs"])}
            answers = [a.astype(np.str_) if a.dtype.hasobject else a for a in session.run(None, feed)]  # text
            outputs.update({f"{i}/{j}": array for j, array in enumerate(answers)})
    np.savez(folder / "outputs.npz", **outputs)
    reply = {
        "outputs": [output.name for output in session.get_outputs()],
        "onnxruntime": ort.__version__,
        "machine": platform.machine(),
    }
    (folder / "answer.json").write_text(json.dumps(reply), encoding="utf-8")


if __name__ == "__main__":
    answer(Path(sys.argv[1]))
