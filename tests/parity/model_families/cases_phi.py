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


def yarn() -> dict[str, Any]:
    """Return YaRN parameters, which a config of transformers may change."""
    return {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}


PHI3_MINI: dict[str, Any] = {"sliding_window": 2047, "bos_token_id": 1, "attention_bias": False}
PHI3_MEDIUM = PHI3_MINI | {
    "hidden_size": 5120,
    "intermediate_size": 17_920,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 10,
}
LONG = {"max_position_embeddings": 131_072, "sliding_window": 262_144}
MINI_ROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
PHI4_MINI: dict[str, Any] = {
    **LONG,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "original_max_position_embeddings": 4096,
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

FULL, SLIDING = "full_attention", "sliding_attention"

COMMAND_R: dict[str, Any] = {"rope_theta": 8_000_000.0, "logit_scale": 0.0625}
COMMAND_R_PLUS: dict[str, Any] = {
    "hidden_size": 12_288,
    "intermediate_size": 33_792,
    "num_hidden_layers": 64,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "logit_scale": 0.8333333333333334,
    "rope_theta": 75_000_000.0,
    "use_qk_norm": True,
}
AYA_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
COMMAND_R7B = AYA_8B | {
    "head_dim": 128,
    "logit_scale": 0.25,
    "rope_theta": 50_000,
    "sliding_window": 4096,
    "layer_switch": 4,
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_parallel_embedding": True,
}
COMMAND_A = COMMAND_R7B | {
    "hidden_size": 12_288,
    "intermediate_size": 36_864,
    "num_hidden_layers": 64,
    "num_attention_heads": 96,
}
STABLELM2: dict[str, Any] = {
    "vocab_size": 100_352,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "use_qkv_bias": True,
    "bos_token_id": 100_257,
    "eos_token_id": 100_257,
}
STABLELM2_12B = STABLELM2 | {
    "hidden_size": 5120,
    "intermediate_size": 13_824,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "use_qkv_bias": False,
    "qk_layernorm": True,
    "use_parallel_residual": True,
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
            "Phi-3-mini-128k, Phi-3.5-mini": (PHI3_MINI | LONG | {"rope_scaling": MINI_ROPE}, 3_821_079_552),
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
            ({"resid_pdrop": 1.5}, "resid_pdrop is 1.5; expected a probability"),
            ({"num_local_experts": 4}, "num_local_experts is 4, but model_type is 'phi3'"),
        ],
    },
    "cohere": {
        "cases": [
            {"logit_scale": 0.5},
            {"use_qk_norm": True, "attention_bias": True, "tie_word_embeddings": False, "layer_norm_eps": 1e-3},
            {"num_key_value_heads": None, "head_dim": 24, "rope_parameters": yarn(), "logit_scale": 0.3},
        ],
        "published": {
            "Command-R v01": (COMMAND_R, 34_980_831_232),
            "Command-R+": (COMMAND_R_PLUS, 103_810_674_688),
            "Aya 23 8B": (AYA_8B, 8_028_033_024),
        },
        "refused": [
            ({"sliding_window": 5}, "sliding_window is 5, which model_type 'cohere' does not compute"),
            ({"rms_norm_eps": 1e-3}, "rms_norm_eps is 0.001, but model_type 'cohere' has LayerNorm"),
            ({"mlp_bias": True}, "mlp_bias is true, but transformers' cohere has no such biases"),
            ({"partial_rotary_factor": 0.5}, "transformers' cohere rotates whole heads"),
            ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; model_type 'cohere' has 'silu'"),
        ],
    },
    "cohere2": {
        "cases": [
            {"sliding_window": 5, "logit_scale": 0.25},
            {"sliding_window": 40, "sliding_window_pattern": 2, "tie_word_embeddings": False, "attention_bias": True},
            {"sliding_window": 9, "layer_types": [FULL, SLIDING, SLIDING, FULL], "head_dim": 16},
        ],
        "published": {
            "Command-R7B": (COMMAND_R7B, 8_028_033_024),
            "Command A": (COMMAND_A, 111_057_580_032),
        },
        "refused": [
            ({"use_qk_norm": True}, "use_qk_norm is true, but transformers' cohere2 has no such norm"),
            ({"sliding_window": None}, "layer_types names 'sliding_attention', but sliding_window is None"),
            ({"sliding_window_pattern": 0}, "sliding_window_pattern is 0; expected an integer of at least 1"),
            ({"rms_norm_eps": 1e-3}, "rms_norm_eps is 0.001, but model_type 'cohere2' has LayerNorm"),
            ({"layer_types": ["chunked_attention"] * 4}, "layer_types names 'chunked_attention'"),
        ],
    },
    "stablelm": {
        "cases": [
            {"use_qkv_bias": True},
            {"qk_layernorm": True, "use_parallel_residual": True, "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-3},
            {"qk_layernorm": True, "use_qkv_bias": True, "tie_word_embeddings": True, "rope_parameters": yarn()},
        ],
        "published": {
            "StableLM-3B-4E1T": ({"rope_theta": 10_000, "vocab_size": 50_304}, 2_795_443_200),
            "StableLM 2 1.6B": (STABLELM2, 1_644_515_328),
            "StableLM 2 12B": (STABLELM2_12B, 12_143_185_920),
        },
        "refused": [
            ({"attention_bias": True}, "attention_bias is true, but transformers' stablelm has no biases"),
            ({"rms_norm_eps": 1e-3}, "rms_norm_eps is 0.001, but model_type 'stablelm' has LayerNorm"),
            ({"hidden_dropout": 1.5}, "hidden_dropout is 1.5; expected a probability"),
            ({"sliding_window": 8}, "sliding_window is 8, which model_type 'stablelm' does not compute"),
            ({"head_dim": 32}, "head_dim is 32; model_type 'stablelm' has hidden_size / num_attention_heads"),
            ({"logit_scale": 0.5}, "logit_scale is 0.5, a key that is not known here"),
        ],
    },
}
