"""The summary of skips: reasons are counted, and in CI one that is not listed fails the run. Oracle: runs of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import skips

TESTS = """
import pytest

@pytest.mark.skipif(True, reason="no such processor: Z80")
@pytest.mark.parametrize("number", range(3))
def test_processor(number): ...

def test_inside():
    pytest.skip("not\\ninstalled")

def test_passes(): ...
"""
LISTED = '[[allowed]]\nreason = "no such processor: .*"\nwhy = "it is a museum piece"\n'
BOTH = LISTED + '[[allowed]]\nreason = "not.installed"\nwhy = "for this test"\n'
HELPERS = Path(skips.__file__).parent

pytestmark = pytest.mark.slow  # each starts an interpreter


@pytest.fixture
def run(tmp_path):
    """Run pytest on `TESTS` in a folder of its own."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "tests").mkdir()

    def pytest_run(listed: str | None, *arguments: str, ci: str | None = "true") -> subprocess.CompletedProcess[str]:
        if listed is not None:
            (tmp_path / "tests" / "skips.toml").write_text(listed)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI"))}
        environment |= {"PYTHONPATH": str(HELPERS), **({"CI": ci} if ci else {})}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "skips", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return pytest_run


@pytest.mark.parametrize("workers", ["0", "2"])
def test_reasons_are_counted_and_an_unlisted_one_fails_in_ci(run, workers):
    done = run(LISTED, "-n", workers)
    assert "4 skipped, by reason" in done.stdout
    assert "   3 no such processor: Z80 (allowed: it is a museum piece)" in done.stdout.splitlines()
    assert "   1 not installed (not listed in tests/skips.toml, which fails a run in CI)" in done.stdout.splitlines()
    assert done.returncode == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(("listed", "ci"), [(BOTH, "true"), (LISTED, None), (LISTED, "false")])
def test_listed_reasons_and_other_machines_pass(run, listed, ci):
    assert run(listed, ci=ci).returncode == pytest.ExitCode.OK


def test_without_a_list_nothing_is_allowed(run):
    assert run(None).returncode == pytest.ExitCode.TESTS_FAILED


def test_without_skips_there_is_no_summary(run):
    done = run(None, "-k", "passes")
    assert "by reason" not in done.stdout
    assert done.returncode == pytest.ExitCode.OK


def test_a_failure_keeps_its_exit_code(run):
    assert run(BOTH, "no_such_file.py").returncode == pytest.ExitCode.USAGE_ERROR


def test_every_allowed_reason_is_justified():
    patterns = skips.allowed(HELPERS.parent / "skips.toml")
    assert patterns
    assert all(len(text.split()) >= 4 for text in patterns.values())
    assert skips.why("torch is not installed", patterns) is None
