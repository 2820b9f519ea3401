"""The sampling options of `generate` and `chat`: their flags and help texts.

An option whose flag is not given has the model's own default (``generation_config.json``), or else that of
`GenerationOptions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from bpe_llama.model.sampling.params import GenerationOptions

if TYPE_CHECKING:
    from bpe_llama.model.generation.text_generator import TextGenerator

_DEFAULT = "  [default: the model's own, else {}]"


def _flag(help_: str, default: object = None, *names: str) -> Any:
    return typer.Option(*names, help=help_ if default is None else help_ + _DEFAULT.format(default))


def max_new_tokens(help_: str, default: int) -> Any:
    """Return the flag of a command that has this default."""
    return _flag(help_, default, "--max-new-tokens", "-n")


def temperature(default: float) -> Any:
    """Return the flag of a command that has this default."""
    return _flag("0 takes the likeliest token each time.", default)


def top_p(default: float) -> Any:
    """Return the flag of a command that has this default."""
    return _flag("Draw from the likeliest whose mass reaches this.", default)


MinNewTokens: TypeAlias = Annotated[
    int | None, _flag("No ending, by an id or by --stop, before this many.", None, "--min-new-tokens")
]
TopK: TypeAlias = Annotated[int | None, _flag("Draw from this many of the likeliest; 0 is all.", 0)]
MinP: TypeAlias = Annotated[float | None, _flag("Draw from those this likely, relative to the likeliest.", 0)]
TypicalP: TypeAlias = Annotated[float | None, _flag("Draw from the most typical whose mass reaches this.", 1)]
RepetitionPenalty: TypeAlias = Annotated[float | None, _flag("Above 1 discourages repeats.", 1)]
PresencePenalty: TypeAlias = Annotated[float | None, _flag("Subtracted from the score of tokens already present.")]
FrequencyPenalty: TypeAlias = Annotated[float | None, _flag("Subtracted once for each time a token is present.")]
PenaltyScope: TypeAlias = Annotated[
    str | None, _flag("What penalties look at: context, or output alone as OpenAI's API does.")
]
NoRepeatNgramSize: TypeAlias = Annotated[int | None, _flag("No n-gram of this many tokens twice; 0 allows all.", 0)]
BadWords: TypeAlias = Annotated[list[str] | None, _flag("Text never to write; may be given many times.")]
DryMultiplier: TypeAlias = Annotated[float | None, _flag("Penalty for lengthening a repetition (DRY); 0 is none.")]
DryBase: TypeAlias = Annotated[float | None, _flag("Growth of DRY's penalty with each further token; 1.75.")]
DryAllowedLength: TypeAlias = Annotated[int | None, _flag("Longest repetition that DRY does not penalise; 2 tokens.")]
DryPenaltyLastN: TypeAlias = Annotated[
    int | None,
    _flag("Last tokens that DRY looks at; -1, the default, for all.", None, "--dry-penalty-last-n"),
]
DryBreaker: TypeAlias = Annotated[
    list[str] | None,
    _flag("Text that ends a repetition, in place of llama.cpp's four; many times.", None, "--dry-sequence-breaker"),
]
TopNSigma: TypeAlias = Annotated[
    float | None,
    _flag("Draw from scores at most this many deviations below the highest; 0 is all.", None, "--top-n-sigma"),
]
XtcProbability: TypeAlias = Annotated[float | None, _flag("How often the likeliest tokens are left out (XTC).")]
XtcThreshold: TypeAlias = Annotated[float | None, _flag("Probability from which XTC leaves tokens out; 0.1.")]
Mirostat: TypeAlias = Annotated[int | None, _flag("1 or 2: draw by mirostat in place of other filters.")]
MirostatTau: TypeAlias = Annotated[float | None, _flag("Mirostat's target surprise, in bits; 5.")]
MirostatEta: TypeAlias = Annotated[float | None, _flag("Mirostat's learning rate; 0.1.")]
FilterOrder: TypeAlias = Annotated[
    str | None, _flag("Filters in the order in which they act, such as top_k,top_p,temperature.")
]
Seed: TypeAlias = Annotated[
    str, typer.Option(metavar="NUMBER|random", help="The same gives the same text; random is a fresh one, and shown.")
]
Verbose: TypeAlias = Annotated[
    bool, typer.Option("--verbose", help="Say on stderr how the prompt begins, what ends the text and all options.")
]


def read_seed(text: str) -> int:
    """Return the number; for "random" a fresh one.

    Example:
        >>> read_seed("7")
        7
    """
    if text == "random":
        return GenerationOptions(seed=None).seed or 0
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--seed is {text!r}; expected a number, or random") from None


def with_defaults(generator: TextGenerator, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given, and the command's defaults where the model has none.

    None and empty lists are not given, except for the seed.
    """
    options = {name: o for name, o in given.items() if name == "seed" or (o is not None and o != [] and o != {})}
    if isinstance(options.get("filter_order"), str):
        options["filter_order"] = [name.strip() for name in options["filter_order"].split(",")]
    stated = set(generator.model.generation_config.sampling_defaults)
    if generator.model.generation_config.max_length is not None:
        stated.add("max_new_tokens")
    return {name: value for name, value in defaults.items() if name not in stated} | options


def describe_options(generator: TextGenerator, prompt: list[int], options: Mapping[str, Any]) -> Iterable[str]:
    """Yield lines that state the first ids of the prompt, the ids that end a text, and each option with its source."""
    yield f"prompt: {len(prompt)} ids, beginning with {_named(generator, prompt[:3])}"
    yield f"ends: {_named(generator, generator.end_ids) or 'none'}"
    chosen = generator.options(len(prompt), **options)
    most = generator.model.generation_config.max_length
    stated = generator.model.generation_config.sampling_defaults
    for name, field in GenerationOptions.__dataclass_fields__.items():
        value = getattr(chosen, name)
        if name in options:
            yield f"{name}: {value!r}"
        elif name == "max_new_tokens" and most is not None:
            yield f"{name}: {value!r} (generation_config.json: max_length {most}, less the prompt)"
        elif name in stated:
            yield f"{name}: {value!r} (generation_config.json)"
        elif name in ("temperature", "top_k", "top_p", "max_new_tokens"):
            yield f"{name}: {field.default!r} (default)"


def _named(generator: TextGenerator, ids: Iterable[int]) -> str:
    """Return ids with their tokens."""
    tokenizer = generator.tokenizer
    names = [
        (token_id, tokenizer.id_to_token(token_id) if token_id < tokenizer.vocab_size else None) for token_id in ids
    ]
    return ", ".join(f"{token_id}" if name is None else f"{token_id} {name!r}" for token_id, name in names)
