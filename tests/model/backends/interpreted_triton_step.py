"""Run the Triton kernels of a CUDA graph on the CPU, in Triton's interpreter, and hold them to the model.

A script of its own, which `test_triton_step.py` starts with TRITON_INTERPRET=1: the interpreter is chosen for a
whole process, when Triton is imported. On a GPU, that test calls the same checks in its own process.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch.testing import assert_close
from triton.runtime import interpreter

from bpe_llama.model import LlamaConfig, LlamaForCausalLM, quantize
from bpe_llama.model.backends import forward
from bpe_llama.model.backends.cuda.decoder import CudaDecoder
from bpe_llama.model.backends.cuda.graph import CudaGraphDecoder
from bpe_llama.model.backends.cuda.triton_step import FEW_ROWS, TritonStep
from bpe_llama.model.backends.cuda.wide_layers import WideLayers, WidePrefill
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.sampling.params import GenerationOptions

DEVICE = "cpu"


def patch_interpreter() -> None:
    """Make bfloat16 behave as on a GPU: Triton 3.9's interpreter multiplies its bits, and truncates to it."""
    builder = interpreter.InterpreterBuilder
    multiply, convert, cast = builder.create_dot, builder.create_si_to_fp, builder.cast_impl

    def widened(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (self.create_fp_ext(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return multiply(self, a, b, *rest)

    def by_float32(self: Any, source: Any, kind: Any) -> Any:
        return self.cast_impl(convert(self, source, tl.float32), kind)

    def rounded(self: Any, source: Any, kind: Any) -> Any:
        if source.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
            bits = torch.from_numpy(source.data).bfloat16().view(torch.uint16).numpy()
            return interpreter.TensorHandle(bits, tl.bfloat16)
        return cast(self, source, kind)

    builder.create_dot, builder.create_si_to_fp, builder.cast_impl = widened, by_float32, rounded


def model_of(dtype: torch.dtype = torch.float32, kind: str | None = None, **changes: Any) -> LlamaForCausalLM:
    """Return a small model with norms and biases that would show if one were left out."""
    sizes = {"vocab_size": 40, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 200}
    values = {**sizes, **heads, "initializer_range": 0.2, "eos_token_id": None, "pad_token_id": None, **changes}
    config = LlamaConfig.from_dict(values) if "model_type" in changes else LlamaConfig(**values)
    model = LlamaForCausalLM(config, seed=0).eval()
    generator = torch.Generator().manual_seed(2)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    if kind is not None:
        quantize.quantize(model, kind)
    return model.to(DEVICE, dtype)


def sequences(lengths: list[int]) -> list[torch.Tensor]:
    """Return random sequences, each (1, T) with T one more than the length."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 40, (1, length + 1), generator=generator).to(DEVICE) for length in lengths]


def by_model(model: LlamaForCausalLM, rows: list[torch.Tensor]) -> torch.Tensor:
    """Return the model's last logits of each row, (B, V)."""
    return torch.cat([model(row).logits[:, -1] for row in rows])


def by_kernels(model: LlamaForCausalLM, rows: list[torch.Tensor]) -> torch.Tensor:
    """Return the kernels' last logits of each row, (B, V), with all but the last id in a cache."""
    cache = KVCache(model.config, len(rows), max(row.shape[1] for row in rows) + 9, dtype=model.dtype, device=DEVICE)
    for slot, row in enumerate(rows):
        model(row[:, :-1], past_key_values=cache.rows(slot, slot + 1))
    positions = torch.tensor([row.shape[1] - 1 for row in rows], device=DEVICE)
    return TritonStep(model, cache).logits(torch.stack([row[0, -1] for row in rows]), positions)


VARIANTS: list[dict[str, Any]] = [
    {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    {"attention_bias": True, "mlp_bias": True, "sliding_window": 6, "tie_word_embeddings": True},
    {  # sizes that do not fill a tile, and a window that begins inside a chunk
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "hidden_size": 72,
        "intermediate_size": 80,
        "sliding_window": 50,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        "model_type": "phi3",  # queries, keys and values are one matrix, gate and up another
    },
    {"model_type": "qwen2", "bos_token_id": None},  # the output projection alone has no bias
]


def check_logits() -> None:
    """Compare logits for all shapes, dtypes and quantized formats."""
    for changes in VARIANTS:
        model, rows = model_of(**changes), sequences([1, 64, 140])
        assert_close(by_kernels(model, rows), by_model(model, rows), rtol=1e-4, atol=1e-4)
    for kind in (None, *quantize.KINDS):
        rows = sequences([130] if kind else [130, *[2] * 16])  # the latter in larger tiles
        if kind is not None:
            model = model_of(kind=kind)
            assert_close(by_kernels(model, rows), by_model(model, rows), rtol=1e-4, atol=1e-4)
        narrow = model_of(torch.bfloat16, kind)
        found, expected = by_kernels(narrow, rows), by_model(narrow, rows)
        exact = by_model(narrow.float(), rows)
        # The error against float32 with the same weights is about that of the model in bfloat16, or less.
        assert (found - exact).norm() < 1.5 * (expected - exact).norm(), kind


def check_wide_layers() -> None:
    """Compare prompts in two chunks, and a batch in bfloat16 that is too large for fused products."""
    ids = torch.cat(sequences([22, 22]))
    for changes in (*VARIANTS, {"kind": "int4"}):
        model = model_of(**{**changes, "sliding_window": None})
        cache = KVCache(model.config, 3, 30, device=DEVICE)
        prefill, slots = WidePrefill(WideLayers(model)), cache.rows(1, 3)
        chunks = [prefill.hidden(part, slots) for part in (ids[:, :9], ids[:, 9:])]
        found = torch.cat([chunk for chunk in chunks if chunk is not None], dim=1)
        assert_close(model.logits(found), model(ids).logits, rtol=1e-4, atol=1e-4)
        assert slots.lengths == [23, 23] and not cache.keys[0][0].any()
        following, whole = ids[:, :1], torch.cat([ids, ids[:, :1]], dim=1)
        next_logits = model(following, past_key_values=slots).logits[:, 0]
        assert_close(next_logits, by_model(model, list(whole[:, None])), rtol=1e-4, atol=1e-4)
    windowed = model_of(sliding_window=6)
    assert WidePrefill(WideLayers(windowed)).hidden(ids, KVCache(windowed.config, 2, 30, device=DEVICE)) is None
    for kind in (None, "int8"):
        rows = sequences([7] * (FEW_ROWS + 1))
        narrow = model_of(torch.bfloat16, kind)
        found, expected = by_kernels(narrow, rows), by_model(narrow, rows)
        exact = by_model(narrow.float(), rows)
        assert (found - exact).norm() < 1.5 * (expected - exact).norm(), kind


def check_engine() -> None:
    """Compare ids of an engine that pads its passes to the size of a graph; slots of a view begin anywhere."""
    forward.GRAPH_DEVICES, forward.CudaDecoder = (DEVICE,), lambda *given: CudaDecoder(*given, triton=True)
    model, found = model_of(), []
    for cuda_graph in (False, True):
        engine = Engine(model, 5, 30, prefill_chunk=4, cuda_graph=cuda_graph)
        queue = [([5, 9, 11, 39, 3, 8], 6), ([7], 3), ([30, 31, 32], 8), ([4, 4, 4, 4, 4, 4, 4], 2)]
        served = []
        while queue or engine.has_unfinished_requests():
            for prompt, new in queue[:1]:
                served.append(engine.add_request(prompt, GenerationOptions(seed=new, max_new_tokens=new)))
            del queue[:1]
            engine.step()
        found.append([sequence.new_ids for sequence in served])
    assert found[0] == found[1]
    assert {size for size, _ in engine._refreshed.graphs._steps} >= {1, 2, 4}


def check_batch_invariance() -> None:
    """In float32 a row has the same logits, bit for bit, alone and in a batch larger than one tile."""
    model, rows = model_of(), sequences([66, *[2] * 16])
    assert torch.equal(by_kernels(model, rows[:1])[0], by_kernels(model, rows)[0])


def check_generation() -> None:
    """Compare ids, through the whole of a CUDA graph; a decoder notices when a weight is replaced by another."""
    prompts = [[5, 9, 11, 39], [7], [30, 31, 32]]
    model = model_of(eos_token_id=[2, 7])
    engines = [Engine(model, 3, 12) for _ in range(2)]
    decoder = CudaGraphDecoder(model, engines[1].cache, "triton")
    for changes in ({"temperature": 0.0, "min_new_tokens": 2}, {"min_new_tokens": 5, "frequency_penalty": 0.3}):
        wanted = [GenerationOptions(seed=seed, **{"max_new_tokens": 7, **changes}) for seed in (3, 0, 7)]
        plain, by_graph = (engine.prefill(prompts, wanted) for engine in engines)
        while engines[0].step():
            pass
        decoder.run(by_graph, check_every=3)
        for sequence in by_graph:
            engines[1].abort(sequence)
        for found, expected in zip(by_graph, plain, strict=True):
            assert (found.new_ids, found.finish_reason) == (expected.new_ids, expected.finish_reason), changes
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0))


CHECKS = [check_logits, check_wide_layers, check_batch_invariance, check_generation, check_engine]


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    patch_interpreter()
    for check in CHECKS:
        check()
    print("equal")


if __name__ == "__main__":
    main()
