"""Mixtures of experts: the routing of tokens and its losses (`mixture`); experts stored in one tensor (`fused`)."""

from bpe_llama.model.layers.moe.mixture import (
    MixtureOfExperts,
    SumOverRanks,
    load_balancing_loss,
    router_z_loss,
    routing_loss,
)

__all__ = ["MixtureOfExperts", "SumOverRanks", "load_balancing_loss", "router_z_loss", "routing_loss"]
