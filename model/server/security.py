"""Who may ask, and how much: the checks before a request's body is read.

All are plain ASGI, so that they neither buffer a stream nor hide that a client has gone.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bpe_llama.model.server.api.errors import ApiError
from bpe_llama.model.server.config import ServerConfig, is_loopback

PUBLIC = ("/", "/health", "/openapi.json")
"""Paths that need no key."""
STATIC = "/static/"
"""Below it are the files of the page, which need no key either."""
PAGE = "/playground/"
"""Below it are the page's own endpoints, which limit bodies themselves: a tokenizer's file is large, and no JSON."""


class Guard:
    """Refuses requests with a foreign ``Host``, without a key, with a body that is too large or no JSON.

    Args:
        app: What is guarded.
        config: The server's.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self.app, self.config = app, config
        self._keys = [key.encode("ascii") for key in config.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer why not."""
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
        """Return who asks, as a hash of the key; "" where no key is needed."""
        given = headers.get("authorization", "")
        scheme, _, token = given.partition(" ")
        found = None
        for key in self._keys:  # all of them, so that the time tells nothing
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
        """Raise if a browser says that a page of another site sends this, unless CORS allows that site."""
        origin = headers.get("origin")
        own = origin is None or origin.partition("://")[2] == headers.get("host")  # older browsers send Origin alone
        site = headers.get("sec-fetch-site", "none" if own else "cross-site")
        foreign = site not in ("none", "same-origin")
        allowed = self.config.cors_origins
        if foreign and scope["method"] == "POST" and "*" not in allowed and headers.get("origin") not in allowed:
            message = f"Origin is {headers.get('origin', '')!r:.100}; this server answers no pages of other sites"
            raise ApiError(403, message, param="Origin", code="foreign_origin")

    def _check_body(self, scope: Scope, headers: Headers) -> None:
        if scope["method"] not in ("POST", "PUT", "PATCH") or scope["path"].startswith(PAGE):
            return
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a web page may send other types to any server without asking it first
            raise ApiError(415, f"Content-Type is {kind!r:.100}; expected application/json", code="unsupported_type")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.config.limits.body_bytes:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body has more than {self.config.limits.body_bytes:,} bytes", code="body_too_large")

    def _limited(self, receive: Receive, bounded: bool) -> Receive:
        """Return a ``receive`` that refuses a body that grows beyond the limit as it comes, or takes too long."""
        limits = self.config.limits
        size, complete = 0, False
        deadline = time.monotonic() + limits.body_seconds

        async def counted() -> Message:
            nonlocal size, complete
            if complete:  # what comes now is that the client goes
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                raise HTTPException(408, f"the body took over {limits.body_seconds:g} s") from None
            if message["type"] == "http.request":
                complete = not message.get("more_body", False)
                size += len(message.get("body", b""))
                if bounded and size > limits.body_bytes:  # FastAPI passes this class on, and hides others
                    raise HTTPException(413, str(self._too_large()))
            return message

        return counted


def check_host(host: str) -> None:
    """Raise unless a ``Host`` header names this machine: a page elsewhere may point its own domain name here.

    Example:
        >>> check_host("localhost:8000"), check_host("[::1]")
        (None, None)
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    if not is_loopback(name.strip("[]")):
        message = f"Host is {host!r:.100}; expected 127.0.0.1 or localhost, as the server has no API key"
        raise ApiError(403, message, param="Host", code="foreign_host")
