import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.conversion.inputs import DTYPES, concrete, parse_freeze, parse_input, random_feed
from toolchain.core.errors import InputError
from toolchain.formats.tensor_spec import TensorSpec


@pytest.mark.parametrize(
    ("text", "name", "dims", "dtype"),
    [
        ("x:1x3x224x224", "x", (1, 3, 224, 224), "float32"),
        ("x:batchx3x224x224", "x", ("batch", 3, 224, 224), "float32"),
        ("x:-1x3x-1x8", "x", (None, 3, None, 8), "float32"),
        ("x:?x3", "x", (None, 3), "float32"),
        ("x : batch x seq x 8 : int64", "x", ("batch", "seq", 8), "int64"),
        ("ids:batch,seq:int64", "ids", ("batch", "seq"), "int64"),
        ("m:max_len,2", "m", ("max_len", 2), "float32"),
        ("m:max_len", "m", ("max_len",), "float32"),
        ("m:7", "m", (7,), "float32"),
        ("x:dim1xdim2", "x", ("dim1", "dim2"), "float32"),
        ("x:1, 3:uint8", "x", (1, 3), "uint8"),
    ],
)
def test_parse_input(text, name, dims, dtype):
    assert parse_input(text) == TensorSpec(name, np.dtype(dtype), dims)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1x3x224", "not of the form name:1x3x224x224"),
        ("x:", "not of the form"),
        (":1x3", "not of the form"),
        ("x:1x3:float", "unknown dtype 'float'; did you mean 'float16'|unknown dtype 'float'; did you mean"),
        ("x:batchxseqx3", "unclear where 'batchxseq' ends; separate the dimensions with commas"),
        ("x:1x0", "'0' is not a dimension"),
        ("x:1xx3", "is not a dimension|unclear"),
        ("x:1,,3", "'' is not a dimension"),
        ("x:a-b", "'a-b' is not a dimension"),
        ("x:-2x3", "is not a dimension"),
    ],
)
def test_parse_input_refuses(text, said):
    with pytest.raises(InputError, match=said):
        parse_input(text)


DIMS = st.lists(st.integers(1, 9999) | st.sampled_from(["batch", "seq", "n"]) | st.none(), min_size=1, max_size=5)


@given(DIMS, st.sampled_from(DTYPES), st.sampled_from([",", " x ", ", "]))
def test_written_specs_are_read_back(dims, dtype, separator):
    text = separator.join("-1" if d is None else str(d) for d in dims)
    assert parse_input(f"in.put/1:{text}:{dtype}") == TensorSpec("in.put/1", np.dtype(dtype), tuple(dims))


@given(st.lists(st.integers(1, 9999), min_size=1, max_size=5))
def test_sizes_with_x(dims):
    assert parse_input("x:" + "x".join(map(str, dims))).dims == tuple(dims)


def test_parse_freeze():
    assert parse_freeze(["batch=1", "input.1.0 = 3"]) == {"batch": 1, "input.1.0": 3}
    for text in ("batch", "=1", "batch=one", "batch=-1"):
        with pytest.raises(InputError, match="not of the form name=size"):
            parse_freeze([text])


def test_concrete_keeps_one_size_for_one_name():
    specs = [
        TensorSpec("x", np.dtype("float32"), ("batch", 3, "h", None)),
        TensorSpec("state", np.dtype("float32"), (2, "batch", 8)),
        TensorSpec("scalar", np.dtype("float32"), ()),
    ]
    assert [spec.dims for spec in concrete(specs, 5, 64)] == [(5, 3, 64, 64), (2, 5, 8), ()]


def test_random_feed():
    kinds = [TensorSpec(d, np.dtype(d), (50, 3)) for d in DTYPES]
    feed = random_feed(kinds, 0, ids=10)
    assert all(feed[d].dtype == d and feed[d].shape == (50, 3) for d in DTYPES)
    assert feed["int64"].min() >= 0
    assert 2 < feed["int64"].max() < 10
    assert feed["uint8"].max() > 100
    assert set(np.unique(feed["bool"])) == {False, True}
    np.testing.assert_array_equal(feed["float32"], random_feed(kinds, 0)["float32"])
    assert not np.array_equal(feed["float32"], random_feed(kinds, 1)["float32"])
