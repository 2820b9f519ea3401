"""What calls cost, for tests of cost: they compare two calls, since a limit in seconds would depend on the machine."""

from __future__ import annotations

import time
from collections.abc import Callable

LINEAR = 64.0
"""What `growth` stays below where cost is linear (16) and exceeds where it is quadratic (256)."""


def costs(*calls: Callable[[], object]) -> list[float]:
    """Return the processor time of each call in this thread, which other threads and programs lengthen little.

    It is the least of three. The calls take turns, so that a slow moment of the machine slows all of them.
    """
    least = [float("inf")] * len(calls)
    for _ in range(3):
        for place, call in enumerate(calls):
            began = time.thread_time()
            call()
            least[place] = min(least[place], time.thread_time() - began)
    return least


def growth(work: Callable[[int], object], size: int) -> float:
    """Return the cost of ``work(16 * size)`` as a multiple of that of ``work(size)``."""
    small, large = costs(lambda: work(size), lambda: work(16 * size))
    return large / small
