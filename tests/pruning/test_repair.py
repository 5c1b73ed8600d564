"""Layer repair: layers are fitted to the dense model's outputs from their new inputs."""

import numpy as np
import pytest
import small_models
from small_models import plain, weights

from toolchain.channels.branches import drop_branches
from toolchain.channels.cut import apply_cuts, separate
from toolchain.data.calibration import open_data
from toolchain.graph import io
from toolchain.optimization.passes import optimize
from toolchain.pruning.repair import repair


def prepared(body, constants, outputs="float[n, 4, 8, 8] y"):
    source = small_models.model(body, "float[n, 3, 8, 8] x", outputs, constants)
    return separate(optimize(source, verify=False).model)


def feeds(count=24, seed=0):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((3, 3)).astype(np.float32)
    return [
        {"x": np.einsum("ij,njhw->nihw", mixing, rng.standard_normal((1, 3, 8, 8)).astype(np.float32))}
        for _ in range(count)
    ]


def error(dense, other, seed=7):
    """Relative error, on data that nothing was fitted to."""
    pairs = [(plain(dense, feed)["y"], plain(other, feed)["y"]) for feed in feeds(4, seed)]
    return sum(((a - b) ** 2).sum() for a, b in pairs) / sum((a**2).sum() for a, _ in pairs)


def whole(name):
    return None


def four_of_six(name):
    """Channels that are left of a tensor of the depthwise net."""
    return None if name == "y" else np.array([0, 2, 3, 5])


def test_a_copied_channel_that_is_cut_is_compensated_exactly():
    w = weights(w=(6, 3, 3, 3), b=(6,), v=(4, 6, 1, 1), k=(4,))
    w["w"][5], w["b"][5] = w["w"][0], w["b"][0]
    dense = prepared("c = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(c) y = Conv(r, v, k)", w)
    group = next(node.name for node in dense.graph if node.op_type == "Conv")
    cut = apply_cuts(dense, {group: [0, 1, 2, 3, 4]})
    repaired = repair(cut, dense, open_data(feeds(), io.inputs(dense)), whole)
    assert error(dense, cut) > 1e-3
    assert error(dense, repaired) < 1e-6


@pytest.mark.parametrize(
    "second",
    [
        "y = Conv<pads = [1, 1, 1, 1]>(r, v, k)",
        "d = Conv<group = 6, pads = [1, 1, 1, 1]>(r, dw, db) y = Conv(d, u, k)",
        "t = Transpose<perm = [0, 2, 3, 1]>(r) y = MatMul(t, mm)",
    ],
)
def test_repair_lowers_the_error_of_a_cut(second):
    constants = weights(
        w=(6, 3, 3, 3), b=(6,), v=(4, 6, 3, 3), k=(4,), dw=(6, 1, 3, 3), db=(6,), u=(4, 6, 1, 1), mm=(6, 4)
    )
    outputs = "float[n, 8, 8, 4] y" if "MatMul" in second else "float[n, 4, 8, 8] y"
    dense = prepared(f"c = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(c) {second}", constants, outputs)
    group = next(node.name for node in dense.graph if node.op_type == "Conv")
    cut = apply_cuts(dense, {group: [0, 2, 3, 5]})
    repaired = repair(cut, dense, open_data(feeds(), io.inputs(dense)), four_of_six)
    assert error(dense, repaired) < 0.95 * error(dense, cut)


def test_the_layer_before_a_removed_branch_replaces_the_sum():
    constants = weights(w0=(4, 3, 1, 1), b0=(4,), w1=(8, 4, 3, 3), b1=(8,), w2=(4, 8, 1, 1), b2=(4,), w3=(4, 4, 1, 1))
    body = """
        s = Conv(x, w0, b0) a = Conv<pads = [1, 1, 1, 1]>(s, w1, b1) r = Relu(a) b = Conv(r, w2, b2) t = Add(s, b)
        y = Conv(t, w3)
    """
    dense = prepared(body, constants)
    name = next(node.name for node in dense.graph if node.op_type == "Add")
    cut = drop_branches(dense, [name])
    repaired = repair(cut, dense, open_data(feeds(), io.inputs(dense)), whole)
    assert error(dense, repaired) < 0.8 * error(dense, cut)


def test_layers_that_follow_no_cut_are_unchanged():
    constants = weights(w=(6, 3, 3, 3), b=(6,), v=(4, 6, 1, 1), k=(4,))
    dense = prepared("c = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(c) y = Conv(r, v, k)", constants)
    same = repair(dense.clone(), dense, open_data(feeds(), io.inputs(dense)), whole)
    assert io.to_bytes(same) == io.to_bytes(dense)


def test_outputs_that_an_activation_cuts_off_are_not_fitted():
    """Behind a Relu the outputs that are cut off are free, so the others can be fitted better."""
    constants = weights(w=(6, 3, 3, 3), b=(6,), v=(4, 6, 3, 3), k=(4,))
    body = "c = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(c) d = Conv<pads = [1, 1, 1, 1]>(r, v, k) y = {}(d)"
    errors = {}
    for activation in ("Relu", "Identity"):
        dense = prepared(body.format(activation), constants)
        group = next(node.name for node in dense.graph if node.op_type == "Conv")
        repaired = repair(apply_cuts(dense, {group: [0, 2, 3, 5]}), dense, open_data(feeds(), io.inputs(dense)), whole)
        errors[activation] = [(plain(dense, f)["y"], plain(repaired, f)["y"]) for f in feeds(4, 7)]
    free = sum(((a - b) ** 2).sum() for a, b in errors["Relu"])
    fitted = sum(((np.maximum(a, 0) - np.maximum(b, 0)) ** 2).sum() for a, b in errors["Identity"])
    assert free < 0.98 * fitted
