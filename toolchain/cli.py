"""The command line: parse, call one public function, print.

Every command takes ``--json`` (the result on stdout as JSON, everything else on stderr), exits 0 on success, 1 where
a gate fails and 2 on bad input with one sentence, and never leaves a half-written file. Heavy imports happen inside
the commands, so that ``--help``, ``bench`` and ``targets`` need neither torch nor onnx.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from toolchain.errors import GateError, InputError, ToolchainError
from toolchain.terminal import say, show, show_json, working

if TYPE_CHECKING:
    from toolchain.recipe import Recipe

app = typer.Typer(
    name="toolchain",
    help="From a PyTorch or ONNX model to a small, fast, verified int8 model for each target device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
targets_app = typer.Typer(
    help="Device profiles: list them, show one, detect this machine, check a file.", no_args_is_help=True
)
app.add_typer(targets_app, name="targets")

Source = Annotated[str, typer.Argument(help="An .onnx or .pt2 file, or package.module:callable giving an nn.Module.")]
Calibration = Annotated[
    str,
    typer.Option(
        "--calibration", "-c", help="A folder of images or .npy files, an .npz, or module:callable.", metavar="DATA"
    ),
]
Preprocess = Annotated[
    str | None, typer.Option(help="Image pipeline: imagenet, imagenet-squash, unit, signed, or a TOML file.")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", help="What a torch module takes: name:1x3x224x224[:dtype]; a named axis is dynamic."),
]
Freeze = Annotated[
    list[str] | None, typer.Option(help="Fix a dynamic axis: batch=1, or input.axis=1.", metavar="AXIS=SIZE")
]
Evaluate = Annotated[
    str | None,
    typer.Option(help="module:callable, called with run(feeds) -> outputs; returns a number, higher is better."),
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="A recipe (TOML); default: the recommended one.")]
MaxDrop = Annotated[
    float | None, typer.Option(help="Fail (exit 1) where int8 scores lower than float by more than this.")
]
TargetName = Annotated[
    str, typer.Option("--target", "-t", help="A profile's name or file; see `toolchain targets list`.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


# --------------------------------------------------------------------------------------------- commands


@app.command()
def export(
    source: Source,
    target: Annotated[
        list[str], typer.Option("--target", "-t", help="A profile's name or file; may be given several times.")
    ],
    calibration: Calibration,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("exported"),
    preprocess: Preprocess = None,
    evaluate: Evaluate = None,
    inputs: Inputs = None,
    freeze: Freeze = None,
    recipe: RecipeFile = None,
    max_drop: MaxDrop = None,
    as_json: AsJson = False,
) -> None:
    """Make a verified int8 artifact for every target and measure it against float."""
    from toolchain import pipeline
    from toolchain.convert import parse_freeze, parse_input
    from toolchain.report import precision, render

    with working() as report:
        done = pipeline.export(
            source,
            targets=target,
            calibration=calibration,
            output=output,
            preprocess=preprocess,
            evaluate=evaluate,
            inputs=[parse_input(text) for text in inputs or ()],
            freeze=parse_freeze(freeze or ()),
            recipe=_recipe(recipe, max_drop),
            progress=report,
        )
    if as_json:
        show_json({"folder": str(done.folder), "results": done.results.model_dump(mode="json")})
        return
    show(render(done.results))
    show(precision(done.quantized.plan.choices))
    exceptions = done.manifests[0].exactness.exceptions if done.manifests else ()
    say(f"the same numbers on every processor{', except: ' + '; '.join(exceptions) if exceptions else ''}")
    for note in (*done.prepared.converted.notes, *done.quantized.notes):
        say(f"note: {note}")
    say(f"written: {', '.join(str(done.folder / m.target) for m in done.manifests)}")


@app.command()
def convert(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    inputs: Inputs = None,
    freeze: Freeze = None,
    as_json: AsJson = False,
) -> None:
    """Bring a torch module, a .pt2 or an old ONNX file to checked ONNX, its parity measured."""
    from toolchain.convert import convert as run
    from toolchain.convert import parse_freeze, parse_input
    from toolchain.graph import io

    with working() as report:
        report("converting", 0, 0)
        done = run(source, inputs=[parse_input(t) for t in inputs or ()], freeze=parse_freeze(freeze or ()))
        io.save(done.model, output)
    parity = done.parity
    if as_json:
        error = None if parity is None else parity.max_rel_error
        show_json(
            {"output": str(output), "exporter": done.exporter, "notes": list(done.notes), "max_relative_error": error}
        )
        return
    for note in done.notes:
        say(f"note: {note}")
    if parity is not None:
        say(f"parity on {parity.samples} random inputs: largest relative error {parity.max_rel_error:.1e}")
    say(f"written: {output}")


@app.command()
def optimize(
    model: Annotated[Path, typer.Argument(help="An .onnx file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    freeze: Freeze = None,
    as_json: AsJson = False,
) -> None:
    """Fold batch normalization and constants, remove dead code, infer shapes; equivalence checked."""
    from toolchain import pipeline
    from toolchain.convert import parse_freeze
    from toolchain.graph import io

    with working() as report:
        done = pipeline.prepare(model, freeze=parse_freeze(freeze or ()), progress=report).optimized
        io.save(done.model, output)
    if as_json:
        counts = {"nodes_before": done.nodes_before, "nodes_after": done.nodes_after}
        show_json({"output": str(output), **counts, "max_relative_error": done.max_relative_error})
        return
    moved = done.max_relative_error
    compared = (
        "it ran on no random input, so nothing was compared" if moved is None else f"outputs moved by {moved:.1e}"
    )
    say(f"{done.nodes_before} nodes became {done.nodes_after}; {compared}")
    say(f"written: {output}")


@app.command()
def quantize(
    model: Source,
    calibration: Calibration,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    target: TargetName = "host",
    preprocess: Preprocess = None,
    evaluate: Evaluate = None,
    inputs: Inputs = None,
    freeze: Freeze = None,
    recipe: RecipeFile = None,
    max_drop: MaxDrop = None,
    as_json: AsJson = False,
) -> None:
    """Write one int8 model for one target."""
    from toolchain import pipeline
    from toolchain.convert import parse_freeze, parse_input
    from toolchain.report import precision

    with working() as report:
        done = pipeline.quantize(
            model,
            target=target,
            calibration=calibration,
            output=output,
            preprocess=preprocess,
            evaluate=evaluate,
            inputs=[parse_input(text) for text in inputs or ()],
            freeze=parse_freeze(freeze or ()),
            recipe=_recipe(recipe, max_drop),
            progress=report,
        )
    before, after = done.scores
    if as_json:
        choices = [
            {"node": c.node, "op": c.op, "int8": c.int8, "reason": c.reason} for c in done.quantized.plan.choices
        ]
        scores = {"float": before.value, "int8": after.value, "kind": after.kind}
        show_json({"output": str(output), "score": scores, "nodes": choices})
        return
    show(precision(done.quantized.plan.choices))
    say(f"{after.kind}: float {before.value:.4f}, int8 {after.value:.4f}")
    say(f"written: {output}")


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="A target's folder, as export writes it.")],
    on: Annotated[str, typer.Option("--on", help="local, or emulator:CPU such as emulator:cortex-a76.")] = "local",
    as_json: AsJson = False,
) -> None:
    """Check that an exported model gives its golden outputs, here or on an emulated processor."""
    from toolchain.verification import verify as run

    found = run(artifact, on=on)
    verdict = f"within {found.tolerance:g}" if found.tolerance else "identical, bit for bit"
    if as_json:
        mismatches = [str(mismatch) for mismatch in found.mismatches]
        show_json({"artifact": str(artifact), "on": on, "tolerance": found.tolerance, "mismatches": mismatches})
    else:
        for mismatch in found.mismatches:
            say(str(mismatch))
        show(f"{artifact} on {on}, {found.samples} samples: {'DIFFERS' if found.mismatches else verdict}")
    if found.mismatches:
        raise typer.Exit(GateError.exit_code)


@app.command()
def bench(
    models: Annotated[list[Path], typer.Argument(help=".onnx or .ort files, timed interleaved.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write results.json here.")] = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="Use this profile's threads and session options.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: the profile's.")] = None,
    recipe: RecipeFile = None,
    format: Annotated[str, typer.Option(help="table, markdown, csv or json.")] = "table",
    as_json: AsJson = False,
) -> None:
    """Time models on this machine, each in a fresh process, interleaved round by round."""
    from toolchain.bench import Subject
    from toolchain.bench import bench as run
    from toolchain.report import check_format, render
    from toolchain.target import load_target

    check_format(format)
    settings = _recipe(recipe, None).bench
    profile = load_target(target) if target else None
    names = _distinct_names(models)
    subjects = [Subject(path, name, path.suffix.lstrip(".")) for path, name in zip(models, names, strict=True)]
    with working() as report:
        found = run(
            subjects, settings=settings, target=profile, threads=threads, progress=lambda line: report(line, 0, 0)
        )
        if output is not None:
            found.save(output)
    if as_json:
        show(found.to_json())
        return
    show(render(found, format))


@app.command()
def compare(
    results: Annotated[list[Path], typer.Argument(help="Results files, as bench and export write them.")],
    baseline: Annotated[
        str | None, typer.Option(help="A variant, or the name of one of several files; default fp32.")
    ] = None,
    max_regression: Annotated[
        str | None, typer.Option(help="Fail (exit 1) where a row is slower by more, e.g. 5%.")
    ] = None,
    format: Annotated[str, typer.Option(help="table, markdown, csv or json.")] = "table",
    as_json: AsJson = False,
) -> None:
    """Put results side by side; with a limit, act as a gate."""
    from toolchain.report import compare as run
    from toolchain.report import render

    found = run(results, baseline, None if max_regression is None else _fraction(max_regression))
    show(render(found, "json" if as_json else format))
    if found.regressions:
        raise typer.Exit(GateError.exit_code)


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="An .onnx file.")],
    target: Annotated[str | None, typer.Option("--target", "-t", help="Compare with this profile's budgets.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a model is made of: operators, cost, parameters, and what stays float under int8 and why."""
    from toolchain.report import inspection
    from toolchain.target import load_target

    found = inspection.inspect(model, load_target(target) if target else None)
    if as_json:
        show_json(inspection.record(found))
        return
    show(inspection.render(found))


@targets_app.command("list")
def targets_list(as_json: AsJson = False) -> None:
    """List all profiles."""
    from toolchain.report import list_targets
    from toolchain.target import known_targets, load_target

    found = [load_target(name) for name in known_targets()]
    if as_json:
        show_json([target.model_dump(mode="json") for target in found])
        return
    show(list_targets(found))


@targets_app.command("show")
def targets_show(
    name: Annotated[str, typer.Argument(help="A profile's name or file.")], as_json: AsJson = False
) -> None:
    """Show everything a profile states."""
    from toolchain.report import show_target
    from toolchain.target import load_target

    found = load_target(name)
    if as_json:
        show(found.to_json())
        return
    show(show_target(found))


@targets_app.command("detect")
def targets_detect(as_json: AsJson = False) -> None:
    """Show this machine as a profile."""
    targets_show("host", as_json)


@targets_app.command("check")
def targets_check(file: Annotated[Path, typer.Argument(help="A profile (TOML).")], as_json: AsJson = False) -> None:
    """Check a profile against the schema."""
    from toolchain.target import Target

    found = Target.load(file)
    if as_json:
        show_json({"file": str(file), "name": found.name, "valid": True})
        return
    say(f"{file}: a valid profile of {found.title}")


# ----------------------------------------------------------------------------------------------- helpers


def _recipe(path: Path | None, max_drop: float | None) -> Recipe:
    from toolchain.recipe import Recipe

    recipe = Recipe.load(path) if path else Recipe()
    if max_drop is None:
        return recipe
    if max_drop < 0:
        raise InputError(f"is {max_drop:g}", where="--max-drop", hint="give 0 or more")
    return recipe.model_copy(update={"max_drop": max_drop})


def _fraction(text: str) -> float:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise InputError(f"is {text!r}", where="--max-regression", hint="give a share like 5% or 0.05") from None


def _distinct_names(paths: list[Path]) -> list[str]:
    """Stems, or paths where two stems are the same."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path.with_suffix("")) for path in paths]


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """Entry point: run a command and turn our errors into one sentence and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(standalone_mode=True)
    except ToolchainError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}; free some space or check permissions", 2)
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written", 2)


def _fail(sentence: str, code: int) -> NoReturn:
    say(f"error: {sentence}")
    sys.exit(code)
