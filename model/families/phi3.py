"""Phi-3, Phi-3.5 and Phi-4: one matrix for queries, keys and values, one for gate and up; LongRoPE; partial rotation.

Source: Abdin et al. 2024, arXiv:2404.14219 (Phi-3); arXiv:2412.08905 (Phi-4); Ding et al. 2024, arXiv:2402.13753.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bpe_llama._core import shown
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.config_values import check_count, check_probability
from bpe_llama.model.families.residual_dropout import ResidualDropoutLayer
from bpe_llama.model.family import Family, GGUFLayout, register, window_of_all_layers
from bpe_llama.model.layers.attention import Attention
from bpe_llama.model.layers.linear import linear
from bpe_llama.model.layers.mlp import MLP
from bpe_llama.model.rope_parameters import merge_rope

ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class Phi3Config(LlamaConfig):
    """The fields of Phi-3, with the defaults of transformers.

    LongRoPE takes its short factors up to ``original_max_position_embeddings`` tokens, and its long ones beyond.

    Raises:
        ValueError: If RoPE is scaled otherwise, or the RoPE parameters state another original length.
    """

    vocab_size: int = 32_064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    max_position_embeddings: int = 4096
    original_max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    eos_token_id: int | list[int] | None = 32_000
    pad_token_id: int | None = 32_000
    resid_pdrop: float = 0.0
    model_type: str = "phi3"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(check_probability, "resid_pdrop")

    def _fill_rope(self) -> None:
        rope, original = merge_rope(self.rope_parameters, self.rope_theta, self.rope_scaling), getattr(self, ORIGINAL)
        check_count(ORIGINAL, original, 1)
        if rope["rope_type"] not in ("default", "longrope"):
            raise ValueError(f"rope_type is {shown(rope['rope_type'])}; model_type 'phi3' has 'default' and 'longrope'")
        if rope["rope_type"] == "longrope" and rope.setdefault(ORIGINAL, original) != original:
            raise ValueError(
                f"{ORIGINAL} is {original}, but rope_parameters state {rope[ORIGINAL]!r}; expected the same: "
                "transformers' phi3 reads the key outside of rope_parameters"
            )
        for name, value in (("rope_parameters", rope), ("rope_theta", None), ("rope_scaling", None)):
            object.__setattr__(self, name, value)
        super()._fill_rope()

    @property
    def residual_dropout(self) -> float:
        """Return the probability with which features of a residual branch are dropped in training."""
        return self.resid_pdrop


class FusedAttention(Attention):
    """Attention with one matrix for queries, keys and values; its rows are theirs, in this order."""

    def __init__(self, config: Phi3Config, layer: int) -> None:
        super().__init__(config, layer)
        self.widths = [part.out_features for part in (self.q_proj, self.k_proj, self.v_proj)]
        del self.q_proj, self.k_proj, self.v_proj
        self.qkv_proj = linear(config, config.hidden_size, sum(self.widths))

    @property
    def input_linears(self) -> list[nn.Linear]:
        """Return the linear layer that computes queries, keys and values."""
        return [self.qkv_proj]

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, N, T, H), keys and values (B, K, T, H), before they are rotated."""
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        query, key, value = self.qkv_proj(x_BTD).split(self.widths, dim=-1)
        return query.view(heads).transpose(1, 2), key.view(heads).transpose(1, 2), value.view(heads).transpose(1, 2)


class FusedMLP(MLP):
    """A gated block with one matrix: its first half of rows computes the gate, its second what the gate multiplies."""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__(config)
        del self.gate_proj, self.up_proj
        self.gate_up_proj = linear(config, config.hidden_size, 2 * config.intermediate_size)

    @property
    def input_linears(self) -> list[nn.Linear]:
        """Return the linear layer that computes gate and up."""
        return [self.gate_up_proj]

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the output, same shape and dtype as the input."""
        gate, up = self.gate_up_proj(x_BTD).chunk(2, dim=-1)
        return self.down_proj(self.activation(gate) * up)


class Phi3Layer(ResidualDropoutLayer):
    """A layer with fused projections and residual dropout."""

    attention_class = FusedAttention

    def __init__(self, config: Phi3Config, layer: int) -> None:
        super().__init__(config, layer)
        self.mlp = FusedMLP(config)


_WINDOW = "attention.sliding_window"  # llama.cpp's converter writes it, and llama.cpp itself attends to all tokens


register(
    Family(
        "phi3",
        "Phi3",
        Phi3Config,
        Phi3Layer,
        read=window_of_all_layers,
        ignored=frozenset(("embd_pdrop", "full_attn_mod", "interpolate_factor", "lm_head_bias")),
        has_partial_rotary=True,
        recomputes_keys=True,
        gguf=GGUFLayout(
            "phi3",
            {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
            keys={_WINDOW: "sliding_window", "rope.scaling.original_context_length": ORIGINAL},
            absent={
                _WINDOW: None,
                "rope.scaling.original_context_length": lambda fields: fields["max_position_embeddings"],
            },
            head_key=None,
            rope_types=("default", "longrope"),
            unstored=frozenset({"resid_pdrop"}),
            write=lambda config: {_WINDOW: config.sliding_window or 0},
        ),
    )
)
