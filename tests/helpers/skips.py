"""Skipped tests, counted by reason at the end of a run; in CI a reason that is not on the list fails the run.

The list is ``tests/skips.toml`` below pytest's root folder: entries ``[[allowed]]`` with ``reason``, a regular
expression that must match the whole reason, and ``why`` no continuous integration can avoid the skip. CI is told by the
environment variable ``CI=true``, which the usual services set.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

LIST = "tests/skips.toml"


def counts(reports: Iterable[pytest.TestReport | pytest.CollectReport]) -> Counter[str]:
    """The number of skipped reports for each reason."""
    return Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports)


def allowed(path: Path) -> dict[str, str]:
    """Pattern → why, from the list; nothing is allowed where there is no list."""
    if not path.is_file():
        return {}
    return {entry["reason"]: entry["why"] for entry in tomllib.loads(path.read_text(encoding="utf-8"))["allowed"]}


def why(reason: str, patterns: Mapping[str, str]) -> str | None:
    """The list's justification of a reason; None if the reason is not on the list."""
    return next((text for pattern, text in patterns.items() if re.fullmatch(pattern, reason, re.DOTALL)), None)


def _skipped(config: pytest.Config) -> Counter[str]:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    return counts(terminal.stats.get("skipped", ())) if terminal else Counter()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in CI that skipped a test for a reason that is not on the list.

    Only the process that the user started has a terminal; the workers of pytest-xdist have none.
    """
    patterns = allowed(session.config.rootpath / LIST)
    unlisted = any(why(reason, patterns) is None for reason in _skipped(session.config))
    if os.environ.get("CI") == "true" and unlisted and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the number of skips for each reason, the most frequent first."""
    reasons = _skipped(config)
    if not reasons:
        return
    patterns = allowed(config.rootpath / LIST)
    terminalreporter.section(f"{reasons.total()} skipped, by reason")
    for reason, count in reasons.most_common():
        line = " ".join(reason.split())
        justified = why(reason, patterns)
        note = f"allowed: {justified}" if justified else f"not listed in {LIST}, which fails a run in CI"
        terminalreporter.line(f"{count:4} {line} ({note})")
