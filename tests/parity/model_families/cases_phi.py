"""Phi-3, Cohere and StableLM: what `cases.ModelFamily` holds of each."""

from __future__ import annotations

from typing import Any


def longrope(pairs: int) -> dict[str, Any]:
    """Return LongRoPE parameters for heads with this many rotated pairs."""
    return {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0 + pair / pairs for pair in range(pairs)],
        "long_factor": [1.5 + 2 * pair for pair in range(pairs)],
    }


PHI3_MINI: dict[str, Any] = {"sliding_window": 2047, "bos_token_id": 1, "attention_bias": False}
PHI3_MEDIUM = PHI3_MINI | {
    "hidden_size": 5120,
    "intermediate_size": 17_920,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 10,
}
LONG = {"max_position_embeddings": 131_072, "sliding_window": 262_144}
PHI4_MINI: dict[str, Any] = {
    **LONG,
    "vocab_size": 200_064,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {name: value for name, value in longrope(48).items() if name != "rope_theta"},
    "bos_token_id": 199_999,
    "eos_token_id": 199_999,
    "pad_token_id": 199_999,
}
PHI4 = PHI3_MEDIUM | {
    "vocab_size": 100_352,
    "max_position_embeddings": 16_384,
    "original_max_position_embeddings": 16_384,
    "rope_theta": 250_000.0,
    "sliding_window": None,
    "bos_token_id": 100_257,
    "eos_token_id": 100_265,
    "pad_token_id": 100_349,
}

PHI_CASES: dict[str, dict[str, Any]] = {
    "phi3": {
        "cases": [
            {"sliding_window": 7, "num_key_value_heads": None},
            # Sequences of 5 tokens and more have the long factors; test_long_rope.py has other lengths.
            {"original_max_position_embeddings": 4, "rope_parameters": longrope(8) | {"factor": 2.0}},
            {
                "original_max_position_embeddings": 4,
                "rope_parameters": longrope(6) | {"partial_rotary_factor": 0.75, "attention_factor": 1.3},
                "sliding_window": 40,
                "tie_word_embeddings": True,
            },
        ],
        "published": {
            "Phi-3-mini-4k": (PHI3_MINI, 3_821_079_552),
            "Phi-3-mini-128k, Phi-3.5-mini": (PHI3_MINI | LONG | {"rope_scaling": longrope(48)}, 3_821_079_552),
            "Phi-3-medium-4k": (PHI3_MEDIUM, 13_960_238_080),
            "Phi-4": (PHI4, 14_659_507_200),
            "Phi-4-mini": (PHI4_MINI, 3_836_021_760),
        },
        "adapted": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        "refused": [
            ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type is 'linear'; model_type 'phi3' has"),
            (
                {"rope_parameters": longrope(8) | {"original_max_position_embeddings": 32}},
                "original_max_position_embeddings is 4096, but rope_parameters state 32",
            ),
            ({"rope_parameters": longrope(4)}, "short_factor has 4 values; expected 8"),
            ({"original_max_position_embeddings": 0}, "original_max_position_embeddings is 0; expected an integer"),
            ({"attention_bias": True}, "attention_bias is true, but transformers' phi3 has no biases"),
            ({"num_local_experts": 4}, "num_local_experts is 4, but model_type is 'phi3'"),
        ],
    },
}
