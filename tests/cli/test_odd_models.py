"""Models off the beaten track, through the command line: they keep inputs, outputs and answers, or are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import qdq_models
from command import samples
from onnx import TensorProto, helper, numpy_helper
from small_models import proto, weights

IMAGE = "float[1, 3, 16, 16] x"
PLAIN = weights(w=(8, 3, 3, 3), v=(16, 8, 3, 3), u=(8, 8, 3, 3))
X = {"x": samples()}
IDS = {"x": np.arange(48).reshape(12, 4) % 20}


def only(*names):
    return {name: PLAIN[name] for name in names}


def case(body, inputs, outputs, constants, feeds, int8, **options):
    """A model as text, samples for it, and the operators that become int8."""
    return lambda: proto(body, inputs, outputs, constants, **options), feeds, int8


def graph_model(nodes, inputs, outputs, constants):
    """A model that the text form cannot express."""
    ports = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "odd", *ports, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def constant_nodes():
    """Weights as Constant nodes."""
    model = proto("c = Conv(x, w) y = Relu(c)", IMAGE, "float[1, 8, 14, 14] y")
    weight = numpy_helper.from_array(PLAIN["w"])
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    return model


def branches():
    """An If of a convolution and of the value as it is; convolutions before and behind it."""
    value = helper.make_tensor_value_info
    then = helper.make_graph(
        [helper.make_node("Conv", ["r", "u"], ["t"], pads=[1] * 4)], "then", [], [value("t", TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["r"], ["e"])], "else", [], [value("e", TensorProto.FLOAT, None)]
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["b"]),
        helper.make_node("If", ["b"], ["i"], then_branch=then, else_branch=other),
        helper.make_node("Conv", ["i", "v"], ["y"], pads=[1] * 4),
    ]
    constants = {**PLAIN, "u": PLAIN["u"] / 8, "zero": np.float32(0)}  # both ways of one size, for one range
    return graph_model(nodes, {"x": [1, 3, 16, 16]}, {"y": [1, 16, 16, 16]}, constants)


def loop():
    """A convolution applied three times by a Loop."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Conv", ["before", "u"], ["after"], pads=[1] * 4),
            helper.make_node("Identity", ["going"], ["on"]),
        ],
        "body",
        [value("turn", TensorProto.INT64, []), value("going", TensorProto.BOOL, []), value("before", 1, None)],
        [value("on", TensorProto.BOOL, []), value("after", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Loop", ["turns", "yes", "c"], ["l"], body=body),
        helper.make_node("Relu", ["l"], ["y"]),
    ]
    constants = {**only("w", "u"), "turns": np.int64(3), "yes": np.array(True)}
    return graph_model(nodes, {"x": [1, 3, 16, 16]}, {"y": [1, 8, 16, 16]}, constants)


def function():
    """An operator that the model defines itself."""
    model = proto("c = Conv(x, w) y = Relu(c)", IMAGE, "float[1, 8, 14, 14] y", only("w"))
    model.graph.node[1].op_type, model.graph.node[1].domain = "MyRelu", "mine"
    model.opset_import.append(helper.make_opsetid("mine", 1))
    relu = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(helper.make_function("mine", "MyRelu", ["a"], ["b"], relu, [helper.make_opsetid("", 17)]))
    return model


def nameless():
    """A graph without a name, and an output whose shape is not stated."""
    model = proto("c = Conv(x, w) y = Relu(c)", IMAGE, "float[1, 8, 14, 14] y", only("w"))
    model.graph.name = ""
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def strange_names():
    model = proto("c = Conv(x, w) y = Relu(c)", IMAGE, "float[1, 8, 14, 14] y", only("w"))
    model.graph.input[0].name = model.graph.node[0].input[0] = "ein gäbe:/x y"
    model.graph.output[0].name = model.graph.node[1].output[0] = "a/b:0"
    return model


WORKING = {
    "scalar input": case(
        "y = Mul(x, c)", "float x", "float[4] y", {"c": np.ones(4, np.float32)}, {"x": np.arange(12, dtype="f4")}, {}
    ),
    "a decoder with nothing in its cache": case(
        "k = Concat<axis = 1>(past, x) y = MatMul(k, w)",
        "float[1, S, 16] x, float[1, P, 16] past",
        "float[1, T, 8] y, float[1, T, 16] k",
        weights(w=(16, 8)),
        {"x": samples(12, (5, 16)), "past": np.zeros((12, 0, 16), "f4")},
        {"MatMul"},
    ),
    "integers only": case("y = Add(x, c)", "int64[1, 4] x", "int64[1, 4] y", {"c": np.ones(4, np.int64)}, IDS, {}),
    "ids": case(
        "e = Gather(t, x) y = MatMul(e, w)",
        "int64[1, 4] x",
        "float[1, 4, 8] y",
        weights(t=(20, 16), w=(16, 8)),
        IDS,
        {"MatMul"},
    ),
    "nothing for int8": case("a = Sin(x) y = Exp(a)", IMAGE, "float[1, 3, 16, 16] y", {}, X, {}),
    "input is output": case("y = Identity(x)", IMAGE, "float[1, 3, 16, 16] y", {}, X, {}),
    "unused input": case(
        "c = Conv(x, w) y = Relu(c)",
        f"{IMAGE}, float[1, 2] z",
        "float[1, 8, 14, 14] y",
        only("w"),
        {**X, "z": samples(12, (2,))},
        {"Conv", "Relu"},
    ),
    "dynamic batch": case(
        "c = Conv(x, w) r = Relu(c) y = Conv(r, v)",
        "float[N, 3, 16, 16] x",
        "float[N, 16, 12, 12] y",
        only("w", "v"),
        X,
        {"Conv", "Relu"},
    ),
    "two inputs, two outputs": case(
        "c = Conv(a, w) d = Conv(b, w) s = Add(c, d) r = Relu(s) y = Conv(r, v) z = GlobalAveragePool(r)",
        "float[1, 3, 16, 16] a, float[1, 3, 16, 16] b",
        "float[1, 16, 12, 12] y, float[1, 8, 1, 1] z",
        only("w", "v"),
        {"a": samples(), "b": samples()[::-1]},
        {"Conv", "Add", "Relu"},
    ),
    "1-D convolution": case(
        "c = Conv(x, w) r = Relu(c) y = Conv(r, v)",
        "float[1, 3, 64] x",
        "float[1, 16, 60] y",
        weights(w=(8, 3, 3), v=(16, 8, 3)),
        {"x": samples(12, (3, 64))},
        {"Conv", "Relu"},
    ),
    "outputs are quantized tensors": case(
        "c = Conv(x, w) r = Relu(c) y = Conv(r, v)",
        IMAGE,
        "float[1, 8, 14, 14] c, float[1, 8, 14, 14] r, float[1, 16, 12, 12] y",
        only("w", "v"),
        X,
        {"Conv"},
    ),
    "an output is read on": case(
        "c = Conv<pads = [1, 1, 1, 1]>(x, w) d = Conv<pads = [1, 1, 1, 1]>(c, u) a = Add(c, d)"
        "y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a)",
        IMAGE,
        "float[1, 8, 16, 16] a, float[1, 8, 8, 8] y",
        only("w", "u"),
        X,
        {"Conv"},
    ),
    "one weight twice": case(
        "c = Conv(x, w) d = Conv(x, again) a = Add(c, d) y = Conv(a, v)",
        IMAGE,
        "float[1, 16, 12, 12] y",
        {**only("w", "v"), "again": PLAIN["w"]},
        X,
        {"Conv", "Add"},
    ),
    "no weights at all": case(
        "c = Conv(x, w, b) y = Relu(c)",
        IMAGE,
        "float[1, 8, 14, 14] y",
        {"w": np.zeros((8, 3, 3, 3), np.float32), "b": np.zeros(8, np.float32)},
        X,
        {"Conv", "Relu"},
    ),
    "float16": case(
        "c = Conv(x, w) y = Relu(c)",
        "float16[1, 3, 16, 16] x",
        "float16[1, 8, 14, 14] y",
        {"w": PLAIN["w"].astype(np.float16)},
        {"x": samples().astype(np.float16)},
        {"Conv", "Relu"},
    ),
    "pixels": case(
        "f = Cast<to = 1>(x) c = Conv(f, w) y = Relu(c)",
        "uint8[1, 3, 16, 16] x",
        "float[1, 8, 14, 14] y",
        only("w"),
        {"x": (samples() * 40 + 128).clip(0, 255).astype(np.uint8)},
        {"Conv", "Relu"},
    ),
    "old": case("c = Conv(x, w) y = Relu(c)", IMAGE, "float[1, 8, 14, 14] y", only("w"), X, {"Conv", "Relu"}, opset=9),
    "constant nodes": (constant_nodes, X, {"Conv", "Relu"}),
    "branches": (branches, X, {"Conv", "Relu"}),
    "loop": (loop, X, {"Conv"}),
    "function": (function, X, {"Conv", "Relu"}),
    "nameless": (nameless, X, {"Conv", "Relu"}),
    "strange names": (strange_names, {"ein gäbe:/x y": samples()}, {"Conv", "Relu"}),
}


@pytest.mark.parametrize("kind", WORKING)
def test_works(toolchain, workplace, kind):
    make, feeds, int8 = WORKING[kind]
    onnx.save(make(), "odd.onnx")
    np.savez("odd.npz", **feeds)
    done = toolchain("quantize odd.onnx -c odd.npz --recipe fast.toml -o q.onnx --json")
    assert done.code == 0, done.err
    nodes = done.result["nodes"]
    assert {node["op"] for node in nodes if node["precision"] == "int8"} == set(int8)
    assert all(node["reason"] for node in nodes if node["precision"] != "int8")
    source, result = session("odd.onnx"), session("q.onnx")
    assert ports(result.get_inputs()) == ports(source.get_inputs())
    assert [(o.name, o.type) for o in result.get_outputs()] == [(o.name, o.type) for o in source.get_outputs()]
    for number in range(3):
        feed = {i.name: sample(feeds[i.name][number], i.shape) for i in source.get_inputs()}
        for expected, got in zip(source.run(None, feed), result.run(None, feed), strict=True):
            # 8 bits of a range of some six standard deviations: noise of 1 % of the signal at each of three layers.
            assert got.shape == expected.shape
            assert np.linalg.norm(got.astype("f8") - expected) <= 0.05 * np.linalg.norm(expected.astype("f8"))


def session(path):
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def ports(found):
    return [(port.name, port.type, port.shape) for port in found]


def sample(array, shape):
    return np.asarray(array if array.ndim == len(shape) else array[None])


def test_external_data(toolchain, workplace):
    onnx.save(onnx.load("net.onnx"), "ext.onnx", save_as_external_data=True, location="ext.bin", size_threshold=0)
    Path("moved").mkdir()
    assert toolchain("quantize ext.onnx -c samples.npz --recipe fast.toml -o moved/q.onnx").code == 0
    assert toolchain("optimize ext.onnx -o moved/clean.onnx").code == 0
    for name in ("ext.onnx", "ext.bin"):
        Path(name).unlink()
    for name in ("q", "clean"):
        session(f"moved/{name}.onnx")


def _sequence(side):
    def make():
        tensor = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
        many = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [1, 4])
        if side == "input":
            nodes = [helper.make_node("SequenceAt", ["s", "first"], ["x"])]
        else:
            nodes = [helper.make_node("SequenceConstruct", ["x", "x"], ["s"])]
        first = numpy_helper.from_array(np.int64(0), "first")
        ends = ([many], [tensor]) if side == "input" else ([tensor], [many])
        graph = helper.make_graph(nodes, "sequence", *ends, [first] if side == "input" else [])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    return make


def without_shape():
    model = proto("y = Relu(x)", IMAGE, "float[1, 3, 16, 16] y")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    return model


REFUSED = {
    "no inputs": (
        lambda: proto("y = Relu(c)", "", "float[4] y", {"c": np.ones(4, np.float32)}),
        "samples.npz: the model takes no inputs; calibration needs a model with inputs",
    ),
    "text": (
        lambda: proto("y = Identity(x)", "string[1, 3, 16, 16] x", "string[1, 3, 16, 16] y"),
        "samples.npz: sample 0, input 'x': is float32 where the model takes text; give an array of strings",
    ),
    "not a number": (
        lambda: proto(
            "y = Conv(x, w)", IMAGE, "float[1, 8, 14, 14] y", {"w": np.full((8, 3, 3, 3), np.nan, np.float32)}
        ),
        "samples.npz: sample 0: makes tensor 'y' NaN; check the preprocessing and the model on this sample",
    ),
    "sequence as input": (
        _sequence("input"),
        "odd.onnx: input 's': is a list (Sequence), and only tensors are supported",
    ),
    "sequence as output": (_sequence("output"), "odd.onnx: output 's': is a list (Sequence), and only tensors are"),
    "no rank": (
        without_shape,
        "odd.onnx: 'x' has no shape; not even its number of axes is known; export the model with shapes",
    ),
    "quantized already": (
        lambda: onnx.load(qdq_models.residual(Path("qdq.onnx"), signed=False)),
        "odd.onnx: is quantized already; give the float model it was made from; `toolchain inspect` and `bench` take",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(toolchain, workplace, kind):
    make, said = REFUSED[kind]
    onnx.save(make(), "odd.onnx")
    done = toolchain("quantize odd.onnx -c samples.npz --recipe fast.toml -o q.onnx")
    assert done.code == 2
    assert done.sentence.startswith(said)
    assert not Path("q.onnx").exists()


def test_what_cannot_be_quantized_can_still_be_looked_at(toolchain, workplace):
    qdq_models.residual(Path("qdq.onnx"), signed=False)
    text = proto("y = Identity(x)", "string[1] x", "string[1] y")
    onnx.save(text, "text.onnx")
    for name in ("qdq", "text"):
        assert toolchain(f"inspect {name}.onnx").code == 0


def test_float16_becomes_int8_between_float16_inputs_and_outputs(toolchain, workplace):
    constants = {name: array.astype(np.float16) for name, array in only("w", "v").items()}
    body = "c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c) y = Conv<pads = [1, 1, 1, 1]>(r, v)"
    onnx.save(proto(body, "float16[1, 3, 16, 16] x", "float16[1, 16, 16, 16] y", constants), "half.onnx")
    np.savez("half.npz", x=samples().astype(np.float16))
    done = toolchain("quantize half.onnx -c half.npz --recipe fast.toml -o q.onnx")
    assert done.code == 0
    assert "note: float16 became float32, which int8 needs; inputs and outputs keep float16" in done.err
    x = samples()[:1].astype(np.float16)
    engines = [
        onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"]) for name in ("half.onnx", "q.onnx")
    ]
    expected, got = (engine.run(None, {"x": x})[0] for engine in engines)
    assert got.dtype == np.float16
    error = (got.astype("f4") - expected.astype("f4")).std() / expected.astype("f4").std()
    assert error < 0.03  # 30 dB; two convolutions with int8 weights and activations
    assert "QuantizeLinear" in {node.op_type for node in onnx.load("q.onnx").graph.node}
