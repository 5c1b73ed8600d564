import numpy as np
import onnx_ir as ir
import pytest

from toolchain.conversion.freeze import freeze, rename_axis
from toolchain.core.errors import InputError
from toolchain.graph import io, run

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 3, height, width] x, float[N, 4] side) => (float[batch, flat] y, float[M, 8] z)
<float[1, 3, 1, 1] w, float[batch, 1, height, width] c>
{
  w = Constant <value = float[1, 3, 1, 1] {1, 2, 3}> ()
  c = Conv (x, w)
  y = Flatten (c)
  z = Concat <axis = 1> (side, side)
}
"""


@pytest.fixture
def model():
    return ir.from_onnx_text(TEXT)


def dims(model):
    return {spec.name: spec.dims for spec in (*io.inputs(model), *io.outputs(model))}


def test_by_name(model):
    freeze(model, {"batch": 2, "height": 5, "width": 7})
    assert dims(model) == {"x": (2, 3, 5, 7), "side": ("N", 4), "y": (2, 35), "z": ("M", 8)}
    inner = next(node.outputs[0] for node in model.graph if node.op_type == "Conv")
    assert list(inner.shape) == [2, 1, 5, 7]
    rng = np.random.default_rng(0)
    feed = {"x": rng.standard_normal((2, 3, 5, 7), np.float32), "side": np.ones((4, 4), np.float32)}
    (y, _), (y0, _) = run.run(model, [feed])[0], run.run(ir.from_onnx_text(TEXT), [feed])[0]
    np.testing.assert_array_equal(y, y0)


def test_by_axis_fixes_the_name_everywhere(model):
    freeze(model, {"x.0": 2})
    assert dims(model)["x"][0] == 2
    assert dims(model)["y"][0] == 2


def test_unnamed_axes_are_fixed_one_by_one():
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[a, 3, b] x) => (float[a, 3, b] y) {y = Relu(x)}'
    )
    model.graph.inputs[0].name = "in.1"  # as older exporters name inputs
    for port in (*model.graph.inputs, *model.graph.outputs):
        port.shape = ir.Shape([ir.SymbolicDim("?"), 3, ir.SymbolicDim(None)])
    freeze(model, {"in.1.0": 4})
    assert dims(model)["in.1"] == (4, 3, None)
    assert dims(model)["y"][0] == 4


def test_fixed_axes(model):
    freeze(model, {"x.1": 3})
    with pytest.raises(InputError, match=r"freeze x\.1=5: that axis already has size 3"):
        freeze(model, {"x.1": 5})


@pytest.mark.parametrize("key", ["bach", "x.9", "x.-1", "y.0", "x", ""])
def test_unknown(model, key):
    with pytest.raises(InputError, match="no such dynamic axis, it has batch, height, width, N"):
        freeze(model, {key: 1})


def test_near_name(model):
    with pytest.raises(InputError, match="did you mean 'batch'"):
        freeze(model, {"bach": 1})
    with pytest.raises(InputError, match="size 0 is below 1"):
        freeze(model, {"batch": 0})
    freeze(model, {"batch": 1, "height": 2, "width": 2, "N": 1})
    with pytest.raises(InputError, match="all axes of the model's inputs are fixed"):
        freeze(model, {"batch": 1})


def test_expressions_are_evaluated(model):
    value = model.graph.outputs[0]
    value.shape = ir.Shape([ir.SymbolicDim("batch"), ir.SymbolicDim("height*width + 1")])
    rename_axis(model, "height", 5)
    rename_axis(model, "width", 7)
    assert list(value.shape)[1] == 36
    rename_axis(model, "batch", "n")
    assert dims(model)["x"] == ("n", 3, 5, 7)
