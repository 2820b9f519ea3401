"""Products of few rows in each format of weights, against cuBLAS and torch's own int4 and float8 kernels.

    python -m bench.cuda.products
    python -m bench.cuda.products --device cpu --inputs 64 --outputs 32 --copies 2     # that the script itself works

The matrix is Llama 3 8B's gate and up. Several copies take turns, so that none is in the cache. torch's int4 kernel is
tinygemm's, which torchao's weight-only int4 runs (``torch.ops.aten._weight_int4pack_mm``); Marlin's, in vLLM, is not
compared, as vLLM pins another torch. A row that cannot run says why. The error is the distance from the float32 product
with the same dequantized weights, relative to its norm; float8 rounds the input, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor, nn

from bench import measure
from bench.cuda.bars import about, copy_bandwidth, require_cuda, seconds_of
from bpe_llama.model.quantization.layers import Float8Linear, Int4Linear, Int8Linear

GROUP = 64
Run = Callable[[Tensor], object]


def tinygemm(linear: nn.Linear) -> Run:
    """Return torch's int4 product with a layer's weights."""
    packed = Int4Linear(linear, GROUP)
    codes = packed.codes()  # torch packs the even column in the high half
    halves = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    weight = torch.ops.aten._convert_weight_to_int4pack(halves, 8)
    scales = packed.scale_and_zero.transpose(0, 1).contiguous()
    return lambda x_MI: torch.ops.aten._weight_int4pack_mm(x_MI, weight, GROUP, scales)


def float8(linear: nn.Linear) -> Run:
    """Return torch's float8 product, which rounds the input too."""
    return Float8Linear(linear)


def reference(name: str, linear: nn.Linear, x_MI: Tensor) -> Tensor:
    """Return the float32 product with the weights that a candidate has."""
    weight = linear.weight.float()
    for format_, kind in (("int8", Int8Linear), ("float8", Float8Linear)):
        weight = kind(linear).dequantized() if name.startswith(format_) else weight
    weight = Int4Linear(linear, GROUP).dequantized() if name.startswith("int4") else weight
    return x_MI.float() @ weight.T


CANDIDATES: dict[str, tuple[float, Callable[[nn.Linear], Run]]] = {
    "bfloat16, cuBLAS": (2, lambda linear: linear),
    "int8, ours": (1, lambda linear: Int8Linear(linear)),
    "int4, ours": (0.5 + 4 / GROUP, lambda linear: Int4Linear(linear, GROUP)),
    "int4, torch (tinygemm)": (0.5 + 4 / GROUP, tinygemm),
    "float8, torch": (1, float8),
}
"""Bytes of a weight, and what makes the product from a layer."""


def graphed(run: Callable[[], object], device: str) -> Callable[[], object]:
    """Return a function that replays 20 calls as a CUDA graph, so that launches do not count; the calls elsewhere."""

    def calls() -> None:
        for _ in range(20):
            run()

    if device != "cuda":
        return calls
    from bpe_llama.model.backends.cuda.capture import captured

    return captured(calls, torch.device(device))[0].replay


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=4096)
    parser.add_argument("--outputs", type=int, default=28_672)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--copies", type=int, default=4, help="of the matrix, several times the cache together")
    parser.add_argument("--device", default="cuda")
    chosen = parser.parse_args()
    require_cuda(chosen.device)
    print(about(chosen.device))
    bandwidth = copy_bandwidth(chosen.device)
    print(f"{chosen.outputs} x {chosen.inputs}; copy {bandwidth / 1e12:.3g} TB/s\n")
    print(
        measure.markdown(["", *(f"{rows} rows: us (of the bandwidth)" for rows in chosen.rows), "error"], []),
        flush=True,
    )
    linears = [
        nn.Linear(chosen.inputs, chosen.outputs, bias=False, device=chosen.device, dtype=torch.bfloat16)
        for _ in range(chosen.copies)
    ]
    with torch.no_grad():
        for name, (size, make) in CANDIDATES.items():
            try:
                runs = [make(linear) for linear in linears]
            except (RuntimeError, NotImplementedError, ValueError) as error:
                print(f"| {name} | does not run: {str(error).splitlines()[0][:150]} |", flush=True)
                continue
            cells = []
            for rows in chosen.rows:
                x_MI = torch.randn(rows, chosen.inputs, device=chosen.device).bfloat16()
                turns = cycle(runs)
                try:
                    replay = graphed(lambda x=x_MI, turns=turns: next(turns)(x), chosen.device)  # type: ignore[misc]
                    seconds = seconds_of(replay, chosen.device, calls=2) / 20
                except (RuntimeError, NotImplementedError) as error:
                    cells.append(f"does not run: {str(error).splitlines()[0][:150]}")
                    continue
                share = size * chosen.inputs * chosen.outputs / seconds / bandwidth
                cells.append(f"{1e6 * seconds:.1f} ({share:.0%})")
            expected = reference(name, linears[0], x_MI)
            cells.append(f"{float((runs[0](x_MI).float() - expected).norm() / expected.norm()):.1e}")  # type: ignore[attr-defined]
            print("| " + " | ".join([name, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
