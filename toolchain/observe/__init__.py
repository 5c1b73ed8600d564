"""Streaming observation of activations: one `Observation` that every later stage reads."""

from toolchain.observe.engine import observe
from toolchain.observe.observation import Observation, TensorStats

__all__ = ["Observation", "TensorStats", "observe"]
