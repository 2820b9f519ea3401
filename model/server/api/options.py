"""Turns the fields of a request into options of `TextGenerator`.

A field that the request leaves out has the value of the model's generation_config.json, or else OpenAI's default.
"""

from __future__ import annotations

import json
from typing import Any

from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.model.server.api.schemas import ResponseFormat, Sampling, Streamed, StructuredOutputs, TextFormat
from bpe_llama.model.server.config import Limits
from bpe_llama.playground.errors import bad

DEFAULTS = {"temperature": 1.0, "top_p": 1.0}
"""OpenAI's defaults."""
_SAME = (
    *("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "typical_p"),
    *("no_repeat_ngram_size", "bad_words", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
    *("dry_sequence_breakers", "top_n_sigma", "xtc_probability", "xtc_threshold", "mirostat", "mirostat_tau"),
    *("mirostat_eta", "filter_order", "banned_ids", "allowed_ids", "skip_special_tokens"),
)
"""Fields with the same name as their option."""


def sampling_options(request: Sampling, generator: TextGenerator, limits: Limits) -> dict[str, Any]:
    """Return the options of `TextGenerator.stream` for a request, without lengths and log-probabilities.

    Raises:
        ApiError: If a field is out of range, or two fields exclude each other.
    """
    given = {name: getattr(request, name) for name in _SAME if getattr(request, name) is not None}
    for name in ("bad_words", "dry_sequence_breakers", "filter_order"):  # each costs time at every token of all clients
        if len(given.get(name, ())) > limits.words or any(
            len(word) > limits.word_length for word in given.get(name, ())
        ):
            raise bad(f"{name} is over {limits.words} strings, or {limits.word_length} characters of one", name)
    if request.top_k is not None:
        given["top_k"] = max(request.top_k, 0)
    model_defaults = generator.model.generation_config.sampling_defaults
    acting = DEFAULTS if request.filter_order is None else request.filter_order
    options = {name: DEFAULTS[name] for name in DEFAULTS if name in acting and name not in model_defaults} | given
    options["seed"] = None if request.seed is None else request.seed & ((1 << 63) - 1)
    options["penalty_scope"] = _penalty_scope(request, model_defaults.get("repetition_penalty", 1.0))
    if request.logit_bias:
        options["logit_bias"] = _biases(request.logit_bias, generator.model.config.vocab_size)
    _check_ids(request, generator.model.config.vocab_size)
    if request.stop is not None:
        options["stop"] = _stops(request.stop, limits)
    if request.min_tokens is not None:
        options["min_new_tokens"] = request.min_tokens
    if request.ignore_eos or request.stop_token_ids:
        options["eos_id"] = (*(() if request.ignore_eos else generator.end_ids), *(request.stop_token_ids or ()))
    if request.structured_outputs is not None:
        options |= _structured(request.structured_outputs, limits)
    return options


def _penalty_scope(request: Sampling, repetition_penalty: float) -> str:
    """Return which tokens penalties count.

    Presence and frequency penalty count the new tokens, as OpenAI's; the repetition penalty, by default that of the
    model's files, counts the prompt too.

    Raises:
        ApiError: If the request has both kinds and no ``penalty_scope``.
    """
    if request.penalty_scope is not None:
        return request.penalty_scope
    of_output = bool(request.presence_penalty or request.frequency_penalty)
    asked = request.repetition_penalty
    if of_output and (repetition_penalty if asked is None else asked) != 1:
        of_file = f" ({repetition_penalty} in the model's generation_config.json)" if asked is None else ""
        message = f"repetition_penalty{of_file} counts the prompt, presence_penalty and frequency_penalty do not; "
        raise bad(message + "give one kind, repetition_penalty 1, or penalty_scope for all", "repetition_penalty")
    return "output" if of_output else "context"


def _biases(given: dict[str, float], vocab_size: int) -> dict[int, float]:
    biases = {}
    for text, number in given.items():
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < vocab_size):
            raise bad(f"logit_bias has the key {text!r:.50}; expected an id of 0 to {vocab_size - 1}", "logit_bias")
        biases[int(text)] = number
    return biases


def _check_ids(request: Sampling, vocab_size: int) -> None:
    """Raise an ApiError if ids of a field are outside the vocabulary, or no id remains to draw."""
    for name in ("allowed_ids", "banned_ids", "stop_token_ids"):
        if len(getattr(request, name) or ()) > vocab_size:
            raise bad(f"{name} has more ids than the vocabulary of {vocab_size}", name)
        beyond = next((i for i in getattr(request, name) or () if i >= vocab_size), None)
        if beyond is not None:
            raise bad(f"{name} holds {beyond}; expected ids of 0 to {vocab_size - 1}", name)
    allowed = range(vocab_size) if request.allowed_ids is None else request.allowed_ids
    if set(request.banned_ids or ()).issuperset(allowed):
        name = "banned_ids" if request.allowed_ids is None else "allowed_ids"
        raise bad(f"{name} leaves no id to draw", name)


def _stops(given: str | list[str], limits: Limits) -> list[str]:
    stops = [given] if isinstance(given, str) else given
    if len(stops) > limits.stop_strings:
        raise bad(f"stop has {len(stops)} strings; expected at most {limits.stop_strings}", "stop")
    if any(not 1 <= len(stop) <= limits.stop_characters for stop in stops):
        raise bad(f"stop holds an empty string, or one of over {limits.stop_characters:,} characters", "stop")
    return stops


def _structured(given: StructuredOutputs, limits: Limits) -> dict[str, Any]:
    names = {"json_": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}
    options = {names[name]: value for name, value in given if value is not None}
    if len(options) != 1:
        raise bad("structured_outputs needs one of json, regex, choice and grammar", "structured_outputs")
    for name, value in options.items():
        check_size(value, limits, f"structured_outputs.{name}")
    if isinstance(options.get("json_schema"), str):
        try:
            options["json_schema"] = json.loads(options["json_schema"])
        except (ValueError, RecursionError):
            raise bad("structured_outputs.json is no JSON", "structured_outputs.json") from None
        if not isinstance(options["json_schema"], dict):
            raise bad("structured_outputs.json is no JSON object", "structured_outputs.json")
    return options


def check_stream(request: Streamed) -> None:
    """Raise an ApiError if a request has options of a stream, but asks for none."""
    if request.stream_options is not None and not request.stream:
        raise bad("stream_options is given without stream: true", "stream_options")


def constraint_field(request: Sampling, format_field: str) -> str:
    """Return the field that holds the schema or grammar of the answer: ``structured_outputs`` or the format's."""
    return format_field if request.structured_outputs is None else "structured_outputs"


def check_size(value: Any, limits: Limits, field: str) -> None:
    """Raise an ApiError if a schema or grammar is longer than its limit."""
    try:
        size = len(value if isinstance(value, str) else json.dumps(value, allow_nan=False))
    except ValueError:
        raise bad(f"{field} holds NaN or an infinity, which are no JSON", field, "invalid_value") from None
    except RecursionError:
        size = limits.schema_bytes + 1
    if size > limits.schema_bytes:
        raise bad(f"{field} has over {limits.schema_bytes:,} bytes", field, "schema_too_large")


def add_format(options: dict[str, Any], given: ResponseFormat | TextFormat | None, limits: Limits, field: str) -> None:
    """Add the option for the format of an answer: text, a JSON object, or JSON of a schema.

    Args:
        options: Those of the request so far.
        given: The format that the request asks for.
        limits: Their ``schema_bytes`` bounds the schema.
        field: The field of the request, which errors name.

    Raises:
        ApiError: If the schema is missing, too long, or given for another format; if ``structured_outputs`` has given a
            schema too.
    """
    if given is None:
        return
    schema: Any = given.schema_ if isinstance(given, TextFormat) else given.json_schema and given.json_schema.schema_
    where = f"{field}.schema" if isinstance(given, TextFormat) else f"{field}.json_schema.schema"
    found: dict[str, Any] = {"json_object": True} if given.type == "json_object" else {}
    if given.type == "json_schema":
        if schema is None:
            raise bad(f"{where} is missing", where, "missing_field")
        check_size(schema, limits, where)
        found = {"json_schema": schema}
    elif schema is not None:
        raise bad(f"{where} is given, but the type is {given.type}; expected json_schema", where)
    if options.keys() & found.keys():
        raise bad(f"structured_outputs and {field} each give a schema; expected one of them", field)
    options |= found
