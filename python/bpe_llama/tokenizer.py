"""The tokenizer: training, loading, encoding, decoding."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bpe_llama import _batches, _core
from bpe_llama._loading.settings import Settings
from bpe_llama._progress import ProgressOption

if TYPE_CHECKING:
    from typing_extensions import Self

    from bpe_llama._loading.folder import Beside
    from bpe_llama.counts import WordCounts

PathLike: TypeAlias = "str | os.PathLike[str]"


class Tokenizer(_core.Tokenizer):
    """A byte-level BPE tokenizer: a vocabulary, the pattern that splits text, and special tokens.

    One loaded from SentencePiece's files encodes as SentencePiece does: merging begins with characters, and unknown
    ones become bytes or the unknown token. Its tokens hold spaces where SentencePiece writes ``▁``, and decoding leaves
    out the space that encoding puts first.

    It is made by one of its class methods, never changes, and can be used from many threads at once. The methods that
    encode and decode are compiled; see their documentation in ``bpe_llama._core``.

    Examples:
        >>> tok = Tokenizer.train_from_iterator(["low lower lowest"] * 3, vocab_size=260, progress=False)
        >>> ids = tok.encode("lower")
        >>> tok.decode(ids)
        'lower'
    """

    chat_template: str | dict[str, str] | None

    def __init__(
        self,
        core: _core.Tokenizer,
        *,
        chat_template: str | dict[str, str] | None = None,
        roles: Mapping[str, str] | None = None,
        extra: Iterable[str] = (),
        settings: Settings | None = None,
    ) -> None:
        """Wrap a compiled tokenizer; users call the class methods instead."""
        super().__init__()
        self.chat_template = chat_template
        self._roles = dict(roles or {})
        self._extra = list(extra)
        self._settings = settings or Settings()

    @property
    def _beside(self) -> Beside:
        """What this class holds beside the compiled tokenizer."""
        from bpe_llama._loading.folder import Beside

        return Beside(self.chat_template, self._roles, self._extra, self._settings)

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
        on_error: str = "raise",
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
            on_error=on_error,
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
            path: A ``tokenizer.json``; SentencePiece's ``tokenizer.model`` of the type BPE; a ``.tiktoken`` file
                or Llama 3's or 4's ``tokenizer.model``, if it is a published vocabulary or was saved by :meth:`save`;
                Mistral's ``tekken.json``; a ``vocab.json`` or ``merges.txt`` with the other beside it; a ``.gguf``
                file; or a folder that holds one of them. Content decides, not the name.

        The beginning and end tokens are those that the files name. For a folder with a ``tokenizer.json``, or one with
        a ``tokenizer_config.json``, ``special_tokens_map.json``, ``added_tokens.json`` or ``config.json`` beside it,
        they are transformers': a role that neither a file nor the tokenizer's class gives a token is ``None``. A
        ``tokenizer.json`` named by itself, with none of these beside it, says nothing of roles: special tokens of usual
        names, such as ``<s>`` and ``</s>``, then begin and end a text.

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
        from bpe_llama._loading import folder

        named, path = path, folder.file_in(path)
        match folder.format_of(path):
            case "gguf":
                return cls.from_gguf(path)
            case "huggingface":
                return cls._with_config(path, _core.Tokenizer.build_from_huggingface, Path(named).is_dir())
            case "tiktoken":
                return cls.from_tiktoken(path)
            case "sentencepiece":
                return cls._with_config(path, _core.Tokenizer.build_from_sentencepiece, Path(named).is_dir())
            case "tekken":
                from bpe_llama._loading import tekken

                return cls(tekken.read_tokenizer(path), **vars(folder.beside(path.parent, {})))
            case "vocab_and_merges":
                from bpe_llama._loading import vocab_and_merges

                core, beside = vocab_and_merges.read_tokenizer(path)
                return cls(core, **vars(beside))

    @classmethod
    def from_huggingface(cls, path: PathLike) -> Self:
        """Return the tokenizer in a ``tokenizer.json``, or in the folder that holds it.

        A ``tokenizer_config.json`` beside it names the beginning and end tokens and the chat template; where no file
        names such tokens, see :meth:`from_file`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, or asks for something other than byte-level BPE or SentencePiece's BPE with
                byte fallback, naming it.
        """
        path = Path(path)
        is_folder = path.is_dir()
        path = path / "tokenizer.json" if is_folder else path
        return cls._with_config(path, _core.Tokenizer.build_from_huggingface, is_folder)

    @classmethod
    def _with_config(cls, path: Path, build: Callable[[bytes], _core.Tokenizer], is_in_folder: bool) -> Self:
        """Return the tokenizer in a file, with what a ``tokenizer_config.json`` beside it says."""
        from bpe_llama._loading import folder

        is_sentencepiece = build == _core.Tokenizer.build_from_sentencepiece
        core, beside = folder.with_config(path, build, is_sentencepiece=is_sentencepiece, is_in_folder=is_in_folder)
        return cls(core, **vars(beside))

    @classmethod
    def from_tiktoken(
        cls, path: PathLike, pattern: str | None = None, special_tokens: Mapping[str, int] | None = None
    ) -> Self:
        """Return the tokenizer whose ranks are in a ``.tiktoken`` file.

        Args:
            path: The file. Llama 3's and Llama 4's ``tokenizer.model`` are such files.
            pattern: A named pattern or a regex. ``None`` takes what :meth:`save` left in ``<path>.json``, or what the
                publisher of a well-known vocabulary states.
            special_tokens: Their ids; ``None`` as for ``pattern``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, or ``pattern`` is ``None`` and cannot be told.
        """
        from bpe_llama._loading import tiktoken

        path = Path(path)
        if pattern is None:
            stated = tiktoken.tiktoken_attributes(path)
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
        from bpe_llama._gguf import reader

        read = reader.read_tokenizer(path)
        core = read.core.with_ends(read.core.bos_id, read.core.eos_id, read.pad_id, read.unk_id)
        core = core.with_template(core.bos_id if read.add_bos else None, core.eos_id if read.add_eos else None)
        return cls(
            core,
            chat_template=read.chat_template,
            settings=Settings(end_ids=tuple(sorted(read.end_ids - {core.eos_id}))),
        )

    # -- saving --------------------------------------------------------------------------------------------------------

    def save(self, path: PathLike) -> None:
        """Write the tokenizer to a file, in the format its suffix names.

        ``.json`` is Hugging Face's ``tokenizer.json``: ``tokenizers`` and ``transformers`` load it and give the same
        ids. ``.model`` is SentencePiece's, for a vocabulary that was read from such a file and that ``tokenizer.json``
        cannot hold. A folder gets a ``tokenizer.json``, or else a ``tokenizer.model``. Beside a file of one of these
        names a ``tokenizer_config.json`` and the chat templates are written, from which ``transformers`` and
        :meth:`from_file` read the same ends and special tokens; a file of another name holds the tokenizer alone.
        ``.tiktoken`` is tiktoken's list of ranks, which has no place for the pattern and the special tokens: they go
        into ``<path>.json``. Each file appears whole or not at all.

        Raises:
            ValueError: If the suffix is another, or the format cannot hold this vocabulary.
            OSError: If it cannot be written.
        """
        path = Path(path)
        if path.suffix == ".json":
            self.save_huggingface(path)
        elif path.suffix == ".tiktoken":
            from bpe_llama._loading import tiktoken

            self.save_tiktoken(path)
            tiktoken.write_attributes(path, self.pattern, self.special_tokens)
        elif path.suffix == ".model":
            self.save_sentencepiece(path)
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
        if path.name in ("tokenizer.json", "tokenizer.model"):
            from bpe_llama._loading import folder
            from bpe_llama.chat import templates

            folder.write_config(path.parent, self, self._beside)
            templates.write_chat_templates(path.parent, self.chat_template)

    def __reduce__(self) -> tuple[Callable[..., Tokenizer], tuple[object, ...]]:
        """Pickle as the text of a tokenizer.json, or as the SentencePiece model that it cannot hold."""
        from bpe_llama._loading import folder

        ends, beside = folder.ends_of(self), vars(self._beside)
        model = self.sentencepiece_model()
        if model is None:
            return _unpickle, (type(self), self.to_own_json().encode(), ends, beside)
        added = [tuple(token[key] for key in _FLAGS) for token in json.loads(self.added_tokens_json())]
        return _unpickle_sentencepiece, (type(self), model, added, folder.around(self), ends, beside)

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
        bos: bool | None = None,
        field: str = "text",
        on_error: str = "raise",
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
                `.jsonl` and a row of `.parquet` is a document; any other file is one. A UTF-8 byte-order mark at the
                start of a file is no part of its text.
            out: Where the ids go: uint16 if `vocab_size` is at most 65,536, else uint32, one dimension.
            separator: Text that ends a document within a file.
            eos: Put after each document what the tokenizer's file puts after a text (its post-processor), else
                `eos_id`, if there is one.
            bos: `None` puts before each document what the tokenizer's file puts before a text, as `tok(...)` does;
                `True` `bos_id`, `False` nothing.
            field: The field or column of `.jsonl` and `.parquet` files that holds the text.
            on_error: `"raise"` an error at the first row that holds no text, or `"skip"` them and warn of their number;
                `WordCounts.from_files` says what such a row is.
            num_threads: `None` for all processors. It never changes an id.
            progress: `None` shows a bar on a terminal, `False` none; a callable gets what is done.

        Warns:
            UserWarning: How many rows were skipped, and where the first stands.

        Raises:
            FileNotFoundError: If nothing matches one of the paths.
            ValueError: If a row holds no text or a file is not of its format, naming file and place; if `out` does not
                end in `.npy`, `on_error` is neither, or `bos` is true and there is none. `out` is then as it was.

        Examples:
            >>> import tempfile, pathlib
            >>> import numpy as np
            >>> folder = pathlib.Path(tempfile.mkdtemp())
            >>> _ = (folder / "a.txt").write_text("abab")
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
            >>> tok.encode_files(folder / "a.txt", folder / "ids.npy", progress=False), np.load(folder / "ids.npy")
            (2, array([256, 256], dtype=uint16))
        """
        from bpe_llama._corpus.bad_rows import BadRows
        from bpe_llama._corpus.token_files import begins_and_ends, encode_files

        bad_rows = BadRows(on_error)
        begins, ends = begins_and_ends(self)
        if bos is not None:
            from bpe_llama._batches import template_of

            items = template_of(self, pair=False, special=False, bos=bos, eos=False)
            begins = [item.special for item in items if item.special is not None]
        count = encode_files(
            self,
            paths,
            out,
            begins=begins,
            ends=ends if eos else [],
            separator=separator,
            field=field,
            bad_rows=bad_rows,
            num_threads=num_threads,
            progress=progress,
        )
        bad_rows.warn(stacklevel=2)
        return count

    # -- chat ----------------------------------------------------------------------------------------------------------

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool | None = None,
        *,
        tokenize: bool = True,
        tools: Iterable[Mapping[str, Any] | Callable[..., Any]] | None = None,
        documents: Iterable[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        continue_final_message: bool | str = False,
        return_assistant_tokens_mask: bool = False,
        return_dict: bool = False,
        **variables: Any,
    ) -> Any:
        """Return the ids of a conversation, as the model's own chat template spells it.

        The text is that of transformers' `apply_chat_template`. Text inside a message that looks like a special token
        is ordinary text in the ids. Rendering is sandboxed, and bounded in time and memory.

        Args:
            messages: Mappings with a `role` ("system", "user", "assistant") and a `content`: a text, None, or a list of
                parts.
            add_generation_prompt: End with what opens the assistant's answer; None means True unless
                `continue_final_message` is given.
            tokenize: `False` returns the text instead, a `str`.
            tools: What the model may call: JSON schemas, or functions with type hints and a docstring in Google's
                style, which become such schemas.
            documents: What the model may read, each a mapping, as a rule with `title` and `text`.
            chat_template: A template's text instead of the tokenizer's own, or the name of one of
                `tokenizer.chat_template`. By default "tool_use" if there is one and tools are given, else "default".
            continue_final_message: End where the last message does, so that the model continues it; a name stands for a
                field other than `content`.
            return_assistant_tokens_mask: Return a dict with `input_ids`, `attention_mask` and `assistant_masks`, which
                is 1 for each token that a `{% generation %}` block of the template wrote.
            return_dict: Return a dict with `input_ids` and `attention_mask`.
            **variables: Read by the template, such as `enable_thinking`.

        Raises:
            ValueError: If there is no template, it fails, costs too much or refuses the messages; if options exclude
                each other; or if a keyword is neither an option nor a variable that the template reads.

        Examples:
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
            >>> tok.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
            >>> talk = [{"role": "user", "content": "Hi"}]
            >>> tok.apply_chat_template(talk, tokenize=False)
            'user: Hi;'
            >>> tok.apply_chat_template(talk, tokenize=False, continue_final_message=True)
            'user: Hi'
        """
        from bpe_llama import chat

        options = {
            "add_generation_prompt": add_generation_prompt,
            "tools": tools,
            "documents": documents,
            "chat_template": chat_template,
            "continue_final_message": continue_final_message,
            **variables,
        }
        if not tokenize:
            if return_assistant_tokens_mask or return_dict:
                raise ValueError("return_assistant_tokens_mask and return_dict need tokenize=True")
            return chat.render_for(self, messages, **options)
        if return_assistant_tokens_mask:
            ids, is_answer = chat.encode_marked_chat(self, messages, **options)
            return {
                "input_ids": ids,
                "attention_mask": [1] * len(ids),
                "assistant_masks": [int(told) for told in is_answer],
            }
        ids = chat.encode_chat(self, messages, **options)
        return {"input_ids": ids, "attention_mask": [1] * len(ids)} if return_dict else ids

    # -- batches for a model -------------------------------------------------------------------------------------------

    def __call__(
        self,
        texts: str | Sequence[str],
        text_pairs: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        padding_side: str | None = None,
        truncation_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        pad_id: int | None = None,
        bos: bool = False,
        eos: bool = False,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        allowed_special: Iterable[str] | str = (),
    ) -> dict[str, Any]:
        """Return ``input_ids`` and ``attention_mask`` of one text or many, as transformers' tokenizers do.

        The tokens that the tokenizer's file puts around a text (its post-processor, ``add_bos_token``) are included.
        Other than in transformers, text that looks like a special token stays text unless ``allowed_special`` names it.

        Args:
            texts: One text, or a sequence of ``B`` texts.
            text_pairs: The second text of each pair. Beside a single text, ``""`` means that there is none.
            add_special_tokens: Whether the post-processor's tokens are wanted.
            padding: ``True`` or ``"longest"`` pads to the longest row, ``"max_length"`` to ``max_length``.
            truncation: Cut each row to ``max_length`` ids, those of special tokens included: ``True`` or
                ``"longest_first"`` cuts the longer text of a pair first, ``"only_first"`` and ``"only_second"`` one. By
                default rows are cut if ``max_length`` is given and no row is padded to it.
            max_length: The most ids of a row; by default ``model_max_length`` of the tokenizer's files. Where they name
                none, ``truncation=True`` cuts nothing, with a warning.
            return_tensors: ``"np"`` or ``"pt"`` for int64 arrays of shape (B, T); ``None`` for lists.
            padding_side: ``"right"``, or ``"left"`` for generation; by default what the tokenizer's files say.
            truncation_side: The side that is cut off, likewise.
            pad_to_multiple_of: Pad to a multiple of this length. If rows are truncated, ``max_length`` must be one.
            pad_id: The id that fills short rows; by default ``pad_id`` of the tokenizer, else ``eos_id``, else 0. The
                mask is 0 there.
            bos: Begin with ``bos_id``, once.
            eos: End with ``eos_id``, once.
            return_token_type_ids: Also return ``token_type_ids``: which text of a pair each token is of. By default,
                ``model_input_names`` of the tokenizer's files decides, or its class.
            return_attention_mask: Also return ``attention_mask``, by default likewise.
            return_special_tokens_mask: Also return ``special_tokens_mask``: 1 for tokens put around the texts.
            return_offsets_mapping: Also return ``offset_mapping``: the range of characters of each token.
            allowed_special: Special tokens that stand for themselves, or ``"all"``.

        Raises:
            TypeError: If a length or ``pad_id`` is no int, or only one of ``texts`` and ``text_pairs`` is a str.
            ValueError: If rows differ in length and tensors are asked for without padding, or an option is unknown or
                out of range.

        Examples:
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
            >>> tok(["ab", "abab"], padding=True, pad_id=0)
            {'input_ids': [[256, 0], [256, 256]], 'attention_mask': [[1, 0], [1, 1]]}
        """
        is_single = isinstance(texts, str)
        if is_single and text_pairs == "":
            text_pairs = None  # as in transformers
        if text_pairs is not None and is_single != isinstance(text_pairs, str):
            raise TypeError(
                f"texts is {texts!r:.80} and text_pairs {text_pairs!r:.80}; expected two str or two sequences"
            )
        firsts = [texts] if isinstance(texts, str) else list(texts)
        seconds = [text_pairs] if isinstance(text_pairs, str) else None if text_pairs is None else list(text_pairs)
        if seconds is not None and len(seconds) != len(firsts):
            raise ValueError(f"{len(firsts)} texts have {len(seconds)} text_pairs; expected as many")
        if pad_id is not None and not 0 <= _batches.integer("pad_id", pad_id) < 2**32:
            raise ValueError(f"pad_id is {pad_id}; expected an id from 0 to 2**32 - 1")
        settings = self._settings
        if truncation is None:
            truncation = max_length is not None and padding is False
        batch = _batches.Batches(
            padding,
            truncation,
            max_length,
            return_tensors,
            settings.padding_side if padding_side is None else padding_side,
            settings.truncation_side if truncation_side is None else truncation_side,
            pad_to_multiple_of,
        ).limited(settings.model_max_length)
        template = _batches.template_of(self, pair=seconds is not None, special=add_special_tokens, bos=bos, eos=eos)
        columns: list[list[list[int]]] = []
        spans: list[Any] = []
        for column in (firsts, seconds):
            if column is None:
                continue
            if return_offsets_mapping:
                found = [self.encode_with_offsets(text, allowed_special=allowed_special) for text in column]
                columns.append([ids for ids, _ in found])
                spans.append([offsets for _, offsets in found])
            else:
                columns.append(self.encode_batch(column, allowed_special=allowed_special))
        rows = batch.rows(columns[0], columns[1] if len(columns) > 1 else None, template, spans)
        fill = next((token_id for token_id in (pad_id, self.pad_id, self.eos_id) if token_id is not None), 0)
        inputs = settings.model_input_names
        wanted = {
            "input_ids": True,
            "token_type_ids": "token_type_ids" in inputs if return_token_type_ids is None else return_token_type_ids,
            "attention_mask": "attention_mask" in inputs if return_attention_mask is None else return_attention_mask,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
        }
        return batch.of(rows, fill, [key for key, is_wanted in wanted.items() if is_wanted], is_single=is_single)

    # -- special tokens ------------------------------------------------------------------------------------------------

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Special tokens by role, as in transformers: ``{"eos_token": "</s>", ...}``."""
        from bpe_llama._loading import folder

        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        ends = {name: token_id for name, token_id in zip(names, folder.ends_of(self), strict=True)}
        return {
            name: self.id_to_token(token_id) for name, token_id in ends.items() if token_id is not None
        } | self._roles

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids at which generation ends: ``eos_id``, and the other ends that a GGUF file names."""
        eos = () if self.eos_id is None else (self.eos_id,)
        return frozenset((*eos, *self._settings.end_ids))

    @property
    def cls_id(self) -> int | None:
        """The id of the classification token."""
        return self._role_id("cls_token")

    @property
    def sep_id(self) -> int | None:
        """The id of the separator token."""
        return self._role_id("sep_token")

    @property
    def mask_id(self) -> int | None:
        """The id of the mask token."""
        return self._role_id("mask_token")

    def _role_id(self, role: str) -> int | None:
        name = self._roles.get(role)
        return None if name is None else self.token_to_id(name)

    def with_special_tokens(self, tokens: Sequence[str]) -> Self:
        """Return this tokenizer with more special tokens, which text gives only where it is allowed to.

        Their ids follow the last one, in this order; a token that is there already keeps its id and becomes special.

        Raises:
            ValueError: If a token is empty.

        Examples:
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
            >>> grown = tok.with_special_tokens(["<|user|>"])
            >>> grown.encode("<|user|>ab", allowed_special="all"), len(tok), len(grown)
            ([257, 256], 257, 258)
        """
        grown = self._grown(tokens, special=True)
        named = set(self.special_tokens_map.values())
        grown._extra = list(dict.fromkeys((*self._extra, *(token for token in tokens if token not in named))))
        return grown

    def with_tokens(self, tokens: Sequence[str]) -> Self:
        """Return this tokenizer with more tokens that are found wherever their text occurs, before anything else.

        Their ids follow the last one, in this order; a token that is there already keeps its id, and a special one
        stays special. As in ``tokenizers``, they are looked for once the text is normalized, where the tokenizer does
        that.

        Raises:
            ValueError: If a token is empty.

        Examples:
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
            >>> tok.with_tokens(["bab"]).encode("abab")
            [64, 257]
        """
        return self._grown(tokens, special=False)

    def _grown(self, tokens: Sequence[str], *, special: bool) -> Self:
        if isinstance(tokens, str):
            raise TypeError(f"expected a sequence of tokens, got the str {tokens!r}: put it in a list")
        for token in tokens:
            if not isinstance(token, str):
                raise TypeError(f"expected tokens of type str, got {token!r}")
            if not token:
                raise ValueError("a token is the empty string; expected text")
        # Only what a tokenizer.json describes is normalized before such tokens are looked for.
        normalized = not special and self.normalizes_added_tokens
        known = () if special else self.special_tokens
        new = [(token, special, False, False, False, normalized) for token in tokens if token not in known]
        return type(self)(self.with_added_tokens(new), **vars(self._beside))


def _with_ids(special_tokens: Mapping[str, int] | None) -> list[tuple[str, int]]:
    """Return special tokens as the core takes them, their ids in its range."""
    for token, token_id in (special_tokens or {}).items():
        if not 0 <= token_id < 2**21:
            raise ValueError(f"special token {token!r} has id {token_id}; expected 0 to {2**21 - 1}")
    return list((special_tokens or {}).items())


# What `with_added_tokens` takes of a token, in its order.
_FLAGS = ("content", "special", "single_word", "lstrip", "rstrip", "normalized")


def _unpickle(cls: type[Tokenizer], file: bytes, ends: tuple[int | None, ...], beside: dict[str, Any]) -> Tokenizer:
    return cls(_core.Tokenizer.build_from_own_json(file).with_ends(*ends), **beside)


def _unpickle_sentencepiece(
    cls: type[Tokenizer],
    model: bytes,
    added: list[tuple[Any, ...]],
    around: tuple[int | None, int | None],
    ends: tuple[int | None, ...],
    beside: dict[str, Any],
) -> Tokenizer:
    core = _core.Tokenizer.build_from_sentencepiece(model).with_added_tokens(added)
    return cls(core.with_ends(*ends).with_template(*around), **beside)
