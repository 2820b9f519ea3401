"""Convert Python functions to the JSON schemas of tools that chat templates show to a model; read a call's arguments.

Source of the format: ``transformers.utils.get_json_schema`` 5.23 and
https://huggingface.co/docs/transformers/chat_extras#schema.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bpe_llama._arguments import iterator, reusable
from bpe_llama._core import shown

LONGEST_DOCSTRING = 10_000  # characters; the time to parse one grows with their square
_NAMES = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
    list: "array",
    tuple: "array",
    dict: "object",
}
_LISTABLE = (int, float, str, bool, type(None))  # what an enum may hold
_MEDIA = {"PIL.Image.Image": "image", "torch.Tensor": "audio"}
_SECTIONS = ("Args:", "Returns:", "Raises:")


def call_arguments(text: str, where: str = "arguments") -> dict[str, Any]:
    """Return the arguments of a call, which OpenAI's format has as JSON text, as the object that templates render.

    Args:
        text: The arguments; empty text is an empty object.
        where: What an error calls them.

    Raises:
        ValueError: If the text is not a JSON object.

    Example:
        >>> call_arguments('{"city": "Rome"}')
        {'city': 'Rome'}
    """
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError(f"{where} is {shown(text)}; expected a JSON object")
    return arguments


def tool_schemas(tools: Iterable[Any]) -> list[dict[str, Any]]:
    """Return tools as JSON schemas: mappings unchanged, functions converted by `function_schema`.

    Raises:
        ValueError: If a tool is neither, or a function cannot be converted.
    """
    try:
        given = list(iterator("tools", reusable("tools", tools), "a list of JSON schemas or functions"))
    except TypeError:
        raise ValueError(f"tools is {shown(tools)}; expected a list of JSON schemas or functions") from None
    schemas = []
    for place, tool in enumerate(given):
        if isinstance(tool, Mapping):
            schemas.append(dict(tool))
        elif inspect.isfunction(tool) or inspect.ismethod(tool):
            schemas.append(function_schema(tool))
        else:
            raise ValueError(f"tool {place} is {shown(tool)}; expected a JSON schema (a mapping) or a function")
    return schemas


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the JSON schema of a function, from its type hints and its docstring in Google's style.

    The docstring describes each argument; ``(choices: ["a", "b"])`` at the end of a description lists its values.

    Args:
        function: A function or a bound method; an untyped ``self`` or ``cls`` is left out.

    Raises:
        ValueError: If it has no docstring or a long one, or an argument lacks a type hint or a description, or has a
            type without a JSON schema.

    Examples:
        >>> def multiply(x: float, y: float = 1.0) -> float:
        ...     '''Multiply two numbers.
        ...
        ...     Args:
        ...         x: The first.
        ...         y: The second.
        ...     '''
        >>> schema = function_schema(multiply)["function"]
        >>> schema["name"], schema["description"], schema["parameters"]["required"]
        ('multiply', 'Multiply two numbers.', ['x'])
        >>> schema["parameters"]["properties"]["y"]
        {'type': 'number', 'description': 'The second.'}
    """
    name = getattr(function, "__name__", "operation")
    text = inspect.getdoc(function)
    if not text:
        raise ValueError(f"function {name} has no docstring, so it cannot be described as a tool")
    if len(text) > LONGEST_DOCSTRING:
        most = f"expected at most {LONGEST_DOCSTRING:,}"
        raise ValueError(f"the docstring of function {name} has {len(text):,} characters; {most}")
    description, described, returned = parse_docstring(text.strip())
    parameters = inspect.signature(function).parameters
    receiver = next(iter(parameters), None)
    if receiver not in ("self", "cls") or parameters[receiver].annotation is not inspect.Parameter.empty:
        receiver = None
    required = []
    for argument, parameter in parameters.items():
        if argument == receiver:
            continue
        if parameter.annotation is inspect.Parameter.empty:
            raise ValueError(f"argument {argument!r} of function {name} has no type hint")
        if parameter.default is inspect.Parameter.empty:
            required.append(argument)
    try:
        hints = get_type_hints(function)
    except Exception as error:  # evaluating an annotation can raise anything
        raise ValueError(f"the type hints of function {name} cannot be read: {error}") from error
    hints.pop(receiver or "", None)
    result = None
    properties = {}
    for argument, hint in hints.items():
        try:
            schema = type_schema(hint)
        except ValueError as error:
            if argument == "return":  # optional: the model never writes it
                continue
            raise ValueError(f"argument {argument!r} of function {name}: {error}") from None
        if argument == "return":
            result = schema | ({} if returned is None else {"description": returned})
            continue
        if argument not in described:
            raise ValueError(f"the docstring of function {name} does not describe the argument {argument!r}")
        properties[argument] = schema | _described(described[argument], f"argument {argument!r} of function {name}")
    schema = {"type": "object", "properties": properties} | ({"required": required} if required else {})
    described_function = {"name": name, "description": description, "parameters": schema}
    if result is not None:
        described_function["return"] = result
    return {"type": "function", "function": described_function}


def _described(text: str, where: str) -> dict[str, Any]:
    """Return the fields of a schema in an argument's description: the description and its choices."""
    found = re.search(r"\(choices:\s*(.*?)\)\s*$", text, re.IGNORECASE)
    if found is None:
        return {"description": text}
    try:
        choices = json.loads(found[1])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: the choices {found[1]!r} are not JSON: {error}") from None
    if not isinstance(choices, list):
        raise ValueError(f"{where}: the choices {found[1]!r} are no JSON list")
    values = [choice.strip() if isinstance(choice, str) else choice for choice in choices]
    return {"enum": values, "description": text[: found.start()].strip()}


def type_schema(hint: Any) -> dict[str, Any]:
    """Return the JSON schema of a type hint.

    Raises:
        ValueError: If the type has no JSON schema.

    Examples:
        >>> type_schema(list[int | None])
        {'type': 'array', 'items': {'type': 'integer', 'nullable': True}}
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is None:
        return _plain_type_schema(hint)
    if origin is Union or origin is types.UnionType:
        members = [type_schema(arg) for arg in args if arg is not type(None)]
        if len(members) == 1:
            schema = members[0]
        elif all(list(member) == ["type"] and isinstance(member["type"], str) for member in members):
            names = sorted({member["type"] for member in members})
            schema = {"type": names if len(names) > 1 else names[0]}
        else:
            schema = {"anyOf": members}
        return schema | ({"nullable": True} if type(None) in args else {})
    if origin is Literal:
        return _enum_schema(list(args), hint)
    if origin in (list, tuple) and not args:
        return {"type": "array"}
    if origin is list:
        return {"type": "array", "items": type_schema(args[0])}
    if origin is tuple:
        if len(args) < 2 or ... in args:
            raise ValueError(f"{hint} has no JSON schema; use list[...] for any number of items")
        return {"type": "array", "prefixItems": [type_schema(arg) for arg in args]}
    if origin is dict:
        return {"type": "object"} | ({"additionalProperties": type_schema(args[1])} if len(args) == 2 else {})
    raise ValueError(f"the type {hint} has no JSON schema")


def _plain_type_schema(hint: Any) -> dict[str, Any]:
    if hint is Any:
        return {}
    if isinstance(hint, type):
        if issubclass(hint, Enum):
            return _enum_schema([member.value for member in hint], hint)
        media = _MEDIA.get(f"{hint.__module__}.{hint.__qualname__}")
        if hint in _NAMES or media:
            return {"type": _NAMES.get(hint, media)}
    raise ValueError(f"the type {hint!r} has no JSON schema; pass a JSON schema as the tool instead")


def _enum_schema(values: list[Any], hint: Any) -> dict[str, Any]:
    if not values or any(type(value) not in _LISTABLE for value in values):
        raise ValueError(f"the values {values!r} of {hint} are no choices of int, float, str, bool or None")
    names = list(dict.fromkeys(_NAMES[type(value)] for value in values))
    return {"type": names if len(names) > 1 else names[0], "enum": values}


def parse_docstring(text: str) -> tuple[str, dict[str, str], str | None]:
    r"""Return the description, the argument descriptions and the description of the result in a Google docstring.

    Examples:
        >>> parse_docstring("Add.\n\nArgs:\n    a: One,\n        or more.\n\nReturns:\n    Their sum.")
        ('Add.', {'a': 'One, or more.'}, 'Their sum.')
    """
    description = text[: _first(text, *_SECTIONS)].strip()
    described: dict[str, str] = {}
    listed = re.search(r"\n\s*Args:\n", text)
    if listed is not None:
        rest = text[listed.end() :]
        described = _parse_arguments(rest[: _first(rest, "Returns:", "Raises:")].rstrip())
    returned = None
    found = re.search(r"\n\s*Returns:\n\s*", text)
    if found is not None:
        rest = text[found.end() :]
        returned = rest[: _first(rest, "Raises:")].strip()
    return description, described, returned


def _first(text: str, *words: str) -> int:
    """Return the index of the first of these words, or the length of the text."""
    return min((place for place in map(text.find, words) if place >= 0), default=len(text))


def _parse_arguments(block: str) -> dict[str, str]:
    """Return the descriptions in an ``Args:`` section; lines indented deeper than a name continue its description."""
    described: dict[str, list[str]] = {}
    lines: list[str] | None = None
    indent = ""
    for line in block.split("\n"):
        if not line.strip():
            continue
        begun = re.match(r"([ \t]*)(\w+):", line)
        deeper = line.startswith((indent + " ", indent + "\t"))
        # The description of a name may begin in the next line, at any indentation.
        is_named = begun is not None and (lines is None or (lines != [""] and not deeper))
        if begun is not None and is_named:
            indent = begun[1]
            lines = described[begun[2]] = [line[begun.end() :].strip()]
        elif lines is not None:
            lines.append(line.strip())
    return {name: " ".join(filter(None, parts)) for name, parts in described.items()}
