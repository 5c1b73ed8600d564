"""Who takes part in `benchmarks.prune`: ours, ours without an ingredient, chance and plain norms as controls, peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from benchmarks import feeds, fresh, ours, peers
from benchmarks.contestants import Made
from benchmarks.models import Model
from toolchain.core.errors import DataError, ToolchainError
from toolchain.data.tensors import Feed
from toolchain.graph import io
from toolchain.optimization.passes import optimize

INGREDIENTS: Mapping[str, dict[str, object]] = {
    "second moments": {"criterion": "activation"},
    "repair": {"repair": False},
    "branches": {"branches": False},
    "allocation": {"uniform": True},
}
"""Each part of ours → what of the recipe's `prune` leaves it out."""

PLAIN: dict[str, object] = {"uniform": True, "repair": False, "branches": False}
CONTROLS: Mapping[str, dict[str, object]] = {
    "random, uniform": {"criterion": "random", **PLAIN},
    "L2, uniform": {"criterion": "l2", **PLAIN},
}
"""Our tool with nothing of its own but aligned widths."""

BLIND = frozenset({"L2, uniform"})
LEGEND = (
    "ours: `toolchain prune --speedup`, asked for the speed-up that is its size. Controls: our tool, the same aligned "
    "share of every layer, channels drawn or by their weights' norm, nothing repaired. Sizes of the others: the ratio "
    "of channels that they are told to take out; at 0 they only do what they do with the samples, which can help (or "
    "harm) by itself where the model was trained on other data than it is tested on."
)


@dataclass(frozen=True)
class Contestant:
    """One way to prune. sizes: what it is asked for, in turn. function: for `fresh.call`, with `how`, size and seed at
    the end. blind: the seed changes nothing. python: the interpreter, None where it is not installed.
    """

    name: str
    function: Callable[..., object] | str
    how: object
    sizes: tuple[float, ...]
    blind: bool = False
    python: str | None = fresh.HERE


@dataclass(frozen=True)
class Cut:
    """What a contestant made at a size with a seed."""

    contestant: str
    size: float
    seed: int
    made: Made


def contestants(
    points: tuple[float, ...],
    ratios: tuple[float, ...],
    without: Sequence[str],
    others: Sequence[str],
    minutes: float = 0.0,
) -> list[Contestant]:
    """Ours and the controls at the speed-ups `points`, the `others` at `ratios`.

    Ours without each of `without`, and after so many `minutes` of label-free training, are minutes each and therefore
    rows at one speed-up alone, the one in the middle.
    """
    middle = (points[len(points) // 2],)
    trained: dict[str, dict[str, object]] = {f"ours, {minutes:g} min of training": {"minutes": minutes}}
    once = trained if minutes else {}
    once |= {f"ours without {part}": INGREDIENTS[part] for part in without}
    found = [Contestant("ours", ours.prune, {}, points)]
    found += [Contestant(name, ours.prune, how, points, name in BLIND) for name, how in CONTROLS.items()]
    found += [Contestant(name, ours.prune, how, middle) for name, how in once.items()]
    for other in others:
        peer, python = peers.PRUNERS[other], peers.interpreter(other)
        found += [
            Contestant(row, peers.driver(other), how, ratios if blind else (0.0, *ratios), blind, python)
            for row, how in peer.rows.items()
            for blind in [how in peer.blind]
        ]
    return found


def sample_folders(source: Iterable[Feed], samples: int, seeds: int, scratch: Path) -> list[Path]:
    """A folder of so many of the source's samples for each seed, none in two of them."""
    folders = [scratch / f"samples-{seed}" for seed in range(seeds)]
    unseen = iter(source)
    for seed, folder in enumerate(folders):
        written = feeds.write(islice(unseen, samples), folder)
        if written < samples:
            what = f"{written} of {samples} samples for seed {seed}"
            raise DataError(what, where="calibration", hint="ask for fewer samples or seeds")
    return folders


def cut_all(
    contestant: Contestant, model: Model, source: Path, samples: Sequence[Path], scratch: Path
) -> Iterator[Cut]:
    """Every size with every seed (one where seeds change nothing), until one fails: larger ones will, too."""
    for size in contestant.sizes:
        for seed, folder in enumerate(samples[:1] if contestant.blind else samples):
            output = scratch / f"{contestant.name}-{size}-{seed}.onnx"
            made = _cut(contestant, model, source, folder, output, size, seed)
            yield Cut(contestant.name, size, seed, made)
            if made.error:
                return


def _cut(
    contestant: Contestant, model: Model, source: Path, samples: Path, output: Path, size: float, seed: int
) -> Made:
    """In a fresh process; then cleaned up as the unpruned model is, so that nothing but the widths differs."""
    if contestant.python is None:
        return Made(contestant.name, None, error="not installed, see `python -m benchmarks.peers`", missing=True)
    arguments = (model.NAME, str(source), str(samples), str(output), contestant.how, size, seed)
    try:
        cost = fresh.call(contestant.function, *arguments, python=contestant.python)
        io.save(optimize(io.load(output)).model, output)
    except ToolchainError as error:
        return Made(contestant.name, None, error=error.what)
    return Made(contestant.name, output, cost)
