"""Calibration data from Python objects: arrays, generators, functions, data loaders, tensors and datasets."""

import gc

import numpy as np
import pytest
from sample_data import F32, GOOD, TEXT, X, rows, values

from toolchain.core.errors import DataError
from toolchain.data import spool
from toolchain.data.calibration import check_source, open_data
from toolchain.formats.tensor_spec import TensorSpec

# --- what people have in Python ---


def test_arrays_in_memory():
    array = rows(5, 3)
    for source in ({"x": array}, array, array.tolist() and {"x": array.astype(np.float64)}):
        data = open_data(source, [X])
        np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in data]), array)
        assert [feed["x"].shape for feed in data] == [(1, 3)] * 5
    assert len(open_data({"x": array}, [X], samples=2)) == 2
    with pytest.raises(DataError, match=r"dictionary of arrays: its arrays hold different numbers of samples"):
        open_data({"ids": np.zeros((2, 4), int), "mask": np.zeros((3, 4), int)}, TEXT)
    with pytest.raises(DataError, match="the model has no input 'y'; choose one of: x"):
        open_data({"y": array}, [X])
    with pytest.raises(DataError, match="has data for one input, but the model takes 2"):
        open_data(array, TEXT)


def test_a_generator_is_read_once():
    data = open_data(({"x": row[None]} for row in rows(9, 3)), [X], samples=4)
    assert values(data) == values(data)
    assert len(data) == 4
    first, held = open_data(iter([{"x": GOOD}] * 8), [X]).split()
    assert (len(list(first)), len(list(held))) == (6, 2)


def test_what_shuffles_or_augments_is_kept_as_it_was_first_read():
    """The same bytes at every later reading, and the same fingerprint."""
    rng = np.random.default_rng(0)
    data = open_data(lambda: ({"x": rng.standard_normal((1, 3))} for _ in range(8)), [X])
    once = iter([{"x": GOOD}] * 3)
    assert values(data) == values(data)
    assert len(list(open_data(lambda: once, [X]))) == 3
    assert data.take(3).numbers == (1, 4, 6)
    assert len(list(data.take(3))) == 3


def test_a_data_loader_is_divided_into_samples():
    torch = pytest.importorskip("torch")
    images, labels = torch.arange(30, dtype=torch.float32).reshape(10, 3), torch.arange(10)
    dataset = torch.utils.data.TensorDataset(images, labels)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True)
    data = open_data(loader, [X])
    assert (len(data), data.source) == (10, "DataLoader")
    assert sorted(values(data)) == [3.0 * i for i in range(10)]
    assert values(data) == values(data)
    (feed, *_) = open_data(loader, [X], labels=True)
    assert feed["labels"].tolist() == [feed["x"][0, 0] // 3]
    fixed = open_data(torch.utils.data.DataLoader(dataset, batch_size=5), [TensorSpec("x", F32, (5, 3))])
    assert [feed["x"].shape for feed in fixed] == [(5, 3)] * 2
    with pytest.raises(DataError, match=r"sample 0, input 'x': has shape \[4, 3\] where the model takes \[5"):
        open_data(loader, [TensorSpec("x", F32, (5, 3))])


def test_tuples_and_dictionaries_of_a_loader():
    batches = [
        (np.zeros((2, 4), int), np.ones((2, 4), int)),
        {"ids": np.zeros((1, 4), int), "mask": np.ones((1, 4), int)},
    ]

    class Loader:
        def __iter__(self):
            return iter(batches)

    assert len(open_data(Loader(), TEXT)) == 3
    batches.append((1, 2, 3, 4))
    with pytest.raises(DataError, match="Loader: sample 3: is of type tuple, not a dictionary from input") as caught:
        open_data(Loader(), TEXT)
    assert "and holds 4 items where the model takes ids, mask; yield {'ids': array}" in str(caught.value)
    batches[2] = None
    with pytest.raises(DataError, match="Loader: sample 3: is of type NoneType, not a dictionary"):
        open_data(Loader(), TEXT)


def test_labels_are_ignored_unless_they_are_asked_for(tmp_path):
    np.savez(tmp_path / "d.npz", x=rows(4, 3), labels=np.arange(4))
    assert [list(feed) for feed in open_data(tmp_path / "d.npz", [X])] == [["x"]] * 4
    feeds = list(open_data(tmp_path / "d.npz", [X], labels=True))
    assert [feed["labels"].tolist() for feed in feeds] == [[0], [1], [2], [3]]
    assert [list(feed) for feed in open_data([{"x": GOOD}], [X], labels=True)] == [["x"]]


def test_a_full_spool(monkeypatch):
    monkeypatch.setattr(spool, "MAX_SPOOL_BYTES", 40)
    feeds = [{"x": np.full((1, 3), i, np.float32)} for i in range(9)]
    with pytest.raises(
        DataError, match=r"generator: gives more than .* GiB of samples, and can be read only once; end"
    ):
        open_data((feed for feed in feeds), [X])
    data = open_data(lambda: iter(feeds), [X])  # it is read again instead, and must repeat itself
    assert values(data) == list(range(9))
    feeds[4]["x"][:] = -1
    with pytest.raises(DataError, match="sample 4: differs from what it was when it was first read"):
        list(data)
    del feeds[5:]
    feeds[4]["x"][:] = 4
    with pytest.raises(DataError, match="gave 9 samples at first and 5 when read again; return a fresh iterator"):
        list(data)


def test_the_spool_goes_with_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = open_data(iter([{"x": GOOD}] * 3), [X])
    part = data.take(1)
    del data
    gc.collect()
    assert len(list(part)) == 1
    del part
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_what_gives_no_samples_is_refused():
    with pytest.raises(DataError, match="calibration data: is of type int, which gives no samples; give a path"):
        open_data(3, [X])
    with pytest.raises(DataError, match="is of type object, which gives no samples"):
        check_source(object())
    with pytest.raises(DataError, match="is of type bytes, which gives no samples"):
        check_source(b"samples.npz")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ([], "list of feeds: gives no samples; yield a few hundred dictionaries of arrays"),
        (["a.png"], "list of feeds: sample 0: is of type str, not a dictionary from input name to array; yield"),
        (
            [{"x": rows(1, 3)}, None],
            "list of feeds: sample 1: is of type NoneType, not a dictionary from input name to array; yield",
        ),
        ({"x": [[1.0], [1.0, 2.0]]}, "dictionary of arrays, 'x': is not an array (its parts have different shapes); "),
        (
            {"x": 3.0},
            "dictionary of arrays: array 'x' has no leading axis that counts samples; give one array for each",
        ),
        ({}, "dictionary of arrays: holds no arrays; give one array for each input"),
        (
            np.zeros((0, 3)),
            "ndarray: the array holds no samples, its leading axis is 0 long; give one array for each input",
        ),
    ],
)
def test_data_that_fits_no_model_is_refused_without_one(spec, said):
    with pytest.raises(DataError) as caught:
        check_source(spec)
    assert str(caught.value).startswith(said)


def test_an_iterator_that_was_read_before():
    used = iter([{"x": GOOD}])
    next(used)
    with pytest.raises(DataError, match="iterator: gives no samples, or was read before; yield a few hundred"):
        open_data(used, [X])


# --- tensors and datasets of torch ---


def _torch_data():
    return pytest.importorskip("torch").utils.data


KINDS = {
    "a dictionary": lambda tensor: {"x": tensor},
    "an array": lambda tensor: tensor,
    "a list": lambda tensor: [{"x": row[None]} for row in tensor],
    "a list of tuples": lambda tensor: [(row[None], 3) for row in tensor],
    "a generator": lambda tensor: (row[None] for row in tensor),
    "a loader": lambda tensor: _torch_data().DataLoader(tensor.detach(), 4),
    "a dataset": lambda tensor: _torch_data().TensorDataset(tensor),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_an_array(kind):
    torch = pytest.importorskip("torch")
    tensor = torch.arange(30.0).reshape(10, 3)
    same = tensor.double(), tensor.bfloat16(), tensor.t().contiguous().t(), torch.nn.Parameter(tensor)
    for other in same:
        data = open_data(KINDS[kind](other), [X])
        np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in data]), tensor.numpy())
    with pytest.raises(DataError, match=r"is not an array .*; give a numpy array"):
        open_data(KINDS[kind](tensor.to_sparse() if kind == "an array" else tensor.to("meta")), [X])


class Squares:
    """A map-style dataset: it has a length and items, and no iterator. Each reading gives other values."""

    def __init__(self, size=10, *, labels=False):
        self.size, self.labels, self.readings = size, labels, 0

    def __len__(self):
        return self.size

    def __getitem__(self, number):
        self.readings += 1
        x = np.float32([number, number**2, self.readings])
        return (x, number % 4) if self.labels else {"x": x}


def test_a_dataset():
    dataset = Squares()
    data = open_data(dataset, [X])
    assert [tuple(feed["x"][0, :2]) for feed in data] == [(i, i * i) for i in range(10)]
    assert values(data) == values(data)
    assert dataset.readings == 10
    assert [feed["x"][0, 0] for feed in open_data(dataset, [X], samples=2)] == [2, 7]
    assert dataset.readings == 12
    labelled = list(open_data(Squares(labels=True), [X], labels=True))
    assert [feed["labels"].tolist() for feed in labelled] == [[i % 4] for i in range(10)]
    assert [list(feed) for feed in open_data(Squares(labels=True), [X])] == [["x"]] * 10


def test_datasets_that_cannot_be_read():
    with pytest.raises(DataError, match="Squares: is empty; give a few hundred samples"):
        check_source(Squares(0))

    class Short(Squares):
        def __getitem__(self, number):
            return {"x": GOOD[0]} if number < 3 else [][number]

    with pytest.raises(
        DataError, match=r"Short: sample 3: raised IndexError: list index .* \(test_python_sources.py line \d+\)"
    ):
        open_data(Short(), [X])


def test_a_loader_without_batches():
    torch = pytest.importorskip("torch")
    dataset = torch.utils.data.TensorDataset(torch.arange(30.0).reshape(10, 3), torch.arange(10))
    loader = torch.utils.data.DataLoader(dataset, batch_size=None)
    feeds = list(open_data(loader, [X], labels=True))
    assert [feed["x"].shape for feed in feeds] == [(1, 3)] * 10
    assert [feed["labels"].tolist() for feed in feeds] == [[i] for i in range(10)]


def test_what_a_worker_of_a_loader_raises():
    torch = pytest.importorskip("torch")

    class Broken(Squares):
        def __getitem__(self, number):
            return super().__getitem__(number) if number < 6 else {}["image"]

    loader = torch.utils.data.DataLoader(Broken(), 4, num_workers=1)
    with pytest.raises(DataError, match="DataLoader: sample 4: raised KeyError: 'image'; correct the code there"):
        open_data(loader, [X])
