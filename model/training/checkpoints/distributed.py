"""The optimizer's state of sharded runs: a folder of safetensors files, written and read by all ranks at once.

`torch.distributed.checkpoint` (DCP) plans which rank writes or reads which part, so any number of ranks reads what
another number wrote. Its safetensors reader is used; its default format unpickles.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor

from bpe_llama.model.pretrained import Pretrained
from bpe_llama.model.training.parallel import Ranks


def save_shards(folder: Path, tensors: dict[str, Tensor], ranks: Ranks) -> Path:
    """Write each rank's parts of the tensors to files in a new folder, and return it; an error is raised on all."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    ranks.on_main(lambda: shutil.rmtree(folder, ignore_errors=True))  # left by a killed process
    try:
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        save(tensors, storage_writer=writer, process_group=ranks.control)
    except CheckpointException as error:
        rank, (failure, _) = next(iter(error.failures.items()))
        reason = getattr(failure, "strerror", None) or str(failure)
        raise OSError(f"rank {rank}: {reason}") from None
    return folder


def load_shards(path: Path, model: Pretrained) -> dict[str, Tensor]:
    """Return the tensors `weight.quantity`, for the weights of `model`, of a safetensors file or of all in a folder.

    A tensor with the shape of its weight is sharded as the weight is. A missing file or part is a `ValueError`.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    folder = path if path.is_dir() else path.parent  # the reader takes all files of a folder
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{path.name}: there is no such file")
    reader = HuggingFaceStorageReader(str(folder))
    weights = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {}
    for name, stored in reader.read_metadata().state_dict_metadata.items():
        weight = weights.get(name.rpartition(".")[0])
        if weight is None or not isinstance(stored, TensorStorageMetadata):  # a weight itself
            continue
        if sum(chunk.sizes.numel() for chunk in stored.chunks) != stored.size.numel():
            raise ValueError(f"{path.name}: {name} is not complete")
        if stored.size == weight.shape:
            tensors[name] = torch.zeros_like(weight, dtype=stored.properties.dtype, requires_grad=False)
        else:
            tensors[name] = torch.zeros(stored.size, dtype=stored.properties.dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # each rank reads its own parts, as is meant
            load(tensors, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        failure, _ = next(iter(error.failures.values()))
        raise ValueError(str(failure)) from None
    return tensors
