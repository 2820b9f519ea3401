"""The memory that one pass of ``M`` rows writes to, and the views of it that a pass needs.

Shapes: ``M`` rows, ``D`` hidden_size, ``N`` heads, ``K`` KV heads, ``H`` head_dim, ``R`` rotated features of a head,
``O`` out_features, ``F`` intermediate_size.
"""

from __future__ import annotations

from functools import partial

import torch

from bpe_llama.model.llama import LlamaForCausalLM


class Workspace:
    """Hidden states, projections and attention of M rows.

    Args:
        model: Whose sizes it has.
        rows: M.
        dtype: Of the activations.
        interleaved: Whether RoPE rotates feature ``2 i`` of a head with ``2 i + 1``.
    """

    def __init__(self, model: LlamaForCausalLM, rows: int, dtype: torch.dtype, interleaved: bool = False) -> None:
        config = model.config
        heads, kv_heads, size = config.num_attention_heads, config.kv_heads, config.head_size
        no_position = torch.zeros(1, 1, dtype=torch.long, device="cpu")
        rotated = 2 * int(model.model.rotary_emb(no_position)[0].shape[-1])
        empty = partial(torch.empty, dtype=dtype, device="cpu")  # whatever the process's defaults are
        self.x_MD = empty(rows, config.hidden_size)
        """Hidden states, the residual stream."""
        self.normed_MD = torch.empty_like(self.x_MD)
        self.float_MD = None if dtype == torch.float32 else empty(self.x_MD.shape, dtype=torch.float32)
        self.scale_M1 = empty(rows, 1, dtype=torch.float32)
        self.eps = torch.tensor(config.norm_eps, dtype=torch.float32, device="cpu")
        self.qkv_MO = empty(rows, (heads + 2 * kv_heads) * size)
        self.attention_MO = empty(rows, heads * size)
        self.gate_up_MO = empty(rows, 2 * config.intermediate_size)
        qkv_MNH = self.qkv_MO.view(rows, heads + 2 * kv_heads, size)
        self.query_key_MNH = qkv_MNH[:, : heads + kv_heads]
        self.value_MKH = qkv_MNH[:, heads + kv_heads :]
        self.query_MO = self.qkv_MO[:, : heads * size]
        # RoPE is applied in float32, as in `apply_rope`.
        self.rotated_MNH = empty(self.query_key_MNH.shape, dtype=torch.float32)
        self.float_MNH = self.query_key_MNH if dtype == torch.float32 else torch.empty_like(self.rotated_MNH)
        half = rotated // 2
        pairs = (slice(0, rotated, 2), slice(1, rotated, 2)) if interleaved else (slice(0, half), slice(half, rotated))
        self.first, self.second = (self.float_MNH[..., part] for part in pairs)
        self.new_first, self.new_second = (self.rotated_MNH[..., part] for part in pairs)
        self.float_part, self.rotated_part = (part[..., :rotated] for part in (self.float_MNH, self.rotated_MNH))
        self.rest = (self.float_MNH[..., rotated:], self.rotated_MNH[..., rotated:]) if rotated < size else None
        self.query_MNH = empty(rows, heads, size, dtype=model.dtype)
        self.rotated_query_MNH, self.rotated_key_MKH = self.rotated_MNH[:, :heads], self.rotated_MNH[:, heads:]
