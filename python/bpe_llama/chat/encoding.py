"""Render messages with a chat template and encode the text, for generation and for fine-tuning."""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from bpe_llama._arguments import check_surrogates, iterator, string
from bpe_llama._core import shown
from bpe_llama.chat.answers import AnswerFinder
from bpe_llama.chat.provenance import own_text, untraced
from bpe_llama.chat.request import (
    TOKEN_VARIABLES,
    ChatRequest,
    ChatTokenizer,
    Message,
    prepare,
    prepare_for,
)

if TYPE_CHECKING:
    from bpe_llama.chat.renderer import Rendered

TRAIN_ON = ("assistant", "last", "all")
"""The tokens of a conversation to train on: all answers, the last one, or every token."""

# White space for `tokenizers`, to which Python adds four control characters.
_WHITE_SPACE = re.compile(r"[^\S\x1c-\x1f]*")


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
    named_tokens = {name: variables.pop(name) for name in TOKEN_VARIABLES & variables.keys()}
    request = prepare(
        string("template", template),
        named_tokens,
        messages,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
        documents=documents,
        continue_final_message=continue_final_message,
        **variables,
    )
    return untraced(request.render().text)


def render_for(tokenizer: ChatTokenizer, messages: Sequence[Message], **options: Any) -> str:
    """Return the text of `tokenizer.chat_template` applied to messages.

    Raises:
        ValueError: As of `render`; or if the tokenizer has no chat template.
    """
    return untraced(prepare_for(tokenizer, messages, **options).render().text)


def encode_chat(tokenizer: ChatTokenizer, messages: Sequence[Message], **options: Any) -> list[int]:
    """Return the ids of `tokenizer.chat_template` applied to messages; `options` are those of `render`.

    Only text of the template becomes a special token: no part of a message, a tool, a document or a variable does.

    Raises:
        ValueError: As of `render`; or if the template makes a special token from text of unknown origin.
    """
    encoder = _Encoder(tokenizer, prepare_for(tokenizer, messages, **options))
    return encoder.encode(encoder.render().text)


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
    encoder = _Encoder(tokenizer, request)
    return encoder.encode_answers(encoder.render())


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
    if string("train_on", train_on) not in TRAIN_ON:
        raise ValueError(f"train_on is {shown(train_on)}; expected {', '.join(TRAIN_ON)}")
    messages = list(iterator("messages", messages, "a list of mappings with a 'role'"))
    unweighted = [
        {key: value for key, value in message.items() if key != "weight"} if isinstance(message, Mapping) else message
        for message in messages
    ]
    options = {"tools": tools, "documents": documents, "chat_template": chat_template, **variables}
    request = prepare_for(tokenizer, unweighted, add_generation_prompt=False, **options)
    if request.continued is not None:
        raise ValueError("continue_final_message: a conversation is learned whole")
    encoder = _Encoder(tokenizer, request)
    rendered = encoder.render()
    whole = rendered.text
    wanted = _learned_answers(messages, train_on)
    if train_on == "all" and all(wanted):
        ids = encoder.encode(whole)
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
        spans = encoder.find_answers(whole)
    edges = [edge for span in spans for edge in span]
    ids, learned = [], []
    for part in encoder.parts(whole, edges):
        passed = bisect_right(edges, part.begin)
        ids += part.ids
        learned += [wanted[passed // 2] if passed % 2 else train_on == "all"] * len(part.ids)
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


class _Part(NamedTuple):
    """A part of a rendered text, a special token or text between two, and its ids.

    Attributes:
        begin: Where it begins, without the white space that a special token includes.
        start: Where it begins, with that.
        end: Where it ends, likewise.
        ids: Its ids.
    """

    begin: int
    start: int
    end: int
    ids: list[int]


class _Encoder:
    """Renders a request and encodes its text: only text of the template becomes a special token."""

    def __init__(self, tokenizer: ChatTokenizer, request: ChatRequest) -> None:
        self.tokenizer = tokenizer
        self.request = request
        special = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self.special = _any_of(special)
        self.filler = _unused("".join(special))

    def render(self) -> Rendered:
        """Return the rendered request.

        Raises:
            ValueError: If its text holds a lone surrogate, or a special token in it a character of unknown origin.
        """
        rendered = self.request.render()
        text = rendered.text
        check_surrogates("the text that the chat_template wrote", text)
        own = {found.span() for found in self.special.finditer(own_text(text, self.filler))}
        for found in self.special.finditer(own_text(text, self.filler, unknown=True)):
            if found.span() not in own:
                raise ValueError(
                    f"the chat template makes the special token {found[0]!r} from text of unknown origin, such as a "
                    "role of another name, a number or a formatted text; only its own text may become a special token"
                )
        return rendered

    def find_answers(self, whole: str) -> list[tuple[int, int]]:
        """Return the begin and end of each answer in the text of the whole conversation."""

        def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
            variables = self.request.variables | {"add_generation_prompt": add_generation_prompt}
            changed = replace(self.request, messages=[dict(message) for message in messages], variables=variables)
            return changed.render().text

        def find_tokens(text: str) -> Iterable[re.Match[str]]:
            return tokens.finditer(own_text(text, self.filler))

        placeholder = _unused(whole + "".join(_strings(self.request.messages)))
        tokens = _any_of(sorted(self.tokenizer.added_tokens | self.tokenizer.special_tokens, reverse=True))
        return AnswerFinder(self.request.messages, render, whole, placeholder, find_tokens).find()

    def encode(self, text: str) -> list[int]:
        """Return the ids of rendered text."""
        if self._is_own(text):
            ids = self.tokenizer.encode(untraced(text), allowed_special="all")
            if self._are_own(ids, text):
                return ids
        return [token_id for part in self.parts(text) for token_id in part.ids]

    def _is_own(self, text: str) -> bool:
        """Return whether all special tokens in a text are the template's own."""
        own = self.special.finditer(own_text(text, self.filler))
        return [found.span() for found in own] == [found.span() for found in self.special.finditer(text)]

    def _are_own(self, ids: list[int], text: str) -> bool:
        """Return whether the special tokens among the ids of a text are those that it spells as its own.

        A normalizer can spell another: of lower case, for a message in capitals.
        """
        if not self.tokenizer.normalizes_added_tokens:
            return True
        special = self.tokenizer.special_tokens
        known = set(special.values())
        found = [token_id for token_id in ids if token_id in known]
        return found == [special[own[0]] for own in self.special.finditer(own_text(text, self.filler))]

    def parts(self, text: str, edges: Sequence[int] = ()) -> Iterator[_Part]:
        """Yield the template's special tokens, and the text between them from one of the sorted ``edges`` to the next.

        A special token includes the white space that its flags name, also beyond an edge.
        """
        plain = untraced(text)
        done = 0
        for token in (*self._own_tokens(text), _Part(len(plain), len(plain), len(plain), [])):
            within = edges[bisect_right(edges, done) : bisect_left(edges, token.start)]
            for start, end in pairwise((done, *within, token.start)):
                if start < end:
                    before = None if start == done > 0 else plain[done:start]  # None after a special token
                    yield _Part(start, start, end, self.tokenizer.encode_following(plain[start:end], before))
            yield token
            done = token.end

    def _own_tokens(self, text: str) -> Iterator[_Part]:
        """Yield the template's special tokens in a text, by the rules of `Matcher::split` in rust/bpe/src/special."""
        plain = untraced(text)
        flags = _by_content(self.tokenizer.added_tokens_json())
        done = 0
        for found in self.special.finditer(own_text(text, self.filler)):
            content, token = found[0], flags[found[0]]
            start, end = found.span()
            if token["single_word"]:
                around = plain[max(start - 1, 0) : end + 1]
                if token["id"] not in self.tokenizer.encode(around, allowed_special=[content]):
                    continue
            if token["lstrip"]:
                start = max(start, done) - _white_space(plain[done:start][::-1])
            if token["rstrip"]:
                end = max(end, done) + _white_space(plain, max(end, done))
            if start < end:
                yield _Part(found.start(), start, end, [token["id"]])
            done = end

    def encode_answers(self, rendered: Rendered) -> EncodedChat:
        """Return the ids of rendered text, and the mask of the ids in its answers."""
        text = rendered.text
        is_answer = bytearray(len(text) + 1)
        for begin, end in rendered.find_answers():
            is_answer[begin:end] = b"\1" * (end - begin)
        found = None
        if self._is_own(text):
            found = self.tokenizer.encode_with_offsets(untraced(text), allowed_special="all")
        if found is None or not self._are_own(found[0], text):
            found = self._encode_with_offsets(text)
        ids, offsets = found
        return EncodedChat(ids, [is_answer.find(1, start, max(end, start + 1)) >= 0 for start, end in offsets])

    def _encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of text and their character ranges."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for part in self.parts(text):
            ids += part.ids
            if len(part.ids) == 1:
                offsets.append((part.start, part.end))
                continue
            pieces = [self.tokenizer.id_to_bytes(token_id) for token_id in part.ids]
            data = untraced(text[part.start : part.end]).encode()
            if b"".join(pieces) != data:
                raise ValueError("the messages hold the text of a special token, and this tokenizer rewrites text")
            # The number of characters that begin before each byte.
            begun = list(accumulate((byte & 0xC0 != 0x80 for byte in data), initial=part.start))
            ends = list(accumulate(map(len, pieces)))
            offsets += [(begun[a + 1] - 1, begun[b]) for a, b in zip([0, *ends], ends, strict=False)]
        return ids, offsets


@lru_cache(maxsize=4)
def _by_content(added_tokens: str) -> Mapping[str, dict[str, Any]]:
    """Return the added tokens of `added_tokens_json` by content."""
    return {token["content"]: token for token in json.loads(added_tokens)}


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


def _white_space(text: str, start: int = 0) -> int:
    """Return the number of characters of white space from ``start`` on."""
    return len(_WHITE_SPACE.match(text, start)[0])  # type: ignore[index]


def _any_of(texts: list[str]) -> re.Pattern[str]:
    """Return a pattern that matches the first of these texts that is found at a place; none matches nothing."""
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")


def _unused(text: str) -> str:
    """Return a character that a text does not hold: a noncharacter of Unicode, if it holds not all of them."""
    return next(mark for mark in map(chr, chain(range(0xFDD0, 0xFDF0), range(0xF0000, 0x110000))) if mark not in text)
