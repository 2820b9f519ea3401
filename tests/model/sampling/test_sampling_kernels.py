"""The sampler's Triton kernels: their logic on the CPU, their compilation for a GPU, and, where there is one, a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bpe_llama import Sampler
from bpe_llama.model import sampling

pytest.importorskip("triton", reason="needs Triton, which comes with torch for CUDA on Linux")
from bench.cuda import kernels

on_cuda = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and none is here"),
]


@pytest.mark.slow
def test_the_kernels_draw_as_the_sampler_does():
    script = Path(__file__).with_name("interpreted_sampling.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("variant", [*kernels.sampler()], ids=lambda variant: variant.name)
def test_the_kernels_compile_for_hopper(compiled_for_hopper, variant):
    assert compiled_for_hopper(variant).asm["cubin"]


LOGITS = torch.randn(8, 128_256, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("options", [{}, {"top_k": 50, "min_p": 0.01}, {"typical_p": 0.9}, {"temperature": 0.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("_", [pytest.param(None, marks=on_cuda, id="cuda")])
def test_a_cuda_graph_draws_as_the_cpu_does(options, dtype, _):
    logits = LOGITS.to(dtype)
    on_device = logits.cuda()
    step = torch.zeros((), dtype=torch.int64, device="cuda")
    sampling.sample_logits(on_device, **options, seed=5, step=step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids = sampling.sample_logits(on_device, **options, seed=5, step=step)
    sampler = Sampler(**options, seed=5)
    different = 0
    for each in range(20):
        step.fill_(each)
        graph.replay()
        different += (ids.cpu().numpy() != sampler.sample(logits, step=each)).sum()
    # Rounding at a border may move a draw to a neighbour now and then.
    assert different <= 1


@pytest.mark.parametrize("_", [pytest.param(None, marks=on_cuda, id="cuda")])
def test_drawing_waits_for_nothing_and_marks_bad_rows(_):
    logits = LOGITS.cuda()
    logits[3, 5], logits[4, 6], logits[5] = torch.nan, torch.inf, -torch.inf
    banned = torch.full((8, 1), 128_256, device="cuda")
    banned[:7] = 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        ids = sampling.sample_logits(logits, top_k=40, banned_ids=banned)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.flatnonzero(ids.cpu().numpy() < 0).tolist() == [3, 4, 5, 7]
