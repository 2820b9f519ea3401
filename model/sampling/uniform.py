"""Random numbers that are a function of (seed, step): the Rust sampler's, bit for bit, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1
SEED_BITS = 0xFFFF_FFFF_FFFF_FFFF
"""The bits of a seed that have an effect."""
GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def uniform(seed: int | Tensor, step: int | Tensor, device: torch.device | str | None = None) -> Tensor:
    """Return the number in [0, 1) of draw ``step`` of stream ``seed``: float64, 53 bits, the inputs' broadcast shape.

    SplitMix64 started at ``mix(seed)`` and evaluated at ``step``: a function of (seed, step) without state, bit for bit
    the Rust sampler's. int64 tensors hold the unsigned words, since products modulo 2**64 are the same.

    Raises:
        ValueError: If an int is outside [0, 2**64).

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 16.

    Example:
        >>> import torch
        >>> bool(uniform(0, 5) == uniform(torch.tensor(0), torch.tensor(5)))
        True
    """
    word_T = _mix(_mix(as_word(seed, device)) + (as_word(step, device) + 1) * _signed(GOLDEN))
    return _shift_right(word_T, 11).to(torch.float64) * 2.0**-53


def as_word(value: int | Tensor, device: torch.device | str | None) -> Tensor:
    """Return a seed or step as an int64 tensor of the same 64 bits, created on the device if it is an int.

    Example:
        >>> as_word(2**64 - 1, "cpu")
        tensor(-1)
    """
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=torch.int64)
    if not 0 <= value <= _MASK64:
        raise ValueError(f"seed and step must be in [0, 2**64), got {value}")
    return torch.full((), _signed(value), dtype=torch.int64, device=device)


def _mix(word_T: Tensor) -> Tensor:
    """Return SplitMix64's finaliser of 64-bit words."""
    word_T = (word_T ^ _shift_right(word_T, 30)) * _signed(MIX_1)
    word_T = (word_T ^ _shift_right(word_T, 27)) * _signed(MIX_2)
    return word_T ^ _shift_right(word_T, 31)


def _shift_right(word_T: Tensor, bits: int) -> Tensor:
    """Return the words shifted right with zeros coming in; int64's own shift copies the sign."""
    return (word_T >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """Return the int64 with the same 64 bits."""
    return word - (1 << 64) if word >> 63 else word
