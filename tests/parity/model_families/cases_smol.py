"""SmolLM3, Granite, OLMo 2 and 3, Seed-OSS and Ministral: what `cases.ModelFamily` holds of each."""

from __future__ import annotations

from typing import Any

FULL, SLIDING = "full_attention", "sliding_attention"
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.15,
    "residual_multiplier": 0.7,
    "logits_scaling": 8.0,
}
GRANITE = {
    "attention_bias": False,
    "attention_dropout": 0.1,
    "attention_multiplier": 0.015625,
    "bos_token_id": 0,
    "embedding_multiplier": 12.0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "logits_scaling": 8.0,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 49_152,
}

SMOL_CASES: dict[str, dict[str, Any]] = {
    "smollm3": {
        "cases": [
            {"no_rope_layer_interval": 2},
            {"no_rope_layers": [0, 1, 1, 0], "use_sliding_window": True, "sliding_window": 5, "rope_parameters": YARN},
            {
                "layer_types": [SLIDING, FULL, FULL, SLIDING],
                "use_sliding_window": True,
                "sliding_window": 7,
                "attention_bias": True,
                "mlp_bias": True,
                "tie_word_embeddings": False,
            },
        ],
        "published": {
            "SmolLM3-3B": (
                {
                    "attention_bias": False,
                    "attention_dropout": 0.0,
                    "bos_token_id": 128_000,
                    "eos_token_id": 128_012,
                    "hidden_act": "silu",
                    "hidden_size": 2048,
                    "initializer_range": 0.02,
                    "intermediate_size": 11_008,
                    "layer_types": [FULL] * 36,
                    "max_position_embeddings": 65_536,
                    "max_window_layers": 28,
                    "mlp_bias": False,
                    "no_rope_layer_interval": 4,
                    "no_rope_layers": [1, 1, 1, 0] * 9,
                    "num_attention_heads": 16,
                    "num_hidden_layers": 36,
                    "num_key_value_heads": 4,
                    "pad_token_id": 128_004,
                    "pretraining_tp": 2,
                    "rms_norm_eps": 1e-6,
                    "rope_scaling": None,
                    "rope_theta": 5_000_000.0,
                    "sliding_window": None,
                    "use_cache": False,
                    "use_sliding_window": False,
                    "vocab_size": 128_256,
                },
                3_075_098_624,
            ),
        },
        "refused": [
            ({"no_rope_layers": [1, 0]}, r"no_rope_layers is \[1, 0\]; expected 0 or 1 for each of 4 layers"),
            ({"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
            ({"layer_types": [SLIDING] * 4, "sliding_window": 4}, "but use_sliding_window is false"),
            ({"embedding_multiplier": 12.0}, "embedding_multiplier is 12.0, a key that is not known here"),
        ],
    },
    "granite": {
        "cases": [
            MULTIPLIERS,
            MULTIPLIERS | {"logits_scaling": 3.0, "tie_word_embeddings": True, "rope_parameters": YARN},
            MULTIPLIERS | {"embedding_multiplier": 1.3, "attention_bias": True, "mlp_bias": True},
        ],
        "adapted": ("q_proj", "down_proj", "lm_head", "embed_tokens"),
        "published": {
            "Granite-3.0-2B": (GRANITE, 2_533_525_504),
            "Granite-3.0-8B": (
                GRANITE
                | {
                    "attention_multiplier": 0.0078125,
                    "hidden_size": 4096,
                    "intermediate_size": 12_800,
                    "logits_scaling": 16.0,
                },
                8_170_835_968,
            ),
            "Granite-3.3-2B": (
                GRANITE | {"max_position_embeddings": 131_072, "rope_theta": 10_000_000.0, "vocab_size": 49_159},
                2_533_539_840,
            ),
        },
        "refused": [
            ({"logits_scaling": 0.0}, "logits_scaling is 0.0, which divides the logits"),
            ({"residual_multiplier": -1.0}, "residual_multiplier is -1.0; expected a finite number of at least 0"),
            ({"no_rope_layers": [1, 0, 1, 0]}, r"no_rope_layers is \[1, 0, 1, 0\], a key that is not known here"),
        ],
    },
}
