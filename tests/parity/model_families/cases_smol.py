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
NO_DROPOUT = {"attention_dropout": 0.0, "residual_dropout": 0.0}
OLMO2 = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": 100_257,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 4096,
    "pad_token_id": 100_277,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 500_000,
    "tie_word_embeddings": False,
    "use_cache": False,
    "vocab_size": 100_352,
}
OLMO3 = OLMO2 | {
    "max_position_embeddings": 65_536,
    "rope_scaling": {
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    },
    "sliding_window": 4096,
    "vocab_size": 100_278,
}


def heads(queries: int, keys: int) -> dict[str, Any]:
    return {"num_attention_heads": queries, "num_key_value_heads": keys}


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
            ({"sliding_window": 8}, "sliding_window is 8, which model_type 'granite' does not compute"),
            ({"logits_scaling": 0.0}, "logits_scaling is 0.0, which divides the logits"),
            ({"residual_multiplier": -1.0}, "residual_multiplier is -1.0; expected a finite number of at least 0"),
            ({"no_rope_layers": [1, 0, 1, 0]}, r"no_rope_layers is \[1, 0, 1, 0\], a key that is not known here"),
        ],
    },
    "olmo2": {
        "cases": [
            {"num_key_value_heads": 4},
            {"tie_word_embeddings": True, "rope_parameters": YARN},
            {"attention_bias": True, "num_key_value_heads": 1, "head_dim": 24},
        ],
        "published": {
            "OLMo-2-1B": (
                OLMO2 | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16} | heads(16, 16),
                1_484_916_736,
            ),
            "OLMo-2-7B": (
                OLMO2 | {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32} | heads(32, 32),
                7_298_617_344,
            ),
            "OLMo-2-13B": (
                OLMO2 | {"hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 40} | heads(40, 40),
                13_716_198_400,
            ),
            "OLMo-2-32B": (
                OLMO2 | {"hidden_size": 5120, "intermediate_size": 27_648, "num_hidden_layers": 64} | heads(40, 8),
                32_234_279_936,
            ),
        },
        "refused": [
            ({"sliding_window": 8}, "sliding_window is 8, which model_type 'olmo2' does not compute"),
            ({"clip_qkv": 8.0}, "clip_qkv is 8.0, a key that is not known here"),
            ({"mlp_bias": True}, "mlp_bias is true, but transformers' olmo2 has no such biases"),
        ],
    },
    "seed_oss": {
        "cases": [
            NO_DROPOUT | {"head_dim": 24},
            NO_DROPOUT | {"attention_out_bias": True, "mlp_bias": True, "head_dim": None, "rope_parameters": LLAMA3},
            NO_DROPOUT | {"attention_bias": False, "tie_word_embeddings": True},
        ],
        "published": {
            "Seed-OSS-36B": (
                {
                    "attention_bias": True,
                    "attention_dropout": 0.1,
                    "attention_out_bias": False,
                    "bos_token_id": 0,
                    "eos_token_id": 2,
                    "head_dim": 128,
                    "hidden_act": "silu",
                    "hidden_size": 5120,
                    "initializer_range": 0.02,
                    "intermediate_size": 27_648,
                    "max_position_embeddings": 524_288,
                    "mlp_bias": False,
                    "num_hidden_layers": 64,
                    "pad_token_id": 1,
                    "residual_dropout": 0.1,
                    "rms_norm_eps": 1e-6,
                    "rope_scaling": {"rope_type": "default"},
                    "rope_theta": 10_000_000.0,
                    "tie_word_embeddings": False,
                    "use_cache": True,
                    "vocab_size": 155_136,
                }
                | heads(80, 8),
                36_151_104_512,
            ),
        },
        "refused": [
            ({"sliding_window": 8}, "sliding_window is 8, which model_type 'seed_oss' does not compute"),
            ({"residual_dropout": -0.1}, "residual_dropout is -0.1; expected a finite number of at least 0"),
            ({"residual_dropout": 1.1}, "residual_dropout is 1.1; expected a probability"),
        ],
    },
    "ministral": {
        "cases": [
            {"head_dim": 16, "sliding_window": 5},
            {"head_dim": 24, "sliding_window": 7, "layer_types": [FULL, SLIDING, SLIDING, FULL]},
            {
                "head_dim": 16,
                "sliding_window": 9,
                "layer_types": [SLIDING, FULL] * 2,
                "tie_word_embeddings": True,
                "rope_parameters": YARN,
            },
        ],
        "published": {
            "Ministral-8B": (
                {
                    "attention_dropout": 0.0,
                    "bos_token_id": 1,
                    "eos_token_id": 2,
                    "head_dim": 128,
                    "hidden_act": "silu",
                    "hidden_size": 4096,
                    "initializer_range": 0.02,
                    "intermediate_size": 12_288,
                    "layer_types": [FULL, SLIDING, SLIDING, SLIDING] * 9,
                    "max_position_embeddings": 32_768,
                    "num_hidden_layers": 36,
                    "rms_norm_eps": 1e-5,
                    "rope_theta": 100_000_000.0,
                    "sliding_window": 32_768,
                    "tie_word_embeddings": False,
                    "use_cache": True,
                    "vocab_size": 131_072,
                }
                | heads(32, 8),
                8_019_808_256,
            ),
        },
        "refused": [
            ({"layer_types": [FULL, SLIDING]}, "expected one type for each of num_hidden_layers"),
            ({"layer_types": [FULL, "chunked_attention"] * 2}, "layer_types names 'chunked_attention'; expected"),
            ({"layer_types": [SLIDING] * 4, "sliding_window": None}, "but sliding_window is None"),
            ({"attention_bias": True}, "attention_bias is true, but transformers' ministral has no biases"),
        ],
    },
    "olmo3": {
        "cases": [
            {"sliding_window": 5},
            {
                "sliding_window": 7,
                "rope_parameters": {FULL: YARN, SLIDING: {"rope_type": "default", "rope_theta": 1e3}},
                "tie_word_embeddings": True,
            },
            {
                "sliding_window": 9,
                "layer_types": [FULL, SLIDING, SLIDING, FULL],
                "rope_parameters": {FULL: {"rope_type": "default", "rope_theta": 1e3}, SLIDING: LLAMA3},
                "attention_bias": True,
                "head_dim": 24,
            },
        ],
        "published": {
            "Olmo-3-7B": (
                OLMO3
                | {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32}
                | {"layer_types": [SLIDING, SLIDING, SLIDING, FULL] * 8}
                | heads(32, 32),
                7_298_011_136,
            ),
            "Olmo-3-32B": (
                OLMO3
                | {"hidden_size": 5120, "intermediate_size": 27_648, "num_hidden_layers": 64}
                | {"layer_types": [SLIDING, SLIDING, SLIDING, FULL] * 16}
                | heads(40, 8),
                32_233_522_176,
            ),
        },
        "refused": [
            ({"rope_parameters": {"rope_type": "default"}}, "expected an object with 'full_attention' and"),
            (
                {"rope_parameters": {SLIDING: {"rope_type": "dynamic", "factor": 2.0}}},
                "rope_type of 'sliding_attention' is 'dynamic'; expected one of",
            ),
            (
                {"rope_parameters": {SLIDING: {"rope_type": "default", "factor": 2.0}}},
                "factor of 'sliding_attention' is 2.0, which rope_type 'default' lacks",
            ),
        ],
    },
}
