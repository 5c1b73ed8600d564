"""Generate the reference pages that repeat what the code says: commands, operators, file formats.

mkdocs calls `on_files` while it builds the site (`hooks` in mkdocs.yml), so these pages can never be out of date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
SCHEMAS = ROOT / "docs/schemas"
API_MARK = "<!-- api -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    pages: dict[str, Callable[[], str]] = {
        "reference/command-line.md": command_line,
        "reference/operators.md": operators,
        "reference/file-formats.md": file_formats,
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text()))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Put the public names of the package where the page of the Python API has its mark."""
    return markdown.replace(API_MARK, python_api()) if API_MARK in markdown else markdown


def python_api() -> str:
    """List the public names: functions, records, errors. mkdocstrings fills in what their docstrings say."""
    import toolchain

    groups: dict[str, list[str]] = {"Functions": [], "Records": [], "Errors": []}
    for name in toolchain.__all__:
        value = getattr(toolchain, name)
        if isinstance(value, type):
            groups["Errors" if issubclass(value, Exception) else "Records"].append(name)
        elif callable(value):
            groups["Functions"].append(name)
    lines = []
    for title, names in groups.items():
        lines += [f"## {title}", "", *(f"::: toolchain.{name}\n" for name in names)]
    return "\n".join([*lines, "## Version", "", "::: toolchain.__version__", ""])


def command_line() -> str:
    """Describe every command of the command line with its arguments, options and defaults."""
    import typer

    from toolchain.cli.main import app

    lines = [
        "# Command line",
        "",
        "This page is generated from the commands themselves. `toolchain COMMAND -h` shows the same in a terminal.",
        "",
        "- Exit codes: 0 success, 1 a gate or a limit failed, 2 an input cannot be used, 130 interrupted.",
        "- `--json` prints the result as JSON on stdout; everything else is on stderr.",
        "- `-v` also says what is decided, `-vv` everything, `-q` only the result and errors.",
        "- `toolchain --install-completion` installs completion for your shell.",
        "",
    ]
    root = typer.main.get_command(app)
    for name, command in _commands(root, "toolchain"):
        lines += [f"## `{name}`", "", *_paragraphs(command.help or ""), ""]
        lines += [*_parameter_table(command), *_paragraphs(command.epilog or ""), ""]
    return "\n".join(lines)


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for child_name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from _commands(child, f"{name} {child_name}")


def _paragraphs(text: str) -> list[str]:
    """Return the lines of a help text; indented examples become code blocks."""
    lines, in_code = [], False
    for line in text.replace("\b", "").splitlines():
        code = line.startswith(("    ", "  ")) and bool(line.strip())
        if code != in_code and (code or line.strip()):
            lines.append("```text" if code else "```")
            in_code = code
        lines.append(line.strip() if code else line)
    return [*lines, "```"] if in_code else lines


def _parameter_table(command: Any) -> list[str]:
    parameters = [p for p in command.params if not getattr(p, "hidden", False)]
    if not parameters:
        return []
    lines = ["| argument or option | meaning | default |", "|---|---|---|"]
    for parameter in parameters:
        is_option = parameter.param_type_name == "option"
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts)) if is_option else ""
        metavar = parameter.metavar or ""
        if is_option and metavar and not getattr(parameter, "is_flag", False):
            names += f" `{metavar}`"
        meaning = _cell(getattr(parameter, "help", None) or "")
        lines.append(f"| {names or f'`{metavar or parameter.name}`'} | {meaning} | {_default(parameter)} |")
    return [*lines, ""]


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if getattr(parameter, "show_default", True) is False:
        return ""
    default = parameter.default
    shown = isinstance(default, str | int | float | Path) and not isinstance(default, bool)
    return f"`{default}`" if shown and str(default) else ""


def operators() -> str:
    """List every operator of the table: what int8 does with it and how channels run through it."""
    from toolchain.ops.table import TABLE

    lines = [
        "# Operators",
        "",
        f"The {len(TABLE)} ONNX operators that the toolchain knows, generated from `toolchain/ops/table.py`.",
        "An operator that is not in this list stays float, nothing is pruned across it, and reports name it.",
        "",
        "| operator | int8 | channels, for pruning |",
        "|---|---|---|",
    ]
    for name, row in TABLE.items():
        lines.append(f"| `{name}` | {_int8(row.int8)} | {_channels(row.channels)} |")
    lines += ["", "## What the int8 column means", "", "| word | meaning |", "|---|---|"]
    lines += [f"| {word} | {meaning} |" for word, meaning in INT8_WORDS.values()]
    lines += ["", "## What the channels column means", "", "| word | meaning |", "|---|---|"]
    lines += ["| kept | The channels keep their number, for the reason given. |"]
    kinds = {type(row.channels) for row in TABLE.values() if not hasattr(row.channels, "reason")}
    for kind in sorted(kinds, key=lambda kind: kind.__name__):
        lines.append(f"| {kind.__name__} | {_cell(kind.__doc__.split(chr(10) * 2)[0])} |")
    return "\n".join(lines)


INT8_WORDS: Mapping[str, tuple[str, str]] = {
    "Kernel": ("int8 product", "The weight is constant; activation and weight are 8-bit, the sum is 32-bit."),
    "OwnScale": ("int8, own scale", "Inputs and output each have a scale of their own."),
    "SameScale": ("int8, same scale", "The integers pass unchanged; the output shares the scale of its input."),
    "Absorbed": ("absorbed", "Removed, where the quantized range of the operator before it ends at the same place."),
    "Dynamic": ("int8, dynamic", "Weights are int8; activations are rounded at run time. The result is float."),
    "Float": ("float", "Stays float, for the reason given."),
}
"""Word and meaning for each class of int8 cell in the operator table."""


def _int8(cell: Any) -> str:
    word = INT8_WORDS[type(cell).__name__][0]
    return f"{word}: {_cell(cell.reason)}" if hasattr(cell, "reason") else word


def _channels(cell: Any) -> str:
    kind = type(cell).__name__
    return f"kept: {_cell(cell.reason)}" if hasattr(cell, "reason") else kind


def file_formats() -> str:
    """Describe every file format by its published JSON Schema."""
    lines = [
        "# File formats",
        "",
        "Every file that the toolchain reads or writes follows a JSON Schema. Unknown keys and values of another type",
        "are refused, with the place in the file. Editors can use the schemas to complete and check files.",
        "",
    ]
    for path in sorted(SCHEMAS.glob("*.schema.json")):
        schema = json.loads(path.read_text(encoding="utf-8"))
        name = path.name.removesuffix(".schema.json")
        lines += [f"## {name}", "", f"[JSON Schema](../schemas/{path.name})", "", *_described(schema), ""]
        for part, definition in schema.get("$defs", {}).items():
            if "properties" in definition:
                lines += [f"### {name}: {part}", "", *_described(definition), ""]
    return "\n".join(lines)


def _described(schema: Mapping[str, Any]) -> list[str]:
    """Return a table's description and its keys; `key: meaning.` in the description moves to the row of the key."""
    text = " ".join(schema.get("description", "").split())
    keys = "|".join(map(re.escape, schema.get("properties", {})))
    parts = re.split(rf"(?:^|(?<=[.;:] ))((?:(?:{keys})(?:, | and )?)+): ", text) if keys else [text]
    meanings = {}
    for names, meaning in zip(parts[1::2], parts[2::2], strict=True):
        meanings |= dict.fromkeys(re.findall(rf"{keys}", names), _sentence(meaning))
    return [parts[0].strip(), "", *_fields(schema, meanings)]


def _sentence(text: str) -> str:
    text = text.strip().rstrip(";.")
    return f"{text[:1].upper()}{text[1:]}."


def _fields(schema: Mapping[str, Any], meanings: Mapping[str, str]) -> list[str]:
    required = set(schema.get("required", ()))
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in schema.get("properties", {}).items():
        default = "required" if key in required else f"`{json.dumps(field['default'])}`" if "default" in field else ""
        default = default if len(default) < 40 else "see its table"
        meaning = field.get("description") or meanings.get(key, "")
        lines.append(f"| `{key}` | {_cell(_type(field))} | {_cell(default)} | {_cell(meaning)} |")
    return lines


def _type(field: Mapping[str, Any]) -> str:
    """Say a JSON Schema's type in a few words."""
    if "$ref" in field:
        return str(field["$ref"].rsplit("/", 1)[1])
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " or ".join(_type(option) for option in field[key])
    if field.get("type") == "array":
        inner = field.get("items") or (field.get("prefixItems") or [{}])[0]
        return f"list of {_type(inner)}"
    if field.get("type") == "object" and isinstance(field.get("additionalProperties"), Mapping):
        return f"table of {_type(field['additionalProperties'])}"
    return {"null": "nothing", "object": "table"}.get(field.get("type", ""), str(field.get("type", "any")))


def _cell(text: str) -> str:
    """Make a text safe for one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
