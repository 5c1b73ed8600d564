"""Architectures that no rule was written for: free groups are cut at random, and all others have a reason."""

import logging

import numpy as np
import pytest
from architectures import ARCHITECTURES, built

from toolchain.channels.cut import apply_cuts, parameter_count, separate
from toolchain.channels.groups import groups
from toolchain.channels.layout import layout
from toolchain.channels.proof import verify_cuts
from toolchain.conversion.inputs import parse_input
from toolchain.conversion.source import convert
from toolchain.optimization.passes import optimize

pytestmark = pytest.mark.slow

NO_REASONS = ("not understood", "a reshape mixes", "has no row")
"""Parts of reasons that explain nothing: the engine could not follow the operator."""

OPEN = ("shufflenet", "vit", "gpt2", "llama", "torchvision swin")
"""Exported with an open batch too: their reshapes depend on it."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "batch"), [*((name, "1") for name in ARCHITECTURES), *((name, "N") for name in OPEN)])
def test_free_groups_can_be_cut_and_pinned_groups_have_a_reason(name, batch, caplog):
    caplog.set_level(logging.ERROR)
    chosen = ARCHITECTURES[name]
    kind = ":int64" if chosen.vocabulary else ""
    spec = parse_input(f"x:{','.join([batch, *map(str, chosen.shape)])}{kind}")
    model = separate(optimize(convert(built(name), inputs=[spec]).model).model)
    found = groups(model, layout(model))
    rng = np.random.default_rng(0)
    cuts = {
        group.name: np.sort(rng.choice(group.size, rng.integers(1, group.size), replace=False))
        for group in found
        if group.free
    }
    assert cuts
    assert verify_cuts(model, cuts, dynamic=2).mismatches == ()
    assert parameter_count(apply_cuts(model, cuts)) < parameter_count(model)
    explained = [
        group.free or any(all(no not in reason for no in NO_REASONS) for reason in group.pins)
        for group in found
        for _ in group.members
    ]
    assert np.mean(explained) >= 0.9, [(group.name, group.pins) for group in found if not group.free]
