"""`compare_answers`: the largest difference between a model's outputs on another device and on this machine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from toolchain.benchmark.job import FEED_SEED, BenchJob
from toolchain.benchmark.place import AnsweringDevice
from toolchain.core.errors import ModelError, one_line
from toolchain.data.tensors import Array, Feed
from toolchain.devices.cpuinfo import read_cpu


def compare_answers(device: AnsweringDevice, job: BenchJob) -> str:
    """Run a model on one feed, on the device and here, and say how far the outputs differ.

    Args:
        device: the other device.
        job: the model, its feed and session options; always run with one thread.

    Raises:
        ModelError: onnxruntime here refuses the model or the feed.
        DeviceError: the run on the device failed.
    """
    options = dict(job.session_options)
    if device.describe().architecture == "aarch64":
        # ARM builds of onnxruntime choose this themselves; this machine then runs the same signed kernels.
        options.setdefault("session.qdqisint8allowed", "1")
    feed, here = _answer_here(job, options)
    (there,) = device.answer(job.path, [feed], session_options=options)
    return describe_difference(here, there)


def describe_difference(here: Mapping[str, Array], there: Mapping[str, Array]) -> str:
    """Return one clause that says how far the outputs of two machines differ.

    Args:
        here: this machine's outputs by name.
        there: the other machine's, with the same names.
    """
    machine = f"this {read_cpu().architecture} machine"
    if all(np.array_equal(here[name], there[name], equal_nan=here[name].dtype.kind == "f") for name in here):
        return f"answers identical to those of {machine}, bit for bit"
    differences = {name: _largest_difference(here[name], there[name]) for name in here}
    name = max(differences, key=lambda n: differences[n])
    largest = float(np.max(np.abs(here[name].astype(np.float64)), initial=0.0))
    amount = f"by {differences[name]:.2g} at most, in {name}, whose values go to {largest:.3g}"
    return f"answers differ from those of {machine} {amount}"


def _largest_difference(a: Array, b: Array) -> float:
    """Return infinity if shapes differ, a value is NaN on one side only, or the dtype has no differences (strings)."""
    if a.shape != b.shape or a.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(a, b) else float("inf")
    return float(np.nan_to_num(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)), initial=0.0), nan=np.inf))


def _answer_here(job: BenchJob, options: Mapping[str, str]) -> tuple[Feed, dict[str, Array]]:
    """Return the feed, and this machine's outputs by name."""
    from toolchain.benchmark.runner import make_feed
    from toolchain.graph import run

    session = run.session(job.path, threads=1, options=options)
    try:
        feed = make_feed(session, dict(job.dims), FEED_SEED) if job.feed is None else job.feed
        outputs = session.run(None, feed)
    except (*run.OrtError, TypeError, ValueError) as error:  # TypeError: an input of unknown type; ValueError: names
        hint = "generated inputs have size 1 for dynamic axes: fix those with `toolchain convert --freeze AXIS=SIZE`"
        raise ModelError(f"onnxruntime cannot run it ({one_line(error)})", where=job.path, hint=hint) from None
    return feed, dict(zip([output.name for output in session.get_outputs()], outputs, strict=True))
