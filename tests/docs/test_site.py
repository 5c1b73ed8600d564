"""The site builds without a warning and asks no other server for anything; its generated pages are complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from site_pages import ROOT

import toolchain
from toolchain.ops.table import TABLE

ABSENT = find_spec("material") is None or find_spec("mkdocstrings") is None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(ABSENT, reason="mkdocs-material is not installed; `make docs` installs it"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def text(folder, page: str) -> str:
    return (folder / page / "index.html").read_text(encoding="utf-8")


def test_no_page_loads_from_another_server(built):
    loaded = re.compile(
        r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//|<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="(?:https?:)?//'
    )
    assert not [str(page) for page in built.rglob("*.html") if loaded.search(page.read_text(encoding="utf-8"))]


def test_every_command_is_listed(built):
    page = text(built, "reference/command-line")
    for command in ("export", "bench", "targets detect", "emulator setup"):
        assert f"<code>toolchain {command}</code>" in page


def test_every_public_name_is_documented(built):
    page = text(built, "reference/python-api")
    assert [public for public in toolchain.__all__ if f'id="toolchain.{public}"' not in page] == []


def test_every_operator_is_listed(built):
    page = text(built, "reference/operators")
    assert [operator for operator in TABLE if f"<code>{operator}</code>" not in page] == []


def test_every_schema_is_described(built):
    page = text(built, "reference/file-formats")
    for schema in (ROOT / "docs/schemas").glob("*.schema.json"):
        assert f"../../schemas/{schema.name}" in page
