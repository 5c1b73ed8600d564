"""From a torch module, a ``.pt2`` or an ``.onnx`` file to one checked ONNX model, its parity measured."""

from toolchain.convert.inputs import parse_freeze, parse_input
from toolchain.convert.parity import Parity
from toolchain.convert.source import Converted, ModelSource, convert

__all__ = ["Converted", "ModelSource", "Parity", "convert", "parse_freeze", "parse_input"]
