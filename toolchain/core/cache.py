"""The disk cache: results that take seconds to compute or measure.

An entry is one file, named by a hash of everything that the result depends on. It never becomes outdated, because other
inputs have another name. It is written completely or not at all, and a file that cannot be read counts as absent. A
damaged cache therefore only costs time.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from toolchain.core.errors import InputError
from toolchain.core.files import replacing

T = TypeVar("T")

KEY_DIGITS = 32
"""Hexadecimal digits of an entry's name: 128 bits."""

# zipfile raises RuntimeError if damaged bytes claim encryption or an unknown compression.
_PARSE_ERRORS = (OSError, ValueError, KeyError, AttributeError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile)


def cache_dir(*parts: str) -> Path:
    """Return a folder of the user's cache, ``$TOOLCHAIN_CACHE`` or ``~/.cache/edge-toolchain``; create it if needed.

    Raises:
        InputError: the folder cannot be made.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = os.environ.get("TOOLCHAIN_CACHE") or Path(base, "edge-toolchain")
    folder = Path(root, *parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be made ({error.strerror})", where=folder, hint="set TOOLCHAIN_CACHE to a writable folder"
        ) from error
    return folder


def cache_key(*parts: object) -> str:
    """Hash everything a result depends on.

    Args:
        parts: bytes are hashed as they are, every other object by its ``repr``, which must not vary between processes.

    Returns:
        The first `KEY_DIGITS` hexadecimal digits of a SHA-256.
    """
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:KEY_DIGITS]


def cache_path(folder: str, *parts: object, suffix: str) -> Path:
    """Return the path of the entry for a result that depends on `parts`, see :func:`cache_key`; it need not exist.

    Raises:
        InputError: the cache cannot be made.
    """
    return cache_dir(folder) / f"{cache_key(*parts)}{suffix}"


def read_cache(path: Path, parse: Callable[[bytes], T | None]) -> T | None:
    """Read an entry.

    Args:
        path: path of the entry.
        parse: turns the content into the result. It returns None, or raises one of the usual errors of parsers, if the
            content is not valid.

    Returns:
        The result; None if the entry does not exist or is not valid.
    """
    try:
        return parse(path.read_bytes())
    except _PARSE_ERRORS:
        return None


def write_cache(path: Path, content: bytes) -> None:
    """Write an entry completely or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path) as folder:
        (folder / path.name).write_bytes(content)
