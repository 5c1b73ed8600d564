"""`check` finds what onnx_ir lets pass, and says where."""

import numpy as np
import onnx_ir as ir
import pytest
import small_models

from toolchain.core.errors import ModelError
from toolchain.graph import check, io


def chain():
    return small_models.model("[one] a = Relu(x) [two] b = Neg(a) [three] y = Add(b, w)", "float[2] x", "float[2] y",
                              {"w": np.ones(2, np.float32)})  # fmt: skip


def nodes(model):
    return {node.name: node for node in model.graph}


def test_a_sound_graph_passes():
    check.check(chain())


def test_two_nodes_of_one_name():
    model = chain()
    nodes(model)["two"].name = "one"
    with pytest.raises(ModelError, match="node 'one': 2 nodes share one name; give every node its own name"):
        check.check(model)


def test_nameless_nodes_are_fine():
    model = chain()
    for node in model.graph:
        node.name = None
    check.check(model)


@pytest.mark.parametrize("taken", ["x", "a", "w"], ids=["input", "computed", "initializer"])
def test_a_value_defined_twice(taken):
    model = chain()
    nodes(model)["two"].outputs[0].name = taken
    with pytest.raises(ModelError, match=f"node 'two': defines '{taken}' a second time"):
        check.check(model)


def test_two_inputs_of_one_name():
    model = small_models.model("y = Add(x, z)", "float[2] x, float[2] z", "float[2] y")
    model.graph.inputs[1].name = "x"
    with pytest.raises(ModelError):
        check.check(model)


def test_a_value_read_before_it_is_computed():
    model = chain()
    first = nodes(model)["one"]
    model.graph.remove(first)
    model.graph.append(first)
    with pytest.raises(ModelError, match="node 'two': reads 'a' before it is computed"):
        check.check(model)


def test_a_value_read_that_nothing_computes():
    model = chain()
    nodes(model)["two"].replace_input_with(0, ir.Value(name="ghost"))
    with pytest.raises(ModelError, match="node 'two': reads 'ghost' before it is computed"):
        check.check(model)


def test_an_output_that_nothing_computes():
    model = chain()
    ghost = ir.Value(name="ghost", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    model.graph.outputs.append(ghost)
    with pytest.raises(ModelError, match="graph output 'ghost': is never computed"):
        check.check(model)


def test_what_onnx_itself_refuses_comes_as_one_line():
    model = chain()
    nodes(model)["two"].op_type = "Nonsense"
    with pytest.raises(ModelError, match="Nonsense") as caught:
        check.check(model)
    assert "\n" not in str(caught.value)


def test_an_operator_of_too_new_an_opset():
    model = ir.from_proto(small_models.proto("y = Gelu(x)", "float[2] x", "float[2] y", opset=17))
    with pytest.raises(ModelError, match="onnx checker"):
        check.check(model)


def test_big_models_skip_the_serializing_part_and_keep_the_rest(monkeypatch):
    monkeypatch.setattr(io, "EMBED_LIMIT_BYTES", 4)
    model = chain()
    check.check(model)
    nodes(model)["two"].outputs[0].name = "x"
    with pytest.raises(ModelError, match="a second time"):
        check.check(model)


def test_a_value_read_from_inside_a_branch_is_known():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (bool c, float[2] x) => (float[2] y) {
        a = Relu(x)
        y = If (c) <then_branch = yes () => (float[2] t) { t = Neg(a) },
                    else_branch = no () => (float[2] e) { e = Identity(a) }>
    }"""
    check.check(ir.from_onnx_text(text))
