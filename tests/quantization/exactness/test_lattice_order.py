"""The choice of the input that keeps its scale must not depend on Python's hash seed, or files differ between runs."""

from toolchain.quantization.exactness.lattice_scales import Site, align
from toolchain.quantization.ranges import Affine


def test_the_first_input_of_a_sum_keeps_its_scale():
    # Twenty sums of two: an order taken from a set of names would put the second first in about half of them.
    for number in range(20):
        first, second, output = (f"{name}{number}" for name in ("left", "right", "sum"))
        grids = {first: Affine(0.013, 0), second: Affine(0.0071, 0), output: Affine(0.02, 0)}
        assert not align([Site("add", (first, second), output)], grids)
        assert grids[first] == Affine(0.013, 0)
