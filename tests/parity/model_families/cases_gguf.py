"""Configs of each model family that llama.cpp computes, and configs that it does not."""

from __future__ import annotations

from typing import Any

from tests.parity.model_families.cases_deepseek import SMALL
from tests.parity.model_families.cases_llama4 import CHUNKED

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 8192
DEEP = {"hidden_size": 32, "intermediate_size": 32}
FULL, SLIDING = "full_attention", "sliding_attention"
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": False}
MULTIPLIERS = {"embedding_multiplier": 3.0, "attention_multiplier": 0.15, "residual_multiplier": 0.7}
MULTIPLIERS["logits_scaling"] = 8.0
LINEAR = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
PHI = {"original_max_position_embeddings": 16}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]}
LONGROPE["long_factor"] = [1.5, 3.5, 5.5, 7.5, 9.5, 11.5]
CAPPED = {"head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
GEMMA_3 = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5}
MLA = SMALL | {"n_routed_experts": 8, "n_group": 1, "topk_group": 1}
V2_SCALES = {"mscale": 0.707, "mscale_all_dim": 0.707}
V3_YARN = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}
SIGMOID = {"scoring_func": "sigmoid"}  # of the published files; without it the converter writes no function
LLAMA_4 = {"intermediate_size_mlp": 80, "num_local_experts": 5, "head_dim": 16}
STORED: dict[str, list[dict[str, Any]]] = {
    "llama": [{"rope_parameters": LLAMA3}, {"attention_bias": True, "mlp_bias": True, "rope_parameters": YARN}],
    "mistral": [{"sliding_window": None, "head_dim": 24, "tie_word_embeddings": True}],
    "ministral": [{"layer_types": [FULL] * 4, "head_dim": 24}],
    "mixtral": [{"sliding_window": None, "num_local_experts": 6, "num_experts_per_tok": 3}],
    "qwen2": [{}, {"tie_word_embeddings": True, "rope_parameters": YARN}],
    "qwen2_moe": [EXPERTS | {"shared_expert_intermediate_size": 48}, EXPERTS | {"qkv_bias": False}],
    "qwen3": [{"head_dim": 32}, {"head_dim": 24, "tie_word_embeddings": True, "rope_parameters": YARN}],
    "qwen3_moe": [EXPERTS | {"norm_topk_prob": True, "head_dim": 24, "tie_word_embeddings": True}],
    "smollm3": [{}, {"head_dim": 24, "tie_word_embeddings": False, "num_hidden_layers": 5, "rope_parameters": YARN}],
    "granite": [
        MULTIPLIERS | {"tie_word_embeddings": True},
        MULTIPLIERS | {"attention_bias": True, "mlp_bias": True, "rope_parameters": YARN},
    ],
    "olmo2": [{"num_key_value_heads": 4}, {"rope_parameters": YARN}],
    "olmo3": [
        {"sliding_window": 5, "rope_parameters": {FULL: YARN, SLIDING: {"rope_theta": 1e4}}},
        {"sliding_window": 9, "layer_types": [FULL, SLIDING, SLIDING, FULL]},
    ],
    "seed_oss": [{"head_dim": 24}, {"attention_bias": False, "tie_word_embeddings": True, "rope_parameters": YARN}],
    "phi3": [
        {"sliding_window": 17, "tie_word_embeddings": True},
        PHI | {"partial_rotary_factor": 0.75, "rope_parameters": LONGROPE},
    ],
    "gemma": [{"head_dim": 24}],
    "gemma2": [
        CAPPED | {"sliding_window": 5},
        DEEP | CAPPED | {"num_hidden_layers": 46, "query_pre_attn_scalar": 8},
    ],
    "gemma3_text": [
        GEMMA_3 | {"num_hidden_layers": 7, "rope_parameters": {FULL: LINEAR, SLIDING: {"rope_theta": 500.0}}},
        GEMMA_3 | {"tie_word_embeddings": False, "final_logit_softcapping": 1.5},
    ],
    "cohere": [{"logit_scale": 0.3}, DEEP | {"num_hidden_layers": 64, "use_qk_norm": True}],
    "cohere2": [{"sliding_window": 5, "num_hidden_layers": 6, "rotary_pct": 1.0}],  # the converter wants the last one
    "stablelm": [
        {"use_qkv_bias": True, "partial_rotary_factor": 1.0},
        {"use_parallel_residual": True, "qk_layernorm": True},
    ],
    "deepseek_v2": [
        MLA | {"routed_scaling_factor": 3.0, "v_head_dim": 24, "tie_word_embeddings": True},
        # Of 26 and 27 layers llama.cpp reads no q_lora_rank.
        MLA | DEEP | {"q_lora_rank": None, "num_hidden_layers": 26, "rope_parameters": YARN | V2_SCALES},
    ],
    "deepseek_v3": [
        MLA | SIGMOID | {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "rope_parameters": V3_YARN},
        MLA | SIGMOID | {"q_lora_rank": None, "norm_topk_prob": False, "n_shared_experts": 2},
    ],
    "llama4_text": [
        LLAMA_4 | DEEP | {"num_attention_heads": 2, "max_position_embeddings": 16_384},
        # llama.cpp normalizes queries and keys unless there are 128 experts.
        LLAMA_4
        | {"num_local_experts": 128, "intermediate_size": 16, "use_qk_norm": False, "interleave_moe_layer_step": 2}
        | {"num_experts_per_tok": 2, "head_dim": 24, "tie_word_embeddings": True, "rope_parameters": LLAMA3},
    ],
}
"""Fields beyond `cases.SHAPE` of configs that llama.cpp computes."""
REFUSED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "mistral": [({"sliding_window": 5}, "sliding_window")],
    "qwen2": [
        ({"head_dim": 24}, "key_length"),
        ({"use_sliding_window": True, "max_window_layers": 1}, "sliding_window"),
    ],
    "qwen2_moe": [(EXPERTS | {"mlp_only_layers": [1], "norm_topk_prob": True}, "decoder_sparse_step, norm_topk_prob")],
    "qwen3": [
        ({"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, "sliding_window"),
        ({"attention_bias": True}, "attention_bias"),
    ],
    "qwen3_moe": [(EXPERTS, "norm_topk_prob")],
    "smollm3": [({"no_rope_layer_interval": 2}, "no_rope_layers"), ({"rope_parameters": LLAMA3}, "llama3")],
    "granite": [({"head_dim": 24}, "key_length"), ({"rope_parameters": LLAMA3}, "llama3")],
    "olmo2": [({"tie_word_embeddings": True}, "tie_word_embeddings")],
    "olmo3": [({"rope_parameters": {FULL: YARN, SLIDING: {"rope_theta": 1e3}}}, "freq_base_swa")],
    "seed_oss": [({"attention_out_bias": True}, "attention_out_bias")],
    "gemma": [({"tie_word_embeddings": False, "attention_bias": True}, "attention_bias, tie_word_embeddings")],
    "gemma2": [(CAPPED | {"query_pre_attn_scalar": 9, "final_logit_softcapping": None}, "query_pre_attn_scalar")],
    "gemma3_text": [(GEMMA_3 | {"layer_types": [SLIDING, FULL, FULL, SLIDING]}, "sliding_window")],
    "cohere": [({"use_qk_norm": True}, "use_qk_norm")],
    "cohere2": [({"layer_types": [SLIDING, FULL, FULL, SLIDING]}, "sliding_window")],
    "stablelm": [({"tie_word_embeddings": True}, "tie_word_embeddings")],
    "ministral": [({"sliding_window": 5, "head_dim": 16}, "sliding_window")],
    "deepseek_v2": [
        (MLA | {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"}, "expert_group_count"),
        (MLA | {"rope_parameters": YARN}, "yarn_log_multiplier"),
        (MLA | DEEP | {"num_hidden_layers": 27}, "q_lora_rank"),
        (MLA | {"attention_bias": True, "rms_norm_eps": 1e-5}, "layer_norm_rms_epsilon"),
    ],
    "deepseek_v3": [
        (MLA | {"rope_parameters": V3_YARN | {"mscale": 0.5}}, "rope_parameters"),
        (MLA | {"rope_parameters": LINEAR}, "RoPE of type 'linear', but llama.cpp's deepseek2 has default, yarn"),
        (MLA | {"rope_interleave": False, "attention_bias": True}, "attention_bias, rope_interleave"),
        (MLA | {"first_k_dense_replace": 4}, "leading_dense_block_count"),
    ],
    "llama4_text": [
        (LLAMA_4 | {"attention_chunk_size": 8, "floor_scale": 4}, "attention_chunk_size, floor_scale, sliding_window"),
        (LLAMA_4 | {"no_rope_layer_interval": 2, "layer_types": [CHUNKED] * 4}, "no_rope_layers"),
        (LLAMA_4 | {"use_qk_norm": False, "attn_temperature_tuning": False}, "attn_temperature_tuning, use_qk_norm"),
        (LLAMA_4 | {"moe_layers": [0, 1, 3]}, "moe_layers"),
        (LLAMA_4 | {"moe_layers": []}, "interleave_moe_layer_step"),
    ],
}
"""Fields of configs that llama.cpp does not compute, and what the error names."""
