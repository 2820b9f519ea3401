"""A tokenizer that transformers takes for its own and that encodes with our core; see `Tokenizer.as_transformers`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils.generic import PaddingStrategy

from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._encoding.batches import Batches, Span, template_of

if TYPE_CHECKING:
    import tokenizers

# The base classes, unchecked: transformers' own types do not say what they hold.
_Backend: Any = transformers.TokenizersBackend
_Batch: Any = transformers.BatchEncoding
# Calls have the same options over and over.
_batches = lru_cache(maxsize=64, typed=True)(Batches)
# Below this many characters, starting threads costs more than it saves.
_PARALLEL_FROM = 100_000
# The values of TOKENIZERS_PARALLELISM that `tokenizers` takes for no.
_OFF = ("", "off", "false", "f", "no", "n", "0")

# Ids for which the backend decides: it leaves unknown ones out, or raises an error of its own.
_NOT_DECODED = (KeyError, OverflowError, TypeError, ValueError)


class TokenizersBackend(_Backend):  # type: ignore[misc]
    """transformers' fast tokenizer, in which our core encodes and decodes wherever the result is the same.

    It bears the name of its base class, since `save_pretrained` writes that for `AutoTokenizer` to read. The base class
    with its `tokenizers` backend holds vocabulary, special tokens and files. The core is built from that backend, and
    again after a change of it.
    """

    # Slots are no part of `__dict__`, which is pickled, and which `datasets` hashes: encoding must not change it.
    __slots__ = ("_core", "_core_state", "_is_handed_out")
    _core: CoreTokenizer | None
    _core_state: tuple[object, ...] | None
    _is_handed_out: bool
    _num_threads: int | None = None

    def __new__(cls, *_arguments: Any, **_options: Any) -> TokenizersBackend:
        """Set what the constructor of the base class reads already, as it adds tokens."""
        made: TokenizersBackend = super().__new__(cls)
        made._core, made._core_state, made._is_handed_out = None, None, False
        return made

    @property
    def backend_tokenizer(self) -> tokenizers.Tokenizer:
        """The `tokenizers.Tokenizer`, which the caller may change; each later call looks for changes."""
        self._is_handed_out = True
        return self._tokenizer

    def _add_tokens(self, new_tokens: Sequence[Any], special_tokens: bool = False) -> int:
        self._core_state = None
        return int(super()._add_tokens(new_tokens, special_tokens=special_tokens))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the core, which the copy builds when it first encodes."""
        return self.__dict__

    def __copy__(self) -> TokenizersBackend:
        """Return a copy that shares the backend, so that each looks for changes by the other."""
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        self._is_handed_out = made._is_handed_out = True
        return made

    def _current_core(self, *, decodes: bool = False) -> CoreTokenizer | None:
        """Return the core that encodes as the backend does now, or ``None`` if there is none.

        With ``decodes``, only what decoding depends on is sure to be that of the backend.
        """
        backend, known = self._tokenizer, self._core_state
        try:
            if decodes and known is not None and not self._is_handed_out:  # noqa: SIM102
                if (known[0], known[-1]) == (backend, _serialized(backend.decoder)):
                    return self._core
            state = _state(backend, with_tokens=self._is_handed_out)
            if state != self._core_state:
                self._core, self._core_state = _build_core(backend), state
        except Exception:  # `tokenizers` raises no narrower type for a component written in Python
            return None
        return None if getattr(backend.model, "dropout", None) else self._core

    def _encode_plus(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        **options: Any,
    ) -> Any:
        made = self._encode_with_core(text, text_pair, add_special_tokens, **options)
        if made is None:
            made = super()._encode_plus(text, text_pair, add_special_tokens, **options)
        return made

    def _encode_with_core(
        self,
        text: Any,
        text_pair: Any,
        add_special_tokens: bool,
        *,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Any = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
        **others: Any,
    ) -> _LazyBatchEncoding | None:
        """Return the encoding of texts or pairs, or ``None`` if only the backend gives it."""
        is_batched = isinstance(text, (list, tuple))
        firsts = _texts(text if is_batched else [text])
        seconds = _texts(text_pair if is_batched else [text_pair]) if text_pair else None
        if (
            firsts is None
            or (text_pair is not None and is_batched and seconds is None)
            or (text_pair and (seconds is None or len(seconds) != len(firsts)))
            or stride
            or self.pad_token_type_id
            or (self.split_special_tokens if split_special_tokens is None else split_special_tokens)
            or any(others.values())
        ):
            return None
        core = self._current_core()
        if core is None:
            return None
        inputs = self.model_input_names
        wanted = {
            "input_ids": True,
            "token_type_ids": "token_type_ids" in inputs if return_token_type_ids is None else return_token_type_ids,
            "attention_mask": "attention_mask" in inputs if return_attention_mask is None else return_attention_mask,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
        }
        keys = [key for key, is_wanted in wanted.items() if is_wanted]
        # The base class leaves the options in the backend, where `save_pretrained` finds them; it also checks them.
        self.set_truncation_and_padding(
            padding_strategy, truncation_strategy, max_length, stride, pad_to_multiple_of, padding_side
        )
        backend = self._tokenizer
        backend.encode_special_tokens = False
        try:
            batch = _batches(
                padding_strategy.value,
                truncation_strategy.value,
                max_length,
                None,
                self.padding_side if padding_side is None else padding_side,
                self.truncation_side,
                pad_to_multiple_of,
            )
            template = template_of(core, pair=seconds is not None, special=add_special_tokens, bos=False, eos=False)
            ids, spans = [], []
            for texts in (firsts, seconds):
                if texts is None:
                    continue
                if return_offsets_mapping:
                    found = [core.encode_with_offsets(text, allowed_special="all") for text in texts]
                    ids.append([row for row, _ in found])
                    spans.append([row for _, row in found])
                else:
                    ids.append(self._ids(core, texts))

            def span_of_first(which: int, row: int, token: int) -> Span:
                text = (firsts, seconds or [])[which][row]
                return core.encode_with_offsets(text, allowed_special="all", first=token)[1][token]

            rows = batch.rows(ids[0], ids[1] if seconds else None, template, spans, keys, span_of_first)
        except ValueError:  # the backend refuses it with an error of its own
            return None
        columns = batch.of(rows, (self.pad_token_id or 0) if batch.is_padded else 0, keys, is_single=False)
        if return_length:
            columns["length"] = [len(ids) for ids in columns["input_ids"]]
        if max_length is None:
            longest = self.model_max_length
            too_long = next((row for row in columns["input_ids"] if len(row) > longest), None)
            if too_long is not None:
                self._eventual_warn_about_too_long_sequence(too_long, max_length, verbose)
        if not is_batched and return_tensors is None:
            columns = {key: value[0] if isinstance(value[0], list) else value for key, value in columns.items()}

        truncation, padding = backend.truncation, backend.padding
        given = firsts if seconds is None else list(zip(firsts, seconds, strict=True))

        def encodings() -> list[tokenizers.Encoding]:
            if self._current_core() is not core:
                raise ValueError(
                    "the tokenizer was changed after it made this batch, whose words, tokens and offsets it no longer "
                    "knows: read them before the change, or encode the texts again"
                )
            _set(backend, truncation, padding)
            return list(backend.encode_batch(given, add_special_tokens=add_special_tokens))

        return _LazyBatchEncoding(columns, encodings, return_tensors, n_sequences=1 if seconds is None else 2)

    def _ids(self, core: CoreTokenizer, texts: list[str]) -> list[list[int]]:
        is_alone = (
            sum(map(len, texts)) < _PARALLEL_FROM
            or os.environ.get("TOKENIZERS_PARALLELISM", "true").lower() in _OFF  # slow to read
        )
        return core.encode_batch(texts, 1 if is_alone else self._num_threads, allowed_special="all")

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **options: Any) -> str | list[str]:
        """Return the text of ids, or of each row of ids; see `transformers.PreTrainedTokenizerBase.decode`."""
        rows = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        cleans = options.get("clean_up_tokenization_spaces")
        if isinstance(rows, list) and rows and not (self.clean_up_tokenization_spaces if cleans is None else cleans):
            core = self._current_core(decodes=True)
            try:
                if core is not None and isinstance(rows[0], list):
                    return core.decode_batch(rows, skip_special_tokens=skip_special_tokens)
                if core is not None and isinstance(rows[0], int):
                    return core.decode(rows, skip_special_tokens=skip_special_tokens)
            except _NOT_DECODED:
                pass
        return super().decode(token_ids, skip_special_tokens, **options)


class _LazyBatchEncoding(_Batch):  # type: ignore[misc]
    """A `BatchEncoding` that makes its `encodings` when `word_ids`, `char_to_token` or another reads them."""

    def __init__(
        self,
        data: dict[str, Any],
        encodings: Callable[[], list[tokenizers.Encoding]],
        tensor_type: Any,
        n_sequences: int,
    ) -> None:
        self._make_encodings = encodings
        super().__init__(data, None, tensor_type=tensor_type, n_sequences=n_sequences)
        self._made_encodings: list[tokenizers.Encoding] | None = None

    @property
    def _encodings(self) -> list[tokenizers.Encoding]:
        if self._made_encodings is None:
            self._made_encodings = self._make_encodings()
        return self._made_encodings

    @_encodings.setter
    def _encodings(self, made: list[tokenizers.Encoding] | None) -> None:
        self._made_encodings = made

    @property
    def is_fast(self) -> bool:
        """True: there are `encodings`."""
        return True

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as transformers' class, with the encodings."""
        return _Batch, (self.data, self._encodings, None, False, self._n_sequences)


def build(save: Callable[[Path], None], num_threads: int | None) -> TokenizersBackend:
    """Return the tokenizer that ``save`` writes as a ``tokenizer.json`` in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "tokenizer.json")
        made: TokenizersBackend = TokenizersBackend.from_pretrained(folder)
    made.name_or_path = made.init_kwargs["name_or_path"] = ""  # the folder is gone
    made.__dict__["_num_threads"] = num_threads
    return made


def _build_core(backend: tokenizers.Tokenizer) -> CoreTokenizer | None:
    """Return the core that encodes as a backend does, or ``None`` if it refuses a component."""
    try:
        return CoreTokenizer.build_from_huggingface(backend.to_str().encode())
    except ValueError:
        return None


def _texts(value: Any) -> list[str] | None:
    """Return a batch of texts as a list, or ``None`` if it is no such batch."""
    if not isinstance(value, (list, tuple)) or not value:
        return None
    for text in value:
        if type(text) is not str:
            return None
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:  # a lone surrogate, which the backend refuses
                return None
    return list(value)


def _state(backend: tokenizers.Tokenizer, *, with_tokens: bool) -> tuple[object, ...]:
    """Return a value that differs after the components, or with ``with_tokens`` also the tokens, were changed."""
    state: tuple[object, ...] = (backend,)
    if with_tokens:
        model = backend.model
        flags = (model.unk_token, model.fuse_unk, model.byte_fallback, model.ignore_merges)
        added = [(token_id, repr(token)) for token_id, token in backend.get_added_tokens_decoder().items()]
        state += (*flags, backend.get_vocab_size(with_added_tokens=False), *sorted(added))
    parts = (backend.normalizer, backend.pre_tokenizer, backend.post_processor, backend.decoder)
    return (*state, *map(_serialized, parts))


def _serialized(component: Any) -> bytes | None:
    return None if component is None else component.__getstate__()


def _set(backend: tokenizers.Tokenizer, truncation: dict[str, Any] | None, padding: dict[str, Any] | None) -> None:
    """Set a backend's truncation and padding to what it returned earlier."""
    if truncation is None:
        backend.no_truncation()
    else:
        backend.enable_truncation(**truncation)
    if padding is None:
        backend.no_padding()
    else:
        backend.enable_padding(**padding)
