"""A module with adapters, and how each type of adapter changes the module's output.

Shapes: ``B`` batch, ``T`` length, ``I`` in_features, ``O`` out_features, ``R`` rank, ``V`` vocab_size, ``D``
hidden_size, ``K`` trained rows of an embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama.model.layers.embedding import ScaledEmbedding
from bpe_llama.model.layers.moe.fused import SplitExperts

TRAINED_ROWS = "token_adapter.trainable_tokens_delta"
"""peft's name of the tensor of `TrainedRows`."""


def weight_of(base: nn.Module) -> Tensor:
    """Return a layer's weight, (O, I) or (V, D), dequantized if it is quantized."""
    dequantized = getattr(base, "dequantized", None)
    return cast(Tensor, base.weight if dequantized is None else dequantized())


def _scaled_as(base: nn.Module, vectors: Tensor) -> Tensor:
    """Return vectors multiplied by the constant of an embedding, if it has one."""
    return base.scaled(vectors) if isinstance(base, ScaledEmbedding) else vectors


class Update(nn.Module):
    """How one adapter changes a module's output: the base class of all types of adapters."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, out: Tensor, x: Tensor, base: nn.Module, strength: float) -> Tensor:
        """Return the module's output with this adapter's update.

        Args:
            out: The module's output, with the updates of earlier adapters.
            x: The module's input.
            base: The module.
            strength: A factor that multiplies the update, besides its scale.
        """
        raise NotImplementedError

    def merged(self, weight: Tensor, base: Tensor, strength: float) -> Tensor:
        """Return the module's weight with this adapter merged into it, float32.

        Args:
            weight: The weight with earlier adapters merged into it, float32.
            base: The module's own weight, float32.
            strength: As in `forward`.
        """
        raise NotImplementedError

    def merged_bias(self, bias: Tensor | None, strength: float) -> Tensor | None:
        """Return the module's bias with this adapter merged into it."""
        return bias

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors by peft's names, without the path of the module."""
        raise NotImplementedError


class Adapter(Update):
    """A low-rank update of a linear layer, ``scale * B @ A``; with a magnitude vector, DoRA.

    With ``initial`` matrices (PiSSA, OLoRA) the layer computes with its weight minus ``scale * B0 @ A0``; the stored
    weight does not change.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; Liu et al. 2024, arXiv:2402.09353, eq. 5 and section 4.3;
    Meng et al. 2024, arXiv:2404.02948, section 3.
    """

    initial_A: Tensor | None
    initial_B: Tensor | None

    def __init__(
        self,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: float,
        dropout: float = 0.0,
        bias: Tensor | None = None,
        magnitude: Tensor | None = None,
        initial: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__(scale)
        self.lora_A = nn.Parameter(lora_A)
        self.lora_B = nn.Parameter(lora_B)
        self.lora_bias = None if bias is None else nn.Parameter(bias)
        self.lora_magnitude_vector = None if magnitude is None else nn.Parameter(magnitude)
        self.dropout = dropout
        self.register_buffer("initial_A", None if initial is None else initial[0], persistent=False)
        self.register_buffer("initial_B", None if initial is None else initial[1], persistent=False)

    def forward(self, out: Tensor, x: Tensor, base: nn.Module, strength: float) -> Tensor:
        """Return the layer's output with this adapter's update, (..., O)."""
        x = x.to(self.lora_A.dtype)
        if self.initial_A is not None and self.initial_B is not None:
            out = out - functional.linear(functional.linear(x, self.initial_A), self.initial_B) * self.scale
        dropped = functional.dropout(x, self.dropout, self.training)
        added = functional.linear(functional.linear(dropped, self.lora_A), self.lora_B, self.lora_bias)
        added = added * (self.scale * strength)
        if self.lora_magnitude_vector is None:
            return out + added
        weight_OI = self.without_initial(weight_of(base).to(x.dtype))
        # Detached: section 4.3 of the DoRA paper.
        norm_O = torch.linalg.norm(weight_OI + self.update(strength).to(x.dtype).detach(), dim=1).detach()
        ratio_O = self.lora_magnitude_vector / norm_O
        if self.training and self.dropout:
            plain = functional.linear(dropped, weight_OI)
        else:
            plain = out - base.bias if isinstance(base.bias, Tensor) else out
        return out + (ratio_O - 1) * plain + ratio_O * added

    def update(self, strength: float = 1.0) -> Tensor:
        """Return the update of the layer's weight, float32 (O, I)."""
        product_OI: Tensor = self.lora_B.float() @ self.lora_A.float()
        return product_OI * (self.scale * strength)

    def without_initial(self, weight_OI: Tensor) -> Tensor:
        """Return a weight minus ``scale * B0 @ A0``, (O, I)."""
        if self.initial_A is None or self.initial_B is None:
            return weight_OI
        return weight_OI - (self.scale * (self.initial_B.float() @ self.initial_A.float())).to(weight_OI.dtype)

    def merged(self, weight: Tensor, base: Tensor, strength: float) -> Tensor:
        """Return the layer's weight with this adapter merged into it, float32 (O, I)."""
        update_OI = self.update(strength)
        total_OI = self.without_initial(weight) + update_OI
        if self.lora_magnitude_vector is not None:
            norm_O = torch.linalg.norm(self.without_initial(base) + update_OI, dim=1)
            total_OI = total_OI * (self.lora_magnitude_vector.float() / norm_O)[:, None]
        return total_OI

    def merged_bias(self, bias: Tensor | None, strength: float) -> Tensor | None:
        """Return the layer's bias with this adapter merged into it, (O,)."""
        if self.lora_bias is None or bias is None:
            return bias
        return bias + self.lora_bias.float() * (self.scale * strength)

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors by peft's names."""
        tensors = {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B}
        if self.lora_bias is not None:
            tensors["lora_B.bias"] = self.lora_bias
        if self.lora_magnitude_vector is not None:
            tensors["lora_magnitude_vector"] = self.lora_magnitude_vector
        return dict(tensors)


class EmbeddingAdapter(Update):
    """A low-rank update of an embedding, ``scale * (B @ A).T``; with a magnitude vector, DoRA."""

    def __init__(self, lora_A: Tensor, lora_B: Tensor, scale: float, magnitude: Tensor | None = None) -> None:
        super().__init__(scale)
        self.lora_embedding_A = nn.Parameter(lora_A)
        self.lora_embedding_B = nn.Parameter(lora_B)
        self.lora_magnitude_vector = None if magnitude is None else nn.Parameter(magnitude)

    def forward(self, out: Tensor, x: Tensor, base: nn.Module, strength: float) -> Tensor:
        """Return the embeddings of the ids with this adapter's update, (B, T, D)."""
        added_BTD = functional.linear(functional.embedding(x, self.lora_embedding_A.T), self.lora_embedding_B)
        out = out + _scaled_as(base, added_BTD) * (self.scale * strength)
        if self.lora_magnitude_vector is not None:
            norm_D = torch.linalg.norm(weight_of(base) + self.update(strength).detach(), dim=0).detach()
            out = out * (self.lora_magnitude_vector / norm_D)
        return out

    def update(self, strength: float = 1.0) -> Tensor:
        """Return the update of the embedding's weight, float32 (V, D)."""
        product_DV: Tensor = self.lora_embedding_B.float() @ self.lora_embedding_A.float()
        return product_DV.T * (self.scale * strength)

    def merged(self, weight: Tensor, base: Tensor, strength: float) -> Tensor:
        """Return the embedding's weight with this adapter merged into it, float32 (V, D)."""
        update_VD = self.update(strength)
        total_VD = weight + update_VD
        if self.lora_magnitude_vector is not None:
            total_VD = total_VD * (self.lora_magnitude_vector.float() / torch.linalg.norm(base + update_VD, dim=0))
        return total_VD

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors by peft's names."""
        tensors = {"lora_embedding_A": self.lora_embedding_A, "lora_embedding_B": self.lora_embedding_B}
        if self.lora_magnitude_vector is not None:
            tensors["lora_magnitude_vector"] = self.lora_magnitude_vector
        return dict(tensors)


class TrainedRows(Update):
    """Trained rows of an embedding or head that replace the base's rows (peft's ``trainable_token_indices``).

    A tied head and its embedding share one object.
    """

    index_K: Tensor

    def __init__(self, index_K: Tensor, rows_KD: Tensor) -> None:
        super().__init__()
        self.register_buffer("index_K", index_K, persistent=False)
        self.trainable_tokens_delta = nn.Parameter(rows_KD)

    def forward(self, out: Tensor, x: Tensor, base: nn.Module, strength: float) -> Tensor:
        """Return the output with these rows, (B, T, D) of an embedding or (B, T, V) of a head."""
        rows_KD = self.trainable_tokens_delta.to(out.dtype)
        if not isinstance(base, nn.Embedding):
            return out.index_copy(-1, self.index_K, functional.linear(x.to(out.dtype), rows_KD))
        is_row_BTK = x[..., None] == self.index_K
        rows_BTD = _scaled_as(base, rows_KD)[is_row_BTK.int().argmax(-1)]
        return torch.where(is_row_BTK.any(-1, keepdim=True), rows_BTD, out)

    def merged(self, weight: Tensor, base: Tensor, strength: float) -> Tensor:
        """Return the weight with these rows, float32 (V, D)."""
        return weight.index_copy(0, self.index_K, self.trainable_tokens_delta.float())

    def stored(self) -> dict[str, Tensor]:
        """Return the tensor by peft's name."""
        return {TRAINED_ROWS: self.trainable_tokens_delta}


class Replacement(nn.Module):
    """A copy of a module with an adapter's own values of some parameters; the other parameters are shared.

    peft's ``modules_to_save`` replaces all parameters of a module, its ``bias`` option the biases.

    Args:
        base: The module.
        own: The adapter's parameters by name.
        trained: Whether they are trained when the adapter is active.
    """

    def __init__(self, base: nn.Module, own: Mapping[str, Tensor], trained: bool) -> None:
        super().__init__()
        shared = {**dict(base.named_parameters()), **dict(base.named_buffers())}
        memo = {id(tensor): tensor for name, tensor in shared.items() if name not in own}
        for name, tensor in own.items():
            like = shared[name]
            memo[id(like)] = nn.Parameter(tensor.to(like.device, like.dtype, copy=True), requires_grad=False)
        self.module = copy.deepcopy(base, memo)
        self.own = tuple(own)
        self.trained = trained

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the copy's output; a float32 bias beside a bfloat16 weight is allowed."""
        module = self.module
        if x.is_floating_point():
            x = x.to(next(module.parameters()).dtype)
        if isinstance(module, nn.Linear) and module.bias is not None and module.bias.dtype != module.weight.dtype:
            return functional.linear(x, module.weight) + module.bias
        return module(x, *args, **kwargs)

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are not shared with the base."""
        return {name: self.module.get_parameter(name) for name in self.own}


class AdaptedLayer(nn.Module):
    """A frozen module, quantized or not, with adapters; the active ones change its output in order."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapters = nn.ModuleDict()
        self.replacements = nn.ModuleDict()
        self.active: tuple[tuple[str, float], ...] = ()
        """The names of the active adapters, and the strength of each update."""
        self.unmerged: dict[str, Tensor] | None = None
        """The parameters before adapters were merged into them; None if none are merged."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output with the active adapters' updates, of the shape and dtype of the module's output."""
        replacement = None if self.unmerged is not None else self.replacement()
        if replacement is None:
            base, out = self.base_layer, self.base_layer(x, *args, **kwargs)
            dtype = out.dtype
        else:
            base, out = replacement.module, replacement(x, *args, **kwargs)
            dtype = x.dtype if x.is_floating_point() else next(self.base_layer.parameters()).dtype
        if self.unmerged is None:
            for name, strength in self.active:
                if name in self.adapters:
                    out = self.adapters[name](out, x, base, strength)
        return out.to(dtype)

    def replacement(self) -> Replacement | None:
        """Return the active replacement of the module, or None."""
        return next((self.replacement_of(name) for name, _ in self.active if name in self.replacements), None)

    def replacement_of(self, name: str) -> Replacement:
        """Return the replacement of the adapter with this name."""
        return cast(Replacement, self.replacements[name])

    def adapter(self, name: str) -> Update:
        """Return the update of the adapter with this name."""
        return cast(Update, self.adapters[name])

    def names(self) -> set[str]:
        """Return the names of the adapters that change this module."""
        return {*self.adapters, *self.replacements}

    def learned(self, name: str) -> Iterator[nn.Parameter]:
        """Yield the trained parameters of an adapter."""
        if name in self.adapters:
            yield from self.adapters[name].parameters()
        if name in self.replacements and self.replacement_of(name).trained:
            yield from self.replacement_of(name).own_parameters().values()

    def changed(self) -> set[str]:
        """Return the names of the base's parameters that merging the active adapters would change."""
        replacement, names = self.replacement(), {name for name, _ in self.active}
        own = set() if replacement is None else set(replacement.own)
        updates = [self.adapter(name) for name in names if name in self.adapters]
        if updates:
            own.add("weight")
        if any(isinstance(update, Adapter) and update.lora_bias is not None for update in updates):
            own.add("bias")
        return own

    def merge(self) -> None:
        """Merge the active adapters into the base's parameters."""
        base, changed = self.base_layer, self.changed()
        replacement = self.replacement()
        source = base if replacement is None else replacement.module
        values = {name: source.get_parameter(name).float() for name in changed}
        updates = [(self.adapter(name), strength) for name, strength in self.active if name in self.adapters]
        for update, strength in updates:
            values["weight"] = update.merged(values["weight"], weight_of(source).float(), strength)
            bias = update.merged_bias(values.get("bias"), strength)
            if bias is not None:
                values["bias"] = bias
        self.unmerged = {name: base.get_parameter(name).detach().clone() for name in changed}
        for name, value in values.items():
            base.get_parameter(name).copy_(value)

    def unmerge(self) -> None:
        """Restore the exact values that the base's parameters had before `merge`."""
        for name, value in (self.unmerged or {}).items():
            self.base_layer.get_parameter(name).copy_(value)
        self.unmerged = None


class LoraLinear(AdaptedLayer):
    """A linear layer with adapters."""


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer, quantized or not."""
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def base_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of the model without its adapters, with their paths in that model, outer ones first.

    Parts of `SplitExperts` are left out: peft knows no such modules.
    """
    for name, child in model.named_children():
        base = child.base_layer if isinstance(child, AdaptedLayer) else child
        yield prefix + name, base
        if not isinstance(base, SplitExperts):
            yield from base_modules(base, f"{prefix}{name}.")


def parent_of(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module that contains a path of the model without adapters, and the last name of the path."""
    parent: nn.Module = model
    *names, last = path.split(".")
    for name in names:
        parent = getattr(parent, name)
        parent = parent.base_layer if isinstance(parent, AdaptedLayer) else parent
    return parent, last


def adapted_layers(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, AdaptedLayer]]:
    """Yield the modules with adapters, with their paths in the model without adapters."""
    for name, child in model.named_children():
        if isinstance(child, AdaptedLayer):
            yield prefix + name, child
        base = child.base_layer if isinstance(child, AdaptedLayer) else child
        yield from adapted_layers(base, f"{prefix}{name}.")
