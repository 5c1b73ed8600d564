"""What a student learns: from a teacher, from labels, or from both; the tensors compared, the loss and its gradients.

    loss = a · labelled + (1 - a) · (mean over outputs of error + divergence) + mean over inner tensors of error
           + penalty of the technique

(:mod:`toolchain.training.engine.losses`); a is 0 where there are no labels. Outputs that look like scores of classes
are compared as distributions, too. Inner tensors are those right behind a change, of a student that was made from its
teacher; or features of another architecture, through adapters (:mod:`toolchain.training.engine.feature_adapters`).

The weights of two channels may differ a thousandfold where batch normalization is folded, while Adam's steps are of one
size. So weights move in units of their own: w = w₀ + r d, where r is the root mean square of the channel and d is what
is trained. It is the same as a learning rate for every channel.

A batch is cut into parts, each computed by one thread from end to end, and the gradients are added in order: the result
does not depend on the number of threads, small parts stay in the cache, and no thread waits for another within an
operator, which on a busy machine takes most of the time.

Batch normalizations keep their statistics, and most are folded into a convolution before a graph gets here. Where they
are to learn with the rest (`LossConfig.norms`), a batch is one part.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from toolchain.core.errors import ModelError
from toolchain.data.calibration import CalibrationData
from toolchain.evaluation.fidelity import power_to_db, saturating_tail
from toolchain.formats.findings import Evaluation
from toolchain.graph import io, query, run, tap
from toolchain.training.engine import losses
from toolchain.training.engine.feature_adapters import Features, Wanted, feature_pairs
from toolchain.training.engine.samples import KEPT_BYTES, LABELS, Example, Samples, joined, split_labels, tensor
from toolchain.training.engine.technique import Technique
from toolchain.training.engine.torch_graph import Through, TorchGraph

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from torch import Tensor

BATCH, PART = 16, 4
CACHED_BYTES = 1 << 20
"""Of a part's largest tensor: below that, parts are larger."""
FITTED = 16
"""Samples that adapters are first fitted to."""
SMALLEST_UNIT = 0.1
"""Of the tensor's root mean square: a channel of zeros can move as well."""
PRUNED = 0.1
"""Share of zeros from which on a weight counts as pruned; one that is zero all over is yet to learn."""


@dataclass(frozen=True)
class LossConfig:
    """How the loss is made up. labels: the share that labels have of it, where there are any; temperature: of the
    divergence; inner: whether inner tensors are compared; batch: samples a step; augment: see :class:`Samples`;
    norms: batch normalizations go by the batch's statistics while training; features: tensors of another architecture
    that are compared, see :mod:`toolchain.training.engine.feature_adapters`.
    """

    labels: float = 0.5
    temperature: float = 1.0
    inner: bool = True
    batch: int = BATCH
    augment: bool | None = None
    norms: bool = False
    features: Wanted | None = None


@dataclass(frozen=True)
class _Part:
    """Of a batch. goals: the teacher's answers, where they are known."""

    example: Example
    goals: Example | None
    labels: Tensor | None


class Objective:
    """A student under training.

    moves: d by parameter name, see the module; what an optimizer changes, beside `technique.parameters()`.
    samples: what it is trained on; seed: of which sample is drawn when.

    Raises:
        ModelError: an operator cannot be trained through, the student has no weights, or no float output that the
            teacher has with the same shape.
    """

    moves: dict[str, Tensor]

    def __init__(
        self,
        student: ir.Model,
        teacher: ir.Model,
        data: CalibrationData,
        *,
        technique: Technique | None = None,
        aims: LossConfig = LossConfig(),
        seed: int = 0,
    ) -> None:
        import torch

        self.technique, self.aims, self.seed = technique or Technique(), aims, seed
        self.graph = TorchGraph(student)
        if not self.graph.parameters:
            raise ModelError(
                "has no weights that could be trained", where=student.graph.name, hint="leave training out"
            )
        self._start = {name: weight.detach().clone() for name, weight in self.graph.parameters.items()}
        self._units = {name: _units(weight) for name, weight in self._start.items()}
        if not self.technique.revives:
            self._units |= {name: self._units[name] * (w != 0) for name, w in self._start.items() if _is_pruned(w)}
        self.moves = {name: torch.zeros_like(weight, requires_grad=True) for name, weight in self._start.items()}
        self.samples = Samples(data, augment=aims.augment)
        first = self.samples.examples[0]
        outputs, answered = heads(student), paired_heads(student, teacher)
        inner = [name for name in matched(student, teacher) if name not in outputs] if aims.inner else []
        paired = feature_pairs(student, teacher, aims.features)
        self._names = list(dict.fromkeys([*outputs, *inner, *paired]))
        self._theirs = answered | {name: name for name in inner} | paired
        self._teacher = _teacher(teacher, list(self._theirs.values()))
        self._known: dict[int, Example] | None = {}
        shapes = {name: value.shape for name, value in self._answers(first).items()}
        with torch.no_grad():
            here = {name: value.shape for name, value in self.graph(first, self._names).items()}
        self._names = [name for name in self._names if name in paired or shapes[name] == here[name]]
        self._heads = [name for name in outputs if name in self._names]
        if not self._heads:
            what = "has no float output of the shape that the teacher's has"
            raise ModelError(what, where=student.graph.name, hint="give the model it was pruned from")
        self._scores = {n for n in self._heads if len(here[n]) == 2 and here[n][1] > 1 and outputs[n]}
        bytes_each = sum(4 * shapes[name].numel() for name in self._names)
        if self.samples.augment or bytes_each * len(self.samples) > KEPT_BYTES:
            self._known = None
        part = aims.batch if aims.norms else min(max(PART, CACHED_BYTES // largest_bytes(student)), aims.batch)
        self._part = part if self._stackable(student, teacher) else 1
        self.features = self._features(list(paired))
        self.technique.advance(self.weights(), 0.0)

    def gradients(self, step: int, pool: Executor) -> float:
        """Set the gradients of everything that is trained, the mean over a step's batch; returns the mean loss."""
        import torch

        chosen = self.samples.drawn(step, self.aims.batch, self.seed)
        cuts = range(0, len(chosen) - len(chosen) % self._part or 1, self._part)
        trained = self.trained()
        through = self.technique.through()
        parts = [self._part_of(step, start, chosen[start : start + self._part]) for start in cuts]
        self.graph.training = self.aims.norms and self._part > 1
        found = list(pool.map(lambda part: self._part_gradients(part, list(trained.values()), through), parts))
        self.graph.training = False
        for number, leaf in enumerate(trained.values()):
            shares = [share for _, gradients in found if (share := gradients[number]) is not None]
            leaf.grad = functools.reduce(torch.add, shares) / len(parts) if shares else None
        return float(np.mean([loss for loss, _ in found]))

    def settle(self, rate: float, share: float) -> None:
        """After a step of the optimizer: the technique's regularizer, its schedule."""
        import torch

        with torch.no_grad():
            for name, weight in self.technique.proximal(self.weights(), rate).items():
                self.moves[name].copy_((weight - self._start[name]) / self._units[name].clamp_min(1e-30))
            self.technique.advance(self.weights(), share)

    def trained(self) -> dict[str, Tensor]:
        """Every leaf that has a gradient: `moves`, the technique's own and the adapters'."""
        adapters = {f"adapter of {name}": move for name, move in self.features.moves.items()}
        return {**self.moves, **self.technique.parameters(), **adapters}

    def weights(self) -> dict[str, Tensor]:
        """The student's dense weights as they are now, by initializer name."""
        return {name: self._start[name] + self._units[name] * move for name, move in self.moves.items()}

    def examine(self, data: CalibrationData, pool: Executor) -> Evaluation:
        """The student as it is now; every held-out sample counts by itself."""
        examples, labels = split_labels(list(data))
        through = self.technique.through()
        alike = len({tuple(value.shape for value in example.values()) for example in examples}) == 1
        size = self._part if alike else 1
        starts = range(0, len(examples), size)
        parts = [(examples[i : i + size], None if labels is None else labels[i : i + size]) for i in starts]
        rows = [
            row for found in pool.map(lambda part: self._examined(part[0], part[1], through), parts) for row in found
        ]
        found, decibels, right = zip(*rows, strict=True)
        hits = [hit for hit in right if hit is not None]
        accuracy = float(np.mean(hits)) if hits else None
        return Evaluation(loss=float(np.mean(found)), fidelity_db=float(np.mean(decibels)), accuracy=accuracy)

    def written(self) -> ir.Model:
        """A clone of the student with the dense weights as they are now."""
        import torch

        with torch.no_grad():
            now = self.weights()
            for name, weight in self.graph.parameters.items():
                weight.copy_(now[name])
        return self.graph.write_back()

    def _features(self, names: Sequence[str]) -> Features:
        """Adapters that begin with the best for the student as it is, by the first samples."""
        import torch

        if not names:
            return Features({}, {})
        some = self.samples.examples[:FITTED]
        with torch.no_grad():
            mine = joined([self.graph(example, names) for example in some])
        return Features(mine, joined([self._answers(example, names) for example in some]))

    def _part_of(self, step: int, start: int, chosen: Sequence[int]) -> _Part:
        samples = self.samples
        if samples.augment:
            examples = [samples.changed(step, start + i, self.seed) for i in range(len(chosen))]
            return _Part(joined(examples), None, None)
        goals = None if self._known is None else joined([self._goals(i) for i in chosen])
        labels = None if samples.labels is None else joined([{LABELS: samples.labels[i]} for i in chosen])[LABELS]
        return _Part(joined([samples.examples[i] for i in chosen]), goals, labels)

    def _part_gradients(
        self, part: _Part, trained: Sequence[Tensor], through: Through
    ) -> tuple[float, tuple[Tensor | None, ...]]:
        import torch

        goals = part.goals or self._answers(part.example)
        got = self.graph({**part.example, **self.weights()}, self._names, through)
        loss = self._loss(got, goals, part.labels)
        return float(loss.detach()), torch.autograd.grad(loss, trained, allow_unused=True)

    def _loss(self, got: Mapping[str, Tensor], goals: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        """Of the outputs, and of as many inner tensors as there are."""
        inner = [name for name in got if name not in self._heads]
        share = 0.0 if labels is None else self.aims.labels
        each = (1 - share) / len(self._heads)
        terms = []
        if share < 1:
            terms = [each * losses.error(got[name], goals[name]) for name in self._heads]
            warmth = self.aims.temperature
            terms += [each * losses.divergence(got[n], goals[n], warmth) for n in sorted(self._scores)]
        if share > 0:
            assert labels is not None
            terms.append(share * losses.labelled(got[self._heads[0]], labels))
        terms += [losses.error(self.features.adapted(name, got[name]), goals[name]) / len(inner) for name in inner]
        return functools.reduce(operator.add, terms)

    def _examined(
        self, examples: Sequence[Example], labels: Sequence[Tensor] | None, through: Through
    ) -> list[tuple[float, float, bool | None]]:
        """Loss, decibels and whether the class is right, of each sample of a part."""
        import torch

        example, rows = joined(examples), []
        with torch.no_grad():
            got = self.graph({**example, **self.weights()}, self._heads, through)
            goals = self._answers(example)
            for number in range(len(examples)):
                one = slice(number, number + 1) if len(examples) > 1 else slice(None)
                mine = {name: got[name][one] for name in self._heads}
                theirs = {name: goals[name][one] for name in self._heads}
                rows.append(self._judged(mine, theirs, None if labels is None else labels[number]))
        return rows

    def _judged(
        self, got: Mapping[str, Tensor], goals: Mapping[str, Tensor], label: Tensor | None
    ) -> tuple[float, float, bool | None]:
        error = float(np.mean([float(losses.error(got[name], goals[name])) for name in self._heads]))
        head, right = self._heads[0], None
        if label is not None and not label.is_floating_point():
            right = bool((got[head].argmax(-1).reshape(-1) == label.reshape(-1)).all())
        elif label is None and head in self._scores:
            right = bool((got[head].argmax(-1) == goals[head].argmax(-1)).all())
        return float(self._loss(got, goals, label)), power_to_db(error), right

    def _goals(self, number: int) -> Example:
        """The teacher's answers to one of the samples, kept."""
        assert self._known is not None
        if number not in self._known:
            self._known[number] = self._answers(self.samples.examples[number])
        return self._known[number]

    def _answers(self, example: Example, names: Sequence[str] | None = None) -> Example:
        """The teacher's, by the student's names."""
        names = self._names if names is None else names
        feed = {name: value.numpy() for name, value in example.items()}
        wanted = [self._theirs[name] for name in names]
        return dict(zip(names, map(tensor, self._teacher.run(wanted, feed)), strict=True))

    def _stackable(self, student: ir.Model, teacher: ir.Model) -> bool:
        """Whether two samples at once give what each gives alone."""
        import torch

        specs = [*io.inputs(student), *io.inputs(teacher)]
        examples = self.samples.examples
        first, last = examples[0], examples[-1]
        if any(not spec.dims or isinstance(spec.dims[0], int) for spec in specs):
            return False
        if len({tuple(value.shape for value in example.values()) for example in examples}) > 1:
            return False
        student_of = functools.partial(self.graph, wanted=self._names)
        with torch.no_grad():
            try:
                both = student_of(joined([first, last]))
            except RuntimeError:  # a Reshape to a constant shape
                return False
            alone = joined([student_of(first), student_of(last)])
        return all(run.relative_error(alone[name].numpy(), both[name].numpy()) < 1e-3 for name in self._names)


def matched(student: ir.Model, teacher: ir.Model) -> list[str]:
    """The student's float tensors right behind a change that the teacher has by the same name and shape."""
    there = {value.name: value for value in query.activations(teacher)}
    same = {
        value.name
        for value in query.activations(student)
        if query.is_float(value) and value.name in there and query.sizes(value) == query.sizes(there[value.name])
    }
    found = []
    for node in student.graph:
        for output in node.outputs:
            was = there[output.name].producer() if output.name in same else None
            if was is None:
                continue
            reads, read = ([v.name for v in n.inputs if v is not None] for n in (node, was))
            computed = [v.name for v in node.inputs if v is not None and query.is_float(v) and not v.is_initializer()]
            if reads != read or any(name not in same for name in computed):
                found.append(str(output.name))
    return found


def paired_heads(student: ir.Model, teacher: ir.Model) -> dict[str, str]:
    """The student's outputs that can be compared, each with the teacher's.

    Raises:
        ModelError: one has more of them, or the two are fed otherwise.
    """
    fed = [sorted(spec.name for spec in io.inputs(model)) for model in (student, teacher)]
    if fed[0] != fed[1]:
        what = f"takes {', '.join(fed[0])}, and its teacher {', '.join(fed[1])}"
        raise ModelError(what, where=student.graph.name, hint="give a student with inputs of the same names")
    mine, theirs = list(heads(student)), list(heads(teacher))
    if len(mine) != len(theirs):
        what = f"has {len(mine)} float outputs, and its teacher {len(theirs)}"
        raise ModelError(what, where=student.graph.name, hint="give a student with the same outputs")
    return dict(zip(mine, theirs, strict=True))


def heads(model: ir.Model) -> dict[str, bool]:
    """Names of the float outputs, in front of Softmax and Sigmoid; and whether they may be scores of classes."""
    found = {}
    for output in filter(query.is_float, model.graph.outputs):
        tail = saturating_tail(output)
        head = tail[-1].inputs[0] if tail else output
        found[str(head.name)] = all(node.op_type != "Sigmoid" for node in tail)  # type: ignore[union-attr]
    return found


def _teacher(model: ir.Model, names: Sequence[str]) -> InferenceSession:
    return run.session(tap.expose(model, names), threads=1)


def largest_bytes(model: ir.Model) -> int:
    """Of one sample's tensors."""
    sizes = [query.sizes(value, dynamic=1) or () for value in query.activations(model)]
    return 4 * max([int(np.prod(size)) for size in sizes], default=1)


def _is_pruned(weight: Tensor) -> bool:
    return weight.ndim > 1 and PRUNED <= float((weight == 0).float().mean()) < 1


def _units(weight: Tensor) -> Tensor:
    """Root mean square of each output channel, the first axis; of the whole where there is one axis."""
    whole = weight.square().mean().sqrt()
    whole = whole if whole > 0 else whole + SMALLEST_UNIT
    if weight.ndim < 2:
        return whole
    own = weight.flatten(1).square().mean(1).sqrt().clamp_min(SMALLEST_UNIT * float(whole))
    return own.reshape(-1, *[1] * (weight.ndim - 1))
