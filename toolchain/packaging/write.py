"""Write an exported folder; an interrupted export leaves an earlier folder as it was.

model.onnx                  the quantized model; above 1.9 GB of weights with model.onnx.data beside it
model.ort                   the same model optimized ahead of time, where the target's profile asks for it
required_operators.config   the operators that a reduced build of onnxruntime needs for model.ort
golden.npz                  inputs and the outputs expected for them
README.md                   instructions for the developer of the app
manifest.json               hashes of these files, the origin of the model, and the measurements
"""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir

from toolchain.core.errors import InputError
from toolchain.core.files import replacing, sha256
from toolchain.formats.manifest import MANIFEST_NAME, FileEntry, Manifest
from toolchain.formats.target import Target
from toolchain.graph import io
from toolchain.packaging import ort_format
from toolchain.packaging.golden import Golden, save_golden
from toolchain.packaging.readme import readme


def check_folder(folder: str | Path) -> None:
    """Refuse an output folder that contains anything but an earlier export, because it would be replaced.

    Raises:
        InputError: the path is a file, or a folder that is neither empty nor an export.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file, not a folder", where=folder, hint="choose another output folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST_NAME).is_file():
        raise InputError("contains files that are not an export", where=folder, hint="choose another output folder")


def write_artifact(
    folder: str | Path, model: ir.Model | Path, *, manifest: Manifest, target: Target, golden: Golden
) -> Manifest:
    """Write an exported folder in place of an earlier export.

    Args:
        folder: where to write; a missing parent folder is made.
        model: the model for `target`. A file without external data is copied byte for byte, so that measurements of it
            keep their hash.
        manifest: the manifest, complete except for `files`, which are filled in; `notes` may get another entry.
        target: the target; its ``package.formats`` lists the model files to write.
        golden: inputs, and the outputs that `target` must give for them.

    Returns:
        The manifest as written.

    Raises:
        ModelError: `model` cannot be read, or cannot be converted to the .ort format.
        GateError: the outputs of model.ort differ from those of model.onnx.
        InputError: `folder` contains other files (`check_folder`), cannot be written, or the disk is full.
    """
    folder = Path(folder)
    check_folder(folder)
    with replacing(folder) as temporary:
        new = temporary / folder.name
        new.mkdir()
        _write_model(model, new / "model.onnx")
        notes = _add_ort(new, target, golden)
        save_golden(golden, new / "golden.npz")
        manifest = manifest.model_copy(update={"notes": (*manifest.notes, *notes)})
        (new / "README.md").write_text(
            readme(manifest, target, {path.name for path in new.iterdir()}), encoding="utf-8"
        )
        manifest = manifest.model_copy(update={"files": tuple(_entry(path) for path in sorted(new.iterdir()))})
        (new / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _write_model(model: ir.Model | Path, path: Path) -> None:
    if isinstance(model, ir.Model):
        io.save_in_place(model, path)
        return
    loaded = io.load(model)
    if _has_external_data(loaded):
        io.save_in_place(loaded, path)
    else:
        shutil.copyfile(model, path)


def _has_external_data(model: ir.Model) -> bool:
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)


def _add_ort(folder: Path, target: Target, golden: Golden) -> list[str]:
    """Write the formats of ``package.formats`` beside model.onnx; return notes on those that are not possible."""
    formats = target.package.formats
    if "ort" not in formats:
        return []
    model = folder / "model.onnx"
    if (folder / "model.onnx.data").exists():
        return ["There is no model.ort: a file of that format has to stay below 2 GB, and the weights are larger."]
    ort_format.write_ort(model, folder, target.package)
    ort_format.verify_ort(model, folder / "model.ort", golden.feeds, target.package)
    if "onnx" not in formats:
        model.unlink()
    return []


def _entry(path: Path) -> FileEntry:
    return FileEntry(name=path.name, sha256=sha256(path), size_bytes=path.stat().st_size)
