"""Streaming observation of activations: one `Observation` that every later stage reads."""

from toolchain.observation import Observation, TensorStats
from toolchain.observe.engine import observe

__all__ = ["Observation", "TensorStats", "observe"]
