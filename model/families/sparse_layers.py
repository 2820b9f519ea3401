"""Layers with a mixture of experts between layers with an MLP, as several families have them.

Shapes: ``B`` batch, ``T`` length, ``D`` hidden_size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bpe_llama._core import shown
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.config_values import check_flag, check_size
from bpe_llama.model.layers.mlp import MLP
from bpe_llama.model.layers.moe import MixtureOfExperts
from bpe_llama.model.llama import DecoderLayer


@dataclass(frozen=True)
class SparseLayersConfig(LlamaConfig):
    """A config of which every ``decoder_sparse_step``-th layer has experts, but none in ``mlp_only_layers``.

    An expert has ``moe_intermediate_size`` features, the MLP of the other layers ``intermediate_size``. With
    ``norm_topk_prob`` the weights of a token's experts add up to 1.

    Raises:
        ValueError: If a size is below 1.
        TypeError: If a value is of another type.
    """

    num_local_experts: int | None = 128
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 768
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(check_size, "moe_intermediate_size", "decoder_sparse_step")
        self._check(check_flag, "norm_topk_prob")
        layers = [] if self.mlp_only_layers is None else self.mlp_only_layers
        if not isinstance(layers, list | tuple) or any(type(layer) is not int for layer in layers):
            raise TypeError(f"mlp_only_layers is {shown(layers)}; expected a list of layer numbers")
        object.__setattr__(self, "mlp_only_layers", list(layers))

    @property
    def sparse_layers(self) -> tuple[bool, ...]:
        """Return for each layer whether it has experts."""
        dense = set(self.mlp_only_layers or ())
        layers = range(self.num_hidden_layers)
        return tuple(layer not in dense and (layer + 1) % self.decoder_sparse_step == 0 for layer in layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``config.json``, in which the experts are ``num_experts`` as in published files."""
        values = super().to_dict()
        values["num_experts"] = values.pop("num_local_experts")
        return values


class SparseExpert(MLP):
    """An MLP of ``moe_intermediate_size`` features."""

    def __init__(self, config: SparseLayersConfig) -> None:
        super().__init__(config, config.moe_intermediate_size)


class SparseMLP(MixtureOfExperts):
    """A mixture of experts that are MLPs; ``norm_topk_prob`` says whether their weights are normalized."""

    expert_class = SparseExpert

    def __init__(self, config: SparseLayersConfig) -> None:
        super().__init__(config)
        self.normalized = config.norm_topk_prob


class SparseLayer(DecoderLayer):
    """A layer with a mixture of experts, or an MLP."""

    experts_class: ClassVar[type[MixtureOfExperts]] = SparseMLP

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__(config, layer)
        if config.sparse_layers[layer]:
            self.add_module("mlp", self.experts_class(config))


EXPERT_MODULES = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
}
"""The tensors of experts in llama.cpp, and their modules."""
EXPERT_SIZE = "expert_feed_forward_length"


def default_expert_size(fields: Mapping[str, Any]) -> int:
    """Return the size of experts in a GGUF file that leaves it out."""
    return int(fields["intermediate_size"] // fields["num_experts_per_tok"])
