"""Mixtral: a mixture of experts instead of the MLP; no biases.

Source: Jiang et al. 2024, arXiv:2401.04088.
"""

from bpe_llama.model.families.family import Family, window_of_all_layers

FAMILY = Family(
    "mixtral",
    window_of_all_layers,
    {
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 8,
    },
    rope_theta=1_000_000.0,
    has_experts=True,
)
