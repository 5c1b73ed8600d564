"""`Suite`: a list of model files that are timed again and again, in a TOML file beside them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pydantic

from toolchain.core.errors import ConfigError
from toolchain.formats.base import Document, Part


class SuiteRow(Part):
    """One file. model, variant: the row's names; rows of one model are timed interleaved.

    file: relative to the suite. dims: sizes of named axes of its inputs; others are 1.
    """

    model: str
    variant: str
    file: str
    dims: dict[str, int] = pydantic.Field(default_factory=dict)


class Suite(Document):
    """description: what these models are; it stands above the table."""

    KIND: ClassVar[str] = "suite"

    schema_version: Literal[1] = 1
    description: str
    rows: tuple[SuiteRow, ...] = pydantic.Field(min_length=1)


def load_suite(path: str | Path) -> tuple[Suite, Path]:
    """The suite and the folder its files are relative to. path: the file, or a folder with a ``suite.toml``.

    Raises:
        ConfigError: missing or malformed, or one of its files is missing.
    """
    path = Path(path)
    path = path / "suite.toml" if path.is_dir() else path
    suite = Suite.load(path)
    for row in suite.rows:
        if not (path.parent / row.file).is_file():
            raise ConfigError(f"{row.file}: no such model file", where=path, hint="check the suite's rows")
    return suite, path.parent
