"""Real models in torch, against onnxruntime."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from toolchain.api.prepare import prepare
from toolchain.graph import io, run

torch = pytest.importorskip("torch")
pytest.importorskip("benchmarks.models.store")

from toolchain.training.engine.torch_graph import TorchGraph

SIZES = {"ppocr_cls": (1, 3, 48, 192), "ppocr_det": (1, 3, 64, 96), "ppocr_rec": (1, 3, 48, 160)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2", "svhn_cnn", "mnist_cnn", "crepe_tiny", "minilm_l6", "ddddocr_yolox", *SIZES],
)
def test_a_real_model_computes_what_onnxruntime_computes(name):
    model = prepare(importlib.import_module(f"benchmarks.models.{name}").onnx_path()).model
    rng = np.random.default_rng(0)
    if name in SIZES:
        feed = {"x": rng.standard_normal(SIZES[name]).astype(np.float32)}
    else:
        feed = run.random_feed(io.inputs(model), rng)
    names = [spec.name for spec in io.outputs(model)]
    graph = TorchGraph(model)
    with torch.no_grad():
        got = graph({key: torch.from_numpy(array) for key, array in feed.items()}, names)
    for output, expected in zip(names, run.run(model, [feed])[0], strict=True):
        # Not relative where all is near zero: onnxruntime's Sigmoid rounds what is below 1e-8 to 0.
        assert np.abs(expected - got[output].numpy()).max() < 1e-4 * max(1e-3, np.abs(expected).max())
    assert len(graph.parameters) >= 8
    again = run.run(graph.write_back(), [feed])[0]
    assert all(np.array_equal(a, b) for a, b in zip(again, run.run(model, [feed])[0], strict=True))
