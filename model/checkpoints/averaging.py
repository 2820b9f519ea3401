"""The mean of several checkpoints of one shape, read tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from bpe_llama._core import shown
from bpe_llama.model.checkpoints.assemble import empty_model, fill
from bpe_llama.model.checkpoints.huggingface import Checkpoint, open_checkpoint
from bpe_llama.model.checkpoints.tensor_files import read_one
from bpe_llama.model.device import resolve_device
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import Pretrained


def average(
    folders: Sequence[str | Path],
    weights: Sequence[float] | None = None,
    *,
    model_class: type[Pretrained] = LlamaForCausalLM,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Pretrained:
    """Return the model with the mean of the weights of several Hugging Face folders, in evaluation mode.

    The sums are float64. Checkpoints late in one run, or fine-tuned from one model, are close enough for their mean to
    be a good model.

    Args:
        folders: At least one; the first one's generation config is kept.
        weights: The weight of each folder in the mean, above 0; by default all alike. Only their ratios matter.
        model_class: The class of the result.
        dtype: ``"auto"`` is the first folder's.
        device: Device of the result.
        progress: Called after each tensor with the tensors read so far and their total.

    Raises:
        FileNotFoundError: If a folder lacks its config or weights.
        ValueError: If folders differ in an option of the config besides ``dtype`` or in their tensors, a weight is not
            a finite number above 0, or a mean is not finite; it names folder, option or tensor.

    Cost: memory for one model and, in float64, two copies of its largest tensor.

    Source: Izmailov et al. 2018, arXiv:1803.05407, section 3; Wortsman et al. 2022, arXiv:2203.05482, section 2.

    Example:
        >>> average(["run/step-00001000", "run/step-00002000"]).save_pretrained("mean")  # doctest: +SKIP
    """
    if isinstance(folders, str | Path) or not folders:
        raise ValueError(f"folders is {shown(folders)}; expected a list of at least one folder")
    shares = [1.0] * len(folders) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(folders):
        raise ValueError(f"{len(shares)} weights for {len(folders)} checkpoints; expected one for each")
    for folder, share in zip(folders, shares, strict=True):
        if not (math.isfinite(share) and share > 0):
            raise ValueError(f"{folder}: its weight is {share}; expected a finite number above 0")
        if Path(folder).is_file():
            raise ValueError(f"{folder}: a file; expected a Hugging Face folder, such as `bpe-llama convert` writes")
    found = [open_checkpoint(folder, model_class, dtype) for folder in folders]
    for other in found:
        _check_alike(found[0], other)
    model = empty_model(found[0].config, found[0].dtype, resolve_device(device), model_class)
    model.generation_config = found[0].generation_config
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}  # of a router's bias always float32
    return fill(model, _means(found, shares, dtypes), progress, len(found[0].tensors))


def _check_alike(first: Checkpoint, other: Checkpoint) -> None:
    if other.uninitialized:
        raise ValueError(f"{other.folder}: holds no {other.uninitialized[0]}")
    for field in fields(first.config):
        ours, theirs = getattr(first.config, field.name), getattr(other.config, field.name)
        if ours != theirs and field.name != "dtype":
            raise ValueError(
                f"{other.folder}: {field.name} is {shown(theirs)}, but {ours!r} in {first.folder}; expected "
                "checkpoints of one config"
            )


def _means(
    found: Sequence[Checkpoint], shares: Sequence[float], dtypes: Mapping[str, torch.dtype]
) -> Iterator[tuple[str, Tensor]]:
    for name in found[0].tensors:
        total: Tensor | None = None
        for checkpoint, share in zip(found, shares, strict=True):
            part = read_one(*checkpoint.tensors[name]).double().mul_(share)
            total = part if total is None else total.add_(part)
        assert total is not None  # for the type checker
        mean = total.div_(sum(shares)).to(dtypes[name])
        if not mean.isfinite().all():
            raise ValueError(f"{name}: the mean of {', '.join(str(one.folder) for one in found)} is not finite")
        yield name, mean
