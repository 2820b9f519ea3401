"""Structured output: compiles schemas, regexes, choices and grammars to constraints over a tokenizer's ids.

| option | what is generated |
|---|---|
| `json_schema` | JSON that the schema accepts; ``{}`` is any JSON object |
| `json_object` | any JSON object |
| `regex` | a text that the whole regex matches |
| `choice` | one of several strings |
| `grammar` | a text of the grammar, in llguidance's dialect of Lark |
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from bpe_llama._core import shown
from bpe_llama.model.sampling.constraint import Constraint, ConstraintError, message_of

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from bpe_llama.tokenizer import Tokenizer

STRUCTURED = ("json_schema", "json_object", "regex", "choice", "grammar")
"""The options above; a request may have one of them."""

MAX_GRAMMAR_BYTES = 1 << 17
"""The largest schema, regex or grammar. Compilation may take quadratic time: 1 s for 90 kB of properties."""

MAX_INTERSECTED = 12
"""Patterns that one text of a schema or grammar may have to match at once: compilation takes twice the time with each.

llguidance counts its steps, but one step may take all of that time and memory.
"""

MAX_REMAINDERS = 20_000
"""Product of the ``multipleOf`` of one number. It becomes an automaton of so many states; llguidance has no limit."""

_DEFINITIONS = frozenset({"$defs", "definitions"})
_OF_NAMES = _DEFINITIONS | {"properties", "patternProperties", "dependentSchemas"}
_DATA = frozenset({"const", "enum", "default", "examples"})
"""Keywords of a schema: of schemas that are counted where a ``$ref`` points to them, of schemas by name, of values."""


def structured_options(options: Mapping[str, Any]) -> list[str]:
    """Return which options of `STRUCTURED` are given.

    Example:
        >>> structured_options({"json_schema": {}, "json_object": False, "regex": None, "top_k": 5})
        ['json_schema']
    """
    return [name for name in STRUCTURED if options.get(name) is not None and options[name] is not False]


class Grammars:
    """Compiles grammars for one tokenizer; the 64 that were used last are cached.

    Args:
        tokenizer: Gives the bytes of each id, and encodes text that a grammar forces.
        vocab_size: Ids of the model; tokens with higher ids are never allowed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = min(vocab_size, tokenizer.vocab_size)
        self._compiled = lru_cache(maxsize=64)(self._compile)
        self._adapted = lru_cache(maxsize=1)(self._adapt)
        self._before: tuple[int, ...] = ()

    def __reduce__(self) -> tuple[Callable[..., Grammars], tuple[Tokenizer, int]]:
        return Grammars, (self.tokenizer, self.vocab_size)

    def constraint(self, options: Mapping[str, Any]) -> Constraint | None:
        """Return the constraint of the option of `STRUCTURED` that is given; None if none is.

        Raises:
            ConstraintError: If several options are given, or the value of one is not valid; it names the option.
            TypeError: If a value has another type than documented.
            ImportError: If llguidance is not installed.
        """
        try:
            return self._checked(options)
        except ValueError as error:
            raise ConstraintError(str(error)) from error

    def _checked(self, options: Mapping[str, Any]) -> Constraint | None:
        given = structured_options(options)
        if not given:
            return None
        if len(given) > 1 or options.get("constraint") is not None:
            raise ValueError(f"{' and '.join([*given, 'constraint'][:2])} are given; expected one of them")
        (option,) = given
        if option == "json_object" and options[option] is not True:
            raise TypeError(f"json_object is {shown(options[option])}; expected True or False")
        text = _READERS[option](options[option])
        if option == "json_schema":
            _check_intersections(json.loads(text), option)
        elif option == "grammar":
            _check_schemas_within(text)
            _check_ampersands(text)
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise ValueError(f"{option} is no valid Unicode: {error}") from None
        if size > MAX_GRAMMAR_BYTES:
            raise ValueError(f"{option} has {size:,} bytes; expected at most {MAX_GRAMMAR_BYTES:,}")
        return self._compiled(option, text)

    def _compile(self, option: str, text: str) -> Constraint:
        try:
            from llguidance import LLMatcher, LLParserLimits
        except ImportError as error:
            raise ImportError(f"{option} needs llguidance: pip install 'bpe_llama[structured]'") from error
        if option in ("json_schema", "json_object"):
            # Never lenient, even if the schema's "x-guidance" says so: lenient ignores unknown keywords silently.
            try:
                grammar = LLMatcher.grammar_from_json_schema(text, overrides={"lenient": False})
            except ValueError as error:
                raise ValueError(f"{option} is not valid: {error}") from None
        else:
            grammar = LLMatcher.grammar_from_regex(text) if option == "regex" else LLMatcher.grammar_from_lark(text)
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(self._adapted(), grammar, log_level=0, limits=limits)
        _check(option, matcher)
        for warning in matcher.get_grammar_warnings():
            warnings.warn(f"{option}: {warning}", stacklevel=2)
        start = matcher.deep_copy()
        start.compute_bitmask()
        _check(option, start, ": no text is valid")
        return Constraint(option, matcher, self.vocab_size, self._before)

    def _adapt(self) -> LLTokenizer:
        """Return the tokenizer for llguidance, with one id more: the end of a text.

        Special tokens have no text, but a grammar may name them (``<|im_start|>``). Other added tokens stand for their
        text.

        Raises:
            ValueError: If the text of a token depends on the tokens before or after it.
        """
        from llguidance import LLTokenizer

        tokens = [token_bytes(self.tokenizer, token_id) for token_id in range(self.vocab_size)]
        special = sorted(token_id for token_id in self.tokenizer.special_tokens.values() if token_id < self.vocab_size)
        barred = set(special)
        whole = [i for i, token in enumerate(tokens) if token and i not in barred and _is_text(token)]
        at_once = (i for i in whole if tokens[i].isalnum() and self.tokenizer.decode_stream().push(i))
        self._before = tuple(islice(at_once, 1))
        beside = [*self._before, *whole]  # decoded together, tokens must have the bytes that they have alone
        if self._before and self.tokenizer.decode_bytes(beside) != b"".join(tokens[i] for i in beside):
            raise ValueError(
                "structured output needs a tokenizer with a fixed text for each token; the decoder of this one changes "
                "the text of a token by the tokens before or after it"
            )
        adapter = _Adapter(self.tokenizer, [*tokens, b"<|end of text|>"], [*special, self.vocab_size])
        return LLTokenizer(adapter)  # type: ignore[arg-type]


def _check(option: str, matcher: LLMatcher, note: str = "") -> None:
    if matcher.is_error():
        raise ValueError(f"{option} is not valid: {message_of(matcher)}{note}")


def _schema_text(schema: Any) -> str:
    """Return a schema as JSON text, its keywords in their order.

    Example:
        >>> _schema_text({"type": "integer"})
        '{"type": "integer"}'
    """
    if hasattr(schema, "model_json_schema"):  # a model class of pydantic
        schema = schema.model_json_schema()
    try:
        schema = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(schema, Mapping):
            raise TypeError(f"json_schema is {shown(schema)}; expected an object, its text, or a pydantic model class")
        return json.dumps(dict(schema) or {"type": "object"}, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise ValueError("json_schema is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"json_schema is no JSON: {error}") from None
    except TypeError as error:
        text = str(error)
        raise TypeError(text if text.startswith("json_schema") else f"json_schema is no JSON: {text}") from None


def _check_intersections(schema: dict[str, Any], option: str) -> None:
    """Raise a ValueError if one text would have to match over `MAX_INTERSECTED` patterns at once.

    The same for one number and `MAX_REMAINDERS`. What stands beside ``$ref`` and in the branches of ``allOf`` holds
    together; of all other keywords the largest count is taken, so that the count may be too high for schemas of
    objects, never too low.
    """
    known: dict[str, tuple[int, int]] = {}
    identifiers = ("$id", "id") if "draft-04" in str(schema.get("$schema")) else ("$id",)

    def count(part: Any, is_schema: bool = True) -> tuple[int, int]:
        """Return the number of patterns, and the product of ``multipleOf``, that hold together.

        Args:
            part: A schema, a list of schemas, or if not ``is_schema`` the schemas of names.
            is_schema: Whether the keys of a mapping are keywords.
        """
        if isinstance(part, list):
            return largest(map(count, part))
        if not isinstance(part, dict):
            return 0, 1
        if not is_schema:
            return largest(map(count, part.values()))
        together = [(int(isinstance(part.get("pattern"), str)), _remainders(part.get("multipleOf")))]
        counted = _DATA | (_DEFINITIONS if part is schema else set())
        if isinstance(part.get("allOf"), list):
            counted |= {"allOf"}
            together += map(count, part["allOf"])
        if isinstance(part.get("$ref"), str):
            together.append(count_ref(part["$ref"]))
        for name in identifiers:
            if part is not schema and isinstance(part.get(name), str):
                raise ValueError(f"{option} has the {name} {shown(part[name])} in a part of it; expected none there")
        together.append(largest(count(part[name], name not in _OF_NAMES) for name in part if name not in counted))
        patterns, remainders = zip(*together, strict=True)
        return sum(patterns), min(math.prod(remainders), MAX_REMAINDERS + 1)

    def largest(counts: Iterable[tuple[int, int]]) -> tuple[int, int]:
        patterns, remainders = zip((0, 1), *counts, strict=True)
        return max(patterns), max(remainders)

    def count_ref(ref: str) -> tuple[int, int]:
        if ref not in known:
            known[ref] = 0, 1  # of itself
            known[ref] = count(_referred(schema, ref, option))
        return known[ref]

    try:
        patterns, remainders = count(schema)
    except RecursionError:
        raise ValueError(f"{option} is nested too deeply") from None
    if patterns > MAX_INTERSECTED:
        raise ValueError(
            f"{option} has {patterns} patterns that one text must match at once; expected at most {MAX_INTERSECTED}"
        )
    if remainders > MAX_REMAINDERS:
        raise ValueError(
            f"{option} has a multipleOf over {MAX_REMAINDERS:,}, or several of one number with that product"
        )


def _referred(schema: Any, ref: str, option: str) -> Any:
    """Return the part of a schema that a ``$ref`` points to.

    Example:
        >>> _referred({"$defs": {"a b": [1, 2]}}, "#/$defs/a%20b/1", "json_schema")
        2
    """
    start, *names = unquote(ref).split("/")
    found = schema if start == "#" else None
    for name in names:
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list):
            found = dict(zip(map(str, range(len(found))), found, strict=True))
        found = found.get(name) if isinstance(found, dict) else None
    if found is None:
        raise ValueError(f"{option} has the $ref {shown(ref)}; expected the place of a part of it, as '#/$defs/name'")
    return found


def _remainders(multiple: Any) -> int:
    """Return the remainders that a ``multipleOf`` leaves in its last digit: 25 for 0.25."""
    if isinstance(multiple, bool) or not isinstance(multiple, int | float) or not 0 < multiple < math.inf:
        return 1
    return min(int("".join(map(str, Decimal(str(multiple)).as_tuple().digits))), MAX_REMAINDERS + 1)


def _check_schemas_within(grammar: str) -> None:
    """Check the schemas of a grammar (``%json {...}``), as `_check_intersections`."""
    for found in re.finditer(r"%json\s*", grammar):
        try:
            schema, _ = json.JSONDecoder().raw_decode(grammar, found.end())
        except (ValueError, RecursionError):
            continue  # llguidance says what is wrong
        if isinstance(schema, dict):
            _check_intersections(schema, "grammar")


def _check_ampersands(grammar: str) -> None:
    """Raise a ValueError if the ``&`` of a grammar could join over `MAX_INTERSECTED` patterns, whatever its rules."""
    found = _NO_OPERATORS.sub("", grammar).count("&")
    if found >= MAX_INTERSECTED:
        raise ValueError(f'grammar has the operator "&" {found} times; expected at most {MAX_INTERSECTED - 1}')


_NO_OPERATORS = re.compile(r"""(?:\#|//)[^\n]*|"(?:\\.|[^"\\])*"|/(?:\\.|[^/\\])+/|<[^<>]*>""", re.DOTALL)
"""Comments, strings, regexes and special tokens of a grammar; no other token holds ``#``, ``/``, ``"`` or ``<``."""


def _choice_text(choice: Any) -> str:
    """Return the grammar of one of several strings.

    Example:
        >>> _choice_text(["yes", "no"])
        'start: "yes" | "no"'
    """
    if not isinstance(choice, Sequence) or isinstance(choice, str) or not all(isinstance(one, str) for one in choice):
        raise TypeError(f"choice is {shown(choice)}; expected a list of strings")
    if not choice:
        raise ValueError("choice is empty; expected at least one string")
    return "start: " + " | ".join(map(literal, dict.fromkeys(choice)))


def literal(text: str) -> str:
    r"""Return the terminal of a grammar that matches a text.

    Example:
        >>> literal("né")
        '"n\\u00e9"'
    """
    return json.dumps(text)  # in ASCII: the lexer refuses U+007F


def _text(option: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{option} is {shown(value)}; expected a string")
        return value

    return read


_READERS: dict[str, Callable[[Any], str]] = {
    "json_schema": _schema_text,
    "json_object": lambda _: '{"type": "object"}',
    "regex": _text("regex"),
    "choice": _choice_text,
    "grammar": _text("grammar"),
}


class _Adapter:
    """A tokenizer with the attributes that `llguidance.LLTokenizer` reads."""

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], special: list[int]) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = special[-1]
        self.bos_token_id = None
        self.is_tokenizer_wrapper = True
        self._tokenizer = tokenizer
        barred = set(special)
        self._ids = {token: token_id for token_id, token in enumerate(tokens) if token and token_id not in barred}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        """Return the ids of a text that follows other text; their bytes are the text's.

        If normalization changes the text, the ids are the longest matches from the left instead.
        """
        text = text.decode() if isinstance(text, bytes) else text
        ids = [int(token_id) for token_id in self._tokenizer.encode_following(text, "x")]
        known = all(token_id < self.eos_token_id for token_id in ids)
        if known and b"".join(self.tokens[token_id] for token_id in ids) == text.encode():
            return ids
        return self._longest_matches(text.encode())

    def _longest_matches(self, text: bytes) -> list[int]:
        """Return the longest tokens from the left, up to a byte that no token begins with."""
        ids: list[int] = []
        while text:
            size = next((n for n in range(min(self._longest, len(text)), 0, -1) if text[:n] in self._ids), 0)
            if not size:
                break
            ids.append(self._ids[text[:size]])
            text = text[size:]
        return ids


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """Return the bytes of a token, ``b""`` for an id without a token."""
    try:
        return bytes(tokenizer.id_to_bytes(token_id))
    except KeyError:
        return b""


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True
