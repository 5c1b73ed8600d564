"""The clock of stages, with a clock that the test moves."""

import pytest

from toolchain.core.progress import Stage, StageClock


class Hand:
    """A clock that stands still until it is moved."""

    now = 100.0

    def __call__(self):
        return self.now


def test_a_stage_takes_the_time_until_the_next_report():
    told, hand = [], Hand()
    clock = StageClock(lambda *news: told.append(news), hand)
    hand.now += 5  # before the first stage
    clock("reading", 0, 2)
    hand.now += 1
    clock("reading", 1, 2)
    hand.now += 2
    clock("writing")
    hand.now += 4
    clock("reading", 2, 2)
    hand.now += 8
    assert clock.seconds() == {"reading": 11.0, "writing": 4.0}
    assert told == [("reading", 0, 2), ("reading", 1, 2), ("writing", 0, 0), ("reading", 2, 2)]


def test_the_present_stage_goes_on_after_it_was_asked():
    hand = Hand()
    clock = StageClock(clock=hand)
    assert clock.seconds() == {}
    clock("reading")
    hand.now += 1
    assert clock.seconds() == {"reading": 1.0}
    hand.now += 1
    assert clock.seconds() == {"reading": 2.0}


@pytest.mark.parametrize("total", [0, 3])
def test_a_stage_reports_its_beginning_and_every_step(total):
    told = []
    stage = Stage("counting", total, lambda *news: told.append(news))
    for _ in range(total):
        stage.step()
    assert told == [("counting", done, total) for done in range(total + 1)]
