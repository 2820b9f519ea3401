"""Matrix products of the layers in float8, by torchao."""

from __future__ import annotations

import torch
from torch import nn

from bpe_llama.model.layers.moe.fused import fused_weights
from bpe_llama.model.pretrained import Pretrained

_MULTIPLE = 16  # float8 products need sizes of this multiple
_CAPABILITY = (8, 9)


def use_float8(model: Pretrained, device: torch.device, *, emulate: bool = False) -> None:
    """Let the linear layers of `model` multiply in float8 in training; weights and state keep their dtype and names.

    Activations, weights and gradients are scaled per tensor. The head, and layers with a size that is no multiple of
    16, stay as they are.

    `emulate` rounds to float8 but multiplies in the original dtype, on any device: for tests.

    Raises:
        ImportError: If torchao is not installed.
        ValueError: If the device cannot multiply float8, or the weights of all experts are in one tensor (Llama 4).

    Source: Micikevicius et al. 2022, arXiv:2209.05433.
    """
    if not emulate and (device.type != "cuda" or torch.cuda.get_device_capability(device) < _CAPABILITY):
        raise ValueError(
            f"dtype is 'float8' and the device {device}; expected a GPU of capability 8.9 (Ada, Hopper) or later"
        )
    fused = fused_weights(model)
    if fused:
        raise ValueError(
            f"dtype is 'float8', but {fused[0]} has the weights of all experts in one tensor, not a linear layer; "
            "expected bfloat16"
        )
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ImportError("float8 training needs torchao: pip install 'bpe_llama[float8]'") from error

    def converts(module: nn.Module, name: str) -> bool:
        sizes = (module.in_features, module.out_features) if isinstance(module, nn.Linear) else ()
        return name != "lm_head" and all(size % _MULTIPLE == 0 for size in sizes)

    convert_to_float8_training(model, module_filter_fn=converts, config=Float8LinearConfig(emulate=emulate))
