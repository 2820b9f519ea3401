"""The tokenizer: train, load and save it. `_encoding.tokenizer` holds the methods that encode and extend."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bpe_llama._arguments import check_surrogates, instance
from bpe_llama._arguments import path as checked_path
from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._encoding.tokenizer import EncodingTokenizer
from bpe_llama._ends import ends_of, template_ids
from bpe_llama._files import PathLike, atomic_write, write_bytes, write_text, write_together

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from bpe_llama._hub.fetching import HubOptions
    from bpe_llama._transformers import TokenizersBackend
    from bpe_llama.counts import WordCounts
    from bpe_llama.tiktoken import Encoding
    from bpe_llama.training import FileOptions, MergeOptions, TextOptions


class Tokenizer(EncodingTokenizer):
    """A byte-level BPE tokenizer: a vocabulary, the pattern that splits text, and special tokens.

    A tokenizer of SentencePiece's files encodes as SentencePiece does: merging begins with characters, and unknown
    characters become bytes or the unknown token. Its tokens hold spaces where SentencePiece writes ``▁``, and decoding
    drops the space that encoding prepends.

    The class methods return tokenizers, which are immutable and safe to share between threads. The methods that encode
    and decode are compiled: see `bpe_llama._core`.

    Examples:
        >>> tok = Tokenizer.train_from_iterator(["low lower lowest"] * 3, vocab_size=260, progress=False)
        >>> ids = tok.encode("lower")
        >>> tok.decode(ids)
        'lower'
    """

    # -- training ------------------------------------------------------------------------------------------------------

    @classmethod
    def train(cls, paths: PathLike | Iterable[PathLike], vocab_size: int, **options: Unpack[FileOptions]) -> Self:
        """Return the tokenizer that byte-pair encoding learns from files.

        Args:
            paths: A file, a folder, a glob pattern, or several of these.
            vocab_size: The number of ids: 256 bytes, merged tokens and special tokens.
            **options: ``pattern``, ``special_tokens``, ``base``, ``superword_from``, ``min_frequency``,
                ``max_token_length``, ``tie_order``, ``separator``, ``field``, ``on_error``, ``num_threads`` and
                ``progress``. `bpe_llama.training` documents them.

        Raises:
            ValueError: See `bpe_llama.training.train`, as for other errors and warnings.

        Examples:
            >>> Tokenizer.train(__file__, vocab_size=300, progress=False).vocab_size
            300
        """
        from bpe_llama import training

        core = training.train(paths, vocab_size, **options)
        return cls(core, **_attributes_of(options.get("base")))

    @classmethod
    def train_from_iterator(cls, texts: Iterable[str], vocab_size: int, **options: Unpack[TextOptions]) -> Self:
        """Return the tokenizer that byte-pair encoding learns from texts, each of which is one document.

        Args:
            texts: The texts.
            vocab_size: See :meth:`train`.
            **options: See :meth:`train`, without ``separator``, ``field`` and ``on_error``.

        Raises:
            ValueError: See `bpe_llama.training.train_from_iterator`, as for other errors and warnings.

        Examples:
            >>> Tokenizer.train_from_iterator(["low lower lowest"], vocab_size=258, progress=False).encode("low")
            [257]
        """
        from bpe_llama import training

        core = training.train_from_iterator(texts, vocab_size, **options)
        return cls(core, **_attributes_of(options.get("base")))

    @classmethod
    def train_from_counts(
        cls,
        counts: WordCounts,
        vocab_size: int,
        *,
        special_tokens: Sequence[str] | None = None,
        **options: Unpack[MergeOptions],
    ) -> Self:
        """Return the tokenizer that byte-pair encoding learns from word counts: the same as from the text itself.

        Args:
            counts: The counts.
            vocab_size: See :meth:`train`.
            special_tokens: ``None`` for those of the counts.
            **options: ``base``, ``min_frequency``, ``max_token_length``, ``tie_order`` and ``progress``.

        Raises:
            ValueError: See `bpe_llama.training.train_from_counts`, as for warnings.
        """
        from bpe_llama import training

        core = training.train_from_counts(counts, vocab_size, special_tokens=special_tokens, **options)
        return cls(core, **_attributes_of(options.get("base")))

    # -- loading -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_file(cls, path: PathLike) -> Self:
        """Return the tokenizer in a file or folder, whatever its format.

        Args:
            path: A ``tokenizer.json``; SentencePiece's ``tokenizer.model`` of the type BPE; a ``.tiktoken`` file
                or Llama 3's or 4's ``tokenizer.model``, if it is a published vocabulary or was saved by :meth:`save`;
                Mistral's ``tekken.json``; a ``vocab.json`` or ``merges.txt`` with the other beside it; a ``.gguf``
                file; or a folder with one of them. The content decides, not the name.

        The files name ``bos_id`` and ``eos_id``. For a folder, or a ``tokenizer.json`` beside a
        ``tokenizer_config.json``, ``special_tokens_map.json``, ``added_tokens.json`` or ``config.json``, they are those
        of transformers: a role for which neither a file nor the tokenizer's class names a token is ``None``. A
        ``tokenizer.json`` alone names no roles, so special tokens of common names, such as ``<s>`` and ``</s>``, have
        them.

        Raises:
            FileNotFoundError: If there is no such file, or no tokenizer in the folder.
            ValueError: If the file is of another format, or damaged.

        Examples:
            >>> import tempfile, pathlib
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "tokenizer.json"
            >>> Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False).save(path)
            >>> Tokenizer.from_file(path).encode("ab")
            [256]
        """
        from bpe_llama._loading.load import load

        core, attributes = load(path)
        return cls(core, **vars(attributes))

    @classmethod
    def from_pretrained(cls, name: PathLike, **hub: Unpack[HubOptions]) -> Self:
        """Return the tokenizer at a path, or else of a repository on the Hugging Face Hub.

        Args:
            name: As :meth:`from_file` takes it, or ``ORG/NAME``, ``ORG/NAME@REVISION`` or ``ORG/NAME/FILE.gguf``.
                What exists is a path, and so is a `pathlib.Path`.
            **hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only`` and ``subfolder``, as in transformers.

        Of a repository the vocabulary and the files beside it are fetched, no weights unless they are one ``.gguf``.

        Raises:
            OSError: If there is neither, or it cannot be fetched; the message says why.
            ValueError: See :meth:`from_file`.
        """
        from bpe_llama._hub.fetching import local_path
        from bpe_llama._loading.load import needed_files

        return cls.from_file(local_path(name, needed_files, **hub))

    @classmethod
    def from_name(cls, name: str) -> Self:
        """Return the tokenizer of a published vocabulary.

        Args:
            name: One of tiktoken's (``gpt2``, ``r50k_base``, ``p50k_base``, ``p50k_edit``, ``cl100k_base``,
                ``o200k_base``, ``o200k_harmony``), an OpenAI model (``gpt-4o`` ...), ``llama3``, ``llama4``, ``qwen``
                or ``qwen2``. The last two have different special tokens, and put text into normal form C.

        The file is looked for in ``$BPE_LLAMA_CACHE`` (by default ``~/.cache/bpe_llama``), in tiktoken's cache and in
        the Hugging Face Hub's. If it is in none, it is downloaded into the first, where its authors let anyone do so.

        Raises:
            ValueError: If the name is unknown, or the downloaded file has not the known SHA-256.
            FileNotFoundError: If there is no file; the message says where it was looked for and where to put it.
        """
        from bpe_llama._loading.tiktoken import read_published

        return cls(read_published(name))

    @classmethod
    def from_huggingface(cls, path: PathLike) -> Self:
        """Return the tokenizer in a ``tokenizer.json``, or in the folder that holds it.

        A ``tokenizer_config.json`` beside it names ``bos_id``, ``eos_id`` and the chat template; for their defaults see
        :meth:`from_file`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, or needs something other than byte-level BPE or SentencePiece's BPE with byte
                fallback; the message names it.
        """
        from bpe_llama._loading.load import load_huggingface

        core, attributes = load_huggingface(path)
        return cls(core, **vars(attributes))

    @classmethod
    def from_tiktoken(
        cls, path: PathLike, pattern: str | None = None, special_tokens: Mapping[str, int] | None = None
    ) -> Self:
        """Return the tokenizer with the ranks of a ``.tiktoken`` file.

        Args:
            path: The file. Llama 3's and Llama 4's ``tokenizer.model`` are such files.
            pattern: A named pattern or a regex. ``None`` reads the pattern that :meth:`save` wrote to ``<path>.json``,
                or takes that of a published vocabulary.
            special_tokens: Special tokens to id; ``None`` as for ``pattern``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, or ``pattern`` is ``None`` and unknown.
        """
        from bpe_llama._loading.tiktoken import read_tokenizer

        core, settings = read_tokenizer(path, pattern, special_tokens)
        return cls(core, settings=settings)

    @classmethod
    def from_ranks(
        cls, ranks: Mapping[bytes, int], pattern: str = "cl100k", special_tokens: Mapping[str, int] | None = None
    ) -> Self:
        """Return the tokenizer with these ranks, which are the ids, as in `tiktoken.Encoding`.

        Args:
            ranks: Token bytes to id.
            pattern: A named pattern or a regex.
            special_tokens: Special tokens to id.

        Raises:
            ValueError: If a token is empty, two tokens share an id, or the pattern is no regex.

        Examples:
            >>> ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256}
            >>> Tokenizer.from_ranks(ranks, special_tokens={"<|end|>": 257}).encode("abc")
            [256, 99]
        """
        from bpe_llama._loading.tiktoken import checked_ids

        ranks = dict(instance("ranks", ranks, Mapping, "a mapping of bytes to id"))
        return cls(CoreTokenizer.build_from_ranks(ranks, pattern, checked_ids(special_tokens)))

    @classmethod
    def from_gguf(cls, path: PathLike) -> Self:
        """Return the tokenizer in the metadata of a GGUF file; its ids are those of llama.cpp.

        Without ``tokenizer.ggml.pre`` in the file, llama.cpp's default pattern splits text, with a warning.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, or its tokenizer is neither byte-level BPE nor SentencePiece's BPE.
        """
        from bpe_llama._loading.load import load_gguf

        core, attributes = load_gguf(path)
        return cls(core, **vars(attributes))

    # -- saving --------------------------------------------------------------------------------------------------------

    def save(self, path: PathLike) -> None:
        """Write the tokenizer to a file in the format of its suffix, atomically; files that belong together as one.

        | path | format |
        |---|---|
        | ``.json`` | Hugging Face's ``tokenizer.json``, with the same ids in ``tokenizers`` and ``transformers`` |
        | ``.model`` | SentencePiece's, for a vocabulary of such a file that ``tokenizer.json`` cannot express |
        | ``.tiktoken`` | tiktoken's list of ranks; pattern, special tokens and their roles go to ``<path>.json`` |
        | a folder | ``tokenizer.json``, or else ``tokenizer.model`` |

        Beside a ``tokenizer.json`` or ``tokenizer.model`` of this name, ``tokenizer_config.json`` and the chat
        templates are written, from which ``transformers`` and :meth:`from_file` read the same special tokens. A file of
        another name holds the tokenizer alone: a ``UserWarning`` names the roles and settings that it loses.

        Raises:
            ValueError: If the suffix is unknown, or the format cannot express this vocabulary.
            OSError: If it cannot be written.
        """
        path = checked_path("path", path)
        has_config = path.name in ("tokenizer.json", "tokenizer.model")
        if has_config:  # all texts are made and checked before the first is written
            from bpe_llama._loading.folder import config_text
            from bpe_llama.chat.templates import TEMPLATE_FILES, template_files, write_chat_templates

            config = config_text(self, self._attributes)
            check_surrogates("tokenizer_config.json", config)
            template_files(path.parent, self.chat_template)
            is_model = path.suffix == ".model"
            content = self.to_sentencepiece(config_beside=True) if is_model else self.to_huggingface().encode()
            path.parent.stat()  # raises if there is no such folder, which would be made
            with write_together(path.parent, path.name, TEMPLATE_FILES) as temporary:
                write_bytes(temporary / path.name, content)
                write_text(temporary / "tokenizer_config.json", config)
                write_chat_templates(temporary, self.chat_template)
        elif path.suffix == ".json":
            write_text(path, self.to_huggingface())
        elif path.suffix == ".tiktoken":
            from bpe_llama._loading.tiktoken import write_attributes

            with atomic_write(path) as temporary:  # so that the old file stays if the other one cannot be written
                temporary.write_bytes(self.to_tiktoken().encode())
                write_attributes(path, temporary, self, self._settings.end_ids)
        elif path.suffix == ".model":
            write_bytes(path, self.to_sentencepiece(config_beside=False))
        elif not path.suffix or path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            is_model = self.sentencepiece_model() is not None
            if is_model and (path / "tokenizer.json").exists():
                raise ValueError(
                    f"{path} holds a tokenizer.json, which would be read in place of the tokenizer.model that this "
                    "tokenizer is saved as; remove it first"
                )
            self.save(path / ("tokenizer.model" if is_model else "tokenizer.json"))
        else:
            raise ValueError(
                f"cannot tell the format from {path.name!r}: expected a folder, or a name ending in .json, .tiktoken "
                "or .model"
            )
        if not has_config and path.suffix and not path.is_dir():
            from bpe_llama._loading.load import warn_of_losses

            warn_of_losses(path, self, self._attributes)

    def as_tiktoken(self, name: str = "bpe_llama") -> Encoding:
        """Return this tokenizer with the methods of `tiktoken.Encoding`; see `bpe_llama.tiktoken`.

        It encodes by this tokenizer, so its ids are those of `encode`, and it costs no memory.

        Raises:
            ValueError: If tiktoken cannot express this tokenizer (SentencePiece, normalization ...); the message says
                why.

        Examples:
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=258, special_tokens=["<s>"], progress=False)
            >>> tok.as_tiktoken().encode("ab<s>", allowed_special={"<s>"})
            [256, 257]
        """
        from bpe_llama.tiktoken import Encoding

        self.check_tiktoken()
        return Encoding.of_tokenizer(name, self)

    def __reduce__(self) -> tuple[Callable[..., Tokenizer], tuple[object, ...]]:
        """Pickle as the text of a tokenizer.json, or as a SentencePiece model."""
        ends, attributes = ends_of(self), vars(self._attributes)
        model = self.sentencepiece_model()
        if model is None:
            return _unpickle, (type(self), self.to_own_json().encode(), ends, attributes)
        added = [tuple(token[key] for key in _FLAGS) for token in json.loads(self.added_tokens_json())]
        return _unpickle_sentencepiece, (type(self), model, added, template_ids(self), ends, attributes)

    def __repr__(self) -> str:
        """Return the size, the pattern and the number of special tokens."""
        pattern = self.pattern_name or self.pattern
        return (
            f"Tokenizer(vocab_size={self.vocab_size}, pattern={pattern!r}, special_tokens={len(self.special_tokens)})"
        )

    # -- other libraries -----------------------------------------------------------------------------------------------

    def as_transformers(self, *, num_threads: int | None = None) -> TokenizersBackend:
        """Return a tokenizer for code that expects one of transformers: trainers, data collators, pipelines.

        It is a `transformers.TokenizersBackend` (``PreTrainedTokenizerFast``) and gives what that class gives for the
        files that :meth:`save` writes. Our core encodes and decodes where the results are equal; the guide
        to migration lists the rest. As in transformers, special tokens are found in any text.

        Args:
            num_threads: For batches: ``None`` for all processors. One if ``TOKENIZERS_PARALLELISM`` is false.

        Raises:
            ImportError: If transformers 5 is not installed.
            ValueError: If a ``tokenizer.json`` cannot express this tokenizer, or ``num_threads`` is less than 1.
        """
        try:
            from bpe_llama._transformers import build
        except (ImportError, AttributeError) as error:  # the latter from transformers 4, which lacks the class
            raise ImportError(
                f"as_transformers needs transformers 5, pip install 'bpe_llama[transformers]': {error}"
            ) from error

        self.encode_batch([], num_threads)  # refuses what is no number of threads
        return build(self.save, num_threads)


def _attributes_of(base: CoreTokenizer | None) -> dict[str, Any]:
    """Return what a tokenizer that is trained further keeps: chat template, roles, end ids and settings."""
    return vars(base._attributes) if isinstance(base, Tokenizer) else {}


# The fields of a token, in the order of `with_added_tokens`.
_FLAGS = ("content", "special", "single_word", "lstrip", "rstrip", "normalized")


def _unpickle(cls: type[Tokenizer], file: bytes, ends: tuple[int | None, ...], attributes: dict[str, Any]) -> Tokenizer:
    return cls(CoreTokenizer.build_from_own_json(file).with_ends(*ends), **attributes)


def _unpickle_sentencepiece(
    cls: type[Tokenizer],
    model: bytes,
    added: list[tuple[Any, ...]],
    around: tuple[int | None, int | None],
    ends: tuple[int | None, ...],
    attributes: dict[str, Any],
) -> Tokenizer:
    core = CoreTokenizer.build_from_sentencepiece(model).with_added_tokens(added)
    return cls(core.with_ends(*ends).with_template(*around), **attributes)
