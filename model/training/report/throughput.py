"""How much of the hardware training uses: floating-point operations a token, and the peak rate of the device.

Shapes: ``T`` sequence length, ``L`` layers, ``N`` heads, ``H`` head_dim, ``D`` hidden_size.
"""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import nn

from bpe_llama.model.layers.attention import Attention
from bpe_llama.model.layers.matmul.products import product
from bpe_llama.model.layers.moe import MixtureOfExperts
from bpe_llama.model.pretrained import Pretrained
from bpe_llama.model.quantization.layers import QuantizedLinear

# Dense bfloat16 operations a second, from NVIDIA's data sheets (without sparsity).
_PEAK_BFLOAT16 = {
    **dict.fromkeys(("NVIDIA H200", "NVIDIA H100 80GB HBM3"), 989e12),
    **{"NVIDIA H100 NVL": 835e12, "NVIDIA H100 PCIe": 756e12},
    **dict.fromkeys((f"NVIDIA A100-{form}" for form in ("SXM4-40GB", "SXM4-80GB", "PCIE-40GB")), 312e12),
    **{"NVIDIA A100 80GB PCIe": 312e12, "NVIDIA GeForce RTX 4090": 165e12, "NVIDIA L40S": 362e12, "NVIDIA L4": 121e12},
}
_SIZE = 1024  # of the two matrices that are multiplied


def flops_per_token(model: Pretrained, length: int) -> float:
    """Return the floating-point operations that forward and backward pass of one token take, at ``length`` T.

    A weight of a matrix takes 2 operations in the forward pass, 2 for the gradient of the input and, if it is trained,
    2 for its own gradient. Attention over ``T`` tokens takes ``12 * L * N * H * T``, with the mean of both sizes as
    ``H`` if keys and values differ in theirs. So a model that is trained in full takes
    ``6 * weights + 12 * L * N * H * T``. The embedding is a look-up and counts only where it is tied to the head; of a
    mixture of experts only the experts of a token count. Recomputed layers do not count.

    Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
    """
    config = model.config
    inactive = {
        id(part): config.num_experts_per_tok / len(mixture.experts)
        for mixture in model.modules()
        if isinstance(mixture, MixtureOfExperts)
        for part in (*mixture.experts.parameters(), *mixture.experts.modules())
    }
    quantized = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    matrices = sum(4 * layer.in_features * layer.out_features * inactive.get(id(layer), 1.0) for layer in quantized)
    for name, weight in model.named_parameters():
        if weight.dim() < 2 or (name.endswith("embed_tokens.weight") and not config.tie_word_embeddings):
            continue
        matrices += (6 if weight.requires_grad else 4) * weight.numel() * inactive.get(id(weight), 1.0)
    features = sum(module.features for module in model.modules() if isinstance(module, Attention))
    return matrices + 6 * config.num_attention_heads * features * length


@cache
def peak_flops(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """Return the floating-point operations a second of large matrix products: of a data sheet, or measured here.

    Args:
        device: A GPU in the table of data sheets, in bfloat16; any other device is measured for about 0.1 s.
        dtype: The dtype of the products.
        threads: The number of CPU threads; the result is remembered for each.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        peak = _PEAK_BFLOAT16.get(torch.cuda.get_device_name(device))
        if peak is not None:
            return peak
    matrix = torch.ones(_SIZE, _SIZE, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        float(product(matrix, matrix)[0, 0])  # by the library that training uses; the number waits for a GPU
        best = min(best, time.perf_counter() - started)
    return 2 * _SIZE**3 / best


def expert_loads(model: nn.Module) -> tuple[float, float] | None:
    """Return the smallest and the largest share of tokens that an expert had in the last forward pass.

    Shares are multiples of an equal share, over all layers: (1.0, 1.0) is balance. None without a mixture of experts.
    """
    shares = []
    for mixture in model.modules():
        if isinstance(mixture, MixtureOfExperts) and mixture.router_logits is not None:
            _, chosen = mixture.choose(mixture.router_logits.detach())
            counts = chosen.flatten().bincount(minlength=len(mixture.experts))
            shares.append(counts / counts.sum() * len(mixture.experts))
    if not shares:
        return None
    stacked = torch.stack(shares)
    return float(stacked.min()), float(stacked.max())
