"""Top-k, top-p, min-p and typical-p, one after the other, in float64, by sorting.

The plain version, for every device and every option; ``on_cuda.py`` finds the same cutoff on CUDA without a sort.

Legend: B batch, V vocabulary; a name with `_by_rank` has each row in order of falling score, equals by rising id.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bpe_llama._core import shown

# A mass this close below p reaches it, and this close above p does not exceed it: p was a decimal fraction, and the
# mass a sum, before either was rounded.
REACHED = 1 - 2.0**-50
EXCEEDED = 1 + 2.0**-50

PRESETS = ("exact", "meta", "transformers", "llama_cpp")


@dataclass(frozen=True)
class Filters:
    """Options of the filters, which decide what ids may be drawn.

    Args:
        temperature: Divides the logits; 0 takes the highest, the lowest id among equals.
        top_k: Keep the k highest; 0 or at least V keeps all. Ties go to the lower id.
        top_p: Keep the fewest highest whose mass reaches this; in (0, 1].
        min_p: Drop ids below this times the highest probability; in [0, 1].
        typical_p: Keep the ids whose surprise is nearest to the entropy until their mass reaches this; in (0, 1]. Acts
            after min-p (Meister et al. 2022, arXiv:2202.00666).
        preset: Whose boundaries and order of filters: "exact", "meta", "transformers" or "llama_cpp", as of
            `bpe_llama.Sampler`.

    Raises:
        ValueError: If one is out of range, naming it, its value and its range.

    Example:
        >>> Filters(top_p=0.9).top_p_share < 0.9
        True
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    typical_p: float = 1.0
    preset: str = "exact"

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be finite and at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 (0 keeps all), got {self.top_k}")
        for name, share in (("top_p", self.top_p), ("typical_p", self.typical_p)):
            if not 0 < share <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {share}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}")
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(map(repr, PRESETS))}, got {shown(self.preset)}")

    @property
    def judged_at(self) -> float:
        """The temperature of the distribution that the filters cut."""
        return 1.0 if self.preset == "llama_cpp" else self.temperature

    @property
    def keeps_ties(self) -> bool:
        """Whether all ids that tie at top-k's and typical-p's boundary stay, and at top-p's the highest."""
        return self.preset == "transformers"

    @property
    def top_p_share(self) -> float:
        """The share of the mass before which top-p goes on."""
        return self.top_p * (EXCEEDED if self.preset == "meta" else REACHED)

    @property
    def typical_p_share(self) -> float:
        """The share of the mass before which typical-p goes on."""
        return self.typical_p * (EXCEEDED if self.preset == "llama_cpp" else REACHED)


def kept_weights(scores_BV: Tensor, filters: Filters) -> Tensor:
    """Return exp((score - highest) / temperature) in float64 where kept and 0 elsewhere, (B, V).

    Cost: as `kept_ids`.

    Example:
        >>> import torch
        >>> kept_weights(torch.tensor([[0.0, 0.0, -9.0]]), Filters(temperature=1.0, top_k=2, top_p=1.0))
        tensor([[1., 1., 0.]], dtype=torch.float64)
    """
    keep_BV, weights_BV = kept_ids(scores_BV, filters)
    return torch.where(keep_BV, weights_BV, 0.0)


def kept_ids(scores_BV: Tensor, filters: Filters) -> tuple[Tensor, Tensor]:
    """Return which ids are kept, bool (B, V), and exp((score - highest) / temperature) in float64 of all, (B, V).

    The weight of an id that is kept is 0 if it underflows.

    Cost: one sort of each row where top-k or top-p is on, one more for typical-p.
    """
    vocab_size = scores_BV.shape[-1]
    wide_BV = scores_BV.to(torch.float64)
    gap_BV = wide_BV - wide_BV.amax(-1, keepdim=True)
    weights_BV = (gap_BV / filters.judged_at).exp()
    keep_BV = wide_BV > -math.inf
    top_k = 0 < filters.top_k < vocab_size
    if top_k or filters.top_p < 1:
        # A stable sort leaves equal scores in id order.
        by_rank = torch.sort(scores_BV.float(), dim=-1, descending=True, stable=True)
        order_BV = by_rank.indices
        if filters.keeps_ties:  # transformers sorts by rising score and drops from the front: of equals the highest ids
            order_BV = torch.sort(scores_BV.float(), dim=-1, stable=True).indices.flip(-1)  # stay
        if top_k and filters.keeps_ties:
            keep_BV = keep_BV & (scores_BV >= by_rank.values[:, filters.top_k - 1 : filters.top_k])
        elif top_k:
            first_BV = torch.zeros_like(keep_BV).scatter_(-1, by_rank.indices[:, : filters.top_k], True)
            keep_BV = keep_BV & first_BV
    if filters.preset == "llama_cpp":
        keep_BV = _typical(weights_BV, gap_BV / filters.judged_at, keep_BV, filters)
    if filters.top_p < 1:
        keep_BV = _fewest(weights_BV, keep_BV, order_BV, filters.top_p_share)
    if filters.min_p > 0:
        highest_B1 = wide_BV.where(keep_BV, -math.inf).amax(-1, keepdim=True)
        keep_BV = keep_BV & (wide_BV >= highest_B1 + filters.judged_at * math.log(filters.min_p))
    if filters.preset != "llama_cpp":
        keep_BV = _typical(weights_BV, gap_BV / filters.judged_at, keep_BV, filters)
    else:  # typical-p may have removed the highest score, relative to which all weights might be 0 at a low temperature
        highest_B1 = wide_BV.where(keep_BV, -math.inf).amax(-1, keepdim=True)
        weights_BV = ((wide_BV - highest_B1) / filters.temperature).exp()
    return keep_BV, weights_BV


def _fewest(weights_BV: Tensor, keep_BV: Tensor, order_BV: Tensor, share: float) -> Tensor:
    """Return the fewest kept ids, in the given order, whose mass reaches a share of the kept mass."""
    by_rank_BV = torch.where(keep_BV, weights_BV, 0.0).gather(-1, order_BV)
    mass_BV = by_rank_BV.cumsum(-1)
    before_BV = torch.nn.functional.pad(mass_BV[:, :-1], (1, 0))
    enough_BV = (by_rank_BV > 0) & (before_BV < share * mass_BV[:, -1:])
    return torch.zeros_like(keep_BV).scatter_(-1, order_BV, enough_BV)


def _typical(weights_BV: Tensor, shifted_BV: Tensor, keep_BV: Tensor, filters: Filters) -> Tensor:
    """Return the kept ids with a surprise nearest to the entropy: Meister et al. 2022, arXiv:2202.00666, section 4."""
    if filters.typical_p >= 1:
        return keep_BV
    kept_BV = torch.where(keep_BV, weights_BV, 0.0)
    # The entropy is ln(mass) less the mean of the shifted score, so its distance from a surprise is that from the mean.
    shifted_BV = torch.where(kept_BV > 0, shifted_BV, 0.0)
    mean_B1 = (shifted_BV * kept_BV).sum(-1, keepdim=True) / kept_BV.sum(-1, keepdim=True)
    distance_BV = torch.where(kept_BV > 0, (shifted_BV - mean_B1).abs(), math.inf)
    order_BV = torch.sort(distance_BV, dim=-1, stable=True).indices
    nearest_BV = _fewest(weights_BV, keep_BV, order_BV, filters.typical_p_share)
    if filters.keeps_ties:
        farthest_B1 = distance_BV.where(nearest_BV, -math.inf).amax(-1, keepdim=True)
        return keep_BV & (distance_BV <= farthest_B1)
    return nearest_BV
