"""Writing is whole or not at all: every test looks at the folder afterwards."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from toolchain.core.errors import InputError
from toolchain.core.files import check_output, replacing, sha256, write_text


def content(folder: Path) -> dict[str, str]:
    """Every file below `folder` with its text, hidden ones included; an empty folder with none."""
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() or not any(p.iterdir())]
    return {str(p.relative_to(folder)): p.read_text() if p.is_file() else "" for p in found}


@pytest.fixture
def folder(tmp_path):
    """A folder holding an old file and an old folder."""
    (tmp_path / "model.onnx").write_text("old model")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "stale.txt").write_text("old export")
    return tmp_path


OLD = {"model.onnx": "old model", "export/stale.txt": "old export"}


def test_a_file_is_replaced_and_nothing_else_is_left(folder):
    with replacing(folder / "model.onnx") as temporary:
        (temporary / "model.onnx").write_text("new model")
        assert content(folder)["model.onnx"] == "old model"
    assert content(folder) == {**OLD, "model.onnx": "new model"}


def test_files_written_beside_it_come_along(folder):
    with replacing(folder / "model.onnx") as temporary:
        (temporary / "model.onnx").write_text("new model")
        (temporary / "model.onnx.data").write_text("weights")
    assert content(folder) == {**OLD, "model.onnx": "new model", "model.onnx.data": "weights"}


def test_a_folder_is_replaced_as_a_whole(folder):
    with replacing(folder / "export") as temporary:
        (temporary / "export").mkdir()
        (temporary / "export" / "fresh.txt").write_text("new export")
    assert content(folder) == {"model.onnx": "old model", "export/fresh.txt": "new export"}


def test_missing_parents_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "µ")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "µ".encode()


def test_a_relative_path_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text("c.txt", "text")
    assert content(tmp_path) == {"c.txt": "text"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("name", ["model.onnx", "export"])
def test_an_exception_leaves_the_old_one(folder, name, error):
    def half_written(temporary: Path) -> None:
        (temporary / name).write_text("half")
        raise error

    with pytest.raises(error), replacing(folder / name) as temporary:
        half_written(temporary)
    assert content(folder) == OLD
    assert sorted(p.name for p in folder.iterdir()) == ["export", "model.onnx"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), KeyboardInterrupt()])
def test_a_failure_between_the_two_renames_brings_the_old_folder_back(folder, monkeypatch, error):
    replace = Path.replace

    def failing(source: Path, destination: Path) -> Path:
        if Path(destination) == folder / "export" and ".old." not in str(source):
            raise error
        return replace(source, destination)

    monkeypatch.setattr(Path, "replace", failing)
    with (
        pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt),
        replacing(folder / "export") as temporary,
    ):
        (temporary / "export").mkdir()
    assert content(folder) == OLD
    assert sorted(p.name for p in folder.iterdir()) == ["export", "model.onnx"]


def test_a_file_never_takes_the_place_of_a_folder(folder):
    with pytest.raises(InputError, match=r"export: cannot be written \(there is a folder of that name\)"):
        write_text(folder / "export", "text")
    assert content(folder) == OLD


@pytest.mark.parametrize("path", [".", "..", "/", "a/.."])
def test_a_path_without_a_name_is_refused(path):
    with pytest.raises(InputError, match="not the name of a file"), replacing(path):
        pytest.fail("the block must not run")


def test_a_full_disk_is_one_sentence(folder):
    """``/dev/full`` answers every write as a full disk does."""

    def fill(temporary: Path) -> None:
        (temporary / "model.onnx").symlink_to("/dev/full")
        (temporary / "model.onnx").write_text("x" * 100_000)

    sentence = r"model\.onnx: cannot be written \(No space left on device\); free some space or choose another output$"
    with pytest.raises(InputError, match=sentence), replacing(folder / "model.onnx") as temporary:
        fill(temporary)
    assert content(folder) == OLD


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_really_full_disk(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path]
    mounted = subprocess.run(mount, check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        write_text(tmp_path / "results.json", "old")
        with pytest.raises(InputError, match="No space left on device"):
            write_text(tmp_path / "results.json", "x" * 1_000_000)
        assert content(tmp_path) == {"results.json": "old"}
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_copy_that_fills_the_disk_names_the_output(folder):
    output = folder / "model.onnx"
    with pytest.raises(InputError, match=r"model\.onnx: cannot be written \(No space"), replacing(output):
        raise OSError(errno.ENOSPC, "No space left on device", "/elsewhere/model.onnx", None, str(output))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_parents_made_in_vain_are_removed(folder, error):
    with pytest.raises(error), replacing(folder / "new" / "deep" / "model.onnx"):
        raise error
    assert content(folder) == OLD
    write_text(folder / "new" / "deep" / "x.json", "{}")
    assert (folder / "new" / "deep" / "x.json").read_text() == "{}"


def test_outputs_are_refused_before_the_work_begins(folder, monkeypatch):
    (folder / "sub").mkdir()
    for path, said in {
        "sub": "is a folder; name a file in it",
        "model.onnx/x/y.json": r"cannot be written \(.*model\.onnx is a file\)",
        "..": "not the name of a file",
    }.items():
        with pytest.raises(InputError, match=said):
            check_output(folder / path)
    check_output(folder / "model.onnx")
    check_output(folder / "new" / "deep" / "x.json")
    assert not (folder / "new").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root, who may write anywhere
    with pytest.raises(InputError, match="is read-only"):
        check_output(folder / "model.onnx")


def test_a_file_in_the_place_of_a_parent_folder(folder):
    with pytest.raises(InputError, match="cannot be written"):
        write_text(folder / "model.onnx" / "x.json", "{}")
    assert content(folder) == OLD


def test_a_failure_to_read_something_else_is_not_blamed_on_the_output(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(FileNotFoundError), replacing(folder / "model.onnx"):
        (elsewhere / "weights.bin").read_bytes()
    assert content(folder) == OLD


def test_sha256_agrees_with_hashlib(tmp_path):
    data = os.urandom(3_000_000)
    (tmp_path / "x").write_bytes(data)
    assert sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()
