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
from bpe_llama.model.backends.cuda.dispatch import unsupported_by_triton
from bpe_llama.model.backends.cuda.graph import CudaGraphDecoder
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.sampling.params import GenerationOptions

pytest.importorskip("triton", reason="needs Triton, which comes with torch for CUDA on Linux")
Make = Callable[..., LlamaForCausalLM]
SHARED_MEMORY = 227 * 1024
"""Bytes of shared memory per program on an H100 or H200."""


@pytest.mark.slow
def test_the_kernels_compute_what_the_model_does() -> None:
    script = Path(__file__).with_name("interpreted_triton_step.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "equal\n", done.stderr


FORMATS = [
    ("bf16", "bf16", 0),
    ("bf16", "i8", 0),
    ("bf16", "u8", 32),
    ("bf16", "u8", 256),
    ("bf16", "fp8e4nv", 0),
    ("bf16", "fp8e5", 0),
    ("fp32", "fp32", 0),
    ("fp32", "u8", 64),
]


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize(("number", "weight", "group"), FORMATS)
@pytest.mark.parametrize("gated", [False, True])
def test_the_matmul_compiles_for_hopper(
    compiled_for_hopper: Callable[..., Any], rows: int, number: str, weight: str, group: int, gated: bool
) -> None:
    import triton.language as tl

    from bpe_llama.model.quantization import triton_kernels as kernels
    from bpe_llama.model.quantization.triton_matmul import tile_sizes

    constants = {
        "DTYPE": tl.bfloat16 if number == "bf16" else tl.float32,
        "GROUP": group,
        "SCALED": weight in ("i8", "fp8e4nv", "fp8e5"),
        "BIASED": gated,
        "NORMED": gated,
        "GATED": gated,
        "ADDED": not gated,
    }
    types = {**dict.fromkeys(["rows", "outputs", "inputs", "pitch"], "i32"), "eps": "fp32", "weight": f"*{weight}"}
    types |= dict.fromkeys(["bias", "norm"], f"*{number}") | {"scale": "*i32" if group else "*fp32"}
    types |= {"x": "*fp32", "out": f"*{number}"} if gated else {"x": f"*{number}", "out": "*fp32"}
    tile = tile_sizes(rows, 4096, constants) | ({"rows": 1} if rows == 1 else {})  # a launch specializes on 1
    options = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
    compiled = compiled_for_hopper(kernels._matmul, types, constants | tile, **options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= SHARED_MEMORY
    # Loads are asynchronous, and tensor cores multiply bfloat16.
    assert "cp.async" in compiled.asm["ptx"]
    assert ("mma" in compiled.asm["ptx"]) == (number == "bf16")


@pytest.mark.parametrize("number", ["bf16", "fp32"])
def test_the_attention_compiles_for_hopper(compiled_for_hopper: Callable[..., Any], number: str) -> None:
    from bpe_llama.model.backends.cuda import triton_kernels as kernels

    types = {**dict.fromkeys(["cos", "sin", "chunk_outs", "chunk_stats"], "*fp32"), "position": "*i64", "scale": "fp32"}
    types |= dict.fromkeys(["query", "qkv", "keys", "values", "out"], f"*{number}")
    types |= dict.fromkeys(["capacity", "window", "chunks"], "i32")
    heads, size = {"HEADS": 32, "KV_HEADS": 8}, {"SIZE": 128, "BLOCK": 128}
    chunk = {"CHUNK": 128 if number == "bf16" else 64}
    for name, constants in (
        ("_apply_rope", {**heads, **size, "HALF": 64}),
        ("_attend_chunk", {"KV_HEADS": 8, "GROUPS": 4, "BLOCK_G": 16, **chunk, **size}),
        ("_combine_chunks", {"HEADS": 32, **chunk, **size}),
    ):
        compiled = compiled_for_hopper(getattr(kernels, name), types, constants)
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= SHARED_MEMORY


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
    mixed.model.layers[1].self_attn.k_proj = quantize.Int8Linear(mixed.model.layers[1].self_attn.k_proj)
    assert unsupported_by_triton(mixed) == (
        "the kernels have no product with layers that share an input and are Int8Linear, Linear"
    )


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
    engines = [Engine(model, 3, 48) for _ in range(2)]
    plain, by_graph = (engine.prefill(prompts, wanted) for engine in engines)
    while engines[0].step():
        pass
    decoder = CudaGraphDecoder(model, engines[1].cache, "triton")
    decoder.run(by_graph, 5)
    assert decoder.fallback_reason is None
    assert [found.new_ids for found in by_graph] == [expected.new_ids for expected in plain]
