"""Timings of a sequence, and the weight bytes per token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bpe_llama.model import LlamaForCausalLM, lora, quantize
from bpe_llama.model.cli.speed import bytes_per_token, describe_speed, memory_bandwidth
from bpe_llama.model.generation.generate import Engine, GenerationOptions
from bpe_llama.model.sampling.sequence import Sequence
from tests.model.generation.naive import finish

Make = Callable[..., LlamaForCausalLM]


def test_a_sequence_records_its_timings(tiny_model: Make) -> None:
    engine = Engine(tiny_model(eos_token_id=None), 2)
    first, second = engine.prefill([[5, 6], [7]], [GenerationOptions(max_new_tokens=n) for n in (1, 4)])
    assert first.prefill_seconds == second.prefill_seconds > 0
    finish(engine)
    assert first.decode_seconds == 0 < second.decode_seconds


def test_tied_weights_count_once(tiny_model: Make) -> None:
    tied, free = tiny_model(tie_word_embeddings=True), tiny_model()
    matrices = sum(weight.numel() for weight in tied.parameters())
    rotary = tied.model.rotary_emb.inv_freq.numel()
    assert bytes_per_token(tied) == bytes_per_token(free) == 4 * (matrices + rotary)
    small = bytes_per_token(quantize.quantize(tiny_model(hidden_size=64, num_attention_heads=8), "int8"))
    assert small < 0.6 * bytes_per_token(tiny_model(hidden_size=64, num_attention_heads=8))


@pytest.mark.parametrize("tied", [False, True])
def test_the_weight_bytes_of_an_adapted_head_include_its_adapter(tiny_model: Make, tied: bool) -> None:
    bare = tiny_model(tie_word_embeddings=tied)
    adapted = lora.add(tiny_model(tie_word_embeddings=tied), rank=2, target_modules=("lm_head",))
    assert bytes_per_token(adapted) == bytes_per_token(bare) + 4 * 2 * (97 + 48)


def test_the_weight_bytes_of_a_token_are_those_of_its_experts(tiny_model: Make) -> None:
    read = [bytes_per_token(tiny_model(num_local_experts=4, num_experts_per_tok=n)) for n in (1, 2, 4)]
    expert = 4 * 3 * 48 * 80  # float32: three matrices
    assert read[1] - read[0] == 3 * expert and read[2] - read[1] == 3 * 2 * expert  # three layers


def test_speed_is_reported_against_the_roofline(tiny_model: Make) -> None:
    model = tiny_model()
    sequence = Sequence(
        [1] * 40, GenerationOptions(), (), [2] * 21, num_cached_tokens=10, prefill_seconds=0.3, decode_seconds=0.5
    )
    report = describe_speed(model, sequence, bandwidth=80 * bytes_per_token(model))
    assert "prefill: 30 tokens (10 more were cached), 100.0 tokens/s" in report
    assert "decode: 20 tokens, 40.0 tokens/s" in report and "50% of the roofline" in report
    sequence.new_ids = [2]
    assert "decode" not in describe_speed(model, sequence)
    assert memory_bandwidth(megabytes=4) > 1e6


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="reading GPU memory needs a CUDA GPU; none is here")
def test_the_memory_bandwidth_of_a_gpu_is_plausible() -> None:
    assert memory_bandwidth("cuda", megabytes=1024) > 1e11
