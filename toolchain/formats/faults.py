"""Describe a validation error of pydantic in one sentence: place in the document, value, and what to give instead."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic

from toolchain.core.errors import did_you_mean

UNKNOWN_KEY_FAULTS = ("extra_forbidden", "unexpected_keyword_argument")
"""Pydantic's names of the fault that a key is unknown: in a record, and in a dataclass."""

MAX_VALUE_CHARACTERS = 60
"""Largest number of characters of a value that a message shows."""


@dataclass(frozen=True)
class Fault:
    """One fault of a document.

    Attributes:
        place: keys and indices from the root of the document.
        what: the fault in words.
        hint: advice how to correct it.
    """

    place: tuple[int | str, ...]
    what: str
    hint: str


def first_fault(model: type[pydantic.BaseModel], error: pydantic.ValidationError, data: Any, kind: str) -> Fault:
    """Choose the fault to report, and describe it.

    Args:
        model: the record that was validated.
        error: the error of the validation.
        data: the data that was validated.
        kind: the name of such a document, such as "recipe".
    """
    faults = [(_place(fault, data), fault) for fault in error.errors()]
    # A misspelt key is also a missing one; the misspelling is the one to report.
    first, _ = next((f for f in faults if f[1]["type"] in UNKNOWN_KEY_FAULTS), faults[0])
    # Every branch of a union has its own fault. The one deepest in the document is reported: its branch fits best.
    place = max((place for place, _ in faults if place[: len(first)] == first), key=len)
    fault, *others = (fault for at, fault in faults if at == place)
    problem, context = fault["type"], fault.get("ctx", {})
    if problem.startswith("union_tag"):
        place = (*place, context["discriminator"].strip("'"))
    if problem in UNKNOWN_KEY_FAULTS:
        return Fault(place, "unknown key", did_you_mean(str(place[-1]), _fields(model, fault["loc"][:-1])))
    if problem in ("missing", "union_tag_not_found"):
        return Fault(place, f"is missing from this {kind}", "add it")
    if problem == "value_error":
        return Fault(place, fault["msg"].removeprefix("Value error, "), "correct the value")
    if place == ("schema_version",):
        what = f"is {_shown(fault)}, and this release reads version {context['expected']}"
        return Fault(place, what, "use the release that wrote the file")
    word = context.get("tag", fault["input"])
    if problem == "union_tag_invalid" or (problem == "literal_error" and isinstance(word, str) and not others):
        return Fault(place, f"{word!r} is not allowed", did_you_mean(word, _words(context)))
    expected = dict.fromkeys(_expected(f) for f in (fault, *others))
    return Fault(place, f"is {_shown(fault)}", f"give {' or '.join(expected)}")


def _expected(fault: Any) -> str:
    """Say what is expected, in words that follow "give …"."""
    context = fault.get("ctx", {})
    match fault["type"]:
        case "bool_type" | "bool_parsing":
            return "true or false"
        case "int_type" | "int_parsing" | "int_from_float":
            return "a whole number"
        case "float_type" | "float_parsing":
            return "a number"
        case "finite_number":
            return "a finite number"
        case "string_type":
            return "text in quotes"
        case "list_type" | "tuple_type":
            return "a list"
        case "dict_type" | "model_type" | "dataclass_type":
            return "a table of keys and values"
        case "none_required":
            return "null"
        case "literal_error":
            return str(context["expected"])
        case "greater_than":
            return f"a number above {context['gt']:g}"
        case "greater_than_equal":
            return f"{context['ge']:g} or more"
        case "less_than":
            return f"a number below {context['lt']:g}"
        case "less_than_equal":
            return f"{context['le']:g} or less"
        case "too_short":
            return f"a list with at least {_entries(context['min_length'])}"
        case "too_long":
            return f"a list with at most {_entries(context['max_length'])}"
        case _:
            return f"another value ({fault['msg']})"


def _entries(number: int) -> str:
    return "1 entry" if number == 1 else f"{number} entries"


def _shown(fault: Any) -> str:
    """Return the given value as TOML and JSON write it, shortened."""
    text = json.dumps(fault["input"], ensure_ascii=False, default=str)
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[:MAX_VALUE_CHARACTERS]}…"


def _words(context: Mapping[str, Any]) -> list[str]:
    expected = context.get("expected_tags") or context["expected"].replace(" or ", ",")
    return [word.strip("' ") for word in expected.split(",")]


def _place(fault: Any, data: Any) -> tuple[int | str, ...]:
    """Locate a fault in the document: pydantic's location without its names for the branches of a union."""
    place: list[int | str] = []
    for part in fault["loc"]:
        if (isinstance(data, Mapping) and part in data) or (isinstance(data, Sequence) and isinstance(part, int)):
            data = data[part]
            place.append(part)
    return (*place, fault["loc"][-1]) if fault["type"] == "missing" else tuple(place)


def _fields(model: type[pydantic.BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """Name the fields allowed at pydantic's location, following nested records, lists, dictionaries and tags."""
    node: Any = model.model_json_schema()
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
