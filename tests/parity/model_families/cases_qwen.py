"""Qwen 2 and 3, dense and with experts: what `cases.ModelFamily` holds of each."""

from __future__ import annotations

from typing import Any

COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def qwen2(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, **changes: Any) -> dict[str, Any]:
    """Return the config.json of a Qwen 2.5 or of a model built on one."""
    return (
        COMMON
        | {
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": hidden,
            "intermediate_size": inner,
            "max_position_embeddings": 32768,
            "max_window_layers": layers,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "transformers_version": "4.43.1",
        }
        | changes
    )


def qwen3(hidden: int, inner: int, layers: int, heads: int, **changes: Any) -> dict[str, Any]:
    """Return the config.json of a Qwen 3."""
    return (
        COMMON
        | {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "head_dim": 128,
            "hidden_size": hidden,
            "intermediate_size": inner,
            "max_position_embeddings": 40960,
            "max_window_layers": layers,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": 8,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "transformers_version": "4.51.0",
        }
        | changes
    )


def with_experts(file: dict[str, Any], architecture: str, expert: int, **changes: Any) -> dict[str, Any]:
    """Return the config.json of a Qwen with experts of a size."""
    return (
        file
        | {
            "architectures": [architecture],
            "decoder_sparse_step": 1,
            "moe_intermediate_size": expert,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
        }
        | changes
    )


def qwen3_moe(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, expert: int, **changes: Any
) -> dict[str, Any]:
    """Return the config.json of a Qwen 3 with experts."""
    fields = {"mlp_only_layers": [], "norm_topk_prob": True, "num_experts": 128, "num_experts_per_tok": 8}
    file = qwen3(hidden, inner, layers, heads, num_key_value_heads=kv_heads)
    return with_experts(file, "Qwen3MoeForCausalLM", expert) | fields | changes


TIED = {"tie_word_embeddings": True}
WIDER = {"vocab_size": 152064}
SMALL_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 32,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "output_router_logits": True,  # the loss of transformers has the routing loss, as the loss here always has
    "router_aux_loss_coef": 0.1,
}
CODER: dict[str, Any] = {
    "intermediate_size": 5472,
    "max_position_embeddings": 262144,
    "max_window_layers": 28,
    "qkv_bias": False,
    "rope_theta": 10000000,
    "router_aux_loss_coef": 0.0,
    "shared_expert_intermediate_size": 0,
    "use_qk_norm": True,
}
"""What the file of Qwen3-Coder-30B-A3B has beyond that of Qwen3-30B-A3B."""

QWEN_CASES: dict[str, dict[str, Any]] = {
    "qwen2": {
        "cases": [
            {},
            {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2, "tie_word_embeddings": True},
            {
                "head_dim": 24,
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
            },
        ],
        "published": {
            "Qwen2.5-0.5B": (qwen2(896, 4864, 24, 14, 2, **TIED), 494_032_768),
            "Qwen2.5-1.5B": (qwen2(1536, 8960, 28, 12, 2, **TIED), 1_543_714_304),
            "Qwen2.5-3B": (qwen2(2048, 11008, 36, 16, 2, **TIED), 3_085_938_688),
            "Qwen2.5-7B": (qwen2(3584, 18944, 28, 28, 4, **WIDER), 7_615_616_512),
            "Qwen2.5-14B": (qwen2(5120, 13824, 48, 40, 8, **WIDER), 14_770_033_664),
            "Qwen2.5-32B": (qwen2(5120, 27648, 64, 40, 8, **WIDER), 32_763_876_352),
            "Qwen2.5-72B": (qwen2(8192, 29568, 80, 64, 8, **WIDER), 72_706_203_648),
            "DeepSeek-R1-Distill-Qwen-1.5B": (
                qwen2(1536, 8960, 28, 12, 2, rope_theta=10000, sliding_window=4096, use_mrope=False),
                1_777_088_000,
            ),
        },
        "refused": [
            ({"q_norm": True}, "q_norm is True, a key that is not known here"),
            ({"num_experts": 4}, "num_experts is 4, but model_type is 'qwen2'; expected 'deepseek_v2' or"),
            ({"use_mrope": True}, "use_mrope is True, a key that is not known here"),
            ({"mlp_bias": True}, "mlp_bias is true, but transformers' qwen2 has no"),
            ({"max_window_layers": -1}, "max_window_layers is -1; expected an integer of at least 0"),
            ({"layer_types": ["full_attention"] * 3}, "expected one type for each of num_hidden_layers"),
            ({"layer_types": ["sliding_attention"] * 4}, "but sliding_window is None; expected a number of tokens"),
            ({"layer_types": ["chunked_attention"] * 4}, "names 'chunked_attention'; expected 'full_attention' or"),
        ],
    },
    "qwen3": {
        "cases": [
            {"head_dim": 32},
            {"head_dim": 16, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
            {"head_dim": 24, "attention_bias": True, "tie_word_embeddings": True},
            {
                "head_dim": 16,
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
            },
        ],
        "published": {
            "Qwen3-0.6B": (qwen3(1024, 3072, 28, 16, **TIED), 596_049_920),
            "Qwen3-1.7B": (qwen3(2048, 6144, 28, 16, **TIED), 1_720_574_976),
            "Qwen3-4B": (qwen3(2560, 9728, 36, 32, **TIED), 4_022_468_096),
            "Qwen3-8B": (qwen3(4096, 12288, 36, 32), 8_190_735_360),
            "Qwen3-14B": (qwen3(5120, 17408, 40, 40), 14_768_307_200),
            "Qwen3-32B": (qwen3(5120, 25600, 64, 64), 32_762_123_264),
        },
        "refused": [
            ({"num_experts": 4}, "num_experts is 4, but model_type is 'qwen3'; expected 'deepseek_v2' or"),
            ({"num_local_experts": 4}, "num_local_experts is 4, but model_type is 'qwen3', which has no experts"),
            ({"mlp_bias": True}, "mlp_bias is true, but transformers' qwen3 has no such biases"),
            ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, a key that is not known here"),
            ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; model_type 'qwen3' has 'silu'"),
            ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, but transformers' qwen3 rotates"),
        ],
    },
    "qwen2_moe": {
        "cases": [
            SMALL_EXPERTS | {"shared_expert_intermediate_size": 48},
            SMALL_EXPERTS
            | {
                "shared_expert_intermediate_size": 24,
                "norm_topk_prob": True,
                "qkv_bias": False,
                "decoder_sparse_step": 2,
                "use_sliding_window": True,
                "sliding_window": 5,
                "max_window_layers": 3,
            },
            SMALL_EXPERTS
            | {
                "shared_expert_intermediate_size": 40,
                "mlp_only_layers": [1],
                "num_experts_per_tok": 3,
                "tie_word_embeddings": True,
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["full_attention"] + ["sliding_attention"] * 3,
            },
        ],
        "adapted": ("q_proj", "o_proj"),
        "published": {
            "Qwen1.5-MoE-A2.7B": (
                with_experts(
                    qwen2(2048, 5632, 24, 16, 16, max_position_embeddings=8192, max_window_layers=21),
                    "Qwen2MoeForCausalLM",
                    1408,
                    num_experts=60,
                    num_experts_per_tok=4,
                    norm_topk_prob=False,
                    shared_expert_intermediate_size=5632,
                ),
                14_315_784_192,
            ),
            "Qwen2-57B-A14B": (
                with_experts(
                    qwen2(3584, 18944, 28, 28, 4),
                    "Qwen2MoeForCausalLM",
                    2560,
                    num_experts=64,
                    num_experts_per_tok=8,
                    norm_topk_prob=False,
                    shared_expert_intermediate_size=20480,
                ),
                57_408_658_944,
            ),
        },
        "refused": [
            ({"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size is 0; expected at least 1"),
            ({"n_shared_experts": 1}, "n_shared_experts is 1, a key that is not known here"),
            ({"num_experts": 2}, r"num_experts_per_tok \(4\) exceeds num_local_experts \(2\)"),
            ({"mlp_bias": True}, "mlp_bias is true, but transformers' qwen2_moe has no"),
        ],
    },
    "qwen3_moe": {
        "cases": [
            SMALL_EXPERTS | {"head_dim": 32, "norm_topk_prob": True},
            SMALL_EXPERTS
            | {
                "head_dim": 24,
                "decoder_sparse_step": 2,
                "attention_bias": True,
                "use_sliding_window": True,
                "sliding_window": 5,
            },
            SMALL_EXPERTS
            | {
                "mlp_only_layers": [0, 2],
                "num_experts_per_tok": 3,
                "norm_topk_prob": True,
                "tie_word_embeddings": True,
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
            },
        ],
        "adapted": ("q_proj", "o_proj"),
        "published": {
            "Qwen3-Coder-30B-A3B": (qwen3_moe(2048, 6144, 48, 32, 4, 768) | CODER, 30_532_122_624),
            "Qwen3-235B-A22B": (qwen3_moe(4096, 12288, 94, 64, 4, 1536), 235_093_634_560),
        },
        "refused": [
            ({"use_qk_norm": False}, "use_qk_norm is False; transformers' qwen3_moe has True"),
            ({"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size is 64; transformers' qwen3_moe"),
            ({"moe_intermediate_size": 0}, "moe_intermediate_size is 0; expected at least 1"),
            ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0; expected at least 1"),
            ({"num_experts": 4}, r"num_experts_per_tok \(8\) exceeds num_local_experts \(4\)"),
            ({"first_k_dense_replace": 1}, "first_k_dense_replace is 1, a key that is not known here"),
            ({"num_experts": 8, "num_local_experts": 16}, "num_experts is 8, but num_local_experts is 16"),
        ],
    },
}
