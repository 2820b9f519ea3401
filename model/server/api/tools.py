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
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_ARGUMENTS = ("arguments", "parameters")
_NAME = frozenset(string.ascii_letters + string.digits + "_.-")


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


def call_schema(tools: Sequence[dict[str, Any]], name: str | None = None) -> dict[str, Any]:
    """Return the JSON schema of a call of any of the functions, or of the named one.

    Args:
        tools: Functions, each with ``name`` and perhaps ``parameters``.
        name: The name of the function to call; None for any.

    Example:
        >>> call_schema([{"name": "add"}])["properties"]["arguments"]
        {'type': 'object'}
    """
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["name"]},
                "arguments": tool.get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
        if name is None or tool["name"] == name
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


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
    """Reads the JSON object of one call, character by character.

    Args:
        known: The names of functions that make the object a call; None if any name does.
        name: The function's name if it came before the object; the object then holds the arguments alone.
    """

    def __init__(self, known: Collection[str] | None, name: str | None = None) -> None:
        self.known, self.raw = known, ""
        self.name = name
        self.started = False
        """Whether a delta with the name was returned: from then on the object is a call."""
        self.failed = self.done = False
        self._bare = name is not None
        self._depth = 0
        self._in_string = self._escaped = False
        self._string_start = self._value_start = 0
        self._key: str | None = None
        self._text = ""
        """The last string at depth 1."""
        self._arguments: str | None = None
        """The text of the arguments so far."""
        self._given = 0

    def feed(self, character: str) -> Iterator[Delta]:
        """Yield what one more character adds."""
        self.raw += character
        place = len(self.raw) - 1
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
                self._text = self.raw[self._string_start : place + 1]
        elif character == '"':
            self._in_string, self._string_start = True, place
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        elif character == ":" and self._depth == 1 and self._key is None and not self._bare:
            self._key, self._value_start = _decoded(self._text), place + 1
        ended = self._depth == 0
        if not self._bare and self._depth <= 1 and not self._in_string and character in ",}" and self._key is not None:
            value = self.raw[self._value_start : place]
            if character == "," or ended:
                self._end_value(value.strip())
        if self._bare:
            self._arguments = self.raw
        elif self._key in _ARGUMENTS:
            self._arguments = self.raw[self._value_start :].lstrip()
        yield from self._give(ended)

    def _end_value(self, value: str) -> None:
        if self._key == "name":
            self.name = _decoded(value)
        elif self._key in _ARGUMENTS:
            self._arguments = value
        self._key = None

    def _give(self, ended: bool) -> Iterator[Delta]:
        arguments = self._arguments or ""
        is_object = arguments.startswith("{")
        named = isinstance(self.name, str) and (self.known is None or self.name in self.known)
        if self.name is not None and not named:
            self.failed = True
            return
        if named and not self.started and (is_object or ended):
            self.started = True
            yield Delta(name=self.name)
        if self.started and is_object and len(arguments) > self._given:
            whole = arguments if self._key is None or self._bare else _whole_object(arguments, self._depth)
            if len(whole) > self._given:
                yield Delta(arguments=whole[self._given :])
                self._given = len(whole)
        if ended:
            self.done = True
            self.failed = not self.started
            if self.started and not is_object:
                text = _decoded(arguments) if arguments.startswith('"') else None
                yield Delta(arguments=text if isinstance(text, str) else arguments or "{}")


def _whole_object(text: str, depth: int) -> str:
    """Return the text of arguments so far, without what follows a complete object."""
    return text.rstrip(" \t\r\n") if depth == 1 else text


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
        """The text before the call that is being read; it is text of the answer if the call turns out to be none."""

    def feed(self, text: str) -> list[Delta]:
        """Return what new text adds."""
        self._pending += text
        return _merged(self._run(final=False))

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
        skipped = self._pending[: len(self._pending) - len(text)]
        begin, end = self.family.begin, self.family.end
        if self.calls and begin and text.startswith(begin):
            self._pending, self._opened = text[len(begin) :], begin
        elif end and text.startswith(end):
            self._in_calls, self._pending, self._opened = False, text[len(end) :], ""
        elif not text or (not final and (end.startswith(text) or (self.calls and begin.startswith(text)))):
            if final:
                yield from self._leave(self._opened if not self.calls else "", "")
        elif text[0] == "{":
            self._call = _Call(None if begin and self._opened.startswith(begin) else self.names)
            self._pending = text
        elif text[0] in "[],;" and not (self.calls and begin.startswith(text)):
            self._opened += skipped + text[0]
            self._pending = text[1:]
        elif self.family.named and (found := _leading_name(text)) is not None:
            name, rest = found
            if rest is None:
                if final:
                    yield from self._leave(self._opened, text)
                return
            self._opened += text[: len(text) - len(rest)]
            self._call, self._pending = _Call(None, name), rest
        else:
            yield from self._leave("" if self.calls else self._opened + skipped, text)

    def _leave(self, opened: str, text: str) -> Iterator[Delta]:
        """Continue with text: what looked like the beginning of a call is none."""
        self._in_calls = self._bare = False
        self._call, self._opened, self._pending = None, "", ""
        if opened + text:
            yield from self._text(opened + text)

    def _read_call(self, final: bool) -> Iterator[Delta]:
        call = self._call
        assert call is not None
        text = self._pending
        for place, character in enumerate(text):
            for delta in call.feed(character):
                delta.call = self.calls
                yield delta
            if call.failed:
                self._pending = ""
                yield from self._leave(self._opened + call.raw, text[place + 1 :])
                return
            if call.done:
                self.calls += 1
                self._after_call = True
                self._call, self._pending, self._opened = None, text[place + 1 :], ""
                return
        self._pending = ""
        if final:
            if call.started:
                self.calls += 1
                self._call = None
            else:
                yield from self._leave(self._opened + call.raw, "")


def _leading_name(text: str) -> tuple[str, str | None] | None:
    """Return the name before an object of arguments, and the text from the object on.

    The second is None while the text ends before the object; the result is None if the text is no call.
    """
    size = next((place for place, character in enumerate(text) if character not in _NAME), len(text))
    name, rest = text[:size], text[size:]
    if not name:
        return None
    for marker in ("[CALL_ID]", "[ARGS]"):
        if rest.startswith(marker):
            rest = rest[len(marker) :]
            if marker == "[CALL_ID]":
                skipped = next((place for place, character in enumerate(rest) if character not in _NAME), len(rest))
                rest = rest[skipped:]
        elif marker.startswith(rest):
            return name, None
    rest = rest.lstrip()
    if not rest:
        return name, None
    return (name, rest) if rest[0] == "{" else None


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
