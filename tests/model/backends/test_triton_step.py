"""The Triton kernels of a CUDA graph: their logic on the CPU, their compilation for a GPU and, on one, a run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bpe_llama.model import LlamaForCausalLM, quantize
from bpe_llama.model.backends import forward
from bpe_llama.model.backends.cuda.dispatch import unsupported_by_triton
from bpe_llama.model.backends.cuda.graph import CudaGraphDecoder
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.quantization.layers import Int8Linear
from bpe_llama.model.sampling.params import GenerationOptions

pytest.importorskip("triton", reason="needs Triton, which comes with torch for CUDA on Linux")
from bench.cuda import kernels
from tests.model.backends import interpreted_triton_step

Make = Callable[..., LlamaForCausalLM]


@pytest.mark.slow
def test_the_kernels_compute_what_the_model_does() -> None:
    script = Path(__file__).with_name("interpreted_triton_step.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "equal\n", done.stderr


# Of each format the gated product of a row and the added one of 64, or the other two; all with `make parity`.
PRODUCTS = [
    variant
    for number, variant in enumerate(kernels.products())
    if os.environ.get("BPE_LLAMA_FULL") == "1" or number % 8 in (1, 2, 4, 7)
]


@pytest.mark.parametrize("variant", PRODUCTS, ids=lambda variant: variant.name)
def test_the_matmul_compiles_for_hopper(compiled_for_hopper: Callable[..., Any], variant: kernels.Variant) -> None:
    compiled = compiled_for_hopper(variant)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= kernels.SHARED_MEMORY
    # Loads are asynchronous, and tensor cores multiply bfloat16.
    assert "cp.async" in compiled.asm["ptx"]
    assert ("mma" in compiled.asm["ptx"]) == ("in bf16" in variant.name)


@pytest.mark.parametrize("variant", [*kernels.others()], ids=lambda variant: variant.name)
def test_the_other_kernels_compile_for_hopper(
    compiled_for_hopper: Callable[..., Any], variant: kernels.Variant
) -> None:
    compiled = compiled_for_hopper(variant)
    assert compiled.metadata.shared <= kernels.SHARED_MEMORY
    assert kernels.usage(compiled).spills == 0


def test_models_without_kernels_are_named(tiny_model: Make) -> None:
    assert unsupported_by_triton(tiny_model()) is None
    half = tiny_model().half()
    assert unsupported_by_triton(half) == "the model is of torch.float16, and the kernels take float32 and bfloat16"
    with pytest.raises(ValueError, match=r"no Triton kernels: the model is of torch\.float16"):
        CudaGraphDecoder(half, Engine(half).cache, "triton")
    hooked, other = tiny_model(), tiny_model()
    hooked.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    other.model.layers[1] = torch.nn.Identity()
    for model in (hooked, other):
        assert unsupported_by_triton(model) == (
            "a layer is none that the decoders describe, is hooked or adapted, or shares its weights"
        )
    mixed = tiny_model()
    mixed.model.layers[1].self_attn.k_proj = Int8Linear(mixed.model.layers[1].self_attn.k_proj)
    assert unsupported_by_triton(mixed) == (
        "the kernels have no product with layers that share an input and are Int8Linear, Linear"
    )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and none is here")
@pytest.mark.parametrize("check", interpreted_triton_step.CHECKS, ids=lambda check: check.__name__)
def test_the_kernels_compute_on_a_gpu_what_the_model_does(
    check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreted_triton_step, "DEVICE", "cuda")
    for name in ("GRAPH_DEVICES", "CudaDecoder"):
        monkeypatch.setattr(forward, name, getattr(forward, name))  # the check replaces them
    check()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and none is here")
@pytest.mark.parametrize("kind", [None, "int8", "int4"])
def test_a_cuda_graph_of_kernels_gives_the_ids_of_plain_generation(
    tiny_model: Make, ids: Tensor, kind: str | None
) -> None:
    model = tiny_model(eos_token_id=None, hidden_size=64, num_attention_heads=4, intermediate_size=128)
    if kind is not None:
        quantize.quantize(model, kind)
    model = model.cuda()
    wanted = [GenerationOptions(seed=seed, max_new_tokens=20, top_p=0.9) for seed in (2**64 - 1, 0, 7)]
    prompts = [ids[0].tolist(), ids[1, :3].tolist(), ids[2, :11].tolist()]
    engines = [Engine(model, 3, 48, cuda_graph=False) for _ in range(2)]
    plain, by_graph = (engine.prefill(prompts, wanted) for engine in engines)
    while engines[0].step():
        pass
    decoder = CudaGraphDecoder(model, engines[1].cache, "triton")
    decoder.run(by_graph, 5)
    assert decoder.fallback_reason is None
    assert [found.new_ids for found in by_graph] == [expected.new_ids for expected in plain]
