"""How fast a sequence was generated, beside how fast it could be: no token comes sooner than its weights are read."""

from __future__ import annotations

import time

import torch
from torch import nn

from bpe_llama.model.layers.moe import MixtureOfExperts
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.sampling.sequence import Sequence


def read_bandwidth(device: torch.device | str = "cpu", megabytes: int | None = None, rounds: int = 5) -> float:
    """Return how many bytes a second passes over memory read, the best of a few.

    Args:
        device: Whose memory.
        megabytes: To read; take several times what caches hold. 256 by default, and 1024 on CUDA.
        rounds: Timings, after a first one that does not count; on CUDA of several passes, lest launching one counts.

    Example:
        >>> read_bandwidth(megabytes=1) > 0
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
    """Return the bytes of weights that one new token reads: not experts at rest, nor an embedding that is not the head.

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
    """Return two lines: the rate at which the prompt was read, and that of the new ids against the memory's.

    Args:
        model: That generated the sequence.
        sequence: Finished.
        bandwidth: Bytes a second; measured now by default.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> from bpe_llama.model.sampling.params import GenerationOptions
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, max_position_embeddings=64)
        >>> sequence = Sequence([1] * 50, GenerationOptions(), (), [2] * 11, prefill_seconds=0.5, decode_seconds=2.0)
        >>> print(describe_speed(LlamaForCausalLM(config), sequence, bandwidth=1e6))
        prefill: 50 tokens, 100.0 a second
        decode: 10 tokens, 5.0 a second; reading 0.0 MB a token, 5% of the 0.0 GB/s this machine reads
    """
    read, new = len(sequence.prompt) - sequence.num_cached_tokens, len(sequence.new_ids) - 1
    reused = f" ({sequence.num_cached_tokens} more were cached)" if sequence.num_cached_tokens else ""
    lines = [f"prefill: {read} tokens{reused}, {read / sequence.prefill_seconds:.1f} a second"]
    if new > 0:
        rate, size = new / sequence.decode_seconds, bytes_per_token(model)
        bandwidth = read_bandwidth(model.device) if bandwidth is None else bandwidth
        lines.append(
            f"decode: {new} tokens, {rate:.1f} a second; reading {size / 1e6:.1f} MB a token, "
            f"{rate * size / bandwidth:.0%} of the {bandwidth / 1e9:.1f} GB/s this machine reads"
        )
    return "\n".join(lines)
