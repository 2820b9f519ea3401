"""The routes of the page, and ``/tokenize`` and ``/detokenize`` with the requests and answers of vLLM.

Errors have OpenAI's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import iscoroutinefunction
from mimetypes import guess_type
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    from pydantic import Field
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute, Route
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the page needs {error.name}: pip install 'bpe_llama[serve]'", name=error.name
    ) from error

from bpe_llama.playground.bodies import Many, Shape, Strict, body_of, checked
from bpe_llama.playground.errors import ApiError, JsonResponse, bad, not_found
from bpe_llama.playground.library import Library
from bpe_llama.playground.threads import in_thread
from bpe_llama.playground.tokens import describe_chat, describe_merges, describe_text, describe_tokenizer

if TYPE_CHECKING:
    from bpe_llama.tokenizer import Tokenizer

STATIC = Path(__file__).parent / "static"
MAX_BODY = 2 << 20
"""Bytes of a request with text."""
MAX_FILE = 64 << 20
"""Bytes of a dropped tokenizer."""
MAX_UPLOADS = 2
"""Dropped tokenizers that are received or loaded at once; each takes memory before it is known to be one."""
MAX_MERGED = 2_000
"""Characters of a text to show merges of."""
# The page loads nothing from other hosts, and no other page may show it in a frame.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class TokenizeRequest(Strict):
    """A text or a conversation to encode: one of ``prompt`` and ``messages``."""

    model: str | None = None
    prompt: str | None = None
    messages: Many[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    """Whether to add the post-processor's tokens. Default: yes for a prompt; messages have the template's instead."""
    add_generation_prompt: bool = True
    tools: Many[dict[str, Any]] | None = None
    return_token_strs: bool = False


class DetokenizeRequest(Strict):
    """Ids to decode."""

    model: str | None = None
    tokens: Many[Annotated[int, Field(ge=0)]]


class TextRequest(Strict):
    """A text to show."""

    tokenizer: str | None = None
    text: str
    special: bool = False
    template: bool = False


class ChatRequest(Strict):
    """A conversation: the chat template's text and tokens are shown."""

    tokenizer: str | None = None
    messages: Many[dict[str, Any]]
    answer: bool = True


class MergesRequest(Strict):
    """A text: the merges of its pre-tokens are shown."""

    tokenizer: str | None = None
    text: Annotated[str, Field(max_length=MAX_MERGED)]


def playground(tokenizers: Mapping[str, Tokenizer]) -> Starlette:
    """Return the page as an application of its own, for a browser on the same machine.

    Args:
        tokenizers: The tokenizers by the names that the page shows.

    Raises:
        ModuleNotFoundError: If the extra ``serve`` is not installed.

    Example:
        >>> from bpe_llama import Tokenizer
        >>> tok = Tokenizer.train_from_iterator(["low lower lowest"], vocab_size=260, progress=False)
        >>> app = playground({"small": tok})  # uvicorn.run(app, host="127.0.0.1", port=8000)
        >>> sorted(route.path for route in app.routes)[:3]
        ['/', '/detokenize', '/playground/chat']
    """
    # A web page can let its own domain name resolve to 127.0.0.1; its requests have that name as their Host.
    local = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    return Starlette(routes=playground_routes(tokenizers), middleware=[local])


def _encode_messages(tokenizer: Tokenizer, request: TokenizeRequest) -> list[int]:
    return tokenizer.apply_chat_template(
        request.messages or [], add_generation_prompt=request.add_generation_prompt, tools=request.tools
    )


def playground_routes(
    tokenizers: Mapping[str, Tokenizer],
    *,
    models: Mapping[str, int] | None = None,
    encode_messages: Callable[[Tokenizer, TokenizeRequest], list[int]] | None = None,
) -> list[BaseRoute]:
    """Return the routes of the page, for an application with further routes.

    Args:
        tokenizers: The tokenizers by the names that the page shows.
        models: The context, in tokens, of each model that the application serves under ``/v1``.
        encode_messages: Returns the ids of the messages of ``/tokenize``; by default those of the chat template.
    """
    library = Library(tokenizers)
    contexts = dict(models or {})
    uploads = 0

    files = {file.name: file.read_bytes() for file in STATIC.iterdir() if file.is_file()}

    async def index(request: Request) -> Response:
        return Response(files["index.html"], media_type="text/html", headers=HEADERS)

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            return Response("Not Found", 404, media_type="text/plain")
        return Response(files[name], media_type=guess_type(name)[0], headers=HEADERS)

    def info(request: None) -> dict[str, Any]:
        shown = {name: describe_tokenizer(tokenizer) for name, tokenizer in library.tokenizers.items()}
        return {"tokenizers": shown, "models": list(contexts)}

    def tokens(request: TextRequest) -> dict[str, Any]:
        tokenizer = found(library, request.tokenizer)
        return describe_text(tokenizer, request.text, special=request.special, template=request.template)

    def chat(request: ChatRequest) -> dict[str, Any]:
        return describe_chat(found(library, request.tokenizer), request.messages, answer=request.answer)

    def merges(request: MergesRequest) -> dict[str, Any]:
        found(library, request.tokenizer)
        return {"pieces": describe_merges(library.twin(request.tokenizer), request.text)}

    def tokenize(request: TokenizeRequest) -> dict[str, Any]:
        tokenizer = found(library, request.model, "model")
        if (request.prompt is None) == (request.messages is None):
            raise bad("expected one of prompt and messages", "prompt")
        if request.messages is not None:
            if request.add_special_tokens:
                raise bad("a chat template writes its own special tokens", "add_special_tokens")
            ids = (encode_messages or _encode_messages)(tokenizer, request)
        else:
            added = request.add_special_tokens is not False
            ids = tokenizer(request.prompt or "", add_special_tokens=added)["input_ids"]
        ids = [int(token_id) for token_id in ids]
        answer: dict[str, Any] = {
            "count": len(ids),
            "max_model_len": contexts.get(request.model or next(iter(contexts), "")),
            "tokens": ids,
        }
        if request.return_token_strs:
            answer["token_strs"] = [tokenizer.id_to_token(token_id) for token_id in ids]
        return answer

    def detokenize(request: DetokenizeRequest) -> dict[str, Any]:
        tokenizer = found(library, request.model, "model")
        try:
            return {"prompt": tokenizer.decode(request.tokens)}
        except (KeyError, OverflowError) as error:
            raise bad(f"tokens: {error.args[0]}", "tokens") from None

    async def dropped(request: Request) -> Response:
        nonlocal uploads
        if uploads >= MAX_UPLOADS:
            message = f"{uploads} other tokenizers are being loaded"
            return ApiError(429, message, code="too_many_uploads", headers={"Retry-After": "5"}).response()
        uploads += 1
        try:
            content = await body_of(request, MAX_FILE, "application/octet-stream")
            name, tokenizer = await in_thread(library.drop, request.query_params.get("name", ""), content)
        except ApiError as error:
            return error.response()
        except ValueError as error:
            return bad(str(error)).response()
        finally:
            uploads -= 1
        return JsonResponse({"name": name, **describe_tokenizer(tokenizer)})

    return [
        Route("/", index),
        Route("/tokenize", answering(TokenizeRequest, tokenize), methods=["POST"]),
        Route("/detokenize", answering(DetokenizeRequest, detokenize), methods=["POST"]),
        Route("/playground/info", answering(None, info)),
        Route("/playground/tokens", answering(TextRequest, tokens), methods=["POST"]),
        Route("/playground/chat", answering(ChatRequest, chat), methods=["POST"]),
        Route("/playground/merges", answering(MergesRequest, merges), methods=["POST"]),
        Route("/playground/tokenizers", dropped, methods=["POST"]),
        Route("/static/{name}", static),
    ]


def found(library: Library, name: str | None, param: str = "tokenizer") -> Tokenizer:
    """Return the tokenizer of a name, the first one for None.

    Raises:
        ApiError: 404 if there is no such tokenizer; the message lists the names.
    """
    try:
        return library.get(name)
    except KeyError:
        raise not_found(param, str(name), library.tokenizers) from None


def answering(shape: type[Shape] | None, function: Callable[[Any], Any]) -> Callable[[Request], Any]:
    """Return a handler that checks the body of a request, calls a function with it, and answers with the result.

    Args:
        shape: The fields of the body; None for a request without one.
        function: Gets the body, returns a value for JSON. It runs in a thread unless it is a coroutine function. Its
            ApiError, ValueError or TypeError becomes the answer.
    """

    async def handle(request: Request) -> Response:
        try:
            content = (
                checked(shape, await body_of(request, MAX_BODY, "application/json")) if shape is not None else None
            )
            if iscoroutinefunction(function):
                return JsonResponse(await function(content))
            return JsonResponse(await in_thread(function, content))
        except ApiError as error:
            return error.response()
        except (ValueError, TypeError) as error:
            return bad(str(error)).response()

    return handle
