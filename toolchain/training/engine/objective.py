"""The training objective: a student, the tensors compared with its teacher, the loss and its gradients.

    loss = a · labelled + (1 - a) · (mean over outputs of error + divergence) + mean over inner tensors of error
           + penalty of the technique

The terms are defined in :mod:`toolchain.training.engine.losses`; a is 0 where there are no labels. Outputs that look
like scores of classes are also compared as distributions. Inner tensors and features are chosen in
:mod:`toolchain.training.engine.comparison`; weights are trained in units of their own size
(:mod:`toolchain.training.engine.scaled_weights`).

A batch is divided into parts. One thread computes a part from end to end, and gradients are added in the order of the
parts. So the result does not depend on the number of threads, and a small part stays in the cache. No thread waits for
another inside an operator; on a busy machine, that would take most of the time.

Batch normalizations keep their statistics, and most are folded into a convolution before training. Where they use the
statistics of the batch (`LossConfig.batch_statistics`), a batch is one part.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from toolchain.data.calibration import LABELS, CalibrationData
from toolchain.evaluation.fidelity import power_to_db
from toolchain.formats.findings import Evaluation
from toolchain.training.engine import losses
from toolchain.training.engine.comparison import ComparedTensors, Teacher
from toolchain.training.engine.feature_adapters import FeatureAdapters, FeatureChoice
from toolchain.training.engine.samples import Example, Samples, joined, split_labels
from toolchain.training.engine.scaled_weights import ScaledWeights
from toolchain.training.engine.technique import Technique
from toolchain.training.engine.torch_graph import TorchGraph, Transforms

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_BATCH = 16
"""Default number of samples per step."""


@dataclass(frozen=True)
class LossConfig:
    """Composition of the loss.

    Attributes:
        labels: share of the labels in the loss, where there are labels.
        temperature: T of the divergence.
        inner: compare inner tensors of a student that was cut from its teacher.
        batch: samples per step.
        augment: change images at random; see :class:`toolchain.training.engine.samples.Samples`.
        batch_statistics: batch normalizations use the statistics of the batch during training.
        features: tensors of another architecture to compare; see :mod:`toolchain.training.engine.feature_adapters`.
    """

    labels: float = 0.5
    temperature: float = 1.0
    inner: bool = True
    batch: int = DEFAULT_BATCH
    augment: bool | None = None
    batch_statistics: bool = False
    features: FeatureChoice | None = None


@dataclass(frozen=True)
class _Part:
    """A part of a batch.

    Attributes:
        example: inputs of its samples.
        goals: the teacher's tensors for them; None where they are not known yet.
        labels: their labels; None where there are none.
    """

    example: Example
    goals: Example | None
    labels: Tensor | None


@dataclass(frozen=True)
class Objective:
    """A student in training; :func:`toolchain.training.engine.objective_builder.build_objective` makes it.

    Attributes:
        graph: the student in torch.
        technique: masks, codes or rounds its weights and tensors.
        config: composition of the loss.
        seed: decides which samples a step draws.
        samples: examples to train on.
        weights: the trained weights, in their own units.
        compared: the tensors in the loss.
        teacher: computes the goals of the compared tensors.
        part: samples that one thread computes at once; 1 where they cannot be stacked.
        goals: the teacher's tensors by sample number, filled on demand; None where they would not fit into memory or
            samples change from step to step.
        adapters: of the features, trained with the student.
    """

    graph: TorchGraph
    technique: Technique
    config: LossConfig
    seed: int
    samples: Samples
    weights: ScaledWeights
    compared: ComparedTensors
    teacher: Teacher
    part: int
    goals: dict[int, Example] | None = field(repr=False)
    adapters: FeatureAdapters

    def trainable(self) -> dict[str, Tensor]:
        """Collect every leaf tensor that is trained: of the weights, the technique and the adapters, by name."""
        adapters = {f"adapter of {name}": move for name, move in self.adapters.moves.items()}
        return {**self.weights.moves, **self.technique.parameters(), **adapters}

    def gradients(self, step: int, pool: Executor) -> float:
        """Set the gradients of every trained tensor to the mean over a step's batch.

        Returns:
            The mean loss of the batch.
        """
        import torch

        chosen = self.samples.drawn(step, self.config.batch, self.seed)
        starts = range(0, len(chosen) - len(chosen) % self.part or 1, self.part)
        leaves = self.trainable()
        transforms = self.technique.transforms()
        parts = [self._batch_part(step, start, chosen[start : start + self.part]) for start in starts]
        self.graph.training = self.config.batch_statistics and self.part > 1
        results = list(pool.map(lambda part: self._part_gradients(part, list(leaves.values()), transforms), parts))
        self.graph.training = False
        for number, leaf in enumerate(leaves.values()):
            shares = [share for _, gradients in results if (share := gradients[number]) is not None]
            leaf.grad = functools.reduce(torch.add, shares) / len(parts) if shares else None
        return float(np.mean([loss for loss, _ in results]))

    def finish_step(self, rate: float, share: float) -> None:
        """Apply the technique's regularizer and schedule, after a step of the optimizer.

        Args:
            rate: learning rate of the step.
            share: fraction of the training that is over, 0 to 1.
        """
        import torch

        with torch.no_grad():
            for name, weight in self.technique.proximal(self.weights.dense(), rate).items():
                self.weights.assign(name, weight)
            self.technique.advance(self.weights.dense(), share)

    def evaluate(self, data: CalibrationData, pool: Executor) -> Evaluation:
        """Evaluate the student as it is now on held-out samples; each sample counts equally."""
        examples, labels = split_labels(list(data))
        transforms = self.technique.transforms()
        alike = len({tuple(value.shape for value in example.values()) for example in examples}) == 1
        size = self.part if alike else 1
        starts = range(0, len(examples), size)
        parts = [(examples[i : i + size], None if labels is None else labels[i : i + size]) for i in starts]
        by_part = pool.map(lambda part: self._evaluate_part(part[0], part[1], transforms), parts)
        sample_losses, fidelities, right = zip(*[row for rows in by_part for row in rows], strict=True)
        hits = [hit for hit in right if hit is not None]
        accuracy = float(np.mean(hits)) if hits else None
        return Evaluation(loss=float(np.mean(sample_losses)), fidelity_db=float(np.mean(fidelities)), accuracy=accuracy)

    def to_model(self) -> ir.Model:
        """Write the dense weights as they are now into a clone of the student."""
        import torch

        with torch.no_grad():
            dense = self.weights.dense()
            for name, weight in self.graph.parameters.items():
                weight.copy_(dense[name])
        return self.graph.write_back()

    def _batch_part(self, step: int, start: int, chosen: Sequence[int]) -> _Part:
        samples = self.samples
        if samples.augment:
            examples = [samples.changed(step, start + i, self.seed) for i in range(len(chosen))]
            return _Part(joined(examples), None, None)
        goals = None if self.goals is None else joined([self._known_goals(self.goals, i) for i in chosen])
        labels = None if samples.labels is None else joined([{LABELS: samples.labels[i]} for i in chosen])[LABELS]
        return _Part(joined([samples.examples[i] for i in chosen]), goals, labels)

    def _known_goals(self, known: dict[int, Example], number: int) -> Example:
        if number not in known:
            known[number] = self.teacher(self.samples.examples[number], self.compared.names)
        return known[number]

    def _part_gradients(
        self, part: _Part, leaves: Sequence[Tensor], transforms: Transforms
    ) -> tuple[float, tuple[Tensor | None, ...]]:
        import torch

        goals = part.goals or self.teacher(part.example, self.compared.names)
        got = self.graph({**part.example, **self.weights.dense()}, self.compared.names, transforms)
        loss = self._loss(got, goals, part.labels)
        return float(loss.detach()), torch.autograd.grad(loss, leaves, allow_unused=True)

    def _loss(self, got: Mapping[str, Tensor], goals: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        """Compute the loss of the outputs and of the inner tensors in `got`; see the module for the formula."""
        outputs = self.compared.outputs
        inner = [name for name in got if name not in outputs]
        share = 0.0 if labels is None else self.config.labels
        by_output = (1 - share) / len(outputs)
        terms = []
        if share < 1:
            terms = [by_output * losses.error(got[name], goals[name]) for name in outputs]
            temperature = self.config.temperature
            scores = sorted(self.compared.class_scores)
            terms += [by_output * losses.divergence(got[n], goals[n], temperature) for n in scores]
        if share > 0:
            assert labels is not None
            terms.append(share * losses.labelled(got[outputs[0]], labels))
        terms += [losses.error(self.adapters.adapted(name, got[name]), goals[name]) / len(inner) for name in inner]
        return functools.reduce(operator.add, terms)

    def _evaluate_part(
        self, examples: Sequence[Example], labels: Sequence[Tensor] | None, transforms: Transforms
    ) -> list[tuple[float, float, bool | None]]:
        """Compute loss, fidelity in dB and whether the class is right, for each sample of a part."""
        import torch

        outputs = self.compared.outputs
        example, rows = joined(examples), []
        with torch.no_grad():
            got = self.graph({**example, **self.weights.dense()}, outputs, transforms)
            goals = self.teacher(example, self.compared.names)
            for number in range(len(examples)):
                one = slice(number, number + 1) if len(examples) > 1 else slice(None)
                of_student = {name: got[name][one] for name in outputs}
                of_teacher = {name: goals[name][one] for name in outputs}
                rows.append(self._evaluate_sample(of_student, of_teacher, None if labels is None else labels[number]))
        return rows

    def _evaluate_sample(
        self, got: Mapping[str, Tensor], goals: Mapping[str, Tensor], label: Tensor | None
    ) -> tuple[float, float, bool | None]:
        error = float(np.mean([float(losses.error(got[name], goals[name])) for name in self.compared.outputs]))
        first, right = self.compared.outputs[0], None
        if label is not None and not label.is_floating_point():
            right = bool((got[first].argmax(-1).reshape(-1) == label.reshape(-1)).all())
        elif label is None and first in self.compared.class_scores:
            right = bool((got[first].argmax(-1) == goals[first].argmax(-1)).all())
        return float(self._loss(got, goals, label)), power_to_db(error), right
