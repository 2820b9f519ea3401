"""DeepSeek V2 and V3: what `cases.ModelFamily` holds of each."""

from __future__ import annotations

from typing import Any

COMMON: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001,
    "ep_size": 1,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "kv_lora_rank": 512,
    "moe_layer_freq": 1,
    "pretraining_tp": 1,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "seq_aux": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 128,
}


def yarn(scale: float) -> dict[str, Any]:
    """Return the rope_scaling of a published DeepSeek."""
    return {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": scale,
        "mscale_all_dim": scale,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    }


V2 = COMMON | {
    "architectures": ["DeepseekV2ForCausalLM"],
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 163840,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_experts_per_tok": 6,
    "rope_scaling": yarn(0.707),
    "scoring_func": "softmax",
    "vocab_size": 102400,
}
V3 = COMMON | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}


def shape(hidden: int, inner: int, expert: int, layers: int, heads: int, rank: int | None) -> dict[str, Any]:
    """Return the sizes of a published DeepSeek."""
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "moe_intermediate_size": expert,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": heads,
        "q_lora_rank": rank,
    }


def groups(experts: int, count: int, kept: int, factor: float) -> dict[str, Any]:
    """Return the fields about the choice of experts."""
    return {"n_routed_experts": experts, "n_group": count, "topk_group": kept, "routed_scaling_factor": factor}


SMALL: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
SMALL_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 32,
}
MATRICES = ("q_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")

DEEPSEEK_CASES: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        "cases": [
            SMALL | {"n_routed_experts": 8, "rope_parameters": SMALL_YARN},
            SMALL
            | groups(8, 4, 2, 3.0)
            | {"topk_method": "group_limited_greedy", "q_lora_rank": None, "n_shared_experts": 2, "v_head_dim": 28},
            SMALL
            | groups(6, 3, 3, 0.5)
            | {
                "topk_method": "group_limited_greedy",
                "attention_bias": True,
                "first_k_dense_replace": 0,
                "kv_lora_rank": 22,
                "tie_word_embeddings": True,
                "num_attention_heads": 8,
                "num_key_value_heads": 8,
                "qk_rope_head_dim": 6,
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
                "max_position_embeddings": 64,
            },
        ],
        "adapted": MATRICES,
        "published": {
            "DeepSeek-V2-Lite": (
                V2 | shape(2048, 10944, 1408, 27, 16, None) | groups(64, 1, 1, 1.0) | {"topk_method": "greedy"},
                15_706_484_224,
            ),
            "DeepSeek-V2": (
                V2
                | shape(5120, 12288, 1536, 60, 128, 1536)
                | groups(160, 8, 3, 16.0)
                | {"topk_method": "group_limited_greedy"},
                235_741_434_880,
            ),
        },
        "refused": [
            ({}, r"num_key_value_heads is 2, but in model_type 'deepseek_v2' each .* num_attention_heads \(4\)"),
            (SMALL | {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'; expected one of greedy, group_limited"),
            (SMALL | {"norm_topk_prob": True}, "norm_topk_prob is True; transformers' deepseek_v2 has False"),
            (SMALL | {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'; transformers' deepseek_v2 has 'softmax'"),
            (SMALL | {"moe_layer_freq": 2}, "moe_layer_freq is 2; transformers' deepseek_v2 has 1"),
            (SMALL | {"head_dim": 16}, r"head_dim is 16; expected qk_rope_head_dim \(8\), or none"),
            (SMALL | {"qk_head_dim": 16}, r"qk_head_dim is 16; expected qk_nope_head_dim \+ qk_rope_head_dim"),
            (SMALL | {"mlp_bias": True}, "mlp_bias is true, but experts"),
            (SMALL | {"sliding_window": 8}, "sliding_window is 8, which model_type 'deepseek_v2' does not compute"),
            (
                SMALL | {"router_aux_loss_coef": 0.1},
                "router_aux_loss_coef is 0.1, but transformers",
            ),
            (SMALL | {"n_routed_experts": None}, "n_routed_experts is None; expected an integer"),
            (SMALL | {"n_routed_experts": 8, "num_experts": 6}, "n_routed_experts is 8; expected an integer, and no"),
            (SMALL | {"hidden_size": 66}, r"hidden_size \(66\) is not a multiple of num_attention_heads \(4\), which"),
            (SMALL | {"topk_method": "group_limited_greedy"}, "n_group is None; expected an integer"),
            (SMALL | {"n_shared_experts": 0}, "n_shared_experts is 0; expected at least 1"),
            (SMALL | {"e_score_correction_bias": True}, "e_score_correction_bias is True, a key that is not known"),
        ],
    },
    "deepseek_v3": {
        "cases": [
            SMALL | groups(8, 4, 2, 2.5) | {"rope_parameters": SMALL_YARN},
            SMALL
            | groups(6, 1, 1, 2.446)
            | {"q_lora_rank": None, "n_shared_experts": 2, "rope_interleave": False, "norm_topk_prob": False},
            SMALL
            | groups(8, 2, 2, 1.0)
            | {
                "attention_bias": True,
                "first_k_dense_replace": 2,
                "kv_lora_rank": 40,
                "v_head_dim": 24,
                "tie_word_embeddings": True,
                "rope_parameters": SMALL_YARN | {"mscale": 0.707, "mscale_all_dim": 1.0},
            },
        ],
        "adapted": MATRICES,
        "published": {
            "DeepSeek-V3": (
                V3
                | shape(7168, 18432, 2048, 61, 128, 1536)
                | groups(256, 8, 4, 2.5)
                | {
                    "bos_token_id": 0,
                    "eos_token_id": 1,
                    "first_k_dense_replace": 3,
                    "max_position_embeddings": 163840,
                    "n_shared_experts": 1,
                    "num_experts_per_tok": 8,
                    "num_nextn_predict_layers": 1,
                    "rope_scaling": yarn(1.0),
                    "vocab_size": 129280,
                },
                671_026_404_352,
            ),
            "Moonlight-16B-A3B": (
                V3
                | shape(2048, 11264, 1408, 27, 16, None)
                | groups(64, 1, 1, 2.446)
                | {
                    "bos_token_id": 163584,
                    "eos_token_id": 163585,
                    "first_k_dense_replace": 1,
                    "max_position_embeddings": 8192,
                    "n_shared_experts": 2,
                    "num_experts_per_tok": 6,
                    "num_nextn_predict_layers": 0,
                    "rms_norm_eps": 1e-05,
                    "rope_theta": 50000.0,
                    "vocab_size": 163840,
                },
                15_960_108_544,
            ),
        },
        "refused": [
            ({}, "num_key_value_heads is 2, but in model_type 'deepseek_v3' each query head has a key of its own"),
            (SMALL | {"topk_method": "greedy"}, "topk_method is 'greedy'; transformers' deepseek_v3 has 'noaux_tc'"),
            (SMALL | {"scoring_func": "softmax"}, "scoring_func is 'softmax'; transformers' deepseek_v3 has 'sigmoid'"),
            (SMALL | {"n_routed_experts": 10}, "n_group is 8, but n_routed_experts is 10; expected groups of the same"),
            (SMALL | {"n_routed_experts": 8}, "n_group is 8, .* of at least 2 experts"),
            (SMALL | groups(8, 4, 1, 1.0), "topk_group is 1, but n_group is 4 and num_experts_per_tok 3; expected"),
            (SMALL | groups(8, 2, 3, 1.0), "topk_group is 3, but n_group is 2"),
            (SMALL | {"n_group": None}, "n_group is None; expected an integer"),
            (SMALL | {"mlp_bias": True}, "mlp_bias is true, but transformers' deepseek_v3 has no such biases"),
            (
                SMALL | {"num_nextn_predict_layers": -1},
                "num_nextn_predict_layers is -1; expected an integer",
            ),
            (
                SMALL | {"first_k_dense_replace": None},
                "first_k_dense_replace is None; expected an integer",
            ),
            (SMALL | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, but transformers' deepseek_v3"),
            (
                SMALL | {"rope_scaling": {"type": "linear", "factor": 2.0, "mscale_all_dim": 1.0}},
                "mscale_all_dim is 1.0 with the rope_type 'linear'; expected 'yarn'",
            ),
            (
                SMALL | {"quantization_config": {"fmt": "e4m3", "quant_method": "fp8"}},
                "quantization_config is .*; quantized Hugging Face weights are not read",
            ),
        ],
    },
}
