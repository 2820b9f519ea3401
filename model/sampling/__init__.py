"""Sampling the next id from logits in a torch tensor, on any device: the twin of ``bpe_llama.Sampler``.

Same semantics, same kept set and same random numbers as the Rust sampler, so the same id up to rounding at a boundary.
Away from the CPU nothing waits for the device or reads a value back, and every shape depends on the inputs' shapes
alone, so :func:`sample_logits` may run inside a CUDA graph. Pass ``step``, ids and biases as tensors that the graph's
owner changes in place, and sample once with the same options before the capture, since Triton compiles on first use.

On CUDA, Triton kernels find the cutoff without a sort (``on_cuda.py``); elsewhere, and for options that the kernels
lack, plain torch sorts (``filters.py``). ``scores.py`` has biases and penalties, ``uniform.py`` the random numbers.
``params.py`` defines all options, ``sequence.py`` what is generated with them.

Legend: B batch, V vocabulary, T length of the history, N ids given.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bpe_llama.model.device import HAS_TRITON
from bpe_llama.model.sampling.filters import kept_weights
from bpe_llama.model.sampling.params import SamplerParams
from bpe_llama.model.sampling.scores import adjusted_scores, valid_rows
from bpe_llama.model.sampling.uniform import uniform

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bpe_llama.model.sampling.keywords import SamplerKeywords

__all__ = ["filtered_probs", "sample_logits", "uniform"]


def sample_logits(
    logits_BV: Tensor,
    *,
    history_BT: Tensor | None = None,
    seed: int | Tensor = 0,
    step: int | Tensor = 0,
    **options: Unpack[SamplerKeywords],
) -> Tensor:
    """Return one id a row, int64 (B,), drawn from the filtered distribution.

    Penalties, temperature, top-k, top-p, min-p act in that order, each on the ids that the one before kept. The draw
    inverts the distribution function in id order at ``uniform(seed, step)``. Every row of a batch uses the same random
    number, so a row's id depends on its logits, the seed and the step alone. Equal prompts that should continue
    differently take a ``seed`` tensor with one entry a row.

    Args:
        logits_BV: (B, V) or (V,), any floating dtype; float64 is rounded to float32 first.
        history_BT: Ids that penalties apply to, int64, (B, T), or (T,) for one row; negative entries are padding.
        seed: Python int or int64 tensor, () or (B,).
        step: Python int or int64 tensor, () or (B,): the number of this draw.
        **options: Of `SamplerParams`: ``temperature``, ``top_k``, ``top_p`` ...

    Returns:
        int64 (B,), or () for one row, on the logits' device. Where raising would mean waiting (on a GPU, or compiled),
        a row with NaN, +inf, nothing finite or an id outside the vocabulary gives -1.

    Raises:
        ValueError: If a parameter is out of range, a shape does not fit or, on the CPU, a row holds NaN, +inf or
            nothing finite, or was given an id outside the vocabulary.
        TypeError: If the logits are of no floating dtype.

    Cost: on CUDA some ten reads of the logits (:func:`bpe_llama.model.sampling.on_cuda.draw`); elsewhere a sort of each
        row where top-k, top-p or typical-p is on, so on the CPU ``bpe_llama.Sampler`` is far faster.

    Example:
        >>> import torch
        >>> sample_logits(torch.tensor([[0.0, 3.0, 1.0]]), temperature=0.0)
        tensor([1])
    """
    params = SamplerParams(**options)
    scores_BV, outside_B = adjusted_scores(logits_BV, params, history_BT)
    rows = scores_BV.shape[0]
    for name, value in (("seed", seed), ("step", step)):
        if isinstance(value, Tensor) and tuple(value.shape) not in ((), (1,), (rows,)):
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected () or ({rows},)")
    if HAS_TRITON and scores_BV.device.type == "cuda" and params.temperature > 0 and params.typical_p == 1:
        from bpe_llama.model.sampling import on_cuda

        with torch.cuda.device(scores_BV.device):
            ids_B = on_cuda.draw(scores_BV, params, seed, step)
        ids_B = ids_B if outside_B is None else torch.where(outside_B, -1, ids_B)
        return ids_B.reshape(logits_BV.shape[:-1])
    valid_B = valid_rows(scores_BV, outside_B)
    if params.temperature == 0:
        ids_B = _first_argmax(scores_BV)
    else:
        cumulative_BV = kept_weights(scores_BV, params).cumsum(-1)
        mass_B1 = cumulative_BV[..., -1:]
        uniform_B1 = uniform(seed, step, device=scores_BV.device).reshape(-1, 1)
        # u * mass may round up to mass itself, which lies past the last id.
        target_B1 = torch.minimum(uniform_B1 * mass_B1, torch.nextafter(mass_B1, torch.zeros_like(mass_B1)))
        ids_B = torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(-1)
    return torch.where(valid_B, ids_B, -1).reshape(logits_BV.shape[:-1])


def filtered_probs(
    logits_BV: Tensor, *, history_BT: Tensor | None = None, **options: Unpack[SamplerKeywords]
) -> Tensor:
    """Return the distribution :func:`sample_logits` draws from: float64, the logits' shape, each row summing to 1.

    Arguments and errors are those of :func:`sample_logits`; a row that gives -1 there gives NaN here.

    Example:
        >>> import torch
        >>> filtered_probs(torch.tensor([0.0, 0.0, -9.0]), temperature=1.0, top_k=2)
        tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    params = SamplerParams(**options)
    scores_BV, outside_B = adjusted_scores(logits_BV, params, history_BT)
    valid_B = valid_rows(scores_BV, outside_B)
    if params.temperature == 0:
        probs_BV = torch.zeros_like(scores_BV, dtype=torch.float64)
        probs_BV.scatter_(-1, _first_argmax(scores_BV).unsqueeze(-1), 1.0)
    else:
        weights_BV = kept_weights(scores_BV, params)
        probs_BV = weights_BV / weights_BV.sum(-1, keepdim=True)
    return torch.where(valid_B.unsqueeze(-1), probs_BV, math.nan).reshape(logits_BV.shape)


def _first_argmax(scores_BV: Tensor) -> Tensor:
    """Return the lowest id among each row's highest, int64 (B,): torch.argmax leaves the choice among equals open."""
    ids_V = torch.arange(scores_BV.shape[-1], device=scores_BV.device)
    highest_B1 = scores_BV.amax(-1, keepdim=True)
    return torch.where(scores_BV == highest_B1, ids_V, scores_BV.shape[-1]).amin(-1)
