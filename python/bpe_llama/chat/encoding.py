"""Render messages with a chat template and encode the text, for generation and for fine-tuning."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from bpe_llama.chat.answers import AnswerFinder
from bpe_llama.chat.request import NAMED_TOKENS, ChatRequest, ChatTokenizer, Message, prepare, prepare_for

if TYPE_CHECKING:
    from bpe_llama.chat.renderer import Rendered

# Unicode noncharacters: they stand for nothing, so one that occurs in no message can mark places in the text.
_MARKERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
TRAIN_ON = ("assistant", "last", "all")
"""What may be learned of a conversation: all answers, the last one, or every token."""
_TOKEN_VARIABLES = frozenset(f"{name}_token" for name in NAMED_TOKENS)


class EncodedChat(NamedTuple):
    """The ids of a conversation, and for each whether a ``{% generation %}`` block wrote it."""

    ids: list[int]
    is_answer: list[bool]


def render(template: str, messages: Sequence[Message], **options: Any) -> str:
    r"""Return the text a chat template makes of messages, as transformers renders it.

    Args:
        template: The jinja2 source.
        messages: Each with a `role` and, as a rule, a `content`. What is None counts as missing.
        **options: Those of `Tokenizer.apply_chat_template` that shape the text, special tokens such as `bos_token`, and
            variables of the template.

    Raises:
        ValueError: If a message is no mapping with a role, an option does not fit, or the template is broken, asks for
            something forbidden, costs too much, or refuses the messages; the message says which.

    Example:
        >>> render("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}",
        ...        [{"role": "user", "content": "Hi"}])
        '[user] Hi\n'
    """
    named_tokens = {name: options.pop(name) for name in _TOKEN_VARIABLES & options.keys()}
    return prepare(template, named_tokens, messages, **options).render().text


def render_for(tokenizer: ChatTokenizer, messages: Sequence[Message], **options: Any) -> str:
    """Return the text of `tokenizer.chat_template` applied to messages.

    Raises:
        ValueError: As of `render`; or if the tokenizer has no chat template.
    """
    return prepare_for(tokenizer, messages, **options).render().text


def encode_chat(tokenizer: ChatTokenizer, messages: Sequence[Message], **options: Any) -> list[int]:
    """Return the ids of `tokenizer.chat_template` applied to messages; `options` are those of `render`.

    Special tokens that the template writes become their ids. The same text inside a message, a tool or a document does
    not: there a marker breaks it while the template runs, and is taken out again afterwards.

    Raises:
        ValueError: As of `render`; or if the messages hold every noncharacter that could mark a place, or a special
            token's text in them changes what the template writes elsewhere.
    """
    marked = _Marked(tokenizer, prepare_for(tokenizer, messages, **options))
    return marked.encode(marked.render().text)


def encode_marked_chat(tokenizer: ChatTokenizer, messages: Sequence[Message], **options: Any) -> EncodedChat:
    """Return the ids that `encode_chat` returns, and which of them ``{% generation %}`` blocks wrote.

    A token counts if any character of it stands in such a block.

    Raises:
        ValueError: As of `encode_chat`; or if the template has no such block, or the last message is to be continued.
    """
    request = prepare_for(tokenizer, messages, **options)
    if request.continued is not None:
        raise ValueError("continue_final_message and return_assistant_tokens_mask exclude each other")
    if not request.marks_answers:
        raise ValueError(
            "the chat template has no {% generation %} block, so it does not tell which tokens are the assistant's"
        )
    marked = _Marked(tokenizer, request)
    return marked.encode_answers(marked.render())


def encode_conversation(
    tokenizer: ChatTokenizer, messages: Sequence[Message], *, train_on: str = "assistant", **options: Any
) -> tuple[list[int], list[bool]]:
    r"""Return the ids of a whole conversation and, of each, whether it is learned in fine-tuning.

    If the template has ``{% generation %}`` blocks, their text is learned. Otherwise an answer is the text after the
    generation prompt, up to and with its closing token. Some templates take reasoning out of earlier answers, or open a
    ``<think>`` block in the generation prompt alone; an answer is then the text that changes if another answer takes
    its place, from the end of the assistant's header on. An answer is encoded apart from the text before it, as in
    generation.

    Args:
        tokenizer: One with a chat template.
        messages: From first to last; answers are those whose role is "assistant". One with a `weight` of 0 is only
            read, as in OpenAI's files; the template does not see the weight.
        train_on: "assistant" for all answers, "last" for the last one alone, or "all" for every token.
        **options: Of `Tokenizer.apply_chat_template`, such as `tools`, and variables of the template.

    Raises:
        ValueError: As of `encode_chat`; or if `train_on` or a weight is none of these, no message is the assistant's
            though one is to be learned, or answers cannot be told apart.

    Example:
        >>> from bpe_llama import Tokenizer
        >>> tok = Tokenizer.train_from_iterator(["a"], vocab_size=256, progress=False)
        >>> tok.chat_template = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}.{% endfor %}" \
        ...                     "{% if add_generation_prompt %}a{% endif %}"
        >>> talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
        >>> ids, learned = encode_conversation(tok, talk)
        >>> tok.decode(ids), "".join(" ^"[told] for told in learned)
        ('uHi.aHo.', '     ^^^')
    """
    if train_on not in TRAIN_ON:
        raise ValueError(f"train_on is {train_on!r}; expected {', '.join(TRAIN_ON)}")
    unweighted = [
        {key: value for key, value in message.items() if key != "weight"} if isinstance(message, Mapping) else message
        for message in messages
    ]
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
                f"the chat template writes {len(spans)} {{% generation %}} blocks for {len(wanted)} answers, so it "
                "cannot be told which are those to learn"
            )
    else:
        spans = marked.find_answers(whole)
    ids, learned = [], []
    other = train_on == "all"
    end = 0
    for (begin, after), want in [*zip(spans, wanted, strict=True), ((len(whole), len(whole)), False)]:
        for start, stop, told in ((end, begin, other), (begin, after, want)):
            part = marked.encode(whole[start:stop], whole[:start])
            ids += part
            learned += [told] * len(part)
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
    """A request in which text that looks like a special token is broken by a marker; and rendered text, to ids."""

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
        said = "\n".join(strings)
        marker = next((mark for mark in _MARKERS if mark not in said and f"{ord(mark):04x}" not in said), None)
        if marker is None:
            raise ValueError("the messages hold all of the noncharacters U+FDD0 to U+FDEF; take one out")
        self.marker = marker
        # A marker after each character of such text tells it from the text of the template.
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
        """Return what the template makes of the marked request, once it is known to be the same but for markers."""
        rendered = self.request.render(self.marker)
        if self.marker and rendered.text.replace(self.marker, "") != self.unmarked.render().text:
            raise ValueError(
                "the messages hold the text of a special token, and the chat template acts on it, so it cannot be "
                "kept as ordinary text; take it out"
            )
        return rendered

    def find_answers(self, whole: str) -> list[tuple[int, int]]:
        """Return where each answer begins and ends in the text of the whole conversation."""

        def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
            variables = self.request.variables | {"add_generation_prompt": add_generation_prompt}
            changed = replace(self.request, messages=[dict(message) for message in messages], variables=variables)
            return changed.render(self.marker).text

        said = whole + "".join(_strings(self.request.messages))
        placeholder = next((mark for mark in _MARKERS if mark not in said and mark != self.marker), None)
        if placeholder is None:
            raise ValueError("the messages hold all of the noncharacters U+FDD0 to U+FDEF; take one out")
        tokens = "|".join(map(re.escape, sorted(self.tokenizer.added_tokens | self.tokenizer.special_tokens)[::-1]))
        pattern = re.compile(f"(?:{tokens})" + (f"(?!{self.marker})" if self.marker else "")) if tokens else None
        return AnswerFinder(self.request.messages, render, whole, placeholder, pattern).find()

    def encode(self, text: str, before: str = "") -> list[int]:
        """Return the ids of rendered text, or of a part of it and what came before."""
        if not self.marker and not before:
            return self.tokenizer.encode(text, allowed_special="all")
        return [token_id for part in self._encode_parts(text, before) for token_id in part[1]]

    def _encode_parts(self, text: str, before: str) -> Iterable[tuple[str, list[int]]]:
        """Yield special tokens and the text between them, each without markers and with its ids."""
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
        """Return the ids of rendered text, and which of them its answers hold."""
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
        """Return the ids of marked text and the characters of each, in the text without markers."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        place = 0
        for part, part_ids in self._encode_parts(text, ""):
            pieces = [self.tokenizer.id_to_bytes(token_id) for token_id in part_ids]
            data = part.encode()
            if b"".join(pieces) != data:
                raise ValueError("the messages hold the text of a special token, and this tokenizer rewrites text")
            # How many characters begin before each byte.
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
