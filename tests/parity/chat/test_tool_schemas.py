# ruff: noqa: E501, UP007, UP037, UP045 - old type hints stand as people write them
"""Python functions as JSON schemas of tools: equal to transformers' schemas."""

from __future__ import annotations

import enum
import json
import random
import types as python_types
from collections.abc import Callable
from typing import Any, Literal, Optional, Union

import numpy as np
import pytest

from bpe_llama import Tokenizer
from bpe_llama.chat.tool_schema import function_schema, parse_docstring, type_schema
from tests.parity.chat.families import get_weather, outcome

utilities = pytest.importorskip("transformers.utils.chat_template_utils")


class Colour(enum.Enum):
    RED = "red"
    NUMBER = 3


HINTS = [
    int, float, str, bool, type(None), list, tuple, dict, Any, list[int], list[list[str]], dict[str, int], dict[int, list[str]],
    tuple[int, str], tuple[int], tuple[int, ...], Union[int, str], Union[int, None], int | str | None, list | tuple,
    Union[list[int], str], Literal["a", "b"], Literal[1, "x", None], Literal[True], Colour, enum.Enum("Empty", []), set, set[int],
    bytes, Callable[[int], int], object, Tokenizer, np.ndarray, python_types.FunctionType, Union[dict[str, int], list[int], None],
    tuple[()], list[Any], Optional[Colour],
]  # fmt: skip


@pytest.mark.parametrize("hint", HINTS, ids=str)
def test_types_become_the_same_schemas(hint: Any) -> None:
    expected = outcome(lambda: utilities._parse_type_hint(hint))
    assert outcome(lambda: type_schema(hint)) == expected


def no_docstring(a: int) -> int:
    return a


def no_hint(a) -> int:  # type: ignore[no-untyped-def]
    """Do.

    Args:
        a: One
    """
    return int(a)


def not_described(a: int, b: int) -> int:
    """Do.

    Args:
        a: One
    """
    return a + b


def odd_result(a: "int") -> set[int]:
    """Do

    Args:
      a: One (choices: [1, 2])

    Returns:
      Some
    """
    return {a}


def bad_choices(a: int) -> None:
    """Do.

    Args:
        a: One (choices: one, two)
    """


def nothing() -> None:
    """Do."""


class Holder:
    def method(self, a: int, *rest: str, flag: bool = False, **more: float) -> str:
        """Do a thing.

        Args:
            a: One.
            rest: Others.
            flag: Or
                not.
            more: Even more.
        """
        return ""


@pytest.mark.parametrize(
    "function",
    [
        get_weather,
        no_docstring,
        no_hint,
        not_described,
        odd_result,
        bad_choices,
        nothing,
        Holder().method,
        Holder.method,
        lambda: 1,
    ],
)
def test_functions_become_the_same_schemas(function: Callable[..., Any]) -> None:
    expected = outcome(lambda: utilities.get_json_schema(function))
    assert outcome(lambda: function_schema(function)) == expected
    assert json.dumps(outcome(lambda: function_schema(function))) == json.dumps(expected)  # the order of keys, too


def test_docstrings_are_parsed_alike() -> None:
    """Random arrangements of what makes a docstring hard to read."""
    bits = [
        "Args:",
        "Returns:",
        "Raises:",
        "\n",
        "\n",
        "\n",
        "    ",
        "  ",
        "\t",
        "x: ",
        "y:",
        "z: foo",
        "bar (int): q",
        "some text",
    ]
    chosen = random.Random(7)
    described = 0
    for _ in range(5000):
        text = "".join(chosen.choice(bits) for _ in range(chosen.randrange(1, 18))).strip()
        if text:
            expected = utilities.parse_google_format_docstring(text)
            assert parse_docstring(text) == expected, text
            described += bool(expected[1])
    assert described > 20
