"""The special-token ids of a tokenizer: by role, and around a text."""

from __future__ import annotations

from collections.abc import Sequence
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


def ids_around(template: Sequence[tuple[int | None, str | None, int | None]]) -> tuple[list[int], list[int]]:
    """Return the ids before and after the text of a template, as `Tokenizer.template` returns it.

    Raises:
        ValueError: If the text is there never, or more than once.
    """
    places = [place for place, (special, _, _) in enumerate(template) if special is None]
    if len(places) != 1:
        raise ValueError(f"the post_processor of this tokenizer has a text {len(places)} times; expected it once")
    ids = [special for special, _, _ in template if special is not None]
    return ids[: places[0]], ids[places[0] :]


def template_ids(tokenizer: CoreTokenizer) -> tuple[int | None, int | None]:
    """Return the ids that `with_template` put before and after a text; ``None`` where it put none."""
    before, after = ids_around(tokenizer.template(False))
    return before[0] if before else None, after[0] if after else None
