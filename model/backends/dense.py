"""What the CPU and CUDA decoders share: which models they support, and what each layer of one computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from bpe_llama.model.layers.attention import Attention, HeadNormAttention
from bpe_llama.model.layers.attention_backends import sdpa
from bpe_llama.model.layers.mlp import ACTIVATIONS, MLP
from bpe_llama.model.layers.norm import RMSNorm
from bpe_llama.model.layers.rope import RotaryEmbedding
from bpe_llama.model.llama import DecoderLayer, LlamaForCausalLM, LlamaModel
from bpe_llama.model.quantization.quantize import QuantizedLinear

Gate = Literal["silu", "gelu_tanh"]
GATES: dict[Gate, Callable[[Tensor], Tensor]] = {
    "silu": ACTIVATIONS["silu"],
    "gelu_tanh": ACTIVATIONS["gelu_pytorch_tanh"],
}
"""The activations of the gate that the decoders compute, by their names in `bpe_llama._core.Linear`."""

LAYERS = {DecoderLayer.forward: ("input_layernorm", None, "post_attention_layernorm", None)}
"""By the ``forward`` of a layer the names of its norms: before and after attention, before and after the MLP."""

ATTENTIONS = {Attention.project: False, HeadNormAttention.project: True}
"""By the ``project`` of an attention whether it normalizes queries and keys."""

NORMS: dict[type[RMSNorm], Callable[[Tensor], Tensor]] = {RMSNorm: lambda weight: weight}
"""The known norms, and what each computes from its weights: the factors of `Norm`."""

MLPS = (MLP,)
EMBEDDINGS = (nn.Embedding,)


class Norm:
    """RMSNorm, with a factor for each feature.

    Attributes:
        weight: The factors. If they have the dtype of the activations, the quotient is rounded to it before it is
            multiplied, as in `RMSNorm`; if they are float32, the product is rounded instead.
        eps: The epsilon.
        is_copy: Whether the factors are computed from the parameter, and do not share its memory.
    """

    def __init__(self, module: RMSNorm) -> None:
        self.module, self.eps = module, module.eps
        self.is_copy = type(module) is not RMSNorm
        self.weight = NORMS[type(module)](module.weight.detach())

    def refresh(self) -> None:
        """Compute the factors anew from the parameter, if they do not share its memory."""
        if self.is_copy:
            self.weight.copy_(NORMS[type(self.module)](self.module.weight.detach()))


class DenseLayer:
    """What one layer of a dense model computes.

    Attributes:
        qkv: The linear layers whose outputs, side by side, are queries, keys and values.
        out: The output projection.
        gate_up: The linear layers whose outputs, side by side, are gate and up.
        down: The down projection.
        gate: The activation of the gate, one of `GATES`.
        head_norms: The norms of queries and keys, each with the columns of ``qkv`` that it normalizes in groups.
        query_scale: A factor of the queries.
        residual_scale: A factor of what attention and the MLP add to the hidden states.
    """

    def __init__(self, layer: DecoderLayer) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv, self.out = attention.input_linears, attention.o_proj
        self.gate_up, self.down = mlp.input_linears, mlp.down_proj
        self.gate = next(name for name, activation in GATES.items() if mlp.activation is activation)
        names = LAYERS[type(layer).forward]
        norms = [None if name is None else Norm(getattr(layer, name)) for name in names]
        self.before_attention, self.after_attention, self.before_mlp, self.after_mlp = norms
        self.head_norms: list[tuple[slice, Norm]] = []
        if isinstance(attention, HeadNormAttention):
            width, kv_width = self.out.in_features, sum(linear.out_features for linear in self.qkv)
            queries, keys = slice(0, width), slice(width, (width + kv_width) // 2)
            self.head_norms = [(queries, Norm(attention.q_norm)), (keys, Norm(attention.k_norm))]
        self.query_scale = attention.query_scale
        self.residual_scale = 1.0

    @property
    def norms(self) -> list[Norm]:
        """Return the norms in the order in which a token reads their weights."""
        around = [self.before_attention, *(norm for _, norm in self.head_norms), self.after_attention]
        return [norm for norm in (*around, self.before_mlp, self.after_mlp) if norm is not None]

    @property
    def beyond_llama(self) -> list[str]:
        """Return what the layer computes that a LLaMA's does not."""
        before, after = (self.before_attention, self.before_mlp), (self.after_attention, self.after_mlp)
        found = {
            "RMSNorm of queries and keys": bool(self.head_norms),
            "no norm before attention or the MLP": None in before,
            "a norm after attention or the MLP": after != (None, None),
            "a norm with float32 factors": any(norm.is_copy for norm in self.norms),
            f"the activation {self.gate}": self.gate != "silu",
            f"queries times {self.query_scale}": self.query_scale != 1.0,
            f"residuals times {self.residual_scale}": self.residual_scale != 1.0,
        }
        return [name for name, computed in found.items() if computed]

    @property
    def linears(self) -> list[nn.Linear]:
        """Return the linear layers."""
        return [*self.qkv, self.out, *self.gate_up, self.down]


def dense_layers(model: LlamaForCausalLM) -> list[DenseLayer]:
    """Return the layers of a model for which `is_dense` is true, in order."""
    return [DenseLayer(layer) for layer in model.model.layers if isinstance(layer, DecoderLayer)]


def is_dense(model: LlamaForCausalLM) -> bool:
    """Return whether a model consists of dense rotary layers that `DenseLayer` describes, float32 or bfloat16.

    Hooks, replaced ``forward`` methods, adapters, mixtures of experts, attention dropout and shared weights are
    not supported.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, max_position_embeddings=64)
        >>> is_dense(LlamaForCausalLM(config))
        True
    """
    stack, eps = model.model, model.config.norm_eps
    if model.dtype not in (torch.float32, torch.bfloat16):
        return False
    if type(model).forward is not LlamaForCausalLM.forward or type(stack) is not LlamaModel:
        return False
    if type(stack.rotary_emb) is not RotaryEmbedding or type(stack.embed_tokens) not in EMBEDDINGS:
        return False
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return False
        if isinstance(module, RMSNorm) and (type(module) not in NORMS or module.eps != eps):
            return False
    if not isinstance(stack.norm, RMSNorm) or not all(map(_is_known, stack.layers)):
        return False
    linears = [model.lm_head]
    for layer in dense_layers(model):
        if any(len({linear.bias is None for linear in together}) > 1 for together in (layer.qkv, layer.gate_up)):
            return False
        linears += layer.linears
    weights = [weight for linear in linears for weight in linear.parameters()]
    if len({id(weight) for weight in weights}) < len(weights):  # a shared weight cannot be adjacent to two neighbours
        return False
    return all(map(_is_linear, linears)) and all(
        weight.dtype == model.dtype and type(weight.data) is Tensor for weight in model.parameters()
    )


def _is_known(layer: nn.Module) -> bool:
    """Return whether a layer's modules compute what `DenseLayer` says, its linear layers and norms excepted."""
    forward = type(layer).forward
    if not isinstance(layer, DecoderLayer) or forward not in LAYERS:
        return False
    if type(layer).feed_forward is not DecoderLayer.feed_forward or type(layer.mlp) not in MLPS:
        return False
    attention = layer.self_attn
    computes_ours = isinstance(attention, Attention) and type(attention).forward is Attention.forward
    if not computes_ours or type(attention).project not in ATTENTIONS or attention.backend is not sdpa:
        return False
    norms = [getattr(layer, name) for name in LAYERS[forward] if name is not None]
    if isinstance(attention, HeadNormAttention):
        norms += [attention.q_norm, attention.k_norm]
    linears = [*attention.input_linears, attention.o_proj, *layer.mlp.input_linears, layer.mlp.down_proj]
    if not all(type(norm) in NORMS for norm in norms) or not all(map(_is_linear, linears)):
        return False
    return not attention.dropout and any(layer.mlp.activation is activation for activation in GATES.values())


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or isinstance(module, QuantizedLinear)
