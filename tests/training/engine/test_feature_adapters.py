"""Adapters: fitted like least squares, and the inner tensors of a student get nearer to its teacher's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_models import model, weights
from teacher_student import net, samples

from toolchain.core.errors import InputError
from toolchain.graph import run, tap

torch = pytest.importorskip("torch")

from toolchain.training.engine.feature_adapters import ADAPTER_RIDGE, FeatureAdapters, feature_pairs
from toolchain.training.engine.loop import Schedule, fit
from toolchain.training.engine.objective import LossConfig
from toolchain.training.engine.objective_builder import build_objective

OTHER = """
    a0 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, v0)
    a1 = Conv <pads = [1, 1, 1, 1]> (x, v1)
    a2 = Relu (a1)
    a3 = Conv <pads = [1, 1, 1, 1]> (a2, v2)
    a4 = Relu (a3)
    a5 = GlobalAveragePool (a4)
    a6 = Flatten (a5)
    a7 = GlobalAveragePool (a0)
    a8 = Flatten (a7)
    a9 = Add (a6, a8)
    y = Gemm (a9, v3)
"""


def other():
    """A student with six channels of 32 x 32 at its last, `a4`, where the teacher has four, `s`."""
    arrays = weights(v0=(6, 3, 3, 3), v1=(8, 3, 3, 3), v2=(6, 8, 3, 3), v3=(6, 5))
    return model(OTHER, "float[n,3,32,32] x", "float[n,5] y", {**arrays, "v3": arrays["v3"] / 10})


def config(features):
    return LossConfig(inner=False, augment=False, features=features, batch=8)


def teacher_at_s():
    """A session that gives the teacher's tensor `s`."""
    return run.session(tap.expose(net(), ["s"]))


def distance(objective, features, data):
    """Relative error of the student's adapted tensor against the teacher's; a mean over samples."""
    session, errors = teacher_at_s(), []
    with torch.no_grad():
        for feed in data:
            got = objective.graph({"x": torch.from_numpy(feed["x"]), **objective.weights.dense()}, ["a4"])["a4"]
            (goal,) = session.run(None, dict(feed))
            errors.append(run.relative_error(goal, features.adapted("a4", got).numpy()))
    return float(np.mean(errors))


@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["stages", {"a4": "s"}])
def test_inner_tensors_get_nearer(wanted):
    """On held-out samples, the mean of three seeds; without features, only the outputs are trained."""
    held = samples(net(), 8, seed=6)
    untrained = build_objective(other(), net(), samples(net()), config=config(wanted))
    before = distance(untrained, untrained.adapters, held)

    def remaining(features, seed):
        objective = build_objective(other(), net(), samples(net()), config=config(features), seed=seed)
        fit(objective, held, Schedule(minutes=9, steps=60, rate=0.03))
        return distance(objective, objective.adapters if features else untrained.adapters, held) / before

    with_features, without = (np.mean([remaining(choice, seed) for seed in range(3)]) for choice in (wanted, None))
    assert with_features < 0.95
    assert with_features < without - 0.03


def test_adapters_start_as_least_squares():
    rng = np.random.default_rng(0)
    x, mixing = rng.standard_normal((6, 4, 3, 3)), rng.standard_normal((4, 7))
    t = np.einsum("nchw,cd->ndhw", x, mixing)
    features = FeatureAdapters({"a": torch.tensor(x, dtype=torch.float32)}, {"a": torch.tensor(t, dtype=torch.float32)})
    rows = x.transpose(0, 2, 3, 1).reshape(-1, 4)
    gram = rows.T @ rows
    ridge = ADAPTER_RIDGE * np.mean(np.diag(gram)) * np.eye(4)
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
        ({"b": "s"}, "student has no inner float tensor 'b'"),
        ({"a4": "t"}, "teacher has no inner float tensor 't'"),
        ({"a0": "s"}, r"'a0' has shape \[1, 6, 16, 16\], and 's' \[1, 4, 32, 32\]"),
    ],
)
def test_features_that_cannot_be_compared_are_errors(wanted, sentence):
    with pytest.raises(InputError, match=sentence):
        build_objective(other(), net(), samples(net()), config=LossConfig(features=wanted))


def test_threads_do_not_change_adapters():
    found = []
    for threads in (1, 2):
        objective = build_objective(other(), net(), samples(net()), config=config("stages"))
        with ThreadPoolExecutor(threads) as pool:
            objective.gradients(0, pool)
        found.append([move.grad.clone() for move in objective.adapters.moves.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert any(bool(gradient.any()) for gradient in found[0])
