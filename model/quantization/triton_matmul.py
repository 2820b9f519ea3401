"""Products with few rows on CUDA: every weight is read once, in the format it is stored in.

What is launched is `decode_kernels._multiply`; `quantize` and `decode_on_cuda` multiply with it.

Shapes: ``M`` rows, ``I`` inputs, ``O`` outputs, ``Q`` groups of a row.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bpe_llama.model.quantization import triton_kernels as decode_kernels


class TritonProduct:
    """The product with one matrix, or with several side by side.

    Args:
        weight_OI: float32 or bfloat16; int8 or float8, with scales of rows; or the packed codes of int4.
        dtype: What is multiplied, weights of fewer bits after they are widened to it: float32 or bfloat16.
        scale: (O,); for int4 the scales and offsets (O, Q, 2), bfloat16.
        group: Weights that share a scale, for int4.
        bias_O: Added.
        norm_I: Weights of an RMSNorm that the input goes through first.
        eps: Of that norm.
        gated: Whether the first half of the outputs opens the second: SwiGLU.
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
        # What is not there is not read, but has to be some address.
        optional = {"scale": scale, "bias": bias_O, "norm": norm_I}
        self.tensors = {name: weight_OI if tensor is None else tensor for name, tensor in optional.items()}
        self.tensors["weight"] = weight_OI
        self.kind: dict[str, Any] = {
            "DTYPE": tl.float32 if dtype == torch.float32 else tl.bfloat16,
            "GROUP": group,
            "SCALED": scale is not None and not group,
            "BIASED": bias_O is not None,
            "NORMED": norm_I is not None,
            "GATED": gated,
        }
        self.eps = eps

    def into(self, x_MI: Tensor, out_MO: Tensor, add: bool = False) -> None:
        """Write the product to ``out_MO``, or add it there; both contiguous, of any float dtype."""
        tile = blocks(len(x_MI), self.outputs, self.kind)
        grid = triton.cdiv(len(x_MI), tile["BLOCK_M"]), triton.cdiv(self.outputs, tile["BLOCK_O"])
        sizes = {"rows": len(x_MI), "outputs": self.outputs, "inputs": self.inputs, "pitch": self.pitch}
        decode_kernels._multiply[grid](
            out=out_MO, x=x_MI, ADDED=add, eps=self.eps, **sizes, **self.tensors, **self.kind, **tile
        )  # fmt: skip


def blocks(rows: int, outputs: int, kind: dict[str, Any]) -> dict[str, int]:
    """Return the tile that one program of `_multiply` computes, and how it reads.

    Few rows want many programs with long reads, as all they do is read; more rows want larger tiles, so that the input
    is read less often. In float32 one tile serves all, so that sums are the same whatever the batch.

    Args:
        rows: M.
        outputs: O.
        kind: What is constant of a product (see `TritonProduct.kind`).
    """
    few, narrow = rows <= 16, outputs <= 4096
    block_m = min(max(triton.next_power_of_2(rows), 8), 64)
    if kind["DTYPE"] == tl.float32:
        block_m, block_o, block_i, warps = 16, 16, 64, 4
    elif few:
        block_o, warps = (16, 1) if narrow else (32, 2)
        block_i = 256 if kind["GROUP"] and not kind["GATED"] else 128
    else:
        block_o, block_i, warps = (32 if narrow else 64), 64, 4
    stages = 6 if few else 3
    return {"BLOCK_M": block_m, "BLOCK_O": block_o, "BLOCK_I": block_i, "num_warps": warps, "num_stages": stages}
