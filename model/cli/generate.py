"""`bpe-llama generate`: continues a prompt."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from bpe_llama._arguments import check_surrogates, integer
from bpe_llama._progress import note
from bpe_llama.model.cli.loading import load_generator
from bpe_llama.model.cli.options import sampling
from bpe_llama.model.cli.options.common import AdapterOption, DeviceOption, GroupSizeOption, QuantizeOption
from bpe_llama.model.cli.speed import describe_speed
from bpe_llama.model.generation.generate import search_draws
from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.model.generation.text_request import has_token
from bpe_llama.model.sampling.sequence import Sequence as Generated
from bpe_llama.tokenizer import Tokenizer

EXAMPLE = "Example: bpe-llama generate 'def main():' --model demo-out/model --max-new-tokens 200"


@sampling.sampling_flags()
def command(
    prompt: Annotated[str | None, typer.Argument(help="Text to continue; without it, standard input.")] = None,
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="A folder, a .gguf, or org/name on the Hugging Face Hub."),
    ] = ".",
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", "-t", help="Default: --model's own.")] = None,
    adapter: AdapterOption = None,
    *,
    logit_bias: Annotated[
        list[str] | None, typer.Option(help="ID=NUMBER, added to the logit of an id; repeatable.")
    ] = None,
    ban: Annotated[list[int] | None, typer.Option(help="An id that is never sampled; repeatable.")] = None,
    preset: Annotated[
        str, typer.Option(help="Semantics of the filters: exact, meta, transformers or llama_cpp.")
    ] = "exact",
    num_beams: Annotated[int, typer.Option(help="Above 1: beam search instead of sampling.")] = 1,
    answers: Annotated[int | None, typer.Option("--n", help="Number of continuations, each with its own seed.")] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT",
            help="Also print the log-probability of each new token, and of this many most likely ones; 0: of none.",
        ),
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; repeatable.")] = None,
    skip_special_tokens: Annotated[
        bool | None,
        typer.Option(
            help="Print no special tokens of the continuation. Default: unless --stop or --grammar names one."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16.")] = "auto",
    device: DeviceOption = "auto",
    quantized: QuantizeOption = None,
    group_size: GroupSizeOption = None,
    speed: Annotated[
        bool,
        typer.Option("--speed", help="Print tokens per second and the fraction of the roofline (memory bandwidth)."),
    ] = False,
    verbose: sampling.Verbose = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: prompt, and text, seed and end of each continuation.")
    ] = False,
    **flags: Any,
) -> None:
    """Print a prompt and stream its continuation."""
    given = sampling.read_flags(flags) | {"logit_bias": read_biases(logit_bias or ()), "banned_ids": ban}
    given["preset"] = None if preset == "exact" else preset
    given |= {"logprobs": logprobs is not None or None, "top_logprobs": logprobs or None}
    sampling.check_values(given)
    if answers is not None:
        integer("--n", answers, 1)
    if speed and num_beams != 1:
        raise ValueError(f"--speed is given with --num-beams {num_beams}, but times one sequence; leave one out")
    text = prompt if prompt is not None else read_prompt()
    check_surrogates("the prompt", text)
    generator = load_generator(model, tokenizer, dtype, device, adapter, quantized, group_size)
    options = sampling.with_defaults(generator, given, {})
    temperature = generator.options(**options).temperature  # raises before anything is printed
    if num_beams != 1 and flags["seed"] is None and not search_draws(generator.model, {"temperature": temperature}):
        del options["seed"]
    if verbose:
        for line in sampling.describe_options(generator, generator.encode(text), options):
            typer.echo(line, err=True)
    options |= {"stop": stop or None, "skip_special_tokens": skip_special_tokens}
    if as_json or answers is not None or num_beams != 1:
        found = generator.generate(text, n=1 if answers is None else answers, num_beams=num_beams, **options)
        if as_json:
            typer.echo(json.dumps(as_object(generator, text, found), ensure_ascii=False, indent=2))
        else:
            for number, (answer, sequence) in enumerate(zip(found, generator.sequences, strict=True), start=1):
                if answers is not None:
                    seeded = "" if num_beams != 1 else f", seed {sequence.options.seed}"
                    sys.stdout.write(f"[{number} of {answers}{seeded}]\n")
                sys.stdout.write(f"{text}{answer}\n")
                print_logprobs(generator, sequence)
    else:
        pieces = generator.stream(text, **options)
        sys.stdout.write(text + next(pieces, ""))  # raises before anything is printed
        sys.stdout.flush()
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        if generator.last is not None:
            print_logprobs(generator, generator.last)
    sys.stdout.flush()
    if flags["seed"] == "random":
        note(f"seed: {options['seed']}")
    say_if_the_context_is_full(generator, flags["max_new_tokens"])
    if generator.last is not None and verbose:
        typer.echo(f"finish_reason: {generator.last.finish_reason} after {len(generator.last.new_ids)} ids", err=True)
    if speed and generator.last is not None:
        typer.echo(describe_speed(generator.model, generator.last), err=True)


def say_if_the_context_is_full(generator: TextGenerator, max_new_tokens: int | None) -> None:
    """Print a note on stderr if the last continuation ended before --max-new-tokens, as the context was full."""
    last, context = generator.last, generator.model.config.context_length
    if last is None or max_new_tokens is None or last.finish_reason != "length":
        return
    if len(last.new_ids) < max_new_tokens and len(last.prompt) + len(last.new_ids) >= context:
        note(
            f"the model's context of {context:,} tokens is full after {len(last.new_ids):,} new tokens; "
            f"--max-new-tokens is {max_new_tokens:,}"
        )


def as_object(generator: TextGenerator, prompt: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return the prompt and its continuations for JSON."""
    choices = []
    for text, sequence in zip(texts, generator.sequences, strict=True):
        choice: dict[str, Any] = {
            "text": text,
            "finish_reason": sequence.finish_reason,
            "seed": sequence.options.seed,
            "tokens": len(sequence.new_ids),
        }
        if sequence.logprobs:
            choice["logprobs"] = scored_tokens(generator, sequence)
        choices.append(choice)
    return {"prompt": prompt, "prompt_tokens": len(generator.sequences[0].prompt), "choices": choices}


def scored_tokens(generator: TextGenerator, sequence: Generated) -> list[dict[str, Any]]:
    """Return id, token and log-probability of each new id, and the same of the most likely ids."""

    def scored(token_id: int, logprob: float) -> dict[str, Any]:
        return {"id": token_id, "token": shown_token(generator.tokenizer, token_id), "logprob": round(logprob, 6)}

    found = []
    for place, (token_id, logprob) in enumerate(zip(sequence.new_ids, sequence.logprobs, strict=True)):
        token = scored(token_id, logprob)
        if sequence.top_logprobs:
            token["top"] = [scored(*likely) for likely in sequence.top_logprobs[place]]
        found.append(token)
    return found


def shown_token(tokenizer: Tokenizer, token_id: int) -> str:
    """Return a token as text, with U+FFFD for bytes of an incomplete character; "" where an id has no token."""
    return tokenizer.id_to_bytes(token_id).decode("utf-8", "replace") if has_token(tokenizer, token_id) else ""


def print_logprobs(generator: TextGenerator, sequence: Generated) -> None:
    """Print a line for each new token that has a log-probability."""
    for token in scored_tokens(generator, sequence) if sequence.logprobs else ():
        others = ", ".join(f"{likely['token']!r} {likely['logprob']:.3f}" for likely in token.get("top", ()))
        sys.stdout.write(f"{token['logprob']:>9.3f}  {token['token']!r}{'  of ' if others else ''}{others}\n")


def read_prompt() -> str:
    """Return standard input as text."""
    if sys.stdin.isatty():
        raise ValueError("no prompt: give it as an argument or on standard input")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input: not UTF-8 ({error.reason} at byte {error.start:,})") from None


def read_biases(texts: Sequence[str]) -> dict[int, float]:
    """Return the bias of each id from texts such as "17=-2.5".

    Example:
        >>> read_biases(["17=-2.5", "3=1"])
        {17: -2.5, 3: 1.0}
    """
    biases = {}
    for text in texts:
        token_id, _, number = text.partition("=")
        try:
            biases[int(token_id)] = float(number)
        except ValueError:
            raise ValueError(f"--logit-bias is {text!r}; expected ID=NUMBER, such as 17=-2.5") from None
    return biases
