"""Feature distillation: inner tensors of a student with another architecture are compared with its teacher's.

The student's tensor has other channels than the teacher's. An *adapter*, a matrix A that is trained with the student
and dropped at the end, maps one to the other (FitNets, Romero et al. 2015, arXiv 1412.6550):

    loss += mean over pairs of |A x - t|² / |t|²

The adapter starts as the least-squares fit for the untrained student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir

from toolchain.core.errors import InputError
from toolchain.graph import query

if TYPE_CHECKING:
    from torch import Tensor

FeatureChoice = Literal["stages"] | Mapping[str, str]
"""Tensors to compare: the teacher's tensor by the student's, or ``stages``, the last tensor of every resolution."""
ADAPTER_RIDGE = 1e-2
"""Ridge of the first fit, relative to the mean energy of the student's channels: few samples do not determine it."""


def feature_pairs(student: ir.Model, teacher: ir.Model, choice: FeatureChoice | None) -> dict[str, str]:
    """Pair the student's tensors with the teacher's, by name; empty for None.

    Raises:
        InputError: a tensor does not exist, there are no stages, or two tensors differ in more than one axis.
    """
    if choice is None:
        return {}
    of_student, of_teacher = _inner_sizes(student), _inner_sizes(teacher)
    if choice == "stages":
        ends = [
            {size[2:]: name for name, size in sizes.items() if len(size) == 4} for sizes in (of_student, of_teacher)
        ]
        pairs = {ends[0][size]: name for size, name in ends[1].items() if size in ends[0] and size != (1, 1)}
        if not pairs:
            hint = 'name them, such as features = { "student\'s" = "teacher\'s" }, or leave `features` out'
            what = "student and teacher have no inner images of the same size"
            raise InputError(what, where="features", hint=hint)
        return pairs
    for student_name, teacher_name in choice.items():
        for name, sizes, owner in ((student_name, of_student, "student"), (teacher_name, of_teacher, "teacher")):
            if name not in sizes:
                hint = f"it has {', '.join(list(sizes)[-8:])}, among others"
                raise InputError(f"the {owner} has no inner float tensor {name!r}", where="features", hint=hint)
        ours, theirs = of_student[student_name], of_teacher[teacher_name]
        if _channel_axis(ours[1:], theirs[1:]) is None:
            what = f"{student_name!r} has shape {list(ours)}, and {teacher_name!r} {list(theirs)}"
            raise InputError(what, where="features", hint="pair tensors that differ only in the number of channels")
    return dict(choice)


class FeatureAdapters:
    """One adapter for each pair of tensors.

    Args:
        student: the student's tensors by name, float32 [samples, ...], before training.
        teacher: the teacher's tensors, by the student's names.

    Attributes:
        moves: the trained leaf tensors, in units of the root mean square of the first adapter.
    """

    def __init__(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
        import torch

        self._axes: dict[str, int] = {}
        self._start: dict[str, Tensor] = {}
        self.moves: dict[str, Tensor] = {}
        for name, ours in student.items():
            axis = _channel_axis(ours.shape[1:], teacher[name].shape[1:])
            if axis is None:
                raise ValueError(f"{name}: {tuple(ours.shape)} and {tuple(teacher[name].shape)}")
            self._axes[name] = axis + 1
            x, t = (value.movedim(axis + 1, -1).flatten(0, -2).double() for value in (ours, teacher[name]))
            gram = x.T @ x
            ridge = ADAPTER_RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype)
            self._start[name] = torch.linalg.solve(gram + ridge, x.T @ t).float()
            self.moves[name] = torch.zeros_like(self._start[name], requires_grad=True)

    def adapted(self, name: str, tensor: Tensor) -> Tensor:
        """Map a student's tensor to the teacher's channels; return it unchanged where it has no adapter."""
        if name not in self.moves:
            return tensor
        start = self._start[name]
        matrix = start + start.square().mean().sqrt() * self.moves[name]
        return (tensor.movedim(self._axes[name], -1) @ matrix).movedim(-1, self._axes[name])


def _inner_sizes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Return sizes of the computed float tensors in graph order, without outputs; a dynamic axis counts as 1."""
    inner = {}
    for value in query.activations(model):
        size = query.sizes(value, dynamic=1)
        if query.is_float(value) and size and value.producer() is not None and not value.is_graph_output():
            inner[str(value.name)] = tuple(size)
    return inner


def _channel_axis(student: Sequence[int], teacher: Sequence[int]) -> int | None:
    """Find the one axis in which two tensors of a sample differ; None where several do.

    Tensors of equal size have their channels first (images) or last (others).
    """
    if len(student) != len(teacher) or not student:
        return None
    differing = [axis for axis, (a, b) in enumerate(zip(student, teacher, strict=True)) if a != b]
    if len(differing) > 1:
        return None
    return differing[0] if differing else 0 if len(student) > 2 else len(student) - 1
