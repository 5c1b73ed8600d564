"""Adapters: fitted like least squares, and what a student of another architecture sees gets nearer to its teacher's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_models import model, weights
from test_distil import net, samples

from toolchain.errors import InputError

torch = pytest.importorskip("torch")

from toolchain.train.features import RIDGE, Features, feature_pairs  # noqa: E402
from toolchain.train.fit import Schedule, fit  # noqa: E402
from toolchain.train.lesson import Aims, Lesson  # noqa: E402

OTHER = """
    a0 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, v1)
    a1 = Relu (a0)
    a2 = Resize <mode = "nearest"> (a1, , scales)
    a3 = Conv <pads = [1, 1, 1, 1]> (a2, v2)
    a4 = Relu (a3)
    a5 = GlobalAveragePool (a4)
    a6 = Flatten (a5)
    y = Gemm (a6, v3)
"""


def other():
    """A student with five channels of 16 x 16 and three of 32 x 32, where the teacher has eight and four of 32 x 32."""
    arrays = weights(v1=(5, 3, 3, 3), v2=(3, 5, 3, 3), v3=(3, 5))
    arrays["scales"] = np.array([1, 1, 2, 2], np.float32)
    return model(OTHER, "float[n,3,32,32] x", "float[n,5] y", arrays)


def seen(lesson, data):
    """Relative errors of what the student sees, through its adapters."""
    mine, theirs = "a4", "s"
    found = []
    with torch.no_grad():
        for feed in data:
            example = {"x": torch.from_numpy(feed["x"])}
            got = lesson.graph({**example, **lesson.weights()}, [mine])[mine]
            (goal,) = lesson._teacher.run([theirs], {"x": feed["x"]})
            found.append(float((lesson.features.adapted(mine, got) - torch.from_numpy(goal)).square().sum()
                               / np.square(goal).sum()))  # fmt: skip
    return float(np.mean(found))


@pytest.mark.parametrize("wanted", ["stages", {"a4": "s"}])
def test_what_a_student_sees_gets_nearer(wanted):
    """On samples it has not been trained on; without features it learns the answers alone."""
    errors = {}
    for name, asked in (("features", wanted), ("none", None)):
        aims = Aims(inner=False, features=asked, batch=8)
        lesson = Lesson(other(), net(), samples(net()), aims=aims)
        if asked is None:  # adapters to measure by, which nothing trains
            lesson.features = Lesson(other(), net(), samples(net()), aims=Aims(inner=False, features=wanted)).features
            lesson.features.moves = dict(lesson.features.moves)
        before = seen(lesson, samples(net(), 8, seed=6))
        fit(lesson, samples(net(), 8, seed=6), Schedule(minutes=1, steps=25, rate=0.05))
        errors[name] = seen(lesson, samples(net(), 8, seed=6)) / before
    assert errors["features"] < 0.9
    assert errors["features"] < errors["none"]


def test_adapters_begin_as_least_squares():
    rng = np.random.default_rng(0)
    x, mixing = rng.standard_normal((6, 4, 3, 3)), rng.standard_normal((4, 7))
    t = np.einsum("nchw,cd->ndhw", x, mixing)
    features = Features({"a": torch.tensor(x, dtype=torch.float32)}, {"a": torch.tensor(t, dtype=torch.float32)})
    rows = x.transpose(0, 2, 3, 1).reshape(-1, 4)
    gram = rows.T @ rows
    ridge = RIDGE * np.mean(np.diag(gram)) * np.eye(4)
    matrix = np.linalg.solve(gram + ridge, rows.T @ t.transpose(0, 2, 3, 1).reshape(-1, 7))
    with torch.no_grad():
        ours = features.adapted("a", torch.tensor(x, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(ours, np.einsum("nchw,cd->ndhw", x, matrix), atol=1e-5)


def test_stages_are_the_last_of_each_resolution():
    assert feature_pairs(other(), net(), "stages") == {"a4": "s"}
    assert feature_pairs(other(), net(), None) == {}


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"b": "s"}, "student has no float tensor 'b'"),
        ({"a4": "t"}, "teacher has no float tensor 't'"),
        ({"a1": "s"}, r"a1 is \[1, 5, 16, 16\], s \[1, 4, 32, 32\]"),
    ],
)
def test_what_cannot_be_compared_is_said(wanted, sentence):
    with pytest.raises(InputError, match=sentence):
        Lesson(other(), net(), samples(net()), aims=Aims(features=wanted))


def test_threads_do_not_change_adapters():
    found = []
    for threads in (1, 2):
        lesson = Lesson(other(), net(), samples(net()), aims=Aims(inner=False, features="stages", batch=8))
        with ThreadPoolExecutor(threads) as pool:
            lesson.gradients(0, pool)
        found.append([move.grad.clone() for move in lesson.features.moves.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert any(bool(gradient.any()) for gradient in found[0])
