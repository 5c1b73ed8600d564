"""Single weights set to zero."""

import numpy as np
import pytest
from small_models import model, weights

from toolchain.core.errors import InputError
from toolchain.graph import query
from toolchain.pruning.sparsity import parse_sparsity, sparsify

CONSTANTS = weights(w=(8, 4, 3, 3), v=(5, 8))
BODY = "c = Conv(x, w) g = GlobalAveragePool(c) f = Flatten(g) y = Gemm<transB = 1>(f, v)"


def net():
    return model(BODY, "float[1, 4, 6, 6] x", "float[1, 5] y", CONSTANTS)


def after(sparse):
    return {v.name: query.constant(v) for v in sparse.model.graph.initializers.values()}


def test_the_smallest_weights_of_the_whole_model_become_zero():
    sparse = sparsify(net(), 0.5)
    found = after(sparse)
    sizes = np.concatenate([np.abs(CONSTANTS[n]).reshape(-1) for n in ("w", "v")])
    left = np.concatenate([found[n].reshape(-1) != 0 for n in ("w", "v")])
    assert sparse.zeros == pytest.approx(0.5, abs=0.01)
    assert sizes[left].min() >= sizes[~left].max()
    assert sparse.compressed_bytes[1] < 0.8 * sparse.compressed_bytes[0]


def test_two_of_four_along_the_summed_axis():
    found = after(sparsify(net(), (2, 4)))
    assert ((found["w"].reshape(8, 4, 9) != 0).sum(axis=1) == 2).all()
    assert ((found["v"].reshape(5, 2, 4) != 0).sum(axis=2) == 2).all()
    kept = found["v"].reshape(5, 2, 4)
    largest = np.sort(np.abs(CONSTANTS["v"].reshape(5, 2, 4)), axis=2)[:, :, 2:].sum()
    assert np.abs(kept).sum() == pytest.approx(largest)


def test_weights_that_fill_no_block_are_kept():
    found = after(sparsify(net(), (1, 3)))
    assert ((found["w"][:, :3] != 0).sum(axis=1) == 1).all()
    assert (found["w"][:, 3] != 0).all()


@pytest.mark.parametrize(("text", "meant"), [("0.5", 0.5), ("2:4", (2, 4))])
def test_valid_sparsities(text, meant):
    assert parse_sparsity(text) == meant


@pytest.mark.parametrize("text", ["0", "1", "4:2", "0:4", "half", "-0.5", "2:4:8"])
def test_invalid_sparsities(text):
    with pytest.raises(InputError, match="give a share such as"):
        parse_sparsity(text)
