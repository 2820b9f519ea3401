"""Checks of single values of a config; an error names the value and what was expected."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

from bpe_llama._core import shown

LARGEST_SIZE = (1 << 31) - 1
"""The largest size of a name that `LARGEST` lacks."""
LARGEST = {
    **dict.fromkeys(("num_hidden_layers", "num_local_experts", "n_shared_experts", "num_experts_per_tok"), 1 << 12),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim"), 1 << 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 1 << 16),
    **dict.fromkeys(("hidden_size", "intermediate_size", "intermediate_size_mlp", "moe_intermediate_size"), 1 << 22),
    "shared_expert_intermediate_size": 1 << 22,
    "num_labels": 1 << 20,
}
"""The largest size of each name: at least eight times those of published models, far below what takes minutes."""
LARGEST_EXPERTS = 1 << 17
"""The most experts of all layers together; published models have up to 25,000."""


def is_one_of(value: Any, allowed: Collection[str | None]) -> bool:
    """Return whether a value is one of some texts; ``value in allowed`` raises an error if it is an array."""
    return (value is None or isinstance(value, str)) and value in allowed


def check_flag(name: str, value: Any) -> None:
    """Check that a value is true or false.

    Raises:
        TypeError: If it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {shown(value)}; expected true or false")


def check_size(name: str, value: Any) -> None:
    """Check that a value is an integer of at least 1 and at most the bound of its name.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is out of range.

    Example:
        >>> check_size("num_hidden_layers", 100_000)
        Traceback (most recent call last):
        ValueError: num_hidden_layers is 100000; expected at most 4,096
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {shown(value)}; expected an integer")
    if value < 1:
        raise ValueError(f"{name} is {shown(value)}; expected at least 1")
    if value > (largest := LARGEST.get(name, LARGEST_SIZE)):
        raise ValueError(f"{name} is {shown(value)}; expected at most {largest:,}")


def check_count(name: str, value: Any, least: int) -> None:
    """Check that a value is an integer of at least ``least``.

    Raises:
        ValueError: If it is not.
    """
    if type(value) is not int or value < least:
        raise ValueError(f"{name} is {shown(value)}; expected an integer of at least {least}")


def check_experts(layers: int, experts: int, chosen: int) -> None:
    """Check the number of experts of each layer, of all layers together, and of a token.

    Raises:
        TypeError: If ``experts`` is no integer.
        ValueError: If a number is out of range.
    """
    check_size("num_local_experts", experts)
    if chosen > experts:
        raise ValueError(f"num_experts_per_tok ({chosen}) exceeds num_local_experts ({experts})")
    if layers * experts > LARGEST_EXPERTS:
        raise ValueError(
            f"num_local_experts is {experts} in {layers} layers (num_hidden_layers); expected at most "
            f"{LARGEST_EXPERTS:,} experts together"
        )


def check_number(name: str, value: Any) -> None:
    """Check that a value is a finite number of at least 0.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {shown(value)}; expected a number")
    if not 0 <= value <= sys.float_info.max:
        raise ValueError(f"{name} is {shown(value)}; expected a finite number of at least 0")


def check_probability(name: str, value: Any) -> None:
    """Check that a value is a number from 0 to 1.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.
    """
    check_number(name, value)
    if value > 1:
        raise ValueError(f"{name} is {shown(value)}; expected a probability, 0 to 1")


def check_token_id(name: str, value: Any, vocab_size: int) -> None:
    """Check that a value is an id of the vocabulary, -1 or None.

    Raises:
        TypeError: If it is neither an integer nor None.
        ValueError: If it is out of range.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"{name} is {shown(value)}; expected an integer")
    if value is not None and not -1 <= value < vocab_size:
        raise ValueError(f"{name} is {shown(value)}, outside the vocabulary of {vocab_size}")


def check_token_ids(name: str, value: Any, vocab_size: int) -> None:
    """Check that a value is an id of the vocabulary, a list of them, -1 or None.

    Raises:
        TypeError: If it is of another type.
        ValueError: If an id is out of range.
    """
    ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if not isinstance(value, int | list | tuple | None) or any(one is None for one in ids):
        raise TypeError(f"{name} is {shown(value)}; expected an integer or a list of them")
    for token_id in ids:
        check_token_id(name, token_id, vocab_size)


def labels_by_id(value: Any) -> dict[int, str]:
    """Return ``id2label`` with int ids; JSON has them as strings.

    Raises:
        ValueError: If they are no mapping of numbers, from 0 on, and names.

    Example:
        >>> labels_by_id({"0": "no", "1": "yes"})
        {0: 'no', 1: 'yes'}
    """
    try:
        names = {int(label): str(name) for label, name in (value or {}).items()}
    except (AttributeError, TypeError, ValueError, OverflowError, RuntimeError):
        raise ValueError(f"id2label is {shown(value)}; expected an object of numbers and names") from None
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"id2label names the ids {sorted(names)}; expected 0 to {len(names) - 1}")
    return names
