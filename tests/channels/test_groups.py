"""Groups of whole graphs: their members, the reasons of pins, and their cost."""

import numpy as np
import pytest
import small_models
from small_models import weights

from toolchain.channels.groups import NOT_SUMMED, Member, by_name, groups
from toolchain.channels.layout import layout

IMAGE = "float[1, 3, 8, 8] x"


def grouped(body, inputs, outputs, constants, **settings):
    model = small_models.model(body, inputs, outputs, constants, **settings)
    return by_name(groups(model, layout(model)))


def test_a_residual_stream_is_one_group_and_the_inside_of_a_branch_another():
    body = (
        "[stem] a = Conv(x, w) [wide] b = Conv(a, p) r = Relu(b) [narrow] c = Conv(r, q) s = Add(a, c) "
        "[last] y = Conv(s, v)"
    )
    constants = weights(w=(6, 3, 1, 1), p=(10, 6, 1, 1), q=(6, 10, 1, 1), v=(4, 6, 1, 1))
    found = grouped(body, IMAGE, "float[1, 4, 8, 8] y", constants)
    assert {name: group.size for name, group in found.items() if group.free} == {"stem": 6, "wide": 10}
    assert found["wide"].members == (
        Member("wide", "Conv", "p", 0, makes=True), Member("narrow", "Conv", "q", 1, makes=False),
    )  # fmt: skip
    assert found["wide"].macs == 2 * 64 * 6 * 10
    assert {(member.node, member.axis) for member in found["stem"].members} == {
        ("stem", 0), ("wide", 1), ("narrow", 0), ("last", 1),
    }  # fmt: skip
    assert {pin for group in found.values() for pin in group.pins} == {
        "it is an input of the model", "it is an output of the model",
    }  # fmt: skip


def test_a_part_of_an_axis_counts_with_its_share():
    body = "[one] a = Conv(x, w) [two] b = Conv(x, v) c = Concat<axis = 1>(a, b) [last] y = Conv(c, u)"
    constants = weights(w=(6, 3, 1, 1), v=(2, 3, 1, 1), u=(4, 8, 1, 1))
    found = grouped(body, IMAGE, "float[1, 4, 8, 8] y", constants)
    assert found["one"].macs == 64 * (6 * 3 + 6 * 4)
    assert found["two"].macs == 64 * (2 * 3 + 2 * 4)


def test_axes_that_no_operator_sums_over_are_pinned():
    body = "[one] a = Conv(x, w) p = Slice(a, s, e, c) [last] y = Conv(p, v)"
    constants = {**weights(w=(6, 3, 1, 1), v=(4, 4, 1, 1)), "s": np.array([0]), "e": np.array([4]), "c": np.array([1])}
    found = grouped(body, IMAGE, "float[1, 4, 8, 8] y", constants)
    assert found["one"].free
    assert found["one:2"].pins == (NOT_SUMMED,)


READERS = {
    "another axis": ("n = Gather(s, zero)", True),
    "the axis": ("n = Gather(s, one)", False),
    "the axis from the end": ("n = Gather(s, third)", False),
    "the axis behind two casts": ("s1 = Cast<to = 6>(s) s2 = Cast<to = 7>(s1) n = Gather(s2, one)", False),
    "other axes": ("n = Slice(s, two, four)", True),
    "axes with it": ("n = Slice(s, one, four)", False),
    "all": ("n = Identity(s)", False),
}


@pytest.mark.parametrize("who", READERS)
def test_axes_whose_size_is_read_as_data_are_pinned(who):
    text, free = READERS[who]
    body = f"[one] a = Conv(x, w) s = Shape(a) {text} m = Cast<to = 1>(n) z = ReduceSum<keepdims = 0>(m) " \
           "[last] b = Conv(a, v) y = Mul(b, z)"  # fmt: skip
    numbers = {"zero": [0], "one": [1], "two": [2], "four": [4], "third": [-3]}
    constants = {**weights(w=(6, 3, 1, 1), v=(4, 6, 1, 1)), **{k: np.array(v) for k, v in numbers.items()}}
    found = grouped(body, IMAGE, "float[1, 4, 8, 8] y", constants)
    assert found["one"].free == free
    assert free or "its sizes are read as data" in found["one"].pins


def test_an_operator_without_a_row_pins_only_its_inputs_and_outputs():
    body = "[one] a = Conv(x, w) [two] b = Conv(a, v) [odd] c = Selu(b) [three] d = Conv(c, u) [last] y = Conv(d, t)"
    constants = weights(w=(6, 3, 1, 1), v=(5, 6, 1, 1), u=(7, 5, 1, 1), t=(4, 7, 1, 1))
    found = grouped(body, IMAGE, "float[1, 4, 8, 8] y", constants)
    assert {name for name, group in found.items() if group.free} == {"one", "three"}
    assert found["two"].pins == ("Selu has no row in the operator table",)


def test_axes_that_a_branch_of_an_if_reads_are_pinned():
    body = """[one] a = Conv(x, w) [last] b = Conv(a, v)
        y = If(c) <then_branch = yes () => (float[1, 4, 8, 8] t) { q = ReduceMax<keepdims = 1>(a) t = Add(b, q) },
                   else_branch = no () => (float[1, 4, 8, 8] e) { e = Identity(b) }>"""
    constants = weights(w=(6, 3, 1, 1), v=(4, 6, 1, 1))
    found = grouped(body, f"{IMAGE}, bool c", "float[1, 4, 8, 8] y", constants)
    assert "the branch of an If reads it" in found["one"].pins


def test_kernels_and_gates_are_no_groups():
    constants = weights(w=(1, 20, 6), r=(1, 20, 5), v=(5, 4))
    body = "[lstm] h = LSTM<hidden_size = 5>(x, w, r) s = Squeeze(h, one) [last] y = MatMul(s, v)"
    found = grouped(body, "float[3, 2, 6] x", "float[3, 2, 4] y", {**constants, "one": np.array([1])})
    assert {group.size for group in found.values()} == {5, 6, 4}
