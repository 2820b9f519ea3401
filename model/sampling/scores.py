"""Biases, bans and penalties, which act on logits before any filter; and which rows can be drawn from.

Legend: B batch, V vocabulary, T length of the history, N ids given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bpe_llama.model.sampling.params import SamplerParams


def adjusted_scores(
    logits_BV: Tensor, params: SamplerParams, history_BT: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the changed logits, (B, V), and which rows were given an id outside the vocabulary, bool (B,) or None.

    Where nothing changes them, the logits come back in their own dtype, else as float32. Arguments and errors are those
    of :func:`bpe_llama.model.sampling.sample_logits`.
    """
    if not logits_BV.is_floating_point():
        raise TypeError(f"logits must be a floating-point tensor, got {logits_BV.dtype}")
    if logits_BV.dim() not in (1, 2) or logits_BV.shape[-1] == 0:
        raise ValueError(f"logits must have shape (V,) or (B, V) with V > 0, got {tuple(logits_BV.shape)}")
    repetition, presence, frequency = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
    if not (repetition > 0 and math.isfinite(repetition)):
        raise ValueError(f"repetition_penalty must be positive and finite, got {repetition}")
    for name, value in (("presence_penalty", presence), ("frequency_penalty", frequency)):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    scores_BV = logits_BV.detach().reshape(-1, logits_BV.shape[-1])
    if scores_BV.dtype == torch.float64:
        scores_BV = scores_BV.float()
    outside: list[Tensor] = []
    if params.logit_bias is not None:
        scores_BV = scores_BV.float() + _bias(params.logit_bias, scores_BV)
    for name, ids, keep in (("allowed_ids", params.allowed_ids, True), ("banned_ids", params.banned_ids, False)):
        if ids is not None:
            ids_BN = _ids(name, ids, scores_BV)
            outside.append(_check_inside(name, ids_BN, scores_BV))
            named_BV = _counts(ids_BN, scores_BV) > 0
            # NaN and +inf stay, to be found and named.
            dropped_BV = (named_BV != keep) & (scores_BV < math.inf)
            scores_BV = torch.where(dropped_BV, -math.inf, scores_BV.float())
    if history_BT is not None and params.penalises:
        rows = scores_BV.shape[0]
        if history_BT.dim() not in (1, 2) or (history_BT.shape[0] if history_BT.dim() == 2 else 1) != rows:
            raise ValueError(f"history_BT has shape {tuple(history_BT.shape)}; expected ({rows}, T)")
        history_BT = history_BT.reshape(rows, -1)
        outside.append(_check_inside("history", history_BT, scores_BV))
        counts_BV = _counts(history_BT, scores_BV)
        wide_BV = scores_BV.to(torch.float64)
        repeated_BV = torch.where(wide_BV > 0, wide_BV / repetition, wide_BV * repetition)
        penalised_BV = repeated_BV - frequency * counts_BV - presence
        scores_BV = torch.where(counts_BV > 0, penalised_BV, wide_BV).float()
    return scores_BV, torch.stack(outside).any(0) if outside else None


def may_raise(tensor: Tensor) -> bool:
    """Return whether a value of the tensor may be read: on the CPU, unless it is being compiled or traced.

    Example:
        >>> import torch
        >>> may_raise(torch.zeros(1))
        True
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def valid_rows(scores_BV: Tensor, outside_B: Tensor | None) -> Tensor:
    """Return which rows can be drawn from, bool (B,); on the CPU raise for the first that cannot.

    Example:
        >>> import torch
        >>> valid_rows(torch.tensor([[0.0, 1.0]]), None)
        tensor([True])
    """
    bad_BV = scores_BV.isnan() | (scores_BV == math.inf)
    valid_B = ~bad_BV.any(-1) & (scores_BV > -math.inf).any(-1)
    if may_raise(scores_BV) and not bool(valid_B.all()):
        row = int((~valid_B).nonzero()[0])
        bad = bad_BV[row].nonzero()
        if len(bad) == 0:
            raise ValueError(f"row {row}: every logit is -inf; at least one must be finite")
        index = int(bad[0])
        raise ValueError(
            f"row {row}: logit {index} is {float(scores_BV[row, index])}; expected a finite number or -inf"
        )
    return valid_B if outside_B is None else valid_B & ~outside_B


def _bias(logit_bias: Mapping[int, float] | Tensor, scores_BV: Tensor) -> Tensor:
    """Return the biases, float32, (V,) or (B, V)."""
    vocab_size = scores_BV.shape[-1]
    if isinstance(logit_bias, Tensor):
        rows = scores_BV.shape[0]
        if tuple(logit_bias.shape) not in ((vocab_size,), (rows, vocab_size)):
            raise ValueError(
                f"logit_bias has shape {tuple(logit_bias.shape)}; expected ({vocab_size},) or ({rows}, {vocab_size})"
            )
        return logit_bias.float()
    for index, bias in logit_bias.items():
        if not math.isfinite(bias):
            raise ValueError(f"logit_bias of id {index} must be finite, got {bias}")
    ids_N = _ids("logit_bias", list(logit_bias), scores_BV)[0]
    bias_V = torch.zeros(vocab_size, device=scores_BV.device)
    biases_N = torch.tensor(list(logit_bias.values()), dtype=torch.float32, device=bias_V.device)
    return bias_V.index_copy_(0, ids_N, biases_N)


def _ids(name: str, ids: Sequence[int] | Tensor, scores_BV: Tensor) -> Tensor:
    """Return ids as int64 (B, N)."""
    rows, vocab_size = scores_BV.shape
    if not isinstance(ids, Tensor):
        outside = [index for index in ids if not 0 <= index < vocab_size]
        if outside:
            raise ValueError(f"row 0: {name} holds id {outside[0]}, outside the vocabulary of {vocab_size}")
        ids = torch.tensor(list(ids), dtype=torch.int64, device=scores_BV.device)
    if ids.dim() not in (1, 2) or (ids.dim() == 2 and ids.shape[0] != rows):
        raise ValueError(f"{name} has shape {tuple(ids.shape)}; expected (N,) or ({rows}, N)")
    return ids.to(torch.int64).expand(rows, ids.shape[-1])


def _check_inside(name: str, ids_BN: Tensor, scores_BV: Tensor) -> Tensor:
    """Return which rows hold an id beyond the vocabulary, bool (B,); on the CPU raise for the first."""
    vocab_size = scores_BV.shape[-1]
    outside_BN = ids_BN >= vocab_size
    if may_raise(scores_BV) and bool(outside_BN.any()):
        row, index = (int(place) for place in outside_BN.nonzero()[0])
        bad = int(ids_BN[row, index])
        raise ValueError(f"row {row}: {name} holds id {bad}, outside the vocabulary of {vocab_size}")
    return outside_BN.any(-1)


def _counts(ids_BN: Tensor, scores_BV: Tensor) -> Tensor:
    """Return how often each id occurs, float64 (B, V)."""
    rows, vocab_size = scores_BV.shape
    # One column more than the vocabulary catches padding, and ids beyond it.
    inside_BN = torch.where((ids_BN < 0) | (ids_BN >= vocab_size), vocab_size, ids_BN)
    counts_BV = torch.zeros(rows, vocab_size + 1, dtype=torch.float64, device=scores_BV.device)
    return counts_BV.scatter_add_(-1, inside_BN, torch.ones_like(inside_BN, dtype=torch.float64))[:, :-1]
