"""The command line: parse, call one public function, print.

Every command takes ``--json`` (the result on stdout as JSON, everything else on stderr), exits 0 on success, 1 where
a gate fails and 2 on bad input with one sentence, and never leaves a half-written file. Heavy imports happen inside
the commands, so that ``--help``, ``bench`` and ``targets`` need neither torch nor onnx.
"""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn, cast

import typer

from toolchain.cli import bench, emulator, options, prune, targets, train
from toolchain.cli.terminal import say, show, show_json, working
from toolchain.core.errors import GateError, ToolchainError
from toolchain.core.files import check_output

app = typer.Typer(
    name="toolchain",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(targets.app, name="targets")
app.add_typer(emulator.app, name="emulator")

# --------------------------------------------------------------------------------------------- commands


def _show_version(wanted: bool) -> None:
    if wanted:
        show(f"toolchain {version('edge-toolchain')}")
        raise typer.Exit


@app.callback()
def toolchain(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """From a PyTorch or ONNX model to a small, fast, verified int8 model for each target device."""


@app.command()
def export(
    source: options.Source,
    target: options.Targets,
    calibration: options.Calibration,
    output: options.FolderOutput = Path("exported"),
    preprocess: options.Preprocess = None,
    evaluate: options.Evaluate = None,
    inputs: options.Inputs = None,
    freeze: options.Freeze = None,
    recipe: options.RecipeFile = None,
    max_drop: options.MaxDrop = None,
    prune: options.PruneTo = None,
    explain: options.Explain = False,
    as_json: options.AsJson = False,
) -> None:
    """Make a verified int8 artifact for each target, and measure it.

    Held against the float model on this machine: accuracy, latency, memory, size.
    """
    from toolchain.api.export import export
    from toolchain.conversion.inputs import parse_freeze, parse_input
    from toolchain.report import explain as report_explain
    from toolchain.report import precision, pruning
    from toolchain.report.render import render

    with working() as report:
        done = export(
            source,
            targets=target,
            calibration=calibration,
            output=output,
            preprocess=preprocess,
            evaluate=evaluate,
            inputs=[parse_input(text) for text in inputs or ()],
            freeze=parse_freeze(freeze or ()),
            recipe=options.with_prune(options.read_recipe(recipe, max_drop), {"speedup": prune}),
            explain=explain,
            progress=report,
        )
    if as_json:
        show_json({"folder": str(done.folder), "results": done.results.model_dump(mode="json")})
        return
    show(render(done.results))
    if done.pruned is not None:
        show(pruning.render(done.pruned.record))
    show(precision.render(done.quantized.plan.choices))
    if explain:
        show(report_explain.steps(done.quantized.steps))
        show(report_explain.causes(done.noises, done.quantized.plan.choices))
    if done.curve:
        show(report_explain.tradeoff(done.curve))
    exceptions = done.manifests[0].exactness.exceptions if done.manifests else ()
    say(f"the same numbers on every processor{', except: ' + '; '.join(exceptions) if exceptions else ''}")
    for note in (*done.prepared.converted.notes, *done.quantized.notes):
        say(f"note: {note}")
    say(f"written: {', '.join(str(done.folder / m.target) for m in done.manifests)}")
    say(f"report: {done.folder / 'report.html'}")


@app.command()
def convert(
    source: options.Source,
    output: options.OnnxOutput,
    inputs: options.Inputs = None,
    freeze: options.Freeze = None,
    as_json: options.AsJson = False,
) -> None:
    """Turn a torch module, a .pt2 or an old ONNX file into ONNX.

    The result is checked, and its outputs are compared with those of the source.
    """
    from toolchain.conversion.inputs import parse_freeze, parse_input
    from toolchain.conversion.source import convert as run
    from toolchain.graph import io

    check_output(output)
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
    model: options.Model,
    output: options.OnnxOutput,
    freeze: options.Freeze = None,
    fp16_weights: options.Fp16Weights = False,
    as_json: options.AsJson = False,
) -> None:
    """Clean a float model up without changing what it computes.

    Folds batch normalization and constants, removes dead code, infers shapes; outputs are compared.
    """
    from toolchain.api.request import prepare
    from toolchain.conversion.inputs import parse_freeze
    from toolchain.graph import io
    from toolchain.storage.fp16 import halve_weights

    check_output(output)
    with working() as report:
        done = prepare(model, freeze=parse_freeze(freeze or ()), progress=report).optimized
        halved = halve_weights(done.model) if fp16_weights else None
        io.save(halved.model if halved else done.model, output)
    if as_json:
        counts = {"nodes_before": done.nodes_before, "nodes_after": done.nodes_after}
        if halved:
            counts |= {"fp16_tensors": halved.tensors, "saved_bytes": halved.saved_bytes}
        show_json({"output": str(output), **counts, "max_relative_error": done.max_relative_error})
        return
    moved = done.max_relative_error
    compared = (
        "it ran on no random input, so nothing was compared" if moved is None else f"outputs moved by {moved:.1e}"
    )
    say(f"{done.nodes_before} nodes became {done.nodes_after}; {compared}")
    if halved:
        say(f"{halved}")
    say(f"written: {output}")


app.command()(prune.prune)
app.command()(train.train)


@app.command()
def quantize(
    source: options.Source,
    calibration: options.Calibration,
    output: options.OnnxOutput,
    target: options.TargetName = "host",
    preprocess: options.Preprocess = None,
    evaluate: options.Evaluate = None,
    inputs: options.Inputs = None,
    freeze: options.Freeze = None,
    recipe: options.RecipeFile = None,
    max_drop: options.MaxDrop = None,
    explain: options.Explain = False,
    as_json: options.AsJson = False,
) -> None:
    """Write one int8 model for one target."""
    from toolchain.api.quantize import quantize
    from toolchain.conversion.inputs import parse_freeze, parse_input
    from toolchain.report import explain as report_explain
    from toolchain.report import precision

    with working() as report:
        done = quantize(
            source,
            target=target,
            calibration=calibration,
            output=output,
            preprocess=preprocess,
            evaluate=evaluate,
            inputs=[parse_input(text) for text in inputs or ()],
            freeze=parse_freeze(freeze or ()),
            recipe=options.read_recipe(recipe, max_drop),
            progress=report,
        )
        noises = done.quantized.noise_sources() if explain else ()
    before, after = done.scores
    if as_json:
        choices = [choice.model_dump(mode="json") for choice in done.quantized.plan.choices]
        scores = {"float": before.value, "int8": after.value, "kind": after.kind}
        tried = {
            "steps": [step.model_dump(mode="json") for step in done.quantized.steps],
            "tradeoff": [point.model_dump(mode="json") for point in done.curve],
        }
        found = {"noise": [noise.model_dump(mode="json") for noise in noises]} if explain else {}
        show_json({"output": str(output), "score": scores, "nodes": choices, **tried, **found})
        return
    show(precision.render(done.quantized.plan.choices))
    if explain:
        show(report_explain.steps(done.quantized.steps))
        show(report_explain.causes(noises, done.quantized.plan.choices))
    if done.curve:
        show(report_explain.tradeoff(done.curve))
    say(f"{after.kind}: float {before.value:.4f}, int8 {after.value:.4f}")
    say(f"written: {output}")


@app.command()
def verify(
    artifact: options.Artifact,
    on: options.On = "local",
    library: options.PlaceLibrary = None,
    ndk: options.PlaceNdk = None,
    as_json: options.AsJson = False,
) -> None:
    """Check that an exported model gives its golden outputs.

    Here, on an emulated processor or on a phone; the files are held against the manifest first.
    """
    from toolchain.api.verify import verify as run

    with working() as report:
        report(f"running the golden samples on {on}", 0, 0)
        found = run(artifact, on=on, library=library, ndk=ndk)
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


app.command()(bench.bench)
app.command()(bench.compare)


@app.command()
def inspect(
    model: options.Model,
    target: options.BudgetTarget = None,
    groups: options.Groups = False,
    as_json: options.AsJson = False,
) -> None:
    """Say what a model is made of, and what int8 takes of it.

    Operators, cost, parameters, and which nodes stay float and why; of an exported folder also its certificate.
    """
    if groups:
        from toolchain.inspection.groups import inspect_groups
        from toolchain.inspection.groups import record as record_groups
        from toolchain.report import groups as report_groups

        grouping = inspect_groups(model)
        show_json(record_groups(grouping)) if as_json else show(report_groups.render(grouping))
        return
    from toolchain.devices.catalogue import load_target
    from toolchain.inspection.model import inspect as look
    from toolchain.inspection.model import record
    from toolchain.report import model as report_model

    found = look(model, load_target(target) if target else None)
    if as_json:
        show_json(record(found))
        return
    show(report_model.render(found))


# ------------------------------------------------------------------------------------------------- main


class _Interrupted(BaseException):
    """Ctrl-C, a closed terminal, or somebody ends the process.

    Not KeyboardInterrupt, which typer turns into an exit code of its own.
    """


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise _Interrupted


# typer brings its own copy of click in some versions and imports it in others; either way it is this class's parent.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__bases__[0])


def main() -> None:
    """Entry point: run a command and turn our errors into one sentence and an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, and shells' background jobs, want it ignored
            signal.signal(number, _interrupt)
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal without × and ± still shows the numbers
        sys.stdout.reconfigure(errors="replace")
    # What libraries log and warn about is either reported by us, in a sentence, or nothing a user can act on.
    logging.getLogger().addHandler(logging.NullHandler())
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        sys.exit(app(standalone_mode=False))
    except _UsageError as error:
        _fail_usage(error)
    except ToolchainError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}; free some space or check permissions", 2)
    except (_Interrupted, KeyboardInterrupt):
        _fail("interrupted; nothing was written", 2)


def _fail_usage(error: typer.BadParameter) -> NoReturn:
    message = error.format_message().rstrip(". ")
    if "\n" in message:  # the help, which a command without any arguments shows
        say(message)
        sys.exit(error.exit_code)
    message = f"{message[0].lower()}{message[1:]}".replace(". Did you mean", "; did you mean")
    if not message.endswith("?"):
        message += f"; see `{error.ctx.command_path if error.ctx else 'toolchain'} --help`"
    _fail(message, error.exit_code)


def _fail(sentence: str, code: int) -> NoReturn:
    say(f"error: {sentence}")
    sys.exit(code)
