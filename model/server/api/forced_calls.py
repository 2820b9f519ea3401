"""The grammar of an answer that must call tools, in the form in which the model's chat template writes calls.

Source of the grammars' syntax: llguidance's dialect of Lark, https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bpe_llama.model.generation.structured import literal
from bpe_llama.model.server.api.tools import HERMES, LLAMA3, MISTRAL, Family


def call_grammar(
    family: Family,
    functions: Sequence[Mapping[str, Any]],
    *,
    several: bool,
    template: str = "",
    special_tokens: Mapping[str, int] | None = None,
) -> str:
    r"""Return the Lark grammar of one call, or of one or more.

    Args:
        family: How the model writes calls.
        functions: The functions that may be called, each with ``name`` and perhaps ``parameters``, a JSON schema.
        several: Whether there may be more than one call.
        template: The chat template, which tells variants of a family apart.
        special_tokens: The ids of special tokens. A marker that is one is this id; other markers are text.

    Example:
        >>> print(call_grammar(LLAMA3, [{"name": "now"}], several=True))
        start: call ("; " call)*
        call: call_0
        call_0: "{\"name\": \"now\", \"parameters\": " %json {"type": "object", "x-guidance": {"lenient": false}} "}"
    """

    def marker(text: str) -> str:
        special_id = (special_tokens or {}).get(text)
        return literal(text) if special_id is None else f"<[{special_id}]>"

    outside = family is MISTRAL and "[ARGS]" in template  # the name stands before the object, outside of it
    key = "parameters" if family is LLAMA3 else "arguments"
    rules = []
    for place, function in enumerate(functions):
        name = str(function["name"])
        schema = dict(function.get("parameters") or {"type": "object"}) | {"x-guidance": {"lenient": False}}
        if outside:
            before, after = f"{literal(name)} {marker('[ARGS]')}", ""
        else:
            before, after = literal(f'{{"name": {json.dumps(name)}, "{key}": '), literal("}")
        rules.append(f"call_{place}: {before} %json {json.dumps(schema)} {after}".rstrip())
    begin, end = marker(family.begin), marker(family.end)
    if family is HERMES:
        one, joined = f'({begin} "\\n"? call "\\n"? {end})', ' "\\n" '
    elif outside:
        one, joined = f"({begin} call)", " "
    else:
        one, joined = "call", ' "; " ' if family is LLAMA3 else ' ", " '
    start = f"{one} ({joined.lstrip()}{one})*" if several else one
    if family is MISTRAL and not outside:
        start = f'{begin} " "? "[" {start} "]"'
    elif family.bare and family is not LLAMA3 and several:
        start = f'"[" {start} "]"'
    choices = " | ".join(f"call_{place}" for place in range(len(functions)))
    return "\n".join([f"start: {start}", f"call: {choices}", *rules])
