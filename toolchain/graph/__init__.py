"""Reading, walking, changing, checking and running a plain ``onnx_ir.Model``.

This is the only place that knows onnx_ir's traps: saving to another folder leaves external data behind
(`io`), duplicate value names save silently (`check`), a swapped constant leaves a stale shape (`edit`),
printing shows memory addresses (`text`).
"""
