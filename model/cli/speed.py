"""The speed of a sequence against the roofline of decoding: weight bytes per token / memory bandwidth."""

from __future__ import annotations

import time

import torch
from torch import nn

from bpe_llama.model.layers.moe import MixtureOfExperts
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.sampling.sequence import Sequence


def memory_bandwidth(device: torch.device | str = "cpu", megabytes: int | None = None, rounds: int = 5) -> float:
    """Return the memory bandwidth in bytes per second of reading, the best of several rounds.

    Args:
        device: The device.
        megabytes: Size of the array, several times that of the caches; 256 by default, 1024 on CUDA.
        rounds: Timed rounds, after one for warm-up; on CUDA each reads the array 16 times, to hide launch latency.

    Example:
        >>> memory_bandwidth(megabytes=1) > 0
        True
    """
    on_cuda = torch.device(device).type == "cuda"
    if megabytes is None:
        megabytes = 1024 if on_cuda else 256
    passes = 16 if on_cuda else 1
    block = torch.ones(megabytes * 2**18, device=device)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for _ in range(passes):
            block.sum()
        if on_cuda:
            torch.cuda.synchronize(block.device)
        seconds.append(time.perf_counter() - start)
    return passes * block.numel() * 4 / min(seconds[1:])


def bytes_per_token(model: nn.Module) -> int:
    """Return the weight bytes that decoding one token reads: of the experts, those that are routed to; no embedding.

    An embedding that is tied to the output projection counts, as the projection reads it.

    Example:
        >>> bytes_per_token(nn.Linear(3, 5))
        80
    """
    read = _bytes_of(model)
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            experts = _bytes_of(module.experts)
            read -= experts - experts * module.per_token // len(module.experts)
    if isinstance(model, LlamaForCausalLM):
        not_the_head = set(model.model.embed_tokens.parameters()) - set(model.lm_head.parameters())
        read -= sum(weight.nbytes for weight in not_the_head)
    return read


def _bytes_of(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in {*module.parameters(), *module.buffers()})


def describe_speed(model: LlamaForCausalLM, sequence: Sequence, bandwidth: float | None = None) -> str:
    """Return two lines: tokens per second of prefill, and of decode with the fraction of the roofline.

    Args:
        model: The model that generated the sequence.
        sequence: The finished sequence.
        bandwidth: Memory bandwidth in bytes per second; measured by default.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> from bpe_llama.model.sampling.params import GenerationOptions
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, max_position_embeddings=64)
        >>> sequence = Sequence([1] * 50, GenerationOptions(), (), [2] * 11, prefill_seconds=0.5, decode_seconds=2.0)
        >>> print(describe_speed(LlamaForCausalLM(config), sequence, bandwidth=1e6))
        prefill: 50 tokens, 100.0 tokens/s
        decode: 10 tokens, 5.0 tokens/s; 0.0 MB of weights per token, 5% of the roofline at 0.0 GB/s
    """
    prefilled, new = len(sequence.prompt) - sequence.num_cached_tokens, len(sequence.new_ids) - 1
    reused = f" ({sequence.num_cached_tokens} more were cached)" if sequence.num_cached_tokens else ""
    lines = [f"prefill: {prefilled} tokens{reused}, {prefilled / sequence.prefill_seconds:.1f} tokens/s"]
    if new > 0:
        rate, size = new / sequence.decode_seconds, bytes_per_token(model)
        bandwidth = memory_bandwidth(model.device) if bandwidth is None else bandwidth
        lines.append(
            f"decode: {new} tokens, {rate:.1f} tokens/s; {size / 1e6:.1f} MB of weights per token, "
            f"{rate * size / bandwidth:.0%} of the roofline at {bandwidth / 1e9:.1f} GB/s"
        )
    return "\n".join(lines)
