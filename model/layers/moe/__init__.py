"""Mixtures of experts: the routing of tokens and its losses (`mixture`); experts stored in one tensor (`fused`)."""

from bpe_llama.model.layers.moe.mixture import (
    Expert,
    MixtureOfExperts,
    SumOverRanks,
    load_balancing_loss,
    router_z_loss,
    routing_loss,
)

__all__ = ["Expert", "MixtureOfExperts", "SumOverRanks", "load_balancing_loss", "router_z_loss", "routing_loss"]
