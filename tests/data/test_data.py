import contextlib
import itertools
import sys
import tracemalloc
import weakref

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sample_data import F32, GOOD, I64, TEXT, X, rows

from toolchain.core.errors import ConfigError, DataError
from toolchain.data.calibration import open_data
from toolchain.formats.tensor_spec import TensorSpec


def text_feeds(lengths=(4, 7, 2)):
    for n in lengths:
        yield {"mask": np.ones((1, n), np.int64), "ids": np.arange(n, dtype=np.int64)[None]}


# --- the sources ---


def test_npz(tmp_path):
    a, b = rows(5, 3), np.arange(10, dtype=np.int64).reshape(5, 2)
    np.savez(tmp_path / "d.npz", x=a, y=b)
    data = open_data(tmp_path / "d.npz", (X, TensorSpec("y", I64, (1, 2))))
    assert len(data) == 5
    assert data.source == str(tmp_path / "d.npz")
    for _ in range(2):
        feeds = list(data)
        assert [list(feed) for feed in feeds] == [["x", "y"]] * 5
        np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), a)
        np.testing.assert_array_equal(np.concatenate([feed["y"] for feed in feeds]), b)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=st.floats(-9, 9, width=32)),
    st.booleans(),
    st.booleans(),
    st.integers(1, 7),
)
def test_npz_rows_are_what_numpy_loads(tmp_path_factory, array, compressed, fortran, samples):
    path = tmp_path_factory.mktemp("d") / "d.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=np.asfortranarray(array) if fortran else array)
    data = open_data(path, [TensorSpec("x", F32, ("n", *array.shape[1:]))], samples=samples)
    assert len(data) == min(samples, len(array))
    kept = [int(i) for i in np.floor((np.arange(len(data)) + 0.5) * len(array) / len(data))]
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in data]), np.load(path)["x"][kept])


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_is_streamed(tmp_path, compressed):
    array = np.ones((200, 3, 64, 64), np.float32)  # 9.8 MB
    (np.savez_compressed if compressed else np.savez)(tmp_path / "d.npz", x=array)
    del array
    tracemalloc.start()
    try:
        for _ in open_data(tmp_path / "d.npz", [TensorSpec("x", F32, ("n", 3, 64, 64))]):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_npz_of_one_array_needs_no_name(tmp_path):
    np.savez(tmp_path / "d.npz", rows(2, 3))
    assert list(next(iter(open_data(tmp_path / "d.npz", [X])))) == ["x"]
    np.savez(tmp_path / "d.npz", other=rows(2, 3))
    with pytest.raises(DataError, match="the model has no input 'other'; choose one of: x"):
        open_data(tmp_path / "d.npz", [X])


def test_npz_sample_of_full_rank(tmp_path):
    np.savez(tmp_path / "d.npz", h=rows(4, 2, 1, 8))
    data = open_data(tmp_path / "d.npz", [TensorSpec("h", F32, (2, 1, 8))])
    assert next(iter(data))["h"].shape == (2, 1, 8)


def test_lone_npy(tmp_path):
    np.save(tmp_path / "d.npy", rows(4, 3))
    assert len(open_data(str(tmp_path / "d.npy"), [X])) == 4


def test_folder_of_npy(tmp_path):
    for i, array in enumerate(rows(3, 3)):
        np.save(tmp_path / f"{i}.npy", array if i else array[None])  # with and without the batch axis
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in open_data(tmp_path, [X])]), rows(3, 3))


@pytest.fixture
def pictures(tmp_path):
    for i in range(4):
        folder = tmp_path / f"class{i % 2}"
        folder.mkdir(exist_ok=True)
        PIL.Image.new("RGB", (20, 30), (i * 10, 0, 255)).save(folder / f"{i}.png")
    (tmp_path / ".hidden.png").write_text("")
    return tmp_path


def test_folder_of_images(pictures):
    data = open_data(pictures, [TensorSpec("x", F32, ("n", 3, 8, 6))], preprocess="unit")
    feeds = list(data)
    assert [feed["x"].shape for feed in feeds] == [(1, 3, 8, 6)] * 4
    assert [round(float(feed["x"][0, 0, 0, 0]) * 255) for feed in feeds] == [0, 20, 10, 30]  # by path
    assert data.preprocessing is not None
    assert data.preprocessing["name"] == "unit"
    assert data.preprocessing["size"] == [8, 6]


def test_images_as_pixels(pictures, tmp_path):
    toml = tmp_path / "raw.toml"
    toml.write_text("scale = 1\n")
    byte, real = (TensorSpec("x", np.dtype(d), (1, 3, 8, 6)) for d in ("uint8", "float32"))
    for spec in (byte, real):
        feed = next(iter(open_data(pictures, [spec], preprocess=toml)))
        assert feed["x"].dtype == spec.dtype
        assert feed["x"].max() == 255
    with pytest.raises(DataError, match="takes unscaled pixels"):
        open_data(pictures, [byte], preprocess="unit")


def test_function_with_feeds_of_different_lengths():
    data = open_data(text_feeds, TEXT)
    assert [feed["ids"].shape for feed in data] == [(1, 4), (1, 7), (1, 2)]
    assert [list(feed) for feed in data] == [["ids", "mask"]] * 3  # in the model's order
    assert "text_feeds" in data.source


def test_sequence_of_feeds():
    assert len(open_data(list(text_feeds()), TEXT)) == 3


def test_module_callable(tmp_path, monkeypatch):
    (tmp_path / "own_samples.py").write_text("def feeds():\n    for i in range(3): yield {'x': [[0.0, i, 1]]}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    data = open_data("own_samples:feeds", [X])
    assert data.source == "own_samples:feeds"
    assert [feed["x"][0, 1] for feed in data] == [0, 1, 2]
    assert next(iter(data))["x"].dtype == F32


def test_function_is_read_once_and_one_sample_at_a_time():
    alive: list[weakref.ref] = []
    most, calls = 0, []

    def feeds():
        nonlocal most
        calls.append(1)
        for i in range(20):
            array = np.full((1, 3), i, np.float32)
            alive.append(weakref.ref(array))
            most = max(most, sum(reference() is not None for reference in alive))
            yield {"x": array}

    data = open_data(feeds, [X])
    assert [int(feed["x"][0, 0]) for feed in data] == list(range(20))
    assert (len(calls), most <= 2) == (1, True)
    assert len(list(data)) == 20


# --- subsets and fingerprints ---


@given(st.integers(1, 60), st.integers(1, 70))
def test_samples_are_evenly_spread(count, n):
    feeds = [{"x": np.full((1, 3), i, np.float32)} for i in range(count)]
    got = [int(feed["x"][0, 0]) for feed in open_data(feeds, [X], samples=n)]
    assert len(got) == min(n, count)
    gaps = np.diff([-1 - got[0], *got, 2 * count - got[-1]])  # mirrored ends: half a gap lies outside
    assert max(gaps) - min(gaps) <= 2
    assert min(gaps) >= 1


def test_only_the_chosen_files_are_read(tmp_path):
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", rows(1, 3))
    (tmp_path / "0.npy").write_text("broken")
    assert len(open_data(tmp_path, [X], samples=2)) == 2  # samples 1 and 3


def test_fingerprint_is_of_content_alone(tmp_path):
    a = rows(6, 3)
    np.savez(tmp_path / "a.npz", x=a)
    (tmp_path / "folder").mkdir()
    for i, row in enumerate(a):
        np.save(tmp_path / "folder" / f"{i}.npy", row)
    prints = {
        open_data(spec, [X]).fingerprint
        for spec in (tmp_path / "a.npz", tmp_path / "folder", [{"x": r[None].astype(np.float64)} for r in a])
    }
    assert len(prints) == 1
    assert len(prints.pop()) == 64


@given(hnp.arrays(np.float32, (4, 3), elements=st.floats(-9, 9, width=32)), st.integers(0, 11))
def test_fingerprint_sees_every_value(array, place):
    other = array.copy()
    other.flat[place] += 1
    first, second = ([{"x": row[None]} for row in a] for a in (array, other))
    assert open_data(first, [X]).fingerprint != open_data(second, [X]).fingerprint


def test_fingerprint_sees_order_shape_and_number():
    one, two = {"x": rows(1, 3)}, {"x": rows(1, 3, seed=1)}
    prints = [open_data(list(f), [X]).fingerprint for f in ((one, two), (two, one), (one,), (one, one))]
    flat, tall = TensorSpec("x", F32, (1, "n")), TensorSpec("x", F32, ("n", 1))
    prints += [open_data([{"x": np.zeros(s)}], [spec]).fingerprint for s, spec in (((1, 4), flat), ((4, 1), tall))]
    assert len(set(prints)) == len(prints)


def test_take():
    data = open_data([{"x": np.full((1, 3), i)} for i in np.arange(10.0)], [X])
    part = data.take(2)
    assert [feed["x"][0, 0] for feed in part] == [2, 7]
    assert part.fingerprint == open_data([{"x": np.full((1, 3), i)} for i in (2.0, 7.0)], [X]).fingerprint
    assert data.take(99).fingerprint == data.fingerprint


# --- refusals ---


@pytest.mark.parametrize(
    ("feed", "said"),
    [
        ({"y": GOOD}, r"sample 1: the model has no input 'y'; choose one of: x"),
        ({"x": GOOD, "X": GOOD}, "no input 'X'"),
        ({}, "input 'x' is missing"),
        (
            {"x": GOOD[0]},
            r"sample 1, input 'x': has shape \[3\] where the model takes \[batch, 3\]; add the",
        ),
        ({"x": GOOD[None]}, "give 2 axes"),
        ({"x": np.zeros((1, 4), np.float32)}, r"has shape \[1, 4\].*; make axis 1 3 long"),
        ({"x": np.zeros((0, 3), np.float32)}, "is empty"),
        ({"x": np.zeros((1, 3), np.float16)}, r"is float16 where the model takes float32; convert it with .astype"),
        ({"x": np.full((1, 3), 255, np.uint8)}, r"integers 0\.\.255 where the model takes float32; normalize pixels"),
        ({"x": np.full((1, 3), -7)}, "is int64 where the model takes float32"),
        ({"x": np.zeros((1, 3), bool)}, "is bool"),
        ({"x": np.array([[None, 1, 2]])}, "holds Python objects"),
        ({"x": [[1.0], [1.0, 2.0]]}, "is not an array"),
        ({"x": np.array([[1, np.nan, np.inf]], np.float32)}, r"sample 1, input 'x': holds NaN \(2 of 3 values\)"),
        ({"x": np.array([[1, 2, np.inf]], np.float32)}, "holds infinity"),
        ({"x": np.array([[1, 2, 1e300]])}, "holds infinity"),
        ("x", "is of type str, not a dictionary"),
        (GOOD[0, 0], "has shape"),
        (None, "is of type NoneType, not a dictionary"),
    ],
)
def test_bad_feed(feed, said):
    with pytest.raises(DataError, match=said):
        open_data([{"x": GOOD}, feed], [X])


def test_integers():
    spec = [TensorSpec("x", np.dtype("int32"), (1, 3))]
    with pytest.raises(DataError, match="is int64 where the model takes int32"):
        open_data([{"x": np.zeros((1, 3), np.int64)}], spec)
    wide = open_data([{"x": np.zeros((1, 3), np.int32)}], [TensorSpec("x", I64, (1, 3))])
    assert next(iter(wide))["x"].dtype == I64


def test_near_name_and_axes_that_must_agree():
    with pytest.raises(DataError, match="no input 'msk'; did you mean 'mask'"):
        open_data([{"ids": np.zeros((1, 4), int), "msk": np.zeros((1, 4), int)}], TEXT)
    with pytest.raises(DataError, match=r"input 'mask': axis 1 \(seq\) is 5 long, but 4 in input 'ids'"):
        open_data([{"ids": np.zeros((1, 4), int), "mask": np.zeros((1, 5), int)}], TEXT)
    loose = [TensorSpec("a", I64, ("None", "None")), TensorSpec("b", I64, (None, "?"))]
    assert len(open_data([{"a": np.zeros((1, 4), int), "b": np.zeros((2, 5), int)}], loose)) == 1


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="no such file or folder; give a folder"):
        open_data(tmp_path / "nowhere", [X])
    with pytest.raises(DataError, match="is an empty folder; put images"):
        open_data(tmp_path, [X])
    (tmp_path / "labels.csv").write_text("a")
    with pytest.raises(DataError, match=r"holds no samples, only \.csv"):
        open_data(tmp_path, [X])
    with pytest.raises(DataError, match=r"neither a folder nor an \.npz"):
        open_data(tmp_path / "labels.csv", [X])
    with pytest.raises(DataError, match="0 samples are requested"):
        open_data([{"x": GOOD}], [X], samples=0)
    with pytest.raises(DataError, match="takes no inputs"):
        open_data([{"x": GOOD}], [])


def test_image_folders_are_explained(pictures):
    spec = TensorSpec("x", F32, ("n", 3, 8, 6))
    with pytest.raises(DataError, match="give --preprocess with one of imagenet"):
        open_data(pictures, [spec])
    with pytest.raises(ConfigError, match="did you mean 'unit'"):
        open_data(pictures, [spec], preprocess="units")
    with pytest.raises(DataError, match=r"has data for one input, but the model takes 2: ids, mask"):
        open_data(pictures, TEXT, preprocess="unit")
    with pytest.raises(DataError, match="2 axes where images need 4"):
        open_data(pictures, [X], preprocess="unit")
    (pictures / "class1" / "3.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"3\.png: cannot be read as an image"):
        open_data(pictures, [spec], preprocess="unit")
    np.save(pictures / "a.npy", GOOD)
    with pytest.raises(DataError, match="both images and"):
        open_data(pictures, [spec], preprocess="unit")


def test_preprocess_is_for_images(tmp_path):
    np.savez(tmp_path / "d.npz", x=rows(2, 3))
    with pytest.raises(DataError, match="only images are preprocessed"):
        open_data(tmp_path / "d.npz", [X], preprocess="unit")


def test_npy_folder_feeds_one_input(tmp_path):
    np.save(tmp_path / "a.npy", GOOD)
    with pytest.raises(DataError, match="has data for one input, but the model takes 2"):
        open_data(tmp_path, TEXT)


def test_npz_names_and_lengths(tmp_path):
    np.savez(tmp_path / "names.npz", ids=np.zeros((2, 4), int), msk=np.zeros((2, 4), int))
    with pytest.raises(DataError, match="did you mean 'mask'"):
        open_data(tmp_path / "names.npz", TEXT)
    np.savez(tmp_path / "lengths.npz", ids=np.zeros((2, 4), int), mask=np.zeros((3, 4), int))
    with pytest.raises(DataError, match=r"different numbers of samples \('ids' 2, 'mask' 3\)"):
        open_data(tmp_path / "lengths.npz", TEXT)
    np.savez(tmp_path / "scalar.npz", x=np.float32(3))
    with pytest.raises(DataError, match="'x' has no leading axis"):
        open_data(tmp_path / "scalar.npz", [X])
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 3), np.float32))
    with pytest.raises(DataError, match="'x' holds no samples, its leading axis is 0 long"):
        open_data(tmp_path / "none.npz", [X])
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(DataError, match="holds no arrays"):
        open_data(tmp_path / "empty.npz", [X])


@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_npz_is_always_a_sentence(tmp_path, compressed):
    (np.savez_compressed if compressed else np.savez)(tmp_path / "d.npz", x=rows(4, 3))
    whole = (tmp_path / "d.npz").read_bytes()
    for size in range(0, len(whole), 7):
        (tmp_path / "cut.npz").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"cut\.npz"):
            open_data(tmp_path / "cut.npz", [X])


@given(st.binary(max_size=64), st.integers(0, 10_000))
def test_damaged_npz_never_gives_a_traceback(tmp_path_factory, noise, place):
    path = tmp_path_factory.mktemp("d") / "d.npz"
    np.savez_compressed(path, x=rows(4, 3))
    whole = bytearray(path.read_bytes())
    start = place % len(whole)
    whole[start : start + len(noise)] = noise
    path.write_bytes(whole)
    with contextlib.suppress(DataError):  # damage may also go unseen, in the archive's padding
        open_data(path, [X])


def test_truncated_npy(tmp_path):
    np.save(tmp_path / "a.npy", rows(4, 3))
    whole = (tmp_path / "a.npy").read_bytes()
    for size in range(0, len(whole), 9):
        (tmp_path / "a.npy").write_bytes(whole[:size])
        for spec in (tmp_path, tmp_path / "a.npy"):
            with pytest.raises(DataError, match=r"a\.npy"):
                open_data(spec, [X])


def test_pickles_are_not_loaded(tmp_path):
    bad = np.array([[{"a": 1}, None, 3]], object)
    np.savez(tmp_path / "d.npz", x=bad)
    with pytest.raises(DataError, match="never unpickled"):
        open_data(tmp_path / "d.npz", [X])
    (tmp_path / "f").mkdir()
    np.save(tmp_path / "f" / "a.npy", bad)
    with pytest.raises(DataError, match="cannot be read as numpy arrays"):
        open_data(tmp_path / "f", [X])


def test_faulty_functions():
    def raises():
        yield {"x": GOOD}
        raise RuntimeError("no such column")

    with pytest.raises(DataError, match=r"raises: sample 1: raised RuntimeError: no such column \(test_data\.py line"):
        open_data(raises, [X])
    with pytest.raises(DataError, match="gives an object of type NoneType, not an iterable"):
        open_data(lambda: None, [X])
    with pytest.raises(DataError, match="gives an object of type dict, not an iterable of samples"):
        open_data(lambda: {"x": GOOD}, [X])
    with pytest.raises(DataError, match="gives no samples"):
        open_data(lambda: [], [X])


def test_endless_function(monkeypatch):
    monkeypatch.setattr("toolchain.data.readers.MAX_SAMPLES", 50)
    with pytest.raises(DataError, match="more than 50 samples; end it"):
        open_data(lambda: ({"x": GOOD} for _ in itertools.count()), [X], samples=3)
    assert len(open_data([{"x": GOOD}] * 50, [X])) == 50


def test_consumers_errors_are_their_own():
    data = open_data([{"x": GOOD}], [X])
    feeds = iter(data)
    next(feeds)
    with pytest.raises(ZeroDivisionError):
        feeds.throw(ZeroDivisionError)


def test_a_file_that_vanishes(tmp_path):
    np.save(tmp_path / "a.npy", GOOD)
    data = open_data(tmp_path, [X])
    (tmp_path / "a.npy").unlink()
    with pytest.raises(DataError, match=r"a\.npy: cannot be read"):
        list(data)
