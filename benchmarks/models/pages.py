"""Rendered document pages with known layout: headings, paragraphs, lists, and photographs and tables with captions.

A block's box holds its lines, from the ascent to the descent of the font, as in DocLayNet (arXiv 2206.01062), whose
boxes hold the lines of PDF files. The box of a photograph or a table is its border.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.models import images, store, text
from toolchain.data.tensors import Array

REQUIRES = text.REQUIRES
WIDTH, HEIGHT = 768, 1024
KINDS = ("title", "heading", "text", "item", "picture", "picture caption", "table", "table caption", "header", "footer")
MOST = 60  # blocks of a page
INK, RULE = (20, 20, 20), (60, 60, 60)
FACES = (  # package, and the names of a regular and a bold font
    ("liberation", "LiberationSerif-Regular", "LiberationSerif-Bold"),
    ("liberation", "LiberationSans-Regular", "LiberationSans-Bold"),
    ("dejavu-core", "DejaVuSerif", "DejaVuSerif-Bold"),
    ("freefont-ttf", "FreeSerif", "FreeSerifBold"),
    ("freefont-ttf", "FreeSans", "FreeSansBold"),
    ("lato", "Lato-Regular", "Lato-Bold"),
    ("roboto-unhinted", "Roboto-Regular", "Roboto-Bold"),
)


def samples(n: int, part: int) -> Path:
    """`n` pages: field ``x`` uint8 [1024, 768, 3]; field ``y`` [60, 5], kind and box, NaN in unused rows.

    part: 0 for tests, 1 for calibration; they share no photograph.
    """

    def make() -> store.Arrays:
        return store.stack(_page(np.random.default_rng([90, part, index]), part) for index in range(n))

    return store.samples(f"pages-{part}-{n}", make)


def tests(classes: Mapping[str, int]) -> Iterator[tuple[Array, np.ndarray]]:
    """The 100 test pages, each with its boxes [60, 5], whose kinds are the model's `classes`."""
    file, numbers = samples(100, 0), np.array([classes[kind] for kind in KINDS], float)
    for page, blocks in zip(store.rows(file), store.field(file), strict=True):
        used = ~np.isnan(blocks[:, 0])
        blocks[used, 0] = numbers[blocks[used, 0].astype(int)]
        yield page, blocks


@dataclass
class _Page:
    """A page under construction.

    Attributes:
        rng: of every choice.
        part: of the data.
        image: the drawing.
        files: of the regular and the bold font.
        size: of the running text, in pixels.
        blocks: number of the kind and box of what was drawn.
    """

    rng: np.random.Generator
    part: int
    image: Image.Image
    files: tuple[str, ...]
    size: int
    blocks: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def draw(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image)

    def integer(self, least: int, most: int) -> int:
        """A random integer, `most` included."""
        return int(self.rng.integers(least, most + 1))

    def font(self, larger: int = 0, bold: bool = False) -> ImageFont.FreeTypeFont:
        """The page's font, `larger` than the running text by this many pixels."""
        return ImageFont.truetype(self.files[bold], self.size + larger)

    def sentence(self, least: int, most: int) -> str:
        words = [text.word(self.rng, 10) for _ in range(self.integer(least, most))]
        return " ".join(words).capitalize() + "."

    def write(self, kind: str, left: int, top: int, width: int, words: str, face: ImageFont.FreeTypeFont) -> int:
        """Write a block, in lines of at most `width` pixels. Returns the y below it."""
        lines = "\n".join(_lines(words, width, face))
        self.draw.multiline_text((left, top), lines, INK, face, spacing=5)
        right, below = self.draw.multiline_textbbox((left, top), lines, face, spacing=5)[2:]
        last = self.draw.textbbox((0, 0), lines.rpartition("\n")[2], face)[3]
        bottom = int(below - last + sum(face.getmetrics()))
        self.mark(kind, left, top, right, bottom)
        return bottom

    def mark(self, kind: str, *box: float) -> None:
        self.blocks.append((KINDS.index(kind), *box))


def _page(rng: np.random.Generator, part: int) -> tuple[np.ndarray, np.ndarray]:
    package, *names = FACES[rng.integers(len(FACES))]
    folder = store.path(f"deb/fonts-{package}", "usr/share/fonts")
    files = tuple(str(next(folder.rglob(f"{name}.ttf"))) for name in names)
    page = _Page(rng, part, Image.new("RGB", (WIDTH, HEIGHT), "white"), files, int(rng.integers(12, 16)))
    _fill(page)
    blocks = np.full((MOST, 5), np.nan)
    blocks[: len(page.blocks)] = page.blocks
    return np.asarray(text.degrade(page.image, rng, noise=(1, 10), blur=0.7)), blocks


def _fill(page: _Page) -> None:
    """Margins, most of them with a header and a footer; perhaps a title; one or two columns of blocks."""
    margin, top, bottom = page.integer(60, 85), page.integer(75, 100), HEIGHT - page.integer(75, 100)
    if page.rng.random() < 0.7:
        page.write("header", margin, top - 40, WIDTH, page.sentence(3, 7), page.font(-2))
    if page.rng.random() < 0.8:
        left = WIDTH // 2 if page.rng.random() < 0.5 else margin
        page.write("footer", left, bottom + 30, WIDTH, str(page.integer(2, 900)), page.font(-2))
    if page.rng.random() < 0.35:
        face = page.font(page.integer(10, 16), bold=True)
        top = page.write("title", margin, top, WIDTH - 2 * margin, page.sentence(4, 9), face) + 25
    columns, gap = page.integer(1, 2), page.integer(22, 32)
    width = (WIDTH - 2 * margin - gap * (columns - 1)) // columns
    for column in range(columns):
        y = top
        while bottom - y > 90 and len(page.blocks) < MOST - 6:
            y = _block(page, margin + column * (width + gap), y, width, bottom - y) + page.integer(9, 17)


def _block(page: _Page, left: int, top: int, width: int, room: int) -> int:
    """Draw a random block into the `room` below `top`, with its heading or caption. Returns the y below it."""
    choice = page.rng.random()
    if choice < 0.16 and room > 260:
        return _picture(page, left, top, width, min(room - 60, page.integer(140, 260)))
    if choice < 0.32 and room > 260:
        return _table(page, left, top, width, min((room - 60) // 24, page.integer(4, 9)))
    if choice < 0.44:
        return _items(page, left, top, width, min(room // 60, page.integer(2, 4)))
    if choice < 0.68 and room > 130:
        words, face = page.sentence(1, 4).rstrip("."), page.font(page.integer(1, 4), bold=True)
        top = page.write("heading", left, top, width, f"{page.integer(1, 9)} {words}", face) + 9
        room -= 40
    lines = min(page.integer(3, 9), room // (page.size + 5))
    return page.write("text", left, top, width, _prose(page, width, lines), page.font())


def _items(page: _Page, left: int, top: int, width: int, count: int) -> int:
    """A list. An item's box begins at its mark: a bullet, or a number."""
    bullets = page.rng.random() < 0.5
    for number in range(count):
        page.draw.text((left + 6, top), "•" if bullets else f"{number + 1}.", INK, page.font())
        words = _prose(page, width - 26, page.integer(1, 2))
        below = page.write("item", left + 26, top, width - 26, words, page.font())
        kind, _, *rest = page.blocks.pop()
        page.blocks.append((kind, left + 6, *rest))
        top = below + 4
    return top


def _picture(page: _Page, left: int, top: int, width: int, height: int) -> int:
    page.image.paste(images.wallpaper(page.rng, width, height, page.part), (left, top))
    page.mark("picture", left, top, left + width, top + height)
    words = f"Figure {page.integer(1, 30)}. {page.sentence(4, 14)}"
    return page.write("picture caption", left, top + height + 10, width, words, page.font(-1))


def _table(page: _Page, left: int, top: int, width: int, rows: int) -> int:
    """A caption, and a grid of numbers below a line of words. All of its lines are ruled, or the first and the last."""
    words = f"Table {page.integer(1, 30)}. {page.sentence(4, 14)}"
    top = page.write("table caption", left, top, width, words, page.font(-1)) + 7
    columns, height = page.integer(3, 5 if width > 400 else 4), page.size + page.integer(6, 10)
    grid, right, bottom = page.rng.random() < 0.5, left + width, top + rows * height
    starts = [left + column * width // columns for column in range(columns)]
    for row in range(rows):
        for column, x in enumerate(starts):
            word = f"{page.rng.uniform(0, 100):.2f}" if row and column else text.word(page.rng, 9)
            page.draw.text((x + 6, top + row * height + 3), word, INK, page.font(-1, bold=row == 0))
    for row in range(rows + 1):
        if grid or row in (0, 1, rows):
            page.draw.line((left, top + row * height, right, top + row * height), RULE)
    for x in (*starts, right) if grid else ():
        page.draw.line((x, top, x, bottom), RULE)
    page.mark("table", left, top, right, bottom)
    return bottom


def _prose(page: _Page, width: int, count: int) -> str:
    """Sentences that fill at most `count` lines, and nearly all of the last."""
    words, face = "", page.font()
    while face.getlength(words) < (count - 0.4) * width:
        words = f"{words} {page.sentence(4, 16)}".strip()
    return " ".join(_lines(words, width, face)[:count])


def _lines(words: str, width: int, face: ImageFont.FreeTypeFont) -> list[str]:
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if face.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
