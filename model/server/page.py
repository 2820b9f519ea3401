"""The page of a server with models: `bpe_llama.playground`, and the endpoints that describe a model."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from bpe_llama.model.generation.prompts import whole_ids
from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.model.generation.text_options import check_known
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.server.api import prompts
from bpe_llama.model.server.api.schemas import ChatRequest
from bpe_llama.model.server.config import Limits
from bpe_llama.model.server.endpoints.chat import conversation
from bpe_llama.model.server.scheduler import Scheduler
from bpe_llama.playground.app import TokenizeRequest, answering, playground_routes
from bpe_llama.playground.bodies import Strict, validation_error
from bpe_llama.playground.errors import ApiError, JsonResponse, bad, not_found
from bpe_llama.playground.tokens import describe_token
from bpe_llama.tokenizer import Tokenizer

MAX_ATTENDED = 256
"""The most tokens of a text to show attention weights of; memory grows with their square."""


class AttentionRequest(Strict):
    """A text, and the layer and head that show their attention weights on it."""

    model: str
    text: Annotated[str, Field(min_length=1)]
    layer: Annotated[int, Field(ge=0)] = 0
    head: Annotated[int, Field(ge=0)] = 0


def page_routes(scheduler: Scheduler) -> list[BaseRoute]:
    """Return the routes of the page, of the endpoints behind it, and of ``/tokenize`` and ``/detokenize``.

    Args:
        scheduler: Runs the models; only its thread uses them.
    """
    generators = scheduler.generators
    contexts = {name: scheduler.context(name) for name in generators}
    tokenizers = {name: generator.tokenizer for name, generator in generators.items()}

    def found(name: str) -> TextGenerator:
        if name not in generators:
            raise not_found("model", name, generators)
        return generators[name]

    async def model(request: Request) -> Response:
        try:
            generator = found(request.query_params.get("model", next(iter(generators))))
        except ApiError as error:
            return error.response()
        return JsonResponse(await scheduler.run(lambda: describe_model(generator.model)))

    async def attention(request: AttentionRequest) -> dict[str, Any]:
        generator = found(request.model)
        return await scheduler.run(lambda: describe_attention(generator, request.text, request.layer, request.head))

    return [
        *playground_routes(tokenizers, models=contexts, encode_messages=encode_messages),
        Route("/playground/model", model),
        Route("/playground/attention", answering(AttentionRequest, attention), methods=["POST"]),
    ]


def encode_messages(tokenizer: Tokenizer, request: TokenizeRequest) -> list[int]:
    """Return the ids of the messages of ``/tokenize``: the prompt of ``/v1/chat/completions``.

    Raises:
        ApiError: If that endpoint refuses the messages or tools.
        ValueError: If the chat template does.
    """
    fields = ("messages", "tools", "add_generation_prompt")
    try:
        chat = ChatRequest.model_validate({name: getattr(request, name) for name in fields})
    except ValidationError as error:
        raise validation_error(error.errors()) from None
    return prompts.encode(tokenizer, conversation(chat, Limits()))


def describe_model(model: LlamaForCausalLM) -> dict[str, Any]:
    """Return the size, the shape and the parameters of a model.

    Returns:
        ``figures``, names and values to be read by people; ``layers`` and ``heads``, how many there are; and
        ``parameters``, one item a tensor with its ``name``, ``shape``, ``dtype``, number of ``parameters`` and
        ``bytes``. Buffers are listed too, since quantized weights are buffers.

    Example:
        >>> from bpe_llama.model import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        ...                      num_attention_heads=2)
        >>> found = describe_model(LlamaForCausalLM(config))
        >>> found["figures"]["parameters"], found["layers"], found["parameters"][0]["name"]
        ('5,456', 2, 'model.embed_tokens.weight')
    """
    config = model.config
    tensors = [*model.named_parameters(), *model.named_buffers()]
    rows = [
        {
            "name": name,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "parameters": tensor.numel(),
            "bytes": tensor.nbytes,
        }
        for name, tensor in tensors
    ]
    figures = {
        "family": config.model_type,
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "memory": f"{sum(tensor.nbytes for _, tensor in tensors) / 2**20:,.1f} MiB",
        "layers": config.num_hidden_layers,
        "hidden size": config.hidden_size,
        "attention heads": f"{config.num_attention_heads}, with {config.kv_heads} KV heads",
        "vocabulary": f"{config.vocab_size:,}",
        "context": f"{config.context_length:,} tokens",
        "type": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }
    heads = config.num_attention_heads
    return {"figures": figures, "layers": config.num_hidden_layers, "heads": heads, "parameters": rows}


@torch.no_grad()
def describe_attention(generator: TextGenerator, text: str, layer: int, head: int) -> dict[str, Any]:
    """Return the attention weights of one head on a text.

    Args:
        generator: The model and its tokenizer.
        text: The text, of T tokens.
        layer: The layer, from 0.
        head: The head of queries, from 0.

    Returns:
        ``tokens``, T texts; and ``weights``, T rows of T numbers: row ``t`` holds the attention weights of token ``t``
        over all tokens, rounded to four decimals. Before rounding they sum to 1.

    Raises:
        ApiError: If there is no such layer or head, or the text has no token or more than `MAX_ATTENDED`.
        ValueError: If it has an added token beyond the model's ids.
    """
    config = generator.model.config
    if layer >= config.num_hidden_layers:
        raise bad(f"layer is {layer}; expected 0 to {config.num_hidden_layers - 1}", "layer")
    if head >= config.num_attention_heads:
        raise bad(f"head is {head}; expected 0 to {config.num_attention_heads - 1}", "head")
    ids = whole_ids(generator.encode(text))
    if not 1 <= len(ids) <= MAX_ATTENDED:
        raise bad(f"the text has {len(ids)} tokens; expected 1 to {MAX_ATTENDED}", "text")
    check_known(ids, "the text", config.vocab_size, generator.tokenizer)
    weights = generator.model.attention_weights(torch.tensor([ids], device=generator.model.device))[layer][0, head]
    tokens = [describe_token(generator.tokenizer, token_id)["text"] for token_id in ids]
    return {"tokens": tokens, "weights": [[round(weight, 4) for weight in row] for row in weights.float().tolist()]}
