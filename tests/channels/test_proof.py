"""The proof fails for wrong cuts, each with one fault."""

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from small_models import weights

from toolchain.channels import proof
from toolchain.channels.cut import apply_cuts, separate
from toolchain.channels.proof import masked, verify_cuts, with_selection_weights
from toolchain.graph import edit, query, run

KEEP = {"first": [0, 2, 5]}


@pytest.fixture
def model():
    """There is a bias and f(0) = 1/2 between the producer of the channels and their consumer."""
    body = (
        "[first] a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w, b) s = Sigmoid(a) "
        "[deep] d = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 6>(s, g, h) "
        "[last] y = Conv<kernel_shape = [1, 1]>(d, v, t)"
    )
    constants = weights(w=(6, 3, 3, 3), b=(6,), g=(6, 1, 3, 3), h=(6,), v=(4, 6, 1, 1), t=(4,))
    return separate(small_models.model(body, "float[1, 3, 8, 8] x", "float[1, 4, 8, 8] y", constants))


def changed(model, **arrays):
    for name, change in arrays.items():
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(np.ascontiguousarray(change(value.const_value.numpy())), name=name)
    return model


def test_a_correct_cut_is_proved(model):
    found = verify_cuts(model, KEEP, apply_cuts(model, KEEP))
    assert (found.mismatches, found.identical, found.exact) == ((), True, True)
    assert found.error < 1e-5


# Each of them gives a well-formed graph of the right sizes.
MUTATIONS = {
    "another channel is kept by its maker": {"w": lambda w: np.roll(w, 1, 0)},
    "another channel is kept by its reader": {"v": lambda v: np.roll(v, 1, 1)},
    "a bias is forgotten": {"b": np.zeros_like},
    "a bias is of another channel": {"h": lambda h: h[::-1]},
    "a depthwise kernel is of another channel": {"g": lambda g: g[::-1]},
    "outputs are in another order": {"v": lambda v: v[::-1]},
    "one weight is a little off": {"v": lambda v: v + np.float32(1e-2) * (np.arange(v.size) == 3).reshape(v.shape)},
}


@pytest.mark.parametrize("fault", MUTATIONS)
def test_a_wrong_cut_is_detected(model, fault):
    pruned = changed(apply_cuts(model, KEEP), **MUTATIONS[fault])
    assert any("differs by" in sentence for sentence in verify_cuts(model, KEEP, pruned).mismatches)


@pytest.mark.parametrize("fault", [name for name in MUTATIONS if "forgotten" not in name and "little" not in name])
def test_wrong_cutting_code_is_detected_with_selection_weights(model, monkeypatch, fault):
    right = apply_cuts
    monkeypatch.setattr(proof, "apply_cuts", lambda dense, cuts: changed(right(dense, cuts), **MUTATIONS[fault]))
    found = verify_cuts(model, KEEP, right(model, KEEP))
    assert not found.identical
    assert found.mismatches == ("output 'y' is not the same with selection weights",)


def test_a_cut_of_other_positions_is_detected(model):
    assert verify_cuts(model, KEEP, apply_cuts(model, {"first": [0, 2, 4]})).mismatches


def test_a_model_that_was_not_cut_is_detected(model):
    assert verify_cuts(model, KEEP, apply_cuts(model, {})).mismatches


def test_masking_the_producers_is_not_the_reference(model, monkeypatch):
    """The bias and the sigmoid of zero reach the consumer, so this mask must not count as the reference."""

    def makers(dense, cuts):
        clone = dense.clone()
        mask = np.isin(np.arange(6), cuts["first"]).astype(np.float32).reshape(6, 1, 1, 1)
        weight = query.constant(clone.graph.initializers["w"])
        edit.set_input(clone.graph[0], 1, edit.add_constant(clone.graph, "zeroed", weight * mask))
        return clone

    monkeypatch.setattr(proof, "masked", makers)
    assert verify_cuts(model, KEEP).mismatches


def test_only_consumers_are_masked(model):
    found = masked(model, KEEP)
    products = [node for node in found.graph if node.op_type == "Mul"]
    assert [consumer.name for node in products for consumer in query.consumers(node.outputs[0])] == ["last"]
    np.testing.assert_array_equal(query.constant(products[0].inputs[1]).reshape(-1), [1, 0, 1, 0, 0, 1])


@pytest.mark.parametrize(
    ("op", "shape", "summed"),
    [
        ("Conv<group = 2>(x, w)", (6, 2, 3, 3), (1, 2, 3)),
        ("MatMul(x, w)", (4, 6), (0,)),
        ("MatMul(w, x)", (6, 4), (1,)),
        ("Gemm<transB = 1>(x, w)", (6, 4), (1,)),
        ("Gemm<transA = 1>(w, x)", (4, 6), (0,)),
    ],
)
def test_selection_weights_have_one_entry_in_every_sum(op, shape, summed):
    body = f"y = {op}"
    fed = "float[1, 4, 8, 8] x" if "Conv" in op else "float[4, 4] x"
    model = ir.from_proto(small_models.proto(body, fed, "y", weights(w=shape)))
    array = query.constant(with_selection_weights(model, 0).graph.initializers["w"])
    assert (np.abs(array).sum(summed) == 1).all()
    assert set(np.unique(array)) <= {-1, 0, 1}


def test_every_group_of_a_transposed_convolution_has_selection_weights():
    model = ir.from_proto(small_models.proto("y = ConvTranspose<group = 3>(x, w)", "float[1, 6, 4, 4] x", "y",
                                             weights(w=(6, 2, 2, 2))))  # fmt: skip
    array = query.constant(with_selection_weights(model, 0).graph.initializers["w"])
    np.testing.assert_array_equal(np.abs(array.reshape(3, 2, 2, 4)).sum((1, 3)), np.ones((3, 2)))


def test_sums_of_activations_are_held_to_a_tolerance():
    body = "[one] a = MatMul(x, w) t = Transpose<perm = [1, 0]>(a) s = MatMul(a, t) y = Relu(s)"
    model = separate(small_models.model(body, "float[3, 6] x", "float[3, 3] y", weights(w=(6, 8))))
    found = verify_cuts(model, {"one:2": [0, 3, 6]})
    assert found.mismatches == ()
    assert not found.exact


def test_onnxruntime_folds_no_scale_into_selection_weights(tmp_path):
    body = "a = Conv(x, w) c = BatchNormalization(a, s, b, m, v) y = Mul(c, k)"
    constants = {**weights(w=(6, 3, 1, 1), s=(6,), b=(6,), m=(6,), k=(6, 1, 1)), "v": np.ones(6, np.float32)}
    model = small_models.model(body, "float[1, 3, 8, 8] x", "float[1, 6, 8, 8] y", constants)
    run.session(model, without=proof.REORDERING_TRANSFORMERS, optimized=tmp_path / "run.onnx")
    assert small_models.ops(ir.load(tmp_path / "run.onnx")) == ["Conv", "BatchNormalization", "Mul"]
