"""Pairs of tensors of a student and its teacher that are compared, and the session that computes the teacher's.

Three kinds of tensors are compared:

outputs         float outputs, taken in front of a final Softmax or Sigmoid
inner tensors   of a student that was cut from its teacher: the tensors right behind a change
features        of a student with another architecture: pairs given by the user
                (:mod:`toolchain.training.engine.feature_adapters`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.core.errors import ModelError
from toolchain.evaluation.fidelity import saturating_tail
from toolchain.graph import edit, io, query, run, tap
from toolchain.training.engine.feature_adapters import FeatureChoice, feature_pairs
from toolchain.training.engine.samples import Example, tensor


@dataclass(frozen=True)
class ComparedTensors:
    """Tensors of a student, each with the teacher's tensor that it is compared with.

    Attributes:
        names: all tensors of the student: outputs first, then inner tensors, then features.
        teacher_names: the teacher's tensor by the student's name.
        outputs: those of `names` that are outputs.
        class_scores: the outputs that look like scores of classes, [N, classes].
        features: those of `names` that are compared through adapters, where shapes may differ.
    """

    names: tuple[str, ...]
    teacher_names: Mapping[str, str]
    outputs: tuple[str, ...]
    class_scores: frozenset[str]
    features: tuple[str, ...]


def candidate_tensors(
    student: ir.Model, teacher: ir.Model, *, inner: bool, features: FeatureChoice | None
) -> ComparedTensors:
    """Choose what can be compared by name; shapes are checked later, by :func:`with_equal_shapes`.

    Args:
        student: the model to train.
        teacher: the model it is compared with.
        inner: compare inner tensors as well.
        features: see :func:`toolchain.training.engine.feature_adapters.feature_pairs`.

    Raises:
        ModelError: inputs or the number of outputs differ.
        InputError: a feature cannot be compared.
    """
    outputs, output_pairs = output_scores(student), paired_outputs(student, teacher)
    between = [name for name in changed_tensors(student, teacher) if name not in outputs] if inner else []
    pairs = feature_pairs(student, teacher, features)
    return ComparedTensors(
        names=tuple(dict.fromkeys([*outputs, *between, *pairs])),
        teacher_names=output_pairs | {name: name for name in between} | pairs,
        outputs=tuple(outputs),
        class_scores=frozenset(name for name, scores in outputs.items() if scores),
        features=tuple(pairs),
    )


def with_equal_shapes(
    candidates: ComparedTensors, student: Mapping[str, Sequence[int]], teacher: Mapping[str, Sequence[int]], where: str
) -> ComparedTensors:
    """Keep the tensors that have the same shape in student and teacher, and every feature.

    Args:
        candidates: the result of :func:`candidate_tensors`.
        student: shapes of the student's tensors for one sample, by name.
        teacher: shapes of the teacher's tensors for one sample, by the student's names.
        where: name of the student, for the error.

    Raises:
        ModelError: no output is left.
    """
    names = [n for n in candidates.names if n in candidates.features or tuple(student[n]) == tuple(teacher[n])]
    outputs = [name for name in candidates.outputs if name in names]
    if not outputs:
        what = "has no float output of the shape of its teacher's"
        raise ModelError(what, where=where, hint="give the model it was pruned from")
    scores = [n for n in outputs if n in candidates.class_scores and len(student[n]) == 2 and student[n][1] > 1]
    return ComparedTensors(
        tuple(names), candidates.teacher_names, tuple(outputs), frozenset(scores), candidates.features
    )


class Teacher:
    """The teacher in onnxruntime, one thread: a session that gives every compared tensor.

    Args:
        model: the teacher.
        teacher_names: tensors to compute, the teacher's name by the student's.
    """

    def __init__(self, model: ir.Model, teacher_names: Mapping[str, str]) -> None:
        self._names = dict(teacher_names)
        self._session = run.session(tap.expose(model, dict.fromkeys(teacher_names.values())), threads=1)

    def __call__(self, example: Example, names: Sequence[str]) -> Example:
        """Compute tensors by the student's names, float32, for an example or a batch."""
        feed = {name: value.numpy() for name, value in example.items()}
        outputs = self._session.run([self._names[name] for name in names], feed)
        return dict(zip(names, map(tensor, outputs), strict=True))


def changed_tensors(student: ir.Model, teacher: ir.Model) -> list[str]:
    """List the student's float tensors right behind a change that the teacher has with the same name and shape."""
    of_teacher = {value.name: value for value in query.activations(teacher)}
    same = {
        value.name
        for value in query.activations(student)
        if query.is_float(value)
        and value.name in of_teacher
        and query.sizes(value) == query.sizes(of_teacher[value.name])
    }
    changed = []
    for node in student.graph:
        for output in node.outputs:
            original = of_teacher[output.name].producer() if output.name in same else None
            if original is None:
                continue
            reads, read = ([v.name for v in n.inputs if v is not None] for n in (node, original))
            computed = [v.name for v in node.inputs if v is not None and query.is_float(v) and not v.is_initializer()]
            if reads != read or any(name not in same for name in computed):
                changed.append(str(output.name))
    return changed


def paired_outputs(student: ir.Model, teacher: ir.Model) -> dict[str, str]:
    """Pair the student's float outputs with the teacher's, in order.

    Raises:
        ModelError: the two have inputs of other names, or another number of float outputs.
    """
    inputs = [sorted(spec.name for spec in io.inputs(model)) for model in (student, teacher)]
    if inputs[0] != inputs[1]:
        what = f"takes {', '.join(inputs[0])}, and its teacher {', '.join(inputs[1])}"
        raise ModelError(what, where=student.graph.name, hint="give a student with inputs of the same names")
    of_student, of_teacher = list(output_scores(student)), list(output_scores(teacher))
    if len(of_student) != len(of_teacher):
        what = f"has {len(of_student)} float outputs, and its teacher {len(of_teacher)}"
        raise ModelError(what, where=student.graph.name, hint="give a student with the same outputs")
    return dict(zip(of_student, of_teacher, strict=True))


def as_teacher_names(student: ir.Model, teacher: ir.Model) -> ir.Model:
    """Clone a student of another architecture, with the teacher's names for its outputs, in order.

    Nodes get names that the teacher has not, since a node of the same name means something else there.
    """
    clone = student.clone()
    names = edit.Names(clone.graph)
    wanted = [str(value.name) for value in teacher.graph.outputs]
    for value in query.activations(clone):
        if value.name in wanted and not value.is_graph_input():
            value.name = names.fresh(f"{value.name}_of_student")
    for value, name in zip(clone.graph.outputs, wanted, strict=True):
        value.name = name
    for node in clone.graph:
        node.name = names.fresh(f"student/{query.label(node)}")
    return clone


def output_scores(model: ir.Model) -> dict[str, bool]:
    """Name the float outputs, in front of Softmax and Sigmoid; True for those that may be scores of classes."""
    outputs = {}
    for output in filter(query.is_float, model.graph.outputs):
        tail = saturating_tail(output)
        compared = tail[-1].inputs[0] if tail else output
        outputs[str(compared.name)] = all(node.op_type != "Sigmoid" for node in tail)  # type: ignore[union-attr]
    return outputs


def largest_bytes(model: ir.Model) -> int:
    """Compute the size in bytes of the largest tensor for one sample, in float32; a dynamic axis counts as 1."""
    sizes = [query.sizes(value, dynamic=1) or () for value in query.activations(model)]
    return 4 * max([int(np.prod(size)) for size in sizes], default=1)
