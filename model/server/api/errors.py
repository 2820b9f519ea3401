"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``.

Source: https://platform.openai.com/docs/guides/error-codes.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bpe_llama.model.server.scheduler import QueueFullError, ShuttingDownError

logger = logging.getLogger("bpe_llama.server")

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """An answer other than 200.

    Args:
        status: The HTTP status.
        message: What was wrong and what was expected.
        param: The field of the request, such as ``messages[0].role``.
        code: A word for programs, such as ``model_not_found``.
        headers: Further headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the error as OpenAI's clients read it."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Return the error as a response."""
        return JsonResponse(self.body(), self.status, self.headers)


class JsonResponse(Response):
    """JSON in ASCII: text of a client with half a surrogate pair has no UTF-8."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the content as JSON."""
        return to_json(content).encode("ascii")


def to_json(content: Any) -> str:
    r"""Return compact JSON in ASCII, without NaN or infinities, which are no JSON.

    Example:
        >>> to_json({"a": ["é", None]})
        '{"a":["\\u00e9",null]}'
    """
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for a field that is wrong."""
    return ApiError(400, message, param=param, code=code)


def as_api_error(error: BaseException, param: str | None = None) -> ApiError:
    """Return what a client is told of an error of the scheduler, the tokenizer or a model.

    Anything unexpected is logged with its traceback, and the client learns nothing of it.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, ShuttingDownError):
        return ApiError(503, str(error), code="shutting_down", headers={"Retry-After": "10"})
    if isinstance(error, ImportError):  # an optional package, such as llguidance
        return bad(f"this server cannot do that: {error}", param, "missing_package")
    if isinstance(error, UnicodeEncodeError):
        return bad("a text holds half of a surrogate pair, which has no UTF-8", param)
    if isinstance(error, ValueError | TypeError | OverflowError):
        return bad(str(error) or type(error).__name__, param)
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed; its log says why", code="internal_error")


_UNION_MEMBER = re.compile(
    r"(str|int|float|bool|none|constrained.*|(list|dict|literal|function|nullable)\W.*|[A-Z]\w*)"
)


def field_path(location: Sequence[str | int]) -> str:
    """Return a place in a body as a client writes it, without pydantic's names for the members of a union.

    Example:
        >>> field_path(("body", "messages", 0, "content", "list[ContentPart]", 1, "type"))
        'messages[0].content[1].type'
    """
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in ("body", "query", "path") and not _UNION_MEMBER.fullmatch(part):
            path += f".{part}" if path else part
    return path


def validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return the error for a body that pydantic refused; the first unknown field goes before other errors."""
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]
    if unknown:
        path = field_path(unknown[0]["loc"])
        return bad(f"{path} is no field that this server knows", path, "unknown_field")
    first = field_path(errors[0]["loc"])
    same = [error for error in errors if field_path(error["loc"]).startswith(first)]  # all members of a union
    error = max(same, key=lambda error: len(field_path(error["loc"])))
    path = field_path(error["loc"])
    if error["type"] == "json_invalid":
        return bad(f"the body is no JSON: {error.get('ctx', {}).get('error', error['msg'])}", code="invalid_json")
    if error["type"] == "missing":
        return bad(f"{path or 'the body'} is missing", path or None, "missing_field")
    wanted = dict.fromkeys(str(other["msg"]) for other in same if field_path(other["loc"]) == path)
    given = repr(error.get("input"))
    given = given if len(given) <= 100 else f"{given[:100]}..."
    message = f"{path or 'the body'} is {given}: {'; or: '.join(wanted)}"
    return bad(message, path or None, "invalid_value")


def install(app: FastAPI) -> None:
    """Let the app answer every error in OpenAI's shape."""

    async def api_error(_: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return validation_error(error.errors()).response()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is no {request.url.path}"
        elif error.status_code == 405:
            message = f"{request.url.path} does not take {request.method}"
        return ApiError(error.status_code, message, headers=error.headers).response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, api_error)
