"""Writing an exported folder, whole or not at all.

model.onnx                  as quantized; with model.onnx.data beside it above 1.9 GB of weights
model.ort                   the same, optimized ahead of time, where the target's profile asks for it
required_operators.config   what a reduced build of onnxruntime must contain to run model.ort
golden.npz                  inputs and the outputs expected for them
README.md                   for the developer of the app
manifest.json               everything above with its hash, and what the model was made from
"""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir

from toolchain.core.errors import InputError
from toolchain.core.files import replacing, sha256
from toolchain.formats.manifest import FileEntry, Manifest
from toolchain.formats.target import Target
from toolchain.graph import io
from toolchain.packaging import ort_format
from toolchain.packaging.golden import Golden, save_golden
from toolchain.packaging.readme import readme

MANIFEST = "manifest.json"


def check_folder(folder: str | Path) -> None:
    """Refuse a folder that holds something else than an earlier export; it would be replaced whole.

    Raises:
        InputError: a file stands there, or a folder that is neither empty nor an export.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file", where=folder, hint="choose another output folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise InputError("holds files that are not an export", where=folder, hint="choose another output folder")


def write_artifact(
    folder: str | Path, model: ir.Model | Path, *, manifest: Manifest, target: Target, golden: Golden
) -> Manifest:
    """Write an exported folder; an earlier export at the same place is replaced.

    Args:
        folder: where it goes; its parent is made on demand.
        model: the model for `target`. A file without external data is copied byte for byte, so that
            measurements taken of it keep their hash.
        manifest: everything but `files`, which is filled in. `notes` may be added to.
        target: whose ``package.formats`` say which model files are written.
        golden: inputs, and the outputs that `target` must give for them.

    Returns:
        The manifest as written.

    Raises:
        ModelError: `model` cannot be read, or converted to the .ort format.
        GateError: model.ort computes something else than model.onnx.
        InputError: `folder` holds something else (`check_folder`), cannot be written, or the disk is full.
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
        (new / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
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
    """Add what ``package.formats`` asks for beside model.onnx, and say what could not be."""
    formats = target.package.formats
    if "ort" not in formats:
        return []
    model = folder / "model.onnx"
    if (folder / "model.onnx.data").exists():
        return ["There is no model.ort: one file of that format holds less than 2 GB, and the weights are larger."]
    ort_format.convert(model, folder, target.package)
    ort_format.verify(model, folder / "model.ort", golden.feeds, target.package)
    if "onnx" not in formats:
        model.unlink()
    return []


def _entry(path: Path) -> FileEntry:
    return FileEntry(name=path.name, sha256=sha256(path), size_bytes=path.stat().st_size)
