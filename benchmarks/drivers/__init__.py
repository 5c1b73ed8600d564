"""Peers as contestants: one module each, run by the interpreter of that peer's own environment (`benchmarks.peers`).

A module imports its peer, `benchmarks.feeds` and nothing else of this project, and offers

    quantize(model, samples, output, how, transformer) -> {"notes": [...]}

model: the float ONNX file; samples: a folder as `benchmarks.feeds` writes it; output: the int8 file to be written;
how: one of the variants that `benchmarks.peers` lists; transformer: whether it is one. Whatever it raises becomes the
row's remark.
"""
