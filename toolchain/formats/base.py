"""The base of everything kept in files: strict pydantic models with one-sentence errors.

A document refuses unknown keys with "did you mean", carries a schema version, reads TOML or JSON and
writes JSON. Its JSON Schema is published in ``docs/schemas`` (``python -m toolchain.formats.schemas``).
"""

from __future__ import annotations

import gzip
import json
import tomllib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import pydantic

from toolchain.core.errors import ConfigError, did_you_mean
from toolchain.core.files import replacing


class Part(pydantic.BaseModel):
    """A strict, immutable piece of a document."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants")


class Document(Part):
    """A file-backed noun. Subclasses state ``schema_version: Literal[N] = N``."""

    KIND: ClassVar[str]

    @classmethod
    def parse(cls, data: Any, where: object = None) -> Self:
        """Validate parsed JSON/TOML data.

        Raises:
            ConfigError: the first fault found, with its place in the document.
        """
        try:
            # JSON mode: lists may fill tuples and strings enums, but no number hides in a string.
            return cls.model_validate_json(json.dumps(data, default=str))
        except pydantic.ValidationError as error:
            raise _first_fault(cls, error, data, where) from None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a ``.toml`` or ``.json`` file, or a ``.json.gz`` one.

        Raises:
            ConfigError: missing, not parseable, or not following the schema.
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
            raise ConfigError(f"cannot be read as a {cls.KIND} ({error})", where=path, hint="mend the file") from None
        return cls.parse(data, where=path)

    def to_json(self) -> str:
        """The document as indented JSON with a trailing newline."""
        return self.model_dump_json(indent=2) + "\n"

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all; compressed if the name ends in ``.gz``, to the same bytes every time."""
        path, content = Path(path), self.to_json().encode("utf-8")
        with replacing(path) as folder:
            (folder / path.name).write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _first_fault(cls: type[Document], error: pydantic.ValidationError, data: Any, where: object) -> ConfigError:
    faults = [(_place(fault, data), fault) for fault in error.errors()]
    # A misspelt key is also a missing one; the misspelling is what to say.
    first, _ = next((f for f in faults if f[1]["type"] == "extra_forbidden"), faults[0])
    # Every branch of a union has a fault of its own: the one that got furthest is what was meant.
    place = max((place for place, _ in faults if place[: len(first)] == first), key=len)
    fault, *others = (fault for at, fault in faults if at == place)
    kind, context = fault["type"], fault.get("ctx", {})
    if kind.startswith("union_tag"):
        place = (*place, context["discriminator"].strip("'"))
    at = ": ".join(str(part) for part in (where, ".".join(map(str, place))) if part) or cls.KIND
    if kind == "extra_forbidden":
        return ConfigError("unknown key", where=at, hint=did_you_mean(str(place[-1]), _fields(cls, fault["loc"][:-1])))
    if kind in ("missing", "union_tag_not_found"):
        return ConfigError(f"is missing from this {cls.KIND}", where=at, hint="add it")
    word = context.get("tag", fault["input"])
    if kind == "union_tag_invalid" or (kind == "literal_error" and isinstance(word, str) and not others):
        expected = context.get("expected_tags") or context["expected"].replace(" or ", ",")
        known = [w.strip("' ") for w in expected.split(",")]
        return ConfigError(f"{word!r} is not allowed", where=at, hint=did_you_mean(word, known))
    also = [f"or {other['msg'].removeprefix('Input should be ')}" for other in others]
    message = ", ".join([fault["msg"].removeprefix("Value error, "), *also])
    seen = f", got {fault['input']!r:.60}" if kind != "value_error" else ""
    hint = "use the release that wrote it" if place == ("schema_version",) else "mend the value"
    return ConfigError(f"{message[0].lower()}{message[1:]}{seen}", where=at, hint=hint)


def _place(fault: Any, data: Any) -> tuple[int | str, ...]:
    """Where in the document: pydantic's location without the names it gives to the branches of a union."""
    place: list[int | str] = []
    for part in fault["loc"]:
        if (isinstance(data, Mapping) and part in data) or (isinstance(data, Sequence) and isinstance(part, int)):
            data = data[part]
            place.append(part)
    return (*place, fault["loc"][-1]) if fault["type"] == "missing" else tuple(place)


def _fields(cls: type[pydantic.BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """Names of the fields allowed at pydantic's location, following nested models, lists, dictionaries and tags."""
    node: Any = cls.model_json_schema()
    definitions = node.get("$defs", {})

    def resolve(schema: Any) -> Any:
        for option in [schema, *schema.get("anyOf", [])]:
            if "$ref" in option:
                return definitions[option["$ref"].rsplit("/", 1)[1]]
            if "properties" in option or "items" in option:
                return option
        return schema

    for part in location:
        node = resolve(node)
        if "discriminator" in node:
            node = {"$ref": node["discriminator"]["mapping"][part]}
        else:
            node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
    return set(resolve(node).get("properties", {}))
