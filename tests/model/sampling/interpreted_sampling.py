"""Run the Triton kernels of the sampler on the CPU, in Triton's interpreter, and hold their ids to the Rust sampler's.

A script of its own, which `test_sampling_kernels.py` starts with TRITON_INTERPRET=1: the interpreter is chosen for a
whole process, when Triton is imported.
"""

from __future__ import annotations

import torch

from bpe_llama import Sampler
from bpe_llama.model.sampling import on_cuda, uniform
from bpe_llama.model.sampling.filters import Filters

GENERATOR = torch.Generator().manual_seed(11)


def compare(logits: torch.Tensor, **options: object) -> None:
    """Draw from each row at its own random number; ids must be equal but within rounding of the border of two."""
    sampler = Sampler(**{"temperature": 1.0, "top_p": 1.0, **options})
    seeds = range(5, 5 + len(logits))
    ids = on_cuda.draw(logits, Filters(**{"temperature": 1.0, "top_p": 1.0, **options}), torch.tensor(seeds), 3)
    for row, (ours, theirs) in enumerate(zip(ids.tolist(), sampler.sample(logits, step=3, seeds=seeds), strict=True)):
        if ours != theirs:
            border = sampler.probs(logits[row])[: max(ours, theirs)].sum()
            away = abs(border - float(uniform(seeds[row], 3)))
            assert away < 1e-6, f"{options}, {logits.dtype}, row {row}: {ours} for {theirs}, {away} from the border"


def rows(vocab_size: int) -> torch.Tensor:
    """Return a row of every kind, (8, V) float32."""
    logits = torch.randn(8, vocab_size, generator=GENERATOR)
    logits[1] = (logits[1] * 2).round() / 2
    logits[2] = -7.5
    logits[3] = torch.where(logits[3] < 1, 0.0, 3.0)
    logits[4] = -torch.inf
    logits[4, vocab_size // 2] = 1.0
    logits[5] *= 1e-40
    logits[6] *= 2000
    logits[7] = torch.where(logits[7] < 0, -0.0, 0.0)
    return logits


def half(logits: torch.Tensor) -> torch.Tensor:
    """Return bfloat16, searched in half the rounds, without subnormals, which Triton's interpreter reads wrongly."""
    return torch.where(logits.abs() < 1e-37, 0.0, logits).bfloat16()


CUTOFFS = [
    {"top_p": 0.9, "temperature": 0.8},
    {},
    {"top_p": 0.5},
    {"top_k": 7, "temperature": 2.0},
    {"top_k": 30, "top_p": 0.4, "min_p": 0.01},
    {"min_p": 0.3},
    {"top_k": 3, "top_p": 1 - 2.0**-53, "preset": "meta"},
]


def main() -> None:
    for number, options in enumerate(CUTOFFS):
        compare(half(rows(60)[number % 2 :: 2]) if number else rows(60), **options)
    for size in (1, 2):
        compare(rows(size)[:2], top_k=1, top_p=0.9)
    for preset in ("meta", "transformers", "llama_cpp"):
        compare(half(rows(60))[:4], top_k=20, top_p=0.5, min_p=0.02, temperature=1.7, preset=preset)
    compare(rows(60)[2:6].half(), top_k=50, top_p=0.8)
    # More than one part a row, a last block that is not full, and rows that do not lie one after the other.
    compare(torch.randn(2, 2, 4700, generator=GENERATOR)[:, 1], top_p=0.9)

    # Many draws from one row, against its distribution.
    row = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5, 1.5, 0.0])
    sampler = Sampler(temperature=0.9, top_p=0.97)
    draws = 20
    ids = on_cuda.draw(row.expand(draws, -1), Filters(0.9, top_p=0.97), 0, torch.arange(draws))
    assert ids.tolist() == [sampler.sample(row, step=step) for step in range(draws)]

    # What cannot be drawn from gives -1, and leaves the rows beside it alone.
    logits = rows(50)[:5]
    logits[0, 49], logits[2, 0], logits[3] = torch.nan, torch.inf, -torch.inf
    ids = on_cuda.draw(logits, Filters(1.0, top_p=0.9), 2**64 - 1, 2**63)
    expected = Sampler(1.0, top_p=0.9, seed=2**64 - 1)
    assert ids.tolist() == [-1, expected.sample(logits[1], step=2**63), -1, -1, expected.sample(logits[4], step=2**63)]
    assert on_cuda.draw(torch.zeros(0, 5), Filters(), 0, 0).shape == (0,)
    print("equal")


if __name__ == "__main__":
    main()
