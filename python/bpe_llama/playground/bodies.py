"""Reads the body of a request: its size, its JSON and its fields, and the error for what is wrong.

`bpe_llama.model.server` checks its bodies by the same functions.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import ClientDisconnect, Request

from bpe_llama.playground.errors import ApiError, bad

MAX_CONTAINERS = 100_000
"""Lists and objects in one body. Python needs a microsecond for each, in which no other request is answered."""

Item = TypeVar("Item")
Many = Annotated[list[Item], Field(fail_fast=True)]
"""A list in a request. Only its first error is collected: a body may hold millions of them."""


class Strict(BaseModel):
    """A request with fields of exact types; an unknown field is an error, unless it is null, which means absent."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _first_unknown(cls, given: Any) -> Any:
        """Keep the first unknown field alone, for the same reason, and none that is null."""
        if not isinstance(given, dict):
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = [name for name, value in given.items() if name not in known and value is not None]
        return {name: value for name, value in given.items() if name in known or name in unknown[:1]}


Shape = TypeVar("Shape", bound=Strict)


async def body_of(request: Request, most: int, kind: str) -> bytes:
    """Return the body of a request.

    Raises:
        ApiError: 413 if it has more than ``most`` bytes; 415 if its type is not ``kind``. A web page of another site
            may send some other types to any server without asking it first.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != kind:
        raise ApiError(415, f"Content-Type is {given!r:.100}; expected {kind}", code="unsupported_type")
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise ApiError(413, f"the body has more than {most:,} bytes", code="body_too_large")
            parts.append(part)
    except ClientDisconnect:
        raise bad("the client went before the end of its request") from None
    return b"".join(parts)


def checked(shape: type[Shape], content: bytes) -> Shape:
    """Return the fields of a body.

    Raises:
        ApiError: If the body is no JSON or a field is not valid; it names the field.
    """
    check_containers(content)
    try:
        values = json.loads(content)
    except RecursionError:
        raise bad("the body's JSON is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise bad(f"the body is no JSON: {error}", code="invalid_json") from None
    try:
        return shape.model_validate(values)
    except ValidationError as error:
        raise validation_error(error.errors()) from None


def check_containers(content: bytes) -> None:
    """Raise an ApiError if the JSON of a body has over `MAX_CONTAINERS` lists and objects; it is not parsed for that.

    Example:
        >>> check_containers(b'{"prompt": [1, 2]}')
    """
    if _brackets(content) > MAX_CONTAINERS:  # perhaps in strings, where they do not count
        content = content.replace(rb"\\", b"").replace(rb"\"", b"")
        if _brackets(b"".join(content.split(b'"')[::2])) > MAX_CONTAINERS:
            raise bad(f"the body has over {MAX_CONTAINERS:,} lists and objects", code="body_too_large")


def _brackets(content: bytes) -> int:
    return content.count(b"[") + content.count(b"{")


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
    message = f"{path or 'the body'} is {_shortened(error.get('input'))}: {'; or: '.join(wanted)}"
    return bad(message, path or None, "invalid_value")


def _shortened(value: Any) -> str:
    """Return the beginning of a value; of a long list only the first items are written."""
    text = repr(value[:101]) if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
