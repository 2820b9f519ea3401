"""Render messages with a chat template and encode the text, for generation and for fine-tuning."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from bpe_llama._arguments import iterator
from bpe_llama.chat.answers import AnswerFinder
from bpe_llama.chat.request import NAMED_TOKENS, ChatRequest, ChatTokenizer, Message, prepare, prepare_for

if TYPE_CHECKING:
    from bpe_llama.chat.renderer import Rendered

# Unicode noncharacters have no meaning, so one that occurs in no message can mark places in the text.
_MARKERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
TRAIN_ON = ("assistant", "last", "all")
"""The tokens of a conversation to train on: all answers, the last one, or every token."""
_TOKEN_VARIABLES = frozenset(f"{name}_token" for name in NAMED_TOKENS)


class EncodedChat(NamedTuple):
    """The ids of a conversation, and the mask of the ids that ``{% generation %}`` blocks wrote."""

    ids: list[int]
    is_answer: list[bool]


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool | None = None,
    tools: Iterable[Mapping[str, Any] | Callable[..., Any]] | None = None,
    documents: Iterable[Mapping[str, Any]] | None = None,
    continue_final_message: bool | str = False,
    **variables: Any,
) -> str:
    r"""Return the text of a chat template applied to messages, as transformers renders it.

    Args:
        template: The jinja2 source.
        messages: Mappings with a `role` and, usually, a `content`. A field that is None counts as missing.
        add_generation_prompt: As in `Tokenizer.apply_chat_template`, like the next three.
        tools: Likewise.
        documents: Likewise.
        continue_final_message: Likewise.
        **variables: Special tokens such as `bos_token`, and variables of the template.

    Raises:
        ValueError: If a message is no mapping with a role, an option is invalid, or the template is broken, violates
            the sandbox, exceeds a limit, or rejects the messages; the message says which.

    Example:
        >>> render("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}",
        ...        [{"role": "user", "content": "Hi"}])
        '[user] Hi\n'
    """
    named_tokens = {name: variables.pop(name) for name in _TOKEN_VARIABLES & variables.keys()}
    request = prepare(
        template,
        named_tokens,
        messages,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
        documents=documents,
        continue_final_message=continue_final_message,
        **variables,
    )
    return request.render().text


def render_for(tokenizer: ChatTokenizer, messages: Sequence[Message], **options: Any) -> str:
    """Return the text of `tokenizer.chat_template` applied to messages.

    Raises:
        ValueError: As of `render`; or if the tokenizer has no chat template.
    """
    return prepare_for(tokenizer, messages, **options).render().text


def encode_chat(tokenizer: ChatTokenizer, messages: Sequence[Message], **options: Any) -> list[int]:
    """Return the ids of `tokenizer.chat_template` applied to messages; `options` are those of `render`.

    Special tokens of the template become their ids. Inside a message, a tool or a document the same text does not:
    markers split it while the template runs and are removed afterwards.

    Raises:
        ValueError: As of `render`; or if the messages hold every noncharacter that could be a marker, or a special
            token's text in them changes the template's text elsewhere.
    """
    marked = _Marked(tokenizer, prepare_for(tokenizer, messages, **options))
    return marked.encode(marked.render().text)


def encode_marked_chat(tokenizer: ChatTokenizer, messages: Sequence[Message], **options: Any) -> EncodedChat:
    """Return the ids of `encode_chat`, and the mask of the ids that ``{% generation %}`` blocks wrote.

    The mask is true for a token with at least one character in such a block.

    Raises:
        ValueError: As of `encode_chat`; or if the template has no such block, or the last message is continued.
    """
    request = prepare_for(tokenizer, messages, **options)
    if request.continued is not None:
        raise ValueError("continue_final_message and return_assistant_tokens_mask exclude each other")
    if not request.marks_answers:
        raise ValueError("the chat template has no {% generation %} block, so the assistant's tokens are unknown")
    marked = _Marked(tokenizer, request)
    return marked.encode_answers(marked.render())


def encode_conversation(
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    *,
    train_on: str = "assistant",
    tools: Iterable[Mapping[str, Any] | Callable[..., Any]] | None = None,
    documents: Iterable[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    **variables: Any,
) -> tuple[list[int], list[bool]]:
    r"""Return the ids of a whole conversation and the mask of the ids to train on.

    With ``{% generation %}`` blocks in the template, their text is trained on. Otherwise an answer is the text from the
    end of the generation prompt to the closing token, included. Some templates remove reasoning from earlier answers,
    or open a ``<think>`` block in the generation prompt only. Then an answer is the text after the assistant's header
    that changes with the answer. An answer is encoded separately from the text before it, as in generation.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: The conversation; messages of the role "assistant" are answers. An answer with a `weight` of 0 is not
            trained on, as in OpenAI's files; the template does not see the weight.
        train_on: "assistant" for all answers, "last" for the last one alone, or "all" for every token.
        tools: As in `Tokenizer.apply_chat_template`, like the next two.
        documents: Likewise.
        chat_template: Likewise.
        **variables: Read by the template.

    Raises:
        ValueError: As of `encode_chat`; or if `train_on` or a weight has another value, there is no answer to train on,
            or the answers cannot be located in the text.

    Example:
        >>> from bpe_llama import Tokenizer
        >>> tok = Tokenizer.train_from_iterator(["a"], vocab_size=256, progress=False)
        >>> tok.chat_template = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}.{% endfor %}" \
        ...                     "{% if add_generation_prompt %}a{% endif %}"
        >>> talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
        >>> ids, learned = encode_conversation(tok, talk)
        >>> tok.decode(ids), "".join(" ^"[trained] for trained in learned)
        ('uHi.aHo.', '     ^^^')
    """
    if train_on not in TRAIN_ON:
        raise ValueError(f"train_on is {train_on!r}; expected {', '.join(TRAIN_ON)}")
    messages = list(iterator("messages", messages, "a list of mappings with a 'role'"))
    unweighted = [
        {key: value for key, value in message.items() if key != "weight"} if isinstance(message, Mapping) else message
        for message in messages
    ]
    options = {"tools": tools, "documents": documents, "chat_template": chat_template, **variables}
    request = prepare_for(tokenizer, unweighted, add_generation_prompt=False, **options)
    if request.continued is not None:
        raise ValueError("continue_final_message: a conversation is learned whole")
    marked = _Marked(tokenizer, request)
    rendered = marked.render()
    whole = rendered.text
    wanted = _learned_answers(messages, train_on)
    if train_on == "all" and all(wanted):
        ids = marked.encode(whole)
        return ids, [True] * len(ids)
    if not wanted:
        raise ValueError("no message has the role 'assistant'; there is no answer to learn from")
    if request.marks_answers:
        spans = rendered.find_answers()
        if not spans:
            raise ValueError("the chat template wrote no {% generation %} block for these messages")
        if [place for span in spans for place in span] != sorted(place for span in spans for place in span):
            raise ValueError("the chat template has a {% generation %} block within another")
        if all(wanted):
            wanted = [True] * len(spans)
        elif len(spans) != len(wanted):
            raise ValueError(
                f"the chat template writes {len(spans)} {{% generation %}} blocks for {len(wanted)} answers, so the "
                "blocks of the answers to learn are unknown"
            )
    else:
        spans = marked.find_answers(whole)
    ids, learned = [], []
    other = train_on == "all"
    end = 0
    for (begin, after), want in [*zip(spans, wanted, strict=True), ((len(whole), len(whole)), False)]:
        for start, stop, is_learned in ((end, begin, other), (begin, after, want)):
            part = marked.encode(whole[start:stop], whole[:start])
            ids += part
            learned += [is_learned] * len(part)
        end = after
    return ids, learned


def _learned_answers(messages: Sequence[Message], train_on: str) -> list[bool]:
    """Return for each answer whether it is learned."""
    wanted = []
    for place, message in enumerate(messages):
        weight = message.get("weight")
        if weight is not None and (isinstance(weight, str) or weight not in (0, 1)):
            raise ValueError(f"message {place}: weight is {weight!r}; expected 0 or 1")
        if message.get("role") == "assistant":
            wanted.append(weight != 0)
        elif weight == 0 and train_on == "all":
            raise ValueError(f"message {place}: weight 0 is for answers; this one's role is {message.get('role')!r}")
    if train_on == "last":
        wanted = [False] * (len(wanted) - 1) + wanted[-1:]
    return wanted


class _Marked:
    """Renders and encodes a request in which markers split the text of special tokens."""

    def __init__(self, tokenizer: ChatTokenizer, request: ChatRequest) -> None:
        self.tokenizer = tokenizer
        self.request = self.unmarked = request
        self.marker = ""
        special = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self.special = self.written = re.compile("|".join(map(re.escape, special))) if special else None
        if self.special is None:
            return
        given = {name: value for name, value in request.variables.items() if name not in _TOKEN_VARIABLES}
        strings = list(_strings([request.messages, given]))
        if not any(map(self.special.search, strings)):
            return
        content = "\n".join(strings)
        marker = next((mark for mark in _MARKERS if mark not in content and f"{ord(mark):04x}" not in content), None)
        if marker is None:
            raise ValueError("the messages hold all of the noncharacters U+FDD0 to U+FDEF; remove one")
        self.marker = marker
        # A marker after each character distinguishes such text from the text of the template.
        self.written = re.compile(f"(?:{self.special.pattern})(?!{marker})")
        self.request = replace(
            request,
            messages=_map_strings(request.messages, self._break),
            variables=request.variables | _map_strings(given, self._break),
        )

    def _break(self, text: str) -> str:
        assert self.special is not None  # or nothing was mapped; for the type checker
        return self.special.sub(lambda match: "".join(character + self.marker for character in match[0]), text)

    def render(self) -> Rendered:
        """Return the rendered request.

        Raises:
            ValueError: If the markers change more of the text than themselves.
        """
        rendered = self.request.render(self.marker)
        if self.marker and rendered.text.replace(self.marker, "") != self.unmarked.render().text:
            raise ValueError(
                "the messages hold the text of a special token, and the chat template acts on it, so it cannot be "
                "kept as ordinary text; remove it"
            )
        return rendered

    def find_answers(self, whole: str) -> list[tuple[int, int]]:
        """Return the begin and end of each answer in the text of the whole conversation."""

        def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
            variables = self.request.variables | {"add_generation_prompt": add_generation_prompt}
            changed = replace(self.request, messages=[dict(message) for message in messages], variables=variables)
            return changed.render(self.marker).text

        content = whole + "".join(_strings(self.request.messages))
        placeholder = next((mark for mark in _MARKERS if mark not in content and mark != self.marker), None)
        if placeholder is None:
            raise ValueError("the messages hold all of the noncharacters U+FDD0 to U+FDEF; remove one")
        tokens = "|".join(map(re.escape, sorted(self.tokenizer.added_tokens | self.tokenizer.special_tokens)[::-1]))
        pattern = re.compile(f"(?:{tokens})" + (f"(?!{self.marker})" if self.marker else "")) if tokens else None
        return AnswerFinder(self.request.messages, render, whole, placeholder, pattern).find()

    def encode(self, text: str, before: str = "") -> list[int]:
        """Return the ids of rendered text, or of a part of it that follows the text ``before``."""
        if not self.marker and not before:
            return self.tokenizer.encode(text, allowed_special="all")
        return [token_id for part in self._encode_parts(text, before) for token_id in part[1]]

    def _encode_parts(self, text: str, before: str) -> Iterable[tuple[str, list[int]]]:
        """Yield special tokens and the text between them, without markers, and their ids."""
        tokenizer = self.tokenizer
        end = 0
        passed = None if before.endswith(tuple(tokenizer.special_tokens)) else before
        for match in self.written.finditer(text) if self.written else ():
            part = self._without_marker(text[end : match.start()])
            yield part, tokenizer.encode_following(part, passed)
            yield match[0], [tokenizer.special_tokens[match[0]]]
            end, passed = match.end(), None
        part = self._without_marker(text[end:])
        yield part, tokenizer.encode_following(part, passed)

    def _without_marker(self, text: str) -> str:
        return text.replace(self.marker, "") if self.marker else text

    def encode_answers(self, rendered: Rendered) -> EncodedChat:
        """Return the ids of rendered text, and the mask of the ids in its answers."""
        text = self._without_marker(rendered.text)
        marks = [place for place, character in enumerate(rendered.text) if character == self.marker]
        is_answer = bytearray(len(text) + 1)
        for span in rendered.find_answers():
            begin, end = (place - bisect_left(marks, place) for place in span)
            is_answer[begin:end] = b"\1" * (end - begin)
        if self.marker:
            ids, offsets = self._encode_with_offsets(rendered.text)
        else:
            ids, offsets = self.tokenizer.encode_with_offsets(text, allowed_special="all")
        return EncodedChat(ids, [is_answer.find(1, start, max(end, start + 1)) >= 0 for start, end in offsets])

    def _encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of marked text and their character ranges in the text without markers."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        place = 0
        for part, part_ids in self._encode_parts(text, ""):
            pieces = [self.tokenizer.id_to_bytes(token_id) for token_id in part_ids]
            data = part.encode()
            if b"".join(pieces) != data:
                raise ValueError("the messages hold the text of a special token, and this tokenizer rewrites text")
            # The number of characters that begin before each byte.
            begun = [0, *accumulate(byte & 0xC0 != 0x80 for byte in data)]
            ends = list(accumulate(map(len, pieces)))
            offsets += [(place + begun[a + 1] - 1, place + begun[b]) for a, b in zip([0, *ends], ends, strict=False)]
            ids += part_ids
            place += len(part)
        return ids, offsets


def _strings(value: Any) -> Iterable[str]:
    """Yield every string in a plain value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.items():
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_map_strings(key, change): _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map_strings(item, change) for item in value)
    return value
