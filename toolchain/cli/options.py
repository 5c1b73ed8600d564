"""The command line's arguments and options, each with its help text and its shell completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

# Copies of choices that are defined elsewhere, because importing their modules would slow down every `--help`. A test
# compares them.
FORMATS = ("table", "markdown", "csv", "json", "html")
PIPELINES = ("imagenet", "imagenet-squash", "unit", "signed")
CRITERIA = ("obs", "activation", "l2", "l1", "random")
ARENA = ("on", "off", "both")


def _among(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a shell completion that offers `choices`."""
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]


def _targets(incomplete: str) -> list[str]:
    from toolchain.devices.catalogue import known_targets

    return _among(known_targets())(incomplete)


def _places(*kinds: str) -> Callable[[str], list[str]]:
    """Return a shell completion that offers places: the `kinds` given, and each emulated CPU if that is one of them."""

    def complete(incomplete: str) -> list[str]:
        from toolchain.benchmark.emulator import CPUS

        cpus = [f"emulator:{name}" for name in CPUS] if "emulator:" in kinds else []
        return _among([*(kind for kind in kinds if kind != "emulator:"), *cpus])(incomplete)

    return complete


def _folder(text: str | Path) -> Path:
    """Return the path of a folder; an empty text, such as a shell's unset variable, is not the current folder."""
    if not str(text):
        raise typer.BadParameter("it is empty")
    return Path(text)


def _max_drop(text: str | float) -> float | str:
    """Return a largest loss of score, or "off"."""
    try:
        return text if text == "off" else float(text)
    except ValueError:
        raise typer.BadParameter(f"it is {text!r}; give a number, or off") from None


# On every command.
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Log decisions; -vv: log everything.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show the result and errors only.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

# Models and other files to read.
Source = Annotated[
    str,
    typer.Argument(help="An .onnx or .pt2 file, or package.module:function giving a torch module.", metavar="SOURCE"),
]
TrainModel = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="An .onnx or .pt2 file, or package.module:function giving a module.", metavar="SOURCE"
    ),
]
Model = Annotated[Path, typer.Argument(help="An .onnx file.", metavar="MODEL")]
ModelOrFolder = Annotated[
    Path, typer.Argument(help="An .onnx or .pt2 file, or a folder that export wrote.", metavar="MODEL")
]
Models = Annotated[list[Path] | None, typer.Argument(help=".onnx or .ort files, timed in turn.", metavar="MODEL")]
Artifact = Annotated[Path, typer.Argument(help="A target's folder, as export writes it.", metavar="FOLDER")]
ResultsFiles = Annotated[
    list[Path], typer.Argument(help="Results files or folders, as bench and export write them.", metavar="RESULTS")
]
Profile = Annotated[str, typer.Argument(help="Name or file of a profile.", metavar="NAME", autocompletion=_targets)]
ProfileFile = Annotated[Path, typer.Argument(help="A profile (TOML).", metavar="FILE")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Input of a torch module, e.g. image:batch,3,224,224; repeat for more.",
        metavar="NAME:SHAPE",
    ),
]
Freeze = Annotated[
    list[str] | None, typer.Option(help="Fix a dynamic axis, e.g. batch=1 or input.axis=1.", metavar="AXIS=SIZE")
]

# Data and accuracy.
Calibration = Annotated[
    str,
    typer.Option(
        "--calibration", "-c", help="A folder of images or .npy files, an .npz, or module:function.", metavar="DATA"
    ),
]
TrainData = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        help="A folder of images or .npy files, an .npz, or module:function; an array `labels` is ground truth.",
        metavar="DATA",
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        help="Image pipeline: imagenet, imagenet-squash, unit, signed, or a TOML file.",
        metavar="NAME|FILE",
        autocompletion=_among(PIPELINES),
    ),
]
Evaluate = Annotated[
    str | None,
    typer.Option(
        help="Your metric: a function that takes run(feed) -> outputs and returns a number; higher is better.",
        metavar="MODULE:FUNCTION",
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        help="Largest loss of score that is accepted, e.g. 0.01; operators stay float until it holds, else exit 1. "
        "Without it, no part of the answer may be lost. off: write the model whatever it lost, and say so.",
        metavar="NUMBER|off",
        parser=_max_drop,
    ),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        help="Largest accepted loss of score, e.g. 0.01, or off: write it whatever it lost.",
        metavar="NUMBER|off",
        parser=_max_drop,
    ),
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Show what each step gained, and what causes the error that is left.")
]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="A recipe (TOML); default: the recommended one.", metavar="FILE")
]
TrainRecipe = Annotated[Path, typer.Option("--recipe", "-r", help="A training recipe (TOML).", metavar="FILE")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]

# The device, and where to run.
Targets = Annotated[
    list[str],
    typer.Option(
        "--target",
        "-t",
        help="Name or file of a device profile; repeat for more. See `toolchain targets list`.",
        metavar="NAME",
        autocompletion=_targets,
    ),
]
TargetName = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        help="Name or file of a device profile; see `toolchain targets list`.",
        metavar="NAME",
        autocompletion=_targets,
    ),
]
BenchTarget = Annotated[
    str | None,
    typer.Option(
        "--target",
        "-t",
        help="Use the threads and session options of this profile.",
        metavar="NAME",
        autocompletion=_targets,
    ),
]
BudgetTarget = Annotated[
    str | None,
    typer.Option(
        "--target", "-t", help="Compare with this profile's budgets.", metavar="NAME", autocompletion=_targets
    ),
]
Threads = Annotated[str | None, typer.Option(help="Number of threads, or several to compare: 1,2,4.", metavar="LIST")]
Cpus = Annotated[str | None, typer.Option(help="Run on these cores: 0-3,6, or big, or little.", metavar="LIST")]
Arena = Annotated[
    str,
    typer.Option(help="Whether the runtime keeps freed memory.", metavar="|".join(ARENA), autocompletion=_among(ARENA)),
]
Operators = Annotated[bool, typer.Option("--operators", help="Also measure how long each operator takes.")]
SustainedFor = Annotated[
    float | None,
    typer.Option("--sustained", help="Afterwards, run continuously for this many minutes.", metavar="MINUTES"),
]
SuiteFile = Annotated[
    Path | None, typer.Option("--suite", help="Time the models of this suite file or folder.", metavar="FILE")
]
AnsweringPlace = Annotated[
    str,
    typer.Option(
        "--on",
        help="Where to run: local, adb:SERIAL, or emulator:CPU.",
        metavar="PLACE",
        autocompletion=_places("local", "adb:", "emulator:"),
    ),
]
BenchPlace = Annotated[
    str,
    typer.Option(
        "--on",
        help="Where to run: local, ssh:HOST, adb:SERIAL, or emulator:CPU (outputs only, no times).",
        metavar="PLACE",
        autocompletion=_places("local", "ssh:", "adb:", "emulator:"),
    ),
]
DetectPlace = Annotated[
    str,
    typer.Option(
        "--on",
        help="The machine to describe: local, ssh:HOST, or adb:SERIAL.",
        metavar="PLACE",
        autocompletion=_places("local", "ssh:", "adb:"),
    ),
]
PlacePython = Annotated[
    str | None,
    typer.Option("--python", help="With ssh:HOST: a Python there with numpy and onnxruntime.", metavar="PATH"),
]
PlaceLibrary = Annotated[
    Path | None, typer.Option("--library", help="With adb:SERIAL: the device's libonnxruntime.so.", metavar="FILE")
]
PlaceNdk = Annotated[
    Path | None,
    typer.Option("--ndk", help="With adb:SERIAL: the Android NDK; default: $ANDROID_NDK_HOME.", metavar="FOLDER"),
]

# Pruning.
Speedup = Annotated[float | None, typer.Option(help="Target speed-up, e.g. 1.3.", metavar="FACTOR")]
LatencyMs = Annotated[float | None, typer.Option(help="Target latency of one inference, in ms.", metavar="NUMBER")]
Keep = Annotated[float | None, typer.Option(help="Share of the arithmetic to keep, e.g. 0.7.", metavar="SHARE")]
PruneTo = Annotated[
    float | None,
    typer.Option("--prune", help="Prune first, to this speed-up over int8 alone, e.g. 1.2.", metavar="FACTOR"),
]
Criterion = Annotated[
    str | None,
    typer.Option(
        help="Which channels go first: obs, activation, l2, l1, random.",
        metavar="NAME",
        autocompletion=_among(CRITERIA),
    ),
]
Minutes = Annotated[float | None, typer.Option(help="Train this long after pruning; needs PyTorch.", metavar="NUMBER")]
ForInt8 = Annotated[
    bool, typer.Option("--for-int8", help="Measure the latency of the int8 model that is made afterwards.")
]
Sparsity = Annotated[
    str | None, typer.Option(help="Set single weights to zero instead: 0.5 or 2:4.", metavar="SHARE|N:M")
]
Groups = Annotated[bool, typer.Option("--groups", help="Show the channels that can only be removed together.")]

# Results.
Fp16Weights = Annotated[
    bool, typer.Option("--fp16-weights", help="Store large weights as float16: half the file, the same speed.")
]
OnnxOutput = Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.", metavar="FILE")]
FolderOutput = Annotated[
    Path, typer.Option("--output", "-o", help="Folder to write.", metavar="FOLDER", parser=_folder)
]
ResultsOutput = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the results to this file (JSON).", metavar="FILE")
]
ProfileOutput = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the profile to this file (TOML or .json).", metavar="FILE")
]
TextOutput = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write to this file instead of the terminal.", metavar="FILE")
]
Format = Annotated[
    str, typer.Option(help="Format of the result.", metavar="|".join(FORMATS), autocompletion=_among(FORMATS))
]
Baseline = Annotated[
    str | None,
    typer.Option(help="Compare with this variant or file name; default: fp32.", metavar="NAME"),
]
MaxRegression = Annotated[
    str | None, typer.Option(help="Exit with 1 if a model is slower by more than this, e.g. 5%.", metavar="SHARE")
]
