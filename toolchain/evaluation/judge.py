"""`Judge`: how much of a float model's answer is left in another model. Every step that trades accuracy asks it.

Outputs are taken apart into parts (`parts`): pieces that were joined, and the indices of their feature axes. Each part
is compared with its own variance over samples and places,

    fidelity of an index c = −10 log₁₀ ( mean (x_c − x̂_c)² / variance of x_c ),

so that a constant answer has 0 dB, whatever its offset and however large its neighbours are. The fidelity of a piece is
the mean of its indices' decibels, none of which counts below 0. The worst piece decides.

Where a piece is the result of a Softmax or Sigmoid, the scores in front are compared index by index, because saturated
probabilities hide how scores changed, and the probabilities are compared as a whole, because something behind the
Sigmoid may still lose them. Where elements are chosen by NonMaxSuppression, TopK or ArgMax, the numbers in front of it
are compared, since a single exchanged row makes all elements differ. Decisions that a program would make from an output
are compared in `decisions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F64
from toolchain.core.errors import DataError, one_line
from toolchain.data.tensors import Feed
from toolchain.evaluation import decisions, floor
from toolchain.evaluation.fidelity import MAX_FIDELITY_DB
from toolchain.evaluation.parts import Piece, find_parts, operands_of, pieces_of
from toolchain.evaluation.points import Point, compared_points, selections_behind
from toolchain.evaluation.score import agreement
from toolchain.evaluation.statistics import JudgedPiece, PartStatistics
from toolchain.formats.results import Score
from toolchain.formats.verdict import Decision, PartFidelity, Verdict
from toolchain.graph import io, query, run, tap

MAX_STORED_BYTES = 2**30
"""Models are compared on as many samples as have float answers that fit into this ..."""
MIN_SAMPLES = 4
"""... and on at least this number."""
SIGNAL_SAMPLES = 4
"""Number of float answers that show whether anything is decided from an output."""
MAX_INPUT_CHANNELS = 4
"""A picture or signal has at least one place for this many numbers of the input."""


@dataclass(frozen=True)
class _Answer:
    """Tensors of the float model for one sample.

    Attributes:
        feed: the sample.
        values: the tensors that are compared, by name.
        shapes: shapes of the pieces, by name.
        operands: values of the tensors that moving operators read.
    """

    feed: Feed
    values: Feed
    shapes: Mapping[str, tuple[int, ...]]
    operands: Feed


def _answers(
    model: ir.Model, feeds: Iterable[Feed], compared: Sequence[str], pieces: Sequence[str], operands: Sequence[str]
) -> list[_Answer]:
    """Run the float model on as many samples as may be stored."""
    names = list(dict.fromkeys([*compared, *pieces, *operands]))
    engine = run.session(tap.expose(model, names), pattern=False)
    inputs = [spec.name for spec in io.inputs(model)]
    answers: list[_Answer] = []
    stored = 0
    for sample in feeds:
        feed = {name: sample[name] for name in inputs}
        try:
            got: Feed = dict(zip(names, engine.run(None, feed), strict=True))
        except run.OrtError as error:
            what = f"onnxruntime cannot run the model on a held-out sample ({one_line(error)})"
            raise DataError(what, where="calibration data", hint="correct or remove the sample") from None
        shapes = {name: got[name].shape for name in pieces}
        values = {name: got[name] for name in compared}
        answers.append(_Answer(feed, values, shapes, {name: got[name] for name in operands}))
        stored += sum(array.nbytes for array in values.values())
        if stored > MAX_STORED_BYTES and len(answers) >= MIN_SAMPLES:
            break
    return answers


class Judge:
    """Compares models with one float model on a few samples.

    Every model must have the float model's outputs. Scores in front of a Softmax, and numbers in front of a selection,
    are compared too where the model still has the float model's nodes, as quantized and pruned models have.
    """

    def __init__(self, model: ir.Model, feeds: Iterable[Feed]) -> None:
        """Run the float model.

        Args:
            model: the float model.
            feeds: samples that no statistic was taken from; other arrays than the model's inputs are left out.

        Raises:
            DataError: onnxruntime cannot run the model on a sample.
        """
        computed = {str(value.name): value for value in query.activations(model)}
        self._outputs = [name for value in model.graph.outputs if (name := str(value.name)) in computed]
        self._selected = {name for name in self._outputs if selections_behind(computed[name])}
        self._points = compared_points(model)
        tensors = [computed[point.tensor] for point in self._points]
        pieces = list(dict.fromkeys(str(piece.name) for value in tensors for piece in pieces_of(value)))
        operands = list(dict.fromkeys(name for value in tensors for name in operands_of(value)))
        answers = _answers(model, feeds, [*self._outputs, *(p.tensor for p in self._points)], pieces, operands)
        self._feeds = [answer.feed for answer in answers]
        self._expected = [answer.values for answer in answers]
        self._statistics: dict[str, PartStatistics] = {}
        if not answers:
            return
        shapes = {name: [answer.shapes[name] for answer in answers] for name in pieces}
        types = {name: array.dtype for name, array in answers[0].operands.items()}
        for value in tensors:
            found = find_parts(model, value, shapes, types)
            labels = [found.labels(answer.shapes, answer.operands) for answer in answers]
            expected = [answer[str(value.name)] for answer in self._expected]
            self._statistics[str(value.name)] = PartStatistics(found, labels, expected)

    @property
    def usable(self) -> bool:
        """True where something varies that can be compared number by number."""
        return any(
            statistics.judge(piece, np.zeros((1, len(statistics.variance)))) is not None
            for statistics in self._statistics.values()
            for piece in statistics.parts.pieces
        )

    @property
    def samples(self) -> int:
        """Number of samples that models are compared on."""
        return len(self._feeds)

    def fidelity_db(self, model: ir.Model) -> float:
        """Return the fidelity of the worst piece in decibels."""
        return self.fidelity_function(model)({})

    def fidelity_function(self, model: ir.Model) -> Callable[[Feed], float]:
        """Load `model` once and return a function that measures the fidelity of its worst piece with additional inputs.

        The additional inputs are the same for every sample.
        """
        answer = self._runner(model)

        def measure(additional: Feed) -> float:
            answers = answer(additional)
            return min((judged.fidelity_db for _, _, judged in self._judged(answers)), default=MAX_FIDELITY_DB)

        return measure

    def noise(self, model: ir.Model) -> float:
        """Return the squared error of the worst piece over its variance; 1 and more: nothing is left.

        Unlike decibels that end at 0, it tells bad models from worse ones, and for small changes it adds up.
        """
        return max((judged.noise for _, _, judged in self._judged(self._runner(model)({}))), default=0.0)

    def noise_by_sample(self, model: ir.Model) -> F64:
        """Return the noise of the worst piece in every sample, float64 [samples]; their mean is the piece's noise."""
        pieces = [judged for _, _, judged in self._judged(self._runner(model)({}))]
        worst = max(pieces, key=lambda judged: judged.noise, default=None)
        return np.zeros(self.samples) if worst is None else worst.by_sample

    @property
    def gives_signal(self) -> bool:
        """True where an answer is a picture or a signal itself: nearly as large as the input, and nothing is decided.

        Every error of such an answer is seen or heard, while noise that changes no decision is harmless.
        """
        sizes = [array.size for feed in self._feeds[:1] for array in feed.values() if array.dtype.kind == "f"]
        decided = {decision.part for decision in self._decisions(self._expected[:SIGNAL_SAMPLES])}
        return bool(sizes) and any(
            np.count_nonzero(piece.among(statistics.labels[0])) // piece.count >= max(sizes) / MAX_INPUT_CHANNELS
            and self._part_name(name, name, piece) not in decided
            for name, statistics in self._statistics.items()
            if name in self._outputs and name not in self._selected
            for piece in statistics.parts.pieces
        )

    def verdict(self, model: ir.Model) -> Verdict:
        """Judge every part and every decision of `model`."""
        answers = self._runner(model)({})
        parts: list[PartFidelity] = []
        lost: list[str] = []
        doubtful: list[str] = []
        for point, piece, judged in self._judged(answers):
            name = self._part_name(point.title, point.tensor, piece)
            worst = judged.worst
            part = PartFidelity(
                name=name,
                tensor=piece.tensor,
                fidelity_db=judged.fidelity_db,
                worst_index=worst.number if worst else None,
                worst_db=worst.fidelity_db if worst else None,
                indices=judged.indices,
                constant=judged.constant,
            )
            sentence = floor.lost_part(part, piece.source, worst.floor_db if worst else 0.0)
            part = part.model_copy(update={"lost": sentence is not None})
            parts.append(part)
            doubtful += [doubt] if (doubt := floor.doubtful_part(part, self.samples)) else []
            lost += [sentence] if sentence else []
        found = tuple(self._decisions(answers))
        lost += [sentence for decision in found if (sentence := floor.lost_decision(decision))]
        return Verdict(
            samples=self.samples,
            agreement=self._agreement(answers),
            parts=tuple(parts),
            decisions=found,
            lost=tuple(lost),
            doubtful=tuple(doubtful),
        )

    def _agreement(self, answers: Sequence[Feed]) -> float:
        if not answers or not self._outputs:
            return 1.0
        sides = ([[answer[name] for name in self._outputs] for answer in side] for side in (self._expected, answers))
        return agreement(zip(*sides, strict=True))

    def _judged(self, answers: Sequence[Feed]) -> Iterable[tuple[Point, Piece, JudgedPiece]]:
        for point in self._points:
            if not answers or point.tensor not in answers[0]:
                continue
            statistics = self._statistics[point.tensor]
            expected = [answer[point.tensor] for answer in self._expected]
            errors = statistics.errors(expected, [answer[point.tensor] for answer in answers])
            for piece in statistics.parts.pieces:
                judged = statistics.judge(piece, errors)
                if judged is not None:
                    yield point, piece, judged

    def _decisions(self, answers: Sequence[Feed]) -> Iterable[Decision]:
        """Compare the decisions of the first samples, as many as there are answers."""
        for name in self._outputs:
            expected = [answer[name] for answer in self._expected[: len(answers)]]
            got = [answer[name] for answer in answers]
            if name in self._selected or name not in self._statistics:
                yield from decisions.of_selected(name, expected, got)
                continue
            statistics = self._statistics[name]
            named = {piece.first: self._part_name(name, name, piece) for piece in statistics.parts.pieces}
            labels = statistics.labels[: len(answers)]
            yield from decisions.of_pieces(statistics.parts, labels, named, expected, got)

    def _part_name(self, title: str, tensor: str, piece: Piece) -> str:
        """Name a piece of a tensor by its place in the first sample, or else by the operator that computes it."""
        statistics = self._statistics[tensor]
        if len(statistics.parts.pieces) == 1:
            return title
        shape = self._expected[0][tensor].shape
        labels = statistics.labels[0].reshape(shape)
        mine = piece.among(labels)
        spans = [(int(p.min()), int(p.max()) + 1) for p in np.nonzero(mine)] if mine.any() else []
        if not spans or np.prod([b - a for a, b in spans]) != mine.sum():
            return f"{title}, from {piece.source}"
        ranges = [":" if (a, b) == (0, n) else f"{a}:{b}" for (a, b), n in zip(spans, shape, strict=True)]
        while ranges and ranges[-1] == ":":
            ranges.pop()
        return f"{title}[{', '.join(ranges)}]" if ranges else title

    def _runner(self, model: ir.Model) -> Callable[[Feed], list[Feed]]:
        nodes = {query.label(node): node for node in model.graph}
        names = {name: name for name in self._outputs}
        for point in self._points:
            if point.reader is not None and point.reader[0] in nodes:
                value = query.optional_input(nodes[point.reader[0]], point.reader[1])
                if value is not None and query.constant(value) is None:
                    names[point.tensor] = str(value.name)
        engine = run.session(tap.expose(model, names.values()), threads=0)
        return lambda additional: [
            dict(zip(names, engine.run(None, {**feed, **additional}), strict=True)) for feed in self._feeds
        ]


def examine(judge: Judge, model: ir.Model, measure: Callable[[ir.Model], Score] | None = None) -> tuple[Score, Verdict]:
    """Score and judge a model.

    Args:
        judge: compares with the float model.
        model: the model.
        measure: scores a model; None: the score is the agreement, for which no model is run again.
    """
    verdict = judge.verdict(model)
    if measure is not None:
        return measure(model), verdict
    return Score(kind="agreement", value=verdict.agreement, samples=verdict.samples), verdict
