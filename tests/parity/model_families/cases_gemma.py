"""The cases of Gemma 1, 2 and 3; see `cases.ModelFamily`."""

from __future__ import annotations

from typing import Any

LINEAR = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0}
LOCAL = {"rope_type": "default", "rope_theta": 10_000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5000.0, "original_max_position_embeddings": 32}
TYPES = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]

_COMMON: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "head_dim": 256,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "use_cache": True,
    "vocab_size": 256_000,
    "max_position_embeddings": 8192,
}
_GEMMA = _COMMON | {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh", "rope_scaling": None}
_GEMMA_2 = _COMMON | {
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "cache_implementation": "hybrid",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_GEMMA_3 = _COMMON | {
    "hidden_activation": "gelu_pytorch_tanh",
    "cache_implementation": "hybrid",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "query_pre_attn_scalar": 256,
    "rope_local_base_freq": 10_000.0,
    "rope_theta": 1_000_000.0,
    "vocab_size": 262_144,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
}
_GEMMA_3_TEXT = _GEMMA_3 | {
    "vocab_size": 262_208,
    "sliding_window": 1024,
    "max_position_embeddings": 131_072,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}


def _sizes(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


GEMMA_CASES: dict[str, dict[str, Any]] = {
    "gemma": {
        "cases": [
            {"head_dim": 32},
            {"head_dim": 16, "hidden_act": "gelu", "attention_bias": True, "tie_word_embeddings": False},
            {"head_dim": 24, "num_key_value_heads": 1, "rope_parameters": YARN, "max_position_embeddings": 128},
        ],
        "published": {
            "Gemma 2B": (_GEMMA | _sizes(2048, 16_384, 18, 8, 1), 2_506_172_416),
            "Gemma 7B": (_GEMMA | _sizes(3072, 24_576, 28, 16, 16), 8_537_680_896),
        },
        "adapted": ("q_proj", "down_proj", "embed_tokens"),
        "refused": [
            ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
            ({"sliding_window": 8}, "sliding_window is 8, which model_type 'gemma' does not compute"),
            ({"layer_types": TYPES}, "layer_types is .*, but transformers' gemma attends to all tokens"),
            ({"mlp_bias": True}, "mlp_bias is true, but transformers' gemma has no such biases"),
            ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, a key that is not known here"),
            ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ],
    },
    "gemma2": {
        "cases": [
            {
                "head_dim": 32,
                "sliding_window": 5,
                "query_pre_attn_scalar": 24,
                "attn_logit_softcapping": 2.0,
                "final_logit_softcapping": 3.0,
            },
            {
                "head_dim": 16,
                "sliding_window": 9,
                "layer_types": TYPES,
                "attention_bias": True,
                "tie_word_embeddings": False,
                "attn_logit_softcapping": 0.5,
                "final_logit_softcapping": None,
                "num_key_value_heads": 4,
            },
            {
                "head_dim": 24,
                "sliding_window": 40,
                "attn_logit_softcapping": None,
                "final_logit_softcapping": 1.5,
                "hidden_activation": "silu",
                "rope_parameters": YARN,
            },
        ],
        "published": {
            "Gemma 2 2B": (_GEMMA_2 | _sizes(2304, 9216, 26, 8, 4), 2_614_341_888),
            "Gemma 2 9B": (_GEMMA_2 | _sizes(3584, 14_336, 42, 16, 8) | {"sliding_window_size": 4096}, 9_241_705_984),
            "Gemma 2 27B": (
                _GEMMA_2 | _sizes(4608, 36_864, 46, 32, 16) | {"head_dim": 128, "query_pre_attn_scalar": 144},
                27_227_128_320,
            ),
        },
        "adapted": ("q_proj", "down_proj", "lm_head"),
        "refused": [
            ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0; expected at least 1"),
            ({"attn_logit_softcapping": -1.0}, "attn_logit_softcapping is -1.0; expected a positive number or null"),
            ({"final_logit_softcapping": 0}, "final_logit_softcapping is 0; expected a positive number or null"),
            ({"sliding_window": None}, "sliding_window is None"),
            ({"sliding_window": 8, "sliding_window_size": 16}, "sliding_window_size is 16"),
            ({"hidden_size": 66, "head_dim": 16}, r"hidden_size \(66\) is not a multiple of num_attention_heads"),
            ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
            ({"rope_local_base_freq": 10_000.0}, "rope_local_base_freq is 10000.0"),
        ],
    },
    "gemma3_text": {
        "cases": [
            {
                "head_dim": 32,
                "num_hidden_layers": 7,
                "sliding_window": 5,
                "rope_parameters": {"full_attention": LINEAR, "sliding_attention": LOCAL},
            },
            {
                "head_dim": 16,
                "sliding_window": 9,
                "sliding_window_pattern": 2,
                "query_pre_attn_scalar": 24,
                "rope_theta": 50_000.0,
                "rope_local_base_freq": 500.0,
                "rope_scaling": {"rope_type": "linear", "factor": 4.0},
                "attention_bias": True,
                "tie_word_embeddings": False,
            },
            {
                "head_dim": 24,
                "sliding_window": 40,
                "layer_types": TYPES,
                "final_logit_softcapping": 1.5,
                "hidden_activation": "gelu",
                "rope_parameters": {
                    "full_attention": YARN,
                    "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 700.0},
                },
            },
        ],
        "published": {
            "Gemma 3 270M": (_GEMMA_3 | _sizes(640, 2048, 18, 4, 1), 268_098_176),
            "Gemma 3 1B": (_GEMMA_3 | _sizes(1152, 6912, 26, 4, 1), 999_885_952),
            "Gemma 3 4B, text": (_GEMMA_3_TEXT | _sizes(2560, 10_240, 34, 8, 4), 3_880_263_168),
            "Gemma 3 12B, text": (_GEMMA_3_TEXT | _sizes(3840, 15_360, 48, 16, 8), 11_766_034_176),
            "Gemma 3 27B, text": (
                _GEMMA_3_TEXT | _sizes(5376, 21_504, 62, 32, 16) | {"head_dim": 128, "query_pre_attn_scalar": 168},
                27_009_346_304,
            ),
        },
        "adapted": ("k_proj", "up_proj", "embed_tokens"),
        "refused": [
            ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "expected an object with 'full_att"),
            ({"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
            ({"_sliding_window_pattern": 3}, "_sliding_window_pattern is 3"),
            ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
            ({"vision_config": {"hidden_size": 8}}, "vision_config is"),
            ({"local_rope_parameters": LOCAL}, "local_rope_parameters is .*, which is no key of a file"),
            ({"hidden_activation": []}, "hidden_act is"),
            (
                {"rope_parameters": {"sliding_attention": {"rope_type": "dynamic", "factor": 2.0}}},
                "rope_type of 'sliding_attention' is 'dynamic'",
            ),
            (
                {"rope_parameters": {"sliding_attention": {"factor": 2.0}}},
                "factor of 'sliding_attention' is 2.0, which rope_type 'default' lacks",
            ),
        ],
    },
}
