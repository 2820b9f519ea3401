"""Where in a rendered conversation its answers stand: what fine-tuning learns."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Span = tuple[int, int]
_HALF_A_MARK = re.compile(r"(<[^<>]*|\[[^\[\]]*)$")
Render = Callable[[Sequence[Mapping[str, Any]], bool], str]


class AnswerFinder:
    """Finds the answers in the text of a whole conversation, by rendering it again, in parts and changed.

    Args:
        messages: As the template reads them.
        render: Returns the text of messages, with a generation prompt or without.
        whole: The text of all messages.
        stand_in: A character that occurs in no text.
        tokens: What matches a token that is not to be cut, if there are such.
    """

    def __init__(
        self,
        messages: Sequence[Mapping[str, Any]],
        render: Render,
        whole: str,
        stand_in: str,
        tokens: re.Pattern[str] | None,
    ) -> None:
        self.messages, self.render, self.whole = messages, render, whole
        self.stand_in, self.tokens = stand_in, tokens

    def find(self) -> list[Span]:
        """Return where each of the assistant's messages begins and ends, its closing token included.

        Raises:
            ValueError: If that cannot be told of one.
        """
        spans: list[Span] = []
        for place, message in enumerate(self.messages):
            if message["role"] == "assistant":
                previous = spans[-1][1] if spans else 0
                span = self._continued(place) or self._replaced(place, previous)
                if span is None or not previous <= span[0] <= span[1]:
                    raise ValueError(
                        f"message {place}: the chat template does not write the answer right after its generation "
                        "prompt, so it cannot be told which tokens are the answer's"
                    )
                spans.append(span)
        return spans

    def _continued(self, place: int) -> Span | None:
        """Return what follows the generation prompt, if a conversation continues the text of its beginning."""
        prompt = self.render(self.messages[:place], True)
        answered = self.render(self.messages[: place + 1], False)
        if self.whole.startswith(answered) and answered.startswith(prompt):
            return len(prompt), len(answered)
        return None

    def _replaced(self, place: int, previous: int) -> Span | None:
        """Return what another answer in its place would change, from the end of its header to its closing token.

        Templates that take the reasoning out of earlier answers, whose generation prompt opens a block of it, or that
        write the system's message before the last question, do not continue the text of a beginning.
        """
        before, other = self.messages[:place], self._other(place)
        alone = self.render([*before, other], False)
        replaced = self.render([*before, other, *self.messages[place + 1 :]], False)
        if alone.count(self.stand_in) != 1 or replaced.count(self.stand_in) != 1:
            return None
        changed, end = self._difference(self.whole, replaced)
        closed = alone[alone.index(self.stand_in) + 1 :]
        closing = _common(self.whole[end:], closed)
        if closing != closed:  # the next message begins; not with half of its header's mark, be that a token or not
            closing = _HALF_A_MARK.sub("", closing)
        end = max(end, self._token_start(self.whole, end + len(closing)))
        begin = self._header_end(place, alone, replaced, previous, changed)
        return None if begin is None else (begin, end)

    def _header_end(self, place: int, alone: str, replaced: str, previous: int, changed: int) -> int | None:
        """Return where the header of an answer ends: what the generation prompt and any answer begin with.

        Args:
            place: Of the answer.
            alone: The text up to another answer in its place.
            replaced: The whole text with it.
            previous: Where the answer before ends.
            changed: Where it changes the text.
        """
        bare, prompt = (self.render(self.messages[:place], prompted) for prompted in (False, True))
        if not alone.startswith(bare):  # what is no prompt may be closed by an end-of-text token
            bare = self._without_last_token(bare)
        if alone.startswith(bare):
            opened = prompt[len(bare) :] if prompt.startswith(bare) else ""
            header = opened[: self._token_start(opened, len(_common(opened, alone[len(bare) :])))]
            if not header and self.whole.startswith(bare):
                return len(bare)
            found = self.whole.rfind(header, previous, changed) if header else -1
            return found + len(header) if found >= 0 else self._token_start(self.whole, changed)
        if place == 0:
            return None
        # Text before has changed as well. The header then is what follows the message before, here as in the prompt.
        asked = [*self.messages[: place - 1], self._other(place - 1)]
        _, after = self._difference(prompt, self.render(asked, True))
        asked = [*asked, *self.messages[place:]]
        _, here = self._difference(self.whole, self.render(asked, False))
        header = _common(prompt[after:], replaced[here : replaced.index(self.stand_in)])
        return here + self._token_start(header, len(header)) if header else None

    def _other(self, place: int) -> dict[str, Any]:
        """Return a message of the same role that says something else."""
        return {"role": self.messages[place]["role"], "content": self.stand_in}

    @staticmethod
    def _difference(text: str, other: str) -> Span:
        """Return the part of a text between what another one begins with, too, and what it ends with."""
        begin = len(_common(text, other))
        return begin, len(text) - len(_common(text[begin:][::-1], other[begin:][::-1]))

    def _without_last_token(self, text: str) -> str:
        """Return a text without the token that it ends in, if it does."""
        ends = [
            match.start() for match in (self.tokens.finditer(text) if self.tokens else ()) if match.end() == len(text)
        ]
        return text[: ends[0]] if ends else text

    def _token_start(self, text: str, place: int) -> int:
        """Return a place in a text, or the beginning of the token that it would cut."""
        for match in self.tokens.finditer(text) if self.tokens else ():
            if match.start() < place < match.end():
                return match.start()
        return place


def _common(one: str, other: str) -> str:
    """Return what two texts begin with."""
    return os.path.commonprefix([one, other])  # noqa: RUF071, of characters
