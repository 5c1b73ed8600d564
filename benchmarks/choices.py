"""Names on the benchmarks' command lines, for argparse; an unknown name is refused with a similar one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.models import NAMES
from toolchain.core.errors import did_you_mean


def model(name: str) -> str:
    """Check the name of a benchmark model."""
    if name not in NAMES:
        raise argparse.ArgumentTypeError(f"no model {name!r}: {did_you_mean(name, NAMES)}")
    return name


def listed(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Split ``NAME,...`` into names that must be `known`; ``none`` gives no name."""
    names = () if text == "none" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"no {name!r}: {did_you_mean(name, known)}")
    return names


def numbers(text: str) -> tuple[float, ...]:
    """Split ``1.1,1.2`` into positive, ascending numbers.

    Raises:
        argparse.ArgumentTypeError: they are not.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1.1,1.2") from None
    if values[0] <= 0 or list(values) != sorted(set(values)):
        raise argparse.ArgumentTypeError(f"{text!r}: the numbers must be above 0, each above the one before")
    return values
