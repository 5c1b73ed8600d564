"""Inputs and outputs of models: stored with the name of their dtype, and read back as they were."""

import numpy as np
import pydantic
import pytest

from toolchain.formats.tensor_spec import TensorSpec

SPECS = pydantic.TypeAdapter(tuple[TensorSpec, ...])


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int64", "bool"])
def test_a_spec_is_stored_and_read_back(dtype):
    spec = TensorSpec("x", np.dtype(dtype), ("n", 3, None))
    stored = SPECS.dump_python((spec,), mode="json")
    assert stored == [{"name": "x", "dtype": dtype, "dims": ["n", 3, None]}]
    assert SPECS.validate_json(SPECS.dump_json((spec,))) == (spec,)
    assert str(spec) == f"x: {dtype}[n, 3, ?]"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "flaot32"}, "'flaot32' is not the name of a numpy dtype, such as 'float32'"),
        ({"dims": 3}, "valid tuple"),
        ({"shape": [1]}, "nexpected keyword argument"),
    ],
)
def test_a_wrong_spec_is_refused(change, said):
    data = {"name": "x", "dtype": "float32", "dims": [1], **change}
    with pytest.raises(pydantic.ValidationError, match=said):
        SPECS.validate_python([data], strict=False)
