"""Matches the regexes of an adapter's config, which may come from a stranger, with the paths of modules."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import regex

SECONDS = 1.0
"""Time of the processor that the slow matches of one config may take together. `re` has no limit."""

SLOW_S = 0.001
"""A match that takes longer is slow: others take microseconds."""

MAX_REPEATS = 10_000
"""Product of the counts in a pattern's braces: `regex` takes memory for each repeat."""

MAX_PATTERNS = 10_000
"""The most patterns of one field: compiling this many takes seconds."""

_BRACES = re.compile(r"\{([^}]*)\}?")
_COUNTS = re.compile(r"\d+(,\d*)?|,\d+")


def checked_pattern(pattern: str) -> str:
    """Return a pattern that `re` and `regex` read alike; no path has the braces and colons that they read otherwise.

    Raises:
        ValueError: If it is no regex of `re`, repeats a part too often, or holds ``[:`` or braces that are no count.
    """
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from error
    counts = _BRACES.findall(pattern)
    if "[:" in pattern or not all(map(_COUNTS.fullmatch, counts)):
        raise ValueError("braces that are no count, or [:")
    numbers = [int(number) for count in counts for number in count.split(",") if number.strip("0")]
    if math.prod(numbers) > MAX_REPEATS:
        raise ValueError(f"the counts multiply to over {MAX_REPEATS:,}")
    return pattern


def check_number(patterns: Collection[str]) -> None:
    """Raise a ValueError for more than `MAX_PATTERNS` patterns."""
    if len(patterns) > MAX_PATTERNS:
        raise ValueError(f"{len(patterns):,} patterns, where at most {MAX_PATTERNS:,} are read")


@lru_cache(maxsize=2 * MAX_PATTERNS)
def _compiled(pattern: str) -> Any:
    return regex.compile(checked_pattern(pattern))


@dataclass
class Matcher:
    """Matches the patterns of one config."""

    seconds_left: float = SECONDS

    def match(self, field: str, pattern: str, path: str, *, whole: bool = False) -> Any:
        """Return the match of a pattern with the beginning of a path, or with all of it; None if there is none.

        Args:
            field: The field of the config that holds the pattern.
            pattern: The pattern.
            path: Path of a module.
            whole: As `re.fullmatch`, not `re.match`.

        Raises:
            ValueError: If the pattern is not valid, or the config's slow matches take over `SECONDS`. It names field
                and pattern.
        """
        try:
            compiled = _compiled(pattern)
            start = time.thread_time()
            found = (compiled.fullmatch if whole else compiled.match)(path, timeout=max(self.seconds_left, SLOW_S))
        except (ValueError, regex.error) as error:
            raise ValueError(f"{field} has the pattern {pattern!r:.100}: {error}") from error
        except TimeoutError:
            place = f"{field} has the pattern {pattern!r:.100}, which takes over {SECONDS:g} s to match {path}"
            reason = "and what the config matched slowly before"
            raise ValueError(f"{place} {reason}; expected no nested repeats") from None
        took = time.thread_time() - start
        self.seconds_left -= took if took > SLOW_S else 0.0
        return found
