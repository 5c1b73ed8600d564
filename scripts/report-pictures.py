"""The README's pictures of a report: python scripts/report-pictures.py exported/report.html docs (needs chromium)."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser import browser

SIZES = {"desktop": (1280, 1500), "phone": (390, 1500)}
"""Width and height in pixels."""


def main(report: Path, folder: Path) -> None:
    """Write ``report-desktop.png`` and ``report-phone.png``, with few colours so that they stay small."""
    with tempfile.TemporaryDirectory() as scratch, browser(Path(scratch)) as page:
        for name, (width, height) in SIZES.items():
            page.open(report, width, height, scale=1.5 if width < 600 else 1)
            with Image.open(io.BytesIO(page.picture())) as picture:
                small = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
                small.save(folder / f"report-{name}.png", optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
