import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self, disjoint_base

_PathLike: TypeAlias = str | os.PathLike[str]

__version__: str

UNICODE_VERSION: str
"""The Unicode version of the character classes that splitting patterns match: ``"16.0.0"``."""

SUPERWORD_PATTERN: str
"""Where superwords end: see `bpe_llama.training.SUPERWORD_PATTERN`."""

def split_pieces(pattern: str, text: str) -> list[str]:
    """Return the pieces of ``text`` under a pattern's name or a regex; together they are ``text``."""

def pattern_regex(pattern: str) -> str:
    """Return the regex of a pattern's name, spelled as Python's ``regex`` and Oniguruma read it alike."""

@disjoint_base
class Tokenizer:
    """The compiled tokenizer. Users have its subclass `bpe_llama.Tokenizer`, whose class methods make one.

    Wherever text is taken, `str` with lone surrogates is encoded as tiktoken does: as U+FFFD.
    `allowed_special` and `disallowed_special` are collections of special tokens, or `"all"`.
    """

    def __new__(cls, core: Tokenizer, **_attributes: object) -> Self: ...
    @staticmethod
    def build_from_ranks(
        ranks: dict[bytes, int], pattern: str, special_tokens: list[tuple[str, int]] | None = None
    ) -> Tokenizer: ...
    @staticmethod
    def build_from_merges(
        tokens: list[bytes],
        merges: list[tuple[int, int]],
        pattern: str,
        special_tokens: list[tuple[str, int]] | None = None,
    ) -> Tokenizer: ...
    def extended(
        self, tokens: list[bytes], merges: list[tuple[int, int]], pattern: str, special_tokens: list[str]
    ) -> Tokenizer:
        """Used by `bpe_llama.training`."""
    @staticmethod
    def build_from_tiktoken(
        path: _PathLike, pattern: str, special_tokens: list[tuple[str, int]] | None = None
    ) -> Tokenizer: ...
    @staticmethod
    def build_from_huggingface(json: bytes) -> Tokenizer: ...
    @staticmethod
    def build_from_own_json(json: bytes) -> Tokenizer: ...
    @staticmethod
    def build_from_sentencepiece(model: bytes) -> Tokenizer: ...
    @staticmethod
    def build_from_pieces(pieces: Sequence[tuple[str, float, int]], prefix: bool, collapse: bool) -> Tokenizer: ...
    @staticmethod
    def build_from_gguf(
        tokens: Sequence[str],
        merges: Sequence[tuple[int, int]],
        patterns: Sequence[str],
        ignore_merges: bool,
        added: Sequence[tuple[str, int, bool, bool, bool]],
    ) -> Tokenizer: ...
    @staticmethod
    def build_from_gguf_pieces(
        pieces: Sequence[tuple[str, float, int]], prefix: bool, added: Sequence[tuple[str, int, bool, bool, bool]]
    ) -> Tokenizer: ...
    @staticmethod
    def build_from_gguf_characters(
        pieces: Sequence[tuple[str, int]],
        merges: Sequence[tuple[int, int]],
        added: Sequence[tuple[str, int, bool, bool, bool]],
    ) -> Tokenizer: ...
    def with_bos_eos(self, bos_id: int | None, eos_id: int | None) -> Tokenizer: ...
    def with_ends(
        self, bos_id: int | None, eos_id: int | None, pad_id: int | None, unk_id: int | None
    ) -> Tokenizer: ...
    def with_template(self, before: int | None, after: int | None) -> Tokenizer:
        """Return the tokenizer with a post-processor that puts these tokens around each text."""
    def with_added_tokens(self, tokens: list[tuple[str, bool, bool, bool, bool, bool]]) -> Tokenizer:
        """Return the tokenizer with more added tokens: content, special, single_word, lstrip, rstrip, normalized."""
    def template(self, pair: bool) -> list[tuple[int | None, str | None, int | None]]:
        """Return what the post-processor makes of a text or a pair, in order.

        Each place is a special token's id, or ``"A"`` or ``"B"`` for a text; and its type id, ``None`` where the texts
        have 0 and 1.
        """
    def added_tokens_json(self) -> str:
        """Return the added tokens as a ``tokenizer.json`` lists them."""
    def components_json(self) -> str | None:
        """Return what a ``tokenizer.json`` said beyond tokens and merges, or ``None`` if it was read from none.

        As JSON: ``truncation``, ``padding``, ``normalizer``, ``pre_tokenizer`` and ``ignore_merges``.
        """
    def to_huggingface(self) -> str: ...
    def to_own_json(self) -> str:
        """Return a ``tokenizer.json`` for `build_from_own_json` alone, in which any tokenizer can be said."""
    def save_huggingface(self, path: _PathLike) -> None: ...
    def check_tiktoken(self) -> None:
        """Raise `ValueError` if tiktoken cannot express this tokenizer; the message names why."""
    def save_tiktoken(self, path: _PathLike) -> None: ...
    def save_sentencepiece(self, path: _PathLike) -> None: ...
    def sentencepiece_model(self) -> bytes | None:
        """Return the SentencePiece model that encodes, where byte-level merging cannot express it."""
    def encode(
        self,
        text: str,
        *,
        bos: bool = False,
        eos: bool = False,
        allowed_special: Iterable[str] = ...,
        disallowed_special: Iterable[str] = ...,
    ) -> list[int]:
        """Return the ids of a text.

        Text that looks like a special token is ordinary text, unless it is in `allowed_special`.

        Args:
            text: Any `str`.
            bos: Put `bos_id` first.
            eos: Put `eos_id` last.
            allowed_special: Special tokens that stand for themselves.
            disallowed_special: Special tokens that raise where the text holds them.

        Raises:
            TypeError: If `text` is no `str`.
            ValueError: If the text holds a disallowed special token, `allowed_special` names an unknown one, `bos` or
                `eos` is asked for where there is none, or a byte of the text has no token.

        Cost: linear in the text, whatever it holds.
        """

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of a text in which nothing is special: `encode` without its options."""

    def encode_following(self, text: str, before: str | None) -> list[int]:
        """Return the ids of `encode_ordinary` for a text that follows other text, or None for a special token.

        They differ where SentencePiece puts a space before a text: before one that follows text it puts none, but for
        the one that was left out at the end of that text where spaces collapse.
        """

    def encode_with_dropout(
        self, text: str, dropout: float | None = None, seed: int = 0, *, allowed_special: Iterable[str] = ...
    ) -> list[int]:
        """Return the ids of a text where each merge is left out with a probability: BPE-dropout, for training.

        Args:
            text: Any `str`.
            dropout: From 0 to 1; by default what the tokenizer's file says, which `encode` never applies.
            seed: The same seed gives the same ids.
            allowed_special: Special tokens that stand for themselves.

        Raises:
            ValueError: If `dropout` is out of range, or None where the file names none.

        Source: Provilkov et al. 2020, arXiv:1910.13267.
        """

    def encode_piece(self, data: bytes, *, merged: bool = False) -> list[int]:
        """Return the ids of bytes as one piece: the token they are, or with `merged` always what merging gives."""

    def encode_bytes(self, data: bytes) -> list[int]:
        """Return the ids of any bytes, such that `decode_bytes` gives them back.

        The longest valid UTF-8 start is encoded as text; the rest is one piece with the last piece of that text, as in
        tiktoken. SentencePiece takes ``▁`` for a space, so that a space comes back for it.
        """

    def encode_to_numpy(
        self,
        text: str,
        *,
        bos: bool = False,
        eos: bool = False,
        allowed_special: Iterable[str] = ...,
        disallowed_special: Iterable[str] = ...,
    ) -> NDArray[np.uint32]:
        """Return the ids of a text, shape (n,), uint32. The array takes over the memory they were written to."""

    def encode_batch(
        self,
        texts: Iterable[str],
        num_threads: int | None = None,
        *,
        bos: bool = False,
        eos: bool = False,
        allowed_special: Iterable[str] = ...,
        disallowed_special: Iterable[str] = ...,
    ) -> list[list[int]]:
        """Return the ids of each text. `num_threads` is by default one a processor; it never changes an id."""

    def encode_batch_to_numpy(
        self,
        texts: Iterable[str],
        num_threads: int | None = None,
        *,
        bos: bool = False,
        eos: bool = False,
        allowed_special: Iterable[str] = ...,
        disallowed_special: Iterable[str] = ...,
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the ids of all texts in one array, and where each begins.

        Row `i` is `ids[offsets[i]:offsets[i + 1]]`; `ids` is uint32, shape (n,), `offsets` int64, shape
        (len(texts) + 1,).
        """

    def encode_with_offsets(
        self, text: str, *, allowed_special: Iterable[str] = ..., first: int = 0
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids, and for each the range of characters its bytes fall into: `text[start:end]`.

        Tokens that share a character both name it. They are ranges of `text` as it stands, also where the tokenizer
        normalizes it. Where a tokenizer's file says `trim_offsets`, white space at the ends of a token is left out, but
        with `add_prefix_space` not the space before the token `first`: the first one that the caller keeps.
        """

    def count(self, text: str, *, allowed_special: Iterable[str] = ...) -> int:
        """Return `len(encode(text))` without making the ids."""

    def truncate(self, text: str, max_tokens: int, *, allowed_special: Iterable[str] = ...) -> str:
        """Return the longest start of `text`, cut between tokens and between characters, of at most `max_tokens` ids.

        Raises:
            ValueError: If `max_tokens` is negative.
        """

    def tokenize(self, text: str, *, allowed_special: Iterable[str] = ...) -> list[bytes]:
        """Return the bytes of each token of a text; together they are the text."""

    def decode(self, ids: Iterable[int], errors: str = "replace", *, skip_special_tokens: bool = False) -> str:
        """Return the text of ids: a list, a NumPy array, a tensor of one dimension.

        Args:
            ids: The ids.
            errors: What becomes of bytes that are no UTF-8, as in `bytes.decode`.
            skip_special_tokens: Leave special tokens out.

        Raises:
            KeyError: For an id that no token has.
            UnicodeDecodeError: With `errors="strict"`, for bytes that are no UTF-8.
        """

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of ids; `KeyError` for an id that no token has."""

    def decode_batch(
        self, batch: Iterable[Iterable[int]], errors: str = "replace", *, skip_special_tokens: bool = False
    ) -> list[str]:
        """Return the text of each row of ids, as `decode` does.

        Rows come from any iterable, a 2-D array, a tensor or a generator among them. An error names the row.
        """

    def decode_stream(self, *, skip_special_tokens: bool = False) -> DecodeStream:
        """Return a decoder that takes ids one at a time and holds back characters not yet complete."""

    def id_to_bytes(self, id: int) -> bytes:
        """Return the bytes of one token, special or not; `KeyError` for an id that no token has."""

    def id_to_token(self, id: int) -> str:
        """Return the name of a token as a ``tokenizer.json`` spells it; `KeyError` for an id that no token has.

        An added token is its text; others are spelled in GPT-2's byte alphabet, or with ``▁`` for a space.
        """

    def __len__(self) -> int:
        """Return the number of tokens, added ones included."""

    def token_to_id(self, token: bytes | str) -> int | None:
        """Return the id of a token, special or not, or `None`.

        Bytes are what the token stands for. A `str` is its name, as `id_to_token` gives it: the text of an added token
        first, then ``Ġw`` or ``▁w`` as a ``tokenizer.json`` spells it. Where no token is called so, it is text.
        """

    @property
    def vocab_size(self) -> int:
        """The largest id plus one, special tokens included: the rows an embedding needs."""

    @property
    def mergeable_ranks(self) -> dict[bytes, int]:
        """Token bytes to id, special tokens left out."""

    @property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """The merges, best first."""

    @property
    def pattern(self) -> str:
        """The regex whose matches are the pieces."""

    @property
    def pattern_name(self) -> str | None:
        """The name of the pattern, such as `"cl100k"`, if it has one."""

    @property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens to id."""

    @property
    def added_tokens(self) -> dict[str, int]:
        """Special tokens to id, and what else a ``tokenizer.json`` adds to its vocabulary: always found in text."""

    @property
    def cache_bytes(self) -> int:
        """About how many bytes each encoding thread may use to remember pieces: 60 MiB unless set, at least 1 MiB.

        A small text uses little of it. Setting it forgets what is remembered; ids never depend on it.

        Raises:
            ValueError: When set below 1 MiB.
        """

    @cache_bytes.setter
    def cache_bytes(self, bytes: int) -> None: ...
    @property
    def bos_id(self) -> int | None:
        """The id that begins a text."""

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text."""

    @property
    def pad_id(self) -> int | None:
        """The id that fills short rows, where the tokenizer's files name one."""

    @property
    def unk_id(self) -> int | None:
        """The id that stands for what no token does, where the tokenizer's files name one."""

    @property
    def pipeline(self) -> str:
        """How text is encoded: ``"fast"``, or ``"general"``, step by step as a ``tokenizer.json`` spells it.

        Both give the same ids; `general_because` says which part of the file no faster way is known for.
        """

    @property
    def general_because(self) -> str | None:
        """The part of the tokenizer's file for which `pipeline` is ``"general"``, or `None`."""

    @property
    def normalizes_added_tokens(self) -> bool:
        """Whether added tokens may be looked for in normalized text."""

@final
class DecodeStream:
    """Text from ids that come one at a time; made by `Tokenizer.decode_stream`."""

    def push(self, id: int) -> str:
        """Return the text that is complete now that this id has come; `KeyError` for an id that no token has."""

    def flush(self) -> str:
        """Return what was held back: U+FFFD for a character that never ended, or nothing."""

@final
class FileLines:
    """The lines of a file, bytes with their ends, decompressed where its name ends in `.gz` or `.zst`."""

    def __new__(cls, path: _PathLike) -> FileLines: ...
    def __iter__(self) -> FileLines: ...
    def __next__(self) -> bytes: ...

# -- training: used by bpe_llama.training, which documents it --

_OnProgress: TypeAlias = Callable[[str, int, int | None], object]
_Vocabulary: TypeAlias = tuple[list[bytes], list[tuple[int, int]]]
# How many rows were left out, and what is wrong with the first.
_SkippedRows: TypeAlias = tuple[int, str | None]

@final
class WordCounts:
    @staticmethod
    def from_files(
        paths: Sequence[_PathLike],
        splitting: Mapping[str, object],
        reading: Mapping[str, object],
        on_progress: _OnProgress | None,
    ) -> tuple[WordCounts, _SkippedRows]: ...
    @staticmethod
    def from_iterator(
        texts: Iterable[str], splitting: Mapping[str, object], on_progress: _OnProgress | None
    ) -> WordCounts: ...
    @staticmethod
    def from_bytes(data: bytes) -> WordCounts: ...
    @staticmethod
    def load(path: _PathLike) -> WordCounts: ...
    def to_bytes(self) -> bytes: ...
    def save(self, path: _PathLike) -> None: ...
    def __add__(self, other: WordCounts, /) -> WordCounts: ...
    def __radd__(self, other: WordCounts, /) -> WordCounts: ...
    def __len__(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def pattern(self) -> str: ...
    @property
    def special_tokens(self) -> list[str]: ...
    def split(self, parts: int) -> list[WordCounts]: ...
    def pruned(self, min_count: int) -> WordCounts: ...
    def most_common(self, n: int | None) -> list[tuple[bytes, int]]: ...

def expand_paths(path: str) -> list[Path]: ...
def train_merges(counts: WordCounts, options: Mapping[str, object], on_progress: _OnProgress | None) -> _Vocabulary: ...
def train_from_files(
    paths: Sequence[_PathLike],
    splitting: Mapping[str, object],
    reading: Mapping[str, object],
    options: Mapping[str, object],
    on_progress: _OnProgress | None,
) -> tuple[_Vocabulary, _SkippedRows]: ...
def train_from_iterator(
    texts: Iterable[str],
    splitting: Mapping[str, object],
    options: Mapping[str, object],
    on_progress: _OnProgress | None,
) -> _Vocabulary: ...

@final
class Sampler:
    """Draws ids from logits; see `help(Sampler)` for what each argument means, its errors and examples."""

    def __new__(
        cls,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.95,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int = 0,
        *,
        typical_p: float = 1.0,
        logit_bias: dict[int, float] | None = None,
        banned_ids: Iterable[int] | None = None,
        allowed_ids: Iterable[int] | None = None,
        preset: str = "exact",
    ) -> Sampler: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...
    @property
    def typical_p(self) -> float: ...
    @property
    def logit_bias(self) -> dict[int, float]: ...
    @property
    def banned_ids(self) -> list[int]: ...
    @property
    def allowed_ids(self) -> list[int] | None: ...
    @property
    def preset(self) -> str: ...
    @property
    def repetition_penalty(self) -> float: ...
    @property
    def presence_penalty(self) -> float: ...
    @property
    def frequency_penalty(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def step(self) -> int: ...
    def seek(self, step: int) -> None: ...
    # A NumPy array, or anything that exports DLPack: (V,) or (B, V).
    def sample(
        self,
        logits: Any,
        history: Any | None = None,
        *,
        step: int | None = None,
        seeds: Iterable[int] | None = None,
        num_threads: int | None = None,
    ) -> Any: ...
    def sample_with_logprobs(
        self,
        logits: Any,
        history: Any | None = None,
        *,
        top_n: int = 0,
        step: int | None = None,
        seeds: Iterable[int] | None = None,
    ) -> tuple[Any, Any, NDArray[np.int64], NDArray[np.float64]]: ...
    def probs(
        self, logits: Any, history: Any | None = None, *, num_threads: int | None = None
    ) -> NDArray[np.float64]: ...
    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]: ...
    def __getstate__(self) -> int: ...
    def __setstate__(self, step: int) -> None: ...

@final
class Linear:
    """Several linear layers on the same input: one matrix product with their weights, `x @ W.T`.

    The weights of a layer are float32 (O, I); bfloat16 as uint16 (O, I); int8 (O, I) and scales, float32 (O,);
    or 4-bit codes, uint8 (O, I / 2), and bfloat16 scales and offsets as uint16 (O, Q, 2); see `help(Linear)`.
    """

    def __new__(
        cls,
        matrices: Sequence[Any],
        norm: NDArray[Any] | None = None,
        eps: float = 1e-5,
        gate: Literal["silu", "gelu_tanh"] | None = None,
    ) -> Self: ...
    def multiply(
        self, x: NDArray[np.float32], out: NDArray[np.float32], add: bool = False, num_threads: int = 1
    ) -> None:
        """Write the product with each of M rows to `out`, or add it to `out`."""

def has_amx() -> bool:
    """Return whether `Linear` multiplies more than eight rows with AMX."""

def has_avx512() -> bool:
    """Return whether `Linear` and `attend` use AVX-512."""

def has_avx512_bf16() -> bool:
    """Return whether `Linear` rounds more than eight rows to bfloat16 for AVX-512 BF16; false where `has_amx`."""

def attend(
    qkv: NDArray[np.float32],
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
    cache: NDArray[Any],
    layer: int,
    positions: NDArray[np.int64],
    out: NDArray[np.float32],
    window: int = 0,
    num_threads: int = 1,
    softcap: float = 0.0,
    interleaved: bool = False,
) -> None:
    """Apply RoPE to M new tokens, append them to the KV cache and write their attention output; see `help(attend)`."""

def normalize(
    x: NDArray[np.float32], weights: NDArray[Any], eps: float, start: int, stop: int, num_threads: int = 1
) -> None:
    """Apply a norm to columns of M rows in place, in groups of as many as there are weights; see `help(normalize)`."""

@final
class TokenFile:
    """A `.npy` file of ids that documents are appended to; `Tokenizer.encode_files` drives it."""

    def __new__(cls, tokenizer: Tokenizer, path: _PathLike, end: int | None, num_threads: int | None) -> Self: ...
    def add_files(
        self,
        paths: Sequence[_PathLike],
        reading: Mapping[str, object],
        on_progress: Callable[[str, int, int | None], object] | None,
    ) -> _SkippedRows: ...
    def add_texts(self, texts: Iterable[str]) -> None: ...
    def finish(self) -> int:
        """Return the number of ids, now that the file stands at its path."""

    def abandon(self) -> None:
        """Remove what was written."""

# The ids of documents; where each that ends here ends in them; the bytes of its text, then those of the document that
# goes on in the next batch; the index of its file.
_EncodedDocuments: TypeAlias = tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

@final
class DocumentEncoder:
    """Documents of files to ids, with `begins` and `ends` around each; `Tokenizer.encode_corpus` drives it."""

    def __new__(
        cls,
        tokenizer: Tokenizer,
        paths: Sequence[_PathLike],
        reading: Mapping[str, object],
        begins: Sequence[int],
        ends: Sequence[int],
        num_threads: int | None,
    ) -> Self: ...
    def next_batch(self) -> _EncodedDocuments | None: ...
    def encode_texts(self, texts: Iterable[str]) -> _EncodedDocuments: ...
    def skip(self, documents: int) -> int:
        """Read some of the next documents without encoding them, and return how many are left to skip."""

    def bytes_read(self) -> int: ...
    def skipped(self) -> _SkippedRows: ...

def simd_tier() -> str:
    """Return the instructions in use: the highest tier of this CPU, at most that of the variable ``BPE_LLAMA_SIMD``.

    The variable is read once, when the module is imported; a name that is unknown or that this CPU lacks is a
    ``ValueError``. The tiers are ``portable``; on x86-64 ``avx2``, ``avx512``, ``avx512_bf16`` and ``amx``; on arm64
    ``neon``.

        >>> simd_tier() in simd_tiers()
        True
    """

def simd_tiers() -> list[str]:
    """Return the tiers of this CPU, the slowest first, whatever ``BPE_LLAMA_SIMD`` says."""
