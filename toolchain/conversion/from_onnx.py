"""Reading of an ``.onnx`` file, which is checked with the installed onnxruntime and upgraded to a current opset.

1. The file is complete, and so is its external data (`graph.io.load`).
2. The installed onnxruntime runs its opset and IR version.
3. Every operator, also in subgraphs and functions, has a schema there, or is a function in the file.
4. onnxruntime creates a session: types and attributes are right, and kernels exist. Inputs and outputs are tensors with
   a known number of axes.
5. Weights that are listed as inputs, as in IR 3, become constants, which all later stages expect.
6. A file below opset 17 is upgraded with onnx's own converter: per-channel QDQ needs opset 13, and the operator table
   knows one form of each operator. The upgraded model is compared with the original (`parity`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx.version_converter
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from toolchain.conversion.expand_fused import expand_fused
from toolchain.conversion.imported import Imported
from toolchain.conversion.old_resize import restore_meaning
from toolchain.conversion.parity import Reference
from toolchain.conversion.repeatability import refuse_training_mode
from toolchain.conversion.widen import widen, widened_note
from toolchain.core.errors import ModelError, did_you_mean, one_line
from toolchain.core.files import sha256
from toolchain.data.tensors import Array, Feed
from toolchain.formats.manifest import Source
from toolchain.graph import io, query, run, shapes

OLDEST_READABLE_OPSET, MIN_OPSET = 7, 17
# From onnx's table of releases: opset 17 came with IR 8, and opsets up to 22 need at most IR 10.
_IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10}


def from_onnx(path: Path) -> Imported:
    """Load, check and upgrade the file at `path`.

    Raises:
        ModelError: the file is missing or damaged, has an unknown opset or operator, or cannot be upgraded.
    """
    model, reading = io.read(path)
    _check_versions(model, path)
    _check_operators(model, path)
    source = Source(name=str(path), sha256=_content_hash(model, path), kind="onnx", exporter=_producer(model))
    halves = widen(model)
    original = _session(path, halves)
    _check_ports(model, path)
    notes = [*reading, *_weights_as_constants(model)]
    if halves:
        notes.append(widened_note(halves))
    if original is None:
        notes.append("the float32 model was not compared with the file, which onnxruntime does not run")
    expanded = expand_fused(model)
    if expanded:
        notes.append(f"{expanded} operators that only onnxruntime has were replaced by standard ones")
    changed = bool(expanded or halves)
    opset = query.opset(model)
    if opset < MIN_OPSET:
        refuse_training_mode(model, path)  # before the upgrade, since older opsets state it in another way
        model = _upgraded(model, path)
        notes.append(f"opset {opset} was upgraded to {MIN_OPSET}")
        changed = True
    version = _IR_VERSIONS.get(query.opset(model))
    if version is not None:  # so that an older onnxruntime on the device reads it as well
        model.ir_version = version
    reference = _runner(original) if changed and original is not None else None
    return Imported(model, source, tuple(notes), reference, half=bool(halves))


def _session(path: Path, halves: Sequence[str]) -> ort.InferenceSession | None:
    """A session of the file as it is; None if onnxruntime lacks kernels for its 16-bit floats, e.g. for bfloat16."""
    try:
        return run.session(path)
    except ModelError:
        if not halves:
            raise
        return None


def _content_hash(model: ir.Model, path: Path) -> str:
    """SHA-256 of the file; with external data, of the hashes of all its files."""
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    external = {Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    if not external:
        return sha256(path)
    hashes = [sha256(file) for file in (path, *sorted(external))]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _check_ports(model: ir.Model, path: Path) -> None:
    """Check that inputs and outputs are tensors of known rank; unknown ranks of outputs are inferred first."""
    if any(value.shape is None for value in model.graph.outputs):
        shapes.infer_shapes(model)
    try:
        io.inputs(model), io.outputs(model)
    except ModelError as error:
        raise ModelError(error.what, where=f"{path}: {error.where}", hint=error.hint) from None
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is None:
            raise ModelError(
                f"{value.name!r} has no shape; not even its number of axes is known",
                where=path,
                hint="export the model with shapes",
            )


def _producer(model: ir.Model) -> str:
    return f"{model.producer_name or 'unknown'} {model.producer_version or ''}".strip()


def _check_versions(model: ir.Model, path: Path) -> None:
    opset = query.opset(model)
    here = f"onnxruntime {ort.__version__}"
    if opset < OLDEST_READABLE_OPSET:
        what = f"has opset {opset}, and the oldest supported is {OLDEST_READABLE_OPSET}" if opset else "states no opset"
        raise ModelError(what, where=path, hint=f"export it again with opset {MIN_OPSET} or later")
    if not _accepts(opset, 8):
        newest = max(version for version in range(OLDEST_READABLE_OPSET, opset) if _accepts(version, 8))
        what = f"has opset {opset}, and {here} runs up to {newest}"
        raise ModelError(what, where=path, hint=f"export it again with opset {newest}, or upgrade onnxruntime")
    if model.ir_version is not None and not _accepts(MIN_OPSET, model.ir_version):
        what = f"has IR version {model.ir_version}, which {here} does not read"
        raise ModelError(what, where=path, hint="export it again with an older onnx package, or upgrade onnxruntime")


def _accepts(opset: int, ir_version: int) -> bool:
    """True if onnxruntime runs a one-node model of these versions; this is more reliable than a table of versions."""
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "smallest",
        [info("x", onnx.TensorProto.FLOAT, [1])],
        [info("y", onnx.TensorProto.FLOAT, [1])],
    )
    imports = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    try:
        ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    except run.OrtError:
        return False
    return True


def _check_operators(model: ir.Model, path: Path) -> None:
    since = _schemas()
    own = {(function.domain, function.name) for function in model.functions.values()}
    for node in query.all_nodes(model):
        key = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        if key in own:
            continue
        where = f"{path}: node {query.label(node)!r}"
        domain = f"domain {key[0]!r}" if key[0] else "the standard domain"
        if key not in since:
            near = did_you_mean(str(key[1]), {name for other, name in since if other == key[0]})
            raise ModelError(
                f"onnxruntime {ort.__version__} has no operator {key[1]!r} in {domain}",
                where=where,
                hint=near if near.startswith("did") else "export the model with standard operators",
            )
        opset = query.opset(model) if key[0] == "" else model.opset_imports.get(key[0], 1)
        if since[key] > opset:
            raise ModelError(
                f"operator {key[1]!r} of {domain} exists since opset {since[key]}, and the model has opset {opset}",
                where=where,
                hint=f"export it again with opset {since[key]}",
            )


def _schemas() -> Mapping[tuple[str, str], int]:
    """The first opset of every operator that onnxruntime has, by domain and name."""
    since: dict[tuple[str, str], int] = {}
    for schema in ort_state.get_all_operator_schema():
        key = ("" if schema.domain == "ai.onnx" else schema.domain, schema.name)
        since[key] = min(since.get(key, schema.since_version), schema.since_version)
    return since


def _weights_as_constants(model: ir.Model) -> list[str]:
    count = sum(value.name in model.graph.initializers for value in model.graph.inputs)
    if not count:
        return []
    common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version or 0, 4)  # IR 3 knows weights only as inputs
    return [f"{count} weights were listed as inputs and are now constants"]


def _upgraded(model: ir.Model, path: Path) -> ir.Model:
    opset = query.opset(model)
    what = f"has opset {opset}, which could not be upgraded to {MIN_OPSET}"
    hint = f"export it again with opset {MIN_OPSET} or later"
    if io.weight_bytes(model) > io.EMBED_LIMIT_BYTES:
        raise ModelError(f"{what} because it is too large for onnx's converter", where=path, hint=hint)
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(io.embedded(model)), MIN_OPSET)
    except (RuntimeError, ValueError, IndexError, onnx.version_converter.ConvertError) as error:
        raise ModelError(f"{what} ({one_line(error)})", where=path, hint=hint) from None
    upgraded: ir.Model = ir.from_proto(proto)
    if opset < 11:
        restore_meaning(upgraded)
    return upgraded


def _runner(session: ort.InferenceSession) -> Reference:
    def reference(feed: Feed) -> list[Array] | None:
        try:
            return run.run(session, [feed])[0]
        except run.OrtError:
            return None

    return reference
