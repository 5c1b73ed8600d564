"""Streaming observation of activations: one `Observation` that every later stage reads."""

from toolchain.observation import Observation, TensorStats
from toolchain.observe.engine import Progress, observe
from toolchain.observe.moments import Moments, second_moments

__all__ = ["Moments", "Observation", "Progress", "TensorStats", "observe", "second_moments"]
