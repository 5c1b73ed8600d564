"""Training without labels, in torch: a changed model is taught to do what the model it was made from does."""

from __future__ import annotations

from toolchain.train.torch_graph import TorchGraph

