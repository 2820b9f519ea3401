"""Finds tool calls in generated text while it is generated, in the form of the model's chat template.

| family | form |
|---|---|
| hermes (Qwen, Hermes, SmolLM3) | ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` |
| mistral | ``[TOOL_CALLS][{"name": ..., "arguments": {...}}]``, or ``[TOOL_CALLS]name[ARGS]{...}`` |
| llama3 | ``{"name": ..., "parameters": {...}}``, perhaps after ``<|python_tag|>``; several with ``;`` between them |
| json | the object of llama3 or hermes alone, or a list of them |

Text that begins like a call and turns out to be none is returned as text, so no generated text is lost.

Source of the forms: the chat templates of the published models.
"""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Collection, Iterator
from dataclasses import dataclass

_ARGUMENTS = ("arguments", "parameters")
_NAME = frozenset(string.ascii_letters + string.digits + "_.-")
_LONGEST_NAME = 256
"""Characters of a function's name, or of an id, before its arguments."""
_BETWEEN = "[],; \t\r\n"
"""What may stand before, between and after calls."""
_PIECE = 4096
"""Characters that are read at once: what remains of them is copied at each marker."""


@dataclass(frozen=True)
class Family:
    """The form in which a model writes calls."""

    name: str
    begin: str = ""
    """The text before calls; if empty, an answer with calls begins with the first call."""
    end: str = ""
    """The text after a call."""
    bare: bool = False
    """Whether an answer that begins with a JSON object is a call if the object names a tool."""
    named: bool = False
    """Whether the name of the function may come before the object of arguments, outside of it."""


HERMES = Family("hermes", "<tool_call>", "</tool_call>")
MISTRAL = Family("mistral", "[TOOL_CALLS]", named=True)
LLAMA3 = Family("llama3", "<|python_tag|>", bare=True)
JSON = Family("json", bare=True)


def family_of(template: str) -> Family:
    """Return the family of a chat template.

    Example:
        >>> family_of("... <tool_call> ...").name
        'hermes'
    """
    for family in (HERMES, MISTRAL):
        if family.begin in template:
            return family
    return LLAMA3 if "<|python_tag|>" in template or "<|start_header_id|>" in template else JSON


def new_call_id(family: Family) -> str:
    """Return an id for a call; Mistral's templates accept nine letters and digits only."""
    if family is MISTRAL:
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
    return f"call_{secrets.token_hex(12)}"


@dataclass
class Delta:
    """What new text added: text of the answer, or a piece of a call."""

    content: str = ""
    call: int | None = None
    """Number of the call."""
    name: str | None = None
    """The call's function, in its first delta."""
    arguments: str = ""
    """A piece of the JSON text of its arguments."""


class _Call:
    """Reads the JSON object of one call, in pieces of any size; the cost is linear in its text.

    Args:
        known: The names of functions that make the object a call; None if any name does.
        name: The function's name if it came before the object; the object then holds the arguments alone.
    """

    def __init__(self, known: Collection[str] | None, name: str | None = None) -> None:
        self.known = known
        self.name = name
        self.started = False
        """Whether a delta with the name was returned: from then on the object is a call."""
        self.failed = self.done = False
        self._bare = name is not None
        self._read: list[str] = []
        """The pieces of the object so far."""
        self._depth = 0
        self._in_string = self._escaped = False
        self._string: list[str] = []
        """The last string at depth 1, which may be a key."""
        self._key: str | None = None
        self._value: list[str] = []
        """The value of the key so far, without white space around it."""
        self._arguments: list[str] | None = self._value if self._bare else None
        self._given = 0
        """Characters of the arguments that deltas have returned."""

    @property
    def raw(self) -> str:
        """The text of the object so far."""
        return "".join(self._read)

    def feed(self, text: str) -> tuple[int, list[Delta]]:
        """Return how many characters belong to the object, and what they add."""
        size = len(text)
        for place, character in enumerate(text):
            self._step(character)
            if self.failed or self._depth == 0:
                size = place + 1
                break
        self._read.append(text[:size])
        return size, [] if self.failed else list(self._give(self._depth == 0))

    def _step(self, character: str) -> None:
        """Read one character."""
        if self._in_string:
            self._in_string = self._escaped or character != '"'
            self._escaped = not self._escaped and character == "\\"
            if self._depth == 1:
                self._string.append(character)
        elif character == '"':
            self._in_string = True
            if self._depth == 1:
                self._string = [character]
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        if self._bare:
            self._value.append(character)
            return
        outside = self._depth <= 1 and not self._in_string
        if self._key is None:
            if character == ":" and outside:
                self._key = _decoded("".join(self._string))
                self._value = []
                if self._key in _ARGUMENTS and self._arguments is None:
                    self._arguments = self._value
        elif outside and (self._depth == 0 or character == ","):
            if self._key == "name" and self.name is None:  # a second one would change a call that has begun
                self.name = _decoded("".join(self._value))
                self.failed = self.name is not None and self.known is not None and self.name not in self.known
            self._key = None
        elif not (outside and character.isspace()):
            self._value.append(character)

    def _give(self, ended: bool) -> Iterator[Delta]:
        """Yield what is new; ``ended`` tells whether the object is complete."""
        arguments = self._arguments or []
        is_object = arguments[:1] == ["{"]
        if self.name is not None and not self.started and (is_object or ended):
            self.started = True
            yield Delta(name=self.name)
        if self.started and is_object and len(arguments) > self._given:
            yield Delta(arguments="".join(arguments[self._given :]))
            self._given = len(arguments)
        if ended:
            self.done = True
            self.failed = not self.started
            if self.started and not is_object:
                text = _decoded("".join(arguments)) if arguments[:1] == ['"'] else None
                yield Delta(arguments="".join(arguments) or "{}" if text is None else text)


def _decoded(text: str) -> str | None:
    """Return a JSON string's text; None if it is no string."""
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


class ToolParser:
    r"""Splits an answer into text and calls while it is generated.

    Args:
        family: How the model writes calls.
        names: The names of the tools.
        parallel: Whether the answer may have several calls; if not, all text after the first call is dropped.

    Example:
        >>> parser = ToolParser(HERMES, ["add"])
        >>> deltas = parser.feed('Well. <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
        >>> [delta.content or delta.name or delta.arguments for delta in [*deltas, *parser.finish()]]
        ['Well. ', 'add', '{"a": 1}']
    """

    def __init__(self, family: Family, names: Collection[str], parallel: bool = True) -> None:
        self.family, self.names, self.parallel = family, names, parallel
        self.calls = 0
        """Calls so far."""
        self._pending = ""
        """Text that may still be part of a call or not."""
        self._bare = family.bare
        """Whether a JSON object that comes next may be a call."""
        self._in_calls = False
        self._call: _Call | None = None
        self._after_call = False
        """Whether only white space came since the last call."""
        self._opened = ""
        """The text since the last call, or from the marker on: text of the answer if no call follows."""

    def feed(self, text: str) -> list[Delta]:
        """Return what new text adds."""
        deltas: list[Delta] = []
        for start in range(0, len(text), _PIECE):
            self._pending += text[start : start + _PIECE]
            deltas += _merged(self._run(final=False))
        return _merged(iter(deltas))

    def finish(self) -> list[Delta]:
        """Return what remains once the answer is complete."""
        return _merged(self._run(final=True))

    def _run(self, final: bool) -> Iterator[Delta]:
        while self._pending or final:
            if self.calls and not self.parallel and self._call is None:
                self._pending = ""
                return
            before = len(self._pending), self._in_calls, self._call
            if self._call is not None:
                yield from self._read_call(final)
            elif self._in_calls:
                yield from self._between_calls(final)
            else:
                yield from self._read_text(final)
            if (len(self._pending), self._in_calls, self._call) == before:
                return  # nothing can be decided without more text

    def _read_text(self, final: bool) -> Iterator[Delta]:
        """Yield text up to the beginning of calls."""
        text = self._pending
        stripped = text.lstrip()
        if self._bare and not stripped and not final:
            return
        if self._bare and stripped[:1] in ("{", "["):
            self._in_calls, self._opened = True, text[: len(text) - len(stripped)]
            self._pending = stripped
            return
        begin = self.family.begin
        place = text.find(begin) if begin else -1
        if place >= 0:
            self._in_calls, self._opened = True, begin
            self._pending = text[place + len(begin) :]
            yield from self._text(text[:place])
            return
        held = 0 if final else _partial(text, begin)
        self._pending = text[len(text) - held :]
        yield from self._text(text[: len(text) - held])

    def _text(self, text: str) -> Iterator[Delta]:
        """Yield text of the answer, without white space after a call."""
        if self._after_call:
            text = text.lstrip()
        if text:
            self._after_call = False
            self._bare = self._bare and not text.strip()
            yield Delta(text)

    def _between_calls(self, final: bool) -> Iterator[Delta]:
        """Find the next call, or the end of calls."""
        text = self._pending.lstrip()
        opened = self._opened + self._pending[: len(self._pending) - len(text)]
        begin, end = self.family.begin, self.family.end
        marked = bool(begin) and opened.startswith(begin)  # a marker came, and no call since
        kept = "" if self.calls and not marked else opened
        if end and text.startswith(end) and not marked:
            self._in_calls, self._pending, self._opened = False, text[len(end) :], ""
        elif not text or (not final and (end.startswith(text) or begin.startswith(text))):
            if final:
                yield from self._leave(kept, "")
        elif text[0] == "{":
            self._call = _Call(None if marked else self.names)
            self._opened, self._pending = opened, text
        elif text[0] in _BETWEEN and not begin.startswith(text) and not (begin and text.startswith(begin)):
            size = len(text) - len(text.lstrip(_BETWEEN))
            if begin:  # which may begin with one of these characters
                next_call = text.find(begin, 0, size + len(begin))
                size = next_call if next_call > 0 else min(size, len(text) - _partial(text, begin))
            self._opened, self._pending = opened + text[:size], text[size:]
        elif self.family.named and (found := _leading_name(text)) is not None:
            name, rest = found
            if rest is not None:
                self._opened = opened + text[: len(text) - len(rest)]
                self._call, self._pending = _Call(None, name), rest
            elif final:
                yield from self._leave(kept, text)
        else:
            yield from self._leave(kept, text)

    def _leave(self, opened: str, rest: str) -> Iterator[Delta]:
        """Yield what looked like the beginning of a call as text; calls may follow in the rest."""
        self._in_calls = self._bare = False
        self._call, self._opened, self._pending = None, "", rest
        yield from self._text(opened)

    def _read_call(self, final: bool) -> Iterator[Delta]:
        call = self._call
        assert call is not None
        size, deltas = call.feed(self._pending)
        rest, self._pending = self._pending[size:], ""
        for delta in deltas:
            delta.call = self.calls
            yield delta
        if call.failed:
            yield from self._leave(self._opened + call.raw, rest)
        elif call.done:
            self.calls += 1
            self._after_call = True
            self._call, self._pending, self._opened = None, rest, ""
        elif final and call.started:
            self.calls += 1
            self._call, self._opened = None, ""
        elif final:
            yield from self._leave(self._opened + call.raw, "")


def _leading_name(text: str) -> tuple[str, str | None] | None:
    """Return the name before an object of arguments, and the text from the object on.

    The second is None while the text ends before the object; the result is None if the text is no call.
    """
    name, rest = _split_name(text)
    if not name or len(name) > _LONGEST_NAME:
        return None
    for marker in ("[CALL_ID]", "[ARGS]"):
        if rest.startswith(marker):
            rest = rest[len(marker) :]
            if marker == "[CALL_ID]":
                call_id, rest = _split_name(rest)
                if len(call_id) > _LONGEST_NAME:
                    return None
        elif marker.startswith(rest):
            return name, None
    rest = rest.lstrip()
    if not rest:
        return name, None
    return (name, rest) if rest[0] == "{" else None


def _split_name(text: str) -> tuple[str, str]:
    """Return the letters and digits at the beginning of a text, at most one over `_LONGEST_NAME`, and the rest."""
    head = text[: _LONGEST_NAME + 1]
    size = next((place for place, character in enumerate(head) if character not in _NAME), len(head))
    return text[:size], text[size:]


def _partial(text: str, marker: str) -> int:
    """Return the length of the longest end of a text that is a beginning of the marker, but not all of it."""
    return next((size for size in range(min(len(marker) - 1, len(text)), 0, -1) if marker.startswith(text[-size:])), 0)


def _merged(deltas: Iterator[Delta]) -> list[Delta]:
    """Return deltas; adjacent pieces of text, or of the arguments of one call, are joined."""
    merged: list[Delta] = []
    for delta in deltas:
        last = merged[-1] if merged else None
        if last is not None and delta.name is None and last.call == delta.call and last.name is None:
            last.content += delta.content
            last.arguments += delta.arguments
        else:
            merged.append(delta)
    return merged
