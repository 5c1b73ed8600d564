"""`quantize`: write one int8 model for one target."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from toolchain.api.arguments import checked
from toolchain.api.int8_model import accept, make_int8
from toolchain.api.recipes import MaxDrop, read_recipe
from toolchain.api.request import Freeze, Inputs, Metric, check_request
from toolchain.conversion.source import ModelSource
from toolchain.core.files import check_output
from toolchain.core.progress import Progress, StageClock, silent
from toolchain.data.calibration import DataSpec
from toolchain.formats.findings import NoiseSource
from toolchain.formats.manifest import StageTime, TradeOff
from toolchain.formats.recipe import Recipe
from toolchain.formats.results import Score
from toolchain.formats.target import Target
from toolchain.formats.verdict import Verdict
from toolchain.graph import io
from toolchain.quantization.quantized import Quantized


@dataclass(frozen=True)
class QuantizedFile:
    """Result of :func:`quantize`.

    Attributes:
        output: the file.
        quantized: the plan and its evidence.
        scores: scores of the float model and of the int8 model.
        verdict: what is left of the float model's answer, part by part.
        curve: the plans that were tried to keep to the limits.
        noises: the largest causes of the remaining error; empty without ``explain``.
        notes: remarks on the conversion, the samples and the int8 model, one sentence each.
        stages: the time that each stage took.
    """

    output: Path
    quantized: Quantized
    scores: tuple[Score, Score]
    verdict: Verdict
    curve: tuple[TradeOff, ...] = ()
    noises: tuple[NoiseSource, ...] = ()
    notes: tuple[str, ...] = ()
    stages: tuple[StageTime, ...] = ()


@checked()
def quantize(
    source: ModelSource,
    *,
    calibration: DataSpec,
    output: str | Path,
    target: str | Path | Target = "host",
    preprocess: str | Path | None = None,
    evaluate: Metric | None = None,
    inputs: Inputs = (),
    freeze: Freeze | None = None,
    recipe: Recipe | str | Path | None = None,
    max_drop: MaxDrop | None = None,
    explain: bool = False,
    progress: Progress = silent,
) -> QuantizedFile:
    """Write one int8 model for one target, neither packaged nor benchmarked.

    Args:
        source: an ``.onnx`` or ``.pt2`` file, ``package.module:callable`` giving an ``nn.Module``, or a module.
        calibration: unlabelled samples, see :mod:`toolchain.data.calibration`.
        output: the ``.onnx`` file to write.
        target: name of a profile, path of one, or a profile.
        preprocess: the image pipeline for folders of images: ``imagenet``, ``imagenet-squash``, ``unit``, ``signed``,
            or the path of a TOML file.
        evaluate: a function, or ``package.module:callable``: called with ``run(feed) -> outputs``, returns a number,
            higher is better. Without it the score is how often the model agrees with the float model.
        inputs: the inputs of a torch module, such as ``["image:batch,3,224,224"]``; not needed for ONNX files.
        freeze: sizes for dynamic axes, such as ``{"batch": 1}`` or ``["batch=1"]``.
        recipe: a recipe, or the path of one; None is the recommended one.
        max_drop: the largest loss of score that is accepted; operators stay float until it holds. "off": the model is
            written whatever it lost. None: the recipe's; where it has none, no part of the answer may be lost.
        explain: also measure which roundings cause the remaining error.
        progress: is told about every stage.

    Returns:
        The file and its evidence.

    Raises:
        InputError and its subclasses: something given cannot be used; nothing was written.
        GateError: parity failed, or too much was lost; nothing was written.
    """
    recipe, clock = read_recipe(recipe, max_drop), StageClock(progress)
    check_output(output)
    request = check_request(
        source,
        calibration,
        targets=[target],
        inputs=inputs,
        freeze=freeze,
        preprocess=preprocess,
        evaluate=evaluate,
        progress=clock,
    )
    with tempfile.TemporaryDirectory(prefix="toolchain-") as scratch:
        made, _, scores = accept(make_int8(request, recipe), recipe, Path(scratch))
    noises = made.quantized.noise_sources() if explain else ()
    clock("writing")
    io.save(made.quantized.write(request.targets[0].int8.activations), output)
    notes = (*made.prepared.notes, *made.quantized.notes)
    scored = (scores.dense, scores.int8)
    stages = StageTime.of(clock.seconds())
    return QuantizedFile(Path(output), made.quantized, scored, made.verdict, made.curve, noises, notes, stages)
