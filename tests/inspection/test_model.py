"""Inspection of float and quantized models, compared with numbers worked out by hand."""

from __future__ import annotations

import importlib
import io
import json

import numpy as np
import onnx
import pytest
import qdq_models
from onnx import TensorProto, helper
from rich.cells import cell_len
from rich.console import Console
from small_models import proto, weights

from toolchain.core.errors import ModelError
from toolchain.data.calibration import open_data
from toolchain.devices.catalogue import load_target
from toolchain.devices.detect import detect_host
from toolchain.formats.recipe import Quantize, Recipe
from toolchain.formats.target import Budget
from toolchain.graph import io as graph_io
from toolchain.inspection import model as inspection
from toolchain.inspection.model import inspect, record
from toolchain.ops import cost
from toolchain.optimization.passes import optimize
from toolchain.quantization.loop import quantize_model
from toolchain.report.model import render

NET = (
    """c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
       r1 = Relu (c1)
       c2 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r1, w2)
       s = Selu (c2)
       f = Flatten (s)
       y = Gemm (f, v, d)""",
    "float[N, 3, 8, 8] x",
    "float[N, 10] y",
    weights(w1=(12, 3, 3, 3), b1=(12,), w2=(16, 12, 3, 3), v=(256, 10), d=(10,)),
)
MACS = {"Conv": 64 * 12 * 27 + 16 * 16 * 12 * 9, "Gemm": 2560, "Relu": 64 * 12, "Flatten": 0, "Selu": 0}


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(proto(*NET), path)
    return path


def text(found):
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(render(found))
    shown = console.file.getvalue()
    assert max(map(cell_len, shown.splitlines())) <= 100
    assert "…" not in shown
    return shown


def line(shown, *words):
    found = [line for line in shown.splitlines() if all(word in line for word in words)]
    assert len(found) == 1, found
    return found[0]


def test_a_float_model(net):
    found = inspect(net)
    assert {o.op: o.macs for o in found.cost.operators} == MACS
    assert (found.quantized, found.running, found.fit) == (False, None, None)
    assert (found.opset, found.file_nodes) == (17, 6)
    assert [str(spec) for spec in (*found.inputs, *found.outputs)] == ["x: float32[N, 3, 8, 8]", "y: float32[N, 10]"]
    by_node = {choice.op: choice for choice in found.choices}
    assert by_node["Selu"].reason == "its operator is not in the table"
    assert [op for op, choice in by_node.items() if choice.int8] == ["Conv", "Relu", "Gemm"]
    assert found.int8_macs == MACS["Conv"] + MACS["Relu"] + MACS["Gemm"]
    assert found.size_bytes == net.stat().st_size


def test_what_is_shown(net):
    shown = text(inspect(net))
    assert "x: float32[N, 3, 8, 8]" in line(shown, "inputs")
    assert "51.7 k multiply-accumulates" in line(shown, "work  ")
    assert "counted for a batch of 1" in shown
    assert line(shown, "Conv ", "%").split() == ["Conv", "2", "2", "48.4", "k", "93.6%"]
    assert next(row for row in shown.splitlines() if row.startswith("Selu")).split() == ["Selu", "1", "unknown"]
    assert "int8: 4 of 6 nodes; the others are float:" in shown
    assert line(shown, "1 × Selu", "its operator is not in the table")
    assert line(shown, "not counted, ").strip() == "not counted, because their MACs are unknown: 1 × Selu"
    assert "100% of the work" in line(shown, "as int8", "weights")


def test_the_record_is_json_with_full_numbers(net):
    data = json.loads(json.dumps(record(inspect(net, load_target("raspberry-pi-5")))))
    assert data["macs"] == sum(MACS.values())
    assert data["inputs"] == [{"name": "x", "dtype": "float32", "dims": ["N", 3, 8, 8]}]
    assert {o["op"]: (o["nodes"], o["unknown"]) for o in data["operators"]}["Selu"] == (1, 1)
    assert list(data["unknown_macs"].values()) == ["its operator is not in the table"]
    assert {(g["op"], g["nodes"]) for g in data["float"]} == {("Selu", 1), ("Flatten", 1)}
    assert data["axes_counted_as_1"] == ["x.0"]
    assert [(m["channels"], m["nodes"], m["macs"]) for m in data["fit"]["misfits"]] == [(12, 1, 64 * 12 * 27)]


def test_int8_weights_are_estimated_as_they_will_be_written(net):
    model = optimize(graph_io.load(net)).model
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(4)]
    recipe = Recipe(quantize=Quantize(measure=False))
    quantized = quantize_model(model, open_data(feeds, graph_io.inputs(model)), recipe)
    written = cost.count(quantized.write("u8")).weight_bytes
    grids = 5 * len(quantized.plan.activations)  # scales and zero points of activations are no weights
    assert written - grids <= inspect(net).int8_weight_bytes <= written


def test_other_sizes_of_dynamic_axes(tmp_path):
    path = tmp_path / "wide.onnx"
    onnx.save(proto("y = Relu (x)", "float[n, 3, rows, 7] x", "float[n, 3, rows, 7] y"), path)
    found = inspect(path)
    assert (found.cost.total_macs, found.cost.dynamic) == (21, ("x.0", "x.2"))
    assert "toolchain optimize --freeze x.2=N" in " ".join(text(found).split())
    found = inspect(path, freeze={"rows": 5})
    assert (found.cost.total_macs, found.cost.dynamic) == (105, ("x.0",))
    assert "--freeze" not in text(found)


# ---------------------------------------------------------------------------------------------- targets


def target(**budget):
    return load_target("raspberry-pi-5").model_copy(update={"budget": Budget(**budget), "channel_multiple": 8})


def test_widths_that_are_no_multiple(net):
    fit = inspect(net, target()).fit
    assert (fit.convolutions, fit.channel_multiple) == (2, 8)
    assert [(m.channels, m.nodes, m.macs) for m in fit.misfits] == [(12, 1, 64 * 12 * 27)]
    shown = text(inspect(net, target()))
    assert "1 of 2 convolutions do not give a multiple of 8" in shown
    assert "20.7 k MACs" in line(shown, "1 × 12 channels")
    assert "memory: limit 8192 MiB" in line(shown, "memory: ", "fits")  # the board's own, without a budget
    nothing = target().model_copy(update={"memory_mib": None})
    assert "the profile sets no budget" in text(inspect(net, nothing))
    assert inspect(net, target().model_copy(update={"channel_multiple": 4})).fit.misfits == ()


def test_budgets(net):
    found = inspect(net, target(size_mib=1.0, memory_mib=0.001, latency_ms=5.0))
    size, memory, latency = found.fit.budgets
    assert (size.name, size.fits, size.value) == ("size", True, found.int8_weight_bytes / 2**20)
    assert (memory.name, memory.fits) == ("memory", False)
    assert memory.value * 2**20 == found.int8_weight_bytes + found.cost.peak_activation_bytes // 4
    assert (latency.name, latency.value, latency.fits) == ("latency", None, None)
    shown = text(found)
    assert "limit 1 MiB" in line(shown, "size: ", "fits")
    assert "DOES NOT FIT" in line(shown, "memory: ")
    assert "toolchain bench" in line(shown, "latency: ")


def test_without_a_target_all_profiles_are_compared(net, monkeypatch):
    found = inspect(net)
    assert {"raspberry-pi-5", "rk3588"} <= {fit.target for fit in found.fits}
    assert f"fits all {len(found.fits)} profiles" in text(found)
    tiny = load_target("rk3588").model_copy(update={"name": "tiny", "budget": Budget(size_mib=0.001)})
    monkeypatch.setattr(inspection, "shipped_targets", lambda: [load_target("rk3588"), tiny])
    said = " ".join(text(inspect(net)).split())
    assert "fits 1 of 2 profiles in size and memory; too large for tiny (size limit 0.001 MiB)" in said


# ------------------------------------------------------------------------------------ quantized already


def native():
    """Tell whether this machine's kernels take signed activations."""
    return detect_host().int8.activations == "s8"


def test_a_quantized_model_in_the_file_and_as_it_runs(tmp_path):
    found = inspect(qdq_models.residual(tmp_path / "m.onnx", signed=native()))
    assert found.quantized
    assert {(c.op, c.int8) for c in found.choices} == {("Conv", True), ("Relu", True), ("Add", True)}
    assert len(found.choices) == 4
    assert found.int8_share == 1.0
    assert found.int8_weight_bytes == found.cost.weight_bytes
    assert found.running.int8["QLinearConv"] == 2
    assert found.running.int8["QLinearAdd"] == 1
    assert (found.running.unfused, found.running.weights, found.running.foreign) == ((), (), False)
    assert found.running.conversions == 2  # of the input and of the output
    shown = text(found)
    assert "100% of the work, as written in the file" in line(shown, "int8  ", "work")
    assert "2 × QLinearConv" in line(shown, "runs here")


@pytest.mark.skipif(native(), reason="on this processor signed activations fuse")
def test_signed_activations_on_x86_are_explained(tmp_path):
    found = inspect(qdq_models.residual(tmp_path / "m.onnx", signed=True))
    assert found.running.foreign
    assert found.running.unfused
    assert "its activations are signed, as ARM needs them" in text(found)


def test_weights_that_are_dequantized_at_every_inference_are_found(tmp_path):
    """Per-column scales along the contracted axis: a pattern that does not fuse, and runs slower than float."""
    g = qdq_models.Graph(native())
    data = g.requantized("x", 1 / 32, 128)
    scales = g.constant("s", np.full(32, 1 / 64, np.float32))
    zeros = g.constant("z", np.zeros(32, np.int8))
    constant = g.constant("w", np.random.default_rng(0).integers(-60, 61, (32, 16), np.int8))
    weight = g.op("DequantizeLinear", [constant, scales, zeros], "w_dq", axis=0)
    path = tmp_path / "m.onnx"
    g.save(path, [4, 32], g.requantized(g.op("MatMul", [data, weight], "y"), 1 / 16, 128))
    found = inspect(path)
    assert len(found.running.weights) == 1
    assert "1 constants are dequantized at every inference" in text(found)


def test_why_nodes_of_a_quantized_model_are_float(tmp_path):
    g = qdq_models.Graph(native())
    data = g.requantized("x", 1 / 32, 128)
    rng = np.random.default_rng(0)
    plain = g.constant("wf", rng.standard_normal((16, 16, 1, 1)).astype(np.float32))
    first = g.op("Conv", [data, plain], "c1", name="float_weight")
    data = g.requantized(first, 1 / 32, 128)
    swish = g.op("HardSwish", [data], "h", name="no_kernel")
    data = g.requantized(swish, 1 / 32, 128)
    w2 = g.weight("w2", rng.integers(-9, 9, (16, 16, 1, 1), np.int8))
    second = g.op("Conv", [data, w2], "c2", name="float_result")
    third = g.op("Sigmoid", [second], "s", name="float_input")
    path = tmp_path / "m.onnx"
    g.save(path, [1, 16, 4, 4], g.requantized(third, 1 / 256, 0))
    assert {c.node: c.reason for c in inspect(path).choices} == {
        "float_weight": "its weight is float",
        "no_kernel": "onnxruntime's CPU provider has no fused int8 kernel for it",
        "float_result": "its result is used as float",
        "float_input": "it reads float tensors",
    }


def test_integer_operators_and_what_passes_integers_on(tmp_path):
    scale, zero = np.float32(1 / 32), np.uint8(128)
    constants = {"s": scale, "z": zero, "w": np.ones((4, 3, 1, 1), np.int8), "ws": scale, "wz": np.int8(0)}
    model = proto(
        """q = QuantizeLinear (x, s, z)
           c = QLinearConv (q, s, z, w, ws, wz, s, z)
           p = MaxPool <kernel_shape = [2, 2]> (c)
           y = DequantizeLinear (p, s, z)""",
        "float[1, 3, 4, 4] x",
        "float[1, 4, 3, 3] y",
        constants,
    )
    onnx.save(model, tmp_path / "m.onnx")
    found = inspect(tmp_path / "m.onnx")
    assert [(c.op, c.int8) for c in found.choices] == [("QLinearConv", True), ("MaxPool", True)]
    assert found.int8_share is None  # the table has no row for QLinearConv
    assert "an unknown share of the work" in text(found)


# --------------------------------------------------------------------------------------------- refusals


def test_an_unsupported_opset_is_one_sentence(net):
    model = onnx.load(net)
    model.opset_import[0].version = 99
    onnx.save(model, net)
    with pytest.raises(ModelError, match="has opset 99, and onnxruntime"):
        inspect(net)


def test_an_unknown_operator_and_no_model_are_one_sentence(tmp_path):
    info = helper.make_tensor_value_info
    x, y = info("x", TensorProto.FLOAT, [1]), info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Magic", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="has no operator 'Magic'"):
        inspect(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="no such file"):
        inspect(tmp_path / "absent.onnx")


def test_the_renderer_is_reached_from_the_package():
    import toolchain.report
    from toolchain.report import model

    assert toolchain.report.model is model


# ------------------------------------------------------------------------------------------- real models


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["crepe_tiny", "minilm_l6", "mnist_cnn", "mobilenet_v2", "ppocr_cls", "resemblyzer_lstm", "svhn_cnn"]
)
def test_real_models(name):
    store = pytest.importorskip("benchmarks.models.store")
    loader = importlib.import_module(f"benchmarks.models.{name}")
    if absent := store.missing(loader.REQUIRES):
        pytest.skip(f"not fetched: {', '.join(absent)} (benchmarks/fetch.sh all)")
    found = inspect(loader.onnx_path(), load_target("raspberry-pi-zero-2w"))
    assert found.cost.total_macs > 0
    assert 0 < found.int8_macs <= found.cost.total_macs
    assert found.int8_weight_bytes < found.cost.weight_bytes
    assert json.dumps(record(found))
    assert text(found)
