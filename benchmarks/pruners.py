"""The contestants of `benchmarks.prune`: ours, ours without one part, controls (random and plain norms), peers."""

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
"""Name of each part of our pruning → the settings of the recipe's `prune` that leave it out."""

PLAIN: dict[str, object] = {"uniform": True, "repair": False, "branches": False}
CONTROLS: Mapping[str, dict[str, object]] = {
    "random, uniform": {"criterion": "random", **PLAIN},
    "L2, uniform": {"criterion": "l2", **PLAIN},
}
"""Our tool reduced to aligned widths."""

BLIND = frozenset({"L2, uniform"})
LEGEND = (
    "ours: `toolchain prune --speedup`; its size is the target speed-up. Controls: our tool removes the same aligned "
    "share of every layer, at random or by the norm of the weights, without repair. Size of the others: the ratio of "
    "channels to remove. At 0 they only apply what they do with the samples, which alone can help or harm where the "
    "model was trained on other data than it is tested on."
)


@dataclass(frozen=True)
class Contestant:
    """One way to prune.

    Attributes:
        name: of its rows.
        function: for `fresh.call`; its last arguments are `how`, the size and the seed.
        how: settings.
        sizes: speed-ups or ratios to prune to, ascending.
        blind: the seed changes nothing.
        python: the interpreter; None if the peer is not installed.
    """

    name: str
    function: Callable[..., object] | str
    how: object
    sizes: tuple[float, ...]
    blind: bool = False
    python: str | None = fresh.HERE


Cutter = Callable[[Contestant, Model, Path, Path, Path, float, int], Made]
"""Contestant, model, float file, samples, output, size and seed → the file made. See `cut_once`."""


@dataclass(frozen=True)
class Cut:
    """The file that a contestant made at a size with a seed."""

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

    Ours without each part of `without`, and ours after `minutes` of label-free training, take minutes each: they are
    run at the middle speed-up only.
    """
    middle = (points[len(points) // 2],)
    trained: dict[str, dict[str, object]] = {f"ours, {minutes:g} min of training": {"minutes": minutes}}
    once = trained if minutes else {}
    once |= {f"ours without {part}": INGREDIENTS[part] for part in without}
    everyone = [Contestant("ours", ours.prune, {}, points)]
    everyone += [Contestant(name, ours.prune, how, points, name in BLIND) for name, how in CONTROLS.items()]
    everyone += [Contestant(name, ours.prune, how, middle) for name, how in once.items()]
    for other in others:
        peer, python = peers.PRUNERS[other], peers.interpreter(other)
        everyone += [
            Contestant(row, peers.driver(other), how, ratios if blind else (0.0, *ratios), blind, python)
            for row, how in peer.rows.items()
            for blind in [how in peer.blind]
        ]
    return everyone


def sample_folders(source: Iterable[Feed], samples: int, seeds: int, scratch: Path) -> list[Path]:
    """Write a folder of samples for each seed; no sample is in two folders.

    Raises:
        DataError: the source has too few samples.
    """
    folders = [scratch / f"samples-{seed}" for seed in range(seeds)]
    unseen = iter(source)
    for seed, folder in enumerate(folders):
        written = feeds.write(islice(unseen, samples), folder)
        if written < samples:
            what = f"{written} of {samples} samples for seed {seed}"
            raise DataError(what, where="calibration", hint="ask for fewer samples or seeds")
    return folders


def cut_all(
    contestant: Contestant,
    model: Model,
    source: Path,
    samples: Sequence[Path],
    scratch: Path,
    *,
    cut: Cutter | None = None,
) -> Iterator[Cut]:
    """Cut to every size with every seed, until one fails: larger sizes would fail as well.

    Args:
        contestant: the way to prune.
        model: the benchmark model.
        source: its float file.
        samples: a folder for each seed; a blind contestant gets the first one only.
        scratch: folder for the files.
        cut: makes one file; `cut_once` by default.
    """
    cut = cut or cut_once
    for size in contestant.sizes:
        for seed, folder in enumerate(samples[:1] if contestant.blind else samples):
            output = scratch / f"{contestant.name}-{size}-{seed}.onnx"
            made = cut(contestant, model, source, folder, output, size, seed)
            yield Cut(contestant.name, size, seed, made)
            if made.error:
                return


def cut_once(
    contestant: Contestant, model: Model, source: Path, samples: Path, output: Path, size: float, seed: int
) -> Made:
    """Prune in a fresh process; then clean up as the unpruned model was, so that only the widths differ."""
    if contestant.python is None:
        return Made(contestant.name, None, error="not installed, see `python -m benchmarks.peers`", missing=True)
    arguments = (model.NAME, str(source), str(samples), str(output), contestant.how, size, seed)
    try:
        cost = fresh.call(contestant.function, *arguments, python=contestant.python)
        io.save(optimize(io.load(output)).model, output)
    except ToolchainError as error:
        return Made(contestant.name, None, error=error.what)
    return Made(contestant.name, output, cost)
