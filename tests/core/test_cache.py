"""The disk cache: names follow the inputs, entries are whole, and what cannot be read counts as absent."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.core.cache import cache_dir, cache_key, cache_path, read_cache, write_cache
from toolchain.core.errors import InputError

parts = st.lists(st.text(max_size=3) | st.binary(max_size=3) | st.integers() | st.none() | st.booleans(), max_size=4)


@given(parts, parts)
def test_other_parts_have_another_key(one, other):
    same = [(type(part), part) for part in one] == [(type(part), part) for part in other]
    assert (cache_key(*one) == cache_key(*other)) == same


def test_where_one_part_ends_and_the_next_begins_matters():
    assert cache_key(b"ab", b"c") != cache_key(b"a", b"bc") != cache_key(b"abc")


def test_a_key_is_the_same_in_every_process():
    code = (
        "from toolchain.core.cache import cache_key; import sys; sys.stdout.write(cache_key('a', 1.5, (2, None), b'x'))"
    )
    keys = {
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
        for _ in range(2)
    }
    assert keys == {cache_key("a", 1.5, (2, None), b"x")}


def test_what_was_written_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLCHAIN_CACHE", str(tmp_path))
    path = cache_path("things", "a", 1, suffix=".json")
    assert path.parent == tmp_path / "things"
    assert path.suffix == ".json"
    assert read_cache(path, json.loads) is None
    write_cache(path, b"[1, 2]")
    assert read_cache(path, json.loads) == [1, 2]
    write_cache(path, b"[3]")
    assert read_cache(path, json.loads) == [3]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null", b"7", b'["a"]', b'{"a": 1}', b"[[1]]"])
def test_what_is_damaged_or_of_another_kind_counts_as_absent(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert read_cache(path, lambda data: [float(number) for number in json.loads(data)]) is None


def test_a_damaged_archive_counts_as_absent(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(3))
    whole = path.read_bytes()

    def parse(content):
        path.with_suffix(".copy").write_bytes(content)
        with np.load(path.with_suffix(".copy"), allow_pickle=False) as file:
            return file["a"].tolist()

    assert read_cache(path, parse) == [0, 1, 2]
    for size in (0, 1, 50, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:size])
        assert read_cache(path, parse) is None, size


def test_a_folder_in_the_place_of_an_entry_counts_as_absent(tmp_path):
    (tmp_path / "x.json").mkdir()
    assert read_cache(tmp_path / "x.json", json.loads) is None


def test_what_is_no_fault_of_the_file_is_not_hidden(tmp_path):
    (tmp_path / "x.json").write_bytes(b"1")
    with pytest.raises(ZeroDivisionError):
        read_cache(tmp_path / "x.json", lambda content: 1 // 0)


def test_an_interrupted_write_leaves_the_old_entry(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_cache(path, b"old")
    with pytest.raises(TypeError):
        write_cache(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_cache_dir_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLCHAIN_CACHE", str(tmp_path / "mine"))
    assert cache_dir("a", "b") == tmp_path / "mine" / "a" / "b"
    assert (tmp_path / "mine" / "a" / "b").is_dir()
    monkeypatch.delenv("TOOLCHAIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "edge-toolchain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "edge-toolchain"


def test_a_cache_that_cannot_be_made_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TOOLCHAIN_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set TOOLCHAIN_CACHE"):
        cache_dir("observations")
