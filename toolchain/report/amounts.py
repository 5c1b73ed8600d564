"""Text for counts, bytes and short numbers."""

from __future__ import annotations


def count_text(count: int) -> str:
    """Return a count with three significant digits: 987, 12.3 k, 301 M."""
    value, unit = float(count), ""
    for larger in ("k", "M", "G", "T"):
        if value < 999.5:
            break
        value, unit = value / 1000, f" {larger}"
    return f"{value:.3g}{unit}" if unit else str(count)


def bytes_text(count: int) -> str:
    """Return bytes in decimal kB, MB or GB, as file managers show them."""
    return f"{count_text(count)}B" if count >= 1000 else f"{count} B"


def short_number(value: float) -> str:
    """Return a number with three significant digits, but at most three decimals, and without an exponent."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def plural(count: int, noun: str, plural_noun: str | None = None) -> str:
    """Return a count with its noun: ``1 core``, ``2 cores``. `plural_noun` is needed if it is not noun + s."""
    return f"{count} {noun if count == 1 else plural_noun or noun + 's'}"


def capitalized(clause: str) -> str:
    """Return a clause as the beginning of a sentence, its other letters as they are."""
    return clause[:1].upper() + clause[1:]
