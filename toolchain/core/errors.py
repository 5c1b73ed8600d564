"""The exceptions that users see, each with an exit code.

    ToolchainError                 exit 2
    ├── InputError                 something the user gave cannot be used
    │   ├── ModelError             the model: missing, truncated, unsupported opset or operator
    │   ├── DataError              calibration data: missing, wrong name, shape or dtype, NaN
    │   └── ConfigError            a profile, recipe or results file: unknown key, wrong type
    ├── DeviceError                a device or runtime could not be reached or used
    └── GateError                  exit 1: the result failed a gate (parity, accuracy, latency)

A message is one sentence with three parts: *where* (file, node, input), *what* is wrong, with the value seen, and a
*hint* that says what to do next. Any other exception that reaches the command line is a bug of the toolchain.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class ToolchainError(Exception):
    """Base of all errors meant for users.

    Args:
        what: the problem, with the value seen.
        where: the file, node or option that it concerns.
        hint: the next step for the user, an imperative clause.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: object = None, hint: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}; {self.hint}" if self.hint else text


class InputError(ToolchainError):
    """Something the user gave cannot be used."""


class ModelError(InputError):
    """The source model is missing, damaged or uses something unsupported."""


class DataError(InputError):
    """The calibration data is missing or does not fit the model."""


class ConfigError(InputError):
    """A profile, recipe, manifest or results file does not follow its schema."""


class DeviceError(ToolchainError):
    """A device, emulator or runtime could not be reached or used."""


class GateError(ToolchainError):
    """The result of the work failed a gate: parity, accuracy or latency."""

    exit_code = 1


MAX_CHOICES_SHOWN = 20
"""Most choices that a hint lists."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` if a known word is similar, else ``choose one of: `` and up to 20 of them."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    rest = f" and {len(known) - MAX_CHOICES_SHOWN} more" if len(known) > MAX_CHOICES_SHOWN else ""
    return f"choose one of: {', '.join(known[:MAX_CHOICES_SHOWN])}{rest}"


_NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Non-zero status code returned while running "
    r"|/onnxruntime_src/\S+:\d+ .*?\)(?: const)? "  # a line of its source code and the signature of the function
)


def one_line(message: object) -> str:
    """Return a message as one line of at most 240 characters, without onnxruntime's codes and source locations."""
    return _NOISE.sub("", " ".join(str(message).split()))[:240]
