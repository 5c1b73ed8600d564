"""Suites: a list of files in a TOML file, and what is wrong with one."""

from __future__ import annotations

import pytest

from toolchain.core.errors import ConfigError
from toolchain.formats.suite import load_suite

TEXT = """
schema_version = 1
description = "two of one"
[[rows]]
model = "net"
variant = "fp32"
file = "sub/a.onnx"
[[rows]]
model = "net"
variant = "int8"
file = "b.onnx"
dims = { batch = 4 }
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("sub/a.onnx", "b.onnx"):
        (tmp_path / name).touch()
    (tmp_path / "suite.toml").write_text(TEXT)
    return tmp_path


@pytest.mark.parametrize("name", ["", "suite.toml"])
def test_a_suite_is_a_file_or_the_folder_it_lies_in(folder, name):
    suite, root = load_suite(folder / name)
    assert (suite.description, root) == ("two of one", folder)
    assert [(row.variant, row.file, row.dims) for row in suite.rows] == [
        ("fp32", "sub/a.onnx", {}),
        ("int8", "b.onnx", {"batch": 4}),
    ]


def test_what_is_no_suite(folder):
    (folder / "b.onnx").unlink()
    with pytest.raises(ConfigError, match=r"suite\.toml: b\.onnx: no such model file; check the suite's rows"):
        load_suite(folder)
    (folder / "suite.toml").write_text(TEXT.replace("variant", "varient"))
    with pytest.raises(ConfigError, match="did you mean 'variant'"):
        load_suite(folder)
    with pytest.raises(ConfigError, match="no such suite file"):
        load_suite(folder / "other.toml")
