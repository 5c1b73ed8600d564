"""The command line's arguments and options, each with what it says in ``--help``, and how their texts are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from toolchain.core.errors import InputError

if TYPE_CHECKING:
    from toolchain.formats.recipe import Recipe

# What a command works on.
Source = Annotated[
    str,
    typer.Argument(help="An .onnx or .pt2 file, or package.module:callable giving an nn.Module.", metavar="SOURCE"),
]
Model = Annotated[Path, typer.Argument(help="An .onnx file.", metavar="MODEL")]
Models = Annotated[list[Path] | None, typer.Argument(help=".onnx or .ort files, timed interleaved.", metavar="MODEL")]
Artifact = Annotated[Path, typer.Argument(help="A target's folder, as export writes it.", metavar="FOLDER")]
ResultsFiles = Annotated[
    list[Path], typer.Argument(help="Results files or folders, as bench and export write them.", metavar="RESULTS")
]
Profile = Annotated[str, typer.Argument(help="A profile's name or file.", metavar="NAME")]
ProfileFile = Annotated[Path, typer.Argument(help="A profile (TOML).", metavar="FILE")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="What a torch module takes: name:1x3x224x224[:dtype]; a named axis is dynamic.",
        metavar="NAME:SHAPE",
    ),
]
Freeze = Annotated[
    list[str] | None, typer.Option(help="Fix a dynamic axis: batch=1, or input.axis=1.", metavar="AXIS=SIZE")
]

# What int8 is made from and held against.
Calibration = Annotated[
    str,
    typer.Option(
        "--calibration", "-c", help="A folder of images or .npy files, an .npz, or module:callable.", metavar="DATA"
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(help="Image pipeline: imagenet, imagenet-squash, unit, signed, or a TOML file.", metavar="NAME"),
]
Evaluate = Annotated[
    str | None,
    typer.Option(
        help="Called with run(feeds) -> outputs; returns a number, higher is better.", metavar="MODULE:CALLABLE"
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        help="Leave operators float until int8 scores no lower than this below float; fail (exit 1) if none suffice.",
        metavar="NUMBER",
    ),
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Show what each step gained, and where the error that is left comes from.")
]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="A recipe (TOML); default: the recommended one.", metavar="FILE")
]

# For what device, and where.
Targets = Annotated[
    list[str],
    typer.Option("--target", "-t", help="A profile's name or file; may be given several times.", metavar="NAME"),
]
TargetName = Annotated[
    str, typer.Option("--target", "-t", help="A profile's name or file; see `toolchain targets list`.", metavar="NAME")
]
BenchTarget = Annotated[
    str | None,
    typer.Option("--target", "-t", help="Use this profile's threads and session options.", metavar="NAME"),
]
BudgetTarget = Annotated[
    str | None, typer.Option("--target", "-t", help="Compare with this profile's budgets.", metavar="NAME")
]
Threads = Annotated[
    str | None, typer.Option(help="Threads, or several: 1,2,4; default: the profile's.", metavar="LIST")
]
Cpus = Annotated[str | None, typer.Option(help="Bind to these cores: 0-3,6, or big, or little.", metavar="LIST")]
Arena = Annotated[str, typer.Option(help="Keep freed memory: on, off or both.", metavar="CHOICE")]
Profiled = Annotated[bool, typer.Option("--profile", help="Also show what each kind of operator takes.")]
SustainedFor = Annotated[
    float | None,
    typer.Option("--sustained", help="Then run so long without a pause.", metavar="MINUTES"),
]
SuiteFile = Annotated[
    Path | None, typer.Option("--suite", help="Time the models of this file or folder.", metavar="FILE")
]
On = Annotated[
    str, typer.Option(help="local, emulator:CPU such as emulator:cortex-a76, or adb:SERIAL.", metavar="PLACE")
]
Place = Annotated[
    str, typer.Option("--on", help="local, ssh:HOST, adb:SERIAL, or emulator:CPU (answers, not time).", metavar="PLACE")
]
PlacePython = Annotated[
    str | None,
    typer.Option(
        "--python", help="With ssh:HOST: an interpreter there that has numpy and onnxruntime.", metavar="PATH"
    ),
]

PlaceLibrary = Annotated[
    Path | None, typer.Option("--library", help="With adb:SERIAL: the device's libonnxruntime.so.", metavar="FILE")
]
PlaceNdk = Annotated[
    Path | None,
    typer.Option("--ndk", help="With adb:SERIAL: the Android NDK; default: $ANDROID_NDK_HOME.", metavar="FOLDER"),
]

# How much to prune.
Speedup = Annotated[float | None, typer.Option(help="So many times as fast, such as 1.3.", metavar="FACTOR")]
LatencyMs = Annotated[float | None, typer.Option(help="So many milliseconds an inference.", metavar="NUMBER")]
Keep = Annotated[float | None, typer.Option(help="This part of the MACs stays, such as 0.7.", metavar="SHARE")]
PruneTo = Annotated[
    float | None, typer.Option("--prune", help="Prune first, to so many times as fast as int8 alone.", metavar="FACTOR")
]
Criterion = Annotated[str | None, typer.Option(help="Which go first: obs, activation, l2, l1, random.", metavar="NAME")]
Minutes = Annotated[
    float | None,
    typer.Option(help="Train so long after that (PyTorch).", metavar="NUMBER"),
]
ForInt8 = Annotated[bool, typer.Option("--for-int8", help="Measure as int8, which is to follow.")]
Sparsity = Annotated[
    str | None,
    typer.Option(
        help="Zero single weights instead: 0.5, or 2:4.",
        metavar="SHARE|N:M",
    ),
]
Groups = Annotated[bool, typer.Option("--groups", help="Show what can only be cut together, and what cannot be cut.")]

# What comes out.
Fp16Weights = Annotated[
    bool, typer.Option("--fp16-weights", help="Store large weights as float16: half the file, the same speed.")
]
OnnxOutput = Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.", metavar="FILE")]
FolderOutput = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", metavar="FOLDER")]
ResultsOutput = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the results to this file.", metavar="FILE")
]
ProfileOutput = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the profile to this file (TOML, or .json).", metavar="FILE")
]
TextOutput = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write it to this file instead of showing it.", metavar="FILE")
]
Format = Annotated[str, typer.Option(help="table, markdown, csv, json or html.", metavar="NAME")]
Baseline = Annotated[
    str | None,
    typer.Option(help="A variant, or the name of one of several files; default fp32.", metavar="NAME"),
]
MaxRegression = Annotated[
    str | None, typer.Option(help="Fail (exit 1) where one is slower by more: 5%.", metavar="SHARE")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def read_recipe(path: Path | None, max_drop: float | None) -> Recipe:
    """The recipe of ``--recipe``, with ``--max-drop`` in it."""
    from toolchain.formats.recipe import Recipe

    recipe = Recipe.load(path) if path else Recipe()
    if max_drop is None:
        return recipe
    if not 0 <= max_drop < float("inf"):
        raise InputError(f"is {max_drop:g}", where="--max-drop", hint="give 0 or more")
    return recipe.model_copy(update={"max_drop": max_drop})


def with_prune(recipe: Recipe, given: Mapping[str, float | str | None]) -> Recipe:
    """The recipe with what the command line says of pruning; a goal given there replaces the recipe's."""
    from toolchain.formats.faults import first_fault
    from toolchain.formats.recipe import Prune

    chosen = {name: value for name, value in given.items() if value is not None}
    if not chosen:
        return recipe
    goals = ("speedup", "latency_ms", "keep")
    old = recipe.prune.model_dump()
    if any(name in chosen for name in goals):
        old |= dict.fromkeys(goals)
    try:
        return recipe.model_copy(update={"prune": Prune.model_validate({**old, **chosen})})
    except ValidationError as error:
        fault = first_fault(Prune, error, {**old, **chosen}, "recipe")
        where = f"--{str(fault.place[0]).replace('_', '-')}" if fault.place else "--speedup, --latency-ms, --keep"
        raise InputError(fault.what, where=where, hint=fault.hint if fault.place else "give one of them") from None


def read_threads(text: str | None) -> list[int | None]:
    """``1,2,4`` of ``--threads``; None where it is not given."""
    if text is None:
        return [None]
    parts = text.split(",")
    if not all(part.isdigit() and int(part) for part in parts):
        raise InputError(f"is {text!r}", where="--threads", hint="give numbers like 2 or 1,2,4")
    return [int(part) for part in parts]


def read_share(text: str) -> float:
    """``5%`` or ``0.05`` of ``--max-regression``."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = float("nan")
    if not 0 <= share < float("inf"):
        raise InputError(f"is {text!r}", where="--max-regression", hint="give a share like 5% or 0.05")
    return share
