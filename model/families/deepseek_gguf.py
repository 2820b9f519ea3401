"""How llama.cpp stores DeepSeek V2 and V3: one architecture, told apart by the function of the experts' scores.

``kv_b_proj`` is stored as two tensors, that of keys transposed, as the projection of queries to latents needs it. Files
of 2024 have one tensor, and the sizes of expanded heads in their metadata; both are read.

Source: ``conversion/deepseek.py`` and ``src/models/deepseek2.cpp`` of https://github.com/ggml-org/llama.cpp; its
discussion 7416 and pull request 17945 for YaRN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bpe_llama._core import shown
from bpe_llama.model.families.deepseek import DeepseekConfig
from bpe_llama.model.families.sparse_layers import EXPERT_MODULES, EXPERT_SIZE
from bpe_llama.model.family import GGUFSplit

SOFTMAX, SIGMOID = 1, 2
ARCHITECTURE = "deepseek2"
_GATING, _LOG_MULTIPLIER = "expert_gating_func", "rope.scaling.yarn_log_multiplier"
_KEY, _VALUE, _KV_HEADS = "attention.key_length", "attention.value_length", "attention.head_count_kv"
_LATENT_EPS = 1e-6

MODULES = EXPERT_MODULES | {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
}
KEYS = {
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
    EXPERT_SIZE: "moe_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "leading_dense_block_count": "first_k_dense_replace",
}
ABSENT: dict[str, Any] = {
    "attention.q_lora_rank": 0,
    "expert_weights_scale": 0.0,
    "expert_group_count": 1,
    "expert_group_used_count": 1,
    "leading_dense_block_count": 0,
}
DERIVED = frozenset({_KEY, _VALUE, f"{_KEY}_mla", f"{_VALUE}_mla", _GATING, _LOG_MULTIPLIER})
UNSTORED = frozenset({"n_group", "topk_group"})  # `expert_groups` is compared


def _split(config: DeepseekConfig, weight: Tensor) -> Sequence[Tensor]:
    """Return the matrices of keys (N, L, P) and values (N, V, L) of all heads."""
    heads_NFL = weight.view(config.num_attention_heads, -1, config.kv_lora_rank)
    key_NPL, value_NVL = torch.split(heads_NFL, [config.qk_nope_head_dim, config.v_head_dim], dim=1)
    return key_NPL.mT, value_NVL


def _join(config: DeepseekConfig, tensors: Sequence[Tensor]) -> Tensor:
    key_NLP, value_NVL = tensors
    return torch.cat((key_NLP.mT, value_NVL), dim=1).flatten(0, 1)


SPLITS = {"self_attn.kv_b_proj.weight": GGUFSplit(("attn_k_b.weight", "attn_v_b.weight"), _split, _join)}


def gating(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Return the function of the experts' scores, by default llama.cpp's: sigmoid in GLM 4.7 Flash, else softmax.

    Example:
        >>> gating({"block_count": 61}, {"token_embd.weight": (129_280, 7168)}) == SOFTMAX
        True
    """
    is_glm = metadata.get("block_count") in (47, 48) and shapes["token_embd.weight"][0] == 154_880
    return metadata.get(_GATING) or (SIGMOID if is_glm else SOFTMAX)


def read_latents(fields: dict[str, Any], metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Set the fields that follow from several keys.

    Raises:
        ValueError: If llama.cpp computes with a value otherwise than transformers, or keys contradict each other.
    """

    def refuse(key: str, expected: str) -> None:
        raise ValueError(f"metadata '{ARCHITECTURE}.{key}' is {shown(metadata.get(key))}; {expected}")

    for key, name in KEYS.items():
        if type(fields[name]) is not int and name != "routed_scaling_factor":
            refuse(key, "expected an integer")
    eps, layers = fields["rms_norm_eps"], fields["num_hidden_layers"]
    if eps != _LATENT_EPS:
        refuse(
            "attention.layer_norm_rms_epsilon",
            f"expected {_LATENT_EPS}: llama.cpp takes it for the norms of latents, too, where transformers has that",
        )
    if fields["first_k_dense_replace"] >= layers:
        refuse("leading_dense_block_count", f"expected fewer than the {layers} layers")
    _read_heads(fields, metadata, refuse, is_split="blk.0.attn_k_b.weight" in shapes)
    is_lite = layers in (26, 27) or (layers == 48 and fields["vocab_size"] == 128_256)
    if is_lite or fields["q_lora_rank"] == 0:  # llama.cpp reads no rank for these numbers of layers
        fields["q_lora_rank"] = None
    fields["routed_scaling_factor"] = fields["routed_scaling_factor"] or 1.0  # with 0 llama.cpp does not scale
    for name in ("n_group", "topk_group"):
        fields[name] = fields[name] or 1
    rope = fields["rope_parameters"]
    if rope["rope_type"] != "yarn":
        return
    scale = metadata.get(_LOG_MULTIPLIER)
    if not isinstance(scale, float) or scale <= 0.0:
        refuse(_LOG_MULTIPLIER, "expected 0.1 * mscale_all_dim: without it llama.cpp scales attention scores twice")
    else:
        fields["rope_parameters"] = rope | dict.fromkeys(("mscale", "mscale_all_dim"), round(scale / 0.1, 6))


def _read_heads(fields: dict[str, Any], metadata: Mapping[str, Any], refuse: Any, is_split: bool) -> None:
    """Set the sizes of keys and values; the file has those of heads or, if they are split, those of latents, too."""
    latent, rotated, heads = fields["kv_lora_rank"], fields["qk_rope_head_dim"], fields["num_attention_heads"]
    expected = {_KV_HEADS: 1, _KEY: latent + rotated, _VALUE: latent} if is_split else {_KV_HEADS: heads}
    stated = {_KV_HEADS: heads} | dict(metadata)
    for key, value in expected.items():
        if stated.get(key) != value:
            refuse(key, f"expected {value}")
    kind = "_mla" if is_split else ""
    for key, name, part in ((_KEY, "qk_nope_head_dim", rotated), (_VALUE, "v_head_dim", 0)):
        size = metadata.get(f"{key}{kind}")
        if not isinstance(size, int) or size <= part or (not is_split and metadata.get(f"{key}_mla")):
            refuse(f"{key}{kind}", f"expected the size of a head, above {part}, and tensors split accordingly")
        else:
            fields[name] = size - part
    fields["num_key_value_heads"] = heads


def write_latents(config: DeepseekConfig, function: int) -> dict[str, Any]:
    """Return the values of keys that are no field of the config."""
    latent, rotated = config.kv_lora_rank, config.qk_rope_head_dim
    groups, kept = config.expert_groups  # llama.cpp stops at a file in which all groups are used
    scale = config.rope.get("mscale_all_dim")
    return {
        _KV_HEADS: 1,
        "attention.q_lora_rank": config.q_lora_rank or 0,
        _KEY: latent + rotated,
        _VALUE: latent,
        f"{_KEY}_mla": config.qk_nope_head_dim + rotated,
        f"{_VALUE}_mla": config.v_head_dim,
        "expert_group_count": groups,
        "expert_group_used_count": kept,
        _GATING: function,
        _LOG_MULTIPLIER: 0.1 * scale if scale else None,
    }
