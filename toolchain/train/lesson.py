"""What a student learns from a teacher: the tensors compared, the samples, the loss and its gradients.

A tensor's error is its squared error over its energy, so that each has equal say; outputs that look like scores of
classes are also compared as distributions (Kullback-Leibler):

    loss = mean over outputs of (error + divergence) + mean over inner tensors of error

Batch normalization is folded in our graphs, and the weights of two channels may differ a thousandfold, while Adam's
steps are of one size. So weights move in units of their own: w = w₀ + r d, where r is the root mean square of the
channel and d is what is trained. It is the same as a learning rate for every channel.

A batch is cut into small parts, each computed by one thread from end to end, and the gradients are added in order: the
result does not depend on the number of threads, small parts stay in the cache, and no thread waits for another within
an operator, which on a busy machine takes most of the time.
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

from toolchain.data import CalibrationData
from toolchain.errors import ModelError
from toolchain.graph import edit, io, query, run
from toolchain.tensors import Array
from toolchain.train.augment import augmented, is_image
from toolchain.train.torch_graph import TorchGraph

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from torch import Tensor

SATURATING = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
BATCH, PART = 16, 4
KEPT_BYTES = 1 << 29
"""Samples held in memory."""
BEST_DB = 100.0
SMALLEST_UNIT = 0.1
"""Of the tensor's root mean square: a channel of zeros can move as well."""

Example = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Exam:
    """Of held-out samples, outputs alone: the mean loss, and the fidelity in dB as :mod:`toolchain.fidelity` has it.

    The loss decides what is better: of two models with one fidelity to the scores, the one with larger scores mostly
    gives the right classes.
    """

    loss: float
    fidelity_db: float


class Lesson:
    """A student under training.

    moves: d by parameter name, see the module; what an optimizer changes.

    Raises:
        ModelError: an operator cannot be trained through, the student has no weights, or no float output that the
            teacher has with the same shape.
    """

    moves: dict[str, Tensor]

    def __init__(self, student: ir.Model, teacher: ir.Model, data: CalibrationData) -> None:
        import torch

        self._graph = TorchGraph(student)
        if not self._graph.parameters:
            raise ModelError(
                "has no weights that could be trained", where=student.graph.name, hint="leave training out"
            )
        self._start = {name: weight.detach().clone() for name, weight in self._graph.parameters.items()}
        self._units = {name: _units(weight) for name, weight in self._start.items()}
        self.moves = {name: torch.zeros_like(weight, requires_grad=True) for name, weight in self._start.items()}
        examples = _examples(data)
        first = {name: tensor.numpy() for name, tensor in examples[0].items()}
        self._images = is_image(first)
        heads = _heads(student)
        inner = [name for name in matched(student, teacher) if name not in heads]
        self._teacher, self._names = _teacher(teacher, [*heads, *inner]), [*heads, *inner]
        shapes = {name: tensor.shape for name, tensor in self._goals(examples[0]).items()}
        with torch.no_grad():
            here = {name: tensor.shape for name, tensor in self._graph(examples[0], self._names).items()}
        self._names = [name for name in self._names if shapes[name] == here[name]]
        self._heads = [name for name in heads if name in self._names]
        if not self._heads:
            what = "has no float output of the shape that the teacher's has"
            raise ModelError(what, where=student.graph.name, hint="give the model it was pruned from")
        self._scores = {n for n in self._heads if len(here[n]) == 2 and here[n][1] > 1 and heads[n]}
        self._examples = examples
        self._part = PART if self._stackable(student, teacher) else 1

    def batch(self, rng: np.random.Generator) -> list[Example]:
        """The parts of a random batch."""
        return [self._joined([self._drawn(rng) for _ in range(self._part)]) for _ in range(BATCH // self._part)]

    def gradients(self, parts: Sequence[Example], pool: Executor) -> float:
        """Set the gradients of `moves`, the mean over the parts; returns the mean loss."""
        import torch

        found = list(pool.map(self._part_gradients, parts))
        for name, move in self.moves.items():
            shares = [share for _, gradients in found if (share := gradients[name]) is not None]
            move.grad = functools.reduce(torch.add, shares) / len(parts) if shares else None
        return float(np.mean([loss for loss, _ in found]))

    def examine(self, data: CalibrationData, pool: Executor) -> Exam:
        """The student as it is now, one held-out sample at a time."""
        examples = [{name: _tensor(array) for name, array in feed.items()} for feed in data]
        losses, decibels = zip(*pool.map(self._examined, examples), strict=True)
        return Exam(float(np.mean(losses)), float(np.mean(decibels)))

    def state(self) -> dict[str, Tensor]:
        """A copy of `moves`, for :meth:`written`."""
        return {name: move.detach().clone() for name, move in self.moves.items()}

    def written(self, state: Mapping[str, Tensor]) -> ir.Model:
        """The student with the weights of a state."""
        import torch

        with torch.no_grad():
            for name, weight in self._graph.parameters.items():
                weight.copy_(self._start[name] + self._units[name] * state[name])
        return self._graph.write_back()

    def _drawn(self, rng: np.random.Generator) -> Example:
        if self._images:
            return augmented(self._examples, rng)
        return self._examples[int(rng.integers(len(self._examples)))]

    def _joined(self, examples: Sequence[Example]) -> Example:
        import torch

        return {name: torch.cat([example[name] for example in examples]) for name in examples[0]}

    def _weights(self) -> dict[str, Tensor]:
        return {name: self._start[name] + self._units[name] * move for name, move in self.moves.items()}

    def _goals(self, example: Example) -> dict[str, Tensor]:
        feed = {name: tensor.numpy() for name, tensor in example.items()}
        return dict(zip(self._names, map(_tensor, self._teacher.run(self._names, feed)), strict=True))

    def _part_gradients(self, example: Example) -> tuple[float, dict[str, Tensor | None]]:
        import torch

        loss = self._loss(self._graph({**example, **self._weights()}, self._names), self._goals(example))
        found = torch.autograd.grad(loss, list(self.moves.values()), allow_unused=True)
        return float(loss.detach()), dict(zip(self.moves, found, strict=True))

    def _loss(self, got: Mapping[str, Tensor], goals: Mapping[str, Tensor]) -> Tensor:
        """Of the outputs, and of as many inner tensors as there are."""
        inner = [name for name in got if name not in self._heads]
        losses = [_error(got[name], goals[name]) / len(self._heads) for name in self._heads]
        losses += [_divergence(got[name], goals[name]) / len(self._heads) for name in sorted(self._scores)]
        losses += [_error(got[name], goals[name]) / len(inner) for name in inner]
        return functools.reduce(operator.add, losses)

    def _examined(self, example: Example) -> tuple[float, float]:
        """Loss and decibels of one sample."""
        import torch

        with torch.no_grad():
            got, goals = self._graph({**example, **self._weights()}, self._heads), self._goals(example)
            error = float(np.mean([float(_error(got[name], goals[name])) for name in self._heads]))
            return float(self._loss(got, goals)), min(BEST_DB, -10 * float(np.log10(max(error, 1e-10))))

    def _stackable(self, student: ir.Model, teacher: ir.Model) -> bool:
        """Whether two samples at once give what each gives alone."""
        import torch

        specs = [*io.inputs(student), *io.inputs(teacher)]
        first, last = self._examples[0], self._examples[-1]
        if any(not spec.dims or isinstance(spec.dims[0], int) for spec in specs):
            return False
        if len({tuple(tensor.shape for tensor in example.values()) for example in self._examples}) > 1:
            return False
        student_of = functools.partial(self._graph, wanted=self._names)
        with torch.no_grad():
            try:
                both = student_of(self._joined([first, last]))
            except RuntimeError:  # a Reshape to a constant shape
                return False
            alone = self._joined([student_of(first), student_of(last)])
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


def _heads(model: ir.Model) -> dict[str, bool]:
    """Names of the float outputs, in front of Softmax and Sigmoid; and whether they may be scores of classes."""
    found = {}
    for output in filter(query.is_float, model.graph.outputs):
        scores, node = True, output.producer()
        while node is not None and node.op_type in SATURATING and node.inputs[0] is not None:
            scores &= node.op_type != "Sigmoid"
            output = node.inputs[0]
            node = output.producer()
        found[str(output.name)] = scores
    return found


def _teacher(model: ir.Model, names: Sequence[str]) -> InferenceSession:
    clone = model.clone()
    values = {value.name: value for value in query.activations(clone)}
    edit.keep_outputs(clone, [values[name] for name in names])
    return run.session(clone, threads=1)


def _examples(data: CalibrationData) -> list[Example]:
    size = max(sum(array.nbytes for array in next(iter(data)).values()), 1)
    kept = data.take(max(1, min(len(data), KEPT_BYTES // size)))
    return [{name: _tensor(array) for name, array in feed.items()} for feed in kept]


def _tensor(array: Array) -> Tensor:
    import torch

    return torch.from_numpy(np.array(array))


def _units(weight: Tensor) -> Tensor:
    """Root mean square of each output channel, the first axis; of the whole where there is one axis."""
    whole = weight.square().mean().sqrt()
    whole = whole if whole > 0 else whole + SMALLEST_UNIT
    if weight.ndim < 2:
        return whole
    own = weight.flatten(1).square().mean(1).sqrt().clamp_min(SMALLEST_UNIT * float(whole))
    return own.reshape(-1, *[1] * (weight.ndim - 1))


def _error(got: Tensor, goal: Tensor) -> Tensor:
    return (got - goal).square().sum() / goal.square().sum().clamp_min(1e-12)


def _divergence(got: Tensor, goal: Tensor) -> Tensor:
    here, there = got.log_softmax(-1), goal.log_softmax(-1)
    return (there.exp() * (there - here)).sum(-1).mean()
