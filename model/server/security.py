"""The checks of a request before its body is parsed: host, origin, API key, type and size of the body.

They are plain ASGI middleware, which buffers no stream and passes on that a client has disconnected.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bpe_llama._core import shown
from bpe_llama.model.server.config import is_loopback
from bpe_llama.model.server.generation import Service
from bpe_llama.playground.errors import ApiError

PUBLIC = ("/", "/health", "/openapi.json")
"""Paths that need no key."""
STATIC = "/static/"
"""The path of the page's files, which need no key."""
PAGE = "/playground/"
"""The path of the page's endpoints, which check bodies themselves: the file of a tokenizer is large and not JSON."""


class Guard:
    """Refuses a request from another host or site, without a valid key, or with a body that is too large or no JSON.

    Args:
        app: The application, which gets the other requests.
        service: Its ``config`` has keys, origins and limits.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service, self.config = app, service, service.config
        self._keys = [key.encode("ascii") for key in self.config.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            if self.config.checks_host:
                check_host(headers.get("host", ""))
            self._check_origin(scope, headers)
            scope.setdefault("state", {})["key"] = self._identity(scope, headers)
            self._check_body(scope, headers)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        bounded = not scope["path"].startswith(PAGE)
        await self.app(scope, self._limited(receive, bounded), send)

    def _identity(self, scope: Scope, headers: Headers) -> str:
        """Return a hash of the client's key, "" if none is needed.

        Raises:
            ApiError: 401 if the key is missing or wrong.
        """
        given = headers.get("authorization", "")
        scheme, _, token = given.partition(" ")
        found = None
        for key in self._keys:  # compares with all keys, so that the time does not tell which one is alike
            if hmac.compare_digest(token.strip().encode("utf-8", "replace"), key) and scheme.lower() == "bearer":
                found = key
        if found is not None:
            return hashlib.sha256(found).hexdigest()[:16]
        path = scope["path"]
        if not self._keys or path in PUBLIC or path.startswith(STATIC):
            return ""
        what = "the API key is wrong" if given else "the API key is missing: send Authorization: Bearer KEY"
        raise ApiError(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """Raise an ApiError if a browser sends the request for a page of another site that CORS does not allow."""
        origin = headers.get("origin")
        own = origin is None or origin.partition("://")[2] == headers.get("host")  # older browsers send Origin alone
        site = headers.get("sec-fetch-site", "none" if own else "cross-site")
        foreign = site not in ("none", "same-origin")
        allowed = self.config.cors_origins
        if foreign and scope["method"] == "POST" and "*" not in allowed and headers.get("origin") not in allowed:
            message = f"Origin is {shown(headers.get('origin', ''))}; requests of other sites' pages are refused"
            raise ApiError(403, message, param="Origin", code="foreign_origin")

    def _check_body(self, scope: Scope, headers: Headers) -> None:
        """Raise an ApiError if the headers announce a body that is not JSON or too large."""
        if scope["method"] not in ("POST", "PUT", "PATCH") or scope["path"].startswith(PAGE):
            return
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # browsers let any page send some other types without asking the server first
            raise ApiError(415, f"Content-Type is {shown(kind)}; expected application/json", code="unsupported_type")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.config.limits.body_bytes:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body has more than {self.config.limits.body_bytes:,} bytes", code="body_too_large")

    def _limited(self, receive: Receive, bounded: bool) -> Receive:
        """Return a ``receive`` that raises once the body has more bytes, or takes more time, than the limits allow.

        It also raises if the server shuts down before the body is complete.
        """
        limits = self.config.limits
        size, complete = 0, False
        deadline = time.monotonic() + limits.body_seconds

        async def counted() -> Message:
            nonlocal size, complete
            if complete:  # what comes now is that the client goes
                return await receive()
            closing = self.service.closing
            arriving: asyncio.Future[Any] = asyncio.ensure_future(receive())
            try:
                seconds = max(deadline - time.monotonic(), 0)
                await asyncio.wait([arriving, closing], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            finally:
                arriving.cancel()  # does nothing if it is done
            if arriving.done():
                message: Message = arriving.result()
            elif closing.done():
                raise HTTPException(503, "the server is shutting down")
            else:
                raise HTTPException(408, f"the body took over {limits.body_seconds:g} s")
            if message["type"] == "http.request":
                complete = not message.get("more_body", False)
                size += len(message.get("body", b""))
                if bounded and size > limits.body_bytes:  # FastAPI turns other exceptions into status 400
                    raise HTTPException(413, str(self._too_large()))
            return message

        return counted


def check_host(host: str) -> None:
    """Raise an ApiError unless a ``Host`` header names this machine.

    A web page can reach a server of this machine through a domain name of its own that resolves to 127.0.0.1 (DNS
    rebinding). Its requests have that name as their ``Host``.

    Example:
        >>> check_host("localhost:8000"), check_host("[::1]")
        (None, None)
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    if not is_loopback(name.strip("[]")):
        message = f"Host is {shown(host)}; expected 127.0.0.1 or localhost, as the server has no API key"
        raise ApiError(403, message, param="Host", code="foreign_host")
