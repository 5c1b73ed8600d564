"""A torch module, a ``.pt2`` or an ``.onnx`` file becomes one checked ONNX model, its parity measured."""
