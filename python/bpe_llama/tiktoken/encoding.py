"""`Encoding`, the class of `tiktoken.Encoding`'s methods, and the encodings that have been made by name."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from bpe_llama._arguments import string
from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._core import shown, split_pieces
from bpe_llama._loading.published.vocabularies import PUBLISHED, nearest
from bpe_llama._loading.tiktoken import read_published
from bpe_llama.tiktoken.arguments import (
    check_sequence,
    checked_specials,
    listed,
    refuse_large,
    thread_count,
)
from bpe_llama.tiktoken.unstable import encode_with_unstable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

_NAMES = ["gpt2", "r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base", "o200k_harmony"]
_REGISTERED: dict[str, Encoding] = {}
_lock = threading.RLock()
_NOTHING: frozenset[str] = frozenset()


class Encoding:
    r"""A vocabulary with tiktoken's methods: text to ids and back.

    Where a method takes ``allowed_special`` and ``disallowed_special``, the first is a set of special tokens that the
    text may contain, or ``"all"``; the second is a collection of strings that raise if the text holds them, or
    ``"all"`` for the special tokens that are not allowed. What is in neither is encoded as ordinary text.

    Safe to share between threads. Encodings of `get_encoding` are pickled by name, others by value.

    Args:
        name: Any name.
        pat_str: The regex, in the syntax of ``fancy-regex``, whose matches are encoded one by one. Text between matches
            is dropped.
        mergeable_ranks: Token bytes to id; the lowest is merged first.
        special_tokens: Special tokens to id.
        explicit_n_vocab: If given, checked to be the number of all tokens and the largest id plus one.

    Raises:
        AssertionError: If ``explicit_n_vocab`` does not fit.
        OverflowError: If an id is negative or does not fit into 32 bits.
        ValueError: If ``pat_str`` is no regex, there are no ranks, two tokens share an id, a token is empty, or an id
            is not below 2^21.

    Examples:
        >>> ranks = {bytes([byte]): byte for byte in range(256)} | {b"lo": 256, b"low": 257}
        >>> enc = Encoding("small", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 258})
        >>> enc.encode("low<|endoftext|>", allowed_special="all")
        [257, 258]
        >>> enc.decode_with_offsets([257, 258])
        ('low<|endoftext|>', [0, 3])
    """

    def __init__(
        self,
        name: str,
        *,
        pat_str: str,
        mergeable_ranks: dict[bytes, int],
        special_tokens: dict[str, int],
        explicit_n_vocab: int | None = None,
    ) -> None:
        self.name = name
        self._pat_str = string("pat_str", pat_str)
        self._mergeable_ranks = mergeable_ranks
        self._special_tokens = special_tokens
        ids = (*mergeable_ranks.values(), *special_tokens.values())
        self.max_token_value = max(max(mergeable_ranks.values()), max(special_tokens.values(), default=0))
        if not 0 <= min(ids) <= self.max_token_value < 2**32:
            raise OverflowError(f"the ids go from {min(ids)} to {self.max_token_value}; expected 0 to {2**32 - 1}")
        if explicit_n_vocab and not len(ids) == explicit_n_vocab == self.max_token_value + 1:
            raise AssertionError(
                f"explicit_n_vocab is {explicit_n_vocab}, but there are {len(ids)} tokens, with ids up to "
                f"{self.max_token_value}"
            )
        self._core = CoreTokenizer.build_from_ranks(
            mergeable_ranks, f"(?#matches){pat_str}", list(special_tokens.items())
        )
        self._is_shared = False

    @classmethod
    def of_tokenizer(cls, name: str, core: CoreTokenizer) -> Self:
        """Return an encoding that encodes by a tokenizer; used by `bpe_llama.Tokenizer.as_tiktoken`."""
        encoding = cls.__new__(cls)
        encoding.name = name
        published = {known.pattern: known.regex for known in PUBLISHED.values()}
        encoding._pat_str = published.get(core.pattern_name or "", core.pattern)
        encoding._special_tokens = core.special_tokens
        encoding.max_token_value = core.vocab_size - 1
        encoding._core = core
        encoding._is_shared = True
        return encoding

    @cached_property
    def _mergeable_ranks(self) -> dict[bytes, int]:
        return self._core.mergeable_ranks

    def __repr__(self) -> str:
        return f"<Encoding {self.name!r}>"

    # -- text to ids ---------------------------------------------------------------------------------------------------

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of a text in which nothing is special."""
        return self._core.encode_ordinary(text)

    def encode(
        self,
        text: str,
        *,
        allowed_special: Literal["all"] | AbstractSet[str] = _NOTHING,
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> list[int]:
        """Return the ids of a text. Surrogate pairs become their character, lone surrogates U+FFFD.

        Raises:
            ValueError: If the text holds a string of ``disallowed_special``.
            TypeError: If ``text`` is no str, or ``allowed_special`` neither a set nor ``"all"``.
        """
        if allowed_special is _NOTHING and disallowed_special == "all":
            return self._core.encode(text, disallowed_special="all")  # the usual call, without the cost of the checks
        options = checked_specials(self.special_tokens_set, allowed_special, disallowed_special)
        return self._core.encode(text, **options)

    def encode_to_numpy(
        self,
        text: str,
        *,
        allowed_special: Literal["all"] | AbstractSet[str] = _NOTHING,
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> NDArray[np.uint32]:
        """Return the ids of a text as an array of shape (n,), uint32.

        Raises:
            UnicodeEncodeError: If the text holds surrogates.
            ValueError: As `encode`, as for TypeError.
        """
        options = checked_specials(self.special_tokens_set, allowed_special, disallowed_special)
        ids = self._core.encode_to_numpy(text, **options)
        if not text.isascii():
            text.encode()  # raises for surrogates
        return ids

    def encode_ordinary_batch(self, text: list[str], *, num_threads: int = 8) -> list[list[int]]:
        """Return the ids of each text, in which nothing is special.

        Args:
            text: The texts.
            num_threads: How many threads encode; no more than there are processors.
        """
        return self._core.encode_batch(listed("text", text, "a list of str"), thread_count(num_threads))

    def encode_batch(
        self,
        text: list[str],
        *,
        num_threads: int = 8,
        allowed_special: Literal["all"] | AbstractSet[str] = _NOTHING,
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> list[list[int]]:
        """Return the ids of each text, as `encode` does; for ``num_threads`` see `encode_ordinary_batch`."""
        texts = listed("text", text, "a list of str")
        options = checked_specials(self.special_tokens_set, allowed_special, disallowed_special)
        return self._core.encode_batch(texts, thread_count(num_threads), **options)

    def encode_with_unstable(
        self,
        text: str,
        *,
        allowed_special: Literal["all"] | AbstractSet[str] = _NOTHING,
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> tuple[list[int], list[list[int]]]:
        """Return the ids that do not change when text follows, and the ways in which ids can go on from there.

        Each way begins with the rest of the text; together they are all that the vocabulary allows, as far as tiktoken
        tries: see `bpe_llama.tiktoken.unstable`.

        Raises:
            UnicodeEncodeError: If the text holds surrogates.
            ValueError: As `encode`, as for TypeError.
        """
        options = checked_specials(self.special_tokens_set, allowed_special, disallowed_special)
        ids = self._core.encode(text, **options)
        text.encode()  # raises for surrogates
        return encode_with_unstable(self._core, self._mergeable_ranks, self._sorted_tokens, text, ids, options)

    def encode_single_token(self, text_or_bytes: str | bytes) -> int:
        """Return the id of a token, special or not.

        Raises:
            KeyError: If there is no such token.
        """
        token = text_or_bytes.encode() if isinstance(text_or_bytes, str) else text_or_bytes
        found = self._core.token_to_id(token)
        if found is None:
            raise KeyError(token)
        return found

    # -- ids to text ---------------------------------------------------------------------------------------------------

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """Return the bytes of ids.

        Raises:
            KeyError: If no token has an id.
            OverflowError: If an id is negative or does not fit into 32 bits.
        """
        check_sequence(tokens)
        try:
            return self._core.decode_bytes(tokens)
        except KeyError:
            refuse_large(tokens)
            raise

    def decode(self, tokens: Sequence[int], errors: str = "replace") -> str:
        """Return the text of ids; ``errors`` says what becomes of bytes that are no UTF-8, as in `bytes.decode`.

        Raises:
            UnicodeDecodeError: With ``errors="strict"``, for such bytes.
            KeyError: As `decode_bytes`, as for OverflowError.
        """
        check_sequence(tokens)
        try:
            if string("errors", errors) in ("replace", "strict", "ignore"):
                return self._core.decode(tokens, errors)
            return self._core.decode_bytes(tokens).decode(errors=errors)  # an unknown name counts only where it is used
        except KeyError:
            refuse_large(tokens)
            raise

    def decode_single_token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token, special or not; raises as `decode_bytes`."""
        try:
            return self._core.id_to_bytes(token)
        except KeyError:
            refuse_large([token])
            raise

    def decode_tokens_bytes(self, tokens: Iterable[int]) -> list[bytes]:
        """Return the bytes of each token; raises as `decode_bytes`."""
        return [self.decode_single_token_bytes(token) for token in listed("tokens", tokens, "ids")]

    def decode_with_offsets(self, tokens: Iterable[int]) -> tuple[str, list[int]]:
        """Return the text of ids, and the character in it with which each token begins.

        A token that begins inside a character has the offset of that character.

        Raises:
            UnicodeDecodeError: If the bytes are no UTF-8.
            KeyError: As `decode_bytes`, as for OverflowError.
        """
        pieces = self.decode_tokens_bytes(tokens)
        offsets = []
        begun = 0  # characters that begin before the token
        for piece in pieces:
            continues = [0x80 <= byte < 0xC0 for byte in piece]
            offsets.append(max(0, begun - 1) if continues[0] else begun)
            begun += continues.count(False)
        return b"".join(pieces).decode(), offsets

    def decode_batch(
        self, batch: Sequence[Sequence[int]], *, errors: str = "replace", num_threads: int = 8
    ) -> list[str]:
        """Return the text of each row of ids, as `decode` does. One thread decodes, faster than several would."""
        thread_count(num_threads)
        return [self.decode(row, errors) for row in listed("batch", batch, "rows of ids")]

    def decode_bytes_batch(self, batch: Sequence[Sequence[int]], *, num_threads: int = 8) -> list[bytes]:
        """Return the bytes of each row of ids, as `decode_bytes` does; for ``num_threads`` see `decode_batch`."""
        thread_count(num_threads)
        return [self.decode_bytes(row) for row in listed("batch", batch, "rows of ids")]

    # -- the vocabulary ------------------------------------------------------------------------------------------------

    def token_byte_values(self) -> list[bytes]:
        """Return the bytes of each token that is not special, sorted."""
        return list(self._sorted_tokens)

    @cached_property
    def _sorted_tokens(self) -> list[bytes]:
        return sorted(self._mergeable_ranks)

    @property
    def eot_token(self) -> int:
        """The id of ``<|endoftext|>``; `KeyError` if there is no such token."""
        return self._special_tokens["<|endoftext|>"]

    @cached_property
    def special_tokens_set(self) -> set[str]:
        """The special tokens."""
        return set(self._special_tokens)

    @cached_property
    def _special_token_values(self) -> set[int]:
        return set(self._special_tokens.values())

    def is_special_token(self, token: int) -> bool:
        """Return whether an id is that of a special token; `AssertionError` if it is no int."""
        if not isinstance(token, int):
            raise AssertionError(f"expected an id (int), got {shown(token)}")
        return token in self._special_token_values

    @property
    def n_vocab(self) -> int:
        """The largest id plus one."""
        return self.max_token_value + 1

    # -- methods of tiktoken that are not public, which people call ----------------------------------------------------

    def _encode_single_piece(self, text_or_bytes: str | bytes) -> list[int]:
        """Return the ids of text or bytes as one piece: the pattern does not split it."""
        piece = text_or_bytes.encode() if isinstance(text_or_bytes, str) else text_or_bytes
        if not piece:
            raise ValueError("the piece is empty")
        return self._core.encode_piece(piece)

    def _encode_only_native_bpe(self, text: str) -> list[int]:
        """Return `encode_ordinary` of a text, piece by piece; `UnicodeEncodeError` if it holds surrogates."""
        text.encode()  # raises for surrogates
        pieces = split_pieces(self._core.pattern, text)
        return [token for piece in pieces for token in self._core.encode_piece(piece.encode())]

    def _encode_bytes(self, text: bytes) -> list[int]:
        """Return the ids of any bytes; of bytes that are UTF-8, those of `encode_ordinary`."""
        return self._core.encode_bytes(text)

    def __getstate__(self) -> object:
        registered = _REGISTERED.get(self.name)
        if registered is not None and registered._core is self._core:  # also true of its copies
            return self.name
        if self._is_shared:
            return {"name": self.name, "tokenizer": self._core.to_own_json().encode()}
        return {
            "name": self.name,
            "pat_str": self._pat_str,
            "mergeable_ranks": self._mergeable_ranks,
            "special_tokens": self._special_tokens,
        }

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, str):
            vars(self).update(vars(get_encoding(state)))
        elif "tokenizer" in state:
            core = CoreTokenizer.build_from_own_json(state["tokenizer"])
            vars(self).update(vars(Encoding.of_tokenizer(state["name"], core)))
        else:
            Encoding.__init__(self, **state)


def list_encoding_names() -> list[str]:
    """Return the names that `get_encoding` takes.

    Examples:
        >>> "o200k_base" in list_encoding_names()
        True
    """
    return list(_NAMES)


def get_encoding(encoding_name: str) -> Encoding:
    """Return the encoding of this name; the same object each time.

    Its file comes from a cache of this machine, tiktoken's included, or else is downloaded: see
    `bpe_llama.Tokenizer.from_name`.

    Raises:
        ValueError: If no encoding is called so; the message lists the nearest names.
        FileNotFoundError: If its file is in no cache and cannot be downloaded.
    """
    if not isinstance(encoding_name, str):
        raise ValueError(f"expected the name of an encoding, got {shown(encoding_name)}")
    if encoding_name not in _NAMES:
        raise ValueError(f"no encoding is called {shown(encoding_name)}{nearest(encoding_name, _NAMES)}")
    with _lock:
        if encoding_name not in _REGISTERED:
            _REGISTERED[encoding_name] = Encoding.of_tokenizer(encoding_name, read_published(encoding_name))
        return _REGISTERED[encoding_name]
