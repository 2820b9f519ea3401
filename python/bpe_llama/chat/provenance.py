"""Text that knows where each of its characters comes from: the template, or the caller's messages.

Only text that the template itself holds may become a special token. Operators and methods of `Traced` carry the origin
along; a character that another operation made is `UNKNOWN`.

The idea is that of taint tracking, as in Perl's taint mode (https://perldoc.perl.org/perlsec#Taint-mode).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, SupportsIndex, TypeVar, cast

TEMPLATE, GIVEN, UNKNOWN = b"\0", b"\1", b"\2"
"""Origins of a character: the template's own text, a value of the caller, or an operation that mixes both."""

Value = TypeVar("Value")
_FOREIGN = re.compile(b"[^\0]+")
_PERCENT = re.compile(r"%(?:\((?P<name>[^()]*)\))?(?P<kind>[s%])")
_FIELD = re.compile(r"\{\{|\}\}|\{(?P<name>\w*)\}")
_PLACEHOLDER = re.compile(r'"\\u0000(\d+)"')


class Traced(str):
    """Text with the origin of each character.

    Args:
        text: The text.
        origins: One byte a character: `TEMPLATE`, `GIVEN` or `UNKNOWN`.
    """

    __slots__ = ("_origins",)  # templates cannot read names with an underscore
    _origins: bytes

    def __new__(cls, text: str, origins: bytes) -> Traced:
        """Return the text with its origins.

        Raises:
            ValueError: If there are more or fewer origins than characters.
        """
        made = super().__new__(cls, text)
        if len(made) != len(origins):
            raise ValueError(f"{len(origins)} origins for {len(made)} characters; expected one each")
        made._origins = origins
        return made

    def __str__(self) -> Traced:
        return self

    def __iter__(self) -> Iterator[Traced]:
        return (self._part(place, place + 1) for place in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> Traced:
        if isinstance(key, slice):
            return Traced(super().__getitem__(key), self._origins[key])
        character = super().__getitem__(key)
        place = key.__index__()
        return Traced(character, self._origins[place : place + 1 or None])

    def __add__(self, other: str) -> str:
        if not isinstance(other, str) or hasattr(other, "__html__"):  # markupsafe.Markup escapes what it is added to
            return NotImplemented
        return Traced(super().__add__(other), self._origins + origins_of(other))

    def __radd__(self, other: str) -> str:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return Traced(str.__add__(other, self), origins_of(other) + self._origins)

    def __mul__(self, times: SupportsIndex) -> Traced:
        return Traced(super().__mul__(times), self._origins * times.__index__())

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        whole = super().__mod__(values)  # raises if values are missing or left over
        listed = iter(values if isinstance(values, tuple) else (values,))

        def written(found: re.Match[str]) -> Any:
            if found["kind"] == "%":
                return self._part(found.start(), found.start() + 1)
            return values[found["name"]] if found["name"] is not None else next(listed)

        return self._filled(_PERCENT, written, whole, values)

    def _part(self, begin: int, end: int) -> Traced:
        return Traced(super().__getitem__(slice(begin, end)), self._origins[begin:end])

    def _filled(self, fields: re.Pattern[str], written: Callable[[re.Match[str]], Any], whole: str, values: Any) -> str:
        """Return the text ``whole``, which is this one with each field replaced by the text of a value."""
        parts: list[str] = []
        end = 0
        for found in fields.finditer(self):
            try:
                value = written(found)
            except (LookupError, StopIteration, TypeError):  # a field that pads, escapes or reads an attribute
                return attributed(whole, [self, values])
            parts += [
                self._part(end, found.start()),
                value if isinstance(value, str) else attributed(str(value), value),
            ]
            end = found.end()
        filled = concatenated([*parts, self._part(end, len(self))])
        return filled if filled == whole else attributed(whole, [self, values])

    def formatted(self, whole: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> str:
        """Return ``whole``, the result of ``self.format(*args, **options)``, with its origins."""
        counted = iter(args)

        def written(found: re.Match[str]) -> Any:
            name = found["name"]
            if name is None:
                return self._part(found.start(), found.start() + 1)
            return next(counted) if not name else args[int(name)] if name.isdecimal() else options[name]

        return self._filled(_FIELD, written, whole, [args, options])

    def join(self, parts: Iterable[str]) -> Traced:
        """Return the parts with this text between them."""
        separated: list[str] = []
        for part in parts:
            separated += [self, part]
        return concatenated(separated[1:])

    # Methods that cut the text.

    def strip(self, chars: str | None = None) -> Traced:
        """As `str.strip`."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> Traced:
        """As `str.lstrip`."""
        return self._part(len(self) - len(super().lstrip(chars)), len(self))

    def rstrip(self, chars: str | None = None) -> Traced:
        """As `str.rstrip`."""
        return self._part(0, len(super().rstrip(chars)))

    def removeprefix(self, prefix: str, /) -> Traced:
        """As `str.removeprefix`."""
        return self._part(len(self) - len(super().removeprefix(prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> Traced:
        """As `str.removesuffix`."""
        return self._part(0, len(super().removesuffix(suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As `str.split`."""
        return self._located(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As `str.rsplit`."""
        return self._located(super().rsplit(sep, maxsplit), sep)

    def _located(self, pieces: list[str], sep: str | None) -> list[str]:
        """Return pieces of this text, in order, with their origins."""
        located: list[str] = []
        place = 0
        for piece in pieces:
            if sep is None:
                place = self.find(piece, place)  # white space precedes it, and it begins with another character
            located.append(self._part(place, place + len(piece)))
            place += len(piece) + len(sep or "")
        return located

    def splitlines(self, keepends: bool = False) -> list[str]:
        """As `str.splitlines`."""
        lines: list[str] = []
        place = 0
        for line, whole in zip(super().splitlines(keepends), super().splitlines(True), strict=True):
            lines.append(self._part(place, place + len(line)))
            place += len(whole)
        return lines

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        """As `str.partition`."""
        return self._parted(super().partition(sep))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        """As `str.rpartition`."""
        return self._parted(super().rpartition(sep))

    def _parted(self, parts: tuple[str, str, str]) -> tuple[str, str, str]:
        middle, last = len(parts[0]), len(self) - len(parts[2])
        return self._part(0, middle), self._part(middle, last), self._part(last, len(self))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """As `str.replace`."""
        if not old:
            return attributed(super().replace(old, new, count), [self, new])
        return Traced(new, origins_of(new)).join(self.split(old, count))

    # Methods that change each character by itself.

    def lower(self) -> str:
        """As `str.lower`."""
        return self._mapped(super().lower())

    def upper(self) -> str:
        """As `str.upper`."""
        return self._mapped(super().upper())

    def capitalize(self) -> str:
        """As `str.capitalize`."""
        return self._mapped(super().capitalize())

    def title(self) -> str:
        """As `str.title`."""
        return self._mapped(super().title())

    def _mapped(self, text: str) -> str:
        # No character is mapped to nothing, so texts of one length have their characters at the same places.
        return Traced(text, self._origins) if len(text) == len(self) else attributed(text, self)


def origins_of(text: str) -> bytes:
    """Return the origin of each character of a text; `UNKNOWN` for a text that is not traced."""
    return text._origins if isinstance(text, Traced) else UNKNOWN * len(text)


def concatenated(parts: list[str]) -> Traced:
    """Return texts one after another."""
    return Traced("".join([str.__str__(part) for part in parts]), b"".join(map(origins_of, parts)))


@lru_cache(maxsize=512)
def own(text: str) -> Traced:
    """Return a text of the template."""
    return Traced(text, TEMPLATE * len(text))


def traced(value: Any, origin: bytes) -> Any:
    """Return a plain value with every text in it traced to one origin.

    Examples:
        >>> origins_of(traced({"content": "Hi"}, GIVEN)["content"]) == GIVEN * 2
        True
    """
    if isinstance(value, str):
        text = str.__str__(value)  # not what an enum or another subclass writes of itself
        return Traced(text, origin * len(text))
    if isinstance(value, dict):
        return {traced(key, origin): traced(item, origin) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(traced(item, origin) for item in value)
    return value


def untraced(text: str) -> str:
    """Return a text as a plain ``str``."""
    return str.__str__(text)


def attributed(result: Value, inputs: Any) -> Value:
    """Return what an operation made of values; characters of unknown origin get that of the values, if it is the same.

    Args:
        result: Text; any other value is returned as it is.
        inputs: The values. All but text, mappings, lists, tuples, None and bool count as unknown.
    """
    if type(result) is not str and not (isinstance(result, Traced) and UNKNOWN in result._origins):
        return result
    text = cast(str, result)
    return cast(Value, Traced(text, origins_of(text).replace(UNKNOWN, _origin(inputs) or UNKNOWN)))


def _origin(value: Any) -> bytes | None:
    """Return the origin of all text in a value, None if there is no text, or `UNKNOWN` if it may hold other text."""
    found: bytes | None = None
    level = [value]
    while level:
        item = level.pop()
        if isinstance(item, str):
            origins = origins_of(item)
            if not origins:
                continue
            if origins.count(origins[:1]) < len(origins) or found not in (None, origins[:1]):
                return UNKNOWN
            found = origins[:1]
        elif isinstance(item, Mapping):
            level += [*item, *item.values()]
        elif isinstance(item, (list, tuple)):
            level += item
        elif item is not None and not isinstance(item, bool):  # a number, or what may hold text: bytes, a namespace ...
            return UNKNOWN
    return found


def write_json(value: Any, sort_keys: bool, **options: Any) -> Traced:
    """Return a value as JSON. Its own characters count as given, and a text in it keeps its origin.

    Args:
        value: A value with a JSON form.
        sort_keys: As in `json.dumps`.
        **options: Other options of `json.dumps`.

    Raises:
        TypeError: If the value has no JSON form.
    """
    texts: list[str] = []

    def numbered(item: Any) -> Any:
        if isinstance(item, str):
            texts.append(item)
            return f"\0{len(texts) - 1}"
        if isinstance(item, dict):
            pairs = sorted(item.items()) if sort_keys else item.items()
            return {numbered(key): numbered(value) for key, value in pairs}
        if isinstance(item, (list, tuple)):
            return [numbered(each) for each in item]
        return item

    written = json.dumps(numbered(value), **options)
    parts: list[str] = []
    end = 0
    for found in _PLACEHOLDER.finditer(written):
        text = texts[int(found[1])]
        dumped = json.dumps(text, ensure_ascii=options.get("ensure_ascii", True))
        parts += [traced(written[end : found.start()], GIVEN), attributed(dumped, text)]
        end = found.end()
    return concatenated([*parts, traced(written[end:], GIVEN)])


def own_text(text: str, filler: str, *, unknown: bool = False) -> str:
    """Return a text with each character that is not the template's replaced by a filler.

    Args:
        text: The text.
        filler: One character.
        unknown: Whether to keep characters of unknown origin.
    """
    origins = origins_of(text)
    if unknown:
        origins = origins.replace(UNKNOWN, TEMPLATE)
    parts: list[str] = []
    end = 0
    plain = untraced(text)
    for run in _FOREIGN.finditer(origins):
        parts += [plain[end : run.start()], filler * (run.end() - run.start())]
        end = run.end()
    return "".join([*parts, plain[end:]])
