"""The generated models, and the table of stages."""

import numpy as np
import pytest

from benchmarks import export_time
from toolchain.graph import run


@pytest.mark.parametrize("name", export_time.STRUCTURES)
def test_a_structure_runs_and_its_outputs_vary(name):
    model = export_time.STRUCTURES[name]()
    one, other = (outputs[0] for outputs in run.run(model, export_time._random_feeds(model, 2)))
    assert np.isfinite(one).all()
    assert np.std(one - other) > 1e-3 * np.std(one)


def test_the_unrolled_network_has_80_products_with_two_weights():
    model = export_time.STRUCTURES["unrolled"]()
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert len(products) == 80
    assert len({node.inputs[1] for node in products}) == 3, "and one at the end"


def test_short_stages_are_added_up():
    stages = {"planning": (2.0, 3, 40), "converting": (0.2, 1, 0), "writing": (0.1, 0, 2), "timing": (5.0, 0, 0)}
    lines = export_time._table("net", stages).splitlines()
    assert lines[0] == "## net"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    assert rows == [
        ["timing", "5.0", "0", "0"],
        ["planning", "2.0", "3", "40"],
        ["others", "0.3", "1", "2"],
        ["all", "7.3", "4", "42"],
    ]
