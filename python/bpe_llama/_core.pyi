import os
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """Return the pieces of `text` under a pattern's name or a regex; together they are `text`.

    Example:
        >>> from bpe_llama._core import split_pieces
        >>> split_pieces("llama3", "low lower")
        ['low', ' lower']
    """

def pattern_regex(pattern: str) -> str:
    """Return the regex of a pattern's name, spelled as Python's `regex` and Oniguruma read it alike."""

def shown(value: object) -> str:
    """Return the `repr` of an object for an error message; of a long one a part, at no more cost.

    Example:
        >>> from bpe_llama._core import shown
        >>> shown(5), shown([5] * 1000), shown("x" * 1000)[-8:]
        ('5', '[5, 5, 5, 5, 5, 5, ...]', "xxx' ...")
    """

@disjoint_base
class Tokenizer:
    """The compiled tokenizer. Users have its subclass `bpe_llama.Tokenizer`, whose class methods make one.

    Where a text is taken, a `str` with lone surrogates is encoded as tiktoken does: as U+FFFD. `allowed_special`
    is a collection of special tokens, `disallowed_special` of strings; either may be `"all"` special tokens.

    Example:
        >>> from bpe_llama import Tokenizer
        >>> tok = Tokenizer.train_from_iterator(["low lower lowest"] * 3, vocab_size=260, progress=False)
        >>> tok.encode("low"), tok.vocab_size
        ([257], 260)
    """

    def __new__(cls, core: Tokenizer, **_attributes: object) -> Self: ...
    @staticmethod
    def build_from_ranks(
        ranks: dict[bytes, int], pattern: str, special_tokens: list[tuple[str, int]] | None = None
    ) -> Tokenizer:
        """Return the tokenizer with these ranks, which are the ids; `Tokenizer.from_ranks` calls this."""
    @staticmethod
    def build_from_merges(
        tokens: list[bytes],
        merges: list[tuple[int, int]],
        pattern: str,
        special_tokens: list[tuple[str, int]] | None = None,
    ) -> Tokenizer:
        """Return the tokenizer with these tokens, by id, and merges, as pairs of ids, best first."""
    def extended(
        self, tokens: list[bytes], merges: list[tuple[int, int]], pattern: str, special_tokens: list[str]
    ) -> Tokenizer:
        """Return this tokenizer with more tokens, merges and special tokens; `bpe_llama.training` calls this."""
    @staticmethod
    def build_from_tiktoken(
        path: _PathLike, pattern: str, special_tokens: list[tuple[str, int]] | None = None
    ) -> Tokenizer:
        """Return the tokenizer with the ranks of a `.tiktoken` file; `Tokenizer.from_tiktoken` calls this."""
    @staticmethod
    def build_from_huggingface(json: bytes) -> Tokenizer:
        """Return the tokenizer of a `tokenizer.json`, given as bytes; `Tokenizer.from_huggingface` calls this."""
    @staticmethod
    def build_from_own_json(json: bytes) -> Tokenizer:
        """Return the tokenizer that `to_own_json` wrote."""
    @staticmethod
    def build_from_sentencepiece(model: bytes) -> Tokenizer:
        """Return the tokenizer of a SentencePiece model, given as bytes; `Tokenizer.from_file` calls this."""
    @staticmethod
    def build_from_gguf(
        tokens: Sequence[str],
        merges: Sequence[tuple[int, int]],
        patterns: Sequence[str],
        ignore_merges: bool,
        added: Sequence[tuple[str, int, bool, bool, bool]],
    ) -> Tokenizer:
        """Return the byte-level tokenizer of a GGUF file's metadata; `Tokenizer.from_gguf` calls this."""
    @staticmethod
    def build_from_gguf_pieces(
        pieces: Sequence[tuple[str, float, int]], prefix: bool, added: Sequence[tuple[str, int, bool, bool, bool]]
    ) -> Tokenizer:
        """Return the SentencePiece tokenizer of a GGUF file's metadata; `Tokenizer.from_gguf` calls this."""
    @staticmethod
    def build_from_gguf_characters(
        pieces: Sequence[tuple[str, int]],
        merges: Sequence[tuple[int, int]],
        added: Sequence[tuple[str, int, bool, bool, bool]],
    ) -> Tokenizer:
        """Return the tokenizer of a GGUF file whose merges begin with characters; `Tokenizer.from_gguf` calls this."""
    def with_ends(self, bos_id: int | None, eos_id: int | None, pad_id: int | None, unk_id: int | None) -> Tokenizer:
        """Return the tokenizer with other special ids: begin, end, padding, unknown; `None` for no such id.

        Raises:
            ValueError: If an id is outside the vocabulary.
        """
    def with_template(self, before: int | None, after: int | None) -> Tokenizer:
        """Return the tokenizer with a post-processor that puts these ids around each text; `None` puts nothing."""
    def with_added_tokens(self, tokens: list[tuple[str, bool, bool, bool, bool, bool]]) -> Tokenizer:
        """Return the tokenizer with more added tokens: content, special, single_word, lstrip, rstrip, normalized."""
    def template(self, pair: bool) -> list[tuple[int | None, str | None, int | None]]:
        """Return what the post-processor makes of a text or a pair, in order.

        Each place is a special token's id, or `"A"` or `"B"` for a text; and its type id, `None` where the texts have 0
        and 1.
        """
    def added_tokens_json(self) -> str:
        """Return the added tokens as a `tokenizer.json` lists them."""
    def components_json(self) -> str | None:
        """Return what a `tokenizer.json` said beyond tokens and merges, or `None` if it was read from none.

        As JSON: `truncation`, `padding`, `normalizer`, `pre_tokenizer` and `ignore_merges`.
        """
    def to_huggingface(self) -> str:
        """Return the text of a `tokenizer.json`, which gives the same ids in `tokenizers` and transformers.

        Raises:
            ValueError: If the format cannot express this tokenizer; the message names why.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
            >>> import json
            >>> json.loads(tok.to_huggingface())["model"]["type"]
            'BPE'
        """
    def to_own_json(self) -> str:
        """Return a `tokenizer.json` for `build_from_own_json` alone, which can hold any tokenizer."""
    def check_tiktoken(self) -> None:
        """Raise `ValueError` if tiktoken cannot express this tokenizer; the message names why."""
    def to_tiktoken(self) -> str:
        """Return tiktoken's list of ranks: a line with a token's bytes in base64 and its rank, in order.

        Raises:
            ValueError: As `check_tiktoken`.
        """
    def to_sentencepiece(self, *, config_beside: bool = False) -> bytes:
        """Return the bytes of a SentencePiece model.

        Args:
            config_beside: Whether a `tokenizer_config.json` beside the file names the added tokens and the
                post-processor that a model does not hold.

        Raises:
            ValueError: If this tokenizer keeps no model; or if it has such a token or post-processor, and
                `config_beside` is false. The message names why.
        """
    def sentencepiece_model(self) -> bytes | None:
        """Return the SentencePiece model that encodes, where byte-level merging cannot express it; else `None`."""
    def encode(
        self,
        text: str,
        *,
        bos: bool = False,
        eos: bool = False,
        allowed_special: Iterable[str] = (),
        disallowed_special: Iterable[str] = (),
    ) -> list[int]:
        """Return the ids of a text.

        Text that looks like a special token is ordinary text, unless it is in `allowed_special`.

        Args:
            text: Any `str`.
            bos: Put `bos_id` first.
            eos: Put `eos_id` last.
            allowed_special: Special tokens that stand for themselves, or `"all"`.
            disallowed_special: Strings that must not occur in the text, or `"all"` special tokens.

        Raises:
            TypeError: If `text` is no `str`.
            ValueError: If the text holds a disallowed string, `allowed_special` names an unknown token, `bos` or
                `eos` is asked for where there is none, or a byte of the text has no token.

        Cost: linear in the text, whatever it holds.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=259, special_tokens=["<s>"], progress=False)
            >>> tok.encode("low"), tok.encode("<s>low", allowed_special={"<s>"})
            ([257], [258, 257])
            >>> tok.encode("<s>")
            [27, 82, 29]
        """

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of a text in which nothing is special: `encode` without its options.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> tok.encode_ordinary("low")
            [257]
        """

    def encode_following(self, text: str, before: str | None) -> list[int]:
        """Return the ids of `encode_ordinary` for a text that follows other text, or `None` for a special token.

        They differ where SentencePiece puts a space before a text: before one that follows text it puts none, but for
        the one that was left out at the end of that text where spaces collapse.
        """

    def encode_with_dropout(
        self, text: str, dropout: float | None = None, seed: int = 0, *, allowed_special: Iterable[str] = ()
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

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> tok.encode_with_dropout("low", 0.0), tok.encode_with_dropout("low", 1.0)
            ([257], [75, 78, 86])
        """

    def encode_piece(self, data: bytes, *, merged: bool = False) -> list[int]:
        """Return the ids of bytes as one piece: the token they are, or with `merged` always what merging gives.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> tok.encode_piece(b"low")
            [257]
        """

    def encode_bytes(self, data: bytes) -> list[int]:
        r"""Return the ids of any bytes, such that `decode_bytes` gives them back.

        The longest valid UTF-8 start is encoded as text; the rest is one piece with the last piece of that text, as in
        tiktoken. SentencePiece takes `▁` for a space, so that a space comes back for it. A normalizer of the file, such
        as Qwen's to NFC, changes text here as in `encode`, and changed text comes back.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> tok.decode_bytes(tok.encode_bytes(b"low \xff"))
            b'low \xff'
        """

    def encode_to_numpy(
        self,
        text: str,
        *,
        bos: bool = False,
        eos: bool = False,
        allowed_special: Iterable[str] = (),
        disallowed_special: Iterable[str] = (),
    ) -> NDArray[np.uint32]:
        """Return the ids of a text, shape (n,), uint32; arguments and errors are those of `encode`.

        The array takes over the memory that the ids were written to.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> tok.encode_to_numpy("low low")
            array([257, 220, 257], dtype=uint32)
        """

    def encode_batch(
        self,
        texts: Iterable[str],
        num_threads: int | None = None,
        *,
        bos: bool = False,
        eos: bool = False,
        allowed_special: Iterable[str] = (),
        disallowed_special: Iterable[str] = (),
    ) -> list[list[int]]:
        """Return the ids of each text.

        Args:
            texts: Any iterable of `str`.
            num_threads: By default one a processor; it never changes an id.
            bos: As in `encode`.
            eos: As in `encode`.
            allowed_special: As in `encode`.
            disallowed_special: As in `encode`.

        Raises:
            TypeError: If `texts` is one `str`, or holds something else.
            ValueError: As `encode`.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> tok.encode_batch(["low", "low low"])
            [[257], [257, 220, 257]]
        """

    def encode_batch_to_numpy(
        self,
        texts: Iterable[str],
        num_threads: int | None = None,
        *,
        bos: bool = False,
        eos: bool = False,
        allowed_special: Iterable[str] = (),
        disallowed_special: Iterable[str] = (),
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the ids of all texts in one array, and where each text begins.

        Row `i` is `ids[offsets[i]:offsets[i + 1]]`; `ids` is uint32, shape (n,), `offsets` int64, shape
        (len(texts) + 1,). Arguments and errors are those of `encode_batch`.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> ids, offsets = tok.encode_batch_to_numpy(["low", "low low"])
            >>> ids.tolist(), offsets.tolist()
            ([257, 257, 220, 257], [0, 1, 4])
        """

    def encode_with_offsets(
        self, text: str, *, allowed_special: Iterable[str] = (), first: int = 0
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids, and for each the range of characters its bytes fall into: `text[start:end]`.

        Tokens that share a character both name it. They are ranges of `text` as it stands, also where the tokenizer
        normalizes it. Where a tokenizer's file says `trim_offsets`, white space at the ends of a token is left out, but
        with `add_prefix_space` not the space before the token `first`: the first one that the caller keeps.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> tok.encode_with_offsets("low low")
            ([257, 220, 257], [(0, 3), (3, 4), (4, 7)])
        """

    def count(self, text: str, *, allowed_special: Iterable[str] = ()) -> int:
        """Return `len(encode(text))` without making the ids.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> tok.count("low low")
            3
        """

    def truncate(self, text: str, max_tokens: int, *, allowed_special: Iterable[str] = ()) -> str:
        """Return the longest start of `text`, cut between tokens and between characters, of at most `max_tokens` ids.

        Raises:
            ValueError: If `max_tokens` is negative.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> tok.truncate("low low", 2)
            'low '
        """

    def tokenize(self, text: str, *, allowed_special: Iterable[str] = ()) -> list[bytes]:
        """Return the bytes of each token of a text; together they are the text.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> tok.tokenize("low lo")
            [b'low', b' ', b'lo']
        """

    def decode(self, ids: Iterable[int], errors: str = "replace", *, skip_special_tokens: bool = False) -> str:
        """Return the text of ids.

        Args:
            ids: Any iterable of ints: a list, a NumPy array, a tensor of one dimension.
            errors: What becomes of bytes that are no UTF-8, as in `bytes.decode`.
            skip_special_tokens: Leave special tokens out.

        Raises:
            KeyError: For an id that no token has.
            TypeError: If `ids` is no iterable of ints.
            ValueError: If there is no error handler called `errors`.
            UnicodeDecodeError: With `errors="strict"`, for bytes that are no UTF-8.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> tok.decode([257, 220, 257])
            'low low'
        """

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of ids; `KeyError` for an id that no token has.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> tok.decode_bytes([257])
            b'low'
        """

    def decode_batch(
        self, batch: Iterable[Iterable[int]], errors: str = "replace", *, skip_special_tokens: bool = False
    ) -> list[str]:
        """Return the text of each row of ids, as `decode` does.

        Rows come from any iterable, a 2-D array, a tensor or a generator among them. An error names the row.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> tok.decode_batch([[257], [257, 220, 257]])
            ['low', 'low low']
        """

    def decode_stream(self, *, skip_special_tokens: bool = False) -> DecodeStream:
        """Return a decoder that takes ids one at a time and holds back characters not yet complete.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> stream = tok.decode_stream()
            >>> [stream.push(id) for id in tok.encode("é!")], stream.flush()
            (['', 'é', '!'], '')
        """

    def id_to_bytes(self, id: int) -> bytes:
        """Return the bytes of one token, special or not; `KeyError` for an id that no token has.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> tok.id_to_bytes(257)
            b'low'
        """

    def id_to_token(self, id: int) -> str:
        """Return the name of a token as a `tokenizer.json` spells it; `KeyError` for an id that no token has.

        An added token is its text; others are spelled in GPT-2's byte alphabet, or with `▁` for a space.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> tok.id_to_token(220)
            'Ġ'
        """

    def __len__(self) -> int:
        """Return the number of tokens, added ones included."""

    def token_to_id(self, token: bytes | str) -> int | None:
        """Return the id of a token, special or not, or `None`.

        Bytes are what the token stands for. A `str` is its name, as `id_to_token` gives it: the text of an added token
        first, then `Ġw` or `▁w` as a `tokenizer.json` spells it. Where no token is called so, it is text.

        Example:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
            >>> tok.token_to_id("low"), tok.token_to_id(b" "), tok.token_to_id("high")
            (257, 220, None)
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
        """Special tokens to id, and what else a `tokenizer.json` adds to its vocabulary: always found in text."""

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
        """How text is encoded: `"fast"`, or `"general"`, step by step as a `tokenizer.json` spells it.

        Both give the same ids; `general_because` says which part of the file no faster way is known for.
        """

    @property
    def general_because(self) -> str | None:
        """The part of the tokenizer's file for which `pipeline` is `"general"`, or `None`."""

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
    """The compiled word counts; `bpe_llama.WordCounts` wraps and documents them."""

    @staticmethod
    def from_files(
        paths: Sequence[_PathLike],
        splitting: Mapping[str, object],
        reading: Mapping[str, object],
        on_progress: _OnProgress | None,
    ) -> tuple[WordCounts, _SkippedRows]:
        """Return the counts of the words in files, and what was skipped; `WordCounts.from_files` calls this."""
    @staticmethod
    def from_iterator(
        texts: Iterable[str], splitting: Mapping[str, object], on_progress: _OnProgress | None
    ) -> WordCounts:
        """Return the counts of the words in texts; `bpe_llama.WordCounts.from_iterator` calls this."""
    @staticmethod
    def from_bytes(data: bytes) -> WordCounts:
        """Return the counts that `to_bytes` returned."""
    @staticmethod
    def load(path: _PathLike) -> WordCounts:
        """Return the counts in a file that holds the bytes of `to_bytes`."""
    def to_bytes(self) -> bytes:
        """Return the counts in their file format."""
    def __add__(self, other: WordCounts, /) -> WordCounts: ...
    def __radd__(self, other: WordCounts, /) -> WordCounts: ...
    def __len__(self) -> int: ...
    @property
    def total(self) -> int:
        """The number of words in the text."""
    @property
    def pattern(self) -> str:
        """The regex that split the text."""
    @property
    def special_tokens(self) -> list[str]:
        """The special tokens that end words."""
    def split(self, parts: int) -> list[WordCounts]:
        """Return at most so many counts that sum to these; the hash of a word selects its part."""
    def pruned(self, min_count: int) -> WordCounts:
        """Return the counts of the words that occur `min_count` times or more."""
    def most_common(self, n: int | None) -> list[tuple[bytes, int]]:
        """Return the `n` most frequent words, or all, with their counts; ties by bytes."""

def train_merges(counts: WordCounts, options: Mapping[str, object], on_progress: _OnProgress | None) -> _Vocabulary:
    """Return the tokens and merges learned from counts; `bpe_llama.training` calls this."""

def train_from_files(
    paths: Sequence[_PathLike],
    splitting: Mapping[str, object],
    reading: Mapping[str, object],
    options: Mapping[str, object],
    on_progress: _OnProgress | None,
) -> tuple[_Vocabulary, _SkippedRows]:
    """Return the tokens and merges learned from files, and what was skipped; `bpe_llama.training` calls this.

    Counting and training are one call, so that the memory of the counts is freed before the merges.
    """

def train_from_iterator(
    texts: Iterable[str],
    splitting: Mapping[str, object],
    options: Mapping[str, object],
    on_progress: _OnProgress | None,
) -> _Vocabulary:
    """Return the tokens and merges learned from texts, in one call, as `train_from_files` does."""

@final
class Sampler:
    """Samples ids from logits: exact, reproducible, without sorting the vocabulary.

    Penalties, temperature, top-k, top-p and min-p apply in that order, each to the renormalised result of the one
    before. Ties go to the lower id. Each call of `sample` is one step. The sampled id of a row depends only on its
    logits, the seed and the step: not on the batch, the number of threads or the CPU. Threads may share a sampler.

    Args:
        temperature: Divides the logits; 0 means argmax, the lowest id among ties.
        top_k: Keep the k highest logits; 0, or at least V, keeps all.
        top_p: Keep the fewest highest logits with at least this probability mass; in (0, 1].
        min_p: Drop ids with less than this times the highest probability; in [0, 1].
        repetition_penalty: Divides positive and multiplies negative logits of ids in the history.
        presence_penalty: Subtracted from the logit of every id in the history.
        frequency_penalty: Subtracted from an id's logit once per occurrence in the history.
        seed: Selects the stream of random numbers; in [0, 2**64).
        typical_p: Keep the ids of surprisal nearest to the entropy until they hold this mass; in (0, 1]. Applies
            after min-p (arXiv:2202.00666).
        logit_bias: Added to the logits of these ids, before any penalty: a dict of id to number.
        banned_ids: Ids never sampled.
        allowed_ids: If given, only these ids are sampled.
        preset: The implementation to follow in the order of filters and in ties. "exact": as above. "meta": one
            more id is kept if the mass equals top_p. "transformers": top-k and typical-p keep all ids tied at the
            threshold, top-p the highest ids of a tie. "llama_cpp": top-k, typical-p, top-p and min-p at temperature
            1, then the temperature.

    Raises:
        ValueError: If a parameter is out of range.

    Example:
        >>> import numpy as np
        >>> from bpe_llama import Sampler
        >>> Sampler(temperature=0.0).sample(np.array([0.1, 2.5, -1.0], dtype=np.float32))
        1
    """

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
    def temperature(self) -> float:
        """The divisor of the logits."""
    @property
    def top_k(self) -> int:
        """How many of the highest logits are kept; 0 keeps all."""
    @property
    def top_p(self) -> float:
        """The probability mass that the kept ids reach."""
    @property
    def min_p(self) -> float:
        """The least probability that is kept, as a part of the highest one."""
    @property
    def typical_p(self) -> float:
        """The probability mass of the kept ids of typical surprisal."""
    @property
    def logit_bias(self) -> dict[int, float]:
        """What is added to the logits, by id."""
    @property
    def banned_ids(self) -> list[int]:
        """The ids that are never sampled."""
    @property
    def allowed_ids(self) -> list[int] | None:
        """The only ids that are sampled, or `None` for all."""
    @property
    def preset(self) -> str:
        """The name of the implementation that is followed."""
    @property
    def repetition_penalty(self) -> float:
        """The divisor of positive logits, and factor of negative ones, of ids in the history."""
    @property
    def presence_penalty(self) -> float:
        """What is subtracted from the logit of every id in the history."""
    @property
    def frequency_penalty(self) -> float:
        """What is subtracted from an id's logit once per occurrence in the history."""
    @property
    def seed(self) -> int:
        """The number that selects the stream of random numbers."""
    @property
    def step(self) -> int:
        """The next step."""
    def seek(self, step: int) -> None:
        """Set the next step.

        Example:
            >>> import numpy as np
            >>> from bpe_llama import Sampler
            >>> sampler, logits = Sampler(), np.zeros(1000, dtype=np.float32)
            >>> first = sampler.sample(logits)
            >>> sampler.seek(0)
            >>> sampler.sample(logits) == first
            True
        """
    def sample(
        self,
        logits: Any,
        history: Any | None = None,
        *,
        step: int | None = None,
        seeds: Iterable[int] | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """Return the id sampled from one row, an int, or from each row of a batch, int64 (B,).

        Args:
            logits: (V,) or (B, V): a NumPy array or a CPU tensor of float32, float16 or bfloat16, read without a copy;
                float64 is rounded to float32 first. Any strides.
            history: The ids that penalties apply to: a sequence of ints for one row, one sequence per row for a batch.
            step: The step to sample at, instead of the sampler's next, which this leaves unchanged.
            seeds: A seed per row, instead of the sampler's. Without it all rows of a batch use the same random number,
                so equal rows give equal ids; pass `range(B)` for B different continuations of one prompt.
            num_threads: By default as many as pay off. The ids do not depend on it.

        Raises:
            ValueError: If a row holds NaN or +inf or only -inf, naming row and index; if an id of a history is outside
                the vocabulary; if the shape is wrong.
            TypeError: If the dtype or the type of the object is not supported.

        Cost: about three reads of each row; scratch memory is kept for later calls. `typical_p` below 1 sorts the row
        in float64: milliseconds for 32,000 ids. Ids of a batch, `history`, `seeds` and `allowed_ids` take new memory.

        Example:
            >>> import numpy as np
            >>> from bpe_llama import Sampler
            >>> logits = np.zeros((2, 4), dtype=np.float32)
            >>> logits[:, 3] = 20
            >>> Sampler(seed=1).sample(logits)
            array([3, 3])
        """
    def sample_with_logprobs(
        self,
        logits: Any,
        history: Any | None = None,
        *,
        top_n: int = 0,
        step: int | None = None,
        seeds: Iterable[int] | None = None,
        num_threads: int | None = None,
    ) -> tuple[Any, Any, NDArray[np.int64], NDArray[np.float64]]:
        """Return the result of `sample` with log-probabilities: (ids, logprobs, top_ids, top_logprobs).

        The log-probabilities are those of the logits as given, before penalties, temperature and filters.

        Args:
            logits: As in `sample`.
            history: As in `sample`.
            step: As in `sample`.
            seeds: As in `sample`.
            num_threads: As in `sample`.
            top_n: How many of the most likely ids to return, most likely first, ties by rising id.

        Returns:
            For one row an int, a float, int64 (n,) and float64 (n,); for a batch int64 (B,), float64 (B,), int64 (B, n)
            and float64 (B, n). n is top_n; a row with fewer finite logits is padded with id -1 at -inf.

        Raises:
            ValueError: As `sample`; if top_n exceeds the vocabulary.

        Example:
            >>> import numpy as np
            >>> from bpe_llama import Sampler
            >>> logits = np.log(np.array([0.5, 0.25, 0.25], dtype=np.float32))
            >>> id, logprob, top_ids, top_logprobs = Sampler(temperature=0).sample_with_logprobs(logits, top_n=2)
            >>> id, round(logprob, 4), top_ids.tolist(), top_logprobs.round(4).tolist()
            (0, -0.6931, [0, 1], [-0.6931, -1.3863])
        """
    def probs(self, logits: Any, history: Any | None = None, *, num_threads: int | None = None) -> NDArray[np.float64]:
        """Return the distribution that `sample` draws from, filtered and renormalised: float64, of the logits' shape.

        Args:
            logits: As in `sample`.
            history: As in `sample`.
            num_threads: As in `sample`.

        Raises:
            ValueError: As `sample`.

        Example:
            >>> import numpy as np
            >>> from bpe_llama import Sampler
            >>> Sampler(temperature=1.0, top_k=2, top_p=1.0).probs(np.array([0, 0, -9], dtype=np.float32))
            array([0.5, 0.5, 0. ])
        """
    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]: ...
    def __getstate__(self) -> int: ...
    def __setstate__(self, step: int) -> None: ...

@final
class Linear:
    """Several linear layers on the same input: one matrix product with their weights, `x @ W.T`.

    The weights may be quantized. Arrays are read in place, so the next call sees what is written to them.
    Arithmetic is float32; for 4-bit weights, except with AMX, the input is rounded to 23 bits of the largest of each
    8 columns and multiplied as integers. The product of a row has the same bits on every CPU, for every number of
    threads and for every batch, with two exceptions in batches of more than eight rows: AMX (`has_amx`) sums in
    another order for all weights but float32, and so does AVX-512 BF16 (`has_avx512_bf16`) with bfloat16 weights,
    after rounding the rows to bfloat16. Either order is the same for all such batches. Safe to share among threads.

    Args:
        matrices: The weights of each layer; all C-contiguous, all with the same I:
            float32 (O, I);
            bfloat16, its bits as uint16 (O, I);
            int8 (O, I) and scales float32 (O,), a weight being `code * scale`;
            4-bit codes as uint8 (O, I / 2), the even column in the low half of a byte, and for Q groups of columns
            the bits of a bfloat16 scale and offset as uint16 (O, Q, 2), a weight being
            `(code - 8) * scale + offset`.
        norm: RMSNorm factors (I,), float32 or the bits of bfloat16; or LayerNorm factors and biases, float32 (I,
            2); None does not normalize.
        eps: The epsilon of the norm.
        gate: If the input is `[gate, up]`, and the product is with `activation(gate) * up`, the activation: "silu"
            (SwiGLU) or "gelu_tanh" (GEGLU). Excludes `norm`.

    Raises:
        TypeError: If an array has another dtype or number of axes.
        ValueError: If shapes do not fit, an array is not contiguous, or the activation is unknown.

    Example:
        >>> import numpy as np
        >>> from bpe_llama._core import Linear
        >>> linear = Linear([np.eye(2, dtype=np.float32), np.ones((1, 2), dtype=np.float32)])
        >>> out = np.zeros((1, 3), dtype=np.float32)
        >>> linear.multiply(np.array([[5, 7]], dtype=np.float32), out)
        >>> out
        array([[ 5.,  7., 12.]], dtype=float32)
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
        """Write the product with each of M rows to `out`, or add it to `out`.

        Args:
            x: The activations, float32 (M, I), or (M, 2 * I) with a `gate`; C-contiguous.
            out: float32 (M, O), where O is the sum of all layers; C-contiguous, without overlap with `x`.
            add: Whether to add to `out`.
            num_threads: The most threads to use.

        Raises:
            TypeError: If an array is not float32 with two axes, or `out` is not writable.
            ValueError: If shapes do not fit, an array is not contiguous, or `num_threads` is below 1.

        Cost: one read of the weights for up to about 16 rows, or 32 with AMX or AVX-512 BF16; beyond, `2 * M * I * O`
        operations. AMX serves all weights but float32.
        """

def has_amx() -> bool:
    """Return whether `Linear` multiplies more than eight rows with AMX; float32 weights never.

    Example:
        >>> from bpe_llama._core import has_amx
        >>> has_amx() in (True, False)
        True
    """

def has_avx512() -> bool:
    """Return whether `Linear` and `attend` use AVX-512.

    Example:
        >>> from bpe_llama._core import has_avx512
        >>> has_avx512() in (True, False)
        True
    """

def has_avx512_bf16() -> bool:
    """Return whether `Linear` rounds more than eight rows to bfloat16 for AVX-512 BF16, with bfloat16 weights.

    False where `has_amx`, which takes precedence, and on Intel's CPUs, where float32 is faster.

    Example:
        >>> from bpe_llama._core import has_avx512_bf16
        >>> has_avx512_bf16() in (True, False)
        True
    """

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
    """Apply RoPE to M new tokens, append their keys and values to the cache, and write their attention to `out`.

    A token attends to its slot up to its own position. Arithmetic is float32. The output of a token has the same
    bits on every CPU, for every number of threads and for every batch, with one exception: where `has_avx512_bf16`,
    more than eight consecutive tokens of a slot in a bfloat16 cache have their queries and attention weights
    rounded to bfloat16.

    Args:
        qkv: N queries, K keys and K values of H features each, float32 (M, (N + 2 * K) * H).
        cos: Cosines of the rotary angles, float32 (M, R / 2).
        sin: Sines of the rotary angles, float32 (M, R / 2).
        cache: Keys, then values, (2, layers, B, K, S, H) as float32 or the bits of bfloat16 as uint16; written to.
        layer: The layer of the cache.
        positions: The slot and the position of each token, int64 (M, 2). A row with a negative number is skipped.
        out: The attention output, float32 (M, N * H); written to.
        window: The sliding window: how many positions a token attends to, its own included. 0 means all.
        num_threads: The most threads to use.
        softcap: The bound of scores: each is `softcap * tanh(score / softcap)`. 0 means none.
        interleaved: Whether feature 2 i of a head is rotated with feature 2 i + 1, and not i with i + R / 2.

    Raises:
        TypeError: If an array has another dtype or number of axes, or is not writable.
        ValueError: If shapes do not fit, an array is not contiguous, `layer` or `window` is negative, `num_threads`
            is below 1, `softcap` is negative or not finite, a position is outside the cache, or another call writes
            to the cache.

    Example:
        >>> import numpy as np
        >>> from bpe_llama._core import attend
        >>> cache, out = np.zeros((2, 1, 1, 1, 4, 2), dtype=np.float32), np.zeros((1, 2), dtype=np.float32)
        >>> none = np.zeros((1, 0), dtype=np.float32)
        >>> attend(np.array([[1, 0, 1, 0, 5, 7]], dtype=np.float32), none, none, cache, 0, np.array([[0, 0]]), out)
        >>> out
        array([[5., 7.]], dtype=float32)
    """

def normalize(
    x: NDArray[np.float32], weights: NDArray[Any], eps: float, start: int, stop: int, num_threads: int = 1
) -> None:
    """Normalize columns of M rows in place, in groups of H columns: with as many groups as heads, each head alone.

    RMSNorm is `x / sqrt(mean(x ** 2) + eps) * factors`. LayerNorm subtracts the mean of `x` first, and adds biases
    last. Arithmetic is float32. A row has the same bits on every CPU, for every number of threads and for every
    batch.

    Args:
        x: float32 (M, O), C-contiguous; written to.
        weights: For RMSNorm the factor of each feature (H,), float32 or the bits of bfloat16 as uint16; for
            LayerNorm the factor and the bias of each feature, float32 (H, 2).
        eps: The epsilon of the norm.
        start: The first column.
        stop: The column after the last one.
        num_threads: The most threads to use.

    Raises:
        TypeError: If an array has another dtype or number of axes, or `x` is not writable.
        ValueError: If `start` to `stop` are not columns in whole groups, an array is not contiguous, or
            `num_threads` is below 1.

    Example:
        >>> import numpy as np
        >>> from bpe_llama._core import normalize
        >>> x = np.array([[3, 3, 8, 8, 5]], dtype=np.float32)
        >>> normalize(x, np.array([1, 10], dtype=np.float32), 0.0, 0, 4)
        >>> x
        array([[ 1., 10.,  1., 10.,  5.]], dtype=float32)
    """

def rms_norm(
    x: NDArray[np.float32],
    weights: NDArray[np.float32],
    eps: float,
    out: NDArray[np.float32],
    scales: NDArray[np.float32],
    num_threads: int = 1,
) -> None:
    """Write the RMSNorm of M rows, `x / sqrt(mean(x ** 2) + eps) * weights`, to `out`.

    Args:
        x: float32 (M, D), C-contiguous, as all arrays.
        weights: float32 (D,).
        eps: The epsilon of the norm.
        out: float32 (M, D).
        scales: float32 (M,); `1 / sqrt(mean(x ** 2) + eps)` of each row, for `rms_norm_backward`.
        num_threads: The most threads to use.

    Raises:
        TypeError: If an array has another dtype or number of axes, or is not writable.
        ValueError: If shapes do not fit, an array is not contiguous, an output shares memory,
            or `num_threads` is below 1.

    Example:
        >>> import numpy as np
        >>> from bpe_llama._core import rms_norm
        >>> x, weights = np.array([[3, 3]], dtype=np.float32), np.array([1, 10], dtype=np.float32)
        >>> out, scales = np.zeros_like(x), np.zeros(1, dtype=np.float32)
        >>> rms_norm(x, weights, 0.0, out, scales)
        >>> out
        array([[ 1., 10.]], dtype=float32)
    """

def rms_norm_backward(
    gradient: NDArray[np.float32],
    x: NDArray[np.float32],
    weights: NDArray[np.float32],
    scales: NDArray[np.float32],
    for_x: NDArray[np.float32],
    for_weights: NDArray[np.float32],
    num_threads: int = 1,
) -> None:
    """Write the gradients of `rms_norm` with respect to `x` and to `weights`.

    Args:
        gradient: That of the output, float32 (M, D), C-contiguous, as all arrays.
        x: As given to `rms_norm`.
        weights: As given to `rms_norm`.
        scales: What `rms_norm` wrote.
        for_x: float32 (M, D); written to.
        for_weights: float32 (D,); written to.
        num_threads: The most threads to use.

    Raises:
        TypeError: If an array has another dtype or number of axes, or is not writable.
        ValueError: If shapes do not fit, an array is not contiguous, an output shares memory,
            or `num_threads` is below 1.

    Example:
        >>> import numpy as np
        >>> from bpe_llama._core import rms_norm_backward
        >>> x, ones = np.array([[2, 2]], dtype=np.float32), np.ones(2, dtype=np.float32)
        >>> for_x, for_weights = np.zeros_like(x), np.zeros_like(ones)
        >>> rms_norm_backward(np.ones_like(x), x, ones, np.array([0.5], dtype=np.float32), for_x, for_weights)
        >>> for_x, for_weights
        (array([[0., 0.]], dtype=float32), array([1., 1.], dtype=float32))
    """

def swiglu(gate: NDArray[np.float32], up: NDArray[np.float32], out: NDArray[np.float32], num_threads: int = 1) -> None:
    """Write `gate * sigmoid(gate) * up` to `out`.

    Args:
        gate: float32 (n,), C-contiguous, as all arrays.
        up: float32 (n,).
        out: float32 (n,).
        num_threads: The most threads to use.

    Raises:
        TypeError: If an array has another dtype or number of axes, or is not writable.
        ValueError: If lengths differ, an array is not contiguous, an output shares memory, or `num_threads` is below 1.

    Example:
        >>> import numpy as np
        >>> from bpe_llama._core import swiglu
        >>> gate, up = np.array([0, 100], dtype=np.float32), np.array([1, 2], dtype=np.float32)
        >>> out = np.zeros_like(gate)
        >>> swiglu(gate, up, out)
        >>> out
        array([  0., 200.], dtype=float32)
    """

def swiglu_backward(
    gradient: NDArray[np.float32],
    gate: NDArray[np.float32],
    up: NDArray[np.float32],
    for_gate: NDArray[np.float32],
    for_up: NDArray[np.float32],
    num_threads: int = 1,
) -> None:
    """Write the gradients of `swiglu` with respect to `gate` and `up`.

    Args:
        gradient: That of the output, float32 (n,), C-contiguous, as all arrays.
        gate: As given to `swiglu`.
        up: As given to `swiglu`.
        for_gate: float32 (n,); written to.
        for_up: float32 (n,); written to.
        num_threads: The most threads to use.

    Raises:
        TypeError: If an array has another dtype or number of axes, or is not writable.
        ValueError: If lengths differ, an array is not contiguous, an output shares memory, or `num_threads` is below 1.

    Example:
        >>> import numpy as np
        >>> from bpe_llama._core import swiglu_backward
        >>> gate, up = np.array([0, 100], dtype=np.float32), np.array([1, 2], dtype=np.float32)
        >>> for_gate, for_up = np.zeros_like(gate), np.zeros_like(up)
        >>> swiglu_backward(np.ones_like(gate), gate, up, for_gate, for_up)
        >>> for_gate, for_up
        (array([0.5, 2. ], dtype=float32), array([  0., 100.], dtype=float32))
    """

def rotate(
    x: NDArray[np.float32],
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
    head_dim: int,
    back: bool,
    out: NDArray[np.float32],
    num_threads: int = 1,
) -> None:
    """Write rows of heads, with features `i` and `i + R / 2` of each head rotated (RoPE), to `out`.

    Args:
        x: float32 (M, N * H), C-contiguous, as all arrays.
        cos: Cosines of the angles, float32 (P, R / 2), where P divides M: row `m` has those of row `m % P`.
        sin: Sines of the angles, float32 (P, R / 2).
        head_dim: H, at least R. Features from R on are copied.
        back: Whether to rotate back, which is the gradient of the rotation.
        out: float32 (M, N * H).
        num_threads: The most threads to use.

    Raises:
        TypeError: If an array has another dtype or number of axes, or is not writable.
        ValueError: If shapes do not fit, an array is not contiguous, an output shares memory,
            or `head_dim` or `num_threads` is below 1.

    Example:
        >>> import numpy as np
        >>> from bpe_llama._core import rotate
        >>> x, by_90_degrees = np.array([[1, 0]], dtype=np.float32), np.array([[0], [1]], dtype=np.float32)
        >>> out = np.zeros_like(x)
        >>> rotate(x, *by_90_degrees[:, None], 2, False, out)
        >>> out
        array([[0., 1.]], dtype=float32)
    """

def cross_entropy(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    factors: NDArray[np.float32],
    losses: NDArray[np.float32],
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    gradient: bool = False,
    num_threads: int = 1,
) -> None:
    """Write the cross-entropy of each row of logits, times a factor, to `losses`.

    Args:
        logits: float32 (M, V), C-contiguous, as all arrays.
        labels: The class of each row, int64 (M,).
        factors: float32 (M,). A row whose factor is 0 has the loss and the gradient 0, whatever its label is.
        losses: float32 (M,); written to.
        label_smoothing: The part of the probability that is spread over all classes.
        z_loss: The weight of the squared logarithm of the softmax's denominator, which is added to a row's loss.
        gradient: Whether the logits are overwritten by the gradient of the sum of all losses.
        num_threads: The most threads to use.

    A row with a logit that is NaN or +infinity, or without a finite one, has the loss and the gradient NaN.

    Raises:
        TypeError: If an array has another dtype or number of axes, or is not writable.
        ValueError: If shapes do not fit, an array is not contiguous, an output shares memory,
            a label is no class, or `num_threads` is below 1.

    Example:
        >>> import numpy as np
        >>> from bpe_llama._core import cross_entropy
        >>> logits, losses = np.zeros((1, 2), dtype=np.float32), np.zeros(1, dtype=np.float32)
        >>> cross_entropy(logits, np.array([1]), np.ones(1, dtype=np.float32), losses, gradient=True)
        >>> losses, logits
        (array([0.6931472], dtype=float32), array([[ 0.5, -0.5]], dtype=float32))
    """

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
        allowed_special: Iterable[str],
    ) -> Self: ...
    def next_batch(self) -> _EncodedDocuments | None:
        """Return the next documents as four arrays, or `None` after the last one.

        They are: the ids, uint32; where each document that ends here ends in them; the bytes of its text, then those of
        the document that goes on in the next batch; the index of its file.
        """
    def encode_texts(self, texts: Iterable[str]) -> _EncodedDocuments:
        """Return the arrays of `next_batch` for texts, each of which is one document."""
    def skip(self, documents: int) -> int:
        """Read some of the next documents without encoding them, and return how many are left to skip."""

    def bytes_read(self) -> int:
        """Return how many bytes of the files were read."""
    def skipped(self) -> _SkippedRows:
        """Return how many rows were skipped, and what is wrong with the first."""

def simd_tier() -> str:
    """Return the instructions in use: the highest tier of this CPU, at most that of the variable `BPE_LLAMA_SIMD`.

    The variable is read once, when the module is imported; a name that is unknown or that this CPU lacks is a
    `ValueError`. The tiers are `portable`; on x86-64 `avx2`, `avx512`, `avx512_bf16` and `amx`; on arm64 `neon`.
    Intel's CPUs compute the same at `avx512_bf16` as at `avx512`, which is faster there. Products of bytes (VNNI,
    NEON's dot products) are used at every tier but `portable`, where the CPU has them.

    Example:
        >>> from bpe_llama._core import simd_tier, simd_tiers
        >>> simd_tier() in simd_tiers()
        True
    """

def simd_tiers() -> list[str]:
    """Return the tiers of this CPU, the slowest first, whatever `BPE_LLAMA_SIMD` says."""
