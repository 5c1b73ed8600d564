"""Take the pictures of a report that the README shows; needs chromium.

python scripts/report-pictures.py exported/report.html docs
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))

from browser import browser

SIZES = {"desktop": (1280, 1500), "phone": (390, 1500)}
"""Width and height of the browser window in pixels."""


def main(report: Path, folder: Path) -> None:
    """Write ``report-desktop.png`` and ``report-phone.png`` to a folder, with 128 colours to keep the files small."""
    with tempfile.TemporaryDirectory() as scratch, browser(Path(scratch)) as page:
        for name, (width, height) in SIZES.items():
            page.open(report, width, height, scale=1.5 if width < 600 else 1)
            with Image.open(io.BytesIO(page.picture())) as picture:
                small = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
                small.save(folder / f"report-{name}.png", optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
