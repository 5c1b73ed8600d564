"""Strict, immutable records, and the documents that store them in TOML or JSON files.

A document states a schema version, is read from TOML or JSON, and is written as JSON. An unknown key is refused with a
suggestion. The JSON Schemas are published in ``docs/schemas`` (``python -m toolchain.formats.schemas``);
the string after a field is its description there.
"""

from __future__ import annotations

import gzip
import json
import tomllib
import zlib
from pathlib import Path
from typing import Any, ClassVar, Self

import pydantic

from toolchain.core.errors import ConfigError
from toolchain.core.files import replacing
from toolchain.formats.faults import first_fault


class Record(pydantic.BaseModel):
    """A strict, immutable part of a document."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants", use_attribute_docstrings=True
    )


class Document(Record):
    """A record with a file of its own. Subclasses define ``schema_version: Literal[N] = N``."""

    KIND: ClassVar[str]
    """The name of such a file in messages, such as "recipe"."""

    @classmethod
    def parse(cls, data: Any, where: object = None) -> Self:
        """Validate parsed JSON or TOML data.

        Args:
            data: dictionaries, lists and plain values.
            where: names the data in errors, such as the file's path; None names the kind of document.

        Raises:
            ConfigError: the data does not follow the schema; it names the first fault and its place.
        """
        try:
            # JSON mode: a list is accepted for a tuple, and a string for an enum, but no string for a number.
            return cls.model_validate_json(json.dumps(data, default=str))
        except pydantic.ValidationError as error:
            fault = first_fault(cls, error, data, cls.KIND)
            place = ".".join(map(str, fault.place))
            at = ": ".join(str(part) for part in (where, place) if part) or cls.KIND
            raise ConfigError(fault.what, where=at, hint=fault.hint) from None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a ``.toml`` or ``.json`` file, or a ``.json.gz`` one.

        Raises:
            ConfigError: the file is missing, is not TOML or JSON, or does not follow the schema.
        """
        path = Path(path)
        try:
            content = path.read_bytes()
            text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
            data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except FileNotFoundError:
            what = f"no such {cls.KIND.removesuffix(' file')} file"
            raise ConfigError(what, where=path, hint="check the path") from None
        except (ValueError, EOFError, zlib.error, OSError) as error:  # of the parsers, decoders and the file system
            raise ConfigError(
                f"cannot be read as a {cls.KIND} ({error})", where=path, hint="correct the file"
            ) from None
        return cls.parse(data, where=path)

    def to_json(self) -> str:
        """Return the document as indented JSON with a newline at the end."""
        return self.model_dump_json(indent=2) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the document as JSON; an interrupted write leaves the file as it was.

        A name that ends in ``.gz`` is written compressed, with the same bytes every time.
        """
        path, content = Path(path), self.to_json().encode("utf-8")
        with replacing(path) as folder:
            (folder / path.name).write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
