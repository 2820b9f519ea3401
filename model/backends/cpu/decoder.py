"""The model once more, for a few new tokens a sequence: the same sums in fewer and larger steps, into memory kept.

`llama.py` says what is computed; this file says it again the way a processor likes it when the work of a token is to
read every weight once. Queries, keys and values are one product, gate and up another; residuals are added by the
product that feeds them; little is allocated. The tests hold it to the model.

Shapes: ``B`` sequences, ``T`` new tokens of each, ``M`` rows (B * T), ``S`` key length, ``D`` hidden_size, ``N`` heads,
``K`` KV heads, ``G`` query heads per KV head, ``H`` head_dim, ``R`` rotated features of a head, ``I`` in_features,
``O`` out_features, ``F`` intermediate_size, ``V`` vocab_size.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama.model.backends.cpu.decoder_parts import (
    FusedLayer,
    Workspace,
    attend,
    product_with,
    shared_input,
    weight_parts,
    write_norm,
    write_turned,
)
from bpe_llama.model.backends.cpu.native import (
    CompiledAttention,
    CompiledLayer,
    CompiledProduct,
    Rows,
    can_compile,
    most_rows,
)
from bpe_llama.model.backends.cpu.weight_layout import decoder_layers, lay_flat, side_by_side
from bpe_llama.model.cache.kv_cache import CacheColumns, KVCache
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.layers.attention import Attention, visible_keys
from bpe_llama.model.layers.attention_backends import Visible, sdpa
from bpe_llama.model.layers.mlp import MLP
from bpe_llama.model.layers.norm import RMSNorm
from bpe_llama.model.layers.rope import RotaryEmbedding, Rotation
from bpe_llama.model.llama import DecoderLayer, LlamaForCausalLM, LlamaModel
from bpe_llama.model.quantization.quantize import QuantizedLinear

WORKSPACES = 8
"""For so many numbers of rows memory is kept; their logits are most of it."""

_LAYING_FLAT = threading.Lock()


def can_fuse(model: LlamaForCausalLM) -> bool:
    """Return whether `FusedDecoder` computes what the model does: a dense rotary LLaMA on the CPU, without hooks.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, max_position_embeddings=64)
        >>> can_fuse(LlamaForCausalLM(config))
        True
    """
    return model.device.type == "cpu" and is_plain(model)


def is_plain(model: LlamaForCausalLM) -> bool:
    """Return whether a model is made of this package's dense layers alone, of one dtype: float32 or bfloat16.

    Hooks, forward methods of a module's own, adapters and layers that share weights make it another.
    """
    if model.dtype not in (torch.float32, torch.bfloat16):
        return False
    stack = model.model
    kinds: list[tuple[nn.Module, type]] = [(stack, LlamaModel), (stack.rotary_emb, RotaryEmbedding)]
    kinds += [(stack.embed_tokens, nn.Embedding), (stack.norm, RMSNorm)]
    kinds += [(layer, DecoderLayer) for layer in stack.layers]
    if type(model).forward is not LlamaForCausalLM.forward or not _are(kinds):
        return False
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return False
        if isinstance(module, RMSNorm) and module.eps != model.config.rms_norm_eps:
            return False
    linears = [model.lm_head]
    for layer in decoder_layers(model):
        norms = [(norm, RMSNorm) for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
        if not _are([(layer.self_attn, Attention), (layer.mlp, MLP), *norms]) or layer.self_attn.backend is not sdpa:
            return False
        for together in shared_input(layer):
            if not all(map(_is_product, together)) or len({linear.bias is None for linear in together}) > 1:
                return False
            linears += together
        linears += [layer.self_attn.o_proj, layer.mlp.down_proj]
    own = [weight for linear in linears for weight in linear.parameters()]
    if len({id(weight) for weight in own}) < len(own):  # what two layers share lies beside the neighbours of one only
        return False
    return all(map(_is_product, linears)) and all(
        weight.dtype == model.dtype and type(weight.data) is Tensor for weight in model.parameters()
    )


def _are(kinds: Sequence[tuple[nn.Module, type]]) -> bool:
    return all(type(module) is kind for module, kind in kinds)


def _is_product(module: nn.Module) -> bool:
    return type(module) is nn.Linear or isinstance(module, QuantizedLinear)


class FusedDecoder:
    """Computes the logits of a few new tokens of each sequence, as the model does, sooner.

    The model's weights are moved into one buffer first, if they are not there yet (see `lay_flat`); this object shares
    them. One object serves one thread.

    Args:
        model: One that `can_fuse`.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self._workspaces: dict[int, Workspace] = {}
        self._known: list[tuple[int, int]] = []
        self.refresh()

    def refresh(self) -> None:
        """See to it that the weights used are the model's, whatever was done to it since."""
        with _LAYING_FLAT:
            if self._known and self._known == self._marks():
                return
            shared = [linears for layer in decoder_layers(self.model) for linears in shared_input(layer)]
            plain = [linears for linears in shared if all(type(linear) is nn.Linear for linear in linears)]
            if any(side_by_side(tensors) is None for linears in plain for tensors in weight_parts(linears)):
                lay_flat(self.model)
            self.layers = [FusedLayer(layer) for layer in decoder_layers(self.model)]
            self.head = product_with(self.model.lm_head)
            self._compile()
            self._workspaces.clear()
            self._known = self._marks()

    def _compile(self) -> None:
        layers = decoder_layers(self.model)
        linears = [self.model.lm_head]
        for layer in layers:
            linears += [*chain(*shared_input(layer)), layer.self_attn.o_proj, layer.mlp.down_proj]
        self._most_rows, self._compiled = 0, list[CompiledLayer]()
        if can_compile(linears):
            self._most_rows = most_rows(linears[1:])
            self._compiled = [CompiledLayer(layer) for layer in layers]
            self._compiled_head = CompiledProduct([self.model.lm_head], self.model.model.norm)

    def _marks(self) -> list[tuple[int, int]]:
        return [
            (id(module), weight.data_ptr())
            for module in self.model.modules()
            for weight in (*module._parameters.values(), *module._buffers.values())
            if weight is not None
        ]

    @torch.inference_mode()
    def __call__(self, ids: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
        """Return the logits after each new token, (B, T, V), in memory that the next call overwrites.

        Args:
            ids: B rows of T ids.
            cache: Read, and extended by T tokens a slot.

        Raises:
            ValueError: If an id is outside the vocabulary, or the cache is full or has other slots than there are rows.
        """
        outside = [new_id for row in ids for new_id in row if not 0 <= new_id < self.model.config.vocab_size]
        if outside:
            raise ValueError(f"input id {outside[0]} is outside the vocabulary of {self.model.config.vocab_size}")
        batch, length = len(ids), len(ids[0])
        config, rows = self.model.config, batch * length
        places = cache.place(batch, length)
        positions_BT = places.positions
        if positions_BT is None:
            positions_BT = torch.arange(places.end - length, places.end, device="cpu")[None]
        rotation = self.model.model.rotary_emb(positions_BT, cache.prompt_lengths)
        cos_MR, sin_MR = (part.expand(batch, -1, -1).reshape(rows, -1) for part in rotation)
        if rows not in self._workspaces:
            if len(self._workspaces) == WORKSPACES:
                del self._workspaces[next(iter(self._workspaces))]
            self._workspaces[rows] = self.workspace(rows)
        space = self._workspaces[rows]
        space.x_MD.copy_(self.model.model.embed_tokens.weight[torch.tensor(ids, device="cpu").flatten()])
        if space.compiled is not None and type(cache) is KVCache:
            slots_M = torch.arange(batch, device="cpu").repeat_interleave(length)
            columns_M = positions_BT.expand(batch, -1).flatten()
            attention = CompiledAttention(cache, slots_M, columns_M, (cos_MR, sin_MR), config.sliding_window)
            self._run_compiled(space, attention)
        else:
            self._run(space, cache, places, (cos_MR, sin_MR))
        cache.advance(length)
        return self.logits(space.x_MD, space.logits_MV).view(batch, length, -1)

    def _run_compiled(self, space: Workspace, attention: CompiledAttention) -> None:
        """Take the hidden states through all layers by the compiled core."""
        with space.looking_at(0):
            for number in range(len(self.layers)):
                self.begin_layer(number, space)
                attention.into(number, space.qkv_MO, space.gathered_MO)
                self.end_layer(number, space, space.gathered_MO)

    def _run(self, space: Workspace, cache: KVCache, places: CacheColumns, rotation: Rotation) -> None:
        """Do the same with torch's attention, over whatever the cache makes of its keys and values."""
        config, batch, length = self.model.config, cache.batch_size, len(space.x_MD) // cache.batch_size
        mask = _query_group_mask(
            visible_keys(length, places, None, torch.device("cpu"), config.sliding_window), config, places, length
        )
        cos_M1R, sin_M1R = (part[:, None] for part in rotation)
        cos_M1R = torch.cat((cos_M1R, cos_M1R), dim=-1)
        heads = (batch, length, config.kv_heads, config.head_size)
        new_keys = space.turned_key_MKH.view(heads).transpose(1, 2)
        new_values = space.value_MKH.view(heads).transpose(1, 2)
        dtype = self.model.dtype
        with space.looking_at(len(space.x_MD) * places.end):
            for number in range(len(self.layers)):
                self.begin_layer(number, space)
                write_turned(space, cos_M1R, sin_M1R)
                key_BKSH, value_BKSH = cache.write(number, new_keys.to(dtype), new_values.to(dtype), places)
                space.query_MNH.copy_(space.turned_query_MNH)
                self.end_layer(number, space, attend(space.query_MNH, key_BKSH, value_BKSH, mask))

    def workspace(self, rows: int) -> Workspace:
        """Return memory for a pass of so many rows."""
        return Workspace(self.model, rows, compiled=self.compiles(rows))

    def compiles(self, rows: int) -> bool:
        """Return whether a pass of so many rows is left to the compiled core."""
        return rows <= self._most_rows

    def begin_layer(self, number: int, space: Workspace) -> None:
        """Write the queries, keys and values of a layer to ``space``."""
        if space.compiled is not None:
            space.compiled.begin_layer(self._compiled[number])
            return
        write_norm(self.layers[number].attention_norm_D, space)
        self.layers[number].qkv.into(space.normed_MD, space.qkv_MO)

    def end_layer(self, number: int, space: Workspace, gathered_MO: Tensor) -> None:
        """Add what the attention gathered, and what the feed-forward block makes of it, to the hidden states."""
        if space.compiled is not None:
            space.compiled.end_layer(self._compiled[number], gathered_MO)
            return
        layer = self.layers[number]
        layer.out.onto(gathered_MO, space.x_MD)
        write_norm(layer.mlp_norm_D, space)
        gate_MF, up_MF = layer.gate_up.computed(space.normed_MD, space.gate_up_MO).chunk(2, dim=1)
        layer.down.onto(functional.silu(gate_MF, inplace=True).mul_(up_MF), space.x_MD)

    def logits(self, x_MD: Tensor, logits_MV: Tensor) -> Tensor:
        """Return ``logits_MV``, with those of the hidden states written to it."""
        if x_MD.dtype == torch.float32 and self.compiles(len(x_MD)):
            self._compiled_head.into(Rows(x_MD), Rows(logits_MV), torch.get_num_threads())
        else:
            self.head.into(self.model.model.norm(x_MD), logits_MV)
        return logits_MV


def _query_group_mask(visible: Visible, config: LlamaConfig, places: CacheColumns, length: int) -> Tensor | None:
    """Return which keys each row of `attend` may look at, (B or 1, 1, G * T, S); None where it is all of them."""
    if visible.mask is None and not visible.causal:
        return None
    mask_B1TS = visible.as_mask(length, places.end, torch.device("cpu"))
    groups = config.num_attention_heads // config.kv_heads
    return mask_B1TS[:, :, None].expand(-1, -1, groups, -1, -1).flatten(2, 3)
