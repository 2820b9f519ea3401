"""The ids of the tokens with a role."""

from __future__ import annotations

from typing import NamedTuple


class Ends(NamedTuple):
    """The ids of the bos, eos, pad and unk tokens; ``None`` where there is no such token."""

    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None
