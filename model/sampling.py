"""Choosing the next id from logits that live in a torch tensor, on any device: the twin of ``bpe_llama.Sampler``.

Same semantics, same kept set, same random numbers as the Rust sampler, so the same id up to rounding at a boundary.
Nothing here waits for the device or reads a value back, and every shape depends on the inputs' shapes alone, so
:func:`sample_logits` may run inside a captured CUDA graph (pass ``step`` as a tensor that the graph's owner advances).

Legend: B batch, V vocabulary, T length of the history.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A mass this close below p reaches it: p was a decimal fraction, and the mass a sum, before either was rounded.
_REACHED = 1 - 2.0**-50
_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def sample_logits(
    logits_BV: Tensor,
    *,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    history_BT: Tensor | None = None,
    seed: int | Tensor = 0,
    step: int | Tensor = 0,
) -> Tensor:
    """Return one id a row, int64 (B,), drawn from the filtered distribution.

    Penalties, temperature, top-k, top-p, min-p act in that order, each on what the one before left. The draw inverts
    the distribution function in id order at ``uniform(seed, step)``: every row of a batch uses the same number, so a
    row's id depends on its logits, the seed and the step, never on its neighbours. Equal prompts that should
    continue differently take a ``seed`` tensor with one entry a row.

    Args:
        logits_BV: (B, V) or (V,), any floating dtype.
        temperature: 0 takes the highest logit, the lowest id among equals.
        top_k: Keep the k highest; 0 or at least V keeps all. Ties go to the lower id.
        top_p: Keep the fewest highest whose mass reaches this; in (0, 1].
        min_p: Drop what has less than this times the highest probability; in [0, 1].
        repetition_penalty: Divides positive and multiplies negative logits of ids in the history (arXiv:1909.05858).
        presence_penalty: Subtracted from the logit of every id in the history.
        frequency_penalty: Subtracted once for each time the id occurs in the history.
        history_BT: Ids the penalties look at, int64; negative entries are padding.
        seed: Python int or int64 tensor, () or (B,).
        step: Python int or int64 tensor, () or (B,): the number of this draw.

    Returns:
        int64 (B,), or () for one row, on the logits' device. On a GPU, where raising would mean waiting, a row with
        NaN, +inf or nothing finite gives -1.

    Raises:
        ValueError: If a parameter is out of range or, on the CPU, a row holds NaN, +inf or nothing finite.

    Cost: one sort of each row where top-k or top-p is on; ``bpe_llama.Sampler`` is faster on the CPU.

    Example:
        >>> import torch
        >>> sample_logits(torch.tensor([[0.0, 3.0, 1.0]]), temperature=0.0)
        tensor([1])
    """
    scores_BV = _scores(logits_BV, history_BT, repetition_penalty, presence_penalty, frequency_penalty, temperature)
    _check_parameters(temperature, top_k, top_p, min_p)
    valid_B = _valid_rows(scores_BV)
    if temperature == 0:
        ids_B = _first_argmax(scores_BV)
    else:
        weights_BV = _kept_weights(scores_BV, temperature, top_k, top_p, min_p)
        cumulative_BV = weights_BV.cumsum(-1)
        mass_B1 = cumulative_BV[..., -1:]
        uniform_B1 = uniform(seed, step, device=scores_BV.device).reshape(-1, 1)
        # u * mass may round up to mass itself, which lies past the last id.
        target_B1 = torch.minimum(uniform_B1 * mass_B1, torch.nextafter(mass_B1, torch.zeros_like(mass_B1)))
        ids_B = torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(-1)
    ids_B = torch.where(valid_B, ids_B, -1)
    return ids_B.reshape(logits_BV.shape[:-1])


def filtered_probs(
    logits_BV: Tensor,
    *,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    history_BT: Tensor | None = None,
) -> Tensor:
    """Return the distribution :func:`sample_logits` draws from: float64, the logits' shape, each row summing to 1.

    Arguments and errors are those of :func:`sample_logits`; an invalid row on a GPU gives NaN.

    Example:
        >>> import torch
        >>> filtered_probs(torch.tensor([0.0, 0.0, -9.0]), temperature=1.0, top_k=2)
        tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    scores_BV = _scores(logits_BV, history_BT, repetition_penalty, presence_penalty, frequency_penalty, temperature)
    _check_parameters(temperature, top_k, top_p, min_p)
    valid_B = _valid_rows(scores_BV)
    if temperature == 0:
        probs_BV = torch.zeros_like(scores_BV, dtype=torch.float64)
        probs_BV.scatter_(-1, _first_argmax(scores_BV).unsqueeze(-1), 1.0)
    else:
        weights_BV = _kept_weights(scores_BV, temperature, top_k, top_p, min_p)
        probs_BV = weights_BV / weights_BV.sum(-1, keepdim=True)
    probs_BV = torch.where(valid_B.unsqueeze(-1), probs_BV, math.nan)
    return probs_BV.reshape(logits_BV.shape)


def uniform(seed: int | Tensor, step: int | Tensor, device: torch.device | str | None = None) -> Tensor:
    """Return the number in [0, 1) of draw ``step`` of stream ``seed``: float64, 53 bits, the inputs' broadcast shape.

    SplitMix64 started at ``mix(seed)`` and read at place ``step``: a function of (seed, step) alone, with no state to
    keep, equal to the Rust sampler's bit for bit. int64 tensors hold the unsigned words, as their products wrap alike.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 16.

    Example:
        >>> import torch
        >>> bool(uniform(0, 5) == uniform(torch.tensor(0), torch.tensor(5)))
        True
    """
    seed_T = _as_int64(seed, device)
    step_T = _as_int64(step, device)
    word_T = _mix(_mix(seed_T) + (step_T + 1) * _signed(_GOLDEN))
    return _shift_right(word_T, 11).to(torch.float64) * 2.0**-53


def _scores(
    logits_BV: Tensor,
    history_BT: Tensor | None,
    repetition: float,
    presence: float,
    frequency: float,
    temperature: float,
) -> Tensor:
    """Return the penalised logits as float32 (B, V)."""
    if not logits_BV.is_floating_point():
        raise TypeError(f"logits must be a floating-point tensor, got {logits_BV.dtype}")
    if logits_BV.dim() not in (1, 2) or logits_BV.shape[-1] == 0:
        raise ValueError(f"logits must have shape (V,) or (B, V) with V > 0, got {tuple(logits_BV.shape)}")
    if not (repetition > 0 and math.isfinite(repetition)):
        raise ValueError(f"repetition_penalty must be positive and finite, got {repetition}")
    for name, value in (("presence_penalty", presence), ("frequency_penalty", frequency)):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    scores_BV = logits_BV.detach().to(torch.float32)
    scores_BV = scores_BV.reshape(-1, scores_BV.shape[-1])
    if history_BT is None or (repetition == 1 and presence == 0 and frequency == 0):
        return scores_BV
    history_BT = history_BT.reshape(scores_BV.shape[0], -1)
    # One column more than the vocabulary catches the padding.
    padded_BT = torch.where(history_BT < 0, scores_BV.shape[-1], history_BT)
    counts_BV = torch.zeros(scores_BV.shape[0], scores_BV.shape[1] + 1, dtype=torch.float64, device=scores_BV.device)
    counts_BV.scatter_add_(-1, padded_BT, torch.ones_like(padded_BT, dtype=torch.float64))
    counts_BV = counts_BV[:, :-1]
    wide_BV = scores_BV.to(torch.float64)
    repeated_BV = torch.where(wide_BV > 0, wide_BV / repetition, wide_BV * repetition)
    penalised_BV = repeated_BV - frequency * counts_BV - presence
    return torch.where(counts_BV > 0, penalised_BV, wide_BV).to(torch.float32)


def _check_parameters(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be finite and at least 0, got {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0 (0 keeps all), got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p must be in [0, 1], got {min_p}")


def _valid_rows(scores_BV: Tensor) -> Tensor:
    """Return which rows can be drawn from, bool (B,); on the CPU raise for the first that cannot."""
    bad_BV = scores_BV.isnan() | (scores_BV == math.inf)
    valid_B = ~bad_BV.any(-1) & (scores_BV > -math.inf).any(-1)
    if scores_BV.device.type == "cpu" and not bool(valid_B.all()):
        row = int((~valid_B).nonzero()[0])
        bad = bad_BV[row].nonzero()
        if len(bad) == 0:
            raise ValueError(f"row {row}: every logit is -inf; at least one must be finite")
        index = int(bad[0])
        raise ValueError(
            f"row {row}: logit {index} is {float(scores_BV[row, index])}; expected a finite number or -inf"
        )
    return valid_B


def _first_argmax(scores_BV: Tensor) -> Tensor:
    """Return the lowest id among each row's highest, int64 (B,): torch.argmax leaves the choice among equals open."""
    ids_V = torch.arange(scores_BV.shape[-1], device=scores_BV.device)
    highest_B1 = scores_BV.amax(-1, keepdim=True)
    return torch.where(scores_BV == highest_B1, ids_V, scores_BV.shape[-1]).amin(-1)


def _kept_weights(scores_BV: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Return exp((score - highest) / temperature) in float64 where kept and 0 elsewhere, (B, V)."""
    vocab_size = scores_BV.shape[-1]
    wide_BV = scores_BV.to(torch.float64)
    shifted_BV = (wide_BV - wide_BV.amax(-1, keepdim=True)) / temperature
    weights_BV = shifted_BV.exp()
    keep_BV = torch.ones_like(scores_BV, dtype=torch.bool)
    if 0 < top_k < vocab_size or top_p < 1:
        # A stable sort leaves equal scores in id order.
        order_BV = torch.sort(scores_BV, dim=-1, descending=True, stable=True).indices
        sorted_BV = weights_BV.gather(-1, order_BV)
        if 0 < top_k < vocab_size:
            sorted_BV[:, top_k:] = 0
        keep_sorted_BV = sorted_BV > 0
        if top_p < 1:
            cumulative_BV = sorted_BV.cumsum(-1)
            before_BV = torch.nn.functional.pad(cumulative_BV[:, :-1], (1, 0))
            keep_sorted_BV &= before_BV < _REACHED * top_p * cumulative_BV[:, -1:]
        keep_BV = torch.zeros_like(keep_BV).scatter_(-1, order_BV, keep_sorted_BV)
    if min_p > 0:
        keep_BV = keep_BV & (shifted_BV >= math.log(min_p))
    return torch.where(keep_BV, weights_BV, 0.0)


def _as_int64(value: int | Tensor, device: torch.device | str | None) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=torch.int64)
    if not 0 <= value <= _MASK64:
        raise ValueError(f"seed and step must be in [0, 2**64), got {value}")
    return torch.full((), _signed(value), dtype=torch.int64, device=device)


def _mix(word_T: Tensor) -> Tensor:
    """Return SplitMix64's finaliser of 64-bit words."""
    word_T = (word_T ^ _shift_right(word_T, 30)) * _signed(_MIX_1)
    word_T = (word_T ^ _shift_right(word_T, 27)) * _signed(_MIX_2)
    return word_T ^ _shift_right(word_T, 31)


def _shift_right(word_T: Tensor, bits: int) -> Tensor:
    """Return the words shifted right with zeros coming in; int64's own shift copies the sign."""
    return (word_T >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """Return the int64 with the same 64 bits."""
    return word - (1 << 64) if word >> 63 else word
