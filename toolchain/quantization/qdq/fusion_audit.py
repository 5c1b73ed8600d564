"""The fusion audit: find the nodes planned as int8 that onnxruntime does not run as int8.

A file with QuantizeLinear and DequantizeLinear (Q, DQ) only requests int8. onnxruntime turns ``DQ → op → Q`` into an
integer kernel where its patterns match, and otherwise runs the nodes as they are in the file: a float operator between
two conversions, or worse, weights dequantized at every inference (the usual reason why an "int8" model is slower than
its source). The audit saves the optimized graph and compares it with the plan.
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

# Layout and fusion passes append these to the name of a node that they replace.
_FUSION_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_nhwc|/duplicated|/fuse_.*|/MatMulAddFusion(_\d+)?)+$")


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        unfused: nodes planned as int8 that still read a DequantizeLinear, or whose weight is dequantized at run time.
        weights: names of weight tensors that are dequantized at run time.
        boundaries: number of conversions between int8 and float; each costs a pass over its tensor.
        operators: number of each operator in the optimized graph.
    """

    unfused: tuple[str, ...]
    weights: tuple[str, ...]
    boundaries: int
    operators: Mapping[str, int]

    @property
    def clean(self) -> bool:
        """True where everything planned as int8 runs as int8."""
        return not self.unfused and not self.weights


def optimized_graph(model: object, options: Mapping[str, str] | None = None) -> onnx.GraphProto:
    """Return the graph that onnxruntime runs for `model` (a model or a path) on this machine, without weights.

    The blocked layout of float convolutions is switched off, because it renames nodes and hides their inputs.
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
        # A fused node may keep the name of one of its nodes, so the name alone proves nothing: it must still read a DQ.
        sources = [producer[value] for value in node.input if value in producer]
        if name in planned and any(source.op_type == "DequantizeLinear" for source in sources):
            unfused.append(name)
    # A product whose weight is dequantized at every run is no integer kernel, whatever its name after fusion.
    owners = (weight.removesuffix("_weight") for weight in weights)
    unfused += [name for name in owners if name in planned and name not in unfused]
    operators = Counter(node.op_type if not node.domain else f"{node.domain}::{node.op_type}" for node in graph.node)
    boundaries = operators["QuantizeLinear"] + operators["DequantizeLinear"] - len(weights)
    return Audit(tuple(unfused), tuple(weights), boundaries, operators)


def original_name(name: str) -> str:
    """Return a node's name without the suffixes that onnxruntime's passes append."""
    return _FUSION_SUFFIX.sub("", name)
