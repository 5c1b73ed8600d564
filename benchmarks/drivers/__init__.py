"""Peers as contestants: one module for each, run by the Python of the peer's own environment (`benchmarks.peers`).

A module imports its peer and `benchmarks.feeds`, and other parts of this project only to export a model. It offers

    quantize(model, samples, output, how, transformer) -> {"notes": [...]}
    prune(name, model, samples, output, how, size, seed) -> {"notes": [...]}

Args:
    name: of the benchmark model.
    model: its float ONNX file.
    samples: a folder written by `benchmarks.feeds`.
    output: the int8 or pruned file to write.
    how: one of the settings listed in `benchmarks.peers`.
    transformer: the model is a transformer.
    size: the ratio of channels to remove.
    seed: for random numbers; here only the samples depend on it.

An exception becomes a remark below the table.
"""
