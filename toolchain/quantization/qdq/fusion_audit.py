"""The fusion audit: look at the graph onnxruntime really runs and find what did not become int8.

A QDQ file is only a wish. onnxruntime turns ``DQ → op → Q`` into an integer kernel where its patterns match, and
otherwise runs the pieces as they stand: a float operator between two conversions, or worse, weights dequantized at
every inference (the usual reason why an "int8" model is slower than its source). The audit saves the optimized
graph and reports
    unfused     nodes planned as int8 that still read a DequantizeLinear, or whose weight is dequantized at run time
    weights     weight tensors that are dequantized at run time
    boundaries  conversions between int8 and float, each costing a pass over its tensor
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from toolchain.graph import run

# Layout and fusion passes append these to the name of the node they replace.
_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_nhwc|/duplicated|/fuse_.*|/MatMulAddFusion(_\d+)?)+$")


@dataclass(frozen=True)
class Audit:
    """What runs. operators: count of each operator in the optimized graph."""

    unfused: tuple[str, ...]
    weights: tuple[str, ...]
    boundaries: int
    operators: Mapping[str, int]

    @property
    def clean(self) -> bool:
        """Whether everything planned as int8 runs as int8."""
        return not self.unfused and not self.weights


def optimized_graph(model: object, options: Mapping[str, str] | None = None) -> onnx.GraphProto:
    """The graph onnxruntime runs for `model` (a model or a path) on this machine, weights left out of account.

    The blocked layout of float convolutions is left out: it renames nodes and hides what they read.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimized.onnx")
        run.session(model, threads=1, options=options, optimized=path, without=["NchwcTransformer"])  # type: ignore[arg-type]
        return onnx.load(str(path), load_external_data=False).graph


def audit(graph: onnx.GraphProto, planned: Collection[str]) -> Audit:
    """Compare the optimized `graph` of a quantized model with the names of the nodes planned as int8."""
    constants = {tensor.name for tensor in graph.initializer}
    producer = {output: node for node in graph.node for output in node.output}
    unfused, weights = [], []
    for node in graph.node:
        name = original_name(node.name)
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            weights.append(name.removesuffix("_quantized_DequantizeLinear"))
        # A fused node may keep one of its nodes' names, so what counts is that it still reads converted floats.
        sources = [producer[value] for value in node.input if value in producer]
        if name in planned and any(source.op_type == "DequantizeLinear" for source in sources):
            unfused.append(name)
    # Whatever a product is called after fusion, one whose weight is dequantized at every run is no integer kernel.
    owners = (weight.removesuffix("_weight") for weight in weights)
    unfused += [name for name in owners if name in planned and name not in unfused]
    operators = Counter(node.op_type if not node.domain else f"{node.domain}::{node.op_type}" for node in graph.node)
    boundaries = operators["QuantizeLinear"] + operators["DequantizeLinear"] - len(weights)
    return Audit(tuple(unfused), tuple(weights), boundaries, operators)


def original_name(name: str) -> str:
    """A node's name without what onnxruntime's passes append."""
    return _SUFFIX.sub("", name)
