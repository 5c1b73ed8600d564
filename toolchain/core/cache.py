"""The disk cache: results that take seconds to compute or measure, kept under the hash of everything they depend on.

An entry is one file. Its name is a hash of all inputs of the computation, so an entry never becomes outdated: other
inputs have another name. It is written whole or not at all, and a file that cannot be read counts as absent, so the
worst that a damaged cache causes is work done twice.
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

DIGITS = 32
"""Hexadecimal digits of a file's name: 128 bits."""

# RuntimeError is what zipfile raises for a damaged flag that claims encryption or an unknown compression.
_UNREADABLE = (OSError, ValueError, KeyError, AttributeError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile)


def cache_dir(*parts: str) -> Path:
    """Return a folder of the user's cache, ``$TOOLCHAIN_CACHE`` or ``~/.cache/edge-toolchain``, made on demand.

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
        parts: bytes are taken as they are, every other object by its ``repr``, which must not vary between processes.

    Returns:
        Hexadecimal digits of a SHA-256, fit for a file name.
    """
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:DIGITS]


def cache_path(folder: str, *parts: object, suffix: str) -> Path:
    """Name the file of the result that depends on `parts`, see :func:`cache_key`; the file need not exist.

    Raises:
        InputError: the cache cannot be made.
    """
    return cache_dir(folder) / f"{cache_key(*parts)}{suffix}"


def read_cache(path: Path, parse: Callable[[bytes], T | None]) -> T | None:
    """Read an entry; None where there is none, or where its content is damaged or of another kind.

    Args:
        path: of the entry.
        parse: turns the content into the result. Raising one of the usual errors of parsers, or returning None, says
            that the content is not what it should be.
    """
    try:
        return parse(path.read_bytes())
    except _UNREADABLE:
        return None


def write_cache(path: Path, content: bytes) -> None:
    """Write an entry, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path) as folder:
        (folder / path.name).write_bytes(content)
