"""Encode the text of a rendered chat template: only text of the template becomes a special token."""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from bpe_llama._arguments import check_surrogates
from bpe_llama.chat.answers import AnswerFinder
from bpe_llama.chat.provenance import own_text, untraced
from bpe_llama.chat.request import ChatRequest, ChatTokenizer, Message

if TYPE_CHECKING:
    from bpe_llama.chat.renderer import Rendered

# White space for `tokenizers`, to which Python adds four control characters.
_WHITE_SPACE = re.compile(r"[^\S\x1c-\x1f]*")


class EncodedChat(NamedTuple):
    """The ids of a conversation, and the mask of the ids that ``{% generation %}`` blocks wrote."""

    ids: list[int]
    is_answer: list[bool]


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


class Encoder:
    """Renders a request and encodes its text: only text of the template becomes a special token."""

    def __init__(self, tokenizer: ChatTokenizer, request: ChatRequest) -> None:
        """Prepare for one request of a tokenizer."""
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
