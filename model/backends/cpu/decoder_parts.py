"""What the fused passes are made of: products with weights side by side, the memory a pass writes to, and its steps.

`fused` and `packed` put these together.

Shapes: ``M`` rows, ``T`` new tokens of a sequence, ``S`` key length, ``D`` hidden_size, ``N`` heads, ``K`` KV heads,
``G`` query heads per KV head, ``H`` head_dim, ``R`` rotated features of a head, ``I`` in_features, ``O`` out_features,
``F`` intermediate_size, ``V`` vocab_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama.model.backends.cpu.native import CompiledPass
from bpe_llama.model.backends.cpu.weight_layout import side_by_side
from bpe_llama.model.llama import DecoderLayer, LlamaForCausalLM


def shared_input(layer: DecoderLayer) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """Return the layers that read the same input: queries, keys and values; gate and up."""
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]


def weight_parts(linears: Sequence[nn.Linear]) -> list[list[Tensor]]:
    """Return the matrices, and the biases if there are any."""
    matrices: list[Tensor] = [linear.weight for linear in linears]
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    return [matrices, biases] if biases else [matrices]


FEW_TO_TURN = 64
"""Of more rows, to turn a product takes longer than to lay out the weights anew."""


class Product:
    """The product with the matrices of several linear layers that share their input, side by side."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        # Shared, not copied: a bias may be trained.
        parts = [side_by_side(tensors) for tensors in weight_parts(linears)]
        weight_OI = parts[0]
        if weight_OI is None or parts[-1] is None:
            raise ValueError("the matrices, or their biases, do not lie side by side")
        self.weight_IO = weight_OI.t()
        self.bias = parts[1] if len(parts) > 1 else None

    def into(self, x_MI: Tensor, out_MO: Tensor) -> None:
        """Write the product to ``out_MO``."""
        if self._is_worth_turning(x_MI):
            out_MO.copy_(self._turned(x_MI))
        else:
            torch.mm(x_MI, self.weight_IO, out=out_MO)
        if self.bias is not None:
            out_MO.add_(self.bias)

    def computed(self, x_MI: Tensor, out_MO: Tensor) -> Tensor:
        """Return the product, in ``out_MO`` or, where copying it there would take longer, in memory of its own."""
        if not self._are_weights_first(x_MI):
            self.into(x_MI, out_MO)
            return out_MO
        found_MO = self._turned(x_MI)
        return found_MO if self.bias is None else found_MO.add_(self.bias)

    def onto(self, x_MI: Tensor, sum_MO: Tensor) -> None:
        """Add the product to ``sum_MO``."""
        if self._is_worth_turning(x_MI):
            sum_MO.add_(self._turned(x_MI).contiguous())  # turning it first is faster than adding it turned
        else:
            sum_MO.addmm_(x_MI, self.weight_IO)
        if self.bias is not None:
            sum_MO.add_(self.bias)

    def _are_weights_first(self, x_MI: Tensor) -> bool:
        """Return whether the weights had better come first: else oneDNN lays them out anew, not the rows."""
        return x_MI.dtype == torch.bfloat16 and len(x_MI) > 1

    def _is_worth_turning(self, x_MI: Tensor) -> bool:
        """Return whether that holds though the product must be turned; rows that are turned themselves want it."""
        return self._are_weights_first(x_MI) and (len(x_MI) <= FEW_TO_TURN or not x_MI.is_contiguous())

    def _turned(self, x_MI: Tensor) -> Tensor:
        return torch.mm(self.weight_IO.t(), x_MI.t()).t()


class QuantizedProduct:
    """The same for weights in fewer bits, layer by layer through their own kernels."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self.linears = linears
        self.widths = [linear.out_features for linear in linears]

    def into(self, x_MI: Tensor, out_MO: Tensor) -> None:
        """Write the products to ``out_MO``, side by side."""
        for linear, part_MO in zip(self.linears, torch.split(out_MO, self.widths, dim=1), strict=True):
            part_MO.copy_(linear(x_MI))

    def computed(self, x_MI: Tensor, out_MO: Tensor) -> Tensor:
        """Return the products, in ``out_MO``."""
        self.into(x_MI, out_MO)
        return out_MO

    def onto(self, x_MI: Tensor, sum_MO: Tensor) -> None:
        """Add the product of the only layer to ``sum_MO``."""
        sum_MO.add_(self.linears[0](x_MI))


def product_with(*linears: nn.Linear) -> Product | QuantizedProduct:
    """Return the product with layers that share their input, as their weights are stored."""
    plain = all(type(linear) is nn.Linear for linear in linears)
    return Product(linears) if plain else QuantizedProduct(linears)


class FusedLayer:
    """What one layer multiplies with."""

    def __init__(self, layer: DecoderLayer) -> None:
        shared = shared_input(layer)
        self.attention_norm_D = layer.input_layernorm.weight.detach()
        self.mlp_norm_D = layer.post_attention_layernorm.weight.detach()
        self.qkv, self.gate_up = product_with(*shared[0]), product_with(*shared[1])
        self.out, self.down = product_with(layer.self_attn.o_proj), product_with(layer.mlp.down_proj)


class Workspace:
    """The memory one pass of M rows writes to, and every view of it that the pass needs."""

    def __init__(self, model: LlamaForCausalLM, rows: int, compiled: bool = False) -> None:
        config, dtype = model.config, torch.float32 if compiled else model.dtype
        heads, kv_heads, size = config.num_attention_heads, config.kv_heads, config.head_size
        no_position = torch.zeros(1, 1, dtype=torch.long, device="cpu")
        turned = 2 * int(model.model.rotary_emb(no_position)[0].shape[-1])
        empty = partial(torch.empty, dtype=dtype, device="cpu")  # whatever the process's defaults are
        self.x_MD = empty(rows, config.hidden_size)
        self.normed_MD = torch.empty_like(self.x_MD)
        self.wide_MD = None if dtype == torch.float32 else empty(self.x_MD.shape, dtype=torch.float32)
        self.scale_M1 = empty(rows, 1, dtype=torch.float32)
        self.eps = torch.tensor(config.rms_norm_eps, dtype=torch.float32, device="cpu")
        self.qkv_MO = empty(rows, (heads + 2 * kv_heads) * size)
        qkv_MNH = self.qkv_MO.view(rows, heads + 2 * kv_heads, size)
        self.turning_MNH = qkv_MNH[:, : heads + kv_heads]
        self.value_MKH = qkv_MNH[:, heads + kv_heads :]
        # Turned in float32, as `apply_rope` does.
        self.turned_MNH = empty(self.turning_MNH.shape, dtype=torch.float32)
        self.wide_MNH = self.turning_MNH if dtype == torch.float32 else torch.empty_like(self.turned_MNH)
        self.first, self.second = (self.wide_MNH[..., i : i + turned // 2] for i in (0, turned // 2))
        self.new_first, self.new_second = (self.turned_MNH[..., i : i + turned // 2] for i in (0, turned // 2))
        self.wide_part, self.turned_part = (part[..., :turned] for part in (self.wide_MNH, self.turned_MNH))
        self.rest = (self.wide_MNH[..., turned:], self.turned_MNH[..., turned:]) if turned < size else None
        self.query_MNH = empty(rows, heads, size, dtype=model.dtype)
        self.turned_query_MNH, self.turned_key_MKH = self.turned_MNH[:, :heads], self.turned_MNH[:, heads:]
        self.gathered_MO = empty(rows, heads * size)
        self.gate_up_MO = empty(rows, 2 * config.intermediate_size)
        self.logits_MV = empty(rows, config.vocab_size)
        self.compiled = None
        if compiled:
            self.compiled = CompiledPass(self.x_MD, self.qkv_MO, self.gathered_MO, self.gate_up_MO)

    def looking_at(self, keys: int) -> AbstractContextManager[None]:
        """Return what a pass runs in whose attention torch has so many keys to look at (see `CompiledPass`)."""
        return nullcontext() if self.compiled is None else self.compiled.looking_at(keys)


def write_norm(weight_D: Tensor, space: Workspace) -> None:
    """Write the normalised hidden states, rounded where `RMSNorm` rounds."""
    scale_M1, size = space.scale_M1, space.x_MD.shape[1]
    # Widened by one copy: each operation on numbers of both kinds would widen them for itself.
    wide_MD = space.x_MD if space.wide_MD is None else space.wide_MD.copy_(space.x_MD)
    torch.linalg.vector_norm(wide_MD, dim=1, keepdim=True, out=scale_M1)
    # eps + squares / D in one step: an operation costs more than these sums do
    torch.addcmul(space.eps, scale_M1, scale_M1, value=1 / size, out=scale_M1).rsqrt_()
    if space.wide_MD is None:
        torch.mul(wide_MD, scale_M1, out=space.normed_MD)
    else:
        space.normed_MD.copy_(wide_MD.mul_(scale_M1))
    space.normed_MD.mul_(weight_D)


def write_turned(space: Workspace, cos_M1R: Tensor, sin_M1R: Tensor) -> None:
    """Write queries and keys turned by their positions' angles, as `apply_rope` does."""
    if space.wide_MNH is not space.turning_MNH:
        space.wide_MNH.copy_(space.turning_MNH)
    torch.mul(space.wide_part, cos_M1R, out=space.turned_part)
    space.new_first.addcmul_(space.second, sin_M1R, value=-1)
    space.new_second.addcmul_(space.first, sin_M1R)
    if space.rest is not None:
        space.rest[1].copy_(space.rest[0])


def attend(query_MNH: Tensor, key_BKSH: Tensor, value_BKSH: Tensor, mask: Tensor | None) -> Tensor:
    """Return what each row gathers, (M, N * H); a KV head's query heads are laid out as if they were more tokens."""
    batch, kv_heads, _, size = key_BKSH.shape
    query_BTKGH = query_MNH.view(batch, -1, kv_heads, query_MNH.shape[1] // kv_heads, size)
    length, groups = query_BTKGH.shape[1], query_BTKGH.shape[3]
    query = query_BTKGH.permute(0, 2, 3, 1, 4).reshape(batch, kv_heads, groups * length, size)
    out = functional.scaled_dot_product_attention(query, key_BKSH, value_BKSH, attn_mask=mask)
    out_BTKGH = out.view(batch, kv_heads, groups, length, size).permute(0, 3, 1, 2, 4)
    return out_BTKGH.reshape(batch * length, -1)
