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

from bpe_llama.model import decode_kernels


class TritonProduct:
    """The product with one matrix, or with several side by side.

    Args:
        weight_OI: float32 or bfloat16; int8 or float8, with scales of rows; or the packed codes of int4.
        dtype: What is multiplied, weights of fewer bits after they are widened to it: float32 or bfloat16.
        scale: (O,); for int4 the scales and offsets (O, Q, 2).
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
        self.inputs = weight_OI.shape[1] * 2 if group else weight_OI.shape[1]
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
        sizes = {"rows": len(x_MI), "outputs": self.outputs, "inputs": self.inputs, "eps": self.eps}
        decode_kernels._multiply[grid](out=out_MO, x=x_MI, ADDED=add, **sizes, **self.tensors, **self.kind, **tile)


def blocks(rows: int, outputs: int, kind: dict[str, Any]) -> dict[str, int]:
    """Return the tile that one program of `_multiply` computes, and how it reads.

    Few rows want many programs with long reads, as all they do is read; more rows want larger tiles, so that the input
    is read less often. In float32 one tile serves all, so that sums are the same whatever the batch. All fit the
    registers and shared memory of an H100 or H200.

    Args:
        rows: M.
        outputs: O.
        kind: What is constant of a product (see `TritonProduct.kind`).
    """
    few = rows <= 16
    if kind["DTYPE"] == tl.float32:
        tile = (16, 16, 64)
    elif few:
        tile = (16, 16 if kind["GATED"] or outputs <= 8192 else 32, 128 if kind["GROUP"] else 256)
    else:
        tile = (min(triton.next_power_of_2(rows), 64), 64, 64)
    return {
        "BLOCK_M": tile[0],
        "BLOCK_O": tile[1],
        "BLOCK_I": tile[2],
        "num_warps": 4,
        "num_stages": 4 if few else 3,
    }
