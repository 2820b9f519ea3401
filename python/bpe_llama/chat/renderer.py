"""Render a chat template: copy its variables, return its text and the spans of ``{% generation %}`` blocks.

Source of the conventions: ``transformers.utils.chat_template_utils`` 5.23 and
https://huggingface.co/docs/transformers/chat_templating.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jinja2 import meta, nodes

from bpe_llama.chat.limits import LimitError, Limits, Meter
from bpe_llama.chat.sandbox import ChatEnvironment

LONGEST_TEMPLATE = 100_000  # characters; those that models are published with have some ten thousand at most


class Template(NamedTuple):
    """A chat template, compiled.

    Attributes:
        code: What `ChatEnvironment` runs.
        variables: The names that it reads and does not set, without those of the environment.
        marks_answers: Whether it holds a ``{% generation %}`` block.
    """

    code: types.CodeType
    variables: frozenset[str]
    marks_answers: bool


class Rendered(NamedTuple):
    """A rendered template.

    Attributes:
        text: The whole text.
        blocks: Where each ``{% generation %}`` block was written, in characters, and its text.
    """

    text: str
    blocks: list[tuple[int, str]]

    def find_answers(self) -> list[tuple[int, int]]:
        """Return where the ``{% generation %}`` blocks begin and end, in characters.

        Raises:
            ValueError: If that cannot be told of one.
        """
        for begin, block in self.blocks:
            if not self.text.startswith(block, begin):
                raise ValueError(
                    "the chat template has a {% generation %} block within a macro, a call or a set block, "
                    "where it cannot be told which part of the text it is"
                )
        return [(begin, begin + len(block)) for begin, block in self.blocks]


@lru_cache(maxsize=32)
def compile_template(source: str) -> Template:
    """Return a chat template, ready to render.

    Raises:
        ValueError: If it is no jinja2 template, or too long.
    """
    if len(source) > LONGEST_TEMPLATE:
        raise ValueError(f"the chat template has {len(source):,} characters; at most {LONGEST_TEMPLATE:,} are read")
    try:
        environment = ChatEnvironment(Meter(Limits()), datetime.now())
        tree = environment.parse(source)
        variables = frozenset(meta.find_undeclared_variables(tree)) - environment.globals.keys()
        marks = any(isinstance(call.call.node, nodes.ExtensionAttribute) for call in tree.find_all(nodes.CallBlock))
        return Template(environment.compile(tree), variables, marks)
    except Exception as error:
        raise failure(error) from error


def render_template(
    source: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], now: datetime, marker: str = ""
) -> Rendered:
    """Return what a chat template makes of messages that `plain` gave.

    Args:
        source: The jinja2 text.
        messages: What it reads as ``messages``.
        variables: All else that it can read.
        now: The time for `strftime_now`.
        marker: A character in the messages that is not to be escaped in the text.

    Raises:
        ValueError: If the template is broken, refuses the messages, asks for something forbidden, or costs more than
            `Limits` allow for an input of this size.
    """
    template = compile_template(source)
    unbounded = Meter(Limits(text=1 << 62, steps=1 << 62))
    try:
        size = unbounded.measure([messages, dict(variables)])
        meter = Meter(Limits().scaled(len(messages), size))
        environment = ChatEnvironment(meter, now, marker)
        program = environment.template_class.from_code(environment, template.code, environment.make_globals(None))
        pieces = []
        for piece in program.generate(messages=messages, **variables):
            pieces.append(environment.restore_marker(piece))
            environment.written += len(pieces[-1])
            meter.check_length(environment.written)
    except Exception as error:
        raise failure(error) from error
    return Rendered("".join(pieces), environment.blocks)


def failure(error: Exception) -> ValueError:
    """Return the error to raise for a chat template that did not render."""
    if isinstance(error, RecursionError):
        reason = "it nests or recurses too deeply"
    elif isinstance(error, MemoryError):
        reason = "it needs more memory than there is"
    elif isinstance(error, LimitError):
        return ValueError(f"the chat template costs too much: {error}")
    else:
        reason = f"{error}" or type(error).__name__
    return ValueError(f"the chat template failed: {reason:.2000}")


def plain(value: Any) -> Any:
    """Return a copy of a value made of JSON's types alone, so that a template reaches no other object's methods.

    Mappings, dataclasses and pydantic models become dicts, NumPy's scalars numbers, and anything else, such as an
    image, the name of its type in angle brackets: what transformers does.

    Examples:
        >>> plain({"a": (1, None), "b": {1, 2}})
        {'a': (1, None), 'b': '<set>'}
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return plain(value.model_dump())
    return f"<{type(value).__name__}>"
