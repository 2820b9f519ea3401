"""The model's commands, which `bpe_llama.cli` forwards to.

They are `pretrain | finetune | generate | chat | convert | demo`. Errors are raised as ValueError and OSError;
`bpe_llama.cli` reports them.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.files import find_files
from bpe_llama._gguf.writer import tokenizer_metadata
from bpe_llama._progress import reporting
from bpe_llama.chat import TRAIN_ON
from bpe_llama.model import training
from bpe_llama.model.adapters import lora
from bpe_llama.model.checkpoints.gguf_write import save_gguf
from bpe_llama.model.cli import options as cli_options
from bpe_llama.model.cli.chat_repl import Conversation, talk
from bpe_llama.model.cli.demo import run_demo, save_with_tokenizer
from bpe_llama.model.cli.speed import describe_speed
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.device import resolve_device
from bpe_llama.model.generation.prompts import check_vocabulary
from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.quantization import quantize
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.training.checkpoint import checkpoint_to_resume
from bpe_llama.model.training.data.conversations import find_formats
from bpe_llama.tokenizer import Tokenizer

EXIT_INTERRUPTED = 130

app = typer.Typer(name="bpe-llama", no_args_is_help=True, add_completion=False, rich_markup_mode=None)

ADAPTED_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")

AdapterOption = Annotated[Path | None, typer.Option(help="A LoRA adapter's folder, by `finetune` or peft.")]
QuantizeOption = Annotated[
    str | None, typer.Option("--quantize", help="Hold the weights as int8 or int4: less memory, and read sooner.")
]
WeightsOption = Annotated[
    str,
    typer.Option(
        metavar="float32|bfloat16",
        help="Weights, gradients and moments in float32, or, stochastically rounded, in bfloat16: half the memory.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")]


@app.command(
    epilog="Example: bpe-llama pretrain tokens.npy --tokenizer tokenizer.json --hidden-size 256 --layers 6 --out run"
)
def pretrain(
    tokens: Annotated[Path, typer.Argument(help="A .npy file of ids, as `bpe-llama encode --out` writes.")],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", "-t", help="The vocabulary of these ids.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: metrics, curve, checkpoint, model.")],
    config: Annotated[Path | None, typer.Option(help="A config.json with the model's shape.")] = None,
    start_from: Annotated[Path | None, typer.Option(help="Weights to go on from: a folder or .gguf.")] = None,
    hidden_size: Annotated[int, typer.Option(help="Width D.")] = 256,
    layers: Annotated[int, typer.Option(help="Layers.")] = 6,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 8,
    kv_heads: Annotated[int | None, typer.Option(help="Key/value heads; by default as many as heads.")] = None,
    intermediate_size: Annotated[int | None, typer.Option(help="Width of the MLP; by default 8/3 D.")] = None,
    context: Annotated[int, typer.Option(help="Longest text the model is made for, in tokens.")] = 1024,
    tie: Annotated[bool, typer.Option(help="Share the embedding with the output matrix.")] = True,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1000,
    seconds: Annotated[float | None, typer.Option(help="Stop after this time as well.")] = None,
    sequence_length: Annotated[int, typer.Option(help="Tokens a window.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Windows a forward pass.")] = 16,
    accumulate: Annotated[int, typer.Option(help="Forward passes a step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    warmup: Annotated[int, typer.Option(help="Steps of warm-up.")] = 50,
    weight_decay: Annotated[float, typer.Option(help="AdamW's, on matrices.")] = 0.1,
    eval_file: Annotated[Path | None, typer.Option(help="Ids to evaluate on; by default the last 1 %.")] = None,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations; 0: at the end.")] = 0,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints; 0: at the end.")] = 0,
    log_every: Annotated[int, typer.Option(help="Steps between lines of metrics.jsonl.")] = 10,
    seed: Annotated[int, typer.Option(help="Of weights and the order of windows.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto (bfloat16 on CUDA), float32, bfloat16.")] = "auto",
    weights_dtype: WeightsOption = "float32",
    device: DeviceOption = "auto",
    compile_model: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
) -> int:
    """Train a LLaMA on a file of ids. Ctrl-C and SIGTERM save a checkpoint; --resume goes on from it."""
    training.open_tokens(tokens)  # complain of a missing file before a large model is built
    vocabulary = Tokenizer.from_file(tokenizer)
    settings = training.TrainConfig(
        max_steps=steps,
        max_seconds=seconds,
        sequence_length=sequence_length,
        batch_size=batch_size,
        gradient_accumulation=accumulate,
        learning_rate=learning_rate,
        warmup_steps=min(warmup, steps),
        weight_decay=weight_decay,
        eval_every=eval_every,
        save_every=save_every,
        log_every=log_every,
        seed=seed,
        dtype=dtype,
        weights_dtype=weights_dtype,
        device=device,
        compile=compile_model,
    )
    if start_from is not None:
        model = load_model(start_from, weights_dtype, device)
    else:
        shape = (
            LlamaConfig.from_json(config)
            if config is not None
            else LlamaConfig(
                vocab_size=vocabulary.vocab_size,
                hidden_size=hidden_size,
                intermediate_size=intermediate_size or -(-hidden_size * 8 // 3 // 32) * 32,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads,
                max_position_embeddings=context,
                tie_word_embeddings=tie,
                bos_token_id=vocabulary.bos_id,
                eos_token_id=vocabulary.eos_id,
            )
        )
        model = training.start_as_identity(LlamaForCausalLM(shape, seed=seed))
    check_vocabulary(vocabulary, model.config.vocab_size)
    typer.echo(f"{sum(weight.numel() for weight in model.parameters()):,} parameters", err=True)
    result = training.train(model, tokens, settings, out, eval_file=eval_file, resume=resume)
    typer.echo(describe(result))
    if result.interrupted:
        typer.echo(f"stopped; the same command with --resume goes on from {result.checkpoint}")
        return EXIT_INTERRUPTED
    save_with_tokenizer(model, vocabulary, out / "model")
    typer.echo(f"try: bpe-llama generate 'Once upon a time' --model {out / 'model'}")
    return 0


@app.command(epilog="Example: bpe-llama finetune notes/ --model SmolLM2-135M-Instruct.Q4_1.gguf --epochs 2 --out tuned")
def finetune(
    texts: Annotated[
        list[str],
        typer.Argument(help="Files, folders or globs: plain text, or .json, .jsonl, .parquet of a --format."),
    ],
    model: Annotated[Path, typer.Option("--model", "-m", help="What to begin with: a folder or .gguf.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: metrics, checkpoint, adapter or model.")],
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", "-t", help="By default --model's own.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of a LoRA adapter.")] = False,
    rank: Annotated[int | None, typer.Option(help="Of the adapter.  [default: 8]")] = None,
    alpha: Annotated[float | None, typer.Option(help="The adapter is scaled by alpha / rank.  [default: 16]")] = None,
    dropout: Annotated[float | None, typer.Option(help="Of the adapter's inputs.  [default: 0]")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="A layer to adapt, such as q_proj, or all-linear; by default every one of the blocks."),
    ] = None,
    dora: Annotated[bool, typer.Option("--dora", help="Learn the weights' magnitudes, too (DoRA).")] = False,
    rslora: Annotated[bool, typer.Option("--rslora", help="Scale by alpha / sqrt(rank) (rsLoRA).")] = False,
    save_module: Annotated[
        list[str] | None, typer.Option(help="A module to train and store whole, such as lm_head or embed_tokens.")
    ] = None,
    quantized: Annotated[
        str | None, typer.Option("--quantize", help="Hold the frozen weights as int8 or int4 (QLoRA): less memory.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Also save the model with the adapter merged in.")] = False,
    epochs: Annotated[float, typer.Option(help="Passes over the text.")] = 1.0,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of --epochs.")] = None,
    sequence_length: Annotated[
        int | None, typer.Option(help="Tokens a window, or of a conversation at most.  [default: 512 or the context]")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Windows a forward pass.")] = 4,
    accumulate: Annotated[int, typer.Option(help="Forward passes a step.")] = 4,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate.  [default: 2e-4, with --full 2e-5]")
    ] = None,
    warmup: Annotated[int, typer.Option(help="Steps of warm-up.")] = 10,
    weight_decay: Annotated[float, typer.Option(help="AdamW's, on matrices.")] = 0.0,
    eval_fraction: Annotated[float, typer.Option(help="Share of the text, its end, held out to evaluate on.")] = 0.05,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations; 0: at the end.")] = 0,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints; 0: at the end.")] = 0,
    log_every: Annotated[int, typer.Option(help="Steps between lines of metrics.jsonl.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the adapter and the order of the text.")] = 0,
    on_error: Annotated[
        str, typer.Option(metavar="raise|skip", help="At a row without text: stop, or skip it and say how many.")
    ] = "raise",
    rows_format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="auto|" + "|".join(training.FORMATS),
            help="Format of the rows; auto detects it by their fields.",
        ),
    ] = "auto",
    train_on: Annotated[
        str,
        typer.Option(metavar="assistant|last|all", help="Learn all answers, the last one alone, or every token."),
    ] = "assistant",
    parse_special: Annotated[
        bool,
        typer.Option("--parse-special", help="Encode special tokens that a text spells out, as rendered chats do."),
    ] = False,
    show_example: Annotated[
        bool, typer.Option("--show-example", help="Print the first example with the tokens to learn coloured.")
    ] = False,
    less_memory: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Compute activations twice rather than keep them.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="auto (bfloat16 on CUDA), float32, bfloat16.")] = "auto",
    weights_dtype: WeightsOption = "float32",
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
) -> int:
    """Train a model further on your own text, through a LoRA adapter unless --full.

    Ctrl-C and SIGTERM save a checkpoint.
    """
    lora_only = {"--rank": rank, "--alpha": alpha, "--dropout": dropout, "--target": target, "--quantize": quantized}
    lora_only |= {"--dora": dora or None, "--rslora": rslora or None, "--save-module": save_module}
    lora_only["--merge"] = merge or None
    given = [name for name, value in lora_only.items() if value is not None]
    if full and given:
        raise ValueError(f"{given[0]} is for an adapter; give it or --full, not both")
    if not full and weights_dtype != "float32":
        raise ValueError(f"--weights-dtype is {weights_dtype!r}; it is for --full, and an adapter is held in float32")
    check_quantized(quantized)
    if quantized is not None and merge:
        raise ValueError("--merge needs whole weights; give it or --quantize, not both")
    # Complain of these before a large model is loaded.
    BadRows(on_error)
    find_formats(find_files(texts), rows_format, on_error)
    if train_on not in TRAIN_ON:
        raise ValueError(f"train_on is {train_on!r}; expected {', '.join(TRAIN_ON)}")
    checkpoint_to_resume(out, resume)
    vocabulary = Tokenizer.from_file(tokenizer or model)
    settings = training.TrainConfig(
        max_steps=1 if steps is None else steps,
        sequence_length=512 if sequence_length is None else sequence_length,
        batch_size=batch_size,
        gradient_accumulation=accumulate,
        learning_rate=(2e-5 if full else 2e-4) if learning_rate is None else learning_rate,
        warmup_steps=warmup if steps is None else min(warmup, steps),
        weight_decay=weight_decay,
        eval_fraction=eval_fraction,
        eval_every=eval_every,
        save_every=save_every,
        log_every=log_every,
        seed=seed,
        dtype=dtype,
        weights_dtype=weights_dtype,
        device=device,
    )
    half = dtype == "bfloat16" or (dtype == "auto" and resolve_device(device).type == "cuda")
    loaded = load_model(model, weights_dtype if full else "bfloat16" if half else "float32", device)
    if sequence_length is None:
        settings = dataclasses.replace(settings, sequence_length=min(512, loaded.config.max_position_embeddings))
    if not full:
        if quantized is not None:
            quantize.quantize(loaded, quantized)
        if target and target != ["all-linear"]:
            check_targets(loaded, target)
        lora.add(
            loaded,
            rank=8 if rank is None else rank,
            alpha=16.0 if alpha is None else alpha,
            target_modules="all-linear" if target == ["all-linear"] else target or ADAPTED_LAYERS,
            dropout=dropout or 0.0,
            seed=seed,
            use_dora=dora,
            use_rslora=rslora,
            modules_to_save=save_module,
        )
        if merge and (shared := lora.shared_layers(loaded)):
            raise ValueError(f"--merge would change the embedding, to which {shared[0]} is tied; leave it out")
    loaded.gradient_checkpointing_enable(less_memory)
    result = training.finetune(
        loaded,
        vocabulary,
        texts,
        settings,
        out,
        epochs=epochs if steps is None else None,
        resume=resume,
        format=rows_format,
        train_on=train_on,
        parse_special=parse_special,
        show_example=show_example,
        on_error=on_error,
    )
    typer.echo(describe(result))
    if result.interrupted:
        typer.echo(f"stopped; the same command with --resume goes on from {result.checkpoint}")
        return EXIT_INTERRUPTED
    tried = f"--model {out / 'model'}"
    if not full:
        lora.save(loaded, out / "adapter", base=str(model))
        tried = f"--model {model} --adapter {out / 'adapter'}"
    if merge:
        lora.merge(loaded)
        lora.remove(loaded)
    if merge or full:
        save_with_tokenizer(loaded, vocabulary, out / "model")
    typer.echo(f"try: bpe-llama generate 'Once upon a time' {tried}")
    return 0


@app.command(epilog="Example: bpe-llama generate 'def main():' --model demo-out/model --max-new-tokens 200")
def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text to continue; without it, standard input.")] = None,
    model: Annotated[Path, typer.Option("--model", "-m", help="A folder with config.json, or a .gguf.")] = Path("."),
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", "-t", help="By default --model's own.")] = None,
    adapter: AdapterOption = None,
    max_new_tokens: Annotated[int | None, cli_options.max_new_tokens("At most this many.", 200)] = None,
    min_new_tokens: cli_options.MinNewTokens = None,
    temperature: Annotated[float | None, cli_options.temperature(0.8)] = None,
    top_k: cli_options.TopK = None,
    top_p: Annotated[float | None, cli_options.top_p(0.95)] = None,
    min_p: cli_options.MinP = None,
    typical_p: cli_options.TypicalP = None,
    repetition_penalty: cli_options.RepetitionPenalty = None,
    presence_penalty: cli_options.PresencePenalty = None,
    frequency_penalty: cli_options.FrequencyPenalty = None,
    penalty_scope: cli_options.PenaltyScope = None,
    no_repeat_ngram_size: cli_options.NoRepeatNgramSize = None,
    bad_words: cli_options.BadWords = None,
    dry_multiplier: cli_options.DryMultiplier = None,
    dry_base: cli_options.DryBase = None,
    dry_allowed_length: cli_options.DryAllowedLength = None,
    dry_penalty_last_n: cli_options.DryPenaltyLastN = None,
    dry_sequence_breakers: cli_options.DryBreaker = None,
    top_n_sigma: cli_options.TopNSigma = None,
    xtc_probability: cli_options.XtcProbability = None,
    xtc_threshold: cli_options.XtcThreshold = None,
    mirostat: cli_options.Mirostat = None,
    mirostat_tau: cli_options.MirostatTau = None,
    mirostat_eta: cli_options.MirostatEta = None,
    filter_order: cli_options.FilterOrder = None,
    logit_bias: Annotated[
        list[str] | None, typer.Option(help="ID=NUMBER, added to an id's score; may be given many times.")
    ] = None,
    ban: Annotated[list[int] | None, typer.Option(help="An id never to draw; may be given many times.")] = None,
    preset: Annotated[
        str, typer.Option(help="Filters as exact, meta, transformers or llama_cpp apply them.")
    ] = "exact",
    num_beams: Annotated[int, typer.Option(help="Above 1 searches for the likeliest in place of drawing.")] = 1,
    answers: Annotated[int | None, typer.Option("--n", help="How many continuations, each with its own seed.")] = None,
    seed: cli_options.Seed = "0",
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given many times.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16.")] = "auto",
    device: DeviceOption = "auto",
    quantized: QuantizeOption = None,
    speed: Annotated[bool, typer.Option("--speed", help="Say how fast, against what memory allows.")] = False,
    verbose: cli_options.Verbose = False,
) -> None:
    """Print a prompt and its continuation, piece by piece as it is found."""
    given = {name: value for name, value in locals().items() if name in GenerationOptions.__dataclass_fields__}
    given |= {"seed": cli_options.read_seed(seed), "logit_bias": read_biases(logit_bias or ()), "banned_ids": ban}
    given["preset"] = None if preset == "exact" else preset
    text = prompt if prompt is not None else read_prompt()
    generator = load_generator(model, tokenizer, dtype, device, adapter, quantized)
    options = cli_options.with_defaults(generator, given, {"max_new_tokens": 200})
    generator.options(**options)  # complain before anything is printed
    if num_beams != 1:
        options = {name: value for name, value in options.items() if (name, value) != ("seed", 0)}
    if verbose:
        for line in cli_options.describe_options(generator, generator.encode(text), options):
            typer.echo(line, err=True)
    if answers is not None or num_beams != 1:
        found = generator.generate(
            text, n=1 if answers is None else answers, num_beams=num_beams, stop=stop or None, **options
        )
        for number, (answer, sequence) in enumerate(zip(found, generator.sequences, strict=True), start=1):
            if answers is not None:
                seeded = "" if num_beams != 1 else f", seed {sequence.options.seed}"
                sys.stdout.write(f"[{number} of {answers}{seeded}]\n")
            sys.stdout.write(f"{text}{answer}\n")
    else:
        pieces = generator.stream(text, stop=stop or None, **options)
        sys.stdout.write(text + next(pieces, ""))  # what is refused is refused before anything is printed
        sys.stdout.flush()
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
    sys.stdout.flush()
    if seed == "random":
        typer.echo(f"seed: {options['seed']}", err=True)
    if generator.last is not None and verbose:
        typer.echo(f"finish: {generator.last.finish_reason} after {len(generator.last.new_ids)} ids", err=True)
    if speed and generator.last is not None:
        typer.echo(describe_speed(generator.model, generator.last), err=True)


@app.command(epilog="Example: bpe-llama chat --model SmolLM2-135M-Instruct.Q4_1.gguf --system 'Answer briefly.'")
def chat(
    model: Annotated[Path, typer.Option("--model", "-m", help="A folder with config.json, or a .gguf.")],
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", "-t", help="By default --model's own.")] = None,
    adapter: AdapterOption = None,
    system: Annotated[str | None, typer.Option(help="What the assistant is told first.")] = None,
    max_new_tokens: Annotated[int | None, cli_options.max_new_tokens("Longest answer.", 512)] = None,
    temperature: Annotated[float | None, cli_options.temperature(0.7)] = None,
    top_k: cli_options.TopK = None,
    top_p: Annotated[float | None, cli_options.top_p(0.9)] = None,
    min_p: cli_options.MinP = None,
    repetition_penalty: cli_options.RepetitionPenalty = None,
    presence_penalty: cli_options.PresencePenalty = None,
    frequency_penalty: cli_options.FrequencyPenalty = None,
    penalty_scope: cli_options.PenaltyScope = None,
    no_repeat_ngram_size: cli_options.NoRepeatNgramSize = None,
    bad_words: cli_options.BadWords = None,
    dry_multiplier: cli_options.DryMultiplier = None,
    xtc_probability: cli_options.XtcProbability = None,
    xtc_threshold: cli_options.XtcThreshold = None,
    top_n_sigma: cli_options.TopNSigma = None,
    mirostat: cli_options.Mirostat = None,
    seed: cli_options.Seed = "0",
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16.")] = "auto",
    device: DeviceOption = "auto",
    quantized: QuantizeOption = None,
    verbose: cli_options.Verbose = False,
) -> None:
    """Talk to an instruction-tuned model; /help lists commands, Ctrl-C stops an answer, Ctrl-D ends."""
    given = {name: value for name, value in locals().items() if name in GenerationOptions.__dataclass_fields__}
    given["seed"] = cli_options.read_seed(seed)
    if seed == "random":
        typer.echo(f"seed: {given['seed']}", err=True)
    generator = load_generator(model, tokenizer, dtype, device, adapter, quantized)
    defaults = {"max_new_tokens": 512, "temperature": 0.7, "top_p": 0.9}
    options = cli_options.with_defaults(generator, given, defaults)
    generator.options(**options)  # complain before the first question
    conversation = Conversation(generator, system, options)
    if verbose:
        opening = generator.tokenizer.apply_chat_template([*conversation.messages, {"role": "user", "content": ""}])
        for line in cli_options.describe_options(generator, opening, conversation.options):
            typer.echo(line, err=True)
    talk(conversation)


@app.command(epilog="Example: bpe-llama convert run/model model.gguf --dtype q8_0")
def convert(
    source: Annotated[Path, typer.Argument(help="A folder with config.json, or a .gguf.")],
    out: Annotated[Path, typer.Argument(help="A name ending in .gguf, or a folder for Hugging Face's format.")],
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16; for a .gguf also q8_0, q4_0.")] = "auto",
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", "-t", help="By default the source's own.")] = None,
) -> None:
    """Rewrite weights and tokenizer in another format or number format."""
    to_gguf = out.suffix == ".gguf"
    load_as = "auto" if to_gguf else dtype
    vocabulary = Tokenizer.from_file(tokenizer or source)
    loaded = load_model(source, load_as, "cpu")
    if to_gguf:
        save_gguf(loaded, out, dtype=dtype, tokenizer=tokenizer_metadata(vocabulary, vocabulary.chat_template))
    else:
        save_with_tokenizer(loaded, vocabulary, out)
    typer.echo(f"{out}: {sum(weight.numel() for weight in loaded.parameters()):,} parameters")


@app.command(epilog="Example: bpe-llama demo --seconds 60 --out demo-out")
def demo(
    seconds: Annotated[float, typer.Option(help="Time to train the model for.")] = 120.0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything the demo makes.")] = Path("demo-out"),
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(help="Of weights, batches and the sample.")] = 0,
) -> int:
    """Train a tokenizer and a small LLaMA on this machine's own Python library, then write some Python with it."""
    return EXIT_INTERRUPTED if run_demo(out, seconds=seconds, device=device, seed=seed).interrupted else 0


def load_model(path: Path, dtype: str, device: str) -> LlamaForCausalLM:
    """Return the model at `path`; a bar on a terminal shows how far it is read."""
    with reporting(None) as report:
        progress = None if report is None else partial(report, "load")
        return LlamaForCausalLM.from_pretrained(path, dtype=dtype, device=device, progress=progress)


def check_quantized(kind: str | None) -> None:
    """Raise a ValueError unless --quantize is int8, int4 or left out."""
    if kind not in (None, "int8", "int4"):
        raise ValueError(f"--quantize is {kind!r}; expected int8 or int4")


def check_targets(model: LlamaForCausalLM, targets: Sequence[str]) -> None:
    """Raise a ValueError for a --target that names no layer, rather than train the others alone."""
    layers = {path.rpartition(".")[2] for path, module in model.named_modules() if not any(module.children())}
    for name in targets:
        if name == "all-linear" or not any(f".{path}".endswith(f".{name}") for path, _ in model.named_modules()):
            raise ValueError(f"--target is {name!r}; expected all-linear alone, or some of {', '.join(sorted(layers))}")


def load_generator(
    model: Path,
    tokenizer: Path | None,
    dtype: str,
    device: str,
    adapter: Path | None = None,
    quantized: str | None = None,
) -> TextGenerator:
    """Return a generator over the weights at `model` and the tokenizer that lies with them, unless told another.

    An adapter is merged into the weights, so that it costs no time, unless they cannot hold it (a tied head's would
    change the embedding). It stays beside weights that are held as int8 or int4, as `finetune --quantize` trained it.
    """
    check_quantized(quantized)
    vocabulary = Tokenizer.from_file(tokenizer or model)
    loaded = load_model(model, dtype, device)
    if quantized is not None:
        quantize.quantize(loaded, quantized)
    if adapter is not None:
        lora.load(loaded, adapter)
        reason = lora.why_not_merge(loaded)
        if reason is None:
            lora.merge(loaded)
            lora.remove(loaded)
        elif quantized is None:
            typer.echo(f"the adapter stays beside the weights, which is slower: {reason}", err=True)
    return TextGenerator(loaded, vocabulary)


def read_prompt() -> str:
    """Return standard input as text."""
    if sys.stdin.isatty():
        raise ValueError("no prompt: give it as an argument or on standard input")
    return sys.stdin.buffer.read().decode("utf-8")


def read_biases(texts: Sequence[str]) -> dict[int, float]:
    """Return ids and numbers from texts such as "17=-2.5".

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


def describe(result: training.TrainResult) -> str:
    """Return one line on how a run went."""
    held_out = "" if result.eval_loss is None else f", {result.eval_loss:.3f} on held-out text"
    skipped = f", {result.skipped:,} steps skipped, not being finite" if result.skipped else ""
    return (
        f"step {result.step:,}: {result.tokens:,} tokens in {result.seconds:.0f} s, "
        f"loss {result.loss:.3f} nats a token{held_out}{skipped}"
    )
