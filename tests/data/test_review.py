"""Samples that cannot serve for calibration are refused; what makes others doubtful is said."""

from __future__ import annotations

import numpy as np
import pytest

from toolchain.core.errors import DataError
from toolchain.data.calibration import open_data
from toolchain.data.review import review
from toolchain.formats.tensor_spec import TensorSpec

IMAGE = TensorSpec("x", np.dtype(np.float32), (1, 3, 4))
MASK = TensorSpec("mask", np.dtype(np.int64), (1, 4))
IDS = TensorSpec("ids", np.dtype(np.int64), (1, 4))
PAST = TensorSpec("past", np.dtype(np.float32), (1, "P", 4))
NUMBER = TensorSpec("n", np.dtype(np.float32), (1, 1))


def normal(count=20, shape=(3, 4), seed=0):
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def reviewed(specs, **arrays):
    return review(open_data(arrays, specs))


@pytest.mark.parametrize(
    ("specs", "arrays", "message"),
    [
        (
            [IMAGE],
            {"x": np.zeros((20, 3, 4), np.float32)},
            r"all 20 samples hold one value only \(0.0 in input 'x'\); give",
        ),
        ([IMAGE], {"x": np.full((20, 3, 4), 0.5, np.float32)}, r"one value only \(0.5 in input 'x'\)"),
        ([IMAGE], {"x": np.zeros((1, 3, 4), np.float32)}, r"the sample holds one value only"),
        ([IMAGE], {"x": np.repeat(normal(1), 20, axis=0)}, r"all 20 samples are equal; give samples that differ"),
        ([IDS], {"ids": np.zeros((20, 4), np.int64)}, r"one value only \(0 in input 'ids'\)"),
        (
            [IMAGE, MASK],
            {"x": np.zeros((20, 3, 4), np.float32), "mask": np.ones((20, 4), np.int64)},
            r"one value only \(0.0 in input 'x', 1 in input 'mask'\)",
        ),
        (
            [IMAGE, MASK],
            {"x": np.repeat(normal(1), 20, axis=0), "mask": np.ones((20, 4), np.int64)},
            "all 20 samples are equal",
        ),
    ],
)
def test_refused(specs, arrays, message):
    with pytest.raises(DataError, match=message):
        reviewed(specs, **arrays)


def test_good_samples_get_no_remark():
    assert reviewed([IMAGE], x=normal()) == ()


def test_one_constant_value_in_each_sample_is_fine_where_samples_differ():
    assert reviewed([NUMBER], n=np.arange(20, dtype=np.float32)[:, None]) == ()


def test_a_mask_of_ones_is_a_remark():
    notes = reviewed([IMAGE, MASK], x=normal(), mask=np.ones((20, 4), np.int64))
    assert notes == ("input 'mask' is the same in all 20 samples",)


def test_one_black_frame_is_fine():
    x = np.zeros((20, 3, 4), np.float32)
    x[13] = normal(1)[0]
    assert reviewed([IMAGE], x=x) == ()


@pytest.mark.parametrize(("count", "said"), [(1, "only 1 sample was given"), (15, "only 15 samples were given")])
def test_few_samples_are_a_remark(count, said):
    (note,) = reviewed([IMAGE], x=normal(count))
    assert note.startswith(said)


def test_an_empty_cache_is_a_remark():
    notes = reviewed([IMAGE, PAST], x=normal(), past=np.zeros((20, 0, 4), np.float32))
    assert notes == ("input 'past' is empty in all samples, so that its values in later calls were not observed",)


def test_a_cache_that_is_empty_at_first_only():
    feeds = [{"x": x[None], "past": np.ones((1, step, 4), np.float32) * step} for step, x in enumerate(normal())]
    assert review(open_data(feeds, [IMAGE, PAST])) == ()


@pytest.mark.parametrize("specs", [[PAST], [PAST, IMAGE]])
def test_samples_that_are_empty_throughout_are_refused(specs):
    arrays = {"past": np.zeros((20, 0, 4), np.float32), "x": np.zeros((20, 3, 0), np.float32)}
    specs = [TensorSpec(s.name, s.dtype, (1, *[None] * (len(s.dims) - 1))) for s in specs]
    with pytest.raises(DataError, match=r"sample 0, input 'past': is empty \(shape \[1, 0, 4\]\); drop the sample"):
        reviewed(specs, **{spec.name: arrays[spec.name] for spec in specs})
