"""The sampling flags of `generate` and `chat`.

Without a flag, an option has the model's default (`generation_config.json`), or else that of `GenerationOptions`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import typer

from bpe_llama._files import read_text
from bpe_llama.model.generation.structured import STRUCTURED
from bpe_llama.model.sampling.params import GenerationOptions

if TYPE_CHECKING:
    from bpe_llama.model.generation.text_generator import TextGenerator

Verbose: TypeAlias = Annotated[
    bool, typer.Option("--verbose", help="Print the first prompt ids, the end ids and all options on stderr.")
]


class Flag(NamedTuple):
    """A flag's type, its help text, the default that it tells, its names if they are not the option's, its metavar."""

    kind: Any
    help: str
    default: object = None
    names: tuple[str, ...] = ()
    metavar: str | None = None


FLAGS = {
    "max_new_tokens": Flag(
        int, "Maximum number of new tokens.", GenerationOptions.max_new_tokens, ("--max-new-tokens", "-n")
    ),
    "min_new_tokens": Flag(int, "Ignore end ids and --stop before this many."),
    "temperature": Flag(float, "Sampling temperature; 0 is greedy decoding.", GenerationOptions.temperature),
    "top_k": Flag(int, "Sample from this many most likely tokens; 0: all.", 0),
    "top_p": Flag(
        float, "Nucleus sampling: the most likely tokens whose probabilities sum to this.", GenerationOptions.top_p
    ),
    "min_p": Flag(float, "Least probability relative to the most likely token.", 0),
    "typical_p": Flag(float, "Locally typical sampling: the most typical tokens whose probabilities sum to this.", 1),
    "repetition_penalty": Flag(float, "Above 1 penalizes repetition.", 1),
    "presence_penalty": Flag(float, "Subtracted from the logit of each token that has occurred."),
    "frequency_penalty": Flag(float, "Subtracted from a logit once per occurrence of its token."),
    "penalty_scope": Flag(str, "Tokens that penalties count: context, or output only, as in OpenAI's API."),
    "no_repeat_ngram_size": Flag(int, "Generate no n-gram of this many tokens twice; 0: off.", 0),
    "bad_words": Flag(list[str], "Text that is never generated; repeatable."),
    "dry_multiplier": Flag(float, "DRY: penalty for extending a repetition; 0: off."),
    "dry_base": Flag(float, "DRY: growth of the penalty per further token; 1.75."),
    "dry_allowed_length": Flag(int, "DRY: longest repetition without a penalty; 2 tokens."),
    "dry_penalty_last_n": Flag(int, "DRY: number of last tokens that count; -1, the default: all."),
    "dry_sequence_breakers": Flag(
        list[str],
        "DRY: text that ends a repetition, instead of llama.cpp's four; repeatable.",
        names=("--dry-sequence-breaker",),
    ),
    "top_n_sigma": Flag(float, "Sample from logits within this many standard deviations of the largest; 0: all."),
    "xtc_probability": Flag(float, "XTC: probability of excluding the most likely tokens."),
    "xtc_threshold": Flag(float, "XTC: probability from which tokens are excluded; 0.1."),
    "mirostat": Flag(int, "1 or 2: mirostat sampling instead of other filters."),
    "mirostat_tau": Flag(float, "Mirostat: target surprise in bits; 5."),
    "mirostat_eta": Flag(float, "Mirostat: learning rate; 0.1."),
    "filter_order": Flag(str, "Order of the filters, such as top_k,top_p,temperature."),
    "json_schema": Flag(str, "Generate JSON that this schema accepts; {}: any object.", metavar="FILE|JSON"),
    "regex": Flag(str, "Generate text that this whole regex matches."),
    "choice": Flag(list[str], "Generate one of these texts; repeatable."),
    "grammar": Flag(Path, "Generate text of the grammar in this file, in llguidance's Lark."),
    "seed": Flag(
        str, "Random seed, for the same text again; random: a new one, which is printed.", metavar="NUMBER|random"
    ),
}


def sampling_flags(
    defaults: Mapping[str, object] | None = None, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds the flags of `FLAGS` to a command, before its keyword-only parameters.

    The command receives their values as `**flags`, None for those not given.

    Args:
        defaults: The command's own defaults, by option, which help texts name; it applies them itself.
        without: Options for which the command has no flag.
    """

    def parameter(option: str, flag: Flag) -> inspect.Parameter:
        default = (defaults or {}).get(option, flag.default)
        told = "" if default is None else f"  [default: the model's own, else {default}]"
        info = typer.Option(*flag.names, help=flag.help + told, metavar=flag.metavar)
        kind = flag.kind | None
        return inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, info])

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [found for name, found in signature.parameters.items() if name != "flags"]
        flags = [parameter(option, flag) for option, flag in FLAGS.items() if option not in without]
        place = sum(found.kind is not inspect.Parameter.KEYWORD_ONLY for found in own)
        command.__signature__ = signature.replace(parameters=own[:place] + flags + own[place:])  # type: ignore[attr-defined]
        return command

    return decorate


def read_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that these flags name: the seed read or drawn, the files of structured output read.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If it is not UTF-8, or the seed no number.
    """
    schema, grammar = flags["json_schema"], flags["grammar"]
    if schema is not None and not schema.lstrip().startswith("{"):
        schema = read_text(Path(schema))
    text = None if grammar is None else read_text(grammar)
    return {**flags, "seed": read_seed(flags["seed"]), "json_schema": schema, "grammar": text}


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
