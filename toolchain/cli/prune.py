"""``toolchain prune``."""

from __future__ import annotations

from toolchain.cli import options
from toolchain.cli.terminal import say, show, show_json, working


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
    preprocess: options.Preprocess = None,
    evaluate: options.Evaluate = None,
    inputs: options.Inputs = None,
    freeze: options.Freeze = None,
    recipe: options.RecipeFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Cut channels, heads and branches out of a float model.

    Without labels; what comes out is never slower than what went in.
    """
    from toolchain.api.prune import prune as run
    from toolchain.conversion.inputs import parse_freeze, parse_input
    from toolchain.report import pruning

    goal = {"speedup": speedup, "latency_ms": latency_ms, "keep": keep, "criterion": criterion, "minutes": minutes}
    with working() as report:
        done = run(
            source,
            target=target,
            calibration=calibration,
            output=output,
            preprocess=preprocess,
            evaluate=evaluate,
            inputs=[parse_input(text) for text in inputs or ()],
            freeze=parse_freeze(freeze or ()),
            recipe=options.with_prune(options.read_recipe(recipe, None), goal),
            for_int8=for_int8,
            sparsity=sparsity,
            progress=report,
        )
    if as_json:
        scores = [score.value for score in done.scores]
        show_json({"output": str(output), **done.pruned.record.model_dump(mode="json"), "score": scores})
        return
    show(pruning.render(done.pruned.record, done.scores))
    for note in done.prepared.converted.notes:
        say(f"note: {note}")
    say(f"written: {output}")
