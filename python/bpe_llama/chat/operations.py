"""Check a chat template's operators, methods, filters and tests before they run.

Each check estimates the size of the result or the time of an operation, and counts it on the `Meter`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

from jinja2.runtime import Undefined

from bpe_llama.chat import provenance
from bpe_llama.chat.limits import LimitError, Meter

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}
_COMPARING_TESTS = frozenset({"in", "==", "!=", "<", "<=", ">", ">="}) | frozenset(
    {"eq", "equalto", "ne", "gt", "greaterthan", "ge", "lt", "lessthan", "le"}
)
_PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill"})
# Methods with a cost up to the product of the two lengths.
_SEARCHES = frozenset({"count", "endswith", "find", "index", "lstrip", "partition", "rfind", "rindex"}) | frozenset(
    {"rpartition", "rsplit", "rstrip", "split", "startswith", "strip"}
)
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_BYTE_LINE_ENDS = (b"\n", b"\r")
_PIECE = 8  # a text in a list has the memory of about this many characters or items
_ENCODINGS = frozenset({"utf8", "ascii", "latin1", "iso88591", "utf16", "utf16le", "utf16be", "utf32"})
# Filters that do not read into the items of their input.
_CONSTANT_TIME = frozenset({"attr", "count", "d", "default", "first", "items", "last", "length", "random"})
_SHALLOW = _CONSTANT_TIME | frozenset(
    {"abs", "batch", "filesizeformat", "float", "int", "list", "map", "reject", "rejectattr", "reverse", "round"}
    | {"select", "selectattr", "slice"}
)
_DIVIDING = frozenset({"title", "urlize", "wordcount"})  # a text into a list of words
_SLOW = frozenset({"striptags", "title", "truncate", "urlize", "wordcount", "wordwrap"})
# Filters that compare or add all items. A generator is converted to a list first, which can be measured.
_WHOLE = frozenset({"groupby", "join", "max", "min", "sort", "sum", "unique"})


def compare(meter: Meter, name: str, left: Any, right: Any) -> Any:
    """Return the result of a comparison, in bounded time; the operator has jinja2's name.

    Raises:
        LimitError: If the values are too large to compare.
    """
    _check_comparison(meter, left, right)
    return _COMPARISONS[name](left, right)


def _check_comparison(meter: Meter, left: Any, right: Any) -> None:
    if isinstance(right, str):
        meter.charge(len(right) >> 10)
    elif hasattr(right, "__len__"):
        length = len(right)
        if isinstance(left, str):
            meter.charge(length * (64 + len(left)) >> 12)
        elif hasattr(left, "__len__"):
            meter.charge(meter.measure(left) + meter.measure(right) >> 10)
        else:
            meter.charge(length >> 4)


def check_operator(meter: Meter, symbol: str, left: Any, right: Any) -> None:
    """Check the size of a binary operator's result.

    Raises:
        LimitError: If it is too large.
    """
    if symbol == "*":
        if isinstance(left, int) and isinstance(right, int):
            meter.check_bits(left.bit_length() + right.bit_length())
        for value, times in ((left, right), (right, left)):
            if isinstance(value, (str, bytes, list, tuple)) and isinstance(times, int):
                meter.check_length(len(value) * times)
    elif symbol == "**":
        if isinstance(left, int) and isinstance(right, int) and abs(left) > 1:
            meter.check_bits(left.bit_length() * right)
    elif symbol == "%" and isinstance(left, (str, bytes)):
        _check_percent(meter, left, right)


def _check_percent(meter: Meter, form: str | bytes, values: Any) -> None:
    size = meter.measure(values)
    text = form.decode("latin-1") if isinstance(form, bytes) else form
    width = meter.check_widths(text)
    if "*" in text:
        listed = values if isinstance(values, tuple) else (values,)
        width = max([width, *(abs(value) for value in listed if isinstance(value, int))])
    meter.check_length(len(text) + text.count("%") * (size + width))


def check_method(
    meter: Meter, owner: Any, name: str, args: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Return the arguments for a method of a built-in type after a check of its cost.

    Raises:
        LimitError: If the cost is unbounded.
    """
    if name == "join" and args and not isinstance(args[0], (str, bytes, list, tuple, dict)):
        args = (list(args[0]), *args[1:])  # only a list can be measured
    size = sum(map(meter.measure, (*args, *options.values())))
    first = args[0] if args else None
    if isinstance(owner, (str, bytes)):
        _check_text_method(meter, owner, name, args, options, size)
    elif isinstance(owner, int):
        if name == "to_bytes" and isinstance(options.get("length", first), int):
            meter.check_length(options.get("length", first))
    else:
        meter.charge(len(owner) >> 6)
        if name in ("index", "count"):
            meter.charge(len(owner) * (64 + size) >> 14)
    return args


def _check_text_method(
    meter: Meter, text: str | bytes, name: str, args: tuple[Any, ...], options: Mapping[str, Any], size: int
) -> None:
    length = len(text)
    first = args[0] if args else None
    meter.charge(length >> 8)
    if name in ("split", "rsplit", "splitlines"):
        meter.check_length(_PIECE * _count_pieces(text, name, options.get("sep", first)))
    if name in _SEARCHES:
        meter.charge(length * size >> 12)
    elif name in _PADDING_METHODS:
        if isinstance(first, int):
            meter.check_length(first)
    elif name == "expandtabs":
        width = options.get("tabsize", first if args else 8)
        if isinstance(width, int):
            meter.check_length(length + cast(Any, text).count(b"\t" if isinstance(text, bytes) else "\t") * width)
    elif name == "replace" and len(args) > 1:
        _check_replace(meter, text, first, args[1])
    elif name == "join":
        parts = list(first) if isinstance(first, (str, list, tuple, dict)) else []
        meter.check_length(sum(len(part) for part in parts if isinstance(part, (str, bytes))) + length * len(parts))
    elif name == "translate":
        longest = max(map(_length, first.values()), default=1) if isinstance(first, dict) else 1
        meter.check_length(length * max(longest, 1))
    elif name in ("encode", "decode"):
        encoding = options.get("encoding", first)
        if isinstance(encoding, str) and encoding.lower().replace("-", "").replace("_", "") not in _ENCODINGS:
            raise LimitError(f"the encoding {encoding!r} may take long")
    elif name == "striptags":
        _check_striptags(meter, str(text))


def _count_pieces(text: str | bytes, method: str, separator: Any) -> int:
    """Return the most pieces into which a method divides a text."""
    if method == "splitlines":
        return sum(text.count(cast(Any, end)) for end in (_LINE_ENDS if isinstance(text, str) else _BYTE_LINE_ENDS)) + 1
    if isinstance(separator, type(text)) and separator:
        return text.count(cast(Any, separator)) + 1
    return len(text) // 2 + 1


def _check_replace(meter: Meter, text: str | bytes, old: Any, new: Any) -> None:
    if isinstance(old, (str, bytes)) and isinstance(text, str) == isinstance(old, str):
        meter.charge(len(text) * len(old) >> 12)
        occurrences = cast(str, text).count(cast(str, old)) if old else len(text) + 1
        meter.check_length(len(text) + occurrences * _length(new))


def _check_striptags(meter: Meter, text: str) -> None:
    meter.charge(text.count("<") * len(text) >> 10)  # each tag is removed from a copy


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes)) else 1


def check_filter(meter: Meter, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
    """Return the arguments for a filter, its input first, after a check of its cost.

    Raises:
        LimitError: If the cost is unbounded.
    """
    meter.charge()
    if not args:
        return args
    if name in _WHOLE and not isinstance(args[0], (str, list, tuple, dict, Undefined)) and hasattr(args[0], "__iter__"):
        args = (list(args[0]), *args[1:])
    value = args[0]
    length = len(value) if isinstance(value, (str, bytes, list, tuple, dict, range)) else 0
    size = 0
    if name not in _SHALLOW:
        size = sum(map(meter.measure, (*args, *options.values())))
        meter.charge(size >> (2 if name in _SLOW else 5))
    if name in _WHOLE:
        meter.charge(length)
    elif name not in _CONSTANT_TIME:
        meter.charge(length >> (8 if isinstance(value, str) else 2))
    check = _FILTER_CHECKS.get(name)
    if check is not None:
        check(meter, value, _Given(args[1:], options), size)
    if name in _DIVIDING:
        meter.check_length(_PIECE * size)
    return args


class _Given:
    """The arguments of a filter after its input, by position or name."""

    def __init__(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        self.args = args
        self.options = options

    def get(self, place: int, name: str, default: Any = None) -> Any:
        return self.args[place] if place < len(self.args) else self.options.get(name, default)


def _check_center(meter: Meter, value: Any, given: _Given, size: int) -> None:
    width = given.get(0, "width", 80)
    if isinstance(width, int):
        meter.check_length(width)


def _check_indent(meter: Meter, value: Any, given: _Given, size: int) -> None:
    width = given.get(0, "width", 4)
    if isinstance(width, (int, str)):
        lines = len(str(value).splitlines()) + 1
        meter.check_length(size + lines * (len(width) if isinstance(width, str) else width))


def _check_replace_filter(meter: Meter, value: Any, given: _Given, size: int) -> None:
    _check_replace(meter, str(value), str(given.get(0, "old", "")), str(given.get(1, "new", "")))


def _check_join(meter: Meter, value: Any, given: _Given, size: int) -> None:
    if isinstance(value, (str, list, tuple, dict)):
        meter.check_length(size + len(value) * len(str(given.get(0, "d", ""))))


def _check_format(meter: Meter, value: Any, given: _Given, size: int) -> None:
    _check_percent(meter, str(value), given.args or given.options)


def _check_wordwrap(meter: Meter, value: Any, given: _Given, size: int) -> None:
    meter.charge(size * _longest_word(value) >> 8)
    meter.check_length(size * _length(given.get(2, "wrapstring") or "\n"))


def _check_urlize(meter: Meter, value: Any, given: _Given, size: int) -> None:
    added = _length(given.get(2, "target") or "") + _length(given.get(3, "rel") or "")
    meter.charge(size * _longest_word(value) >> 8)
    meter.check_length(size * (1 + added // 2))


def _longest_word(value: Any) -> int:
    """Return the length of the longest word: the regexes of `wordwrap` and `urlize` backtrack within it."""
    return max(map(len, str(value).split()), default=0) + 16


def _check_list(meter: Meter, value: Any, given: _Given, size: int) -> None:
    if isinstance(value, (str, bytes)):
        meter.check_length(_PIECE * len(value))


def _check_batch(meter: Meter, value: Any, given: _Given, size: int) -> None:
    for name in ("linecount", "slices"):
        count = given.get(0, name)
        if isinstance(count, int):
            meter.check_length(count)


def _check_round(meter: Meter, value: Any, given: _Given, size: int) -> None:
    precision = given.get(0, "precision", 0)
    if isinstance(precision, int) and abs(precision) > 1000:
        raise LimitError(f"it rounds to {precision} digits; at most 1,000 are allowed")
    if isinstance(value, (str, bytes, list, tuple)):
        raise TypeError(f"round expects a number, got a {type(value).__name__}")


def _check_sum(meter: Meter, value: Any, given: _Given, size: int) -> None:
    if isinstance(value, (list, tuple, dict)) and size > 2 * len(value) + 2:  # not numbers only
        meter.charge(len(value) * size >> 10)


def _check_pprint(meter: Meter, value: Any, given: _Given, size: int) -> None:
    meter.charge(size)
    if size > 100_000:
        raise LimitError("it applies pprint to more than 100,000 characters and items")


_FILTER_CHECKS: dict[str, Callable[[Meter, Any, _Given, int], None]] = {
    "batch": _check_batch,
    "center": _check_center,
    "format": _check_format,
    "indent": _check_indent,
    "join": _check_join,
    "list": _check_list,
    "pprint": _check_pprint,
    "replace": _check_replace_filter,
    "round": _check_round,
    "slice": _check_batch,
    "striptags": lambda meter, value, given, size: _check_striptags(meter, str(value)),
    "sum": _check_sum,
    "urlize": _check_urlize,
    "wordwrap": _check_wordwrap,
}


def check_test(meter: Meter, name: str, args: tuple[Any, ...]) -> None:
    """Check the cost of a test (``is ...``).

    Raises:
        LimitError: It is not.
    """
    meter.charge()
    if name in _COMPARING_TESTS and len(args) == 2:
        _check_comparison(meter, args[0], args[1])
    elif name in ("lower", "upper"):
        meter.charge(meter.measure(args[0]) >> 8)
    elif name in ("odd", "even", "divisibleby"):  # they compute value % number, which formats a text
        check_operator(meter, "%", args[0], args[1] if len(args) > 1 else 2)


def write_json(meter: Meter, value: Any, ensure_ascii: bool, indent: Any, separators: Any, sort_keys: bool) -> str:
    """Return a value as JSON, as transformers' ``tojson`` filter writes it: without escapes for HTML.

    Args:
        meter: Bounds the length.
        value: A value with a JSON form.
        ensure_ascii: As in `json.dumps`, like the arguments below.
        indent: A number or a text.
        separators: Two texts.
        sort_keys: Whether to sort keys.

    Raises:
        LimitError: If the text would be too long.
        TypeError: If the value has no JSON form.
    """
    meter.charge()
    size = meter.measure(value)
    if isinstance(value, (list, tuple, dict)):
        width = len(indent) if isinstance(indent, str) else indent if isinstance(indent, int) else 0
        meter.check_length(size + meter.items * (max(width, 0) * meter.depth + sum(map(_length, separators or ()))))
    meter.charge(size >> 6)
    text = provenance.write_json(value, sort_keys, ensure_ascii=ensure_ascii, indent=indent, separators=separators)
    return meter.keep(text)
