"""A ragged batch in one pass of the CPU decoder, against the model running each sequence alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bpe_llama._core import has_amx, has_avx512, simd_tiers
from bpe_llama.model import KVCache, LlamaForCausalLM, quantize
from bpe_llama.model.backends.cpu.decoder import CpuDecoder

from .test_cpu_decoder import VARIANTS, uneven

Make = Callable[..., LlamaForCausalLM]


def drawn(length: int, seed: int) -> list[int]:
    """Return random ids."""
    return torch.randint(0, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def differences(model: LlamaForCausalLM, held: list[int], new: list[int]) -> tuple[float, float]:
    """Return how far logits and cache are from those of the model running each sequence alone."""
    decoder, cache = CpuDecoder(model), KVCache(model.config, len(held), 32, dtype=model.dtype)
    ids = [drawn(before + count, seed) for seed, (before, count) in enumerate(zip(held, new, strict=True))]
    apart, expected = [], []
    for slot, (row, before) in enumerate(zip(ids, held, strict=True)):
        apart.append(KVCache(model.config, 1, 32, dtype=model.dtype))
        if before:
            model(torch.tensor([row[:before]]), past_key_values=apart[-1])
            cache.store[:, :, slot] = apart[-1].store[:, :, 0]
        expected.append(model(torch.tensor([row[before:]]), past_key_values=apart[-1]).logits[0])
    cache.lengths[:] = held
    lengths = [before + count for before, count in zip(held, new, strict=True)]
    fresh = [row[before:] for row, before in zip(ids, held, strict=True)]

    found = decoder(fresh, cache, every=True)
    assert cache.lengths == lengths
    cache.lengths[:] = held
    last = decoder(fresh, cache)
    torch.testing.assert_close(last, found[torch.tensor(new).cumsum(0) - 1])
    in_cache = max(
        float((cache.store[:, :, slot, :, :end] - alone.store[:, :, 0, :, :end]).abs().max())
        for slot, (alone, end) in enumerate(zip(apart, lengths, strict=True))
    )
    truth = torch.cat(expected)
    return float((found - truth).abs().max() / truth.abs().max()), in_cache


@settings(max_examples=60, deadline=None)
@given(
    changes=st.sampled_from(VARIANTS),
    rows=st.lists(st.tuples(st.integers(0, 12), st.sampled_from([1, 1, 2, 3, 9])), min_size=1, max_size=5),
    seed=st.integers(0, 3),
)
def test_logits_and_cache_are_the_models(
    tiny_model: Make, changes: dict[str, Any], rows: list[tuple[int, int]], seed: int
) -> None:
    with torch.no_grad():
        model = uneven(tiny_model(seed=seed, **changes))
        logits, in_cache = differences(model, *map(list, zip(*rows, strict=True)))
        assert logits < 2e-5 and in_cache < 2e-4


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_layers_are_the_models(tiny_model: Make, kind: str) -> None:
    model = tiny_model(hidden_size=64, num_attention_heads=8, intermediate_size=96)
    quantize.quantize(model, kind)
    logits, _ = differences(model, [7, 3, 0], [1, 4, 1])
    assert logits < 1e-5


def test_bfloat16_is_as_near_to_float32_as_the_model_is(tiny_model: Make) -> None:
    half = uneven(tiny_model()).to(torch.bfloat16)
    exact = uneven(tiny_model()).to(torch.bfloat16).float()
    rows = [drawn(count, count) for count in range(1, 17)]
    truth, plain = (torch.stack([m(torch.tensor([row])).logits[0, -1] for row in rows]) for m in (exact, half))
    found = CpuDecoder(half)(rows, KVCache(half.config, 16, 32, dtype=torch.bfloat16))
    assert (found - truth).abs().mean() < 1.1 * (plain - truth).abs().mean()


def test_refusals_leave_the_cache_as_it_was(tiny_model: Make) -> None:
    model = tiny_model()
    decoder, cache = CpuDecoder(model), KVCache(model.config, 2, 4)
    with pytest.raises(ValueError, match="input id 97 is outside the vocabulary of 97"):
        decoder([[5, 97], [6]], cache)
    with pytest.raises(ValueError, match=r"\[2, 0\] new ids for 2 slots"):
        decoder([[5, 6], []], cache)
    with pytest.raises(ValueError, match=r"\[1\] new ids for 2 slots"):
        decoder([[5]], cache)
    with pytest.raises(ValueError, match="slot 1 holds 0 tokens and 5 more exceed the cache's 4"):
        decoder([[5], [6] * 5], cache)
    assert cache.lengths == [0, 0]


one_order = pytest.mark.skipif(
    not has_avx512() or has_amx(),
    reason="many rows of packed weights go through PyTorch without AVX-512, or through AMX",
)


@pytest.mark.parametrize("kind", [None, *(pytest.param(kind, marks=one_order) for kind in ("int8", "int4"))])
@pytest.mark.parametrize("window", [None, 5])
def test_float32_logits_are_batch_invariant(tiny_model: Make, kind: str | None, window: int | None) -> None:
    model = uneven(tiny_model(hidden_size=64, num_attention_heads=8, intermediate_size=96, sliding_window=window))
    if kind is not None:
        quantize.quantize(model, kind)
    ids, other = drawn(60, 1), drawn(50, 2)

    def logits(chunk: int, beside: bool) -> torch.Tensor:
        cache, found = KVCache(model.config, 1 + beside, 64), []
        decoder = CpuDecoder(model)
        for start in range(0, len(ids), chunk):
            new = ids[start : start + chunk]
            rows = [new, other[: len(new) + 1]] if beside else [new]
            if beside:
                cache.lengths[1] = 0
            found.append(decoder(rows, cache, every=True)[: len(new)].clone())
        return torch.cat(found)

    alone = logits(1, beside=False)
    for chunk, beside in ((60, False), (7, False), (60, True), (20, True), (1, True)):
        torch.testing.assert_close(logits(chunk, beside), alone, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("tier", simd_tiers()[:-1])
def test_float32_logits_are_batch_invariant_on_every_tier(tier: str) -> None:
    name = test_float32_logits_are_batch_invariant.__name__
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{name}"]
    done = subprocess.run(
        command, env={**os.environ, "BPE_LLAMA_SIMD": tier}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout + done.stderr
