"""The pages of the documentation: their code blocks, and how a test has to treat each one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md")
DEVICES = {"ssh": "--on ssh:", "adb": "--on adb:", "emulator": "--on emulator:"}
"""The text in a command by which it needs such a device."""

_FENCE = re.compile(r"^ *```(\w*)(?: title=\"([^\"]+)\")?$")
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block. title: the file that it is the content of; not_run: the page's reason to leave it out."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str
    not_run: str | None

    @property
    def place(self) -> str:
        return f"{name(self.page)}:{self.line}"

    @property
    def needs(self) -> frozenset[str]:
        """The kinds of devices, keys of :data:`DEVICES`, that its commands use."""
        return frozenset(device for device, option in DEVICES.items() if option in self.text)

    @property
    def commands(self) -> list[str]:
        """Its lines, continued ones joined."""
        return [line for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]


def name(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return list(_blocks(page, page.read_text(encoding="utf-8")))


def _blocks(page: Path, text: str) -> Iterator[Block]:
    fence, begun, not_run, body = None, 0, None, []
    for number, line in enumerate(text.splitlines(), 1):
        if fence is None and (fence := _FENCE.match(line)):
            begun, body = number, []
        elif fence is not None and line.strip() == "```":
            yield Block(page, begun, fence[1], fence[2], "".join(f"{entry}\n" for entry in body), not_run)
            fence = not_run = None
        elif fence is not None:
            body.append(line)
        elif line.strip():
            reason = _NOT_RUN.fullmatch(line.strip())
            not_run = reason[1] if reason else None


def toolchain_arguments(command: str) -> list[str] | None:
    """The arguments of a line that calls `toolchain`, without comment and redirection; None for another program."""
    words = shlex.split(command, comments=True)
    for end in ("|", ">", "&&"):
        if end in words:
            words = words[: words.index(end)]
    return words[1:] if words[:1] == ["toolchain"] else None
