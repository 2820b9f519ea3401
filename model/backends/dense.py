"""What the CPU and CUDA decoders share: which models they support, and what each layer of one computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bpe_llama.model.families.gemma2 import Gemma2Layer
from bpe_llama.model.families.granite import GraniteLayer
from bpe_llama.model.families.olmo2 import Olmo2Attention, Olmo2Layer, Olmo2Norm
from bpe_llama.model.families.phi3 import FusedAttention, FusedMLP
from bpe_llama.model.families.seed_oss import SeedOssLayer
from bpe_llama.model.layers.attention import Attention, HeadNormAttention
from bpe_llama.model.layers.attention_backends import sdpa
from bpe_llama.model.layers.embedding import ScaledEmbedding
from bpe_llama.model.layers.mlp import ACTIVATIONS, MLP
from bpe_llama.model.layers.norm import RMSNorm, ZeroCenteredRMSNorm
from bpe_llama.model.layers.rope import RotaryEmbedding
from bpe_llama.model.llama import DecoderLayer, LlamaForCausalLM, LlamaModel
from bpe_llama.model.quantization.quantize import QuantizedLinear
from bpe_llama.model.windows import Chunk, Window

Gate = Literal["silu", "gelu_tanh"]
GATES: dict[Gate, Callable[[Tensor], Tensor]] = {
    "silu": ACTIVATIONS["silu"],
    "gelu_tanh": ACTIVATIONS["gelu_pytorch_tanh"],
}
"""The activations of the gate that the decoders compute, by their names in `bpe_llama._core.Linear`."""


def _branches(layer: type[DecoderLayer]) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return the methods that compute what attention and MLP add to the hidden states."""
    return layer.attention_branch, layer.mlp_branch


LAYERS = {
    _branches(DecoderLayer): ("input_layernorm", None, "post_attention_layernorm", None),
    _branches(GraniteLayer): ("input_layernorm", None, "post_attention_layernorm", None),
    _branches(SeedOssLayer): ("input_layernorm", None, "post_attention_layernorm", None),
    _branches(Olmo2Layer): (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    _branches(Gemma2Layer): (
        *("input_layernorm", "post_attention_layernorm"),
        *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
}
"""By the branches of a layer the names of its norms: before and after attention, before and after the MLP."""

ATTENTIONS = (Attention.forward, FusedAttention.forward)
PROJECTS = {
    Attention.project: False,
    FusedAttention.project: False,
    HeadNormAttention.project: True,
    Olmo2Attention.project: True,
}
"""By the ``project`` of an attention whether it normalizes queries and keys."""

NORMS: dict[type[RMSNorm], Callable[[Tensor], Tensor]] = {
    RMSNorm: lambda weight: weight,
    Olmo2Norm: lambda weight: weight.float().clone(),
    ZeroCenteredRMSNorm: lambda weight: 1.0 + weight.float(),
}
"""The norms, and what each computes from its weights: the factors of `Norm`."""

MLPS = (MLP, FusedMLP)
METHODS = (
    *("attend", "attention_branch", "feed_forward", "forward", "logits", "mlp_branch", "normalized", "project"),
    *("rotate", "scaled"),
)
"""Those that compute; an object with one of its own computes something else."""


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
        qkv: The linear layers that compute, side by side, queries, keys and values.
        out: The output projection.
        gate_up: The linear layers that compute, side by side, gate and up.
        down: The down projection.
        gate: The activation of the gate, one of `GATES`.
        head_norms: The norms of queries and keys, each with the columns of ``qkv`` that it normalizes in groups.
        query_scale: A factor of the queries.
        residual_scale: A factor of what attention and the MLP add to the hidden states.
    """

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv: list[nn.Linear] = attention.input_linears
        self.out: nn.Linear = attention.o_proj
        self.gate_up: list[nn.Linear] = mlp.input_linears
        self.down: nn.Linear = mlp.down_proj
        self.gate = next(name for name, activation in GATES.items() if mlp.activation is activation)
        names = LAYERS[_branches(type(layer))]
        norms = [None if name is None else Norm(getattr(layer, name)) for name in names]
        self.before_attention, self.after_attention, self.before_mlp, self.after_mlp = norms
        self.head_norms: list[tuple[slice, Norm]] = []
        if PROJECTS[type(attention).project]:
            width, kv_width = self.out.in_features, sum(linear.out_features for linear in self.qkv)
            queries, keys = slice(0, width), slice(width, (width + kv_width) // 2)
            self.head_norms = [(queries, Norm(attention.q_norm)), (keys, Norm(attention.k_norm))]
        self.query_scale: float = attention.query_scale
        self.residual_scale: float = getattr(layer, "residual_multiplier", 1.0)

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


def embedding_scale(model: LlamaForCausalLM) -> Callable[[Tensor], Tensor] | None:
    """Return what a model multiplies its embeddings with, as a function of them; None if nothing."""
    embedding = model.model.embed_tokens
    return embedding.scaled if isinstance(embedding, ScaledEmbedding) else None


def is_dense(model: LlamaForCausalLM) -> bool:
    """Return whether a model consists of dense rotary layers that `DenseLayer` describes, float32 or bfloat16.

    Hooks, replaced ``forward`` methods, adapters, mixtures of experts, chunked attention, dropout and shared weights
    are not supported.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, max_position_embeddings=64)
        >>> is_dense(LlamaForCausalLM(config))
        True
    """
    stack, eps = model.model, model.config.norm_eps
    layers: list[Any] = list(stack.layers)
    if model.dtype not in (torch.float32, torch.bfloat16) or type(stack) is not LlamaModel:
        return False
    if not _computes(model, LlamaForCausalLM, "forward", "logits") or any(map(_is_chunk, model.config.windows)):
        return False
    if any(
        type(part) is not RotaryEmbedding for part in (stack.rotary_emb, stack.local_rotary_emb or stack.rotary_emb)
    ):
        return False
    embedding = stack.embed_tokens
    if type(embedding) is not nn.Embedding and not _computes(embedding, ScaledEmbedding, "forward"):
        return False
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks or not vars(module).keys().isdisjoint(METHODS):
            return False
        if isinstance(module, RMSNorm) and (type(module) not in NORMS or module.eps != eps):
            return False
    if type(stack.norm) not in NORMS or not all(map(_is_known, layers)):
        return False
    linears = [model.lm_head]
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        for together in (attention.input_linears, mlp.input_linears):
            if not all(map(_is_linear, together)) or len({linear.bias is None for linear in together}) > 1:
                return False
            linears += together
        linears += [attention.o_proj, mlp.down_proj]
    weights = [weight for linear in linears for weight in linear.parameters()]
    if len({id(weight) for weight in weights}) < len(weights):  # a shared weight cannot be adjacent to two neighbours
        return False
    return all(map(_is_linear, linears)) and all(
        weight.dtype == model.dtype and type(weight.data) is Tensor for weight in model.parameters()
    )


def _is_chunk(window: Window | None) -> bool:
    return isinstance(window, Chunk)


def _is_known(layer: Any) -> bool:
    """Return whether `DenseLayer` describes what a layer computes, its linear layers excepted."""
    if not _computes(layer, DecoderLayer, "forward", "feed_forward") or _branches(type(layer)) not in LAYERS:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    if (
        not _computes(attention, Attention, "positioned", "rotate", "attend", "dropout")
        or attention.backend is not sdpa
    ):
        return False
    if type(attention).forward not in ATTENTIONS or type(mlp) not in MLPS:
        return False
    if type(attention).project not in PROJECTS or not any(mlp.activation is known for known in GATES.values()):
        return False
    if attention.dropout or any(
        part.training and vars(part).get("residual_dropout") for part in (layer, attention, mlp)
    ):
        return False
    norms = [getattr(layer, name) for name in LAYERS[_branches(type(layer))] if name is not None]
    if PROJECTS[type(attention).project]:
        norms += [attention.q_norm, attention.k_norm]
    return all(type(norm) in NORMS for norm in norms)


def _computes(module: nn.Module, known: type[Any], *methods: str) -> bool:
    """Return whether a module is of a known class, and its class does not override the methods."""
    ours = isinstance(module, known)
    return ours and all(getattr(type(module), name) is getattr(known, name) for name in methods)


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or isinstance(module, QuantizedLinear)
