"""Models that are no network of tensors: refused in the user's words, before anything large is read.

The checks work on the protobuf message. A tree ensemble holds its trees in attributes, and converting those to Python
objects takes about thirty times the bytes of the file.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from toolchain.core.errors import ModelError
from toolchain.graph.messages import all_nodes

CLASSICAL_DOMAIN = "ai.onnx.ml"
"""The domain of classical machine learning: tree ensembles, support vector machines, scalers, ZipMap."""

LAYERS = frozenset(
    {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"}
    | {"Einsum", "LSTM", "GRU", "RNN"}
)
"""Standard operators that multiply by weights."""

_KINDS = {
    "sequence_type": "a list (Sequence)",
    "map_type": "a dictionary (Map)",
    "optional_type": "an optional value (Optional)",
    "sparse_tensor_type": "a sparse tensor",
}
"""Types of values that are no tensors, by the field of ``TypeProto``."""


def refuse(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse a model of classical operators alone, and inputs, outputs and values that are no tensors.

    Lists and optional values inside a graph are allowed.

    Raises:
        ModelError: names the operators, or the value and its type.
    """
    nodes = [node for part in (proto.graph, *proto.functions) for node in all_nodes(part.node)]
    classical = list(dict.fromkeys(node.op_type for node in nodes if node.domain == CLASSICAL_DOMAIN))
    has_layers = any(node.op_type in LAYERS or node.domain not in ("", "ai.onnx", CLASSICAL_DOMAIN) for node in nodes)
    if classical and not has_layers:
        raise ModelError(
            f"is a classical machine learning model ({', '.join(classical)}) without layers of a neural network, "
            "and only such layers become int8",
            where=path,
            hint="run it with onnxruntime as it is",
        )
    writers = {name: node.op_type for node in proto.graph.node for name in node.output}
    for side, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value")
            if kind in _KINDS:
                _refuse_port(side, value, writers.get(value.name, ""), path)
    for value in proto.graph.value_info:
        if "Map" in _type_name(value.type):
            node = f"node {writers[value.name]!r}" if value.name in writers else f"value {value.name!r}"
            hint = "export the part of the model that works on tensors"
            raise ModelError("works on dictionaries (Map)", where=f"{path}: {node}", hint=hint)


def _refuse_port(side: str, value: onnx.ValueInfoProto, writer: str, path: Path) -> None:
    what = f"is {_type_name(value.type)}, and only tensors are supported"
    hint = "export the part of the model that works on tensors"
    if writer == "ZipMap":
        what = f"is {_type_name(value.type)} made by ZipMap, and only tensors are supported"
        hint = "export it again without ZipMap: convert_sklearn(..., options={'zipmap': False})"
    raise ModelError(what, where=f"{path}: {side} {value.name!r}", hint=hint)


def _type_name(type_: onnx.TypeProto) -> str:
    """A type in words, such as ``a list (Sequence) of dictionaries (Map)``."""
    kind = type_.WhichOneof("value") or ""
    name = _KINDS.get(kind, "a tensor")
    if kind in ("sequence_type", "optional_type"):
        inner = getattr(type_, kind).elem_type
        if inner.WhichOneof("value") == "map_type":
            return f"{name} of dictionaries (Map)"
        if inner.WhichOneof("value") == "sequence_type":
            return f"{name} of lists (Sequence)"
    return name
