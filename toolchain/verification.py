"""`verify`: does an exported model give its golden outputs, bit for bit, here or on an emulated processor?"""

from __future__ import annotations

from pathlib import Path

from toolchain import package
from toolchain.artifact import Manifest
from toolchain.bench import emulator
from toolchain.detect import detect_host
from toolchain.errors import InputError
from toolchain.graph import run
from toolchain.tensors import Array, Feed


def verify(folder: str | Path, *, on: str = "local") -> list[package.Mismatch]:
    """Run an exported folder's model on its golden inputs and compare every output bit for bit.

    Args:
        folder: one target's folder, as :func:`toolchain.pipeline.export` writes it.
        on: ``local`` or ``emulator:CPU`` (:data:`toolchain.bench.emulator.CPUS`).

    Raises:
        ConfigError, DataError, ModelError: the folder is no export, or damaged.
        InputError: unknown place, or one whose kernels do not take the model's integers.
        DeviceError: the emulator is not set up.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder / "manifest.json")
    golden = package.load_golden(folder / "golden.npz")
    model = folder / next(entry.name for entry in manifest.files if entry.name in ("model.onnx", "model.ort"))
    place, _, cpu = on.partition(":")
    if on != "local" and not (place == "emulator" and cpu):
        raise InputError(f"unknown place {on!r}", where="--on", hint="give local or emulator:cortex-a76")
    architecture = emulator.find_cpu(cpu).architecture if cpu else detect_host().architecture
    if architecture == "x86_64" and manifest.exactness.activations == "s8":
        raise InputError(
            f"was written for {manifest.target}; its signed activations take other kernels on x86",
            where=folder,
            hint="verify it with --on emulator:cortex-a76",
        )
    outputs = iter(emulator.run(cpu, model, golden.feeds) if cpu else _run_here(model, golden.feeds))
    return package.check_golden(lambda feed: next(outputs), golden)


def _run_here(model: Path, feeds: tuple[Feed, ...]) -> list[dict[str, Array]]:
    engine = run.session(model, threads=1)
    names = [output.name for output in engine.get_outputs()]
    return [dict(zip(names, engine.run(None, feed), strict=True)) for feed in feeds]
