"""Reading, querying, changing, checking and running a plain ``onnx_ir.Model``.

Only this package handles onnx_ir's traps: saving to another folder leaves external data behind (`io`), duplicate value
names are saved without a complaint (`check`), a replaced constant leaves a stale shape (`edit`), printing shows memory
addresses (`text`).
"""
