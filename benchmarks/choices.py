"""Names on the benchmarks' command lines, for argparse: what is not known is refused with what is near it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.models import NAMES
from toolchain.core.errors import did_you_mean


def model(name: str) -> str:
    """One of the benchmark models."""
    if name not in NAMES:
        raise argparse.ArgumentTypeError(f"no model {name!r}: {did_you_mean(name, NAMES)}")
    return name


def listed(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """``NAME,...`` of the `known`, or ``none``."""
    names = () if text == "none" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"no {name!r}: {did_you_mean(name, known)}")
    return names


def numbers(text: str) -> tuple[float, ...]:
    """``1.1,1.2``: positive, ascending.

    Raises:
        argparse.ArgumentTypeError: they are not.
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 1.1,1.2") from None
    if found[0] <= 0 or list(found) != sorted(set(found)):
        raise argparse.ArgumentTypeError(f"{text!r}: numbers above 0, each above the one before")
    return found
