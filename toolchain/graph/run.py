"""Running a model in onnxruntime's CPU provider, and the difference between the outputs of two models."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from toolchain.core.errors import ModelError, one_line
from toolchain.data.tensors import Array, Feed, is_text
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.graph import io

OrtError = (
    ort.capi.onnxruntime_pybind11_state.Fail,
    ort.capi.onnxruntime_pybind11_state.InvalidArgument,
    ort.capi.onnxruntime_pybind11_state.InvalidGraph,
    ort.capi.onnxruntime_pybind11_state.InvalidProtobuf,
    ort.capi.onnxruntime_pybind11_state.NoSuchFile,
    ort.capi.onnxruntime_pybind11_state.NotImplemented,
    ort.capi.onnxruntime_pybind11_state.RuntimeException,
)
"""Exceptions that onnxruntime raises for a model or feed that it cannot use."""


def session(
    model: ir.Model | str | Path,
    *,
    threads: int = 0,
    pattern: bool = True,
    options: Mapping[str, str] | None = None,
    optimized: Path | None = None,
    profile: Path | None = None,
    without: Sequence[str] = (),
    fuse: bool = True,
) -> ort.InferenceSession:
    """An onnxruntime session.

    Args:
        model: a model or the path of a file.
        threads: intra-op threads; 0 lets onnxruntime choose.
        pattern: allocate one block for all tensors of a run, in the layout of the previous run. It is faster, but the
            peak of memory is higher.
        options: session configuration entries.
        optimized: path to which onnxruntime writes the graph that it runs after its own optimizations.
        profile: prefix of the path to which onnxruntime writes the times of operators.
        without: names of onnxruntime's graph transformers to disable.
        fuse: let onnxruntime optimize the graph.

    Raises:
        ModelError: onnxruntime does not accept the model.
    """
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.enable_mem_pattern = pattern
    if not fuse:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in (options or {}).items():
        settings.add_session_config_entry(key, value)
    if optimized is not None:
        settings.optimized_model_filepath = str(optimized)
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    try:
        if not isinstance(model, ir.Model):
            return _session(str(model), settings, without)
        if io.weight_bytes(model) <= io.EMBED_LIMIT_BYTES:
            return _session(io.to_bytes(model), settings, without)
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            path = Path(folder, "model.onnx")
            io.save_in_place(model, path)
            return _session(str(path), settings, without)
    except (*OrtError, UnicodeDecodeError) as error:
        name = model if isinstance(model, str | Path) else model.graph.name
        raise ModelError(
            f"onnxruntime {ort.__version__} does not accept it ({one_line(error)})", where=name, hint="export it again"
        ) from None


def _session(model: str | bytes, settings: ort.SessionOptions, without: Sequence[str]) -> ort.InferenceSession:
    # The fallback would only try the same provider again and print a message.
    return ort.InferenceSession(
        model, settings, providers=["CPUExecutionProvider"], enable_fallback=0, disabled_optimizers=list(without)
    )


def lean_session(model: ir.Model, threads: int = 0) -> ort.InferenceSession:
    """A session that needs little memory and whose idle threads do not spin, for work in NumPy between two runs."""
    return session(model, threads=threads, pattern=False, options={"session.intra_op.allow_spinning": "0"})


def run(model: ir.Model | ort.InferenceSession, feeds: Iterable[Feed]) -> list[list[Array]]:
    """The outputs for every feed, in the model's order."""
    engine = session(model) if isinstance(model, ir.Model) else model
    return [list(engine.run(None, feed)) for feed in feeds]


MAX_RANDOM_VALUES = 2**24
"""Most numbers of a random input with dynamic axes, 64 MiB as float32: four axes of size 512 would take 256 GiB."""


def can_draw(specs: Sequence[TensorSpec], dynamic: int) -> bool:
    """False where an input would be larger than :data:`MAX_RANDOM_VALUES` with this size of its dynamic axes."""
    shapes = [spec.dims for spec in specs if not all(isinstance(size, int) for size in spec.dims)]
    return all(prod(d if isinstance(d, int) else dynamic for d in dims) <= MAX_RANDOM_VALUES for dims in shapes)


def random_feed(specs: Sequence[TensorSpec], rng: np.random.Generator, dynamic: int = 1) -> Feed:
    """Random inputs: normal numbers for floats, 0 and 1 for integers (valid as ids, masks and flags) and as text."""

    def draw(spec: TensorSpec) -> Array:
        shape = tuple(d if isinstance(d, int) else dynamic for d in spec.dims)
        if spec.dtype.hasobject:
            return rng.integers(0, 2, shape).astype(np.str_)
        if np.issubdtype(spec.dtype, np.floating):
            return rng.standard_normal(shape).astype(spec.dtype)
        return rng.integers(0, 2, shape).astype(spec.dtype)

    return {spec.name: draw(spec) for spec in specs}


@dataclass(frozen=True)
class Difference:
    """The output in which two models differ most.

    Attributes:
        output: its name; the first output if they do not differ.
        error: max |a - b| / max |a|, where a is the reference.
    """

    output: str
    error: float


def difference(
    names: Sequence[str], reference: Sequence[Sequence[Array]], other: Sequence[Sequence[Array]]
) -> Difference:
    """The largest relative difference over all outputs and feeds."""
    worst = Difference(names[0] if names else "", 0.0)
    for expected, got in zip(reference, other, strict=True):
        for name, a, b in zip(names, expected, got, strict=True):
            error = relative_error(a, b)
            if error > worst.error:
                worst = Difference(name, error)
    return worst


def relative_error(expected: Array, got: Array) -> float:
    """Max |expected - got| / max |expected|; infinite if shapes, the non-finite elements or texts differ."""
    if expected.shape != got.shape:
        return float("inf")
    if is_text(expected):
        return 0.0 if np.array_equal(expected, got) else float("inf")
    if expected.size == 0:
        return 0.0
    a, b = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    a, b = a[finite], b[finite]
    return float(np.max(np.abs(a - b), initial=0.0) / max(float(np.max(np.abs(a), initial=0.0)), 1e-12))
