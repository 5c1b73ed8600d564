"""``README.md`` of an exported folder: one page with all that an app developer needs to run the model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Set

from toolchain.core.errors import ConfigError
from toolchain.formats.manifest import MANIFEST_NAME, STEPS_MEANING, Manifest, Precision
from toolchain.formats.preprocess import Preprocess
from toolchain.formats.target import Target
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.formats.verdict import WHOLE_DB
from toolchain.packaging import snippets

_FILE_DESCRIPTIONS = {
    "model.onnx": "the model. onnxruntime optimizes it when it loads it.",
    "model.onnx.data": "the weights of the model. Keep it in the same folder as `model.onnx`.",
    "model.ort": "the same model, optimized ahead of time. It loads faster and runs in reduced builds of onnxruntime.",
    "required_operators.config": "the operators that a reduced build of onnxruntime needs "
    "(build option `--include_ops_by_config`).",
    "golden.npz": "example inputs with the expected outputs.",
    MANIFEST_NAME: "hashes of these files, the origin of the model, and all measurements.",
}

_PRECISION_NAMES: dict[Precision, str] = {
    "int8": "int8",
    "int8 dynamic": "dynamic int8",
    "int8 storage": "float with int8 constants",
    "float": "float",
}

_MAX_REASONS = 8
_MAX_DECISIONS = 6


def readme(manifest: Manifest, target: Target, files: Set[str]) -> str:
    """Write the page as Markdown.

    Args:
        manifest: the manifest, complete except for `files`.
        target: the profile the model was made for.
        files: names of the files that are in the folder already.
    """
    sections = [
        f"# {manifest.source.name} for {target.title}",
        f"This model was made for the target `{target.name}` on {manifest.created} with {_versions(manifest)}. "
        f"It runs with onnxruntime {target.runtime.version}.",
        _lost(manifest),
        "## Files",
        "\n".join(
            f"- `{name}`: {text}" for name, text in _FILE_DESCRIPTIONS.items() if name in files or name == MANIFEST_NAME
        ),
        "## Inputs and outputs",
        _ports(manifest),
        "## Prepare the inputs",
        _preprocessing(manifest),
        "## Run the model",
        snippets.run_once(manifest, target, files),
        "## Check the model",
        _exactness(manifest),
        "This program compares the outputs with the expected ones. Run it on the device, or on any other machine:",
        snippets.compare_with_golden(target, files),
        _answer(manifest),
        "## Precision",
        _precision(manifest),
        _notes(manifest),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _versions(manifest: Manifest) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items())) or "unknown versions"


def _ports(manifest: Manifest) -> str:
    rows = ["| | name | type | shape |", "|---|---|---|---|"]
    rows += [_row("input", port) for port in manifest.inputs]
    rows += [_row("output", port) for port in manifest.outputs]
    ports = (*manifest.inputs, *manifest.outputs)
    has_dynamic_axis = any(not isinstance(dim, int) for port in ports for dim in port.dims)
    text = "\n".join(rows)
    return f"{text}\n\nAxes without a number can have any length." if has_dynamic_axis else text


def _row(side: str, port: TensorSpec) -> str:
    dims = " × ".join("?" if dim is None else str(dim) for dim in port.dims) or "scalar"
    return f"| {side} | `{port.name}` | {port.dtype} | {dims} |"


def _preprocessing(manifest: Manifest) -> str:
    stated = manifest.calibration.preprocessing
    if stated is None:
        return "Prepare the inputs in the same way as for the training of the model. The export did not record how."
    try:
        pipeline = Preprocess.parse({key: value for key, value in stated.items() if key != "name"})
    except ConfigError:
        return (
            "The inputs are images, prepared with these settings:\n\n```json\n" + json.dumps(stated, indent=2) + "\n```"
        )
    return "The input is an image. Prepare it in these steps:\n\n" + "\n".join(
        f"{i}. {step}" for i, step in enumerate(_steps(pipeline), 1)
    )


def _steps(pipeline: Preprocess) -> list[str]:
    order = {"RGB": "red, green, blue", "BGR": "blue, green, red", "L": "grey"}[pipeline.channels]
    steps = [f"Decode the image to 8 bits per channel, with the channels in the order {order}."]
    if pipeline.resize == "shorter":
        steps.append(f"Resize it (bilinear, antialiased) so that the shorter side has {_pixels(pipeline.size)} pixels.")
    elif pipeline.resize == "squash":
        steps.append(
            f"Resize it (bilinear, antialiased) to {_pixels(pipeline.size)} pixels; the aspect ratio may change."
        )
    if pipeline.crop is not None:
        steps.append(f"Crop {_pixels(pipeline.crop)} pixels around the centre.")
    if not pipeline.raw:
        steps.append(
            f"Convert it to float32 and compute (pixel · {pipeline.scale:.8g} − mean) / std for each channel, with "
            f"mean {_numbers(pipeline.mean)} and std {_numbers(pipeline.std)}."
        )
    axes = "batch, channel, height, width" if pipeline.layout == "NCHW" else "batch, height, width, channel"
    return [*steps, f"Arrange the values as {pipeline.layout} ({axes})."]


def _pixels(size: int | tuple[int, int] | None) -> str:
    if size is None:
        return "the model's own number of"
    return f"{size[0]} × {size[1]} (height × width)" if isinstance(size, tuple) else str(size)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.8g}" for value in values)


def _exactness(manifest: Manifest) -> str:
    exactness = manifest.exactness
    if exactness.overflow_free and not exactness.exceptions:
        return "The outputs are the same on every processor, bit for bit."
    if exactness.overflow_free:
        listed = "".join(f"\n- {exception}" for exception in exactness.exceptions)
        if exactness.differs:
            head = STEPS_MEANING if exactness.steps else "outputs may differ between processors"
            return f"{head[0].upper()}{head[1:]}:\n{listed}"
        return f"The outputs may differ in the last digits between processors:\n{listed}"
    return (
        "On x86 processors without VNNI, int8 sums may saturate, so the outputs may differ from those on other "
        "processors."
    )


def _lost(manifest: Manifest) -> str:
    """Name what the model lost, at the top of the page; empty where nothing was lost."""
    if manifest.verdict is None or not manifest.verdict.lost:
        return ""
    head = "**This model lost a part of the float model's answer.** It was exported because its user asked for it."
    return head + "\n\n" + "\n".join(f"- {sentence}" for sentence in manifest.verdict.lost)


def _answer(manifest: Manifest) -> str:
    """Say in a sentence or two how much of the float model's answer is left."""
    verdict = manifest.verdict
    if verdict is None or not verdict.judged:
        return ""
    sentences = [f"It was compared with the float model on {verdict.samples} samples that were used for nothing else."]
    if verdict.worst is not None and verdict.worst.fidelity_db >= WHOLE_DB:
        sentences.append("Its outputs are those of the float model.")
    elif verdict.worst is not None:
        sentences.append(
            f"The part with the largest error is `{verdict.worst.name}`: its fidelity is "
            f"{verdict.worst.fidelity_db:.1f} dB (20 dB is an error of a tenth of what the part varies by, 0 dB means "
            "that nothing is left)."
        )
    if verdict.decisions:
        kept = ", ".join(f"{d.label} ({d.part})" for d in verdict.decisions[:_MAX_DECISIONS])
        sentences.append(f"Share of decisions that are as in float, which is not accuracy: {kept}.")
    return "## What is left of the float model's answer\n\n" + " ".join(sentences)


def _precision(manifest: Manifest) -> str:
    counts = Counter(row.precision for row in manifest.precision)
    reasons = Counter(
        f"{row.op}: {row.reason}" for row in manifest.precision if row.precision == "float" and row.reason
    )
    shown = [
        f"in {name}: {counts[precision]}"
        for precision, name in _PRECISION_NAMES.items()
        if counts[precision] or precision in ("int8", "float")
    ]
    lines = [f"Operators that compute {'; '.join(shown)}."]
    lines += [f"- {count} × {reason}" for reason, count in reasons.most_common(_MAX_REASONS)]
    if len(reasons) > _MAX_REASONS:
        lines.append(f"- {len(reasons) - _MAX_REASONS} more reasons are in `manifest.json`")
    return lines[0] + ("\n\n" + "\n".join(lines[1:]) if lines[1:] else "")


def _notes(manifest: Manifest) -> str:
    return "## Notes\n\n" + "\n".join(f"- {note}" for note in manifest.notes) if manifest.notes else ""
