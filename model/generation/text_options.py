"""Options that may hold text, as the ids that `GenerationOptions` takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bpe_llama._arguments import boolean, check_surrogates, iterator, keywords_of
from bpe_llama._arguments import check_keywords as check_names
from bpe_llama._core import shown
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.generation.prompts import whole_ids
from bpe_llama.model.generation.structured import STRUCTURED, Grammars
from bpe_llama.model.sampling.checks import check_number, sequences_of_ids
from bpe_llama.model.sampling.keywords import TextAndSearchKeywords

if TYPE_CHECKING:
    from bpe_llama.tokenizer import Tokenizer

_KEYWORDS = keywords_of(TextAndSearchKeywords)
OF_TEXT = ("stop", "bos", "allowed_special", "reuse", "skip_special_tokens")
"""Options of text that no sequence of ids has."""
DRY_BREAKERS = ("\n", ":", '"', "*")
"""DRY's default sequence breakers, those of llama.cpp."""


def check_keywords(options: Mapping[str, Any]) -> None:
    """Raise for a keyword that `TextGenerator` does not have, or one that is no bool."""
    if "n" in options:
        raise ValueError(f"n is {shown(options['n'])}, but a stream is one answer; generate and generate_batch take it")
    check_names("generate", options, _KEYWORDS)
    for name in ("bos", "reuse", "skip_special_tokens"):
        if options.get(name) is not None:
            boolean(name, options[name], "True, False or None")


def check_prompt(ids: Sequence[int], name: str, config: LlamaConfig, tokenizer: Tokenizer) -> None:
    """Raise `ValueError` for a prompt that leaves no room, or as `check_known`."""
    if len(ids) >= config.context_length:
        raise ValueError(f"{name} has {len(ids)} ids, which leaves no room in a context of {config.context_length}")
    check_known(ids, name, config.vocab_size, tokenizer)


def check_known(ids: Sequence[int], name: str, size: int, tokenizer: Tokenizer) -> None:
    """Raise `ValueError` for an id outside the model's vocabulary, such as an added token's.

    Args:
        ids: Ids.
        name: What the message calls them.
        size: The model's vocab_size.
        tokenizer: Its names of tokens.
    """
    low, high = min(ids, default=0), max(ids, default=0)
    if size <= high < tokenizer.vocab_size:
        token = tokenizer.id_to_token(high)
        raise ValueError(f"{name} holds {shown(token)}, whose id {high} is beyond the model's {size:,}")
    if low < 0 or high >= size:
        raise ValueError(f"{name} has input id {low if low < 0 else high}, outside the vocabulary of {size}")


def stop_strings(stop: Iterable[str] | str) -> tuple[str, ...]:
    """Return one stop string or several as a tuple.

    Raises:
        TypeError: If one is no string.
        ValueError: If one is empty or has a lone surrogate.
    """
    stops = tuple(stop) if isinstance(stop, Iterable) and not isinstance(stop, str) else (stop,)
    if not all(isinstance(each, str) for each in stops):
        raise TypeError(f"stop is {shown(stop)}; expected a string or several")
    for each in stops:
        check_surrogates("stop", each)
    if "" in stops:
        raise ValueError("a stop string is empty; it would end every text before it begins")
    return stops


class TextOptions:
    """Converts bad words, sequence breakers and grammars of one tokenizer, for a model with ``vocab_size`` ids."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self._grammars = Grammars(tokenizer, vocab_size)
        self._token_bytes: list[bytes] | None = None

    def to_ids(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options with ids in place of text in ``bad_words``, ``dry_sequence_breakers`` and grammars.

        Raises:
            TypeError: If ``bad_words`` is a string itself, or a grammar of another type than documented.
            ValueError: If a string is empty, or a grammar not valid.
        """
        constraint = self._grammars.constraint(options)
        options = {name: value for name, value in options.items() if name not in STRUCTURED}
        if constraint is not None:
            options["constraint"] = constraint
        if options.get("bad_words") is not None:
            if isinstance(options["bad_words"], str):
                raise TypeError(f"bad_words is {shown(options['bad_words'])}; expected a list of words")
            iterator("bad_words", options["bad_words"], "a list of words, or of sequences of ids")
            options["bad_words"] = self._sequences("bad_words", options["bad_words"], self._ids_of_word)
        check_number("dry_multiplier", options.get("dry_multiplier", 0.0), 0, math.inf)
        if options.get("dry_multiplier"):
            given = options.get("dry_sequence_breakers")
            given = DRY_BREAKERS if given is None else (given,) if isinstance(given, str) else given
            iterator("dry_sequence_breakers", given, "strings, or sequences of ids")
            options["dry_sequence_breakers"] = self._sequences("dry_sequence_breakers", given, self._ids_containing)
        return options

    def _sequences(self, name: str, given: Iterable[Any], of_text: Callable[[str], list[list[int]]]) -> list[list[int]]:
        """Return the ids of texts, and sequences of ids as they are, each checked before the next is taken."""
        found: list[list[int]] = []
        for part in given:
            if isinstance(part, str):
                check_surrogates(name, part)
                found += of_text(part)
            else:
                found += map(list, sequences_of_ids(name, [part]))
        return found

    def _ids_of_word(self, word: str) -> list[list[int]]:
        """Return the ids of a word at the beginning of a text and, if they differ, those after a space.

        Source: ``update_from_tokenizer`` of vLLM's sampling params.
        """
        if not word.strip():
            raise ValueError(f"bad_words holds {shown(word)}; expected words")
        first, within = (whole_ids(self.tokenizer.encode(space + word.lstrip())) for space in ("", " "))
        return [first, within] if within[0] != first[0] and len(within) == len(first) else [first]

    def _ids_containing(self, text: str) -> list[list[int]]:
        """Return the ids whose text contains a string, each as a sequence, and the ids of the string itself."""
        if not text:
            raise ValueError("dry_sequence_breakers holds an empty string; it would let no repetition begin")
        wanted = text.encode()
        if self._token_bytes is None:
            self._token_bytes = [self._bytes_of(token_id) for token_id in range(self.tokenizer.vocab_size)]
        containing = [[token_id] for token_id, piece in enumerate(self._token_bytes) if wanted in piece]
        encoded = whole_ids(self.tokenizer.encode(text))
        return containing if len(encoded) == 1 else [*containing, encoded]

    def _bytes_of(self, token_id: int) -> bytes:
        """Return the bytes of a token; none where an id has no token."""
        try:
            return bytes(self.tokenizer.decode_bytes([token_id]))
        except KeyError:
            return b""
