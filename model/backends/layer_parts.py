"""What the CPU and CUDA decoders share: which models they support, and what each layer of a model computes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bpe_llama.model.backends.norms import NORM_CLASSES, NORMS, Norm, norm_modules, norms_of_heads
from bpe_llama.model.families.cohere import CohereAttention
from bpe_llama.model.families.gemma2 import Gemma2Layer, SoftCappedAttention
from bpe_llama.model.families.granite import GraniteLayer
from bpe_llama.model.families.mixtral import MixtralLayer
from bpe_llama.model.families.olmo2 import Olmo2Attention, Olmo2Layer
from bpe_llama.model.families.parallel import ParallelLayer
from bpe_llama.model.families.phi3 import FusedAttention, FusedMLP
from bpe_llama.model.families.qwen2_moe import SharedExpertMLP
from bpe_llama.model.families.residual_dropout import ResidualDropoutLayer
from bpe_llama.model.families.sparse_layers import SparseExpert, SparseMLP
from bpe_llama.model.families.stablelm import StableLmAttention, StableLmLayer
from bpe_llama.model.layers.attention import Attention, HeadNormAttention
from bpe_llama.model.layers.attention_backends import sdpa
from bpe_llama.model.layers.embedding import ScaledEmbedding
from bpe_llama.model.layers.mlp import ACTIVATIONS, MLP
from bpe_llama.model.layers.moe import Expert, MixtureOfExperts
from bpe_llama.model.layers.rope import RotaryEmbedding
from bpe_llama.model.llama import DecoderLayer, LlamaForCausalLM, LlamaModel
from bpe_llama.model.quantization.layers import QuantizedLinear
from bpe_llama.model.windows import Chunk, Window

Gate = Literal["silu", "gelu_tanh"]
GATES: dict[Gate, Callable[[Tensor], Tensor]] = {
    "silu": ACTIVATIONS["silu"],
    "gelu_tanh": ACTIVATIONS["gelu_pytorch_tanh"],
}
"""The activations of the gate that the decoders compute, by their names in `bpe_llama._core.Linear`."""


def _computation(blocks: type[Any], layer: type[Any] | None = None) -> tuple[Callable[..., Tensor], ...]:
    """Return the methods that compute a layer: its ``forward``, its attention branch and its MLP branch."""
    layer = layer or blocks
    return blocks.forward, layer.attention_branch, layer.mlp_branch


LAYERS = {
    _computation(DecoderLayer): ("input_layernorm", None, "post_attention_layernorm", None),
    _computation(GraniteLayer): ("input_layernorm", None, "post_attention_layernorm", None),
    _computation(ResidualDropoutLayer): ("input_layernorm", None, "post_attention_layernorm", None),
    _computation(Olmo2Layer): (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    _computation(Gemma2Layer): (
        *("input_layernorm", "post_attention_layernorm"),
        *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
    _computation(ParallelLayer): ("input_layernorm", None, "input_layernorm", None),
}
"""The names of a layer's norms, before and after attention, before and after the MLP; the keys are its methods.

If the same norm is before both, attention and MLP are parallel: both read the hidden states before the layer.
"""

FEED_FORWARDS = {
    DecoderLayer.feed_forward: "mlp",
    MixtralLayer.feed_forward: "block_sparse_moe",
    StableLmLayer.feed_forward: "mlp",
}
"""The name of the module that computes a layer's ``feed_forward``, by that method."""

PROJECTS = {
    Attention.project: None,
    FusedAttention.project: None,
    HeadNormAttention.project: ("q_norm", "k_norm"),
    Olmo2Attention.project: ("q_norm", "k_norm"),
    CohereAttention.project: ("q_norm", "k_norm"),
    StableLmAttention.project: ("q_layernorm", "k_layernorm"),
}
"""The names of an attention's norms of queries and keys, by its ``project``; None if it has none."""

ROTATES = {Attention.rotate: False, CohereAttention.rotate: True}
"""Whether RoPE rotates feature ``2 i`` of a head with ``2 i + 1``, by the ``rotate`` of an attention."""

ATTENDS = (Attention.attend, SoftCappedAttention.attend)
MLPS = (MLP, FusedMLP, SparseExpert)
MIXTURES = (MixtureOfExperts, SparseMLP, SharedExpertMLP)

METHODS = frozenset(
    (
        *("attend", "attention_branch", "choose", "feed_forward", "forward", "logits", "mlp_branch", "normalized"),
        *("project", "rotate", "scaled"),
    )
)
"""The methods that compute. An object with such a method of its own does not compute what its class computes."""


class GatedBlock:
    """What an MLP or an expert computes.

    Attributes:
        gate_up: The linear layers that compute, side by side, gate and up.
        down: The down projection.
        gate: The activation of the gate, one of `GATES`.
    """

    def __init__(self, module: Any) -> None:
        self.gate: Gate = "silu"
        if isinstance(module, Expert):
            self.gate_up: list[nn.Linear] = [module.w1, module.w3]
            self.down: nn.Linear = module.w2
        else:
            self.gate_up, self.down = module.input_linears, module.down_proj
            self.gate = next(name for name, activation in GATES.items() if module.activation is activation)

    @property
    def together(self) -> list[list[nn.Linear]]:
        """Return the linear layers in groups that share an input."""
        return [self.gate_up, [self.down]]


class Mixture:
    """What a mixture of experts computes.

    Attributes:
        module: The module itself.
        router: The linear layer of the router's logits.
        experts: The experts.
        shared: The expert that all tokens share, if there is one.
        shared_gate: The linear layer of the shared expert's gate; the output is multiplied by the sigmoid of the gate.
    """

    def __init__(self, module: Any) -> None:
        self.module: MixtureOfExperts = module
        self.router: nn.Linear = module.gate
        self.experts = [GatedBlock(expert) for expert in module.experts]
        self.shared: GatedBlock | None = None
        self.shared_gate: nn.Linear | None = None
        if isinstance(module, SharedExpertMLP):
            self.shared, self.shared_gate = GatedBlock(module.shared_expert), module.shared_expert_gate

    @property
    def together(self) -> list[list[nn.Linear]]:
        """Return the linear layers in groups that share an input and the memory of their weights."""
        found = [[self.router], *(linears for expert in self.experts for linears in expert.together)]
        if self.shared is None or self.shared_gate is None:
            return found
        return [*found, [self.shared_gate], *self.shared.together]


class LayerParts:
    """What one layer of a model computes.

    Attributes:
        attention: The attention module.
        qkv: The linear layers that compute, side by side, queries, keys and values.
        out: The output projection.
        mlp: The MLP, or the mixture of experts.
        parallel: Whether attention and MLP both read the hidden states before the layer.
        query_scale: A factor of the queries.
        interleaved: Whether RoPE rotates feature ``2 i`` of a head with ``2 i + 1``.
        softcap: The bound of attention scores, ``softcap * tanh(score / softcap)``; 0 if there is none.
        residual_scale: A factor of what attention and the MLP add to the hidden states.
    """

    def __init__(self, layer: Any) -> None:
        self.attention = attention = layer.self_attn
        self.qkv: list[nn.Linear] = attention.input_linears
        self.out: nn.Linear = attention.o_proj
        feed_forward = _feed_forward_of(layer)
        self.mlp = Mixture(feed_forward) if type(feed_forward) in MIXTURES else GatedBlock(feed_forward)
        names = LAYERS[_computation_of(layer)]
        norms = {name: Norm(getattr(layer, name)) for name in names if name is not None}
        self.before_attention, self.after_attention, self.before_mlp, self.after_mlp = (
            None if name is None else norms[name] for name in names
        )
        self.parallel = self.before_attention is not None and self.before_attention is self.before_mlp
        self.query_scale: float = attention.query_scale
        self.interleaved = ROTATES[type(attention).rotate]
        self.softcap: float = getattr(attention, "softcap", None) or 0.0
        self.residual_scale: float = getattr(layer, "residual_multiplier", 1.0)

    @cached_property
    def head_norms(self) -> list[tuple[slice, Norm]]:
        """Return the norms of queries and keys, each with the columns of ``qkv`` that it normalizes in groups."""
        width, kv_width = self.out.in_features, sum(linear.out_features for linear in self.qkv)
        columns = (slice(0, width), slice(width, (width + kv_width) // 2))
        modules = zip(_head_norms_of(self.attention), columns, strict=False)
        return [normed for module, part in modules for normed in norms_of_heads(module, part)]

    @property
    def norms(self) -> list[Norm]:
        """Return the norms in the order in which a token reads their weights."""
        around = [self.before_attention, *(norm for _, norm in self.head_norms), self.after_attention]
        found = [norm for norm in (*around, self.before_mlp, self.after_mlp) if norm is not None]
        return list(dict.fromkeys(found))

    @property
    def beyond_llama(self) -> list[str]:
        """Return what the layer computes that a LLaMA's does not."""
        before, after = (self.before_attention, self.before_mlp), (self.after_attention, self.after_mlp)
        has_layer_norm = any(norm.is_layer_norm for norm in self.norms)
        gate = self.mlp.gate if isinstance(self.mlp, GatedBlock) else "silu"
        found = {
            "a mixture of experts": isinstance(self.mlp, Mixture),
            "attention and MLP in parallel": self.parallel,
            "a norm of queries and keys": bool(self.head_norms),
            "no norm before attention or the MLP": None in before,
            "a norm after attention or the MLP": after != (None, None),
            "LayerNorm": has_layer_norm,
            "a norm with float32 factors": not has_layer_norm and any(norm.is_copy for norm in self.norms),
            f"the activation {gate}": gate != "silu",
            "interleaved RoPE": self.interleaved,
            "a soft cap of attention scores": bool(self.softcap),
            f"queries times {self.query_scale}": self.query_scale != 1.0,
            f"residuals times {self.residual_scale}": self.residual_scale != 1.0,
        }
        return [name for name, computed in found.items() if computed]

    @property
    def together(self) -> list[list[nn.Linear]]:
        """Return the linear layers in groups that share an input, in the order in which a token reads them."""
        return [self.qkv, [self.out], *self.mlp.together]

    @property
    def linears(self) -> list[nn.Linear]:
        """Return the linear layers."""
        return [linear for linears in self.together for linear in linears]


def layer_parts(model: LlamaForCausalLM) -> list[LayerParts]:
    """Return what each layer computes, for a model that `has_known_layers` accepts."""
    return [LayerParts(layer) for layer in model.model.layers]


def embedding_scale(model: LlamaForCausalLM) -> Callable[[Tensor], Tensor] | None:
    """Return the function that scales a model's embeddings, None if they are not scaled."""
    embedding = model.model.embed_tokens
    return embedding.scaled if isinstance(embedding, ScaledEmbedding) else None


def has_known_layers(model: LlamaForCausalLM) -> bool:
    """Return whether a model consists of rotary layers that `LayerParts` describes, float32 or bfloat16.

    The answer is False for hooks, replaced ``forward`` methods, adapters, chunked attention, latent attention, dropout
    and weights that two layers share.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, max_position_embeddings=64)
        >>> has_known_layers(LlamaForCausalLM(config))
        True
    """
    stack, eps, dtype = model.model, model.config.norm_eps, model.dtype
    layers: list[Any] = list(stack.layers)
    if dtype not in (torch.float32, torch.bfloat16) or type(stack) is not LlamaModel:
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
        if any(hasattr(type(module), name) for name in METHODS & vars(module).keys()):
            return False
        if module._forward_hooks or module._forward_pre_hooks:
            return False
        if isinstance(module, NORM_CLASSES) and (type(module) not in NORMS or module.eps != eps):
            return False
        weights = [weight for weight in module._parameters.values() if weight is not None]
        if any(weight.dtype != dtype or type(weight.data) is not Tensor for weight in weights):
            return False
    if type(stack.norm) not in NORMS or not all(map(_is_known, layers)):
        return False
    parts = layer_parts(model)
    if len({part.interleaved for part in parts}) > 1:
        return False
    if any(part.parallel and isinstance(part.mlp, Mixture) for part in parts):
        return False
    groups = [[model.lm_head], *(linears for part in parts for linears in part.together)]
    if any(not all(map(_is_linear, group)) for group in groups):
        return False
    if any(len({linear.bias is None for linear in group}) > 1 for group in groups):
        return False
    used = [weight for group in groups for linear in group for weight in linear._parameters.values()]
    weights = [weight for weight in used if weight is not None]
    return len({id(weight) for weight in weights}) == len(weights)  # `make_adjacent` moves a weight once


def _is_chunk(window: Window | None) -> bool:
    return isinstance(window, Chunk)


def _computation_of(layer: Any) -> tuple[Callable[..., Tensor], ...]:
    """Return the key of `LAYERS`; a layer may use the ``forward`` of another class, its ``blocks``."""
    return _computation(getattr(layer, "blocks", type(layer)), type(layer))


def _feed_forward_of(layer: Any) -> Any:
    """Return the module that computes the feed-forward block of a layer."""
    return getattr(layer, FEED_FORWARDS[type(layer).feed_forward])


def _head_norms_of(attention: Any) -> list[nn.Module]:
    """Return the norms of queries and of keys, an empty list if they are not normalized."""
    found = [getattr(attention, name) for name in PROJECTS[type(attention).project] or ()]
    return [] if None in found else found


def _is_known(layer: Any) -> bool:
    """Return whether `LayerParts` describes what a layer computes, apart from its linear layers."""
    if not isinstance(layer, DecoderLayer) or type(layer).feed_forward not in FEED_FORWARDS:
        return False
    attention, feed_forward = layer.self_attn, _feed_forward_of(layer)
    if _computation_of(layer) not in LAYERS or not _computes(attention, Attention, "forward", "positioned", "dropout"):
        return False
    kind = type(attention)
    known: tuple[Collection[Any], ...] = (PROJECTS, ROTATES, ATTENDS)
    methods = (kind.project, kind.rotate, kind.attend)
    if attention.backend is not sdpa or not all(method in table for method, table in zip(methods, known, strict=True)):
        return False
    if not all(_is_known_block(block) for block in _blocks_of(feed_forward)):
        return False
    if attention.dropout or (layer.training and vars(layer).get("residual_dropout")):
        return False
    norms = [getattr(layer, name) for name in LAYERS[_computation_of(layer)] if name is not None]
    norms += [norm for module in _head_norms_of(attention) for norm in norm_modules(module)]
    return all(type(norm) in NORMS for norm in norms)


def _blocks_of(feed_forward: Any) -> Iterator[Any]:
    """Yield the MLP, or the experts of a known mixture."""
    if type(feed_forward) not in MIXTURES:
        yield feed_forward
        return
    yield from feed_forward.experts
    if isinstance(feed_forward, SharedExpertMLP):
        yield feed_forward.shared_expert


def _is_known_block(block: Any) -> bool:
    if type(block) is Expert:
        return True
    return type(block) in MLPS and any(block.activation is known for known in GATES.values())


def _computes(module: nn.Module, known: type[Any], *methods: str) -> bool:
    """Return whether a module is of a known class, and its class does not override the methods."""
    ours = isinstance(module, known)
    return ours and all(getattr(type(module), name) is getattr(known, name) for name in methods)


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or isinstance(module, QuantizedLinear)
