"""Matrix products with few rows on CUDA: every weight is read once, in its stored format.

`bpe_llama.model.quantization.quantize` and the decoding step in `bpe_llama.model.backends.cuda` launch them.

Shapes: ``M`` rows, ``I`` in_features, ``O`` out_features, ``Q`` groups of a row.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bpe_llama.model.quantization import triton_kernels as kernels

FEWEST = 8 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 5) else 16
"""The fewest rows of a tile: before Triton 3.5 no operand of a product on tensor cores may be smaller than 16."""


class TritonMatmul:
    """The product with one weight matrix, or with several matrices whose rows are concatenated.

    Args:
        weight_OI: float32 or bfloat16; int8 or float8 with ``scale`` (O,); or the packed codes of int4, (O, I / 2).
        dtype: float32 or bfloat16, to which quantized weights are dequantized before the product.
        scale: (O,); for int4 the scales and zero points (O, Q, 2), bfloat16.
        group: Group size of int4: the weights that share a scale.
        bias_O: Added to the product.
        norm_I: Weight of an RMSNorm that is fused into the input.
        eps: Epsilon of the RMSNorm.
        gated: Fuse SwiGLU: the first half of the rows is ``gate_proj``, the second half ``up_proj``.
    """

    def __init__(
        self,
        weight_OI: Tensor,
        dtype: torch.dtype,
        *,
        scale: Tensor | None = None,
        group: int = 0,
        bias_O: Tensor | None = None,
        norm_I: Tensor | None = None,
        eps: float = 0.0,
        gated: bool = False,
    ) -> None:
        self.pitch = weight_OI.shape[1]
        self.inputs = 2 * self.pitch if group else self.pitch
        if scale is not None and group:
            scale = scale.to(torch.bfloat16).view(torch.int32)
        self.outputs = len(weight_OI) // 2 if gated else len(weight_OI)
        # The kernel does not read an optional tensor that is absent, but its pointer must be valid.
        optional = {"scale": scale, "bias": bias_O, "norm": norm_I}
        self.tensors = {name: weight_OI if tensor is None else tensor for name, tensor in optional.items()}
        self.tensors["weight"] = weight_OI
        self.constants: dict[str, Any] = {
            "DTYPE": tl.float32 if dtype == torch.float32 else tl.bfloat16,
            "GROUP": group,
            "SCALED": scale is not None and not group,
            "BIASED": bias_O is not None,
            "NORMED": norm_I is not None,
            "GATED": gated,
        }
        self.eps = eps

    def into(self, x_MI: Tensor, out_MO: Tensor, add: bool = False) -> None:
        """Write the product to ``out_MO``, or add it to ``out_MO``; both are contiguous, of any float dtype."""
        tile = tile_sizes(len(x_MI), self.outputs, self.constants)
        grid = triton.cdiv(len(x_MI), tile["BLOCK_M"]), triton.cdiv(self.outputs, tile["BLOCK_O"])
        sizes = {"rows": len(x_MI), "outputs": self.outputs, "inputs": self.inputs, "pitch": self.pitch}
        kernels._matmul[grid](
            out=out_MO, x=x_MI, ADDED=add, eps=self.eps, **sizes, **self.tensors, **self.constants, **tile
        )  # fmt: skip


def tile_sizes(rows: int, outputs: int, constants: dict[str, Any]) -> dict[str, int]:
    """Return the tile that one program of `_matmul` computes, its warps and its pipeline stages.

    With few rows the product is bound by memory bandwidth: many programs with long reads are fastest. With more rows
    larger tiles read the input less often. In float32 the tile does not depend on the number of rows, so the order of
    the sums does not either.

    Args:
        rows: M.
        outputs: O.
        constants: `TritonMatmul.constants`.
    """
    few, narrow = rows <= 16, outputs <= 4096
    block_m = min(max(triton.next_power_of_2(rows), FEWEST), 64)
    if constants["DTYPE"] == tl.float32:
        block_m, block_o, block_i, warps = 16, 16, 64, 4
    elif few:
        block_o, warps = (16, 1) if narrow else (32, 2)
        block_i = 256 if constants["GROUP"] and not constants["GATED"] else 128
    else:
        block_o, block_i, warps = (32 if narrow else 64), 64, 4
    stages = 6 if few else 3
    return {"BLOCK_M": block_m, "BLOCK_O": block_o, "BLOCK_I": block_i, "num_warps": warps, "num_stages": stages}
