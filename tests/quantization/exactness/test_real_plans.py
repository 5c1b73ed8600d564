"""Plans of real pretrained models: their guarantees, checked by independent oracles on a few samples."""

from dataclasses import replace
from itertools import islice

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from saturation import saturating_pairs

from benchmarks.models import MODELS, missing
from toolchain.calibration.statistics import observe
from toolchain.conversion.source import convert
from toolchain.data.calibration import open_data
from toolchain.formats.recipe import Quantize
from toolchain.graph import io, query
from toolchain.optimization.passes import optimize
from toolchain.quantization.plan import plan_quantization
from toolchain.quantization.qdq.fragments import fragments
from toolchain.quantization.qdq.fusion_audit import audit, optimized_graph
from toolchain.quantization.qdq.writer import apply_quantization
from toolchain.quantization.selection import select

pytestmark = pytest.mark.slow

SMALL = ("mnist_cnn", "svhn_cnn", "ppocr_cls", "crepe_tiny", "mobilenet_v2")


@pytest.fixture(params=SMALL)
def case(request, monkeypatch):
    """An optimized model and three of its samples; the exported file is kept in the user's cache."""
    if reason := missing(request.param):
        pytest.skip(reason)
    monkeypatch.delenv("TOOLCHAIN_CACHE")
    loader = MODELS[request.param]
    model = optimize(convert(loader.onnx_path()).model).model
    return model, open_data(list(islice(loader.calibration(3), 3)), io.inputs(model))


def test_the_observation_is_what_numpy_sees(case):
    model, data = case
    tensors = select(model).tensors
    found = observe(model, data, tensors, cache=False)
    runs = [small_models.every_value(ir.to_proto(model), feed) for feed in data]
    for name, axis in tensors.items():
        stats, arrays = found.tensors[name], [values[name] for values in runs]
        low, high = min(a.min() for a in arrays), max(a.max() for a in arrays)
        # Fused and blocked kernels add float32 products in another order than plain ones.
        slack = 1e-4 * max(abs(low), abs(high))
        assert abs(stats.minimum - low) <= slack
        assert abs(stats.maximum - high) <= slack
        assert stats.count == stats.histogram.sum() == sum(a.size for a in arrays)
        if axis is not None:
            rows = np.concatenate([np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in arrays], axis=1)
            np.testing.assert_allclose(stats.channels.mean, rows.mean(axis=1, dtype=np.float64), atol=slack)


def test_the_plan_holds_what_it_promises(case):
    model, data = case
    selection = select(model)
    plan = plan_quantization(model, selection, observe(model, data, selection.tensors, cache=False), Quantize())
    nodes = {query.label(node): node for node in model.graph}
    assert plan.products
    for name, product in plan.products.items():
        groups = query.attribute(nodes[name], "group", 1)
        if groups > 1 and product.weight.values.shape[:2] == (groups, 1):
            continue  # depthwise kernels add in int32
        sums, saturated = saturating_pairs(product.weight.values, product.weight.axis)
        np.testing.assert_array_equal(sums, saturated, err_msg=name)
    unsigned, signed = (apply_quantization(model, plan, encoding) for encoding in ("u8", "s8"))
    assert audit(optimized_graph(unsigned), plan.int8_nodes()).clean
    feed = next(iter(data))
    source, apart = small_models.plain(model, feed), small_models.plain(unsigned, feed)
    fused = small_models.plain(unsigned, feed, fused=True)
    for name, array in small_models.plain(signed, feed).items():
        np.testing.assert_array_equal(array, apart[name], err_msg="s8 against u8, node by node")
        assert cosine(fused[name], source[name]) > 0.95, "int8 against float"


def _only(chosen, choice):
    precision = "int8" if choice.node in chosen else "float" if choice.int8 else choice.precision
    return choice.model_copy(update={"precision": precision})


def test_every_product_alone_is_within_a_step_of_its_definition(case):
    """Fused compared with node by node, on tensors of the real model: real weights, real ties."""
    model, data = case
    selection = select(model)
    plan = plan_quantization(model, selection, observe(model, data, selection.tensors, cache=False), Quantize())
    known = small_models.every_value(ir.to_proto(model), next(iter(data)))
    absorbed = {choice.node for choice in plan.choices if choice.int8 and choice.op in ("Relu", "Clip")}
    for node in model.graph:
        if query.label(node) not in plan.products:
            continue
        follower = query.sole_consumer(node.outputs[0])
        chosen = {query.label(node)}
        if follower is not None and query.label(follower) in absorbed:
            chosen.add(query.label(follower))
        alone = replace(plan, choices=tuple(_only(chosen, c) for c in plan.choices))
        [part] = fragments(model, alone, "u8")
        feed = {value.name: known[value.name] for value in part.int8_model.graph.inputs}
        apart, fused = (small_models.plain(part.int8_model, feed, fused=flag) for flag in (False, True))
        for name, array in apart.items():
            grid = plan.activations.get(name)
            if grid is not None:
                steps = np.rint(np.abs(fused[name] - array) / grid.scale)
                assert steps.max() <= 1, f"{query.label(node)}: {name}"
                # a value may be nearer to a tie than float32's error by chance, in a small tensor as well
                assert np.sum(steps) <= max(1, 1e-3 * steps.size), f"{query.label(node)}: {name}"


def cosine(a, b):
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12)
