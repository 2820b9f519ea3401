"""Errors in OpenAI's shape, ``{"error": {"message", "type", "param", "code"}}``, and JSON that every client can read.

`bpe_llama.model.server` answers with the same classes.

Source: https://platform.openai.com/docs/guides/error-codes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.responses import Response

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
"""The ``type`` of an error by its HTTP status; ``invalid_request_error`` for all others."""


def to_json(content: Any) -> str:
    r"""Return compact JSON in ASCII.

    Raises:
        ValueError: If the content holds NaN or an infinity, which JSON does not have.

    Example:
        >>> to_json({"a": ["é", None]})
        '{"a":["\\u00e9",null]}'
    """
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


class JsonResponse(Response):
    """A response of JSON in ASCII: UTF-8 cannot encode half of a surrogate pair, which a client may have sent."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the content as JSON."""
        return to_json(content).encode("ascii")


class ApiError(Exception):
    """An answer with a status other than 200.

    Args:
        status: The HTTP status.
        message: What was wrong and what was expected.
        param: The field of the request, such as ``messages[0].role``.
        code: A word for programs, such as ``model_not_found``.
        headers: Further headers.

    Example:
        >>> ApiError(404, "there is no model 'x'", param="model").body()["error"]["type"]
        'not_found_error'
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

    def response(self) -> JsonResponse:
        """Return the error as a response."""
        return JsonResponse(self.body(), self.status, self.headers)


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error, with status 400, for a field that is wrong."""
    return ApiError(400, message, param=param, code=code)


def not_found(param: str, name: str, known: Iterable[str]) -> ApiError:
    """Return the error, with status 404, for the name of a model or tokenizer that there is not."""
    message = f"there is no {param} {name!r:.100}; known: {', '.join(known)}"
    return ApiError(404, message, param=param, code="model_not_found")
