"""The application: OpenAI's endpoints, health and metrics, behind the checks of `security`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bpe_llama import __version__
from bpe_llama.model.server.api import errors
from bpe_llama.model.server.api.schemas import Body, ChatRequest, CompletionRequest, EmbeddingRequest, ResponseRequest
from bpe_llama.model.server.config import ServerConfig
from bpe_llama.model.server.endpoints import chat, completions, embeddings, responses
from bpe_llama.model.server.generation import ClientGoneError, Service
from bpe_llama.model.server.metrics import Metrics
from bpe_llama.model.server.scheduler import Scheduler
from bpe_llama.model.server.security import Guard
from bpe_llama.playground.bodies import check_containers
from bpe_llama.playground.errors import JsonResponse

_STATUSES = {
    400: "A field is missing, unknown or out of range; param names it.",
    401: "The API key is missing or wrong.",
    403: "The Host header names another machine, or the page of another site sends the request.",
    404: "There is no such model.",
    408: "The request took too long.",
    413: "The body is too large.",
    415: "Content-Type is not application/json.",
    429: "The queue is full; Retry-After says after how many seconds to try again.",
    503: "The server is shutting down.",
}
_DOCUMENTED: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {}}} for status, text in _STATUSES.items()
}


def create_app(
    scheduler: Scheduler,
    config: ServerConfig | None = None,
    *,
    routes: Sequence[BaseRoute] = (),
    grace: float = 30.0,
) -> FastAPI:
    """Return the application. It starts the scheduler when it starts, and shuts it down when it ends.

    Args:
        scheduler: Runs the models; the first of its ``generators`` is the default.
        config: Keys, hosts and limits.
        routes: Further routes, such as those of `bpe_llama.model.server.page.page_routes`.
        grace: Seconds that running requests have at the end.

    Example:
        >>> app = create_app(Scheduler({"small": generator}))  # doctest: +SKIP
    """
    config = config or ServerConfig()
    service = Service(scheduler, config, Metrics(scheduler), grace)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.end()

    app = FastAPI(title="bpe_llama", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.router.route_class = _BoundedRoute
    app.state.service = service
    errors.install(app)
    _add_endpoints(app, service)
    app.router.routes.extend(routes)
    app.add_middleware(Guard, service=service)
    app.add_middleware(Measured, service=service)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client in a browser sends a dozen X-Stainless-* headers
            expose_headers=["X-Ignored-Fields", "Retry-After"],
        )
    return app


def _add_endpoints(app: FastAPI, service: Service) -> None:
    def post(path: str, run: Callable[[Service, Any, Request], Any], kind: type[Body]) -> None:
        async def endpoint(request: Any, http: Request) -> Response:
            try:
                response: Response = await run(service, request, http)
            except ClientGoneError:
                return Response(status_code=499)
            ignored = request.ignored_fields()
            if ignored:
                response.headers["X-Ignored-Fields"] = ", ".join(ignored)
            return response

        endpoint.__annotations__ = {"request": kind, "http": Request, "return": Response}
        endpoint.__doc__ = kind.__doc__
        name = path.removeprefix("/v1/").replace("/", "_")
        app.post(path, responses=_DOCUMENTED, response_class=JsonResponse, name=name)(endpoint)

    post("/v1/chat/completions", chat.answer, ChatRequest)
    post("/v1/completions", completions.answer, CompletionRequest)
    post("/v1/embeddings", embeddings.answer, EmbeddingRequest)
    post("/v1/responses", responses.answer, ResponseRequest)
    documented: dict[int | str, dict[str, Any]] = {status: _DOCUMENTED[status] for status in (401, 403)}

    @app.get("/v1/models", responses=documented)
    async def models() -> Response:
        """List the models that the server has."""
        return JsonResponse({"object": "list", "data": [_model(service, name) for name in service.generators]})

    @app.get("/v1/models/{name:path}", responses=documented | {404: _DOCUMENTED[404]})
    async def model(name: str) -> Response:
        """Return one model."""
        return JsonResponse(_model(service, service.find(name)[0]))

    @app.get("/health", responses={403: _DOCUMENTED[403]})
    async def health() -> Response:
        """Say that the server is up."""
        return JsonResponse({"status": "ok", "version": __version__})

    @app.get("/metrics", responses=documented, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the counters, in Prometheus' text format."""
        return Response(service.metrics.render(), media_type=service.metrics.content_type)


def _model(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "bpe_llama",
        "max_model_len": service.scheduler.context(name),
    }


class _BoundedRoute(APIRoute):
    """A route that refuses a body with too many lists and objects before it is parsed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            try:
                check_containers(await request.body())
            except ClientDisconnect:
                return Response(status_code=499)
            return await handle(request)

        return bounded


class Measured:
    """Counts requests and their duration, until the last byte of a stream."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.metrics = app, service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", None) or "other"  # the request's own path would be a new label each time
            self.metrics.request(path, status, time.perf_counter() - start)
