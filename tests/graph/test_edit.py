"""Edited graphs compute the expected values and keep their names."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.graph import check, edit, query, text

X = {"x": np.array([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]], np.float32)}


def chain():
    return small_models.model(
        "[one] a = Relu(x) [two] b = Neg(a) [three] y = Add(b, w)",
        "float[2, 3] x",
        "float[2, 3] y",
        {"w": np.ones(3, np.float32)},
    )


def node(model, name):
    return next(node for node in model.graph if node.name == name)


# --- names and constants ---


def test_fresh_names_avoid_every_kind_of_name_and_each_other():
    names = edit.Names(chain().graph)
    taken = ["x", "a", "b", "y", "w", "one", "two", "three"]
    found = [names.fresh(wanted) for wanted in [*taken, *taken, "free"]]
    assert not set(found) & set(taken)
    assert len(set(found)) == len(found)
    assert found[-1] == "free"


def test_names_inside_a_branch_are_taken_too():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = yes () => (float[2] t) { [inner] t = Neg(x) },
                    else_branch = no () => (float[2] e) { e = Identity(x) }>
    }"""
    names = edit.Names(ir.from_onnx_text(text).graph)
    assert names.fresh("t") != "t"
    assert names.fresh("inner") != "inner"


@pytest.mark.parametrize(
    "array",
    [np.array(2.5, np.float32), np.float32(2.5), np.arange(6.0).reshape(2, 3).T, np.zeros((0, 3), np.int64)],
    ids=["0-d", "numpy scalar", "not contiguous", "empty"],
)
def test_a_constant_has_the_shape_of_its_array(array):
    model = chain()
    value = edit.add_constant(model.graph, "c", array)
    assert tuple(value.shape) == array.shape
    np.testing.assert_array_equal(query.constant(value), array)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in ir.to_proto(model).graph.initializer}
    assert stored["c"].shape == array.shape
    np.testing.assert_array_equal(stored["c"], array)


# --- rewiring ---


def test_an_input_left_off_can_be_set():
    model = small_models.model(
        "y = Conv(x, w)", "float[1, 2, 4] x", "float[1, 2, 4] y", small_models.weights(w=(2, 2, 1))
    )
    conv = model.graph[0]
    edit.set_input(conv, 2, edit.add_constant(model.graph, "b", np.array([1.0, 2.0], np.float32)))
    check.check(model)
    feed = {"x": np.zeros((1, 2, 4), np.float32)}
    np.testing.assert_array_equal(small_models.plain(model, feed)["y"][0, :, 0], [1, 2])


def test_a_gap_before_an_optional_input_stays_empty():
    model = small_models.model("y = Clip(x)", "float[2, 3] x", "float[2, 3] y")
    edit.set_input(model.graph[0], 2, edit.add_constant(model.graph, "top", np.float32(2)))
    assert model.graph[0].inputs[1] is None
    np.testing.assert_array_equal(small_models.plain(model, X)["y"], np.minimum(X["x"], 2))


def test_only_the_chosen_readers_are_redirected():
    model = small_models.model("[p] a = Neg(x) [q] b = Mul(x, x) y = Add(a, b)", "float[2, 3] x", "float[2, 3] y")
    constant = edit.add_constant(model.graph, "c", np.full((2, 3), 7, np.float32))
    edit.redirect(model.graph.inputs[0], constant, [node(model, "q")])
    np.testing.assert_array_equal(small_models.plain(model, X)["y"], 49 - X["x"])


def test_a_bypassed_node_is_gone():
    model = chain()
    edit.bypass(node(model, "two"))
    check.check(model)
    np.testing.assert_array_equal(small_models.plain(model, X)["y"], np.maximum(X["x"], 0) + 1)


def test_a_bypassed_graph_output_keeps_its_name():
    model = chain()
    edit.bypass(node(model, "three"))
    check.check(model)
    np.testing.assert_array_equal(small_models.plain(model, X)["y"], -np.maximum(X["x"], 0))


def test_a_bypassed_output_beside_its_own_source_keeps_both_names():
    model = small_models.model("a = Relu(x) [n] y = Neg(a)", "float[2, 3] x", "float[2, 3] y, float[2, 3] a")
    edit.bypass(node(model, "n"))
    check.check(model)
    found = small_models.plain(model, X)
    assert list(found) == ["y", "a"]
    np.testing.assert_array_equal(found["y"], found["a"])


def test_bypassing_the_only_node_still_gives_a_runnable_model():
    model = small_models.model("[n] y = Neg(x)", "float[2, 3] x", "float[2, 3] y")
    edit.bypass(node(model, "n"))
    check.check(model)
    np.testing.assert_array_equal(small_models.plain(model, X)["y"], X["x"])


@pytest.mark.parametrize("name", ["two", "three"])
def test_a_replaced_node_leaves_its_output_name(name):
    model = chain()
    old = node(model, name)
    edit.replace_node(old, ir.node("Abs", [old.inputs[0]], name="new"))
    check.check(model)
    relu = np.maximum(X["x"], 0)
    np.testing.assert_array_equal(small_models.plain(model, X)["y"], relu + 1 if name == "two" else relu)


def test_unused_nodes_and_constants_go():
    model = chain()
    edit.add_constant(model.graph, "nobody", np.zeros(3, np.float32))
    node(model, "three").replace_input_with(0, model.graph.inputs[0])
    edit.remove_unused(model)
    assert [n.name for n in model.graph] == ["three"]
    assert list(model.graph.initializers) == ["w"]


# --- outputs ---


def test_kept_outputs_have_the_given_order_and_unneeded_nodes_are_removed():
    model = chain()
    values = {value.name: value for value in query.activations(model)}
    edit.keep_outputs(model, [values["b"], values["a"]])
    check.check(model)
    found = small_models.plain(model, X)
    assert list(found) == ["b", "a"]
    np.testing.assert_array_equal(found["b"], -np.maximum(X["x"], 0))
    assert "three" not in {n.name for n in model.graph}


def test_a_graph_input_can_be_kept_as_an_output():
    model = chain()
    edit.keep_outputs(model, [model.graph.inputs[0], node(model, "one").outputs[0]])
    check.check(model)
    copy, relu = small_models.plain(model, X).values()
    np.testing.assert_array_equal(copy, X["x"])
    np.testing.assert_array_equal(relu, np.maximum(X["x"], 0))


# --- extraction ---

UNARY, BINARY = ("Relu", "Neg", "Abs", "Sigmoid"), ("Add", "Sub", "Mul", "Max")


@st.composite
def graphs_and_parts(draw):
    """A random graph of 2 to 12 nodes over tensors [2, 3] and [1, 3], and some of its nodes."""
    rows, lines = {"x": 2, "z": 2, "w": 1}, []
    for number in range(draw(st.integers(2, 12))):
        output, kind = f"v{number}", draw(st.sampled_from(("unary", "binary", "split")))
        if kind == "split":  # two outputs, of which either may stay unread
            source = draw(st.sampled_from([name for name in rows if rows[name] == 2]))
            lines.append(f"[n{number}] {output}, {output}b = Split<axis = 0>({source}, parts)")
            rows |= {output: 1, f"{output}b": 1}
            continue
        inputs = [draw(st.sampled_from(sorted(rows))) for _ in range(2 if kind == "binary" else 1)]
        op = draw(st.sampled_from(BINARY if kind == "binary" else UNARY))
        lines.append(f"[n{number}] {output} = {op}({', '.join(inputs)})")
        rows[output] = max(rows[name] for name in inputs)
    outputs = draw(st.lists(st.sampled_from(list(rows)[3:]), min_size=1, max_size=3, unique=True))
    part = draw(st.lists(st.sampled_from([f"n{i}" for i in range(len(lines))]), min_size=1, unique=True))
    source = small_models.proto(
        "\n".join(lines),
        "float[2, 3] x, float[2, 3] z",
        ", ".join(f"float[{rows[name]}, 3] {name}" for name in outputs),
        {**small_models.weights(w=(1, 3)), "parts": np.array([1, 1])},
    )
    return onnx.shape_inference.infer_shapes(source), part


def crossing(source, part):
    """Names a part reads from outside and names others read of it, straight from the protobuf."""
    inside = [n for n in source.graph.node if n.name in part]
    outside = [n for n in source.graph.node if n.name not in part]
    made = {name for n in inside for name in n.output}
    constants = {tensor.name for tensor in source.graph.initializer}
    read = {name for n in inside for name in n.input}
    wanted = {name for n in outside for name in n.input} | {output.name for output in source.graph.output}
    return read - made - constants, made & wanted


@given(graphs_and_parts())
@settings(max_examples=40, deadline=None)
def test_an_extracted_part_computes_what_it_did_inside(case):
    source, part = case
    sources, results = crossing(source, part)
    model = ir.from_proto(source)
    before = text.dump(model)
    alone = edit.extract(model, part)
    assert text.dump(model) == before, "the model itself is left alone"
    assert {v.name for v in alone.graph.outputs} == results
    if not results:
        return
    check.check(alone)
    assert {n.name for n in alone.graph} == needed(source, part, results)
    assert {v.name for v in alone.graph.inputs} == sources
    rng = np.random.default_rng(0)
    known = small_models.every_value(source, {n: rng.standard_normal((2, 3)).astype(np.float32) for n in ("x", "z")})
    found = small_models.plain(alone, {name: known[name] for name in sources})
    for name in results:
        np.testing.assert_array_equal(found[name], known[name], err_msg=name)


def needed(source, part, results):
    """Names of the part's nodes that its results depend on."""
    producer = {name: n for n in source.graph.node if n.name in part for name in n.output}
    found, todo = set(), list(results)
    while todo:
        made = producer.get(todo.pop())
        if made is not None and made.name not in found:
            found.add(made.name)
            todo += made.input
    return found


def test_values_that_a_branch_reads_are_results_of_the_part():
    body = """[one] a = Relu(x)
    [two] y = If (c) <then_branch = yes () => (float[2, 3] t) { [inner] t = Neg(a) },
                      else_branch = no () => (float[2, 3] e) { e = Identity(a) }>"""
    model = small_models.model(body, "bool c, float[2, 3] x", "float[2, 3] y")
    alone = edit.extract(model, ["one"])
    check.check(alone)
    np.testing.assert_array_equal(small_models.plain(alone, X)["a"], np.maximum(X["x"], 0))


def test_an_extracted_part_has_no_weights_of_other_nodes():
    constants = small_models.weights(w=(2, 3), v=(2, 3))
    model = small_models.model("[one] a = Add(x, w) [two] y = Mul(a, v)", "float[2, 3] x", "float[2, 3] y", constants)
    assert set(edit.extract(model, ["one"]).graph.initializers) == {"w"}
    assert set(edit.extract(model, ["two"]).graph.initializers) == {"v"}


def test_a_part_in_front_of_a_branch_is_extracted_from_under_it():
    value = onnx.helper.make_tensor_value_info
    branches = {
        f"{way}_branch": onnx.helper.make_graph(
            [onnx.helper.make_node(op, ["a"], [way])], way, [], [value(way, onnx.TensorProto.FLOAT, None)]
        )
        for way, op in (("then", "Neg"), ("else", "Abs"))
    }
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["a"], name="one"),
        onnx.helper.make_node("If", ["flag"], ["y"], name="two", **branches),
    ]
    inputs = [value("x", onnx.TensorProto.FLOAT, [2, 3]), value("flag", onnx.TensorProto.BOOL, [])]
    graph = onnx.helper.make_graph(nodes, "g", inputs, [value("y", onnx.TensorProto.FLOAT, None)])
    opset = [onnx.helper.make_opsetid("", 17)]
    whole = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(whole))
    alone = edit.extract(model, ["one"])
    check.check(alone)
    np.testing.assert_array_equal(small_models.plain(alone, X)["a"], np.maximum(X["x"], 0))
    assert small_models.ops(model) == ["Relu", "If"], "the whole is as it was"
    check.check(model)


def test_outputs_get_their_names_back():
    model = small_models.model("y = Relu(x)", "float[4] x", "float[4] y")
    value = model.graph.outputs[0]
    model.graph.outputs.append(value)
    edit.name_outputs(model, ["y", "z"])
    assert [output.name for output in model.graph.outputs] == ["y", "z"]
    x = np.array([-1, 0, 1, 2], np.float32)
    got = small_models.plain(model, {"x": x})
    np.testing.assert_array_equal(got["z"], np.maximum(x, 0))
    np.testing.assert_array_equal(got["y"], got["z"])


def test_outputs_that_have_their_names_get_no_node():
    model = small_models.model("y = Relu(x)", "float[4] x", "float[4] y")
    edit.name_outputs(model, ["y"])
    assert len(list(model.graph)) == 1
