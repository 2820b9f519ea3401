"""`/v1/embeddings`: the mean of a text's last hidden states, scaled to length 1.

A LLaMA is trained to continue text, not to compare it: its embeddings are weaker than the ones of an embedding model.

Source of the shapes: https://platform.openai.com/docs/api-reference/embeddings.
"""

from __future__ import annotations

import asyncio
import base64
from functools import partial
from typing import Any

import numpy as np
import torch
from starlette.requests import Request
from starlette.responses import Response

from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.server.api.errors import as_api_error
from bpe_llama.model.server.api.schemas import EmbeddingRequest
from bpe_llama.model.server.endpoints.completions import ids_of, prompts_of
from bpe_llama.model.server.generation import Service, unless_gone
from bpe_llama.playground.errors import ApiError, JsonResponse, bad
from bpe_llama.playground.threads import in_thread


async def answer(service: Service, request: EmbeddingRequest, http: Request) -> Response:
    """Return the embedding of each text."""
    name, generator = service.find(request.model)
    size = generator.model.config.hidden_size
    if request.dimensions not in (None, size):
        raise bad(f"dimensions is {request.dimensions}; expected the model's {size}", "dimensions")
    inputs = prompts_of(request.input, "input")
    if "" in inputs:
        raise bad("input holds an empty text", "input")
    if len(inputs) > service.config.limits.inputs:
        raise bad(f"input has {len(inputs):,} texts; expected at most {service.config.limits.inputs:,}", "input")
    try:
        ids = await in_thread(lambda: [ids_of(generator, given) for given in inputs])
    except Exception as error:
        raise as_api_error(error, "input") from error
    room, longest = service.scheduler.context(name), max(map(len, ids))
    if longest > room:
        message = f"input has a text of {longest:,} tokens; expected at most {room:,}"
        raise bad(message, "input", "context_length_exceeded")

    async def embed() -> list[np.ndarray[Any, Any]]:
        run = service.scheduler.run
        try:
            return [await run(partial(mean_hidden_state, generator.model, text)) for text in ids]
        except Exception as error:
            raise as_api_error(error, "input") from error

    seconds = service.config.timeout
    try:
        found = await unless_gone(http, asyncio.wait_for(embed(), seconds))
    except asyncio.TimeoutError:
        raise ApiError(408, f"the request took over {seconds:g} s", code="timeout") from None
    data = [
        {"object": "embedding", "index": place, "embedding": _encoded(vector, request.encoding_format)}
        for place, vector in enumerate(found)
    ]
    tokens = sum(map(len, ids))
    service.metrics.prompt_tokens(name, tokens)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JsonResponse({"object": "list", "data": data, "model": name, "usage": usage})


@torch.no_grad()
def mean_hidden_state(model: LlamaForCausalLM, ids: list[int]) -> np.ndarray[Any, Any]:
    """Return the mean of the last hidden states of a text, scaled to length 1, float32 (D,).

    Args:
        model: The model; the hidden states are taken after its last norm.
        ids: T ids.

    Raises:
        FloatingPointError: If the hidden states hold NaN or infinities: the weights are broken.
    """
    hidden_TD = model.model(torch.tensor([ids], device=model.device))[0].float()
    mean_D = hidden_TD.mean(0)
    if not bool(mean_D.isfinite().all()):
        raise FloatingPointError("the model's hidden states hold NaN or infinities")
    return (mean_D / mean_D.norm().clamp_min(1e-12)).cpu().numpy()


def _encoded(vector: np.ndarray[Any, Any], encoding: str | None) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return [float(value) for value in vector]
