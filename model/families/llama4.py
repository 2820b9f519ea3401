"""Llama 4's text model: chunked attention with RoPE, every fourth layer with neither; experts beside a shared one.

Queries of layers without RoPE grow with their position (``attn_temperature_tuning``). A position is that of the token
in its sequence: transformers counts padding on the left, too. There is no routing loss, as in transformers. Of a
multi-modal folder (``llama4``) the text model is read.

Shapes: ``B`` batch, ``T`` length, ``M`` tokens (B * T), ``D`` hidden_size, ``E`` experts, ``C`` experts per token.

Source: https://ai.meta.com/blog/llama-4-multimodal-intelligence; Nakanishi 2025, arXiv:2501.19399 (temperature).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bpe_llama._core import shown
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.config_values import check_flag, check_number, check_size
from bpe_llama.model.families.layer_types import CHUNKED, FULL, RotatedLayersConfig
from bpe_llama.model.family import Family, GGUFLayout, GGUFSplit, register
from bpe_llama.model.layers.attention import Attention
from bpe_llama.model.layers.mlp import MLP
from bpe_llama.model.layers.moe import MixtureOfExperts
from bpe_llama.model.layers.moe.fused import FusedExperts
from bpe_llama.model.layers.rope import Rotation, apply_interleaved_rope
from bpe_llama.model.llama import DecoderLayer
from bpe_llama.model.windows import Chunk, Window


@dataclass(frozen=True)
class Llama4TextConfig(RotatedLayersConfig):
    """The fields of Llama 4's text model, with the defaults of transformers.

    ``intermediate_size`` is that of an expert, ``intermediate_size_mlp`` that of the MLP in layers without experts.
    ``moe_layers`` lists the layers with experts, by default every ``interleave_moe_layer_step``-th. ``layer_types`` has
    ``"chunked_attention"`` or ``"full_attention"`` for each layer, by default chunks where there is RoPE.

    Raises:
        ValueError: If a value is out of range, or is one that transformers' class does not compute.
        TypeError: If a switch is neither true nor false.

    Example:
        >>> config = Llama4TextConfig(num_hidden_layers=4, interleave_moe_layer_step=2)
        >>> config.moe_layers, config.windows
        ([1, 3], (Chunk(size=8192), Chunk(size=8192), Chunk(size=8192), None))
    """

    vocab_size: int = 202_048
    hidden_size: int = 5120
    intermediate_size: int = 8192
    intermediate_size_mlp: int = 16_384
    num_hidden_layers: int = 48
    num_attention_heads: int = 40
    num_key_value_heads: int | None = 8
    head_dim: int | None = 128
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-5
    num_local_experts: int | None = 16
    num_experts_per_tok: int = 1
    moe_layers: list[int] | None = None
    interleave_moe_layer_step: int = 1
    use_qk_norm: bool = True
    attention_chunk_size: int = 8192
    attn_temperature_tuning: bool = True
    floor_scale: int = 8192
    attn_scale: float = 0.1
    model_type: str = "llama4_text"

    LOCAL = (CHUNKED, "attention_chunk_size")

    def __post_init__(self) -> None:
        sizes = ("intermediate_size_mlp", "interleave_moe_layer_step", "attention_chunk_size", "floor_scale")
        self._check(check_size, *sizes, "num_hidden_layers")
        self._fill_floats("attn_scale")
        self._check(check_flag, "use_qk_norm", "attn_temperature_tuning")
        if self.num_local_experts is None:
            raise ValueError("num_local_experts is None; expected an integer of at least 1")
        check_number("router_z_loss_coef", self.router_z_loss_coef)
        if self.router_z_loss_coef:
            raise ValueError(
                f"router_z_loss_coef is {shown(self.router_z_loss_coef)}, but llama4_text has no routing loss"
            )
        layers = self._default_moe_layers() if self.moe_layers is None else self.moe_layers
        if not isinstance(layers, list | tuple) or any(type(layer) is not int for layer in layers):
            raise ValueError(f"moe_layers is {shown(layers)}; expected a list of layer numbers")
        object.__setattr__(self, "moe_layers", list(layers))
        if isinstance(self.no_rope_layers, list) and not self.no_rope_layers:
            object.__setattr__(self, "no_rope_layers", None)  # the default, too
        super().__post_init__()

    def _default_moe_layers(self) -> list[int]:
        step = self.interleave_moe_layer_step
        return list(range(step - 1, self.num_hidden_layers, step))

    def default_layer_types(self) -> list[str]:
        """Return the types of the layers of a file that does not state them: those with RoPE have chunks."""
        return [CHUNKED if rotated else FULL for rotated in self.rotated_layers]

    def replace(self, **changes: Any) -> LlamaConfig:
        """Return a copy with some values changed; layers that follow from the other values follow from the new ones."""
        if self.moe_layers == self._default_moe_layers():
            changes.setdefault("moe_layers", None)
        return super().replace(**changes)

    @property
    def sparse_layers(self) -> tuple[bool, ...]:
        """Return for each layer whether it has experts."""
        sparse = set(self.moe_layers or ())
        return tuple(layer in sparse for layer in range(self.num_hidden_layers))

    @property
    def local_window(self) -> Window | None:
        """Return the chunk of layers that have one."""
        return Chunk(self.attention_chunk_size)


class Llama4Attention(Attention):
    """Attention that divides rotated queries and keys by their root mean squares if ``use_qk_norm``.

    Queries of layers without RoPE are multiplied by `temperatures`.
    """

    def __init__(self, config: Llama4TextConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.is_rotated = config.rotated_layers[layer]
        self.eps = config.norm_eps if config.use_qk_norm else None

    @staticmethod
    def rotate(x_BNTH: Tensor, rotation: Rotation) -> Tensor:
        """Return rotated queries or keys, same shape and dtype."""
        return apply_interleaved_rope(x_BNTH, rotation)

    def positioned(self, query_BNTH: Tensor, key_BKTH: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Return rotated and normalized queries and keys; without RoPE, queries times their temperature."""
        if not self.is_rotated:
            return self.rotate(query_BNTH, rotation), key_BKTH
        query_BNTH, key_BKTH = super().positioned(query_BNTH, key_BKTH, rotation)
        if self.eps is None:
            return query_BNTH, key_BKTH
        return _normalized(query_BNTH, self.eps), _normalized(key_BKTH, self.eps)


def _normalized(x: Tensor, eps: float) -> Tensor:
    """Return the vectors divided by their root mean squares, same dtype."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def temperatures(config: Llama4TextConfig, rotation: Rotation, positions_BT: Tensor) -> Rotation:
    """Return the rotation of queries in layers without RoPE: by 0, and longer at later positions.

    Source: Nakanishi 2025, arXiv:2501.19399.

    Example:
        >>> config, zero = Llama4TextConfig(floor_scale=2, attn_scale=1.0), (torch.ones(1, 3, 1), torch.zeros(1, 3, 1))
        >>> temperatures(config, zero, torch.arange(3)[None])[0].flatten().tolist()[:2]
        [1.0, 1.6931471824645996]
    """
    if not config.attn_temperature_tuning:
        return rotation
    steps_BT1 = torch.floor((positions_BT.float() + 1.0) / config.floor_scale)[..., None]
    return rotation[0] * (torch.log1p(steps_BT1) * config.attn_scale + 1.0), rotation[1]


class Llama4Mixture(MixtureOfExperts):
    """Experts, with inputs multiplied by the sigmoid of the router's logit, and one that all tokens share."""

    has_routing_loss = False

    def __init__(self, config: Llama4TextConfig) -> None:
        nn.Module.__init__(self)  # router and experts differ from those of the base class
        self.per_token, experts = config.num_experts_per_tok, config.num_local_experts or 1
        self.router = nn.Linear(config.hidden_size, experts, bias=False)
        self.experts = FusedExperts(experts, config.hidden_size, config.intermediate_size)
        self.shared_expert = MLP(config)
        self.router_logits: Tensor | None = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the sum of the outputs of the chosen experts and the shared one, (B, T, D)."""
        x_MD = x_BTD.flatten(0, 1)
        self.router_logits = logits_ME = self.router(x_MD)
        scores_MC, chosen_MC = self.choose(logits_ME)
        scores_MC = scores_MC.to(x_MD.dtype)
        order = chosen_MC.flatten().argsort(stable=True)
        tokens = order // self.per_token
        outputs = self.experts(x_MD[tokens] * scores_MC.flatten()[order, None], chosen_MC.flatten()[order])
        routed_MD = torch.zeros_like(x_MD).index_add(0, tokens, outputs.to(x_MD.dtype))
        shared_BTD: Tensor = self.shared_expert(x_BTD)
        return shared_BTD + routed_MD.view_as(x_BTD)

    def choose(self, logits_ME: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of each token's experts, float32 (M, C), and their numbers, int64 (M, C)."""
        logits_MC, chosen_MC = logits_ME.topk(self.per_token, dim=-1)
        return logits_MC.float().sigmoid(), chosen_MC


class Llama4Layer(DecoderLayer):
    """A layer with a mixture of experts, or an MLP."""

    attention_class = Llama4Attention

    def __init__(self, config: Llama4TextConfig, layer: int) -> None:
        super().__init__(config, layer)
        del self.mlp
        self._modules["feed_forward"] = (  # `add_module` refuses names of attributes
            Llama4Mixture(config) if config.sparse_layers[layer] else MLP(config, config.intermediate_size_mlp)
        )

    @property
    def feed_forward(self) -> Any:  # the module is what the method of other layers calls
        """Return the mixture or MLP."""
        return self._modules["feed_forward"]


def _prepare(values: Mapping[str, Any]) -> dict[str, Any]:
    prepared = dict(values)
    tuning = prepared.get("attn_temperature_tuning")
    if type(tuning) is int:  # in the first files
        prepared["attn_temperature_tuning"] = bool(tuning)
    return prepared


_WINDOW, _STEP = "attention.sliding_window", "interleave_moe_layer_step"
_CHUNK, _PATTERN = 8192, 4  # with which llama.cpp computes; the pattern is that of RoPE, too
_MODULES = {
    "ffn_gate": "feed_forward.gate_proj",
    "ffn_up": "feed_forward.up_proj",
    "ffn_down": "feed_forward.down_proj",
    "ffn_gate_inp": "feed_forward.router",
    "ffn_gate_shexp": "feed_forward.shared_expert.gate_proj",
    "ffn_up_shexp": "feed_forward.shared_expert.up_proj",
    "ffn_down_shexp": "feed_forward.shared_expert.down_proj",
}
_SPLITS = {
    "feed_forward.experts.gate_up_proj": GGUFSplit(
        ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
        lambda config, tensor: tensor.mT.chunk(2, dim=1),
        lambda config, tensors: torch.cat(list(tensors), dim=1).mT,
    ),
    "feed_forward.experts.down_proj": GGUFSplit(
        ("ffn_down_exps.weight",), lambda config, tensor: [tensor.mT], lambda config, tensors: tensors[0].mT
    ),
}


def _read_gguf(fields: dict[str, Any], metadata: Mapping[str, Any], names: Collection[str]) -> None:
    window, step, layers = metadata.get(_WINDOW, _CHUNK), metadata[_STEP], fields["num_hidden_layers"]
    if window != _CHUNK:
        raise ValueError(
            f"metadata 'llama4.{_WINDOW}' is {shown(window)}; expected {_CHUNK}, with which llama.cpp computes"
        )
    if type(step) is not int or not 1 <= step <= layers:
        raise ValueError(f"metadata 'llama4.{_STEP}' is {shown(step)}; expected 1 to the {layers} layers")
    fields["moe_layers"] = list(range(step - 1, layers, step))
    fields["use_qk_norm"] = fields.get("num_local_experts") != 128  # llama.cpp knows Maverick by its experts


def _write_gguf(config: Llama4TextConfig) -> dict[str, Any]:
    chunked = [window is not None for window in config.windows]
    is_usual = chunked == [bool(layer % _PATTERN) for layer in range(1, config.num_hidden_layers + 1)]
    return {
        _STEP: config.moe_layers[0] + 1 if config.moe_layers else 0,
        "attention.sliding_window_pattern": None if is_usual else chunked,
    }


register(
    Family(
        "llama4_text",
        "Llama4",
        Llama4TextConfig,
        Llama4Layer,
        unrotated=temperatures,
        prepare=_prepare,
        rope_theta=500_000.0,
        biases=("attention_bias",),
        has_experts=True,
        has_window=False,
        has_classifier=False,
        multimodal="llama4",
        left_out=("vision_model", "multi_modal_projector"),
        gguf=GGUFLayout(
            "llama4",
            _MODULES,
            keys={
                "feed_forward_length": "intermediate_size_mlp",
                "expert_feed_forward_length": "intermediate_size",
                _STEP: "interleave_moe_layer_step",
            },
            fixed={
                "attention_bias": False,
                "attention_chunk_size": _CHUNK,
                "attn_temperature_tuning": True,
                "floor_scale": 8192,
                "attn_scale": 0.1,
            },
            splits=_SPLITS,
            derived=frozenset({_WINDOW}),
            window_pattern=_PATTERN,
            rope_types=("default", "linear", "yarn", "llama3"),
            unstored=frozenset({"interleave_moe_layer_step", "no_rope_layer_interval"}),
            read=_read_gguf,
            write=_write_gguf,
        ),
    )
)
