"""The command line: ``bpe-llama COMMAND``.

The tokenizer's commands are here. Those that need the model are forwarded to `bpe_llama.model.cli.app` when they are
run, so that ``bpe-llama --help`` never imports torch. A user's mistake ends in one line on standard error and
exit code 2.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from bpe_llama import __version__
from bpe_llama._files import atomic_write
from bpe_llama.tokenizer import Tokenizer

EXIT_BAD_USAGE = 2
EXIT_INTERRUPTED = 130

# Commands of `bpe_llama.model.cli.app`, with the line that --help shows for each.
MODEL_COMMANDS = {
    "pretrain": "Train a LLaMA from scratch on a file of ids.",
    "finetune": "Train a model further on your own text, with LoRA or in full.",
    "generate": "Continue a prompt.",
    "chat": "Talk to an instruction-tuned model.",
    "convert": "Rewrite weights in another format.",
    "demo": "Train a tokenizer and a small LLaMA on this machine's Python, then generate.",
}

app = typer.Typer(
    name="bpe-llama",
    help="Train a byte-level BPE vocabulary, tokenize, train or load a LLaMA, generate.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

TokenizerPath = Annotated[
    Path,
    typer.Option(
        "--tokenizer",
        "-t",
        help="tokenizer.json, .tiktoken, Llama 3's tokenizer.model, a .gguf, or a folder that holds one.",
    ),
]
DEFAULT_TOKENIZER = Path("tokenizer.json")
TextArgument = Annotated[str | None, typer.Argument(help="Text; without it and without --file, standard input.")]
FileOption = Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from this UTF-8 file.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command(
    "train-tokenizer",
    epilog="Example: bpe-llama train-tokenizer 'corpus/*.txt' --vocab-size 32000 --special '<|end|>'",
)
def train_tokenizer(
    corpus: Annotated[list[str], typer.Argument(help="Files, folders or globs; .txt, .jsonl, .gz, .zst.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens in all: 256 bytes, merges, special tokens.")] = 32_000,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="r50k, cl100k, llama3, o200k, qwen2, or a regular expression; by default cl100k, or that of --base."
        ),
    ] = None,
    special: Annotated[list[str] | None, typer.Option(help="A special token; may be given many times.")] = None,
    base: Annotated[Path | None, typer.Option(help="A tokenizer to train further; its ids stay what they are.")] = None,
    superword_from: Annotated[
        int | None, typer.Option(help="From this many tokens on, merge across the ends of words (SuperBPE).")
    ] = None,
    min_frequency: Annotated[int, typer.Option(help="Merge no pair that occurs less often.")] = 0,
    max_token_length: Annotated[int | None, typer.Option(help="Make no token of more bytes.")] = None,
    on_error: Annotated[
        str, typer.Option(metavar="raise|skip", help="At a row without text: stop, or skip it and say how many.")
    ] = "raise",
    threads: Annotated[int | None, typer.Option(help="Threads; by default one a core.")] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="tokenizer.json, or a name ending in .tiktoken.")
    ] = DEFAULT_TOKENIZER,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Count on this Ray cluster; auto finds it, local starts one.")
    ] = None,
    report: Annotated[
        bool | None,
        typer.Option(
            "--report/--no-report",
            help="Encode the corpus at the end and report; by default without --ray.",
        ),
    ] = None,
) -> None:
    """Train a vocabulary on text and save it."""
    from rich.console import Console

    from bpe_llama import report as reporting

    for name, value in (("--threads", threads), ("--base", base), ("--superword-from", superword_from)):
        if ray is not None and value is not None:
            raise ValueError(f"give {name} or --ray, not both")
    started = time.perf_counter()
    if pattern is None and base is None:
        pattern = "cl100k"
    if ray is not None:
        from bpe_llama import scale

        with scale.cluster(ray):
            counts = scale.count_files(
                corpus, pattern=pattern or "cl100k", special_tokens=special or [], on_error=on_error
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
            base=None if base is None else Tokenizer.from_file(base),
            superword_from=superword_from,
            min_frequency=min_frequency,
            max_token_length=max_token_length,
            on_error=on_error,
            num_threads=threads,
        )
    tokenizer.save(out)
    peak = reporting.peak_memory()
    memory = f", at most {peak / 1e6:,.0f} MB of memory" if peak else ""
    typer.echo(f"{out}: {tokenizer.vocab_size:,} tokens in {time.perf_counter() - started:.1f} s{memory}")
    if report or (report is None and ray is None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of skipped rows, which training warned of already
            found = reporting.report(tokenizer, corpus, on_error=on_error, num_threads=threads)
        Console(soft_wrap=True, highlight=False).print(reporting.report_tables(found))


@app.command(epilog="Example: bpe-llama encode 'Hello world' --tokenizer tokenizer.json")
def encode(
    text: TextArgument = None,
    file: FileOption = None,
    tokenizer: TokenizerPath = DEFAULT_TOKENIZER,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write a NumPy array of ids here (.npy).")] = None,
    bos: Annotated[bool, typer.Option("--bos", help="Begin with the beginning-of-text token.")] = False,
    eos: Annotated[bool, typer.Option("--eos", help="End with the end-of-text token.")] = False,
    allow_special: Annotated[bool, typer.Option(help="Turn special tokens' names in the text into their ids.")] = False,
) -> None:
    """Print the ids of a text, or save them."""
    loaded = Tokenizer.from_file(tokenizer)
    content = _read_text(text, file)
    ids = loaded.encode(content, bos=bos, eos=eos, allowed_special="all" if allow_special else ())
    if out is None:
        typer.echo(" ".join(map(str, ids)))
    else:
        _save_ids(ids, loaded.vocab_size, out)
        typer.echo(f"{out}: {len(ids):,} ids")


@app.command(epilog="Example: bpe-llama decode 9906 1917 --tokenizer cl100k.tiktoken")
def decode(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids; without them and without --file, standard input.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read ids from a .npy file, or text with spaces.")
    ] = None,
    tokenizer: TokenizerPath = DEFAULT_TOKENIZER,
) -> None:
    """Print the text of ids: exactly its bytes, with no line end added to a pipe or file."""
    chosen = _read_ids(ids, file)
    content = Tokenizer.from_file(tokenizer).decode_bytes(chosen)
    sys.stdout.buffer.write(content)
    if sys.stdout.isatty() and not content.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


@app.command(epilog="Example: bpe-llama count --file README.md --tokenizer tokenizer.json")
def count(
    text: TextArgument = None,
    file: Annotated[
        list[Path] | None, typer.Option("--file", "-f", help="A UTF-8 file; may be given many times.")
    ] = None,
    tokenizer: TokenizerPath = DEFAULT_TOKENIZER,
) -> None:
    """Print how many tokens a text or each of several files has."""
    loaded = Tokenizer.from_file(tokenizer)
    if not file or len(file) == 1:
        typer.echo(loaded.count(_read_text(text, file[0] if file else None)))
        return
    total = 0
    for path in file:
        tokens = loaded.count(_read_text(text, path))
        total += tokens
        typer.echo(f"{tokens:>12} {path}")
    typer.echo(f"{total:>12} total")


@app.command(epilog="Example: bpe-llama inspect 'How is this cut?' --tokenizer tokenizer.json --ids")
def inspect(
    text: TextArgument = None,
    file: FileOption = None,
    tokenizer: TokenizerPath = DEFAULT_TOKENIZER,
    ids: Annotated[bool, typer.Option("--ids", help="One line a token: position, id, text, bytes.")] = False,
    vocabulary: Annotated[bool, typer.Option("--vocabulary", help="Describe the tokenizer instead of a text.")] = False,
) -> None:
    """Show a text cut into coloured tokens, or describe a tokenizer."""
    from rich.console import Console

    from bpe_llama import display

    console = Console(soft_wrap=True, highlight=False)
    loaded = Tokenizer.from_file(tokenizer)
    if vocabulary:
        console.print(display.vocabulary_table(loaded))
        return
    content = _read_text(text, file)
    encoded = loaded.encode_ordinary(content)
    tokens = [loaded.id_to_bytes(token_id) for token_id in encoded]
    console.print(display.token_table(encoded, tokens) if ids else display.coloured_tokens(tokens))
    console.print(display.rates(len(encoded), content))


@app.command(epilog="Example: bpe-llama compare ours.json cl100k.tiktoken --text README.md --plot compare.png")
def compare(
    a: Annotated[Path, typer.Argument(help="One tokenizer's file.")],
    b: Annotated[Path, typer.Argument(help="The other's.")],
    text: Annotated[list[Path], typer.Option("--text", help="A UTF-8 file; may be given many times.")],
    plot: Annotated[Path | None, typer.Option(help="Draw bytes a token here: .png, .svg or .pdf.")] = None,
) -> None:
    """Set two tokenizers side by side on some texts."""
    from rich.console import Console

    from bpe_llama import compare as comparing

    texts = [(path.name, _read_text(None, path)) for path in text]
    result = comparing.compare(Tokenizer.from_file(a), Tokenizer.from_file(b), texts)
    names = (a.name, b.name) if a.name != b.name else (str(a), str(b))
    Console(soft_wrap=True, highlight=False).print(comparing.comparison_table(result, *names))
    if plot is not None:
        comparing.save_plot(result, *names, plot)
        typer.echo(f"{plot}: drawn")


def _read_text(text: str | None, file: Path | None) -> str:
    if text is not None and file is not None:
        raise ValueError("give a text or --file, not both")
    if text is not None:
        return text
    if file is None and sys.stdin.isatty():
        raise ValueError("no text: give it as an argument, with --file, or on standard input")
    content = sys.stdin.buffer.read() if file is None else file.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        name = "standard input" if file is None else file
        raise ValueError(f"{name}: byte {error.start} is not valid UTF-8 ({error.reason})") from error


def _read_ids(ids: list[str] | None, file: Path | None) -> list[int]:
    if ids and file is not None:
        raise ValueError("give ids or --file, not both")
    if file is not None and file.suffix == ".npy":
        array = np.load(file, allow_pickle=False)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"{file}: expected a flat array of integers, got {array.dtype} of shape {array.shape}")
        return [int(token_id) for token_id in array]
    if not ids:
        content = sys.stdin.buffer.read() if file is None else file.read_bytes()
        ids = content.decode("utf-8", "replace").split()
    return [_whole_number(word) for word in ids]


def _whole_number(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"ids must be whole numbers, got {word[:40]!r}") from None


def _save_ids(ids: list[int], vocab_size: int, out: Path) -> None:
    """Write ids as .npy: uint16 where the vocabulary allows, under a temporary name first."""
    array = np.asarray(ids, dtype=np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    with atomic_write(out) as temporary, temporary.open("wb") as handle:
        np.save(handle, array)


def _forward(context: typer.Context) -> None:
    """Run a command of `bpe_llama.model.cli.app`, which needs torch."""
    try:
        from bpe_llama.model.cli.app import app as model_app
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("bpe_llama"):
            raise
        message = f"{context.info_name} needs {error.name}: pip install 'bpe-llama[model]'"
        raise ValueError(message) from error
    code = model_app(args=[str(context.info_name), *context.args], prog_name="bpe-llama", standalone_mode=False)
    if isinstance(code, int):
        raise typer.Exit(code)


for _name, _help in MODEL_COMMANDS.items():
    app.command(
        _name,
        help=_help,
        add_help_option=False,  # the model's own command answers --help
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
    )(_forward)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code of one command: 0, 2 for bad usage or bad input, 130 for Ctrl-C.

    >>> main(["--version"])
    0...
    0
    """
    usual, warnings.formatwarning = warnings.formatwarning, _warning_line
    try:
        code = app(args=arguments, prog_name="bpe-llama", standalone_mode=False)
        if code == EXIT_INTERRUPTED:  # newer versions of typer turn Ctrl-C into this code
            _complain("interrupted")
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, KeyError, OSError, MemoryError, ImportError) as error:
        _complain(_one_line(error))
        return EXIT_BAD_USAGE
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's own errors, wherever this typer keeps that class
            raise
        _complain(error.format_message())
        return EXIT_BAD_USAGE
    finally:
        warnings.formatwarning = usual


def _warning_line(message: Warning | str, *_args: object, **_options: object) -> str:
    """Return a warning as the user of a command is to see it, without the line of code that gave it."""
    return f"bpe-llama: warning: {' '.join(str(message).split())}\n"


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(message.split()) or type(error).__name__


def _complain(message: str) -> None:
    print(f"bpe-llama: {' '.join(message.split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
