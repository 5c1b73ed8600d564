"""`verify`: run an exported model on its golden inputs, here, on an emulated processor or on a phone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolchain.api.arguments import checked
from toolchain.benchmark.find import find_place
from toolchain.core.errors import DataError, InputError
from toolchain.core.files import sha256
from toolchain.core.progress import Progress, silent
from toolchain.formats.manifest import MANIFEST_NAME, Manifest
from toolchain.packaging.golden import Mismatch, check_golden, load_golden

FLOAT_TOLERANCE = 1e-5
"""Tolerance with float operators. Their last bit (6e-8 relative) depends on vector widths and libraries, and in sums of
hundreds of terms such differences may grow to this."""

STEP_TOLERANCE = 1e-2
"""Tolerance if int8 operators follow such float operators: a value close to a rounding border may differ by one step of
1/255."""

DYNAMIC_TOLERANCE = 0.02
"""Tolerance with dynamic operators, which round their own previous result: if a last bit differs, a value may differ by
a whole step of 1/255, and later time steps build on it."""

_COPY_HINT = "copy the whole folder, or export again"


@dataclass(frozen=True)
class Verification:
    """Result of :func:`verify`.

    Attributes:
        mismatches: the outputs that differ by more than the tolerance.
        samples: number of golden samples.
        tolerance: 0 where the manifest promises the same bits; else relative to an output's largest value.
        lost: what the exported model lost of the float model's answer, as the manifest says. The golden outputs are
            those of the exported model, so they cannot show it.
    """

    mismatches: tuple[Mismatch, ...]
    samples: int
    tolerance: float
    lost: tuple[str, ...] = ()


@checked()
def verify(
    artifact: str | Path,
    *,
    on: str = "local",
    library: str | Path | None = None,
    ndk: str | Path | None = None,
    progress: Progress = silent,
) -> Verification:
    """Run an exported model on its golden inputs and compare every output.

    Args:
        artifact: one target's folder, as :func:`toolchain.export` writes it.
        on: ``local``, ``emulator:CPU`` such as ``emulator:cortex-a76``, or ``adb:SERIAL``.
        library: with ``adb:SERIAL``, the device's ``libonnxruntime.so``.
        ndk: with ``adb:SERIAL``, the folder of the Android NDK; None looks for an installed one.
        progress: is told about every stage.

    Returns:
        The outputs that differ, and the tolerance that was applied.

    Raises:
        ConfigError, DataError, ModelError: the folder is no export, or a file in it is not the one that was exported.
        InputError: unknown place, or no library for it.
        DeviceError: the emulator is not set up, or the device cannot be used.
    """
    folder = Path(artifact)
    library, ndk = (None if path is None else Path(path) for path in (library, ndk))
    place = find_place(on, library=library, ndk=ndk)
    if place.answering is None:
        hint = "give local, emulator:cortex-a76 or adb:SERIAL"
        raise InputError(f"models are only timed on {on}, not run on given inputs", where="--on", hint=hint)
    manifest = _manifest(folder)
    _check_files(folder, manifest)
    golden = load_golden(folder / "golden.npz")
    model = next((folder / name for name in ("model.onnx", "model.ort") if (folder / name).is_file()), None)
    if model is None:
        raise DataError("holds no model.onnx or model.ort", where=folder, hint=_COPY_HINT)
    # Without this option, x86 first turns signed activations into unsigned ones, and fuses fewer operators.
    options = {"session.qdqisint8allowed": "1"} if manifest.exactness.activations == "s8" else {}
    progress(f"running the golden samples on {on}")
    with place.answering(progress) as device:
        answers = device.answer(model, golden.feeds, session_options=options)
    outputs = iter(answers)
    tolerance = _tolerance(manifest)
    mismatches = check_golden(lambda feed: next(outputs), golden, tolerance=tolerance)
    lost = manifest.verdict.lost if manifest.verdict is not None else ()
    return Verification(tuple(mismatches), len(golden.feeds), tolerance, lost)


def _tolerance(manifest: Manifest) -> float:
    if any(entry.precision == "int8 dynamic" for entry in manifest.precision):
        return DYNAMIC_TOLERANCE
    if not manifest.exactness.exceptions:
        return 0.0
    return STEP_TOLERANCE if manifest.exactness.steps else FLOAT_TOLERANCE


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        inside = sorted(str(manifest.parent) for manifest in folder.glob(f"*/{MANIFEST_NAME}"))
        hint = f"give {' or '.join(inside)}" if inside else "give a target's folder, as export writes it"
        raise DataError(f"is no exported folder, it holds no {MANIFEST_NAME}", where=folder, hint=hint)
    return Manifest.load(path)


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Refuse a folder if its files are not those that were exported; the README may have been edited.

    Raises:
        DataError: a file is missing or was changed.
    """
    for entry in manifest.files:
        path = folder / entry.name
        if not path.is_file():
            raise DataError("is missing", where=path, hint=_COPY_HINT)
        if entry.name != "README.md" and sha256(path) != entry.sha256:
            what = f"is not the file that was exported (its SHA-256 is not {entry.sha256[:12]}…)"
            raise DataError(what, where=path, hint=_COPY_HINT)
