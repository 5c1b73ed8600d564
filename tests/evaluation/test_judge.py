"""The judge, for errors that are made on purpose; the oracle is written out in NumPy."""

import numpy as np
import pytest
import quantize_by_hand as by_hand

from toolchain.evaluation.fidelity import MAX_FIDELITY_DB
from toolchain.evaluation.judge import Judge


def net(body, inputs="float[N, 4] x", outputs="y", **constants):
    return by_hand.named(body, inputs, outputs, constants)


def feeds(n=16, shape=(2, 4), seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    return [{"x": (rng.standard_normal(shape) + offset).astype(np.float32)} for _ in range(n)]


def scaled(factor):
    return net("y = Mul(x, k)", k=np.float32(factor))


@pytest.mark.parametrize("factor", [1.1, 0.9, 1.01, 0.5])
def test_an_error_is_related_to_the_variance_of_its_index(factor):
    """y = f·x errs by (f − 1)·x; the mean over the four indices of the decibels of variance over squared error."""
    samples = feeds(offset=3.0)
    x = np.concatenate([feed["x"] for feed in samples])
    expected = np.mean((-10 * np.log10(((factor - 1) ** 2 * x**2).mean(axis=0) / x.var(axis=0))).clip(0))
    assert Judge(scaled(1), samples).fidelity_db(scaled(factor)) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("factor", [1.1, 0.5, 5.0])
def test_noise_has_no_limit(factor):
    samples = feeds(offset=3.0)
    x = np.concatenate([feed["x"] for feed in samples])
    expected = ((factor - 1) ** 2 * x**2).mean(axis=0).sum() / x.var(axis=0).sum()
    assert Judge(scaled(1), samples).noise(scaled(factor)) == pytest.approx(expected, rel=1e-3)


def test_noise_is_known_for_every_sample():
    samples = feeds(offset=3.0)
    samples[2]["x"] *= 3
    x = np.stack([feed["x"] for feed in samples])
    variance = x.reshape(-1, 4).var(axis=0).sum()
    expected = (0.2**2 * x**2).mean(axis=1).sum(axis=1) / variance
    judge = Judge(scaled(1), samples)
    found = judge.noise_by_sample(scaled(1.2))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert found.mean() == pytest.approx(judge.noise(scaled(1.2)))


@pytest.mark.parametrize(
    ("body", "signal"),
    [
        ("y = Conv<pads = [1, 1, 1, 1]>(x, w)", True),
        ("c = Conv<pads = [1, 1, 1, 1]>(x, w) y = Add(c, x)", True),
        ("c = Conv<pads = [1, 1, 1, 1]>(x, w) y = Sigmoid(c)", False),
        ("c = Conv<pads = [1, 1, 1, 1]>(x, w) y = GlobalAveragePool(c)", False),
        ("c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, v) y = MaxPool<kernel_shape = [2, 2]>(c)", False),
    ],
)
def test_a_picture_is_told_from_what_decides(body, signal):
    rng = np.random.default_rng(5)
    w, v = (rng.standard_normal((n, 3, 3, 3)).astype(np.float32) for n in (3, 8))
    model = net(body, "float[1, 3, 16, 16] x", w=w, v=v)
    assert Judge(model, feeds(6, (1, 3, 16, 16))).gives_signal is signal


def test_no_error_is_the_best_there_is():
    assert Judge(scaled(1), feeds()).fidelity_db(scaled(1)) == MAX_FIDELITY_DB


@pytest.mark.parametrize("offset", [0.0, 10.0, 1e4])
def test_a_constant_answer_has_0_db_whatever_its_offset(offset):
    samples = feeds(offset=offset)
    mean = np.mean([feed["x"].mean(axis=0) for feed in samples], axis=0)
    constant = net("z = Mul(x, k) y = Add(z, m)", k=np.float32(0), m=mean.astype(np.float32))
    verdict = Judge(net("y = Identity(x)"), samples).verdict(constant)
    assert verdict.parts[0].fidelity_db == pytest.approx(0, abs=0.01)
    assert "nothing is left" in verdict.lost[0]


@pytest.mark.parametrize("rearranged", ["y = Identity(j)", "y = Transpose<perm = [1, 0]>(j)", "y = Unsqueeze(j, zero)"])
def test_small_scores_joined_to_large_boxes_are_judged_by_themselves(rearranged):
    """One step for both, as int8 has: the boxes stay, the scores become 0, and the whole tensor has 40 dB and more."""
    head = "b = Mul(x, large) s = Sigmoid(x) j = Concat<axis = 1>(b, s)"
    rounded = "bq = Mul(b, one) z = Mul(s, nil) j = Concat<axis = 1>(bq, z)"
    values = {"large": np.float32(500), "one": np.float32(1.003), "nil": np.float32(0), "zero": np.array([0])}
    reference = net(f"{head} {rearranged}", inputs="float[2, 4] x", **values)
    changed = head.replace("j = Concat<axis = 1>(b, s)", rounded)
    verdict = Judge(reference, feeds()).verdict(net(f"{changed} {rearranged}", inputs="float[2, 4] x", **values))
    boxes, scores, logits = verdict.parts
    assert boxes.fidelity_db > 40
    assert scores.fidelity_db == 0
    assert logits.fidelity_db == MAX_FIDELITY_DB
    assert scores.lost
    assert not boxes.lost
    assert "'s'" in verdict.lost[0]
    assert verdict.worst == scores


def test_parts_are_named_by_their_place():
    reference = net("a = Neg(x) b = Exp(x) y = Concat<axis = 1>(a, b)", inputs="float[2, 4] x")
    parts = Judge(reference, feeds()).verdict(reference).parts
    assert [part.name for part in parts] == ["y[:, 0:4]", "y[:, 4:8]"]


def test_an_index_that_died_among_many_is_named():
    gone = np.ones(8, np.float32)
    gone[5] = 0
    reference = net("y = Mul(x, k)", inputs="float[N, 8] x", k=np.ones(8, np.float32))
    verdict = Judge(reference, feeds(64, (4, 8))).verdict(net("y = Mul(x, k)", inputs="float[N, 8] x", k=gone))
    assert verdict.parts[0].fidelity_db > 80
    assert verdict.parts[0].worst_index == 5
    assert "index 5: nothing is left" in verdict.lost[0]


def test_a_rarely_active_index_is_not_held_against_a_model():
    """It is active in one of 64 samples: too little is known of the index to say that it died."""
    samples = feeds(64, (4, 8))
    for number, feed in enumerate(samples):
        feed["x"][:, 3] = float(number == 7)
    gone = np.ones(8, np.float32)
    gone[3] = 0
    reference = net("y = Mul(x, k)", inputs="float[N, 8] x", k=np.ones(8, np.float32))
    assert not Judge(reference, samples).verdict(net("y = Mul(x, k)", inputs="float[N, 8] x", k=gone)).lost


def test_constant_indices_are_left_out_and_counted():
    k = np.float32([1, 1, 0, 1])
    reference = net("y = Mul(x, k)", k=k)
    part = Judge(reference, feeds()).verdict(net("y = Mul(x, k)", k=k * np.float32(1.01))).parts[0]
    assert (part.indices, part.constant) == (3, 1)
    assert part.fidelity_db == pytest.approx(40, abs=0.5)


@pytest.mark.parametrize("tail", ["y = Softmax(m)", "y = Sigmoid(m)", "y = LogSoftmax<axis = 1>(m)"])
def test_scores_are_compared_in_front_of_what_saturates(tail):
    body = "m = Mul(x, k) " + tail
    reference, changed = (net(body, k=np.float32(k)) for k in (50, 55))
    by_name = {part.name: part for part in Judge(reference, feeds()).verdict(changed).parts}
    assert by_name["scores behind y"].fidelity_db == pytest.approx(20, abs=0.5)


def test_something_behind_a_sigmoid_that_loses_its_result_is_found():
    body = "s = Sigmoid(x) y = Concat<axis = 1>(s, x)"
    reference = net(body)
    changed = net("s = Sigmoid(x) z = Mul(s, k) y = Concat<axis = 1>(z, x)", k=np.float32(0))
    lost = Judge(reference, feeds()).verdict(changed).lost
    assert any("y[:, 0:4]" in sentence for sentence in lost)


def test_what_a_selection_chooses_from_is_compared():
    """Two nearly equal numbers change places: the sorted rows differ, the answer does not."""
    body = "m = Mul(x, w) y, i = TopK(m, k)"
    inputs = "float[1, 6] x"
    first = net(body, inputs, "y, i", w=np.ones(6, np.float32), k=np.array([3]))
    second = net(body, inputs, "y, i", w=np.linspace(0.99, 1.01, 6).astype(np.float32), k=np.array([3]))
    verdict = Judge(first, feeds(32, (1, 6))).verdict(second)
    assert [part.tensor for part in verdict.parts] == ["m"]
    assert verdict.parts[0].fidelity_db > 35
    assert {decision.kind for decision in verdict.decisions} == {"set"}
    assert not verdict.lost


def test_integer_outputs_are_decisions():
    body = "z = Mul(x, k) i = ArgMax<axis = 1, keepdims = 0>(z)"
    reference, turned = (net(body, outputs="i", k=np.float32(k)) for k in (1, -1))
    verdict = Judge(reference, feeds()).verdict(turned)
    assert verdict.decisions[0].kept == 0
    assert any("decisions" in sentence for sentence in verdict.lost)


def test_another_shape_is_as_bad_as_a_constant():
    """A model that finds another number of rows has such an output."""

    def above(limit):
        body = "b = Greater(x, k) n = NonZero(b) y = Cast<to = 1>(n)"
        return net(body, k=np.float32(limit))

    samples = [{"x": np.float32(np.arange(8).reshape(2, 4) + shift)} for shift in range(4)]
    assert Judge(above(0.5), samples).fidelity_db(above(20)) == 0


def test_nan_is_no_perfect_answer_and_masked_scores_are_left_out():
    divided = "d = Div(x, k) y = Mul(d, k)"
    samples = feeds()
    assert Judge(net(divided, k=np.float32(1)), samples).fidelity_db(net(divided, k=np.float32(0))) == 0
    masked = "m = Mul(x, k) y = Where(b, low, m)"
    constants = {"b": np.array([True, False, False, False]), "low": np.float32(-np.inf)}
    judge = Judge(net(masked, k=np.float32(1), **constants), samples)
    assert judge.fidelity_db(net(masked, k=np.float32(1.1), **constants)) == pytest.approx(20, abs=0.5)


def test_without_samples_or_numbers_it_says_so():
    assert not Judge(scaled(1), []).usable
    assert not Judge(net("i = ArgMax(x)", outputs="i"), feeds(shape=(1, 4))[:0]).usable
    assert Judge(scaled(1), feeds()).usable


def test_an_int8_clone_is_measured_by_the_names_of_its_nodes():
    """Written in either spelling, with the Softmax itself in float."""
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((4, 4, 3, 3)).astype(np.float32), "f": np.array([1, -1])}
    model = by_hand.named("c = Conv(x, w) r = Reshape(c, f) y = Softmax(r)", "float[1, 4, 8, 8] x", "y", constants)
    samples = [{"x": rng.standard_normal((1, 4, 8, 8)).astype(np.float32)} for _ in range(3)]
    judge = Judge(model, samples)
    for encoding in ("u8", "s8"):
        _, written = by_hand.quantized(model, samples, encoding)
        assert 20 < judge.fidelity_db(written) < 60


def test_outputs_that_are_reshaped_by_different_computed_shapes():
    """Each output is put together from its own pieces and its own shape; the other's shape is no input of it."""
    body = """a = Mul(x, k) sa = Shape(a) y = Reshape(a, sa)
              b = Mul(x, k) c = Relu(b) sc = Shape(c) z = Reshape(c, sc)"""
    model = net(body, outputs="y, z", k=np.float32(1))
    verdict = Judge(model, feeds()).verdict(model)
    assert [part.fidelity_db for part in verdict.parts] == [MAX_FIDELITY_DB] * 2
    assert not verdict.lost
