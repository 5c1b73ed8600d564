"""Writing files and folders either completely or not at all.

Everything is written to a temporary folder beside its destination, then renamed into place. An exception or an
interrupt removes the temporary folder, and the old file or folder stays as it was.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from toolchain.core.errors import InputError


def check_output(path: str | Path) -> None:
    """Refuse an output file that could not be written. Call this before the work begins.

    Raises:
        InputError: `path` is a folder, or its parent folder cannot be created or written.
    """
    path = _named(path)
    if path.is_dir():
        raise InputError("is a folder", where=path, hint="name a file in it")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"cannot be written ({parent} is a file)", where=path, hint="choose another output")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot be written ({parent} is read-only)", where=path, hint="choose another output")


def _named(path: str | Path) -> Path:
    path = Path(path)
    if path.name in ("", ".."):
        raise InputError("is not the name of a file or folder", where=path, hint="name the output itself")
    return path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; all that the block writes in it is moved next to `path` at its end.

    The block writes ``folder / path.name`` (a file or a folder) and, for models with external data, other files beside
    it. `path` itself is moved last. A file never replaces a folder.

    Raises:
        InputError: the parent folder cannot be written, or the disk is full.
    """
    path = _named(path)
    temporary: Path | None = None
    new: list[Path] = []
    try:
        new += [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield temporary
        for entry in sorted(temporary.iterdir(), key=lambda p: p.name == path.name):  # `path` itself last
            _move(entry, path.parent / entry.name)
    except OSError as error:
        if temporary is not None and _names_file_elsewhere(error, temporary.parent):
            raise  # the block could not read another file: the output is not the problem
        hint = "choose another output"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = f"free some space or {hint}"
        raise InputError(f"cannot be written ({error.strerror or error})", where=path, hint=hint) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for folder in new:  # removed if nothing was written to them
            with suppress(OSError):
                folder.rmdir()


def _names_file_elsewhere(error: OSError, parent: Path) -> bool:
    """Return True if the error names a file outside the output's folder. A failed copy names source and destination."""
    named = error.filename if error.filename2 is None else error.filename2
    return isinstance(named, str) and not Path(named).absolute().is_relative_to(parent.absolute())


def _move(source: Path, destination: Path) -> None:
    if not destination.is_dir() or destination.is_symlink():
        source.replace(destination)
        return
    if not source.is_dir():
        raise IsADirectoryError(errno.EISDIR, "there is a folder of that name", str(destination))
    old = Path(tempfile.mkdtemp(prefix=f".{destination.name}.old.", dir=destination.parent))
    try:
        destination.replace(old / destination.name)
        source.replace(destination)
    except BaseException:  # after an interrupt between the two renames, the old folder is put back
        if not destination.exists():
            (old / destination.name).replace(destination)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, completely or not at all."""
    path = Path(path)
    with replacing(path) as folder:
        (folder / path.name).write_text(text, encoding="utf-8")


def sha256(path: str | Path) -> str:
    """Return the hex SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
