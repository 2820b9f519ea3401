"""LoRA: small trainable matrices beside frozen weights, in the format of the peft library.

Shapes: ``B`` batch, ``T`` length, ``I`` in_features, ``O`` out_features, ``R`` rank.

Example:
    >>> from bpe_llama.model import LlamaConfig, LlamaForCausalLM, lora
    >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
    ...                      num_attention_heads=2)
    >>> model = lora.add(LlamaForCausalLM(config), rank=2, target_modules=("q_proj", "v_proj"))
    >>> sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    128
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama._files import written_whole

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_UNSUPPORTED = ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias")

AnyModel = TypeVar("AnyModel", bound=nn.Module)


class Adapter(nn.Module):
    """One low-rank update: ``scale * B @ A``.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float, dropout: float, like: Tensor) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.zeros(rank, inputs, dtype=like.dtype, device=like.device))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, dtype=like.dtype, device=like.device))
        self.scale = scale
        self.dropout = dropout

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Return what this adapter adds to the layer's output, (B, T, O)."""
        x_BTI = functional.dropout(x_BTI, self.dropout, self.training)
        return functional.linear(functional.linear(x_BTI, self.lora_A), self.lora_B) * self.scale

    def update(self) -> Tensor:
        """Return what this adapter adds to the layer's weight, float32 (O, I)."""
        return self.scale * (self.lora_B.float() @ self.lora_A.float())


class LoraLinear(nn.Module):
    """A frozen linear layer, of any number format, and its adapters; those in ``active`` take part."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapters = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.unmerged: Tensor | None = None
        """The weight as it was before adapters were merged into it; None while they are not."""

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Return the layer's output with the active adapters' added, (B, T, O)."""
        out: Tensor = self.base_layer(x_BTI)
        if self.unmerged is None:
            for name in self.active:
                adapter = self.adapter(name)
                out = out + adapter(x_BTI.to(adapter.lora_A.dtype)).to(out.dtype)
        return out

    def adapter(self, name: str) -> Adapter:
        """Return the adapter of that name."""
        adapter = self.adapters[name]
        assert isinstance(adapter, Adapter)  # nothing else is put there; for the type checker
        return adapter


def add(
    model: AnyModel,
    rank: int = 8,
    alpha: float = 16.0,
    target_modules: Collection[str] = ("q_proj", "v_proj"),
    name: str = "default",
    dropout: float = 0.0,
    seed: int = 0,
) -> AnyModel:
    """Put an adapter beside every linear layer so named, make it the active one, and freeze all else; return the model.

    A new adapter adds nothing until it is trained: its second matrix is zero.

    Args:
        model: Any model of this package; its layers may be quantised.
        rank: Of the update.
        alpha: The update is scaled by ``alpha / rank``.
        target_modules: Last parts of module names.
        name: Of the adapter; several may sit side by side.
        dropout: Share of inputs the adapter does not see while training.
        seed: Of the first matrix.

    Raises:
        ValueError: If a number is out of range, the name is taken or holds a dot, or no layer is so named.
    """
    if rank < 1 or not 0 <= dropout < 1:
        raise ValueError(f"rank is {rank} and dropout {dropout}; expected at least 1, and a number in [0, 1)")
    wanted = [path for path in _linear_paths(model) if path.rpartition(".")[2] in target_modules]
    if not wanted:
        raise ValueError(f"no linear layer is named {', '.join(sorted(target_modules))}")
    for weight in model.parameters():
        weight.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for path in wanted:
        adapter = _insert(model, path, name, rank, alpha / rank, dropout)
        bound = 1 / math.sqrt(adapter.lora_A.shape[1])
        drawn = torch.empty(adapter.lora_A.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            adapter.lora_A.copy_(drawn)
    activate(model, name)
    return model


def activate(model: nn.Module, *names: str) -> None:
    """Let these adapters take part (their updates add up), and no others; none leaves the bare model.

    Only active adapters are trained.

    Raises:
        ValueError: If there is no such adapter, or adapters are merged.
    """
    known = sorted({name for layer in _layers(model) for name in layer.adapters})
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"no adapter is named {', '.join(unknown)}; there are {', '.join(known) or 'none'}")
    for layer in _layers(model):
        if layer.unmerged is not None:
            raise ValueError("adapters are merged into the weights; unmerge them first")
        layer.active = tuple(name for name in names if name in layer.adapters)
        for name, adapter in layer.adapters.items():
            adapter.requires_grad_(name in names)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add the active adapters to the weights, so that they cost no time; the old weights are kept for `unmerge`.

    Raises:
        ValueError: If a weight is quantised, for it could not hold the sum, or is another module's too, as a tied
            head's is, for that would change with it.
    """
    layers = [layer for layer in _layers(model) if layer.active and layer.unmerged is None]
    for layer in layers:
        if not isinstance(layer.base_layer, nn.Linear):
            raise ValueError(
                f"a {type(layer.base_layer).__name__} cannot hold what an adapter adds; dequantize it first"
            )
    if shared := shared_layers(model):
        raise ValueError(f"the weight of {', '.join(shared)} is another module's too, which must not change")
    for layer in layers:
        weight = layer.base_layer.weight
        assert isinstance(weight, Tensor)  # what an nn.Linear holds; for the type checker
        layer.unmerged = weight.clone()
        total = weight.float()
        for name in layer.active:
            total = total + layer.adapter(name).update()
        weight.copy_(total)


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Give the weights back exactly the values they had before `merge`."""
    for layer in _layers(model):
        if layer.unmerged is not None:
            weight = layer.base_layer.weight
            assert isinstance(weight, Tensor)
            weight.copy_(layer.unmerged)
            layer.unmerged = None


def shared_layers(model: nn.Module) -> list[str]:
    """Return the paths of the layers under active adapters whose weight another module holds as well: a tied head.

    Example:
        >>> from bpe_llama.model import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, tie_word_embeddings=True)
        >>> shared_layers(add(LlamaForCausalLM(config), target_modules=("q_proj", "lm_head")))
        ['lm_head']
    """
    holders = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    return [
        path
        for path, layer in _named_layers(model)
        if layer.active and any(holders[id(weight)] > 1 for weight in layer.base_layer.parameters(recurse=False))
    ]


def remove(model: AnyModel) -> AnyModel:
    """Take all adapters away and return the model; what was merged stays in the weights."""
    for path, layer in [(path, m) for path, m in model.named_modules() if isinstance(m, LoraLinear)]:
        _replace(model, path, layer.base_layer)
    return model


def names(model: nn.Module) -> list[str]:
    """Return the names of the adapters that sit in the model, sorted; none if it is bare."""
    return sorted({name for layer in _layers(model) for name in layer.adapters})


def save(model: nn.Module, folder: str | Path, name: str = "default", base: str | None = None) -> None:
    """Write one adapter, and nothing of the model, into a folder that peft loads.

    Args:
        model: With the adapter.
        folder: Made if need be; each file in it appears whole or not at all.
        name: Of the adapter.
        base: Noted in the file as the model that the adapter belongs to.

    Raises:
        ValueError: If there is no such adapter.
    """
    found = _adapters(model, name)
    tensors = {}
    for path, adapter in found.items():
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = adapter.lora_A.detach().contiguous()
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = adapter.lora_B.detach().contiguous()
    first = next(iter(found.values()))
    rank = first.lora_A.shape[0]
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": first.scale * rank,
        "lora_dropout": first.dropout,
        "target_modules": sorted({path.rpartition(".")[2] for path in found}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "base_model_name_or_path": base,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    with written_whole(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def load(model: AnyModel, folder: str | Path, name: str = "default") -> AnyModel:
    """Put the adapter that peft or `save` wrote into a folder beside the model's layers, and make it the active one.

    Raises:
        FileNotFoundError: If the folder holds no adapter.
        ValueError: If a file is damaged, the adapter is not plain LoRA, or it does not fit the model.
    """
    source = Path(folder) / WEIGHTS
    pairs, rank, scale, dropout = _read(Path(folder))
    sizes = _linear_paths(model)
    for path, (down_RI, up_OR) in pairs.items():
        if path not in sizes:
            raise ValueError(f"{source}: adapts {path}, which the model does not have")
        inputs, outputs = sizes[path]
        if down_RI.shape != (rank, inputs) or up_OR.shape != (outputs, rank):
            raise ValueError(
                f"{source}: the update of {path} is {list(up_OR.shape)} by {list(down_RI.shape)}; "
                f"expected {[outputs, rank]} by {[rank, inputs]}"
            )
    for weight in model.parameters():
        weight.requires_grad_(False)
    for path, (down_RI, up_OR) in pairs.items():
        adapter = _insert(model, path, name, rank, scale, dropout)
        with torch.no_grad():
            adapter.lora_A.copy_(down_RI)
            adapter.lora_B.copy_(up_OR)
    activate(model, name)
    return model


@torch.no_grad()
def restore(model: nn.Module, folder: str | Path, name: str = "default") -> None:
    """Give the model's own adapter of that name the numbers that `save` wrote; nothing else about it changes.

    Raises:
        FileNotFoundError: If the folder holds no adapter.
        ValueError: If a file is damaged, or its adapter is not of the same layers, sizes and scale.
    """
    adapters = _adapters(model, name)
    pairs, _, scale, _ = _read(Path(folder))
    wrong = sorted(pairs.keys() ^ adapters.keys())
    for path in pairs.keys() & adapters.keys():
        ours = adapters[path]
        if (ours.lora_A.shape, ours.lora_B.shape) != (pairs[path][0].shape, pairs[path][1].shape):
            wrong.append(path)
    if wrong:
        raise ValueError(f"{folder}: the adapter is of other layers or of another rank: {', '.join(wrong[:8])} differ")
    scales = {adapter.scale for adapter in adapters.values()}
    if any(not math.isclose(ours, scale) for ours in scales):
        raise ValueError(f"{folder}: the adapter's scale, alpha / rank, is {scale}; expected {scales.pop()}")
    for path, (down_RI, up_OR) in pairs.items():
        adapters[path].lora_A.copy_(down_RI)
        adapters[path].lora_B.copy_(up_OR)


def _adapters(model: nn.Module, name: str) -> dict[str, Adapter]:
    found = {path: layer.adapter(name) for path, layer in _named_layers(model) if name in layer.adapters}
    if not found:
        raise ValueError(f"no adapter is named {name!r}")
    return found


def _read(folder: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], int, float, float]:
    """Return a stored adapter: the two matrices of each layer, their rank and scale, and the dropout."""
    try:
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, rank, alpha = described["peft_type"], int(described["r"]), float(described["lora_alpha"])
        scale = alpha / math.sqrt(rank) if described.get("use_rslora") else alpha / rank
        dropout = float(described.get("lora_dropout", 0.0))
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{folder / CONFIG}: does not describe a LoRA adapter ({error!r})") from error
    unsupported = [key for key in _UNSUPPORTED if described.get(key)]
    if kind != "LORA" or unsupported or described.get("bias", "none") != "none":
        raise ValueError(f"{folder / CONFIG}: {kind} with {', '.join(unsupported) or 'bias'}; only plain LoRA is known")
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS}: damaged or not a safetensors file ({error})") from error
    return _pairs(tensors, folder / WEIGHTS), rank, scale, dropout


def _pairs(tensors: Mapping[str, Tensor], source: Path) -> dict[str, tuple[Tensor, Tensor]]:
    pairs = {}
    for key, down in tensors.items():
        path, found, _ = key.removeprefix(_PREFIX).partition(".lora_A.weight")
        if found:
            up = tensors.get(key.replace(".lora_A.", ".lora_B."))
            if up is None:
                raise ValueError(f"{source}: holds {key} but not its lora_B")
            pairs[path] = (down, up)
    if 2 * len(pairs) != len(tensors):
        extra = [key for key in tensors if ".lora_A.weight" not in key and ".lora_B.weight" not in key]
        raise ValueError(f"{source}: holds other tensors than pairs of lora_A and lora_B: {', '.join(extra)}")
    return pairs


def _linear_paths(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the path of every linear layer, without ``.base_layer``, and its (in, out) sizes."""
    return {
        path.removesuffix(".base_layer"): (int(module.in_features), int(module.out_features))
        for path, module in model.named_modules()
        if hasattr(module, "in_features") and hasattr(module, "out_features")
    }


def _insert(model: nn.Module, path: str, name: str, rank: int, scale: float, dropout: float) -> Adapter:
    if not name or "." in name:
        raise ValueError(f"an adapter cannot be named {name!r}")
    inputs, outputs = _linear_paths(model)[path]
    layer = model.get_submodule(path)
    if not isinstance(layer, LoraLinear):
        layer = LoraLinear(layer)
        _replace(model, path, layer)
    if name in layer.adapters:
        raise ValueError(f"an adapter named {name!r} is there already")
    like = next((t for t in layer.base_layer.parameters() if t.is_floating_point()), None)
    if like is None or like.element_size() == 1:  # beside a quantised weight, in the number format of the rest
        like = next(t for t in model.parameters() if t.is_floating_point() and t.element_size() > 1)
    adapter = Adapter(inputs, outputs, rank, scale, dropout, like)
    adapter.train(layer.training)
    layer.adapters[name] = adapter
    return adapter


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, last = path.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _named_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    return ((path, module) for path, module in model.named_modules() if isinstance(module, LoraLinear))


def _layers(model: nn.Module) -> list[LoraLinear]:
    return [layer for _, layer in _named_layers(model)]
