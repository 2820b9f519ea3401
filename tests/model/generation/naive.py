"""Generation without a cache or a batch, to which engines are compared."""

from __future__ import annotations

import torch

from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.generation.generate import Engine, GenerationOptions
from bpe_llama.model.sampling import sample_logits


def alone(model: LlamaForCausalLM, prompt: list[int], options: GenerationOptions) -> list[int]:
    """Return the naive continuation: the whole text scored anew for every id, no cache, no batch."""
    ids: list[int] = []
    while len(ids) < options.max_new_tokens:
        history = torch.tensor([prompt + ids])
        logits = model(history).logits[:, -1]
        ids.append(
            int(sample_logits(logits, **options.sampler_options, history_BT=history, seed=options.seed, step=len(ids)))
        )
        if ids[-1] in model.config.eos_token_ids:
            break
    return ids


def finish(engine: Engine) -> None:
    """Step until all requests are finished."""
    while engine.has_unfinished_requests():
        engine.step()
