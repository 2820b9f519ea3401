"""The first tests on a GPU, in seconds: whether anything runs at all, before all of the marked tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bpe_llama import Sampler
from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.backends.cuda.graph import CudaGraphDecoder
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.sampling import sample_logits
from bpe_llama.model.sampling.params import GenerationOptions
from tests.model.generation.naive import finish

pytest.importorskip("triton", reason="needs Triton, which comes with torch for CUDA on Linux")
from bpe_llama.model.backends.cuda.triton_step import FEW_ROWS, TritonStep
from bpe_llama.model.backends.cuda.wide_layers import WideLayers, WidePrefill

Make = Callable[..., LlamaForCausalLM]
SHAPE: dict[str, Any] = {"eos_token_id": None, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and none is here"),
]


def rounded(model: LlamaForCausalLM, dtype: torch.dtype, ids: Tensor) -> Tensor:
    """Return the logits of float32 arithmetic with weights of a dtype, on the CPU."""
    logits: Tensor = model.to(dtype).float()(ids).logits
    return logits


def close(found: Tensor, expected: Tensor) -> None:
    """Compare logits on the GPU with those of float32 arithmetic and the same weights."""
    error = (found.cpu().float() - expected).norm() / expected.norm()
    assert error < (1e-5 if found.dtype == torch.float32 else 3e-2), error  # NaN fails too


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_on_the_gpu_computes_the_logits_of_the_cpu(tiny_model: Make, ids: Tensor, dtype: torch.dtype) -> None:
    model = tiny_model(**SHAPE)
    expected = rounded(model, dtype, ids)
    close(model.to("cuda", dtype)(ids.cuda()).logits, expected)


@pytest.mark.parametrize("rows", [3, FEW_ROWS + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_compute_the_logits_of_the_cpu(tiny_model: Make, ids: Tensor, dtype: torch.dtype, rows: int) -> None:
    """Prompts in two chunks, through flash attention in bfloat16; then a step of each sequence and one without."""
    model, ids = tiny_model(**SHAPE), ids[:1].expand(rows, -1)
    expected = rounded(model, dtype, ids)
    model, ids = model.to("cuda", dtype), ids.cuda()
    cache = KVCache(model.config, rows + 1, 32, dtype=dtype, device="cuda")
    prefill, slots = WidePrefill(WideLayers(model)), cache.rows(0, rows)
    for part in (ids[:, :8], ids[:, 8:19]):
        hidden = prefill.hidden(part, slots)
        assert hidden is not None
    close(model.logits(hidden), expected[:, 8:19])
    place = torch.tensor([19] * rows + [-1], device="cuda")
    last = torch.cat([ids[:, 19], ids[:1, 0]])
    close(TritonStep(model, cache).logits(last, place)[:rows], expected[:, 19])
    assert not cache.keys[0][rows].any()


def test_a_captured_graph_gives_the_ids_of_plain_generation(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(**SHAPE).cuda()
    wanted = [GenerationOptions(seed=seed, max_new_tokens=20, top_p=0.9) for seed in (1, 2)]
    prompts = [ids[0].tolist(), ids[1, :5].tolist()]
    plain, by_graph = (Engine(model, 2, 48, cuda_graph=False) for _ in range(2))
    expected, found = plain.prefill(prompts, wanted), by_graph.prefill(prompts, wanted)
    finish(plain)
    decoder = CudaGraphDecoder(model, by_graph.cache, "triton")
    decoder.run(found)
    assert decoder.fallback_reason is None
    assert [sequence.new_ids for sequence in found] == [sequence.new_ids for sequence in expected]


def test_the_sampler_draws_as_the_cpu_does() -> None:
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(0))
    found = sample_logits(logits.cuda(), temperature=0.8, top_p=0.9, step=7)
    assert_close(found.cpu(), torch.as_tensor(Sampler(temperature=0.8, top_p=0.9).sample(logits, step=7)).long())
