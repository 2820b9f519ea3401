"""Every error of the application as an answer in OpenAI's shape (`bpe_llama.playground.errors`)."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bpe_llama.model.generation.sampler_dispatch import LogitsError
from bpe_llama.model.sampling.constraint import ConstraintError
from bpe_llama.model.server.scheduler import QueueFullError, ShuttingDownError
from bpe_llama.playground.bodies import validation_error
from bpe_llama.playground.errors import ApiError, bad

logger = logging.getLogger("bpe_llama.server")


def as_api_error(error: BaseException, param: str | None = None, constraint: str | None = None) -> ApiError:
    """Return the answer for an error of the scheduler, the tokenizer or a model.

    An unexpected error is logged with its traceback; the client gets status 500 without any detail.

    Args:
        error: The error.
        param: The field of the request that a ValueError or TypeError is about.
        constraint: The field that holds the schema or grammar of the answer.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, ShuttingDownError):
        return ApiError(503, str(error), code="shutting_down", headers={"Retry-After": "10"})
    if isinstance(error, ConstraintError):
        return bad(str(error), constraint or param)
    if isinstance(error, ImportError):  # an optional package, such as llguidance
        return bad(f"this server cannot do that: {error}", constraint or param, "missing_package")
    if isinstance(error, UnicodeEncodeError):
        return bad("a text holds half of a surrogate pair, which has no UTF-8", param)
    if isinstance(error, ValueError | TypeError | OverflowError) and not isinstance(error, LogitsError):
        return bad(str(error) or type(error).__name__, param)
    return _failure(error)


def unexpected(error: BaseException) -> ApiError:
    """Return what a client is told of an error anywhere else: a ValueError there is a mistake of this program."""
    known = isinstance(error, ApiError | QueueFullError | ShuttingDownError)
    return as_api_error(error) if known else _failure(error)


def _failure(error: BaseException) -> ApiError:
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed; its log says why", code="internal_error")


def install(app: FastAPI) -> None:
    """Let the app answer every error in OpenAI's shape."""

    async def api_error(_: Request, error: Exception) -> Response:
        return unexpected(error).response()

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return validation_error(error.errors()).response()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is no {request.url.path}"
        elif isinstance(error.__cause__, ValueError):  # of json.loads: too large a number, no UTF-8
            message = f"the body is no JSON: {error.__cause__}"
        elif error.status_code == 405:
            message = f"{request.url.path} does not take {request.method}"
        return ApiError(error.status_code, message, headers=error.headers).response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, api_error)
