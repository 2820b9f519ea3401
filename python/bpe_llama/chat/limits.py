"""Limit the steps, text, memory and time of a chat template while it renders.

A template is an untrusted program. Each operation of unbounded time or size calls a :class:`Meter` first, so a hostile
template ends with one error that names the limit.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import ItemsView, KeysView, ValuesView
from dataclasses import dataclass
from typing import Any, TypeVar

from jinja2.utils import Namespace

from bpe_llama.chat.provenance import Traced

Value = TypeVar("Value")

_SCALARS = frozenset({int, float, bool, complex, type(None)})
_SEQUENCES = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
_MOST_BITS = 1 << 13  # of an integer
_DEEPEST = 500  # containers within containers; hashing deeper tuples would overflow the C stack
_NUMBER = re.compile(r"\d{1,12}")


class LimitError(Exception):
    """A template exceeds a limit. It is no ValueError, because filters catch ValueErrors."""


@dataclass(frozen=True)
class Limits:
    """The limits of one rendering.

    Args:
        steps: Iterations of loops, calls and filters; work on long text counts as several.
        text: Characters of one text, and items of one list.
        memory: Bytes, about, of all values that the template holds at once.
        seconds: The time, in case the other limits do not apply.
    """

    steps: int = 2_000_000
    text: int = 4_000_000
    memory: int = 60_000_000
    seconds: float = 60.0

    def scaled(self, messages: int, size: int) -> Limits:
        """Return the limits for this many messages of this size, as `Meter.measure` counts it.

        Steps grow with the square of the messages: some published templates search the conversation at each message.
        """
        return Limits(
            self.steps + 100 * size + messages * messages,
            self.text + 8 * size,
            self.memory + 40 * size,
            self.seconds + messages * messages / 1e6,
        )


class Meter:
    """Counts the cost of one rendering, and raises `LimitError` above a limit."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.depth = self.items = 0  # of the container that was measured last
        self._steps = 0
        self._next_check = 1000
        self._deadline = time.monotonic() + limits.seconds
        self._kept: dict[int, tuple[Any, int]] = {}
        self._kept_size = 0

    def charge(self, steps: int = 1) -> None:
        """Count steps."""
        self._steps += steps
        if self._steps >= self._next_check:
            if self._steps > self.limits.steps:
                raise LimitError(f"it needs more than {self.limits.steps:,} steps")
            if time.monotonic() > self._deadline:
                raise LimitError(f"it takes more than {self.limits.seconds:g} seconds")
            self._next_check = min(self._steps + 1000, self.limits.steps + 1)

    def check_length(self, length: int) -> None:
        """Raise for a text or list of more characters or items than the limit; called before it is built."""
        if length > self.limits.text:
            raise LimitError(f"it makes text or a list longer than {self.limits.text:,} characters or items")

    def check_bits(self, bits: int) -> None:
        """Raise for an integer of more bits than the limit."""
        if bits > _MOST_BITS:
            raise LimitError(f"it makes an integer of more than {_MOST_BITS:,} bits")

    def check_widths(self, form: str) -> int:
        """Return the largest number in a format; raise if it would pad beyond the limit."""
        widest = max(map(int, _NUMBER.findall(form)), default=0)
        self.check_length(widest)
        return widest

    def measure(self, value: Any) -> int:
        """Return the number of characters and items in a value; a shared part counts each time it occurs.

        This is the cost to print, compare, hash or write it as JSON. With shared lists it can grow exponentially.
        """
        if isinstance(value, str):
            return len(value)
        if type(value) in _SCALARS:
            return 1
        size = self.depth = self.items = 0
        level = [value]
        while level:
            if self.depth > _DEEPEST:
                raise LimitError(f"it nests lists or mappings more than {_DEEPEST} deep")
            below: list[Any] = []
            for item in level:
                if type(item) in _SCALARS:
                    continue
                if isinstance(item, (str, bytes)):
                    size += len(item)
                    continue
                if isinstance(item, Namespace):
                    item = getattr(item, "_Namespace__attrs", {})
                if isinstance(item, dict):
                    self.check_length(size + len(below) + 2 * len(item))
                    below += item
                    below += item.values()
                elif isinstance(item, _SEQUENCES):
                    self.check_length(size + len(below) + len(item))
                    below += item
            size += len(level)
            self.items += len(level)
            self.check_length(size)
            self.depth += 1
            level = below
        self.charge(self.items >> 3)
        return size

    # The sizes below include the memory of this meter's own entry for a value.
    def keep(self, value: Value, item_size: int = 8) -> Value:
        """Return a new value of the template, and count its memory while something refers to it."""
        kind = type(value)
        if kind in _SCALARS:
            if isinstance(value, int):
                self.check_bits(value.bit_length())
            return value
        if isinstance(value, (str, bytes)):
            length = len(value)
            if length < 2:
                return value
            size = 200 + sys.getsizeof(value) + (40 + length if isinstance(value, Traced) else 0)
            self.charge(length >> 10)
        elif isinstance(value, (dict, list, tuple, set, frozenset)):
            length = len(value)
            size = 264 + (100 if isinstance(value, dict) else item_size) * length
            self.charge(length >> 6)
        else:
            length, size = 0, 400
        self.check_length(length)
        if id(value) not in self._kept:
            self._kept[id(value)] = value, size
            self._kept_size += size
            if self._kept_size > 2 * self.limits.memory:
                self._forget_unused()
        return value

    def _forget_unused(self) -> None:
        """Drop values that only this meter refers to; raise if the rest exceeds the limit."""
        fresh = (object(), 0)
        unused = sys.getrefcount(fresh[0])
        self.charge(len(self._kept) >> 4)
        # Newest first: a container is newer than its items, so it is dropped before they are checked.
        for key in reversed(list(self._kept)):
            entry = self._kept[key]
            if sys.getrefcount(entry[0]) <= unused:
                self._kept_size -= entry[1]
                del self._kept[key]
        if self._kept_size > self.limits.memory:
            raise LimitError(f"it holds more than {self.limits.memory:,} bytes at once")
