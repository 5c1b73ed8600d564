"""Queries on small graphs whose results are obvious."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models

from toolchain.graph import query


@pytest.fixture
def graph():
    """x and a default-valued input feed a small net with every kind of constant."""
    source = small_models.proto(
        """
        k = Constant<value = float[2] {1.0, 2.0}>()
        f = Constant<value_float = 0.25>()
        i = Constant<value_ints = [3, -1]>()
        a = Add(x, w)
        b = Mul(a, k)
        c = Mul(b, f)
        s = Add(c, given)
        left, right = Split<axis = 0>(s, parts)
        y = Relu(left)
        """,
        "float[N, 2] x, float[2] given",
        "float[?, 2] y, float[?, 2] right",
        {"w": np.ones(2, np.float32), "given": np.zeros(2, np.float32), "parts": np.array([1, 1])},
    )
    return ir.from_proto(source)


def value(graph, name):
    found = {v.name: v for v in query.activations(graph)}
    return found.get(name) or graph.graph.initializers[name]


def node(graph, output):
    return value(graph, output).producer()


def test_constants(graph):
    np.testing.assert_array_equal(query.constant(value(graph, "w")), np.ones(2))
    np.testing.assert_array_equal(query.constant(value(graph, "k")), [1, 2])
    assert query.constant(value(graph, "f")) == np.float32(0.25)
    np.testing.assert_array_equal(query.constant(value(graph, "i")), [3, -1])


@pytest.mark.parametrize("name", ["x", "a", "y"])
def test_inputs_and_computed_values_are_no_constants(graph, name):
    assert query.constant(value(graph, name)) is None


def test_a_default_that_a_user_may_replace_is_no_constant(graph):
    given = graph.graph.initializers["given"]
    assert given.is_graph_input()
    assert query.constant(given) is None
    assert query.constant(None) is None


def test_an_operator_called_constant_in_another_domain_is_no_constant():
    foreign = ir.Node("com.example", "Constant", [], name="n")
    assert query.constant(foreign.outputs[0]) is None


def test_scalars_and_ints(graph):
    assert query.scalar(value(graph, "f")) == 0.25
    assert query.scalar(value(graph, "k")) is None
    assert query.scalar(value(graph, "x")) is None
    assert query.ints(value(graph, "i")) == [3, -1]
    assert query.ints(value(graph, "parts")) == [1, 1]
    assert query.ints(value(graph, "x")) is None
    assert query.scalar(ir.Value(name="v", const_value=ir.tensor([[[2.5]]]))) is None, "an unregistered value"


def test_float_array_takes_float32_alone(graph):
    assert query.float_array(value(graph, "w")).dtype == np.float32
    assert query.float_array(value(graph, "parts")) is None
    assert query.float_array(value(graph, "x")) is None


def test_attributes_come_as_plain_values():
    source = onnx.helper.make_node(
        "Conv", ["x"], ["y"], pads=[1, 1], group=2, auto_pad="VALID", ratio=0.5, names=["a", "b"]
    )
    made = ir.from_proto(source)
    assert query.attribute(made, "pads") == [1, 1]
    assert query.attribute(made, "group", 1) == 2
    assert query.attribute(made, "auto_pad") == "VALID"
    assert query.attribute(made, "ratio") == 0.5
    assert query.attribute(made, "names") == ["a", "b"]
    assert query.attribute(made, "dilations") is None
    assert query.attribute(made, "dilations", [1]) == [1]


@pytest.mark.parametrize(
    ("domain", "key"), [("", "Gelu"), ("ai.onnx", "Gelu"), ("com.microsoft", "com.microsoft::Gelu")]
)
def test_op_is_the_key_of_the_table(domain, key):
    assert query.op(ir.Node(domain, "Gelu", [])) == key


def test_label_falls_back_to_the_output_then_the_operator():
    assert query.label(ir.Node("", "Relu", [], name="mine")) == "mine"
    assert query.label(ir.Node("", "Relu", [], outputs=[ir.Value(name="out")])) == "out"
    assert query.label(ir.Node("", "Relu", [])) == "Relu"


def test_computed_inputs_are_neither_constant_nor_left_off(graph):
    x, a, w = (value(graph, name) for name in ("x", "a", "w"))
    node = ir.node("Custom", [a, w, None, x, a, value(graph, "k")])
    assert query.computed_inputs(node) == [a, x, a]


def test_readers_are_distinct_nodes():
    square = ir.from_proto(
        small_models.proto("s = Mul(x, x) y = Relu(s) z = Neg(s)", "float[2] x", "float[2] y, float[2] z")
    )
    x, s = value(square, "x"), value(square, "s")
    assert [n.op_type for n in query.consumers(x)] == ["Mul"]
    assert query.sole_consumer(x).op_type == "Mul"
    assert {n.op_type for n in query.consumers(s)} == {"Relu", "Neg"}
    assert query.sole_consumer(s) is None


def test_graph_outputs_have_no_sole_consumer(graph):
    assert query.sole_consumer(value(graph, "right")) is None
    assert query.sole_consumer(value(graph, "left")).op_type == "Relu"
    both = small_models.model("a = Relu(x) y = Neg(a)", "float[2] x", "float[2] y, float[2] a")
    assert query.sole_consumer(value(both, "a")) is None, "read by one node and a graph output"


def test_sizes_and_elements(graph):
    x = value(graph, "x")
    assert query.sizes(x) == (1, 2)
    assert query.sizes(x, dynamic=7) == (7, 2)
    assert query.elements(x) == 2
    assert query.rank(x) == 2
    unknown = ir.Value(name="v")
    assert (query.sizes(unknown), query.elements(unknown), query.rank(unknown), query.sizes(None)) == (None,) * 4
    assert query.elements(ir.Value(name="v", shape=ir.Shape([]))) == 1
    assert query.sizes(ir.Value(name="v", shape=ir.Shape([-1, 3])), dynamic=5) == (5, 3), "old exporters write -1"
    big = ir.Value(name="v", shape=ir.Shape([2**20, 2**20]))
    assert query.elements(big) == 2**40


def test_is_float_means_float32(graph):
    assert query.is_float(value(graph, "x"))
    assert not query.is_float(value(graph, "parts"))
    assert not query.is_float(None)
    assert not query.is_float(ir.Value(name="v", type=ir.TensorType(ir.DataType.FLOAT16)))


def test_activations_are_fed_or_computed_in_graph_order(graph):
    names = [v.name for v in query.activations(graph)]
    assert names == ["x", "k", "f", "i", "a", "b", "c", "s", "left", "right", "y"]


WINDOWS = [
    "strides = [1, 1]",
    "strides = [2, 3]",
    "pads = [1, 2, 3, 0], strides = [2, 2]",
    "dilations = [2, 3], pads = [2, 2, 2, 2]",
    *(f'auto_pad = "SAME_{end}", strides = [{s}, {4 - s}]' for end in ("UPPER", "LOWER") for s in (1, 2, 3)),
    'auto_pad = "VALID", strides = [2, 1]',
    'auto_pad = "NOTSET", pads = [1, 1, 1, 1]',
]


@pytest.mark.parametrize("attributes", WINDOWS)
@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (4, 5)])
@pytest.mark.parametrize("spatial", [(11, 13), (12, 14)])
def test_a_window_has_the_sizes_that_onnxruntime_uses(attributes, kernel, spatial):
    """A kernel of ones over numbered pixels, computed by hand on the padded image."""
    text = f"float[1, 1, {spatial[0]}, {spatial[1]}] x"
    weight = np.ones((1, 1, *kernel), np.float32)
    model = small_models.model(f"y = Conv<{attributes}>(x, w)", text, "y", {"w": weight})
    strides, dilations, before, behind = query.window(next(iter(model.graph)), spatial)
    x = np.arange(1.0, np.prod(spatial) + 1, dtype=np.float32).reshape(1, 1, *spatial)
    padded = np.pad(x[0, 0], list(zip(before, behind, strict=True)))
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    rows, columns = (range(0, n - r + 1, s) for n, r, s in zip(padded.shape, reach, strides, strict=True))
    by_hand = [
        [padded[i : i + reach[0] : dilations[0], j : j + reach[1] : dilations[1]].sum() for j in columns] for i in rows
    ]
    np.testing.assert_allclose(small_models.plain(model, {"x": x})["y"][0, 0], by_hand, rtol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "width", "pads"),
    [
        ("pads = [0, 1]", "9", True),
        ("pads = [0, 0]", "9", False),
        ('auto_pad = "VALID"', "9", False),
        ('auto_pad = "SAME_UPPER"', "9", True),
        ('auto_pad = "SAME_LOWER"', "W", True),
        ('auto_pad = "VALID"', "W", False),
        ('auto_pad = "SAME_UPPER", strides = [3]', "9", False),
    ],
)
def test_padding_in_every_spelling(attributes, width, pads):
    body = f"y = AveragePool<kernel_shape = [3], {attributes}>(x)"
    model = small_models.model(body, f"float[1, 1, {width}] x", "y")
    assert query.may_pad(next(iter(model.graph))) is pads


def test_a_window_of_one_axis_and_of_three():
    for rank in (1, 3):
        shape = ", ".join(["1", "1"] + ["5"] * rank)
        weight = np.ones((1, 1, *[3] * rank), np.float32)
        model = small_models.model("y = Conv(x, w)", f"float[{shape}] x", "y", {"w": weight})
        assert query.window(next(iter(model.graph)), [5] * rank) == ([1] * rank, [1] * rank, [0] * rank, [0] * rank)


def test_opset(graph):
    assert query.opset(graph) == 17
    graph.opset_imports.pop("")
    assert query.opset(graph) == 0
