"""What the CPU and CUDA decoders share: which models they support, and the layers of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bpe_llama.model.layers.attention import Attention
from bpe_llama.model.layers.attention_backends import sdpa
from bpe_llama.model.layers.mlp import ACTIVATIONS, MLP
from bpe_llama.model.layers.norm import RMSNorm
from bpe_llama.model.layers.rope import RotaryEmbedding
from bpe_llama.model.llama import DecoderLayer, LlamaForCausalLM, LlamaModel
from bpe_llama.model.quantization.quantize import QuantizedLinear


def decoder_layers(model: LlamaForCausalLM) -> list[DecoderLayer]:
    """Return the layers of the stack, in order."""
    return [layer for layer in model.model.layers if isinstance(layer, DecoderLayer)]


def shared_input(layer: DecoderLayer) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """Return the linear layers that share an input: queries, keys and values; gate and up."""
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]


def is_dense(model: LlamaForCausalLM) -> bool:
    """Return whether a model consists of this package's dense rotary layers in one dtype, float32 or bfloat16.

    Hooks, replaced ``forward`` methods, adapters, mixtures of experts, attention dropout and shared weights are
    not supported.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, max_position_embeddings=64)
        >>> is_dense(LlamaForCausalLM(config))
        True
    """
    if model.dtype not in (torch.float32, torch.bfloat16):
        return False
    stack = model.model
    kinds: list[tuple[nn.Module, type]] = [(stack, LlamaModel), (stack.rotary_emb, RotaryEmbedding)]
    kinds += [(stack.embed_tokens, nn.Embedding), (stack.norm, RMSNorm)]
    kinds += [(layer, DecoderLayer) for layer in stack.layers]
    if type(model).forward is not LlamaForCausalLM.forward or model.config.family.logits or not _are(kinds):
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
        if layer.self_attn.dropout or layer.self_attn.query_scale != 1.0:
            return False
        if layer.mlp.activation is not ACTIVATIONS["silu"]:
            return False
        for together in shared_input(layer):
            if not all(map(_is_linear, together)) or len({linear.bias is None for linear in together}) > 1:
                return False
            linears += together
        linears += [layer.self_attn.o_proj, layer.mlp.down_proj]
    weights = [weight for linear in linears for weight in linear.parameters()]
    if len({id(weight) for weight in weights}) < len(weights):  # a shared weight cannot be adjacent to two neighbours
        return False
    return all(map(_is_linear, linears)) and all(
        weight.dtype == model.dtype and type(weight.data) is Tensor for weight in model.parameters()
    )


def _are(kinds: Sequence[tuple[nn.Module, type]]) -> bool:
    return all(type(module) is kind for module, kind in kinds)


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or isinstance(module, QuantizedLinear)
