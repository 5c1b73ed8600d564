"""`optimize`: clean up a float model without changing what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolchain.api.arguments import checked
from toolchain.api.prepare import prepare
from toolchain.api.request import Freeze, read_freeze
from toolchain.conversion.source import ModelSource
from toolchain.core.files import check_output
from toolchain.core.progress import Progress, silent
from toolchain.graph import io
from toolchain.optimization.passes import Optimized
from toolchain.storage.fp16 import HalvedModel, halve_weights


@dataclass(frozen=True)
class OptimizedFile:
    """Result of :func:`optimize`.

    Attributes:
        output: the file.
        optimized: the model after the clean-up, with counts of nodes and the change of the outputs.
        halved: the model with float16 weights and the bytes saved; None without ``fp16_weights``.
    """

    output: Path
    optimized: Optimized
    halved: HalvedModel | None


@checked()
def optimize(
    model: ModelSource,
    *,
    output: str | Path,
    freeze: Freeze | None = None,
    fp16_weights: bool = False,
    progress: Progress = silent,
) -> OptimizedFile:
    """Clean up a float model and write it: fold batch normalization and constants, remove dead code, infer shapes.

    Args:
        model: an ``.onnx`` file, or another source that needs no `inputs`.
        output: the ``.onnx`` file to write.
        freeze: sizes for dynamic axes, such as ``{"batch": 1}`` or ``["batch=1"]``.
        fp16_weights: store large weights as float16; the file is half as large, the speed is the same.
        progress: is told about every stage.

    Returns:
        The file and the effect of the clean-up.

    Raises:
        InputError and its subclasses: something given cannot be used; nothing was written.
        GateError: the outputs changed; nothing was written.
    """
    check_output(output)
    optimized = prepare(model, freeze=read_freeze(freeze), progress=progress).optimized
    halved = halve_weights(optimized.model) if fp16_weights else None
    io.save(halved.model if halved else optimized.model, output)
    return OptimizedFile(Path(output), optimized, halved)
