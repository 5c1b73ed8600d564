"""`convert`: turn a torch module, a ``.pt2`` or an ONNX file into a checked ONNX file."""

from __future__ import annotations

from pathlib import Path

from toolchain.api.arguments import checked
from toolchain.api.request import Freeze, Inputs, read_freeze, read_inputs
from toolchain.conversion.source import Converted, ModelSource
from toolchain.conversion.source import convert as convert_model
from toolchain.core.files import check_output
from toolchain.core.progress import Progress, silent
from toolchain.graph import io


@checked()
def convert(
    source: ModelSource,
    *,
    output: str | Path,
    inputs: Inputs = (),
    freeze: Freeze | None = None,
    progress: Progress = silent,
) -> Converted:
    """Write a model as ONNX (opset 17 or later) after comparing its outputs with those of the source.

    Args:
        source: an ``.onnx`` or ``.pt2`` file, ``package.module:callable`` giving an ``nn.Module``, or a module.
        output: the ``.onnx`` file to write.
        inputs: the inputs of a torch module, such as ``["image:batch,3,224,224"]``; not needed for ONNX files.
        freeze: sizes for dynamic axes, such as ``{"batch": 1}`` or ``["batch=1"]``.
        progress: is told about every stage.

    Returns:
        The model, notes on what the conversion changed, and how close its outputs are to the source's.

    Raises:
        InputError and its subclasses: something given cannot be used; nothing was written.
        GateError: the converted model does not compute what its source computes; nothing was written.
    """
    check_output(output)
    specs, sizes = read_inputs(inputs), read_freeze(freeze)
    progress("converting")
    converted = convert_model(source, inputs=specs, freeze=sizes)
    io.save(converted.model, output)
    return converted
