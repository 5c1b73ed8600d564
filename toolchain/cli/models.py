"""The commands that make, check and inspect models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from toolchain.cli import options
from toolchain.cli.command import app, command
from toolchain.cli.terminal import complain, explain_error, say, show, show_json, working
from toolchain.core.errors import GateError
from toolchain.core.progress import Progress


@contextmanager
def _pruning(as_json: bool) -> Iterator[Progress]:
    """Yield a progress function as `working` does; where pruning loses too much, show what smaller cuts lose."""
    from toolchain.pruning.loss import PruningLossError
    from toolchain.report import pruning

    try:
        with working() as progress:
            yield progress
    except PruningLossError as error:
        if as_json:
            curve = [point.model_dump(mode="json") for point in error.curve]
            show_json({"output": None, "error": str(error), "curve": curve})
        elif error.curve:
            explain_error(pruning.curve(error.curve))
        raise


@command(
    app,
    "export model.onnx -t raspberry-pi-5 -c samples.npz",
    "export my_module:build --input image:batch,3,224,224 -t host \\\n      -c photos/ --preprocess imagenet",
    "export model.onnx -t rk3588 -c samples.npz \\\n      --evaluate my_metric:score --max-drop 0.01",
)
def export(
    source: options.Source,
    targets: options.Targets,
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
    """Make a verified int8 model for each target, with its evidence.

    Compares it with the float model on this computer: accuracy, latency, memory, size.
    """
    from toolchain.api.export import export
    from toolchain.report import explain as explained
    from toolchain.report import precision, pruning, verdict
    from toolchain.report.render import render

    with _pruning(as_json) as progress:
        exported = export(
            source,
            targets=targets,
            calibration=calibration,
            output=output,
            preprocess=preprocess,
            evaluate=evaluate,
            inputs=inputs or (),
            freeze=freeze,
            recipe=recipe,
            max_drop=max_drop,
            prune=prune,
            explain=explain,
            progress=progress,
        )
    for warning in verdict.warnings(exported.verdict):
        complain(warning)
    if as_json:
        record = {"folder": str(exported.folder), "results": exported.results.model_dump(mode="json")}
        show_json(record | {"verdict": exported.verdict.model_dump(mode="json")})
        return
    choices = exported.quantized.plan.choices
    show(render(exported.results))
    if exported.pruned is not None:
        show(pruning.render(exported.pruned.record))
    show(precision.render(choices))
    show(verdict.render(exported.verdict))
    if explain:
        show(explained.steps(exported.quantized.steps))
        show(explained.causes(exported.noises, choices))
        show(explained.clipped(exported.manifests[0].clipped if exported.manifests else ()))
    if exported.curve:
        show(explained.tradeoff(exported.curve))
    if exported.manifests:
        say(exported.manifests[0].exactness.summary)
    for note in (*exported.prepared.notes, *exported.quantized.notes):
        say(f"note: {note}")
    say(f"written: {', '.join(str(exported.folder / manifest.target) for manifest in exported.manifests)}")
    say(f"report: {exported.folder / 'report.html'}")


@command(
    app,
    "convert my_module:build --input image:1,3,224,224 -o model.onnx",
    "convert old.onnx --freeze batch=1 -o model.onnx",
)
def convert(
    source: options.Source,
    output: options.OnnxOutput,
    inputs: options.Inputs = None,
    freeze: options.Freeze = None,
    as_json: options.AsJson = False,
) -> None:
    """Turn a torch module, a .pt2 or an old ONNX file into ONNX.

    Checks the result, and compares its outputs with those of the source.
    """
    from toolchain.api.convert import convert

    with working() as progress:
        converted = convert(source, output=output, inputs=inputs or (), freeze=freeze, progress=progress)
    parity = converted.parity
    if as_json:
        error = None if parity is None else parity.max_rel_error
        notes = list(converted.notes)
        show_json({"output": str(output), "exporter": converted.exporter, "notes": notes, "max_relative_error": error})
        return
    for note in converted.notes:
        say(f"note: {note}")
    if parity is not None:
        say(f"parity on {parity.samples} random inputs: largest relative error {parity.max_rel_error:.1e}")
    say(f"written: {output}")


@command(app, "optimize model.onnx -o clean.onnx", "optimize model.onnx --fp16-weights -o small.onnx")
def optimize(
    model: options.Model,
    output: options.OnnxOutput,
    freeze: options.Freeze = None,
    fp16_weights: options.Fp16Weights = False,
    as_json: options.AsJson = False,
) -> None:
    """Clean up a float model without changing what it computes.

    Folds batch normalization and constants, removes dead code, infers shapes, and compares the outputs.
    """
    from toolchain.api.optimize import optimize

    with working() as progress:
        written = optimize(model, output=output, freeze=freeze, fp16_weights=fp16_weights, progress=progress)
    optimized, halved = written.optimized, written.halved
    if as_json:
        counts = {"nodes_before": optimized.nodes_before, "nodes_after": optimized.nodes_after}
        if halved:
            counts |= {"fp16_tensors": halved.tensors, "saved_bytes": halved.saved_bytes}
        show_json({"output": str(output), **counts, "max_relative_error": optimized.max_relative_error})
        return
    error = optimized.max_relative_error
    compared = (
        "the model ran on no random input, so outputs were not compared"
        if error is None
        else f"outputs moved by {error:.1e}"
    )
    say(f"{optimized.nodes_before} nodes became {optimized.nodes_after}; {compared}")
    if halved:
        say(f"{halved}")
    say(f"written: {output}")


@command(
    app,
    "prune model.onnx -c samples.npz --speedup 1.3 -o small.onnx",
    "prune model.onnx -c samples.npz --keep 0.7 -o small.onnx",
)
def prune(
    source: options.Source,
    calibration: options.Calibration,
    output: options.OnnxOutput,
    target: options.TargetName = "host",
    speedup: options.Speedup = None,
    latency_ms: options.LatencyMs = None,
    keep: options.Keep = None,
    criterion: options.Criterion = None,
    minutes: options.Minutes = None,
    for_int8: options.ForInt8 = False,
    sparsity: options.Sparsity = None,
    max_drop: options.MaxLoss = None,
    preprocess: options.Preprocess = None,
    evaluate: options.Evaluate = None,
    inputs: options.Inputs = None,
    freeze: options.Freeze = None,
    recipe: options.RecipeFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Remove channels, heads and branches of a float model.

    Needs no labels. Never slower than the input. Exit 1: it costs too much.
    """
    from toolchain.api.prune import prune
    from toolchain.report import pruning, verdict

    with _pruning(as_json) as progress:
        written = prune(
            source,
            calibration=calibration,
            output=output,
            target=target,
            speedup=speedup,
            latency_ms=latency_ms,
            keep=keep,
            criterion=criterion,
            minutes=minutes,
            for_int8=for_int8,
            sparsity=sparsity,
            max_drop=max_drop,
            preprocess=preprocess,
            evaluate=evaluate,
            inputs=inputs or (),
            freeze=freeze,
            recipe=recipe,
            progress=progress,
        )
    if as_json:
        scores = [score.value for score in written.scores]
        show_json({"output": str(output), **written.pruned.record.model_dump(mode="json"), "score": scores})
        return
    show(pruning.render(written.pruned.record, written.scores))
    if written.pruned.record.verdict is not None:
        show(verdict.render(written.pruned.record.verdict))
    for lost in written.pruned.record.lost:
        complain(f"LOST: {lost}")
    for note in written.prepared.notes:
        say(f"note: {note}")
    say(f"written: {output}")


@command(
    app,
    "train -m model.onnx -d samples.npz -r steps.toml -o trained",
    "train -m model.onnx -d samples.npz -r steps.toml --resume",
)
def train(
    model: options.TrainModel,
    data: options.TrainData,
    recipe: options.TrainRecipe,
    output: options.FolderOutput = Path("trained"),
    target: options.TargetName = "host",
    resume: options.Resume = False,
    max_drop: options.MaxLoss = None,
    preprocess: options.Preprocess = None,
    evaluate: options.Evaluate = None,
    inputs: options.Inputs = None,
    freeze: options.Freeze = None,
    as_json: options.AsJson = False,
) -> None:
    """Prune, quantize, compress or distil a model with training.

    Runs the steps of a training recipe one after the other. The model itself is the teacher. Exit 1: too much is lost.
    """
    from toolchain.api.train import train
    from toolchain.report import trained
    from toolchain.report.render import render

    with working() as progress:
        written = train(
            model,
            data=data,
            recipe=recipe,
            output=output,
            target=target,
            resume=resume,
            max_drop=max_drop,
            preprocess=preprocess,
            evaluate=evaluate,
            inputs=inputs or (),
            freeze=freeze,
            progress=progress,
        )
    if as_json:
        steps = [step.model_dump(mode="json") for step in written.steps]
        results = written.results.model_dump(mode="json")
        show_json({"folder": str(output), "steps": steps, "lost": list(written.lost), "results": results})
        return
    show(render(written.results))
    show(trained.render(written.steps))
    for lost in written.lost:
        complain(f"LOST: {lost}")
    for note in written.notes:
        say(f"note: {note}")
    say(f"written: {output / 'model.onnx'}")
    say(f"report: {output / 'report.html'}")


@command(
    app,
    "quantize model.onnx -c samples.npz -o int8.onnx",
    "quantize model.onnx -c samples.npz -t rk3588 --explain -o q.onnx",
)
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
    """Write one int8 model for one target.

    Unlike export, it neither packages the model nor measures its latency.
    """
    from toolchain.api.quantize import quantize
    from toolchain.report import explain as explained
    from toolchain.report import precision, verdict
    from toolchain.report.legend import scores_text

    with working() as progress:
        written = quantize(
            source,
            calibration=calibration,
            output=output,
            target=target,
            preprocess=preprocess,
            evaluate=evaluate,
            inputs=inputs or (),
            freeze=freeze,
            recipe=recipe,
            max_drop=max_drop,
            explain=explain,
            progress=progress,
        )
    for warning in verdict.warnings(written.verdict):
        complain(warning)
    before, after = written.scores
    choices = written.quantized.plan.choices
    if as_json:
        record: dict[str, object] = {
            "output": str(output),
            "score": {"float": before.value, "int8": after.value, "kind": after.kind},
            "nodes": [choice.model_dump(mode="json") for choice in choices],
            "steps": [step.model_dump(mode="json") for step in written.quantized.steps],
            "tradeoff": [point.model_dump(mode="json") for point in written.curve],
            "verdict": written.verdict.model_dump(mode="json"),
            "notes": list(written.quantized.notes),
            "stages": [stage.model_dump(mode="json") for stage in written.stages],
        }
        if explain:
            record["noise"] = [noise.model_dump(mode="json") for noise in written.noises]
            record["clipped"] = [tensor.model_dump(mode="json") for tensor in written.quantized.clipped()]
        show_json(record)
        return
    show(precision.render(choices))
    show(verdict.render(written.verdict))
    if explain:
        show(explained.steps(written.quantized.steps))
        show(explained.causes(written.noises, choices))
        show(explained.clipped(written.quantized.clipped()))
    if written.curve:
        show(explained.tradeoff(written.curve))
    say(scores_text(before, after, "int8" if written.quantized.computing else "the written file"))
    for note in written.notes:
        say(f"note: {note}")
    say(f"written: {output}")


@command(app, "verify exported/raspberry-pi-5", "verify exported/raspberry-pi-5 --on emulator:cortex-a76")
def verify(
    artifact: options.Artifact,
    on: options.AnsweringPlace = "local",
    library: options.PlaceLibrary = None,
    ndk: options.PlaceNdk = None,
    as_json: options.AsJson = False,
) -> None:
    """Check that an exported model gives its golden outputs.

    Compares the files with the manifest, then runs the model here, under emulation, or on a phone.
    """
    from toolchain.api.verify import verify

    with working() as progress:
        verified = verify(artifact, on=on, library=library, ndk=ndk, progress=progress)
    for sentence in verified.lost:
        complain(f"LOST before it was exported: {sentence}")
    if as_json:
        mismatches, lost = [str(mismatch) for mismatch in verified.mismatches], list(verified.lost)
        record = {"artifact": str(artifact), "on": on, "tolerance": verified.tolerance}
        show_json(record | {"mismatches": mismatches, "lost": lost})
    else:
        for mismatch in verified.mismatches:
            say(str(mismatch))
        same = f"within {verified.tolerance:g}" if verified.tolerance else "identical, bit for bit"
        show(f"{artifact} on {on}, {verified.samples} samples: {'DIFFERS' if verified.mismatches else same}")
    if verified.mismatches:
        raise typer.Exit(GateError.exit_code)


@command(
    app,
    "inspect model.onnx",
    "inspect model.onnx --target raspberry-pi-zero-2w",
    "inspect model.onnx --groups",
    "inspect exported/raspberry-pi-5",
)
def inspect(
    model: options.ModelOrFolder,
    target: options.BudgetTarget = None,
    groups: options.Groups = False,
    as_json: options.AsJson = False,
) -> None:
    """Show the parts of a model, its cost, and what int8 would save.

    Lists operators, multiply-accumulates and parameters, and the nodes that stay float, with the reason. For an
    exported folder it also shows the exactness certificate.
    """
    from toolchain.api.inspect import inspect
    from toolchain.inspection.groups import Grouping
    from toolchain.inspection.groups import record as record_groups
    from toolchain.inspection.model import record
    from toolchain.report import groups as report_groups
    from toolchain.report import model as report_model

    inspected = inspect(model, target=target, groups=groups)
    if isinstance(inspected, Grouping):
        show_json(record_groups(inspected)) if as_json else show(report_groups.render(inspected))
        return
    show_json(record(inspected)) if as_json else show(report_model.render(inspected))
