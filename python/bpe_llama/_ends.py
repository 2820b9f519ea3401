"""The ids that a tokenizer's files give a role."""

from __future__ import annotations

from typing import NamedTuple


class Ends(NamedTuple):
    """The ids that begin and end a text, fill a short row and stand for the unknown; ``None`` where there is none."""

    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None
