"""Peers as contestants: one module each, run by the interpreter of that peer's own environment (`benchmarks.peers`).

A module imports its peer, `benchmarks.feeds` and nothing else of this project, unless that exports for it, and offers

    quantize(model, samples, output, how, transformer) -> {"notes": [...]}
    prune(name, model, samples, output, how, size, seed) -> {"notes": [...]}

model: the float ONNX file, and name: the benchmark model that it is of; samples: a folder as `benchmarks.feeds` writes
it; output: the int8 or pruned file to be written; how: one of the variants that `benchmarks.peers` lists; transformer:
whether it is one; size: the ratio of channels to take out; seed: of what is drawn, here only the samples. Whatever it
raises becomes the row's remark.
"""
