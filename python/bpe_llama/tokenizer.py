"""The tokenizer: training, loading, encoding, decoding."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bpe_llama import _batches, _core
from bpe_llama._progress import ProgressOption

if TYPE_CHECKING:
    from typing_extensions import Self

    from bpe_llama.counts import WordCounts

PathLike: TypeAlias = "str | os.PathLike[str]"


class Tokenizer(_core.Tokenizer):
    """A byte-level BPE tokenizer: a vocabulary, the pattern that splits text, and special tokens.

    One loaded from SentencePiece's files encodes as SentencePiece does: merging begins with characters, and unknown
    ones become bytes. Its tokens hold spaces where SentencePiece writes ``▁``, and decoding leaves out the space that
    encoding puts first.

    It is made by one of its class methods, never changes, and can be used from many threads at once. The methods that
    encode and decode are compiled; see their documentation in ``bpe_llama._core``.

    Examples:
        >>> tok = Tokenizer.train_from_iterator(["low lower lowest"] * 3, vocab_size=260, progress=False)
        >>> ids = tok.encode("lower")
        >>> tok.decode(ids)
        'lower'
    """

    chat_template: str | None

    def __init__(self, core: _core.Tokenizer, *, chat_template: str | None = None) -> None:
        """Wrap a compiled tokenizer; users call the class methods instead."""
        super().__init__()
        self.chat_template = chat_template

    # -- training ------------------------------------------------------------------------------------------------------

    @classmethod
    def train(
        cls,
        paths: PathLike | Iterable[PathLike],
        vocab_size: int,
        *,
        pattern: str | None = None,
        special_tokens: Sequence[str] = (),
        base: Tokenizer | None = None,
        superword_from: int | None = None,
        min_frequency: int = 0,
        max_token_length: int | None = None,
        tie_order: str = "ids",
        separator: str | None = None,
        field: str = "text",
        num_threads: int | None = None,
        progress: ProgressOption = None,
    ) -> Self:
        """Return the tokenizer that byte-pair encoding learns from files.

        `bpe_llama.training.train` says what each argument means, and what is raised.

        Examples:
            >>> Tokenizer.train(__file__, vocab_size=300, progress=False).vocab_size
            300
        """
        from bpe_llama import training

        core = training.train(
            paths,
            vocab_size,
            pattern=pattern,
            special_tokens=special_tokens,
            base=base,
            superword_from=superword_from,
            min_frequency=min_frequency,
            max_token_length=max_token_length,
            tie_order=tie_order,
            separator=separator,
            field=field,
            num_threads=num_threads,
            progress=progress,
        )
        return cls(core, chat_template=None if base is None else base.chat_template)

    @classmethod
    def train_from_iterator(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        pattern: str | None = None,
        special_tokens: Sequence[str] = (),
        base: Tokenizer | None = None,
        superword_from: int | None = None,
        min_frequency: int = 0,
        max_token_length: int | None = None,
        tie_order: str = "ids",
        num_threads: int | None = None,
        progress: ProgressOption = None,
    ) -> Self:
        """Return the tokenizer that byte-pair encoding learns from texts, each of which is one document.

        `bpe_llama.training.train_from_iterator` says what each argument means, and what is raised.

        Examples:
            >>> Tokenizer.train_from_iterator(["low lower lowest"], vocab_size=258, progress=False).encode("low")
            [257]
        """
        from bpe_llama import training

        core = training.train_from_iterator(
            texts,
            vocab_size,
            pattern=pattern,
            special_tokens=special_tokens,
            base=base,
            superword_from=superword_from,
            min_frequency=min_frequency,
            max_token_length=max_token_length,
            tie_order=tie_order,
            num_threads=num_threads,
            progress=progress,
        )
        return cls(core, chat_template=None if base is None else base.chat_template)

    @classmethod
    def train_from_counts(
        cls,
        counts: WordCounts,
        vocab_size: int,
        *,
        special_tokens: Sequence[str] | None = None,
        base: Tokenizer | None = None,
        min_frequency: int = 0,
        max_token_length: int | None = None,
        tie_order: str = "ids",
        progress: ProgressOption = None,
    ) -> Self:
        """Return the tokenizer that byte-pair encoding learns from word counts: the same as from the text itself.

        `bpe_llama.training.train_from_counts` says what each argument means, and what is raised.
        """
        from bpe_llama import training

        core = training.train_from_counts(
            counts,
            vocab_size,
            special_tokens=special_tokens,
            base=base,
            min_frequency=min_frequency,
            max_token_length=max_token_length,
            tie_order=tie_order,
            progress=progress,
        )
        return cls(core, chat_template=None if base is None else base.chat_template)

    # -- loading -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_file(cls, path: PathLike) -> Self:
        """Return the tokenizer in a file or folder, whatever its format.

        Args:
            path: A ``tokenizer.json``; SentencePiece's ``tokenizer.model`` (Llama 2, Mistral 7B); a ``.tiktoken`` file
                or Llama 3's ``tokenizer.model``, if it is a published vocabulary or was saved by :meth:`save`; a
                ``.gguf`` file; or a folder that holds one of them. Content decides, not the name.

        Raises:
            FileNotFoundError: If there is no such file, or none of these in the folder.
            ValueError: If the file is none of these formats, or damaged.

        Examples:
            >>> import tempfile, pathlib
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "tokenizer.json"
            >>> Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False).save(path)
            >>> Tokenizer.from_file(path).encode("ab")
            [256]
        """
        from bpe_llama import _loading

        path = _loading.file_in(path)
        match _loading.format_of(path):
            case "gguf":
                return cls.from_gguf(path)
            case "huggingface":
                return cls.from_huggingface(path)
            case "tiktoken":
                return cls.from_tiktoken(path)
            case "sentencepiece":
                return cls._with_config(path, _core.Tokenizer.build_from_sentencepiece)

    @classmethod
    def from_huggingface(cls, path: PathLike) -> Self:
        """Return the tokenizer in a ``tokenizer.json``, or in the folder that holds it.

        A ``tokenizer_config.json`` beside it names the beginning and end tokens and the chat template.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, or asks for something other than byte-level BPE or SentencePiece's BPE with
                byte fallback, naming it.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "tokenizer.json"
        return cls._with_config(path, _core.Tokenizer.build_from_huggingface)

    @classmethod
    def _with_config(cls, path: Path, build: Callable[[bytes], _core.Tokenizer]) -> Self:
        """Return the tokenizer in a file, with what a ``tokenizer_config.json`` beside it says."""
        from bpe_llama import _loading

        core, chat_template = _loading.with_config(path, build)
        return cls(core, chat_template=chat_template)

    @classmethod
    def from_tiktoken(
        cls, path: PathLike, pattern: str | None = None, special_tokens: Mapping[str, int] | None = None
    ) -> Self:
        """Return the tokenizer whose ranks are in a ``.tiktoken`` file.

        Args:
            path: The file. Llama 3's ``tokenizer.model`` is one.
            pattern: A named pattern or a regex. ``None`` takes what :meth:`save` left in ``<path>.json``, or what the
                publisher of a well-known vocabulary states.
            special_tokens: Their ids; ``None`` as for ``pattern``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, or ``pattern`` is ``None`` and cannot be told.
        """
        from bpe_llama import _published

        path = Path(path)
        if pattern is None:
            stated = _published.tiktoken_attributes(path)
            pattern = stated.pattern
            special_tokens = stated.special_tokens if special_tokens is None else special_tokens
        return cls(_core.Tokenizer.build_from_tiktoken(path, pattern, _with_ids(special_tokens)))

    @classmethod
    def from_ranks(
        cls, ranks: Mapping[bytes, int], pattern: str = "cl100k", special_tokens: Mapping[str, int] | None = None
    ) -> Self:
        """Return the tokenizer with these token bytes and ranks, which are their ids, as tiktoken takes them.

        Args:
            ranks: Token bytes to id.
            pattern: A named pattern or a regex.
            special_tokens: Their ids.

        Raises:
            ValueError: If a token is empty, two share an id, or the pattern is no regex.

        Examples:
            >>> ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256}
            >>> Tokenizer.from_ranks(ranks, special_tokens={"<|end|>": 257}).encode("abc")
            [256, 99]
        """
        core = _core.Tokenizer.build_from_ranks(dict(ranks), pattern, _with_ids(special_tokens))
        return cls(core)

    @classmethod
    def from_gguf(cls, path: PathLike) -> Self:
        """Return the tokenizer in the metadata of a GGUF file, which gives llama.cpp's ids.

        A file without ``tokenizer.ggml.pre`` is split by llama.cpp's default pattern, with a warning.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, or its tokenizer is neither byte-level BPE nor SentencePiece's BPE.
        """
        from bpe_llama import _gguf_tokenizer

        read = _gguf_tokenizer.read_tokenizer(path)
        template = read.chat_template
        return cls(read.core, chat_template=template.get("default") if isinstance(template, dict) else template)

    # -- saving --------------------------------------------------------------------------------------------------------

    def save(self, path: PathLike) -> None:
        """Write the tokenizer to a file, in the format its suffix names.

        ``.json`` is Hugging Face's ``tokenizer.json``: ``tokenizers`` and ``transformers`` load it and give the same
        ids. ``.tiktoken`` is tiktoken's list of ranks; since it has no place for the pattern and the special tokens,
        they go into ``<path>.json`` beside it. The file appears whole or not at all.

        Raises:
            ValueError: If the suffix is another, or the format cannot hold this vocabulary.
            OSError: If it cannot be written.
        """
        path = Path(path)
        if path.suffix == ".json":
            self.save_huggingface(path)
        elif path.suffix == ".tiktoken":
            from bpe_llama import _published

            self.save_tiktoken(path)
            _published.write_attributes(path, self.pattern, self.special_tokens)
        else:
            raise ValueError(f"cannot tell the format from {path.name!r}: expected a name ending in .json or .tiktoken")

    def __reduce__(self) -> tuple[Callable[..., Tokenizer], tuple[object, ...]]:
        """Pickle as the text of a tokenizer.json."""
        return _unpickle, (type(self), self.to_huggingface(), self.bos_id, self.eos_id, self.chat_template)

    def __repr__(self) -> str:
        """Return the size, the pattern and the number of special tokens."""
        pattern = self.pattern_name or self.pattern
        return (
            f"Tokenizer(vocab_size={self.vocab_size}, pattern={pattern!r}, special_tokens={len(self.special_tokens)})"
        )

    # -- files of ids --------------------------------------------------------------------------------------------------

    def encode_files(
        self,
        paths: PathLike | Iterable[PathLike],
        out: PathLike,
        separator: str | None = None,
        eos: bool = True,
        *,
        field: str = "text",
        num_threads: int | None = None,
        progress: ProgressOption = None,
    ) -> int:
        """Return the number of ids written to a `.npy` file: those of all documents, one after another.

        Memory is bounded whatever the size of the files, if the pattern is a named one or that of superwords. Where
        another regex lets a text be cut is not known, so its documents are held whole, with their ids, a batch of some
        megabytes at a time or one longer document; so are those of SentencePiece vocabularies, and rows and lines under
        any pattern. `numpy.load(out, mmap_mode="r")` reads the ids back.

        Args:
            paths: A file, a folder, a glob pattern, or several of these. `.gz` and `.zst` are decompressed; a line of
                `.jsonl` and a row of `.parquet` is a document; any other file is one.
            out: Where the ids go: uint16 if `vocab_size` is at most 65,536, else uint32, one dimension.
            separator: Text that ends a document within a file.
            eos: Put `eos_id` after each document, if this tokenizer has one.
            field: The field or column of `.jsonl` and `.parquet` files that holds the text.
            num_threads: `None` for all processors. It never changes an id.
            progress: `None` shows a bar on a terminal, `False` none; a callable gets what is done.

        Raises:
            FileNotFoundError: If nothing matches one of the paths.
            ValueError: If a file is not UTF-8 or not of its format, naming file and place; if `out` does not end in
                `.npy`. `out` is then as it was.

        Examples:
            >>> import tempfile, pathlib
            >>> import numpy as np
            >>> folder = pathlib.Path(tempfile.mkdtemp())
            >>> _ = (folder / "a.txt").write_text("abab")
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
            >>> tok.encode_files(folder / "a.txt", folder / "ids.npy", progress=False), np.load(folder / "ids.npy")
            (2, array([256, 256], dtype=uint16))
        """
        from bpe_llama._token_files import encode_files

        return encode_files(
            self,
            paths,
            out,
            end=self.eos_id if eos else None,
            separator=separator,
            field=field,
            num_threads=num_threads,
            progress=progress,
        )

    # -- chat ----------------------------------------------------------------------------------------------------------

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        tokenize: bool = True,
        **variables: Any,
    ) -> Any:
        """Return the ids of a conversation, as the model's own chat template spells it.

        Text inside a message that looks like a special token is ordinary text in the ids.

        Args:
            messages: Mappings with a `role` ("system", "user", "assistant") and a `content`.
            add_generation_prompt: End with what opens the assistant's answer.
            tokenize: `False` returns the text instead, a `str`.
            **variables: Passed to the template, such as `tools`.

        Raises:
            ValueError: If there is no template, it fails, or it refuses the messages.

        Examples:
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
            >>> tok.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
            >>> tok.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
            'user: Hi;'
        """
        from bpe_llama import chat

        make = chat.encode_chat if tokenize else chat.render_for
        return make(self, messages, add_generation_prompt=add_generation_prompt, **variables)

    # -- batches for a model -------------------------------------------------------------------------------------------

    def __call__(
        self,
        texts: str | Sequence[str],
        *,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        padding_side: str = "right",
        pad_id: int | None = None,
        bos: bool = False,
        eos: bool = False,
        allowed_special: Iterable[str] | str = (),
    ) -> dict[str, Any]:
        """Return ``input_ids`` and ``attention_mask`` of one text or many, as transformers' tokenizers do.

        Args:
            texts: One text, or a sequence of ``B`` texts.
            padding: ``True`` or ``"longest"`` pads to the longest row, ``"max_length"`` to ``max_length``.
            truncation: Cut each row to ``max_length`` ids.
            max_length: The most ids of a row.
            return_tensors: ``"np"`` or ``"pt"`` for int64 arrays of shape (B, T); ``None`` for lists.
            padding_side: ``"right"``, or ``"left"`` for generation.
            pad_id: The id that fills short rows; by default ``eos_id``, else 0. The mask is 0 there.
            bos: Put ``bos_id`` before each text.
            eos: Put ``eos_id`` after each text.
            allowed_special: Special tokens that stand for themselves, or ``"all"``.

        Raises:
            ValueError: If rows differ in length and tensors are asked for without padding, or an option is unknown.

        Examples:
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
            >>> tok(["ab", "abab"], padding=True, pad_id=0)
            {'input_ids': [[256, 0], [256, 256]], 'attention_mask': [[1, 0], [1, 1]]}
        """
        batch = _batches.Batches(padding, truncation, max_length, return_tensors, padding_side)
        fill = pad_id if pad_id is not None else self.eos_id or 0
        rows = self.encode_batch(
            [texts] if isinstance(texts, str) else texts, bos=bos, eos=eos, allowed_special=allowed_special
        )
        return batch.of(rows, fill, is_single=isinstance(texts, str))


def _with_ids(special_tokens: Mapping[str, int] | None) -> list[tuple[str, int]]:
    """Return special tokens as the core takes them, their ids in its range."""
    for token, token_id in (special_tokens or {}).items():
        if not 0 <= token_id < 2**21:
            raise ValueError(f"special token {token!r} has id {token_id}; expected 0 to {2**21 - 1}")
    return list((special_tokens or {}).items())


def _unpickle(
    cls: type[Tokenizer], text: str, bos_id: int | None, eos_id: int | None, chat_template: str | None
) -> Tokenizer:
    core = _core.Tokenizer.build_from_huggingface(text.encode()).with_bos_eos(bos_id, eos_id)
    return cls(core, chat_template=chat_template)
