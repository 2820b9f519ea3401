"""The memory that a step of fixed shapes takes besides weights and cache, known before it is taken."""

from __future__ import annotations

import torch

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.device import check_memory

PARTS = 32
"""Parts of a sequence's keys, each of one program; the number is fixed, so that sums do not depend on the batch."""


def step_bytes(config: LlamaConfig, rows: int, dtype: torch.dtype) -> dict[str, int]:
    """Return the bytes of a step's logits, and of what it writes on the way: attention by parts and hidden features.

    Graphs of fewer rows share this memory.

    Args:
        config: Of the model.
        rows: Sequences of the largest step.
        dtype: Of the model.

    Example:
        >>> step_bytes(LlamaConfig(vocab_size=1000), 2, torch.bfloat16)["logits"]
        4000
    """
    heads, size, item = config.num_attention_heads, config.head_size, dtype.itemsize
    by_parts = 4 * heads * PARTS * (size + 2)
    features = item * (2 * heads + 2 * config.kv_heads) * size + item * 3 * config.intermediate_size
    hidden = (4 + 2 * item) * config.hidden_size
    return {"logits": rows * config.vocab_size * item, "buffers": rows * (by_parts + features + hidden)}


def check_step_fits(config: LlamaConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
    """Check that a step's memory is free.

    Raises:
        ValueError: If it is not; it names the sizes.
    """
    sizes = step_bytes(config, rows, dtype)
    parts = " and ".join(f"{size / 1e9:.3g} GB of {name}" for name, size in sizes.items())
    check_memory(sum(sizes.values()), device, f"a CUDA graph of {rows} sequences, {parts},", "use fewer slots")
