"""Filters in any order, and those that the Rust sampler lacks: top-n-sigma, XTC and mirostat.

Each filter takes scores and returns them with -inf for the ids that it drops, so that filters compose. top-k, top-p,
min-p and typical-p are those of ``filters.py``. The next id is drawn from the softmax of the result.

Legend: V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bpe_llama.model.sampling.filters import Filters, kept_ids
from bpe_llama.model.sampling.uniform import uniform

FILTER_OPTIONS = {
    **{name: name for name in ("top_n_sigma", "temperature", "top_k", "top_p", "min_p", "typical_p")},
    "xtc": "xtc_probability",
}
"""The option that turns each filter on, in the order in which filters act."""

FILTERS = tuple(FILTER_OPTIONS)
"""All filters, in their default order."""
LLAMA_CPP_FILTERS = ("top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc", "temperature")
"""The order of llama.cpp's default chain."""
XTC_STREAM = 0x5854435F58544321
"""Combined with the seed by exclusive or, so that XTC's random numbers are independent of the draw's."""


def filtered_in_order(scores_V: Tensor, order: Sequence[str], values: dict[str, Any], chance: float) -> Tensor:
    """Return the scores after the filters, float32 (V,), -inf for dropped ids.

    Args:
        scores_V: Logits, biases and penalties applied.
        order: Names of `FILTERS`.
        values: Their options: ``temperature``, ``top_k`` ..., ``xtc_probability`` and ``xtc_threshold``, ``preset``.
        chance: A random number in [0, 1); XTC acts if it is at most ``xtc_probability``.

    Example:
        >>> filtered_in_order(torch.tensor([0.0, 3.0, 2.0]), ["top_k"], {"top_k": 2}, 0.0)
        tensor([-inf, 3., 2.])
    """
    scores_V = scores_V.float()
    for name in order:
        if name == "temperature":
            scores_V = _at_temperature(scores_V, values["temperature"])
        elif name == "top_n_sigma":
            scores_V = top_n_sigma(scores_V, float(values[name]))
        elif name == "xtc":
            if values["xtc_probability"] > 0 and chance <= values["xtc_probability"]:
                scores_V = exclude_top_choices(scores_V, values["xtc_threshold"])
        else:
            neutral = {"temperature": 1.0, "top_p": 1.0, "preset": values.get("preset", "exact")}
            keep_BV, _ = kept_ids(scores_V[None], Filters(**{**neutral, name: values[name]}))
            scores_V = torch.where(keep_BV[0], scores_V, -math.inf)
    return scores_V


def xtc_chance(seed: int, step: int) -> float:
    """Return the random number in [0, 1) that decides whether XTC acts, from seed and step."""
    return float(uniform(seed ^ XTC_STREAM, step))


def top_n_sigma(scores_V: Tensor, sigmas: float) -> Tensor:
    """Return the scores, float32 (V,), with -inf more than ``sigmas`` standard deviations below the highest.

    0 keeps all.

    Source: Tang et al. 2024, arXiv:2411.07641; deviations over the finite scores, as in llama.cpp.

    Example:
        >>> top_n_sigma(torch.tensor([0.0, 3.0, 1.0]), 1.0)
        tensor([-inf, 3., -inf])
    """
    finite_V = scores_V > -math.inf
    if sigmas <= 0 or scores_V.numel() < 2:
        return scores_V
    wide_V = scores_V.double()
    deviation = wide_V[finite_V].std(correction=0)
    return torch.where(wide_V >= wide_V.max() - sigmas * deviation, scores_V, -math.inf)


def exclude_top_choices(scores_V: Tensor, threshold: float) -> Tensor:
    """Return the scores, (V,), with -inf where the probability reaches a threshold, except at the least likely such id.

    Source: p-e-w, https://github.com/oobabooga/text-generation-webui/pull/6335; as in llama.cpp a threshold above 0.5
    changes nothing.

    Example:
        >>> exclude_top_choices(torch.tensor([0.5, 0.3, 0.2]).log(), 0.25)
        tensor([   -inf, -1.2040, -1.6094])
    """
    if threshold > 0.5:
        return scores_V
    likely_V = scores_V.double().softmax(-1) >= threshold
    if int(likely_V.sum()) < 2:
        return scores_V
    # A stable sort leaves equal scores in id order, so the last is the least likely, of equals the highest id.
    order_V = torch.sort(scores_V, descending=True, stable=True).indices
    last = order_V[int(likely_V.sum()) - 1]
    likely_V[last] = False
    return torch.where(likely_V, -math.inf, scores_V)


def mirostat_kept(scores_V: Tensor, version: int, mu: float) -> Tensor:
    """Return the scores, (V,), with -inf for the ids that mirostat drops at a bound of ``mu`` bits.

    Version 2 drops ids with a surprise above ``mu``. Version 1 estimates Zipf's exponent from the 100 most likely ids,
    and from it the number of ids within that surprise. Both keep the most likely id.

    Source: Basu et al. 2021, arXiv:2007.14966, algorithm 1; version 2 is llama.cpp's ``llama_sampler_mirostat_v2``.

    Example:
        >>> mirostat_kept(torch.tensor([0.5, 0.25, 0.25]).log(), 2, 1.5)
        tensor([-0.6931,    -inf,    -inf])
    """
    probs_V, order_V = torch.sort(scores_V.double().softmax(-1), descending=True, stable=True)
    if version == 2:
        count = int((-probs_V.log2() <= mu).sum())
    else:
        head = probs_V[probs_V > 0][:100]
        rank = torch.arange(1, len(head), dtype=torch.float64, device=head.device)
        steps, falls = ((rank + 1) / rank).log(), (head[:-1] / head[1:]).log()
        exponent = float((steps * falls).sum() / (steps * steps).sum()) if len(head) > 1 else math.nan
        epsilon = exponent - 1
        scale = 1 - len(scores_V) ** -epsilon if math.isfinite(epsilon) else math.nan
        ratio = epsilon * 2**mu / scale if scale else math.nan
        bound = ratio ** (1 / exponent) if ratio > 0 and exponent else math.nan
        count = int(min(bound, len(scores_V))) if math.isfinite(bound) else len(scores_V)
    kept_V = torch.zeros_like(scores_V, dtype=torch.bool)
    kept_V[order_V[: max(count, 1)]] = True
    return torch.where(kept_V, scores_V, -math.inf)


def mirostat_bound(scores_V: Tensor, new_id: int, mu: float, tau: float, eta: float) -> float:
    """Return ``mu`` of the next step, after an id was drawn from the scores of `mirostat_kept`.

    Args:
        scores_V: The scores that the id was drawn from.
        new_id: The id.
        mu: The bound of this step, in bits.
        tau: The target surprise, in bits.
        eta: The learning rate.
    """
    surprise = -float(scores_V.double().log_softmax(-1)[new_id]) / math.log(2)
    return mu - eta * (surprise - tau)


def _at_temperature(scores_V: Tensor, temperature: float) -> Tensor:
    """Return the scores divided by a temperature; at 0 the highest alone, of equal ones the lowest id."""
    if temperature > 0:
        return scores_V / temperature
    highest = torch.nonzero(scores_V == scores_V.max())[:1, 0]
    return torch.full_like(scores_V, -math.inf).index_copy(0, highest, scores_V[highest])
