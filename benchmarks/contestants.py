"""The contestants of `benchmarks.quantize` and their settings: ours, ours without one part, onnxruntime's, peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import fresh, ours, peers, stock
from benchmarks.models import Model
from toolchain.core.errors import ToolchainError
from toolchain.formats.recipe import Recipe
from toolchain.quantization.qdq.fusion_audit import optimized_graph

ABLATIONS: Mapping[str, dict[str, object]] = {
    "measured ranges": {"ranges": "minmax"},
    "equalization": {"equalize": False},
    "bias correction": {"bias_correction": False},
    "rounding": {"rounding": False},
    "mixed precision": {"mixed": False},
    "all of these": {
        "ranges": "minmax",
        "equalize": False,
        "bias_correction": False,
        "rounding": False,
        "mixed": False,
    },
    "exactness": {"exact": False},
    "races": {"measure": False},
}
"""Name of each part of our quantization → the settings of the recipe's `quantize` that leave it out."""

STOCK = ("quantize_static", "quantize_dynamic")
OTHERS = (*STOCK, *peers.QUANTIZERS)
LEGEND = (
    "`quantize_static`: onnxruntime's, after its `quant_pre_process`, with default settings (S8S8 per tensor), U8S8 "
    "per channel, and U8S8 with `reduce_range`. `quantize_dynamic`: its default; unsigned weights if that does not run."
)


@dataclass(frozen=True)
class Variant:
    """One way to quantize.

    Attributes:
        name: of its row.
        function: for `fresh.call`.
        hows: its last arguments, tried in turn until one works.
        python: the interpreter; None if the peer is not installed.
    """

    name: str
    function: Callable[..., object] | str
    hows: tuple[tuple[object, ...], ...]
    python: str | None = fresh.HERE


@dataclass(frozen=True)
class Made:
    """The result of a variant.

    Attributes:
        variant: its name.
        file: the written model; None if there is none.
        cost: of making it.
        left: number of QuantizeLinear and DequantizeLinear nodes in the graph that onnxruntime runs.
        error: in one clause.
        missing: the peer is not installed.
    """

    variant: str
    file: Path | None
    cost: fresh.Cost | None = None
    left: int | None = None
    error: str | None = None
    missing: bool = False


def legend(others: Sequence[str]) -> str:
    """Describe the settings of the `others`."""
    parts = [LEGEND] if set(others) & set(STOCK) else []
    return " ".join([*parts, *(peers.PEERS[name].settings for name in others if name in peers.QUANTIZERS)])


def variants(model: Model, ablations: Sequence[str], others: Sequence[str]) -> list[Variant]:
    """Ours, ours without each part of `ablations`, and all rows of the `others`."""
    recipes = {"ours": Recipe()}
    recipes |= {f"ours without {part}": Recipe.parse({"quantize": ABLATIONS[part]}) for part in ablations}
    everyone = [Variant(name, ours.quantize, ((recipe.model_dump_json(),),)) for name, recipe in recipes.items()]
    for name in others:
        everyone += _stock(name) if name in STOCK else _peer(name, model)
    return everyone


def _stock(name: str) -> list[Variant]:
    if name == "quantize_dynamic":
        hows = tuple((signed, symbolic) for signed in (True, False) for symbolic in (True, False))
        return [Variant(name, stock.quantize_at_run_time, hows)]
    return [Variant(f"{name} {key}", stock.quantize, ((key, True), (key, False))) for key in stock.VARIANTS]


def _peer(name: str, model: Model) -> list[Variant]:
    transformer, python = model.KIND.startswith("transformer"), peers.interpreter(name)
    rows = peers.PEERS[name].rows
    return [Variant(row, peers.driver(name), ((how, transformer),), python) for row, how in rows.items()]


def quantize(variant: Variant, model: Path, samples: Path, output: Path) -> Made:
    """Run the variant in a fresh process, and check that onnxruntime loads the file."""
    if variant.python is None:
        return Made(variant.name, None, error="not installed, see `python -m benchmarks.peers`", missing=True)
    errors = []
    for how in variant.hows:
        output.unlink(missing_ok=True)
        try:
            arguments = (str(model), str(samples), str(output), *how)
            cost = fresh.call(variant.function, *arguments, python=variant.python)
            graph = optimized_graph(output)
        except ToolchainError as error:
            errors.append(error.what.removeprefix("onnxruntime.quantization."))
            continue
        left = sum(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node)
        return Made(variant.name, output, cost, left)
    return Made(variant.name, None, error=errors[0])
