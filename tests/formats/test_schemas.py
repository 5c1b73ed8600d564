"""The checked-in JSON Schemas are those of the code, and the shipped profiles follow theirs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import toolchain
from toolchain.formats.schemas import DOCUMENTS, main, schema_text, write_schemas

PUBLISHED = Path(__file__).parents[2] / "docs" / "schemas"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_published_schema_is_current(name):
    assert (PUBLISHED / f"{name}.schema.json").read_text() == schema_text(name), (
        "run `python -m toolchain.formats.schemas docs/schemas`"
    )


def test_every_document_is_published():
    sources = [path.read_text() for path in Path(toolchain.__file__).parent.rglob("*.py")]
    defined = {name for text in sources for name in re.findall(r"^class (\w+)\(Document\)", text, re.MULTILINE)}
    assert defined == {cls.__name__ for cls in DOCUMENTS.values()}
    assert {p.name for p in PUBLISHED.iterdir()} == {f"{name}.schema.json" for name in DOCUMENTS}


def test_a_schema_refuses_unknown_keys_and_states_its_dialect():
    for name in DOCUMENTS:
        schema = json.loads(schema_text(name))
        assert schema["$schema"].endswith("2020-12/schema")
        assert schema["additionalProperties"] is False
        assert schema["properties"]["schema_version"]["const"] == 1


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_record_and_field_is_described_in_one_or_more_sentences(name):
    schema = json.loads(schema_text(name))
    for title, record in {name: schema, **schema.get("$defs", {})}.items():
        described = {title: record, **{f"{title}.{key}": field for key, field in record["properties"].items()}}
        texts = {key: part.get("description", "") for key, part in described.items()}
        assert [key for key, text in texts.items() if not text.endswith(".")] == []
        assert [key for key, text in texts.items() if ":`" in text] == [], "a page for editors has no such links"


def test_write_schemas_writes_all(tmp_path):
    paths = write_schemas(tmp_path / "made")
    assert sorted(p.name for p in paths) == sorted(p.name for p in (tmp_path / "made").iterdir())
    assert len(paths) == len(DOCUMENTS)


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "toolchain.formats.schemas", tmp_path / "out"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "out" / "target.schema.json").read_text() == schema_text("target")


def test_the_command_without_a_folder(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err == "toolchain.formats.schemas: needs one folder; for example docs/schemas\n"
