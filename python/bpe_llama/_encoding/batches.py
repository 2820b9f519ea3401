"""Build batches for a model: add special tokens, truncate, pad, convert to tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bpe_llama._arguments import boolean, integer, wrong
from bpe_llama._core import shown

if TYPE_CHECKING:
    from bpe_llama._core import Tokenizer as CoreTokenizer

# The truncation strategies of transformers; True means the first.
_STRATEGIES = ("longest_first", "only_first", "only_second")
_KNOWN: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("padding", (True, False, "longest", "max_length", "do_not_pad")),
    ("truncation", (True, False, "do_not_truncate", *_STRATEGIES)),
    ("padding_side", ("left", "right")),
    ("truncation_side", ("left", "right")),
    ("return_tensors", (None, "np", "pt")),
)
_MOST_PADDED = 1 << 31
"""The most ids of a padded batch: as a list they take 16 GiB."""
Span = tuple[int, int]


class Item(NamedTuple):
    """One item of a post-processor's template: a special token's id, or the text ``"A"`` or ``"B"``; its type id."""

    special: int | None
    text: str | None
    type_id: int | None


@dataclass
class Row:
    """The encoding of one text or pair: the id, type id, special-token mask and character range of each token."""

    input_ids: list[int] = field(default_factory=list)
    token_type_ids: list[int] = field(default_factory=list)
    special_tokens_mask: list[int] = field(default_factory=list)
    offset_mapping: list[Span] = field(default_factory=list)

    @property
    def attention_mask(self) -> list[int]:
        """1 for each id."""
        return [1] * len(self.input_ids)


@dataclass(frozen=True)
class Batches:
    """The checked options of a batch; :meth:`bpe_llama.Tokenizer.__call__` documents them."""

    padding: bool | str
    truncation: bool | str
    max_length: int | None
    return_tensors: str | None
    padding_side: str
    truncation_side: str = "right"
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        for name, known in _KNOWN:
            value = getattr(self, name)
            # 1 is equal to True, but not known.
            if not (isinstance(value, (str, bool, NoneType)) and value in known):
                raise ValueError(wrong(name, value, f"one of {', '.join(map(repr, known))}"))
        for name in ("max_length", "pad_to_multiple_of"):
            value = getattr(self, name)
            if value is not None and integer(name, value) < 1:
                raise ValueError(wrong(name, value, "at least 1"))
        multiple = self.pad_to_multiple_of or 1
        if self.is_padded and self.strategy is not None and (self.max_length or 0) % multiple:
            raise ValueError(
                f"max_length is {shown(self.max_length)}, to which rows are cut and padded; expected a multiple of "
                f"pad_to_multiple_of, {shown(multiple)}"
            )

    def limited(self, longest: int | None) -> Batches:
        """Return these options with ``longest`` as ``max_length`` if it is needed and not given.

        Warns:
            UserWarning: If rows are truncated and there is no limit.

        Raises:
            ValueError: If rows are padded to ``max_length`` and there is none.
        """
        if self.max_length is not None or (self.strategy is None and self.padding != "max_length"):
            return self
        if longest is not None:
            return replace(self, max_length=longest)
        if self.padding == "max_length":
            raise ValueError("padding is 'max_length', but there is no max_length, and no file names one")
        warnings.warn("truncation without max_length cuts nothing: no file names a limit", stacklevel=3)
        return self

    @property
    def is_padded(self) -> bool:
        """Whether short rows are padded."""
        return self.padding not in (False, "do_not_pad")

    @property
    def strategy(self) -> str | None:
        """The truncation strategy, or ``None`` where nothing is truncated."""
        if self.truncation in (False, "do_not_truncate"):
            return None
        # An enum of transformers is equal to its name, but its str is another.
        return next((name for name in _STRATEGIES if name == self.truncation), _STRATEGIES[0])

    def rows(
        self,
        firsts: list[list[int]],
        seconds: list[list[int]] | None,
        template: Sequence[Item],
        spans: list[Any],
        keys: Collection[str],
        span_of_first: Callable[[int, int, int], Span],
    ) -> list[Row]:
        """Return the rows of texts or pairs, truncated to ``max_length`` with their special tokens.

        Args:
            firsts: The ids of each text.
            seconds: The ids of each second text, or ``None``.
            template: The order of texts and special tokens.
            spans: The offsets of the first texts, then of the second texts; empty without offsets.
            keys: The columns that are filled, beside ``input_ids``.
            span_of_first: Returns the offsets of a token as the first of its text, where truncation has removed those
                before: from 0 or 1 for first or second texts, the row, and the token.
        """
        types, masks = "token_type_ids" in keys, "special_tokens_mask" in keys
        rows = []
        for place, first in enumerate(firsts):
            texts = (first, [] if seconds is None else seconds[place])
            ranges = self._ranges(len(first), None if seconds is None else len(texts[1]), template)
            row = Row()
            for item in template:
                if item.special is not None:
                    ids, offsets, type_id = [item.special], [(0, 0)], item.type_id or 0
                else:
                    which = 0 if item.text == "A" else 1
                    kept = slice(*ranges[which])
                    ids = texts[which][kept]
                    offsets = spans[which][place][kept] if spans else []
                    if offsets and kept.start:
                        offsets[0] = span_of_first(which, place, kept.start)
                    type_id = which if item.type_id is None else item.type_id
                row.input_ids += ids
                if types:
                    row.token_type_ids += [type_id] * len(ids)
                if masks:
                    row.special_tokens_mask += [int(item.special is not None)] * len(ids)
                if spans:
                    row.offset_mapping += offsets
            rows.append(row)
        return rows

    def _ranges(self, first: int, second: int | None, template: Sequence[Item]) -> tuple[Span, Span]:
        """Return the range of each text that truncation leaves, given the numbers of ids."""
        lengths = [first, second or 0]
        if self.strategy is not None and self.max_length is not None:
            added = sum(item.special is not None for item in template)
            room = self.max_length - added
            if room < 0:
                raise ValueError(f"max_length is {self.max_length}; the special tokens alone are {added}")
            lengths = self._lengths(first, second, room)
        if self.truncation_side == "left":
            return (first - lengths[0], first), ((second or 0) - lengths[1], second or 0)
        return (0, lengths[0]), (0, lengths[1])

    def _lengths(self, first: int, second: int | None, room: int) -> list[int]:
        """Return the lengths to which two texts are truncated.

        Source: ``truncate_encodings`` of Hugging Face `tokenizers`.
        """
        if room == 0:
            return [0, 0]
        excess = first + (second or 0) - room
        if excess <= 0:
            return [first, second or 0]
        if second is None and self.strategy != "only_second":
            return [room, 0]
        if self.strategy == "longest_first":
            short, long = sorted((first, second or 0))
            long = short if short > room else max(short, room - short)
            if short + long > room:
                short, long = room // 2, room // 2 + room % 2
            return [long, short] if first > (second or 0) else [short, long]
        lengths = [first, second or 0]
        place = 0 if self.strategy == "only_first" else 1
        if second is None or lengths[place] <= excess:
            raise ValueError(f"truncation is {self.strategy!r}, but that text is too short to be cut by {excess} ids")
        lengths[place] -= excess
        return lengths

    def of(self, rows: list[Row], fill: int, keys: Iterable[str], *, is_single: bool) -> dict[str, Any]:
        """Return the columns ``keys``, padded; with ``is_single`` and without tensors, as lists of the only row."""
        fills: dict[str, Any] = {"input_ids": fill, "special_tokens_mask": 1, "offset_mapping": (0, 0)}
        columns: dict[str, list[list[Any]]] = {key: [getattr(row, key) for row in rows] for key in keys}
        if self.is_padded:
            width = self._width(rows)
            if width * len(rows) > _MOST_PADDED:
                raise ValueError(
                    f"max_length is {shown(self.max_length)} and pad_to_multiple_of {shown(self.pad_to_multiple_of)}; "
                    f"expected less: padding makes no more than {_MOST_PADDED:,} ids of a batch"
                )
            for key, column in columns.items():
                for values in column:
                    missing = max(0, width - len(values))
                    at = len(values) if self.padding_side == "right" else 0
                    values[at:at] = [fills.get(key, 0)] * missing
        if self.return_tensors is None:
            return {key: column[0] if is_single else column for key, column in columns.items()}
        if len({len(row.input_ids) for row in rows}) > 1:
            raise ValueError("rows differ in length: pass padding=True to make tensors of them")
        arrays = {key: np.array(column, np.int64) for key, column in columns.items()}
        if self.return_tensors == "np":
            return arrays
        try:
            import torch
        except ModuleNotFoundError as error:
            raise ImportError("return_tensors='pt' needs torch: pip install 'bpe_llama[model]'") from error

        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _width(self, rows: list[Row]) -> int:
        width = max((len(row.input_ids) for row in rows), default=0)
        if self.padding == "max_length" and self.max_length is not None:
            width = self.max_length
        multiple = self.pad_to_multiple_of or 1
        return -(-width // multiple) * multiple


def columns_of(inputs: Collection[str], **wanted: bool | None) -> list[str]:
    """Return the columns of a batch: ``input_ids``, and each wanted one; for None, if it is one of ``inputs``.

    Args:
        inputs: What the model reads.
        **wanted: The arguments of `Tokenizer.__call__` that begin with ``return_``, in the order of the columns.

    Raises:
        TypeError: If one is neither a bool nor ``None`` where the default is.
    """
    columns = ["input_ids"]
    for argument, value in wanted.items():
        name = {"return_offsets_mapping": "offset_mapping"}.get(argument, argument.removeprefix("return_"))
        if name in ("token_type_ids", "attention_mask") and value is None:
            value = name in inputs
        if boolean(argument, value):
            columns.append(name)
    return columns


def template_of(tokenizer: CoreTokenizer, *, pair: bool, special: bool, bos: bool, eos: bool) -> list[Item]:
    """Return the template of a text or a pair: the order of texts and special tokens.

    Args:
        tokenizer: Its post-processor defines the template.
        pair: Whether there are two texts.
        special: Whether to include the special tokens of the post-processor.
        bos: Begin with ``bos_id``, once.
        eos: End with ``eos_id``, once.

    Raises:
        TypeError: If an option is no bool.
        ValueError: If the tokenizer lacks the token that ``bos`` or ``eos`` requests.
    """
    for option, value in (("add_special_tokens", special), ("bos", bos), ("eos", eos)):
        boolean(option, value)
    items = [Item(*item) for item in tokenizer.template(pair)]
    if not special:
        items = [item for item in items if item.special is None]
    for wanted, name, token_id, place in ((bos, "bos", tokenizer.bos_id, 0), (eos, "eos", tokenizer.eos_id, -1)):
        if not wanted:
            continue
        if token_id is None:
            raise ValueError(
                f"{name}=True, but this tokenizer has no {name} token; its special tokens are "
                f"{list(tokenizer.special_tokens)}"
            )
        if not items or items[place].special != token_id:
            items.insert(0 if place == 0 else len(items), Item(token_id, None, 0))
    return items
