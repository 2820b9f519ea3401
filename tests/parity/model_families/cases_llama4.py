"""Llama 4's text model: what `cases.ModelFamily` holds of it."""

from __future__ import annotations

from typing import Any

CHUNKED, FULL = "chunked_attention", "full_attention"

SMALL: dict[str, Any] = {"intermediate_size_mlp": 80, "num_local_experts": 5, "head_dim": 16}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

LLAMA4_CASES: dict[str, dict[str, Any]] = {
    "llama4_text": {
        "cases": [
            SMALL | {"attention_chunk_size": 8, "floor_scale": 66, "attn_scale": 2.0, "rope_parameters": LLAMA3},
            SMALL
            | {
                "attention_bias": True,
                "attention_chunk_size": 16,
                "attn_temperature_tuning": False,
                "head_dim": 24,
                "interleave_moe_layer_step": 2,
                "no_rope_layer_interval": 2,
                "num_experts_per_tok": 2,
                "tie_word_embeddings": True,
                "use_qk_norm": False,
            },
            SMALL
            | {
                "attention_chunk_size": 5,
                "floor_scale": 64,
                "layer_types": [FULL, CHUNKED, FULL, CHUNKED],
                "moe_layers": [0, 3],
                "no_rope_layers": [0, 0, 1, 1],
            },
            # Without experts a step has fixed shapes, as the decoder of CUDA graphs needs them.
            SMALL | {"attention_chunk_size": 7, "floor_scale": 62, "attn_scale": 2.0, "moe_layers": []},
        ],
        "published": {
            # The text model of the published 109 billion parameters.
            "Llama-4-Scout-17B-16E": (
                {
                    "attention_bias": False,
                    "attention_chunk_size": 8192,
                    "attention_dropout": 0.0,
                    "bos_token_id": 200000,
                    "eos_token_id": [200001, 200007, 200008],
                    "for_llm_compression": False,
                    "head_dim": 128,
                    "hidden_act": "silu",
                    "hidden_size": 5120,
                    "initializer_range": 0.02,
                    "interleave_moe_layer_step": 1,
                    "intermediate_size": 8192,
                    "intermediate_size_mlp": 16384,
                    "max_position_embeddings": 10485760,
                    "no_rope_layers": [],
                    "num_attention_heads": 40,
                    "num_experts_per_tok": 1,
                    "num_hidden_layers": 48,
                    "num_key_value_heads": 8,
                    "num_local_experts": 16,
                    "output_router_logits": False,
                    "pad_token_id": 200018,
                    "rms_norm_eps": 1e-05,
                    "rope_scaling": {
                        "factor": 16.0,
                        "high_freq_factor": 1.0,
                        "low_freq_factor": 1.0,
                        "original_max_position_embeddings": 8192,
                        "rope_type": "llama3",
                    },
                    "rope_theta": 500000.0,
                    "router_aux_loss_coef": 0.001,
                    "router_jitter_noise": 0.0,
                    "torch_dtype": "bfloat16",
                    "use_cache": True,
                    "use_qk_norm": True,
                    "vocab_size": 202048,
                },
                107_769_861_120,
            ),
            # The text model of the published 400 billion parameters.
            "Llama-4-Maverick-17B-128E": (
                {
                    "attention_bias": False,
                    "attention_chunk_size": 8192,
                    "attention_dropout": 0.0,
                    "attn_scale": 0.1,
                    "attn_temperature_tuning": True,
                    "bos_token_id": 200000,
                    "eos_token_id": [200001, 200007, 200008],
                    "floor_scale": 8192,
                    "for_llm_compression": False,
                    "head_dim": 128,
                    "hidden_act": "silu",
                    "hidden_size": 5120,
                    "initializer_range": 0.02,
                    "interleave_moe_layer_step": 2,
                    "intermediate_size": 8192,
                    "intermediate_size_mlp": 16384,
                    "max_position_embeddings": 1048576,
                    "moe_layers": list(range(1, 48, 2)),
                    "no_rope_layers": [1, 1, 1, 0] * 12,
                    "num_attention_heads": 40,
                    "num_experts_per_tok": 1,
                    "num_hidden_layers": 48,
                    "num_key_value_heads": 8,
                    "num_local_experts": 128,
                    "output_router_logits": False,
                    "pad_token_id": 200018,
                    "rms_norm_eps": 1e-05,
                    "rope_scaling": None,
                    "rope_theta": 500000.0,
                    "router_aux_loss_coef": 0.001,
                    "router_jitter_noise": 0.0,
                    "tie_word_embeddings": False,
                    "torch_dtype": "bfloat16",
                    "use_cache": True,
                    "use_qk_norm": False,
                    "vocab_size": 202048,
                },
                400_711_848_960,
            ),
        },
        "refused": [
            ({"attention_chunk_size": 0}, "attention_chunk_size is 0; expected at least 1"),
            ({"floor_scale": 0}, "floor_scale is 0; expected at least 1"),
            ({"attn_scale": -1.0}, "attn_scale is -1.0; expected a finite number of at least 0"),
            ({"interleave_moe_layer_step": 0}, "interleave_moe_layer_step is 0; expected at least 1"),
            ({"layer_types": ["sliding_attention"] * 4}, "names 'sliding_attention'; expected 'full_attention' or 'ch"),
            ({"layer_types": [FULL] * 3}, "expected one type for each of num_hidden_layers"),
            ({"moe_layers": ["1"]}, r"moe_layers is \['1'\]; expected a list of layer numbers"),
            ({"no_rope_layers": [1, 0]}, r"no_rope_layers is \[1, 0\]; expected 0 or 1 for each of 4 layers"),
            ({"router_z_loss_coef": 0.1}, "router_z_loss_coef is 0.1, but llama4_text has no routing loss"),
            ({"num_experts_per_tok": 17}, r"num_experts_per_tok \(17\) exceeds num_local_experts \(16\)"),
            ({"mlp_bias": True}, "mlp_bias is true, but transformers' llama4_text has no such biases"),
            ({"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size is 8, a key that is not known"),
            ({"sliding_window": 8}, "sliding_window is 8, which model_type 'llama4_text' does not compute"),
        ],
    },
}
