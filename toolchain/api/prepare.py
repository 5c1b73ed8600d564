"""`prepare`: convert a source to ONNX and clean it up."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from toolchain.conversion import source as conversion
from toolchain.conversion.source import Converted, ModelSource, convert
from toolchain.core.progress import Progress, silent
from toolchain.data.tensors import Feed
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.optimization import passes
from toolchain.optimization.passes import Optimized, optimize

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A source, converted to ONNX and cleaned up.

    Attributes:
        converted: the converted model.
        optimized: the model after the clean-up.
        notes: remarks on the conversion, and on the samples where some were opened for it; one sentence each.
    """

    converted: Converted
    optimized: Optimized
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> ir.Model:
        """The optimized float model."""
        return self.optimized.model

    def with_model(self, model: ir.Model) -> Prepared:
        """Return a copy with another float model, which is cleaned up."""
        return replace(self, optimized=optimize(model))

    def compared_on(self, samples: Sequence[Feed]) -> Prepared:
        """Return a copy that was compared with its source on samples, where random inputs did not serve.

        Raises:
            GateError: the converted or the cleaned-up model computes something else than its source.
        """
        converted = conversion.compared_on(self.converted, samples)
        optimized = passes.compared_on(converted.model, self.optimized, samples)
        dropped = set(self.converted.notes) - set(converted.notes)
        return Prepared(converted, optimized, tuple(note for note in self.notes if note not in dropped))


def prepare(
    source: ModelSource,
    *,
    inputs: Sequence[TensorSpec] = (),
    freeze: Mapping[str, int] | None = None,
    progress: Progress = silent,
) -> Prepared:
    """Convert and optimize a model.

    Raises:
        ModelError, InputError, GateError: as :func:`toolchain.conversion.source.convert` and
            :func:`toolchain.optimization.passes.optimize` raise them.
    """
    started = time.perf_counter()
    progress("converting")
    converted = convert(source, inputs=inputs, freeze=freeze)
    progress("optimizing")
    optimized = optimize(converted.model)
    counts = f"{optimized.nodes_before} nodes became {optimized.nodes_after}"
    log.info("converted and optimized in %.1f s: %s", time.perf_counter() - started, counts)
    return Prepared(converted, optimized, converted.notes)
