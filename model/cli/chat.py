"""`bpe-llama chat`: a conversation with an instruction-tuned model, and its read-eval-print loop."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from bpe_llama.chat.renderer import compile_template
from bpe_llama.chat.templates import choose_template
from bpe_llama.model.cli.loading import load_generator
from bpe_llama.model.cli.options import sampling
from bpe_llama.model.cli.options.common import AdapterOption, DeviceOption, QuantizeOption
from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.tokenizer import Tokenizer

EXAMPLE = "Example: bpe-llama chat --model SmolLM2-135M-Instruct.Q4_1.gguf --system 'Answer briefly.'"

HELP = """/system TEXT  set the system prompt and clear the conversation
/reset        clear the conversation
/retry        answer the last message again, with another seed
/help         show this
/quit         end (also Ctrl-D)"""


def command(
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="A folder, a .gguf, or org/name on the Hugging Face Hub."),
    ],
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", "-t", help="Default: --model's own.")] = None,
    adapter: AdapterOption = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_new_tokens: Annotated[int | None, sampling.max_new_tokens("Maximum number of tokens per answer.", 512)] = None,
    temperature: Annotated[float | None, sampling.temperature(0.7)] = None,
    top_k: sampling.TopK = None,
    top_p: Annotated[float | None, sampling.top_p(0.9)] = None,
    min_p: sampling.MinP = None,
    repetition_penalty: sampling.RepetitionPenalty = None,
    presence_penalty: sampling.PresencePenalty = None,
    frequency_penalty: sampling.FrequencyPenalty = None,
    penalty_scope: sampling.PenaltyScope = None,
    no_repeat_ngram_size: sampling.NoRepeatNgramSize = None,
    bad_words: sampling.BadWords = None,
    dry_multiplier: sampling.DryMultiplier = None,
    xtc_probability: sampling.XtcProbability = None,
    xtc_threshold: sampling.XtcThreshold = None,
    top_n_sigma: sampling.TopNSigma = None,
    mirostat: sampling.Mirostat = None,
    json_schema: sampling.JsonSchema = None,
    regex: sampling.Regex = None,
    choice: sampling.Choice = None,
    grammar: sampling.GrammarFile = None,
    seed: sampling.Seed = "0",
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16.")] = "auto",
    device: DeviceOption = "auto",
    quantized: QuantizeOption = None,
    verbose: sampling.Verbose = False,
) -> None:
    """Chat with an instruction-tuned model; /help lists commands, Ctrl-C stops an answer, Ctrl-D ends."""
    given = {name: value for name, value in locals().items() if name in GenerationOptions.__dataclass_fields__}
    given["seed"] = sampling.read_seed(seed)
    given |= sampling.structured(json_schema, regex, choice, grammar)
    sampling.check_values(given)
    if seed == "random":
        typer.echo(f"seed: {given['seed']}", err=True)
    generator = load_generator(model, tokenizer, dtype, device, adapter, quantized, check_tokenizer=check_template)
    defaults = {"max_new_tokens": 512, "temperature": 0.7, "top_p": 0.9}
    options = sampling.with_defaults(generator, given, defaults)
    generator.options(**options)  # raises before the first question
    conversation = Conversation(generator, system, options)
    if verbose:
        opening = generator.tokenizer.apply_chat_template([*conversation.messages, {"role": "user", "content": ""}])
        for line in sampling.describe_options(generator, opening, conversation.options):
            typer.echo(line, err=True)
    repl(conversation)


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

        If the caller stops early, the pieces so far are the answer in the conversation.

        Raises:
            ValueError: If the conversation no longer fits the model's context; the messages are then unchanged.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = self.generator.tokenizer.apply_chat_template(messages)
        parts: list[str] = []
        try:
            for piece in self.generator.stream(ids, **{"reuse": True} | self.options):
                parts.append(piece)
                yield piece
        finally:
            if parts:
                self.messages = [*messages, {"role": "assistant", "content": "".join(parts)}]

    def retry(self) -> Iterator[str]:
        """Yield another answer to the last message.

        Raises:
            ValueError: If there is no answer yet.
        """
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            raise ValueError("there is no answer yet")
        last = self.messages[-2]["content"]
        self.messages = self.messages[:-2]
        seed = self.options.get("seed", 0)
        self.options["seed"] = None if seed is None else int(seed) + 1
        yield from self.answer(last)


def repl(conversation: Conversation) -> None:
    """Read messages from standard input and print the answers until the input ends; Ctrl-C stops only an answer."""
    interactive = sys.stdin.isatty()
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print()
            continue
        if not line:
            continue
        if line.startswith("/"):
            if not _command(conversation, line):
                return
        else:
            _print_answer(conversation.answer(line))


def _command(conversation: Conversation, line: str) -> bool:
    """Run a /command; return whether the conversation continues."""
    name, _, rest = line.partition(" ")
    if name in ("/quit", "/exit"):
        return False
    if name == "/reset":
        conversation.reset()
    elif name == "/system":
        conversation.system = rest or None
        conversation.reset()
    elif name == "/retry":
        _print_answer(conversation.retry())
    else:
        print(HELP if name == "/help" else f"{name} is no command\n{HELP}")
    return True


def _print_answer(pieces: Iterator[str]) -> None:
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" [stopped]")
    except ValueError as error:
        sys.stdout.write(f"[{error}]")
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
    print(flush=True)
