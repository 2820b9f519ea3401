"""`bpe-llama train-tokenizer`: trains a vocabulary on files."""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Annotated, TypedDict

import typer

from bpe_llama._by_name import open_tokenizer
from bpe_llama._progress import is_quiet, note
from bpe_llama.cli.options import (
    DEFAULT_TOKENIZER,
    FieldOption,
    JsonOption,
    OnErrorOption,
    SeparatorOption,
    ThreadsOption,
    integer_option,
)
from bpe_llama.counts import DEFAULT_PATTERN
from bpe_llama.tokenizer import Tokenizer

EXAMPLE = "Example: bpe-llama train-tokenizer 'corpus/*.txt' --vocab-size 32000 --special '<|endoftext|>'"


class _Reading(TypedDict):
    separator: str | None
    field: str
    on_error: str


def command(
    corpus: Annotated[list[str], typer.Argument(help="Files, folders or globs; .txt, .jsonl, .parquet, .gz, .zst.")],
    vocab_size: Annotated[int, integer_option("Number of tokens: 256 bytes, merges, special tokens.")] = 32_000,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="r50k, cl100k, llama3, o200k, qwen2, deepseek_v3, smollm, smollm_digits, or a regular expression; "
            f"default: {DEFAULT_PATTERN}, or that of --base."
        ),
    ] = None,
    special: Annotated[list[str] | None, typer.Option(help="A special token; repeatable.")] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            metavar="chatml|llama3|FILE",
            help="Save this chat template beside tokenizer.json; a named one adds its special tokens.",
        ),
    ] = None,
    base: Annotated[str | None, typer.Option(help="A tokenizer to extend; its ids do not change.")] = None,
    superword_from: Annotated[
        int | None, integer_option("SuperBPE: from this many tokens on, merge across words.")
    ] = None,
    min_frequency: Annotated[int, integer_option("Least count of a pair that is merged.")] = 0,
    max_token_length: Annotated[int | None, integer_option("Longest token in bytes.")] = None,
    field: FieldOption = "text",
    separator: SeparatorOption = None,
    on_error: OnErrorOption = "raise",
    threads: ThreadsOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="tokenizer.json, a name ending in .tiktoken, or a folder; an existing file is overwritten. "
            f"Default: {DEFAULT_TOKENIZER}, unless it exists.",
        ),
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Count on this Ray cluster; auto: find one, local: start one.")
    ] = None,
    report: Annotated[
        bool | None,
        typer.Option(
            "--report/--no-report",
            help="Encode the corpus and print statistics; default: unless --ray, --quiet or --json is given.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a vocabulary on text and save it."""
    from bpe_llama import report as reporting
    from bpe_llama._rich import Console

    if out is None:
        out = Path(DEFAULT_TOKENIZER)
        if out.exists():
            raise ValueError(f"{out} exists; give --out {out} to overwrite it, or --out with another name")
    for name, value in (("--threads", threads), ("--base", base), ("--superword-from", superword_from)):
        if ray is not None and value is not None:
            raise ValueError(f"give {name} or --ray, not both")
    if chat_template is not None:
        from bpe_llama.chat import with_chat_template
        from bpe_llama.chat.templates import template_tokens

        if out.suffix and out.name != "tokenizer.json":
            raise ValueError(f"--chat-template is saved beside a tokenizer.json; --out is {out}, expected that name")
        special = list(dict.fromkeys((*(special or ()), *template_tokens(chat_template))))
    if not out.is_dir() and out.suffix not in ("", ".json", ".tiktoken", ".model"):
        raise ValueError(f"--out is {out}; expected a folder or a file that ends in .json, .tiktoken or .model")
    own_pattern = pattern if base is None and superword_from is None else None  # else another one is saved
    _check_saving(out, own_pattern, special or [], chat_template)
    out.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    reading: _Reading = {"separator": separator, "field": field, "on_error": on_error}
    if pattern is None and base is None:
        pattern = DEFAULT_PATTERN
    if ray is not None:
        from bpe_llama import scale

        with scale.cluster(ray):
            counts = scale.count_files(
                corpus, pattern=pattern or DEFAULT_PATTERN, special_tokens=special or [], **reading
            )
        tokenizer = Tokenizer.train_from_counts(
            counts, vocab_size=vocab_size, min_frequency=min_frequency, max_token_length=max_token_length
        )
    else:
        tokenizer = Tokenizer.train(
            corpus,
            vocab_size=vocab_size,
            pattern=pattern,
            special_tokens=special or [],
            base=None if base is None else open_tokenizer(base),
            superword_from=superword_from,
            min_frequency=min_frequency,
            max_token_length=max_token_length,
            num_threads=threads,
            **reading,
        )
    if chat_template is not None:
        tokenizer = with_chat_template(tokenizer, chat_template)
    tokenizer.save(out)
    peak = reporting.peak_memory()
    seconds = time.perf_counter() - started
    if not as_json:
        memory = f", peak memory {peak / 1e6:,.0f} MB" if peak else ""
        note(f"{out}: {tokenizer.vocab_size:,} tokens in {seconds:.1f} s{memory}", on_stdout=True)
    figures = {"out": str(out), "vocab_size": tokenizer.vocab_size, "seconds": seconds, "peak_memory_bytes": peak}
    if report or (report is None and ray is None and not is_quiet() and not as_json):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # training has already warned of skipped rows
            result = reporting.report(tokenizer, corpus, num_threads=threads, **reading)
        figures["report"] = result.to_dict()
        if not as_json:
            Console(soft_wrap=True, highlight=False).print(reporting.report_tables(result))
    if as_json:
        typer.echo(json.dumps(figures, ensure_ascii=False, indent=2))


def _check_saving(out: Path, pattern: str | None, special: list[str], chat_template: str | None) -> None:
    """Save a vocabulary of bytes elsewhere, so that what cannot be saved is refused before the corpus is read.

    Raises:
        ValueError: If the pattern, the special tokens or the chat template cannot be saved in this format.
    """
    from bpe_llama.chat import with_chat_template

    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore", UserWarning)  # the trained vocabulary warns
        untrained = Tokenizer.train_from_iterator(
            ["a"], 256 + len(special), pattern=pattern, special_tokens=special, progress=False
        )
        if chat_template is not None:
            untrained = with_chat_template(untrained, chat_template)
        untrained.save(Path(folder) / out.name if out.suffix and not out.is_dir() else folder)
