"""``toolchain train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli import options
from toolchain.cli.terminal import say, show, show_json, working

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="An .onnx or .pt2 file, or package.module:callable giving an nn.Module.", metavar="SOURCE"
    ),
]
Data = Annotated[
    str,
    typer.Option("--data", "-d", help="Samples, as for calibration; 'labels' among them, or none.", metavar="DATA"),
]
Steps = Annotated[Path, typer.Option("--recipe", "-r", help="A training recipe (TOML).", metavar="FILE")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a run was ended.")]


def train(
    model: Model,
    data: Data,
    recipe: Steps,
    output: options.FolderOutput = Path("trained"),
    target: options.TargetName = "host",
    resume: Resume = False,
    preprocess: options.Preprocess = None,
    evaluate: options.Evaluate = None,
    inputs: options.Inputs = None,
    freeze: options.Freeze = None,
    as_json: options.AsJson = False,
) -> None:
    """Prune, share, round, quantize or distil with gradients.

    The steps of a recipe, one after the other; the model given is their teacher.
    """
    from toolchain.api.train import train as run
    from toolchain.conversion.inputs import parse_freeze, parse_input
    from toolchain.formats.training_recipe import TrainingRecipe
    from toolchain.report import trained
    from toolchain.report.render import render

    steps = TrainingRecipe.load(recipe)
    with working() as report:
        done = run(
            model,
            data=data,
            recipe=steps,
            output=output,
            target=target,
            preprocess=preprocess,
            evaluate=evaluate,
            inputs=[parse_input(text) for text in inputs or ()],
            freeze=parse_freeze(freeze or ()),
            resume=resume,
            progress=report,
        )
    if as_json:
        results = done.results.model_dump(mode="json")
        show_json(
            {"folder": str(output), "steps": [step.model_dump(mode="json") for step in done.steps], "results": results}
        )
        return
    show(render(done.results))
    show(trained.render(done.steps))
    for note in done.notes:
        say(f"note: {note}")
    say(f"written: {output / 'model.onnx'}")
    say(f"report: {output / 'report.html'}")
