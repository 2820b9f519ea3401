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
}
