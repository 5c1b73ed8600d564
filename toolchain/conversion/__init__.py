"""Conversion of a torch module, a ``.pt2`` or an ``.onnx`` file to a checked ONNX model, compared with its source."""
