"""Find the assistant's answers in a rendered conversation, to train on them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bpe_llama.chat.provenance import GIVEN, traced, untraced

Span = tuple[int, int]
_OPEN_BRACKET = re.compile(r"(<[^<>]*|\[[^\[\]]*)$")
Render = Callable[[Sequence[Mapping[str, Any]], bool], str]


class AnswerFinder:
    """Finds the answers in the text of a conversation by comparing it with other renderings.

    `_continued` renders prefixes of the conversation. This fails if the text of a prefix is no prefix of the text: a
    template may remove the reasoning from all answers but the last. Then `_replaced` renders the conversation with a
    placeholder in place of the answer.

    Args:
        messages: The messages for the template.
        render: Returns the text of messages, with the generation prompt if its second argument is true.
        whole: The text of all messages.
        placeholder: A character that occurs in none of the texts.
        find_tokens: Finds the added and special tokens of the template in a text; they are never split.
    """

    def __init__(
        self,
        messages: Sequence[Mapping[str, Any]],
        render: Render,
        whole: str,
        placeholder: str,
        find_tokens: Callable[[str], Iterable[re.Match[str]]],
    ) -> None:
        self.messages, self.render, self.whole = messages, render, whole
        self.placeholder, self.find_tokens = placeholder, find_tokens

    def find(self) -> list[Span]:
        """Return the begin and end of each answer in the text, its closing token included.

        Raises:
            ValueError: If an answer is not found; the message names its index.
        """
        spans: list[Span] = []
        for place, message in enumerate(self.messages):
            if message["role"] == "assistant":
                previous = spans[-1][1] if spans else 0
                span = self._continued(place) or self._replaced(place, previous)
                if span is None or not previous <= span[0] <= span[1]:
                    raise ValueError(
                        f"message {place}: the chat template does not write the answer right after its generation "
                        "prompt, so the answer's tokens are unknown"
                    )
                spans.append(span)
        return spans

    def _continued(self, place: int) -> Span | None:
        """Return the span after the generation prompt, or None unless the text begins with prompt and answer."""
        before, prompt = self._asked(place)
        if len(before) > place:
            return None
        is_last = place + 1 == len(self.messages)
        answered = self.whole if is_last else self.render(self.messages[: place + 1], False)
        if self.whole.startswith(answered) and answered.startswith(prompt):
            return len(prompt), len(answered)
        return None

    def _replaced(self, place: int, previous: int) -> Span | None:
        """Return the span that changes with the answer, from the end of its header to its closing token.

        For templates that remove the reasoning from earlier answers, open a block of reasoning in the generation
        prompt, or write the system message before the last question.
        """
        (before, prompt), other = self._asked(place), self._placeholder_message(place)
        alone = self.render([*before, other], False)
        replaced = self.render([*self.messages[:place], other, *self.messages[place + 1 :]], False)
        if alone.count(self.placeholder) != 1 or replaced.count(self.placeholder) != 1:
            return None
        changed, end = self._difference(self.whole, replaced)
        closed = alone[alone.index(self.placeholder) + 1 :]
        closing = common_prefix(self.whole[end:], closed)
        if closing != closed:  # the headers of the next messages differ, but may share an opening bracket
            closing = _OPEN_BRACKET.sub("", closing)
        end = max(end, self._token_start(self.whole, end + len(closing)))
        bare = self.render(before, False)
        begin = self._header_end(place, bare, prompt, alone, replaced, previous, changed)
        return None if begin is None else (begin, end)

    def _asked(self, place: int) -> tuple[Sequence[Mapping[str, Any]], str]:
        """Return the messages before an answer, and their text with the generation prompt.

        A question is added where the template does not render them alone: it reads the first message, as Llama 3's,
        or requires a user's.
        """
        before = self.messages[:place]
        try:
            return before, self.render(before, True)
        except ValueError:
            before = [*before, {"role": "user", "content": "?"}]
            return before, self.render(before, True)

    def _header_end(
        self, place: int, bare: str, prompt: str, alone: str, replaced: str, previous: int, changed: int
    ) -> int | None:
        """Return the end of an answer's header: the common prefix of the generation prompt and any answer.

        Args:
            place: The index of the answer's message.
            bare: The text before the placeholder's message.
            prompt: ``bare`` with the generation prompt.
            alone: The text up to the placeholder's message.
            replaced: The whole text with the placeholder's message.
            previous: The end of the answer before.
            changed: The first difference between the whole text and ``replaced``.
        """
        if not alone.startswith(bare):  # without a generation prompt, some templates add an end-of-text token
            bare = self._without_last_token(bare)
        if alone.startswith(bare):
            opened = prompt[len(bare) :] if prompt.startswith(bare) else ""
            header = opened[: self._token_start(opened, len(common_prefix(opened, alone[len(bare) :])))]
            if not header and self.whole.startswith(bare):
                return len(bare)
            found = self.whole.rfind(header, previous, changed) if header else -1
            return found + len(header) if found >= 0 else self._token_start(self.whole, changed)
        if place == 0:
            return None
        # The text before the answer changed, too. So the header follows the message before the answer.
        asked = [*self.messages[: place - 1], self._placeholder_message(place - 1)]
        _, after = self._difference(prompt, self.render(asked, True))
        asked = [*asked, *self.messages[place:]]
        _, here = self._difference(self.whole, self.render(asked, False))
        header = common_prefix(prompt[after:], replaced[here : replaced.index(self.placeholder)])
        return here + self._token_start(header, len(header)) if header else None

    def _placeholder_message(self, place: int) -> dict[str, Any]:
        """Return a message of the same role with the placeholder as content."""
        return {"role": self.messages[place]["role"], "content": traced(self.placeholder, GIVEN)}

    @staticmethod
    def _difference(text: str, other: str) -> Span:
        """Return the span of a text between its common prefix and common suffix with another one."""
        text, other = untraced(text), untraced(other)
        begin = len(common_prefix(text, other))
        return begin, len(text) - len(common_prefix(text[begin:][::-1], other[begin:][::-1]))

    def _without_last_token(self, text: str) -> str:
        """Return a text without the token at its end, if any."""
        ends = [match.start() for match in self.find_tokens(text) if match.end() == len(text)]
        return text[: ends[0]] if ends else text

    def _token_start(self, text: str, place: int) -> int:
        """Return ``place``, or the start of the token that it would split."""
        for match in self.find_tokens(text):
            if match.start() < place < match.end():
                return match.start()
        return place


def common_prefix(one: str, other: str) -> str:
    """Return the longest common prefix of two texts, by bisection: `os.path.commonprefix` loops in Python."""
    one, other = untraced(one), untraced(other)
    low, high = 0, min(len(one), len(other)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return one[:low]
