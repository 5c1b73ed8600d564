import numpy as np
import pytest

from toolchain.core.errors import DataError
from toolchain.packaging.golden import Golden, check_golden, load_golden, save_golden

FEEDS = (
    {"serving/x:0": np.arange(6, dtype=np.float32).reshape(2, 3), "ids": np.array([[1, 2]], np.int64)},
    {"serving/x:0": np.zeros((1, 3), np.float32), "ids": np.array([[3, 4]], np.int64)},
)
OUTPUTS = (
    {"y": np.array([1.0, np.nan, -2.0], np.float32), "flag": np.array(True), "half": np.ones(2, np.float16)},
    {"y": np.array([], np.float32), "flag": np.array(False), "half": np.zeros(2, np.float16)},
)
GOLDEN = Golden(FEEDS, OUTPUTS)


def replaying(changes):
    """A model that gives the expected outputs, but for sample 0's `changes`."""
    outputs = iter([{**OUTPUTS[0], **changes}, OUTPUTS[1]])
    return lambda feed: next(outputs)


def test_what_is_saved_is_loaded(tmp_path):
    save_golden(GOLDEN, tmp_path / "golden.npz")
    loaded = load_golden(tmp_path / "golden.npz")
    for stored, original in ((loaded.feeds, FEEDS), (loaded.outputs, OUTPUTS)):
        for left, right in zip(stored, original, strict=True):
            assert left.keys() == right.keys()
            for name in left:
                assert left[name].dtype == right[name].dtype
                np.testing.assert_array_equal(left[name], right[name])


def test_the_file_says_what_it_is(tmp_path):
    save_golden(GOLDEN, tmp_path / "golden.npz")
    with np.load(tmp_path / "golden.npz") as file:
        assert int(file["samples"]) == 2
        assert "input:NAME:I" in str(file["about"])
        assert {"input:serving/x:0:0", "input:serving/x:0:1", "output:y:1"} <= set(file.files)


def test_equal_outputs_have_no_mismatch():
    assert check_golden(replaying({}), GOLDEN) == []
    assert check_golden(replaying({"extra": np.zeros(1)}), GOLDEN) == []


def test_the_model_is_given_the_golden_inputs():
    seen = []
    check_golden(lambda feed: seen.append(feed) or {}, GOLDEN)
    assert seen == list(FEEDS)


@pytest.mark.parametrize(
    ("changes", "output", "differing", "largest", "what"),
    [
        ({"y": np.array([1.0, np.nan, -2.5], np.float32)}, "y", 1, 0.5, "1 of 3 elements differ, by at most 0.5"),
        ({"y": np.array([1.0, 0.0, -2.0], np.float32)}, "y", 1, np.inf, "1 of 3 elements differ, by at most inf"),
        ({"y": np.array([np.nan, np.nan, -2.0], np.float32)}, "y", 1, np.inf, "by at most inf"),
        ({"y": np.array([1.0, np.nan], np.float32)}, "y", 3, np.inf, "is float32[2] instead of float32[3]"),
        ({"y": np.array([1.0, np.nan, -2.0])}, "y", 3, np.inf, "is float64[3] instead of float32[3]"),
        ({"flag": np.array(False)}, "flag", 1, np.inf, "1 of 1 elements differ"),
        ({"half": np.array([1, 0.5], np.float16)}, "half", 1, 0.5, "1 of 2 elements differ, by at most 0.5"),
    ],
)
def test_each_difference_is_reported(changes, output, differing, largest, what):
    (found,) = check_golden(replaying(changes), GOLDEN)
    assert (found.sample, found.output, found.differing, found.largest) == (0, output, differing, largest)
    assert what in str(found)


def test_a_missing_output_is_reported():
    outputs = {name: array for name, array in OUTPUTS[0].items() if name != "y"}
    found = check_golden(lambda feed: outputs, Golden(FEEDS[:1], OUTPUTS[:1]))
    assert [str(mismatch) for mismatch in found] == ["sample 0, output 'y': is missing"]


def test_tolerance_is_relative_to_the_greatest_magnitude():
    off = {"y": np.array([1.0, np.nan, -2.0 - 2e-3], np.float32)}
    assert check_golden(replaying(off), GOLDEN, tolerance=2e-3) == []
    assert len(check_golden(replaying(off), GOLDEN, tolerance=5e-4)) == 1
    assert len(check_golden(replaying({"y": np.array([1.0, 5.0, -2.0], np.float32)}), GOLDEN, tolerance=1.0)) == 1


def test_inputs_and_outputs_come_in_pairs():
    with pytest.raises(ValueError, match="2 golden inputs but 1 outputs"):
        Golden(FEEDS, OUTPUTS[:1])


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"golden\.npz: no such golden data file"):
        load_golden(tmp_path / "golden.npz")


@pytest.mark.parametrize("damage", ["text", "cut", "foreign", "pickled"])
def test_a_damaged_file_is_one_sentence(damage, tmp_path):
    path = tmp_path / "golden.npz"
    if damage == "text":
        path.write_text("hello")
    elif damage == "foreign":
        np.savez(path, a=np.zeros(3))
    elif damage == "pickled":
        np.savez(path, **{"samples": np.array(1), "input:x:0": np.array([{}], object)})
    else:
        save_golden(GOLDEN, path)
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match="is not golden data, or it is damaged"):
        load_golden(path)


def test_texts_are_stored_and_compared(tmp_path):
    """onnxruntime gives texts as objects."""
    golden = Golden(({"x": np.zeros(1, np.float32)},), ({"name": np.array(["cat", "dog"], object)},))
    save_golden(golden, tmp_path / "golden.npz")
    loaded = load_golden(tmp_path / "golden.npz")
    assert check_golden(lambda feed: {"name": np.array(["cat", "dog"], object)}, loaded) == []
    (found,) = check_golden(lambda feed: {"name": np.array(["cat", "elephant"], object)}, loaded)
    assert found.differing == 1
