"""``model.ort``: onnxruntime's own format, with the graph optimized ahead of time.

A session on *this* machine optimizes the graph and saves it, like the ``Fixed`` style of
onnxruntime.tools.convert_onnx_models_to_ort. The optimizations that may be saved depend on where the file will run:

    Fixed             All optimizations are applied and saved. (The other style, ``Runtime``, keeps the QuantizeLinear
                      pairs for providers that compile, and needs a session option to apply the rest. The provider
                      here is the CPU, whose kernels exist on every processor.)
    NCHWc             This optimization is never saved. The blocked layout of float convolutions has the block width of
                      the machine that saves: 16 channels with AVX512, 8 with AVX2. A file made on one machine gives
                      wrong numbers on the other, without any error (the converter's ``--target_platform amd64`` makes
                      such files); ARM refuses it. The cost: on x86, float convolutions run faster from ``model.onnx``,
                      which is optimized on the machine that loads it.
    qdqisint8allowed  On ARM, onnxruntime fuses s8 activations into integer kernels by default; on x86 it does not. The
                      option is set as on the target. So for ARM the saved graph is the same graph that the aarch64
                      runtime makes of ``model.onnx``.

The converter itself is not called, because importing onnxruntime.tools imports torch where that is installed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort

from toolchain.core.errors import GateError, ModelError, one_line
from toolchain.data.tensors import Array, Feed
from toolchain.formats.target import Package
from toolchain.graph.run import OrtError
from toolchain.packaging.golden import Golden, check_golden


def write_ort(model: Path, folder: Path, package: Package) -> None:
    """Write ``model.ort`` and ``required_operators.config`` (for a reduced build of onnxruntime) into `folder`.

    Args:
        model: the ONNX file.
        folder: where to write.
        package: says which platform the file is for.

    Raises:
        ModelError: onnxruntime does not accept the model, or cannot save it.
    """
    try:
        _session(model, {**_fusions_of(package), "session.save_model_format": "ORT"}, folder / "model.ort")
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            optimized = Path(temporary, "optimized.onnx")
            _session(model, _fusions_of(package), optimized)
            operators = _required_operators(ir.load(optimized))
    except OrtError as error:
        raise ModelError(
            f"cannot be written in the .ort format ({one_line(error)})",
            where=model.name,
            hint='leave "ort" out of package.formats in the target profile',
        ) from None
    header = "# Operators of model.ort, for onnxruntime's build option --include_ops_by_config"
    (folder / "required_operators.config").write_text("\n".join([header, *operators, ""]), encoding="utf-8")


def _required_operators(model: ir.Model) -> list[str]:
    """List the operators: one line ``domain;version;operators`` for each version that last changed some of them."""
    operators: dict[tuple[str, int], set[str]] = {}
    for node in model.graph.all_nodes():
        operators.setdefault((node.domain or "ai.onnx", _since(node, model)), set()).add(node.op_type)
    return [f"{domain};{since};{','.join(sorted(types))}" for (domain, since), types in sorted(operators.items())]


def _since(node: ir.Node, model: ir.Model) -> int:
    latest = model.opset_imports.get(node.domain, 1)
    try:
        return int(onnx.defs.get_schema(node.op_type, latest, node.domain).since_version)
    except onnx.defs.SchemaError:
        return latest  # onnx does not know onnxruntime's own operators; they have one version


def verify_ort(model: Path, converted: Path, feeds: tuple[Feed, ...], package: Package) -> None:
    """Check on this machine that the converted file gives the same outputs as the model, bit for bit.

    The model runs with the optimizations that were saved into the file (see the module), so the outputs must be equal.

    Args:
        model: the ONNX file.
        converted: its ``model.ort``.
        feeds: inputs to compare with.
        package: says which platform the file is for.

    Raises:
        GateError: an output differs.
    """
    reference = _session(model, _fusions_of(package))
    golden = Golden(feeds, tuple(_run(reference, feed) for feed in feeds))
    other = _session(converted, {})
    mismatches = check_golden(lambda feed: _run(other, feed), golden)
    if mismatches:
        raise GateError(
            f"model.ort and model.onnx give different outputs ({mismatches[0]})",
            where=model.name,
            hint='leave "ort" out of package.formats in the target profile, and report the model',
        )


def _fusions_of(package: Package) -> dict[str, str]:
    return {"session.qdqisint8allowed": "1" if package.ort_platform == "arm" else "0"}


def _session(path: Path, settings: dict[str, str], saved: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
    )


def _run(session: ort.InferenceSession, feed: Feed) -> dict[str, Array]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))
