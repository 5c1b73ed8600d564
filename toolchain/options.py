"""The command line's arguments and options, each with what it says in ``--help``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# What a command works on.
Source = Annotated[
    str,
    typer.Argument(help="An .onnx or .pt2 file, or package.module:callable giving an nn.Module.", metavar="SOURCE"),
]
Model = Annotated[Path, typer.Argument(help="An .onnx file.", metavar="MODEL")]
Models = Annotated[list[Path], typer.Argument(help=".onnx or .ort files, timed interleaved.", metavar="MODEL")]
Artifact = Annotated[Path, typer.Argument(help="A target's folder, as export writes it.", metavar="FOLDER")]
ResultsFiles = Annotated[
    list[Path], typer.Argument(help="Results files, as bench and export write them.", metavar="RESULTS")
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
    typer.Option(help="Fail (exit 1) where int8 scores lower than float by more than this.", metavar="NUMBER"),
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
Threads = Annotated[int | None, typer.Option(min=1, help="Threads; default: the profile's.", metavar="NUMBER")]
On = Annotated[str, typer.Option(help="local, or emulator:CPU such as emulator:cortex-a76.", metavar="PLACE")]

# What comes out.
Fp16Weights = Annotated[
    bool, typer.Option("--fp16-weights", help="Store large weights as float16: half the file, the same speed.")
]
OnnxOutput = Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.", metavar="FILE")]
FolderOutput = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", metavar="FOLDER")]
ResultsOutput = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the results to this file.", metavar="FILE")
]
Format = Annotated[str, typer.Option(help="table, markdown, csv or json.", metavar="NAME")]
Baseline = Annotated[
    str | None,
    typer.Option(help="A variant, or the name of one of several files; default fp32.", metavar="NAME"),
]
MaxRegression = Annotated[
    str | None, typer.Option(help="Fail (exit 1) where a row is slower by more, e.g. 5%.", metavar="SHARE")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
