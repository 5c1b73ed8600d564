"""The networks that enlarge pictures."""

import pytest
import torch

from benchmarks.train.enlargers import NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_a_picture_doubles_its_sides(name):
    picture = torch.rand(2, 3, 12, 20)
    with torch.no_grad():
        assert NETWORKS[name]()(picture).shape == (2, 3, 24, 40)
