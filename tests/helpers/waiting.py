"""Waiting for something that happens in another process; a test fails only where it does not happen at all."""

from __future__ import annotations

import time
from collections.abc import Callable

GIVE_UP_S = 60.0
PAUSE_S = 0.02


def eventually(condition: Callable[[], object]) -> bool:
    """True as soon as the condition holds; False where it still does not after a minute."""
    end = time.monotonic() + GIVE_UP_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(PAUSE_S)
    return True
