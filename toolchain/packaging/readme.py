"""``README.md`` of an exported folder: what an app developer needs to run the model, on one page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Set

from toolchain.core.errors import ConfigError
from toolchain.formats.manifest import Manifest
from toolchain.formats.preprocess import Preprocess
from toolchain.formats.target import Target
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.packaging import snippets

_FILES = {
    "model.onnx": "the model, optimized by onnxruntime when it is loaded",
    "model.onnx.data": "its weights; must lie beside it",
    "model.ort": "the same model, optimized ahead of time: loads faster, runs in reduced builds of onnxruntime",
    "required_operators.config": "the operators such a build needs (`--include_ops_by_config`)",
    "golden.npz": "inputs and the outputs expected for them",
    "manifest.json": "hashes of these files, what the model was made from and what was measured",
}

_REASONS_SHOWN = 8


def readme(manifest: Manifest, target: Target, files: Set[str]) -> str:
    """The page, as Markdown.

    Args:
        manifest: complete but for `files`.
        target: the profile the model was made for.
        files: names of the files already in the folder.
    """
    sections = [
        f"# {manifest.source.name} for {target.title}",
        f"Made for the target `{target.name}` on {manifest.created} with {_versions(manifest)}; "
        f"it needs onnxruntime {target.runtime.version}.",
        "\n".join(f"- `{name}`: {what}" for name, what in _FILES.items() if name in files or name == "manifest.json"),
        "## Inputs and outputs",
        _ports(manifest),
        _preprocessing(manifest),
        "## Running it",
        snippets.running(manifest, target, files),
        "## Checking it",
        _exactness(manifest),
        snippets.checking(target, files),
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
    free = {str(dim) for port in (*manifest.inputs, *manifest.outputs) for dim in port.dims if not isinstance(dim, int)}
    text = "\n".join(rows)
    return f"{text}\n\nAxes without a number may have any length." if free else text


def _row(side: str, port: TensorSpec) -> str:
    dims = " × ".join("?" if dim is None else str(dim) for dim in port.dims) or "scalar"
    return f"| {side} | `{port.name}` | {port.dtype} | {dims} |"


def _preprocessing(manifest: Manifest) -> str:
    stated = manifest.calibration.preprocessing
    if stated is None:
        return "The inputs are prepared as the model's training did; nothing more is known about them here."
    try:
        pipeline = Preprocess.parse({key: value for key, value in stated.items() if key != "name"})
    except ConfigError:
        return "The inputs are images prepared so:\n\n```json\n" + json.dumps(stated, indent=2) + "\n```"
    return "The input is an image, prepared so:\n\n" + "\n".join(
        f"{i}. {step}" for i, step in enumerate(_steps(pipeline), 1)
    )


def _steps(pipeline: Preprocess) -> list[str]:
    order = {"RGB": "red, green, blue", "BGR": "blue, green, red", "L": "grey"}[pipeline.channels]
    steps = [f"decode to 8 bits a channel, channels in the order {order}"]
    if pipeline.resize == "shorter":
        steps.append(f"resize (bilinear, antialiased) so that the shorter side has {_pixels(pipeline.size)} pixels")
    elif pipeline.resize == "squash":
        steps.append(f"resize (bilinear, antialiased) to {_pixels(pipeline.size)} pixels, whatever the proportions")
    if pipeline.crop is not None:
        steps.append(f"cut {_pixels(pipeline.crop)} pixels out of the centre")
    if not pipeline.raw:
        steps.append(
            f"as float32, per channel: (pixel · {pipeline.scale:.8g} − mean) / std with "
            f"mean {_numbers(pipeline.mean)} and std {_numbers(pipeline.std)}"
        )
    axes = "batch, channel, height, width" if pipeline.layout == "NCHW" else "batch, height, width, channel"
    return [*steps, f"lay out as {pipeline.layout} ({axes})"]


def _pixels(size: int | tuple[int, int] | None) -> str:
    if size is None:
        return "the model's own number of"
    return f"{size[0]} × {size[1]} (height × width)" if isinstance(size, tuple) else str(size)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.8g}" for value in values)


def _exactness(manifest: Manifest) -> str:
    exactness = manifest.exactness
    if exactness.overflow_free and not exactness.exceptions:
        return "The outputs are the same, bit for bit, on every processor:"
    if exactness.overflow_free:
        listed = "".join(f"\n- {exception}" for exception in exactness.exceptions)
        return f"No int8 sum can overflow. Last places may differ between processors because of:\n{listed}"
    return "On x86 processors without VNNI int8 sums may saturate, so outputs there may differ from those of others:"


def _precision(manifest: Manifest) -> str:
    counts = Counter(row.precision for row in manifest.precision)
    reasons = Counter(
        f"{row.op}: {row.reason}" for row in manifest.precision if row.precision == "float" and row.reason
    )
    lines = [f"Operators that compute in int8: {counts['int8']}; in float: {counts['float']}."]
    lines += [f"- {count} × {reason}" for reason, count in reasons.most_common(_REASONS_SHOWN)]
    if len(reasons) > _REASONS_SHOWN:
        lines.append(f"- and {len(reasons) - _REASONS_SHOWN} more reasons, in `manifest.json`")
    return lines[0] + ("\n\n" + "\n".join(lines[1:]) if lines[1:] else "")


def _notes(manifest: Manifest) -> str:
    return "## Notes\n\n" + "\n".join(f"- {note}" for note in manifest.notes) if manifest.notes else ""
