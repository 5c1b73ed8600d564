"""`Features`: a student of another architecture is shown how its teacher sees, not just what it answers.

A student's tensor has channels of its own, so that an *adapter*, a matrix that learns with the student and is thrown
away in the end, makes the teacher's channels of them (Romero et al. 2015, FitNets, arXiv 1412.6550):

    loss += mean over pairs of |A x - t|² / |t|²

It begins with the best there is for the untrained student, by least squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir

from toolchain.core.errors import InputError
from toolchain.graph import query

if TYPE_CHECKING:
    from torch import Tensor

Wanted = Literal["stages"] | Mapping[str, str]
"""Which tensors are compared: a student's by name with a teacher's; or the last ones of every resolution."""
RIDGE = 1e-2
"""Of the student's energy; few samples leave a fit to many channels undetermined."""


def feature_pairs(student: ir.Model, teacher: ir.Model, wanted: Wanted | None) -> dict[str, str]:
    """Student's tensor to teacher's.

    Raises:
        InputError: a tensor is not there, or there are no stages, or the two differ in more than one axis.
    """
    if wanted is None:
        return {}
    here, there = _inner(student), _inner(teacher)
    if wanted == "stages":
        ends = [{size[2:]: name for name, size in found.items() if len(size) == 4} for found in (here, there)]
        pairs = {ends[0][size]: name for size, name in ends[1].items() if size in ends[0] and size != (1, 1)}
        if not pairs:
            hint = 'name them, such as features = { "student\'s" = "teacher\'s" }, or leave `features` out'
            raise InputError("student and teacher have no images of the same size inside", where="features", hint=hint)
        return pairs
    for mine, theirs in wanted.items():
        for name, found, whose in ((mine, here, "student"), (theirs, there, "teacher")):
            if name not in found:
                hint = f"it has {', '.join(list(found)[-8:])}, among others"
                raise InputError(f"the {whose} has no float tensor {name!r} inside", where="features", hint=hint)
        if _channel_axis(here[mine][1:], there[theirs][1:]) is None:
            sizes = f"{mine} is {list(here[mine])}, {theirs} {list(there[theirs])}"
            raise InputError(sizes, where="features", hint="pair tensors that differ in one axis, the channels'")
    return dict(wanted)


class Features:
    """Adapters, one a pair.

    Args:
        here: the student's tensors by name, float32 [samples, ...], before it learns.
        there: the teacher's, by the student's names.

    moves: what is trained, in units of the adapter's root mean square.
    """

    def __init__(self, here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> None:
        import torch

        self._axes: dict[str, int] = {}
        self._start: dict[str, Tensor] = {}
        self.moves: dict[str, Tensor] = {}
        for name, mine in here.items():
            axis = _channel_axis(mine.shape[1:], there[name].shape[1:])
            if axis is None:
                raise ValueError(f"{name}: {tuple(mine.shape)} and {tuple(there[name].shape)}")
            self._axes[name] = axis + 1
            x, t = (value.movedim(axis + 1, -1).flatten(0, -2).double() for value in (mine, there[name]))
            gram = x.T @ x
            ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype)
            self._start[name] = torch.linalg.solve(gram + ridge, x.T @ t).float()
            self.moves[name] = torch.zeros_like(self._start[name], requires_grad=True)

    def adapted(self, name: str, tensor: Tensor) -> Tensor:
        """In the teacher's channels; as it is where it has no adapter."""
        if name not in self.moves:
            return tensor
        start = self._start[name]
        matrix = start + start.square().mean().sqrt() * self.moves[name]
        return (tensor.movedim(self._axes[name], -1) @ matrix).movedim(-1, self._axes[name])


def _inner(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Sizes of the float tensors that are computed, in order, outputs left out; an open axis counts one."""
    found = {}
    for value in query.activations(model):
        size = query.sizes(value, dynamic=1)
        if query.is_float(value) and size and value.producer() is not None and not value.is_graph_output():
            found[str(value.name)] = tuple(size)
    return found


def _channel_axis(mine: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Of a sample's tensors, the one axis that differs; where none does, where convolutions (else products) have it."""
    if len(mine) != len(theirs) or not mine:
        return None
    differing = [axis for axis, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b]
    if len(differing) > 1:
        return None
    return differing[0] if differing else 0 if len(mine) > 2 else len(mine) - 1
