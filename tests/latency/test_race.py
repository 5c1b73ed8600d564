"""Races of two sessions in this process."""

from __future__ import annotations

import numpy as np
import pytest
from timed_models import matmul

from toolchain.graph.run import session
from toolchain.latency import race as race_module
from toolchain.latency.race import RACE_ROUNDS, Race, race


class CountedSession:
    """A session that keeps the order in which it and the other one ran."""

    def __init__(self, name: str, runs: list[str]) -> None:
        self.name, self.runs = name, runs

    def run(self, names, feed):
        self.runs.append(self.name)


def test_sessions_take_turns_and_each_runs_in_every_round():
    runs: list[str] = []
    result = race(CountedSession("a", runs), CountedSession("b", runs), {}, seconds=0)
    warmup_and_estimate = ["a", "b", "a", "b"]
    assert runs == warmup_and_estimate + ["a", "b"] * RACE_ROUNDS
    assert len(result.first_s) == len(result.second_s) == RACE_ROUNDS


def test_a_race_ends_early_where_the_second_cannot_be_slower_any_more(monkeypatch):
    """It may win one round of seven; once it has won two, the rest would change nothing."""
    times = iter([1, 1, 2, 1, 1, 2, 2, 1, 9, 9])
    monkeypatch.setattr(race_module, "_time", lambda engine, feed: next(times))
    result = race(CountedSession("a", []), CountedSession("b", []), {}, seconds=0, decide=True)
    assert (result.first_s, result.second_s) == ((2, 1, 2), (1, 2, 1))
    assert not result.second_is_slower()
    times = iter([1, 1] + [1, 2] * RACE_ROUNDS)
    assert race(CountedSession("a", []), CountedSession("b", []), {}, seconds=0, decide=True).second_is_slower()


def test_256_times_the_work_is_slower(tmp_path):
    small, big = (session(matmul(tmp_path / f"{n}.onnx", n), threads=1) for n in (64, 1024))
    feeds = {n: {"x": np.ones((16, n), np.float32)} for n in (64, 1024)}

    class Fed:
        """Both sessions take a feed of their own."""

        def __init__(self, engine, feed) -> None:
            self.engine, self.feed = engine, feed

        def run(self, names, feed):
            return self.engine.run(names, self.feed)

    result = race(Fed(small, feeds[64]), Fed(big, feeds[1024]), {})
    assert result.second_is_slower()
    first_s, second_s = result.medians_s
    assert second_s > 3 * first_s


@pytest.mark.parametrize(
    ("ratios", "slower"),
    [
        ((1.1,) * 7, True),
        ((1.1,) * 6 + (0.9,), True),  # one round may be lost
        ((1.1,) * 5 + (0.9,) * 2, False),
        ((1.01,) * 7, False),  # always slower, but by less than 2 %
        ((0.9,) * 7, False),
    ],
)
def test_slower_by_more_than_2_percent_in_all_rounds_but_one(ratios, slower):
    assert Race((1.0,) * 7, ratios).second_is_slower() == slower
