"""One prompt of a `TextGenerator` while it runs: new ids become text, until a stop string ends it."""

from __future__ import annotations

from collections import abc
from typing import TYPE_CHECKING

from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.sampling.sequence import Sequence

if TYPE_CHECKING:
    from bpe_llama._core import DecodeStream
    from bpe_llama.tokenizer import Tokenizer


class TextRequest:
    """Decodes new ids that follow ``before``, and ends at a stop string."""

    def __init__(
        self,
        prompt: list[int],
        options: GenerationOptions,
        stops: tuple[str, ...],
        tokenizer: Tokenizer,
        skip_special_tokens: bool,
        before: abc.Sequence[int] = (),
    ) -> None:
        self.prompt = prompt
        self.options = options
        self.sequence: Sequence | None = None
        self.parts: list[str] = []
        self.done = False
        self._stops = stops
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._special = frozenset(tokenizer.special_tokens.values()) if skip_special_tokens else frozenset()
        self._before = self._with_text(before)[-1:]
        self._decoder = self._decoder_after(before)
        self._held = ""
        """Text that may become a stop string."""
        self._read = 0
        """New ids that are decoded."""
        self._early = 0
        """Characters of the held text that come from the first ``min_new_tokens`` tokens."""
        self._taken = 0

    def room(self, model: LlamaForCausalLM) -> int:
        """Return how many tokens its slot must hold."""
        return min(model.config.context_length, len(self.prompt) + self.options.max_new_tokens)

    def read(self, engine: Engine | None = None) -> None:
        """Decode new ids; abort the sequence in the engine if a stop string is complete."""
        if self.sequence is None or self.done:
            return
        text = self._held
        for count, new_id in enumerate(self.sequence.new_ids[self._read :], start=self._read + 1):
            if new_id not in self.sequence.eos_ids:
                text += self._text_of([new_id], self._decoder)
            if count <= self.options.min_new_tokens:
                self._early = len(text)
        self._read = len(self.sequence.new_ids)
        if self.sequence.finish_reason:
            text += self._decoder.flush()
        # A stop string counts only if it ends after the text of the first min_new_tokens tokens.
        places = (text.find(stop, max(self._early - len(stop) + 1, 0)) for stop in self._stops)
        found = [place for place in places if place >= 0]
        if found:
            text = text[: min(found)]
            if engine and not self.sequence.finish_reason:
                engine.abort(self.sequence)
            elif self.sequence.finish_reason == "length":  # the last token there was room for completed it
                self.sequence.finish_reason = "stop"
        self.done = bool(found or self.sequence.finish_reason)
        keep = 0 if self.done else _may_become_stop(text, self._stops)
        self._held = text[len(text) - keep :]
        text = text[: len(text) - keep]
        self._early = max(self._early - len(text), 0)
        if text:
            self.parts.append(text)

    def stopped(self, new_ids: list[int]) -> bool:
        """Return whether the last of some new ids completes a stop string."""
        if not self._stops or len(new_ids) <= self.options.min_new_tokens or new_ids[-1] in self._special:
            return False
        ids = self._with_text(new_ids)
        start = max(len(ids) - 4 * max(map(len, self._stops)), 0)  # 4 bytes of a character, 1 of a token
        decoder = self._decoder_after([*self._before, *ids[:start]][-1:])
        before, last = self._text_of(ids[start:-1], decoder), self._text_of(ids[-1:], decoder)
        return any(stop in before[max(len(before) - len(stop) + 1, 0) :] + last for stop in self._stops)

    def take(self) -> list[str]:
        """Return the pieces decoded since the last call."""
        pieces = self.parts[self._taken :]
        self._taken = len(self.parts)
        return pieces

    def _with_text(self, ids: abc.Sequence[int]) -> list[int]:
        """Return ids without special tokens that are left out of the text."""
        return [token_id for token_id in ids if token_id not in self._special]

    def _decoder_after(self, before: abc.Sequence[int]) -> DecodeStream:
        """Return a decoder for what follows some ids, so that it keeps its first space."""
        decoder = self._tokenizer.decode_stream(skip_special_tokens=self._skip)
        self._text_of(before, decoder)
        return decoder

    def _text_of(self, ids: abc.Sequence[int], decoder: DecodeStream) -> str:
        return "".join(decoder.push(token_id) for token_id in ids if has_token(self._tokenizer, token_id))


def _may_become_stop(text: str, stops: tuple[str, ...]) -> int:
    """Return how many characters at the end of ``text`` begin a stop string.

    Example:
        >>> _may_become_stop("so far <|e", ("<|end|>", "STOP"))
        3
    """
    longest = max(map(len, stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0


def has_token(tokenizer: Tokenizer, token_id: int) -> bool:
    """Return whether an id has a token: models have more ids than tokens, for their matrices to be of round sizes."""
    try:
        tokenizer.id_to_bytes(token_id)
    except KeyError:
        return False
    return True
