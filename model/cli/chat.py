"""`bpe-llama chat`: a conversation with an instruction-tuned model, and its read-eval-print loop."""

from __future__ import annotations

import contextlib
import difflib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from bpe_llama._files import write_text
from bpe_llama._loading.published.cache import cache_folder
from bpe_llama._progress import note
from bpe_llama.chat.renderer import compile_template
from bpe_llama.chat.templates import choose_template
from bpe_llama.model.cli.loading import load_generator
from bpe_llama.model.cli.options import sampling
from bpe_llama.model.cli.options.common import AdapterOption, DeviceOption, GroupSizeOption, QuantizeOption
from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.tokenizer import Tokenizer

EXAMPLE = "Example: bpe-llama chat --model SmolLM2-135M-Instruct.Q4_1.gguf --system 'Answer briefly.'"

HELP = """/system TEXT  set the system prompt and clear the conversation
/reset        clear the conversation
/retry        answer the last message again, with another seed
/save FILE    write the conversation to a .json file, which finetune reads
/stats        count the tokens of the conversation
/help         show this
/quit         end (also Ctrl-D)
A message of several lines begins and ends with \"\"\", or its lines end with \\."""
COMMANDS = ("/system", "/reset", "/retry", "/save", "/stats", "/help", "/quit", "/exit")
HISTORY_LINES = 1000
DEFAULTS = {"max_new_tokens": 512, "temperature": 0.7, "top_p": 0.9}


@sampling.sampling_flags(
    DEFAULTS,
    without=(
        *("min_new_tokens", "typical_p", "mirostat_tau", "mirostat_eta", "filter_order"),
        *("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    ),
)
def command(
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="A folder, a .gguf, or org/name on the Hugging Face Hub."),
    ],
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", "-t", help="Default: --model's own.")] = None,
    adapter: AdapterOption = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    *,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16.")] = "auto",
    device: DeviceOption = "auto",
    quantized: QuantizeOption = None,
    group_size: GroupSizeOption = None,
    verbose: sampling.Verbose = False,
    **flags: Any,
) -> None:
    """Chat with an instruction-tuned model; /help lists commands, Ctrl-C stops an answer, Ctrl-D ends."""
    given = sampling.read_flags(flags)
    sampling.check_values(given)
    if flags["seed"] == "random":
        typer.echo(f"seed: {given['seed']}", err=True)
    generator = load_generator(
        model, tokenizer, dtype, device, adapter, quantized, group_size, check_tokenizer=check_template
    )
    options = sampling.with_defaults(generator, given, DEFAULTS)
    generator.options(**options)  # raises before the first question
    conversation = Conversation(generator, system, options)
    if verbose:
        opening = generator.tokenizer.apply_chat_template([*conversation.messages, {"role": "user", "content": ""}])
        for line in sampling.describe_options(generator, opening, conversation.options):
            typer.echo(line, err=True)
    if sys.stdin.isatty():
        note(banner(model, generator))
        with line_editing():
            repl(conversation)
    else:
        repl(conversation)


def banner(name: str, generator: TextGenerator) -> str:
    """Return a line about the model, and one about the commands."""
    model = generator.model
    parameters = sum(weight.numel() for weight in model.parameters())
    dtype = str(model.dtype).removeprefix("torch.")
    return (
        f"{Path(name).resolve().name}: {parameters:,} parameters, {dtype} on {model.device}, "
        f"context of {model.config.context_length:,} tokens\n"
        "/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends"
    )


@contextmanager
def line_editing() -> Iterator[None]:
    """Edit lines with the arrow keys, and keep a history of them in the cache folder, where Python has readline."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    history = cache_folder() / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    try:
        yield
    finally:
        readline.set_history_length(HISTORY_LINES)
        with contextlib.suppress(OSError):  # the folder may be read-only
            history.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(history)


def check_template(tokenizer: Tokenizer) -> None:
    """Raise `ValueError` for a tokenizer without a chat template, or with one that does not compile."""
    if tokenizer.chat_template is None:
        raise ValueError("the tokenizer has no chat template: this model continues text, use `bpe-llama generate`")
    compile_template(choose_template(tokenizer.chat_template, None, has_tools=False))


class Conversation:
    """The messages so far, and the generator that answers.

    Args:
        generator: Model and tokenizer; the tokenizer needs a chat template.
        system: System prompt, or None.
        options: Options of `TextGenerator.stream`.

    Raises:
        ValueError: If the tokenizer has no chat template, or it does not compile.
    """

    def __init__(
        self, generator: TextGenerator, system: str | None = None, options: dict[str, Any] | None = None
    ) -> None:
        check_template(generator.tokenizer)
        self.generator = generator
        self.system = system
        self.options = dict(options or {})
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Remove all messages except the system prompt."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def answer(self, text: str) -> Iterator[str]:
        """Yield the answer to a message, piece by piece.

        If the caller stops early, the pieces so far are the answer in the conversation. Until the first piece, and if
        an error comes before it, the messages are unchanged.

        Raises:
            ValueError: If the conversation no longer fits the model's context.
        """
        return self._answer([*self.messages, {"role": "user", "content": text}])

    def _answer(self, messages: list[dict[str, str]]) -> Iterator[str]:
        """Yield the answer to the last of the messages, which then are those of the conversation."""
        ids = self.generator.tokenizer.apply_chat_template(messages)
        room = self.generator.model.config.context_length
        if len(ids) >= room:
            raise ValueError(
                f"the conversation has {len(ids):,} tokens, which leave no room in the context of {room:,}; "
                "/reset clears it"
            )
        answer = {"role": "assistant", "content": ""}
        for piece in self.generator.stream(ids, **{"reuse": True} | self.options):
            answer["content"] += piece
            self.messages = [*messages, answer]
            yield piece
        self.messages = [*messages, answer]  # an answer may be empty

    def is_full(self) -> bool:
        """Return whether the last answer ended because the context was full."""
        last = self.generator.last
        if last is None or last.finish_reason != "length":
            return False
        return len(last.prompt) + len(last.new_ids) >= self.generator.model.config.context_length

    def last_answer(self) -> str:
        """Return the numbers of tokens of the last answer, and its speed."""
        last = self.generator.last
        if last is None:
            return "no answer yet"
        cached = f", {last.num_cached_tokens:,} of them cached" if last.num_cached_tokens else ""
        seconds = last.prefill_seconds + last.decode_seconds
        rate = f", {len(last.new_ids) / seconds:.1f} tokens/s" if seconds else ""
        return f"{len(last.prompt):,} prompt tokens{cached}; {len(last.new_ids):,} new{rate}"

    def statistics(self) -> str:
        """Return the number of messages, and of the tokens that the next prompt begins with."""
        tokens = len(self.generator.tokenizer.apply_chat_template(self.messages)) if self.messages else 0
        room = self.generator.model.config.context_length
        return f"{len(self.messages)} messages, {tokens:,} of {room:,} tokens; last answer: {self.last_answer()}"

    def retry(self) -> Iterator[str]:
        """Yield another answer to the last message; it replaces the one before once it has begun.

        Raises:
            ValueError: If there is no answer yet.
        """
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            raise ValueError("there is no answer yet")
        seed = self.options.get("seed", 0)
        self.options["seed"] = None if seed is None else int(seed) + 1
        yield from self._answer(self.messages[:-1])


def repl(conversation: Conversation) -> None:
    """Read messages from standard input and print the answers until the input ends; Ctrl-C stops only an answer."""
    interactive = sys.stdin.isatty()
    while True:
        try:
            text = read_message(interactive)
        except EOFError:
            if interactive:
                print()  # the shell's prompt begins a line of its own
            return
        except KeyboardInterrupt:
            print()
            continue
        if not text:
            continue
        if text.startswith("/"):
            if not _command(conversation, text):
                return
        else:
            _print_answer(conversation, conversation.answer(text))


def read_message(interactive: bool) -> str:
    """Return one message: a line, or several within triple quotes or with a backslash at their ends.

    The end of the input ends a message, too.

    Raises:
        EOFError: If there is no more input.
    """
    line = input("> " if interactive else "")

    def more() -> str | None:
        try:
            return input("... " if interactive else "")
        except EOFError:
            return None

    if line.lstrip().startswith('"""'):
        lines = [line.lstrip()[3:]]
        while not lines[-1].rstrip().endswith('"""'):
            if (following := more()) is None:
                return "\n".join(lines).strip()
            lines.append(following)
        lines[-1] = lines[-1].rstrip()[:-3]
        return "\n".join(lines).strip()
    lines = [line]
    while lines[-1].endswith("\\") and (following := more()) is not None:
        lines[-1] = lines[-1][:-1]
        lines.append(following)
    return "\n".join(lines).strip()


def _command(conversation: Conversation, line: str) -> bool:
    """Run a /command; return whether the conversation continues."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name in ("/quit", "/exit"):
        return False
    if name == "/reset":
        conversation.reset()
    elif name == "/system":
        conversation.system = rest or None
        conversation.reset()
    elif name == "/retry":
        _print_answer(conversation, conversation.retry())
    elif name == "/save":
        _save(conversation, rest)
    elif name == "/stats":
        print(conversation.statistics())
    elif name == "/help":
        print(HELP)
    else:
        alike = difflib.get_close_matches(name, COMMANDS, n=1)
        print(f"{name} is no command; " + (f"did you mean {alike[0]}?" if alike else f"there are:\n{HELP}"))
    return True


def _save(conversation: Conversation, name: str) -> None:
    """Write the conversation to a file, and print the file's name or the error."""
    path = Path(name or f"chat-{time.strftime('%Y%m%d-%H%M%S')}.json")
    if path.suffix != ".json":
        print(f"[{path}: expected a name that ends in .json]")
        return
    try:
        write_text(path, json.dumps({"messages": conversation.messages}, ensure_ascii=False, indent=2) + "\n")
    except OSError as error:
        print(f"[{path}: {error.strerror or error}]")
    else:
        print(f"{path}: {len(conversation.messages)} messages")


def _print_answer(conversation: Conversation, pieces: Iterator[str]) -> None:
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" [stopped]")
    except ValueError as error:
        sys.stdout.write(f"[{error}]")
        print(flush=True)
        return
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
    print(flush=True)
    if conversation.is_full():
        room = conversation.generator.model.config.context_length
        print(f"[the context of {room:,} tokens is full; /reset clears the conversation]", flush=True)
    if sys.stdin.isatty():
        note(f"[{conversation.last_answer()}]")
