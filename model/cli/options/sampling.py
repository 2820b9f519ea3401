"""The sampling flags of `generate` and `chat`.

Without a flag, an option has the model's default (`generation_config.json`), or else that of `GenerationOptions`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from bpe_llama._files import read_text
from bpe_llama.model.generation.structured import STRUCTURED
from bpe_llama.model.sampling.params import GenerationOptions

if TYPE_CHECKING:
    from bpe_llama.model.generation.text_generator import TextGenerator

_DEFAULT = "  [default: the model's own, else {}]"


def _flag(help_: str, default: object = None, *names: str) -> Any:
    return typer.Option(*names, help=help_ if default is None else help_ + _DEFAULT.format(default))


def max_new_tokens(help_: str, default: int) -> Any:
    """Return the flag for a command with this default."""
    return _flag(help_, default, "--max-new-tokens", "-n")


def temperature(default: float) -> Any:
    """Return the flag for a command with this default."""
    return _flag("Sampling temperature; 0 is greedy decoding.", default)


def top_p(default: float) -> Any:
    """Return the flag for a command with this default."""
    return _flag("Nucleus sampling: the most likely tokens whose probabilities sum to this.", default)


MinNewTokens: TypeAlias = Annotated[
    int | None, _flag("Ignore end ids and --stop before this many.", None, "--min-new-tokens")
]
TopK: TypeAlias = Annotated[int | None, _flag("Sample from this many most likely tokens; 0: all.", 0)]
MinP: TypeAlias = Annotated[float | None, _flag("Least probability relative to the most likely token.", 0)]
TypicalP: TypeAlias = Annotated[
    float | None, _flag("Locally typical sampling: the most typical tokens whose probabilities sum to this.", 1)
]
RepetitionPenalty: TypeAlias = Annotated[float | None, _flag("Above 1 penalizes repetition.", 1)]
PresencePenalty: TypeAlias = Annotated[
    float | None, _flag("Subtracted from the logit of each token that has occurred.")
]
FrequencyPenalty: TypeAlias = Annotated[
    float | None, _flag("Subtracted from a logit once per occurrence of its token.")
]
PenaltyScope: TypeAlias = Annotated[
    str | None, _flag("Tokens that penalties count: context, or output only, as in OpenAI's API.")
]
NoRepeatNgramSize: TypeAlias = Annotated[int | None, _flag("Generate no n-gram of this many tokens twice; 0: off.", 0)]
BadWords: TypeAlias = Annotated[list[str] | None, _flag("Text that is never generated; repeatable.")]
DryMultiplier: TypeAlias = Annotated[float | None, _flag("DRY: penalty for extending a repetition; 0: off.")]
DryBase: TypeAlias = Annotated[float | None, _flag("DRY: growth of the penalty per further token; 1.75.")]
DryAllowedLength: TypeAlias = Annotated[int | None, _flag("DRY: longest repetition without a penalty; 2 tokens.")]
DryPenaltyLastN: TypeAlias = Annotated[
    int | None,
    _flag("DRY: number of last tokens that count; -1, the default: all.", None, "--dry-penalty-last-n"),
]
DryBreaker: TypeAlias = Annotated[
    list[str] | None,
    _flag("DRY: text that ends a repetition, instead of llama.cpp's four; repeatable.", None, "--dry-sequence-breaker"),
]
TopNSigma: TypeAlias = Annotated[
    float | None,
    _flag("Sample from logits within this many standard deviations of the largest; 0: all.", None, "--top-n-sigma"),
]
XtcProbability: TypeAlias = Annotated[float | None, _flag("XTC: probability of excluding the most likely tokens.")]
XtcThreshold: TypeAlias = Annotated[float | None, _flag("XTC: probability from which tokens are excluded; 0.1.")]
Mirostat: TypeAlias = Annotated[int | None, _flag("1 or 2: mirostat sampling instead of other filters.")]
MirostatTau: TypeAlias = Annotated[float | None, _flag("Mirostat: target surprise in bits; 5.")]
MirostatEta: TypeAlias = Annotated[float | None, _flag("Mirostat: learning rate; 0.1.")]
FilterOrder: TypeAlias = Annotated[str | None, _flag("Order of the filters, such as top_k,top_p,temperature.")]
JsonSchema: TypeAlias = Annotated[
    str | None,
    typer.Option("--json-schema", metavar="FILE|JSON", help="Generate JSON that this schema accepts; {}: any object."),
]
Regex: TypeAlias = Annotated[str | None, typer.Option(help="Generate text that this whole regex matches.")]
Choice: TypeAlias = Annotated[list[str] | None, typer.Option(help="Generate one of these texts; repeatable.")]
GrammarFile: TypeAlias = Annotated[
    Path | None, typer.Option("--grammar", help="Generate text of the grammar in this file, in llguidance's Lark.")
]
Seed: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER|random", help="Random seed, for the same text again; random: a new one, which is printed."
    ),
]
Verbose: TypeAlias = Annotated[
    bool, typer.Option("--verbose", help="Print the first prompt ids, the end ids and all options on stderr.")
]


def structured(
    json_schema: str | None, regex: str | None, choice: list[str] | None, grammar: Path | None
) -> dict[str, Any]:
    """Return the options of structured output that these flags name, files read.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If it is not UTF-8.
    """
    if json_schema is not None and not json_schema.lstrip().startswith("{"):
        json_schema = read_text(Path(json_schema))
    text = None if grammar is None else read_text(grammar)
    return {"json_schema": json_schema, "regex": regex, "choice": choice, "grammar": text}


def read_seed(text: str | None) -> int:
    """Return the seed; a new one for "random" or None.

    Example:
        >>> read_seed("7")
        7
    """
    if text in (None, "random"):
        return GenerationOptions(seed=None).seed or 0
    try:
        return int(str(text))
    except ValueError:
        raise ValueError(f"--seed is {text!r}; expected a number, or random") from None


def check_values(given: Mapping[str, Any]) -> None:
    """Raise for a flag that is out of range, before a model is loaded: for all that need no tokenizer.

    Raises:
        ValueError: If one is out of range.
    """
    of_text = ("bad_words", "dry_sequence_breakers", *STRUCTURED)
    values = {name: value for name, value in _given(given).items() if name not in of_text}
    GenerationOptions(**{"max_new_tokens": sys.maxsize} | values)


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that are there: None and empty values mean that one is absent, except for the seed."""
    options = {name: o for name, o in flags.items() if name == "seed" or (o is not None and o != [] and o != {})}
    if isinstance(options.get("filter_order"), str):
        options["filter_order"] = [name.strip() for name in options["filter_order"].split(",")]
    return options


def with_defaults(generator: TextGenerator, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options given as flags, and the command's defaults for options without a default of the model."""
    options = _given(given)
    of_model = set(generator.model.generation_config.sampling_defaults)
    if generator.model.generation_config.max_length is not None:
        of_model.add("max_new_tokens")
    return {name: value for name, value in defaults.items() if name not in of_model} | options


def describe_options(generator: TextGenerator, prompt: list[int], options: Mapping[str, Any]) -> Iterable[str]:
    """Yield lines with the first ids of the prompt, the end ids, and each option with its source."""
    yield f"prompt: {len(prompt)} ids, beginning with {_named(generator, prompt[:3])}"
    yield f"ends: {_named(generator, generator.end_ids) or 'none'}"
    chosen = generator.options(len(prompt), **options)
    max_length = generator.model.generation_config.max_length
    of_model = generator.model.generation_config.sampling_defaults
    for name, field in GenerationOptions.__dataclass_fields__.items():
        value = getattr(chosen, name)
        if name in options:
            yield f"{name}: {value!r}"
        elif name == "max_new_tokens" and max_length is not None:
            yield f"{name}: {value!r} (generation_config.json: max_length {max_length}, less the prompt)"
        elif name in of_model:
            yield f"{name}: {value!r} (generation_config.json)"
        elif name in ("temperature", "top_k", "top_p", "max_new_tokens"):
            yield f"{name}: {field.default!r} (default)"
    yield from (f"{name}: {value!r}" for name, value in options.items() if name in STRUCTURED)


def _named(generator: TextGenerator, ids: Iterable[int]) -> str:
    """Return ids with their tokens."""
    tokenizer = generator.tokenizer
    names = [
        (token_id, tokenizer.id_to_token(token_id) if token_id < tokenizer.vocab_size else None) for token_id in ids
    ]
    return ", ".join(f"{token_id}" if name is None else f"{token_id} {name!r}" for token_id, name in names)
