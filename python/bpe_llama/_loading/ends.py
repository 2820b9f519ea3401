"""The ids of the bos, eos, pad and unk tokens."""

from __future__ import annotations

from typing import NamedTuple

from bpe_llama._core import Tokenizer as CoreTokenizer

END_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
"""The roles that the compiled tokenizer knows, in the order of :class:`Ends`."""


class Ends(NamedTuple):
    """The ids of the bos, eos, pad and unk tokens; ``None`` where there is no such token."""

    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None


def ends_of(tokenizer: CoreTokenizer) -> Ends:
    """Return the ids of the bos, eos, pad and unk tokens."""
    return Ends(tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id)


def ids_around(tokenizer: CoreTokenizer) -> tuple[int | None, int | None]:
    """Return the ids that the tokenizer of a SentencePiece model puts before and after a text."""
    items = tokenizer.template(False)
    return items[0][0], items[-1][0]
