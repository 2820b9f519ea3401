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

try:
    from jinja2 import meta, nodes
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("chat templates need jinja2: pip install 'bpe_llama[chat]'", name="jinja2") from error

from bpe_llama._arguments import check_surrogates
from bpe_llama._core import shown
from bpe_llama.chat.limits import LimitError, Limits, Meter
from bpe_llama.chat.provenance import Traced, concatenated
from bpe_llama.chat.sandbox import ChatEnvironment

LONGEST_TEMPLATE = 100_000  # characters; published templates have at most about 10,000


class Template(NamedTuple):
    """A chat template, compiled.

    Attributes:
        code: The code that `ChatEnvironment` runs.
        variables: The names that the template reads but does not set, without those of the environment.
        marks_answers: Whether the template has a ``{% generation %}`` block.
    """

    code: types.CodeType
    variables: frozenset[str]
    marks_answers: bool


class Rendered(NamedTuple):
    """A rendered template.

    Attributes:
        text: The whole text, with the origin of each character.
        blocks: The character offset and the text of each ``{% generation %}`` block.
    """

    text: Traced
    blocks: list[tuple[int, str]]

    def find_answers(self) -> list[tuple[int, int]]:
        """Return the character ranges of the ``{% generation %}`` blocks.

        Raises:
            ValueError: If the range of a block is unknown.
        """
        for begin, block in self.blocks:
            if not self.text.startswith(block, begin):
                raise ValueError(
                    "the chat template has a {% generation %} block within a macro, a call or a set block, "
                    "where its place in the text is unknown"
                )
        return [(begin, begin + len(block)) for begin, block in self.blocks]


@lru_cache(maxsize=32)
def compile_template(source: str) -> Template:
    """Return a compiled chat template.

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
    source: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], now: datetime
) -> Rendered:
    """Return a chat template rendered with messages that `plain` returned.

    Args:
        source: The jinja2 text.
        messages: Its variable ``messages``, traced.
        variables: Its other variables, traced.
        now: The time for `strftime_now`.

    Raises:
        ValueError: If the template is broken, rejects the messages, violates the sandbox, or exceeds the `Limits` for
            an input of this size.
    """
    template = compile_template(source)
    unbounded = Meter(Limits(text=1 << 62, steps=1 << 62))
    try:
        size = unbounded.measure([messages, dict(variables)])
        meter = Meter(Limits().scaled(len(messages), size))
        environment = ChatEnvironment(meter, now)
        program = environment.template_class.from_code(environment, template.code, environment.make_globals(None))
        pieces = []
        for piece in program.generate(messages=messages, **variables):
            pieces.append(piece)
            environment.written += len(piece)
            meter.check_length(environment.written)
    except Exception as error:
        raise failure(error) from error
    return Rendered(concatenated(pieces), environment.blocks)


def failure(error: Exception) -> ValueError:
    """Return the error to raise for a chat template that failed."""
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
    """Return a copy of a value in JSON's types, so that a template reaches no methods of other objects.

    As in transformers, mappings, dataclasses and pydantic models become dicts, NumPy scalars become numbers, and any
    other value, such as an image, becomes the name of its type in angle brackets.

    Examples:
        >>> plain({"a": (1, None), "b": {1, 2}})
        {'a': (1, None), 'b': '<set>'}
    """
    if isinstance(value, str):
        check_surrogates("a text for the chat template", value)
        return str.__str__(value)
    if value is None or type(value) in (int, float, bool):
        return value
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, np.floating):
        return float(value)
    if isinstance(value, np.generic) and not isinstance(value, np.clongdouble):  # which is its own `item`
        return plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return plain(value.model_dump())
    return f"<{type(value).__name__}>"


def plain_key(key: Any) -> Any:
    """Return a copy of a mapping's key, as `plain` does.

    Raises:
        ValueError: If it becomes a mapping.
    """
    copy = plain(key)
    try:
        hash(copy)
    except TypeError:
        raise ValueError(f"a key for the chat template is {shown(key)}; expected a text or a number") from None
    return copy
