"""Adds adapters to a model's modules, loaded ones and new ones with their initial matrices.

Shapes: ``I`` in_features, ``O`` out_features, ``Q`` the smaller of both, ``R`` rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from bpe_llama._core import shown
from bpe_llama.model.adapters.config import OFFSET_INITS, AdapterConfig
from bpe_llama.model.adapters.files import (
    ModuleTensors,
    expected_shapes,
    rows_of,
    saved_modules,
    targeted,
    tied_to_embedding,
    trained_biases,
)
from bpe_llama.model.adapters.layers import (
    TRAINED_ROWS,
    AdaptedLayer,
    Adapter,
    EmbeddingAdapter,
    LoraLinear,
    Replacement,
    TrainedRows,
    Update,
    base_modules,
    is_linear,
    parent_of,
    weight_of,
)


def prepare(
    config: AdapterConfig, parts: Mapping[str, ModuleTensors], model: nn.Module
) -> dict[str, tuple[Update | None, Replacement | None]]:
    """Return an adapter's update and replacement of each module, by path; the model does not change.

    Raises:
        ValueError: If the base weight that ``init_lora_weights`` implies cannot be computed, or two updates conflict;
            it names the layer.
    """
    bases = dict(base_modules(model))
    prepared: dict[str, tuple[Update | None, Replacement | None]] = {}
    for path, part in parts.items():
        replacement = Replacement(bases[path], part.own, part.trained) if part.own else None
        update = _update(config, path, part, bases[path], bases) if part.update else None
        prepared[path] = update, replacement
        if isinstance(update, TrainedRows):
            for head in tied_to_embedding(bases):
                if bases[head].weight is not bases[path].weight:
                    continue
                if head in parts and parts[head].update and not parts[head].rows:
                    raise ValueError(
                        f"trainable_token_indices changes rows of {path}, to which {head} is tied, "
                        f"and {head} has another update, too; expected one of them"
                    )
                if head not in parts:
                    prepared[head] = update, None
    return prepared


def inject(model: nn.Module, name: str, prepared: Mapping[str, tuple[Update | None, Replacement | None]]) -> None:
    """Add what `prepare` returned to the modules of a model, in its train or eval mode."""
    for path, (update, replacement) in prepared.items():
        layer = _adapted_layer(model, path)
        for module, modules in ((update, layer.adapters), (replacement, layer.replacements)):
            if module is not None:
                modules[name] = module.train(model.training)


def initial_parts(config: AdapterConfig, model: nn.Module, seed: int) -> dict[str, ModuleTensors]:
    """Return a new adapter's tensors by path; until they are trained the model's output does not change.

    Raises:
        ValueError: If a new adapter cannot have this ``init_lora_weights``, or the rows to train do not exist.
    """
    bases = dict(base_modules(model))
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, ModuleTensors] = {}
    if config.init_lora_weights not in (True, False, "gaussian", *OFFSET_INITS):
        raise ValueError(
            f"init_lora_weights is {shown(config.init_lora_weights)}; expected true, false, 'gaussian', "
            f"{', '.join(map(repr, OFFSET_INITS))}"
        )
    for path in targeted(config, bases):
        parts[path] = ModuleTensors(update=_initial_tensors(config, path, bases[path], generator))
    for path, index in rows_of(config, bases).items():
        rows = weight_of(bases[path])[torch.tensor(index, dtype=torch.int64, device=weight_of(bases[path]).device)]
        parts.setdefault(path, ModuleTensors()).update[TRAINED_ROWS] = rows
        parts[path].rows = index
    for path in saved_modules(config, bases):
        parts.setdefault(path, ModuleTensors()).own.update(dict(bases[path].named_parameters()))
        parts[path].trained = True
    for path in trained_biases(config, bases):
        parts.setdefault(path, ModuleTensors()).own["bias"] = bases[path].bias  # type: ignore[assignment]
        parts[path].trained = True
    return parts


def _initial_tensors(
    config: AdapterConfig, path: str, base: nn.Module, generator: torch.Generator
) -> dict[str, Tensor]:
    shapes = expected_shapes(config, path, base)
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    first, second = list(shapes)[:2]
    init, rank = config.init_lora_weights, config.rank(path)
    if isinstance(base, nn.Embedding):
        if init is False:
            tensors[first].normal_(generator=generator)
        tensors[second].normal_(generator=generator)
    elif init in OFFSET_INITS:
        tensors[first], tensors[second] = initial_matrices(config, path, base)
    elif init == "gaussian":
        tensors[first].normal_(0, 1 / rank, generator=generator)
    else:
        bound = 1 / math.sqrt(shapes[first][1])
        tensors[first].uniform_(-bound, bound, generator=generator)
        if init is False:
            tensors[second].uniform_(-1 / math.sqrt(rank), 1 / math.sqrt(rank), generator=generator)
    if config.use_dora:
        weight = weight_of(base).float().cpu()
        update = config.scale(path) * (tensors[second].cpu() @ tensors[first].cpu())
        if isinstance(base, nn.Embedding):
            tensors["lora_magnitude_vector"] = torch.linalg.norm(weight + update.T, dim=0)
        else:
            removed = update if init in OFFSET_INITS else torch.zeros(())
            tensors["lora_magnitude_vector"] = torch.linalg.norm(weight - removed + update, dim=1)
    return tensors


def initial_matrices(config: AdapterConfig, path: str, base: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the initial matrices of PiSSA or OLoRA, (R, I) and (O, R), computed from the layer's weight.

    Source: Meng et al. 2024, arXiv:2404.02948, eq. 2 and 3; Büyükakyüz 2024, arXiv:2406.01775, algorithm 1.
    """
    init, rank, scale = config.init_lora_weights, config.rank(path), config.scale(path)
    if not isinstance(base, nn.Linear):
        found = type(base).__name__
        raise ValueError(
            f"init_lora_weights is {shown(init)}, whose base is computed from whole weights, but {path} is "
            f"a {found}; load the adapter before quantizing"
        )
    weight_OI = base.weight.detach().float()
    if init == "olora":
        q_OQ, r_QI = torch.linalg.qr(weight_OI)
        return r_QI[:rank].contiguous(), q_OQ[:, :rank].contiguous()
    if not scale > 0:
        raise ValueError(f"init_lora_weights is {shown(init)}, but {path} is scaled by {scale}; expected above 0")
    left_OQ, size_Q, right_QI = torch.linalg.svd(weight_OI, full_matrices=False)
    root_R = (size_Q[:rank] / scale).sqrt()
    return root_R[:, None] * right_QI[:rank], left_OQ[:, :rank] * root_R


def _update(
    config: AdapterConfig,
    path: str,
    part: ModuleTensors,
    base: nn.Module,
    bases: Mapping[str, nn.Module],
) -> Update:
    device, dtype = next(chain(base.parameters(), base.buffers())).device, _dtype_of(base, bases)
    # Contiguous copies: the fused AdamW assumes that a weight and its moments have the same memory layout.
    given = {name: tensor.detach().to(device, dtype).contiguous().clone() for name, tensor in part.update.items()}
    if part.rows:
        rows = part.update[TRAINED_ROWS].detach()
        own = weight_of(base)
        return TrainedRows(
            torch.tensor(part.rows, dtype=torch.int64, device=device), rows.to(device, own.dtype, copy=True)
        )
    scale = config.scale(path)
    magnitude = given.get("lora_magnitude_vector")
    if isinstance(base, nn.Embedding):
        return EmbeddingAdapter(given["lora_embedding_A"], given["lora_embedding_B"], scale, magnitude)
    initial = None
    # peft stores an adapted head; the stored weight is the base, with the initial matrices already subtracted.
    if config.init_lora_weights in OFFSET_INITS and "weight" not in part.own:
        if path in tied_to_embedding(bases):
            init = config.init_lora_weights
            raise ValueError(
                f"init_lora_weights is {shown(init)}, which changes the base of {path}; "
                "expected it not tied to the embedding"
            )
        down_RI, up_OR = initial_matrices(config, path, base)
        initial = down_RI.to(dtype), up_OR.to(dtype)
    return Adapter(
        given["lora_A.weight"],
        given["lora_B.weight"],
        scale,
        config.lora_dropout,
        given.get("lora_B.bias"),
        magnitude,
        initial,
    )


def _adapted_layer(model: nn.Module, path: str) -> AdaptedLayer:
    """Return the `AdaptedLayer` of a module, which replaces the module if it has none yet."""
    parent, last = parent_of(model, path)
    layer = getattr(parent, last)
    if not isinstance(layer, AdaptedLayer):
        kind = LoraLinear if is_linear(layer) else AdaptedLayer
        layer = kind(layer)
        for part in (layer, layer.adapters, layer.replacements):
            part.training = model.training
        setattr(parent, last, layer)
    return layer


def _dtype_of(base: nn.Module, bases: Mapping[str, nn.Module]) -> torch.dtype:
    """Return the dtype of an adapter: as in peft at least float32, whatever the layer's dtype is."""
    like = next((t for t in base.parameters() if t.is_floating_point() and t.element_size() > 1), None)
    if like is None:
        every = (t for module in bases.values() for t in module.parameters(recurse=False))
        like = next(t for t in every if t.is_floating_point() and t.element_size() > 1)
    return torch.promote_types(like.dtype, torch.float32)
