"""Other quantizers and pruners, each in an environment of its own, because their packages exclude each other:

    python -m benchmarks.peers                          # list them, and which are installed
    python -m benchmarks.peers install [NAME ...]       # all by default; up to 1.8 GB each

An environment is a folder of the cache (``~/.cache/edge-toolchain/peers/NAME``) with all packages that
``drivers/requirements`` pins, so that pip resolves nothing. torch is pinned as its CPU build: set
``PIP_EXTRA_INDEX_URL`` or ``PIP_FIND_LINKS`` if pip does not find it. ``drivers/NAME.py`` runs in the environment.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolchain.core.cache import cache_dir
from toolchain.core.errors import DeviceError, InputError, ToolchainError, did_you_mean
from toolchain.core.files import write_text

REQUIREMENTS = Path(__file__).parent / "drivers" / "requirements"
INSTALLED = "requirements.txt"  # a copy of the pins, written when all packages are installed


@dataclass(frozen=True)
class Peer:
    """Another tool, and the settings it takes part with.

    Attributes:
        rows: name of each setting in a table → the driver's argument `how`.
        settings: their description.
        blind: values of `how` that read no samples, so that all seeds give the same file.
    """

    rows: Mapping[str, str]
    settings: str
    blind: frozenset[str] = frozenset()


QUANTIZERS: Mapping[str, Peer] = {
    "nncf": Peer(
        {"NNCF": "default", "NNCF mixed": "mixed"},
        "NNCF: `nncf.quantize` with its defaults; mixed: with preset MIXED, which it advises for activations other "
        "than ReLU, and with model_type TRANSFORMER for transformers.",
    ),
    "olive": Peer(
        {"Olive": "default", "Olive U8S8": "U8S8"},
        "Olive: its pass `OnnxStaticQuantization` with its defaults (S8S8 per tensor, min-max), and with uint8 "
        "activations and weights per channel.",
    ),
    "quark": Peer(
        {"Quark": "default"},
        "Quark: AMD's `INT8_CNN_DEFAULT`, for transformers `INT8_TRANSFORMER_DEFAULT` (U8S8 per tensor, min-max).",
    ),
}

PRUNERS: Mapping[str, Peer] = {
    "torch_pruning": Peer(
        {
            "Torch-Pruning": "uniform",
            "Torch-Pruning global": "global",
            "Torch-Pruning, norms": "uniform norms",
            "Torch-Pruning global, norms": "global norms",
        },
        "Torch-Pruning: `BasePruner` (its `MetaPruner`) with `GroupMagnitudeImportance`, one ratio for all layers or "
        "ranked globally, widths rounded to the profile's channel multiple, the last linear layer left alone; norms: "
        "the statistics of all batch norms are taken anew on the samples.",
        frozenset({"uniform", "global"}),
    ),
    "onnxsim": Peer(
        {"onnxsim": "l2", "onnxsim global": "global", "onnxsim Wanda, fine-tuned": "wanda"},
        "onnxsim: `apply_structured_pruning`, one ratio for all layers or ranked globally; Wanda, fine-tuned: "
        "`apply_structured_wanda_pruning`, then `apply_pruning_finetune`, both with the samples.",
        frozenset({"l2", "global"}),
    ),
}

PEERS = {**QUANTIZERS, **PRUNERS}


def driver(name: str) -> str:
    """The name of the peer's function for `benchmarks.fresh`."""
    return f"benchmarks.drivers.{name}:{'prune' if name in PRUNERS else 'quantize'}"


def interpreter(name: str) -> str | None:
    """The Python of the peer's environment; None if it is not installed as pinned."""
    folder, pins = _folder(name), _pins(name)
    whole = (folder / INSTALLED).is_file() and (folder / INSTALLED).read_text() == pins.read_text()
    return str(_python(folder)) if whole else None


def install(name: str) -> None:
    """Install the peer's environment, anew if it is not as pinned.

    Raises:
        DeviceError: pip failed; with the last line of its errors.
    """
    if interpreter(name):
        return
    folder, pins = _folder(name), _pins(name)
    venv.create(folder, clear=True, symlinks=True)
    command = [sys.executable, "-m", "pip", "--python", str(_python(folder)), "install", "--no-deps", "-q"]
    done = subprocess.run([*command, "-r", str(pins)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        hint = "torch is pinned as its CPU build: set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS to where pip finds it"
        raise DeviceError(said[-1].removeprefix("ERROR: "), where=name, hint=hint if "torch" in said[-1] else None)
    write_text(folder / INSTALLED, pins.read_text())


def known(name: str) -> str:
    """Check the name of a peer.

    Raises:
        InputError: there is no such peer.
    """
    if name not in PEERS:
        raise InputError(f"no peer {name!r}", hint=did_you_mean(name, PEERS))
    return name


def _folder(name: str) -> Path:
    return cache_dir("peers") / name


def _pins(name: str) -> Path:
    return REQUIREMENTS / f"{name}.txt"


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def main() -> None:
    parser = argparse.ArgumentParser(description="Other quantizers and pruners, each in an environment of its own.")
    parser.add_argument("action", nargs="?", choices=("list", "install"), default="list")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PEERS))
    options = parser.parse_args()
    for name in [known(name) for name in options.names] or PEERS:
        if options.action == "install":
            print(f"{name}: installing", flush=True)
            install(name)
        print(f"{name}: {'installed' if interpreter(name) else 'not installed'}. {PEERS[name].settings}")


if __name__ == "__main__":
    try:
        main()
    except ToolchainError as error:
        raise SystemExit(str(error)) from None
