"""A function in a process of its own: its cost, and the message when it fails. Oracle: functions made for it."""

from __future__ import annotations

import sys
import time

import pytest

from benchmarks import fresh

TRICKS = """
import os, signal, time

def well(size):
    print("chatter on stdout")
    return {"bytes": len(bytearray(size) * 1)}

def badly(text):
    raise ValueError(text)

def dead():
    os.kill(os.getpid(), signal.SIGKILL)

def slow():
    time.sleep(60)

def folder():
    return [os.environ["TMPDIR"] == os.getcwd(), os.environ["OLIVE_DISABLE_TELEMETRY"], os.environ["NNCF_CI"]]
"""


@pytest.fixture(autouse=True)
def tricks(tmp_path, monkeypatch):
    """A module that only the other process can import: the environment's own path is what it is given."""
    (tmp_path / "tricks.py").write_text(TRICKS)
    site = tmp_path / "python"
    site.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{tmp_path}" exec {sys.executable} "$@"\n')
    site.chmod(0o755)
    return str(site)


def test_the_result_and_its_cost(tricks):
    begin = time.monotonic()
    small, large = (fresh.call("tricks:well", size, python=tricks) for size in (1000, 60_000_000))
    elapsed = time.monotonic() - begin
    assert large.returned == {"bytes": 60_000_000}
    assert large.peak_bytes - large.baseline_bytes > 45_000_000 > small.peak_bytes - small.baseline_bytes
    assert 0 <= small.seconds + large.seconds < elapsed  # starting the processes is not part of the calls


@pytest.mark.parametrize(
    ("text", "said"),
    [("no such scale", "ValueError: no such scale"), ("\n first\nsecond", "ValueError: first"), ("", "ValueError")],
)
def test_an_error_is_one_clause(tricks, text, said):
    with pytest.raises(fresh.FreshError) as caught:
        fresh.call("tricks:badly", text, python=tricks)
    assert caught.value.what == said


def test_a_killed_process_is_said_to_be(tricks):
    with pytest.raises(fresh.FreshError, match="killed by signal 9"):
        fresh.call("tricks:dead", python=tricks)


def test_the_limit_holds(tricks):
    with pytest.raises(fresh.FreshError, match="given up after"):
        fresh.call("tricks:slow", python=tricks, limit_s=1.0)


def test_a_module_that_is_not_there(tricks):
    with pytest.raises(fresh.FreshError, match=r"ModuleNotFoundError.*nowhere"):
        fresh.call("nowhere:well", python=tricks)


def test_rubbish_stays_in_the_folder_and_nothing_is_reported_home(tricks):
    assert fresh.call("tricks:folder", python=tricks).returned == [True, "1", "1"]
