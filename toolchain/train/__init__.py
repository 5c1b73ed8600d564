"""Training without labels, in torch: a changed model is taught to do what the model it was made from does."""

from __future__ import annotations

from toolchain.train.distil import Distilled, distil, require_trainable
from toolchain.train.lesson import Exam
from toolchain.train.torch_graph import TorchGraph

__all__ = ["Distilled", "Exam", "TorchGraph", "distil", "require_trainable"]
