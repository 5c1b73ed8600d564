"""Golden hashes: they see every changed number and no renamed node; three real models give those that are stored."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import integers, tables
from benchmarks.models import MODELS, NAMES, missing
from toolchain.benchmark.host import describe_host
from toolchain.core.errors import DataError

HOST = describe_host()
STORED = tables.RESULTS / f"integers-{tables.slug(HOST)}.json"


def product(weight: float, name: str) -> ir.Model:
    """``y = x · w``; name: of the weight."""
    weights = numpy_helper.from_array(np.full((2, 3), weight, np.float32), name)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", k]) for n, k in (("x", 2), ("y", 3))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", name], ["y"])], "g", values[:1], values[1:], [weights])
    return ir.from_proto(helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8))


def test_names_are_told_from_numbers():
    base, renamed, other = (integers.describe(product(*net)) for net in ((1, "w"), (1, "weight"), (2, "w")))
    assert base == integers.describe(product(1, "w"))
    assert renamed.tensors == base.tensors
    assert renamed.sha256 != base.sha256
    assert other.tensors != base.tensors


@pytest.fixture
def record():
    file = integers.ModelFile("a", "b")
    return integers.as_record(integers.Integers(file, file, file, 9, 10, [["bias correction", 1.0, 2.0, True]]))


@pytest.mark.parametrize(
    ("path", "value", "clause"),
    [
        (("source", "tensors"), "c", "source: other tensors"),
        (("u8", "sha256"), "c", "u8: the same tensors in another graph"),
        (("s8", "tensors"), "c", "s8: other tensors"),
        (("int8_nodes",), 8, "8 of 10 nodes int8 instead of 9 of 10"),
        (("steps", 0, 2), 2.1, "other accuracy steps or fidelities"),
    ],
)
def test_every_change_is_named(record, path, value, clause):
    assert integers.differences(record, copy.deepcopy(record)) == []
    changed = copy.deepcopy(record)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert integers.differences(record, changed) == [clause]


def test_without_a_file_there_is_nothing_to_compare_with(tmp_path):
    with pytest.raises(DataError, match="no such file of hashes"):
        integers.main(["--check", "-o", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist_cnn", "svhn_cnn", "ppocr_cls"])
def test_integers_are_those_that_are_stored(name):
    if reason := missing(name):
        pytest.skip(reason)
    if not STORED.exists() or integers.load(STORED)["made_with"] != integers.made_with(HOST):
        pytest.skip("no hashes are stored for this processor and these versions")
    stored = integers.load(STORED)["models"]
    assert integers.differences(stored[name], integers.as_record(integers.measure(MODELS[name]))) == []


def test_hashes_of_every_model_are_stored():
    for file in tables.RESULTS.glob("integers-*.json"):
        assert set(integers.load(file)["models"]) == set(NAMES)
