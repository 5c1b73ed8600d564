"""`Suite`: a TOML file that lists model files, so that they can be timed together repeatedly."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pydantic

from toolchain.core.errors import ConfigError
from toolchain.formats.base import Document, Record


class SuiteRow(Record):
    """One file of a suite. Rows of the same model are timed interleaved."""

    model: str
    """Name of the model in tables."""
    variant: str
    """Name of the variant in tables, such as "int8"."""
    file: str
    """Path of the model file, relative to the suite."""
    dims: dict[str, int] = pydantic.Field(default_factory=dict)
    """Sizes of named axes of the inputs; other dynamic axes are 1."""


class Suite(Document):
    """Model files that are timed again and again."""

    KIND: ClassVar[str] = "suite"

    schema_version: Literal[1] = 1
    """Version of this file format."""
    description: str
    """Text above the table of results: what these models are."""
    rows: tuple[SuiteRow, ...] = pydantic.Field(min_length=1)
    """The files."""


def load_suite(path: str | Path) -> tuple[Suite, Path]:
    """Read a suite and check that its files exist.

    Args:
        path: the suite's file, or a folder with a ``suite.toml``.

    Returns:
        The suite, and the folder that its files are relative to.

    Raises:
        ConfigError: the suite is missing or does not follow the schema, or one of its files is missing.
    """
    path = Path(path)
    path = path / "suite.toml" if path.is_dir() else path
    suite = Suite.load(path)
    for row in suite.rows:
        if not (path.parent / row.file).is_file():
            raise ConfigError(f"{row.file}: no such model file", where=path, hint="check the suite's rows")
    return suite, path.parent
