"""Models that give two results for one input are refused, by the name of the node that is the cause."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import BATCH_NORM, proto, weights

from toolchain.conversion.source import convert
from toolchain.core.errors import ModelError

IMAGE, RESULT = "float[1, 3, 8, 8] x", "float[1, 2, 8, 8] y"
CONV = "c = Conv<pads = [1, 1, 1, 1]>(x, w) "
TRUE, FALSE = np.array(True), np.array(False)
HALF, NOTHING = np.float32(0.5), np.float32(0)


def saved(path, body, constants, **options):
    model = proto(CONV + body, IMAGE, RESULT, {**weights(w=(2, 3, 3, 3)), **constants}, **options)
    onnx.save(model, path / "m.onnx")
    return path / "m.onnx"


@pytest.mark.parametrize(
    ("body", "constants", "message"),
    [
        (
            "d = Dropout(c, r, t) y = Relu(d)",
            {"r": HALF, "t": TRUE},
            r"node 'd' \(Dropout\) is in training mode, .*\.eval",
        ),
        ("d, k = Dropout(c, r, t) y = Relu(d)", {"r": HALF, "t": TRUE}, r"node 'd' \(Dropout\) is in training mode"),
        ("d = Dropout(c, , t) y = Relu(d)", {"t": TRUE}, r"node 'd' \(Dropout\) is in training mode, so .* is random"),
        (
            "d = Dropout(c, r, t) e = Dropout(d, r, t) y = Relu(e)",
            {"r": HALF, "t": TRUE},
            r"node 'd' \(Dropout\), node 'e' \(Dropout\) are in training mode",
        ),
        (
            "y, m, v = BatchNormalization<training_mode = 1>(c, gamma, beta, mu, var)",
            BATCH_NORM,
            r"node 'y' \(BatchNormalization\) is in training mode, so that each answer depends on the whole",
        ),
        ("z = RandomNormalLike(c) y = Add(c, z)", {}, r"draws random numbers in node 'z' \(RandomNormalLike\), and so"),
        ("z = RandomUniform<shape = [2, 8, 8]>() y = Add(c, z)", {}, r"node 'z' \(RandomUniform\)"),
        ("z = RandomNormal<shape = [8], seed = 1.0>() y = Add(c, z)", {}, r"node 'z' \(RandomNormal\)"),
        ("s = Sigmoid(c) z = Bernoulli(s) y = Mul(c, z)", {}, r"node 'z' \(Bernoulli\)"),
        (
            "f = Flatten(c) m = Multinomial<sample_size = 64>(f) k = Cast<to = 1>(m) s = Reshape(k, h) y = Add(c, s)",
            {"h": np.array([1, 1, 8, 8])},
            r"node 'm' \(Multinomial\)",
        ),
    ],
)
def test_refused(tmp_path, body, constants, message):
    with pytest.raises(ModelError, match=message):
        convert(saved(tmp_path, body, constants))


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("d = Dropout(c, r, t) y = Relu(d)", {"r": HALF, "t": FALSE}),
        ("d = Dropout(c, r) y = Relu(d)", {"r": HALF}),
        ("d = Dropout(c, r, t) y = Relu(d)", {"r": NOTHING, "t": TRUE}),
        ("y = BatchNormalization(c, gamma, beta, mu, var)", BATCH_NORM),
        ("z = RandomNormalLike(c) n = Add(c, z) y = Relu(c)", {}),
        ("z = RandomNormalLike(c) s = Mul(z, zero) y = Add(c, s)", {"zero": NOTHING}),
        ("d = Dropout(c, r, t) e = Relu(d) y = Relu(c)", {"r": HALF, "t": TRUE}),
    ],
    ids=["inference", "no flag", "ratio 0", "batch norm", "dead branch", "noise times 0", "dead dropout"],
)
def test_taken(tmp_path, body, constants):
    assert convert(saved(tmp_path, body, constants)).model.graph.outputs[0].name == "y"


@pytest.mark.parametrize("opset", [7, 9, 13])
def test_outputs_ask_for_training_mode_in_old_opsets(tmp_path, opset):
    body = "y, m, v, sm, sv = BatchNormalization(c, gamma, beta, mu, var)"
    with pytest.raises(ModelError, match=r"node 'y' \(BatchNormalization\) is in training mode"):
        convert(saved(tmp_path, body, BATCH_NORM, opset=opset, ir_version=4))


def test_a_dropout_of_an_old_opset_is_in_inference_mode(tmp_path):
    path = saved(tmp_path, "d, k = Dropout<ratio = 0.5>(c) y = Relu(d)", {}, opset=10, ir_version=4)
    assert convert(path).parity.max_abs_error == 0


def test_random_numbers_in_a_branch(tmp_path):
    value = helper.make_tensor_value_info
    noisy = helper.make_graph(
        [helper.make_node("RandomNormalLike", ["c"], ["t"])], "then", [], [value("t", TensorProto.FLOAT, None)]
    )
    plain = helper.make_graph(
        [helper.make_node("RandomUniformLike", ["c"], ["e"])], "else", [], [value("e", TensorProto.FLOAT, None)]
    )
    model = onnx.load(saved(tmp_path, "y = Relu(c)", {"flag": TRUE}))
    model.graph.node.pop()
    model.graph.node.append(helper.make_node("If", ["flag"], ["y"], then_branch=noisy, else_branch=plain))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"node '[te]' .*, node '[te]' "):
        convert(tmp_path / "m.onnx")


def test_random_numbers_in_a_function(tmp_path):
    path = saved(tmp_path, "y = Relu(c)", {})
    model = onnx.load(path)
    nodes = [helper.make_node("RandomNormalLike", ["a"], ["r"], "draw"), helper.make_node("Add", ["a", "r"], ["b"])]
    imports = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", "Noisy", ["a"], ["b"], nodes, imports))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[-1].CopyFrom(helper.make_node("Noisy", ["c"], ["y"], domain="mine"))
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"node '(r|draw)' \(RandomNormalLike\)"):
        convert(path)
