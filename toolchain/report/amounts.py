"""Counts and bytes for reading: three significant digits."""

from __future__ import annotations


def count_text(count: int) -> str:
    """Three significant digits: 987, 12.3 k, 301 M."""
    value, unit = float(count), ""
    for larger in ("k", "M", "G", "T"):
        if value < 999.5:
            break
        value, unit = value / 1000, f" {larger}"
    return f"{value:.3g}{unit}" if unit else str(count)


def bytes_text(count: int) -> str:
    """Bytes in decimal kB, MB or GB, as file sizes are given."""
    return f"{count_text(count)}B" if count >= 1000 else f"{count} B"
