"""`bpe-llama finetune`: trains an adapter, or all weights, on text files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bpe_llama._corpus.files import find_files
from bpe_llama.model import training
from bpe_llama.model.adapters import lora
from bpe_llama.model.cli.loading import check_quantized, load_model, save_with_tokenizer
from bpe_llama.model.cli.options import EXIT_INTERRUPTED, QUANTIZED, describe
from bpe_llama.model.cli.training_options import training_flags
from bpe_llama.model.device import resolve_device
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.quantization import quantize
from bpe_llama.model.training.checkpoints.checkpoint import checkpoint_to_resume
from bpe_llama.model.training.finetuning.conversations import find_formats
from bpe_llama.model.training.finetuning.options import DataConfig, DataOptions
from bpe_llama.tokenizer import Tokenizer

EXAMPLE = "Example: bpe-llama finetune notes/ --model SmolLM2-135M-Instruct.Q4_1.gguf --epochs 2 --out tuned"
ADAPTED_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


@training_flags(
    without=("max_seconds", "compile", "packing", "document_mask"),
    defaults={
        "max_steps": None,
        "sequence_length": None,
        "batch_size": 4,
        "gradient_accumulation": 4,
        "learning_rate": None,
        "warmup_steps": 10,
        "weight_decay": 0.0,
        "eval_fraction": 0.05,
        "log_every": 1,
    },
    helps={
        "max_steps": "Optimizer steps, instead of --epochs.",
        "sequence_length": "Tokens per sequence, or of a conversation at most.  [default: 512 or the context]",
        "learning_rate": "Peak learning rate.  [default: 2e-4, with --full 2e-5]",
        "seed": "Random seed of the adapter and the data order.",
    },
)
def command(
    texts: Annotated[
        list[str],
        typer.Argument(help="Files, folders or globs: plain text, or .json, .jsonl, .parquet of a --format."),
    ],
    model: Annotated[Path, typer.Option("--model", "-m", help="Initial model: a folder or .gguf.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: metrics, checkpoint, adapter or model.")],
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", "-t", help="Default: --model's own.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of a LoRA adapter.")] = False,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter.  [default: 8]")] = None,
    alpha: Annotated[float | None, typer.Option(help="The adapter is scaled by alpha / rank.  [default: 16]")] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout on the adapter's input.  [default: 0]")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="A layer to adapt, such as q_proj, or all-linear; repeatable; default: all of attention and MLP."
        ),
    ] = None,
    dora: Annotated[bool, typer.Option("--dora", help="DoRA: also learn the magnitudes of the weights.")] = False,
    rslora: Annotated[bool, typer.Option("--rslora", help="rsLoRA: scale by alpha / sqrt(rank).")] = False,
    save_module: Annotated[
        list[str] | None, typer.Option(help="A module to train and save in full, such as lm_head; repeatable.")
    ] = None,
    quantized: Annotated[
        str | None, typer.Option("--quantize", help=f"QLoRA: quantize the frozen weights to {' or '.join(QUANTIZED)}.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Also save the model with the adapter merged.")] = False,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = 1.0,
    *,
    on_error: Annotated[
        str,
        typer.Option(
            metavar="raise|skip", help="At a row without text: raise an error, or skip it and report the count."
        ),
    ] = "raise",
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="auto|" + "|".join(training.FORMATS),
            help="Format of the rows; auto detects it by their fields.",
        ),
    ] = "auto",
    train_on: Annotated[
        str,
        typer.Option(metavar="assistant|last|all", help="Learn all answers, only the last, or every token."),
    ] = "assistant",
    parse_special: Annotated[
        bool,
        typer.Option("--parse-special", help="Encode special tokens spelled out in the text, as in rendered chats."),
    ] = False,
    show_example: Annotated[
        bool, typer.Option("--show-example", help="Print the first example with its learned tokens coloured.")
    ] = False,
    less_memory: Annotated[
        bool,
        typer.Option(
            "--checkpoint-activations", help="Recompute activations in the backward pass: less memory, slower."
        ),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the checkpoint in --out.")] = False,
    **settings: Any,
) -> int:
    """Fine-tune a model on your own text, with a LoRA adapter unless --full.

    Ctrl-C and SIGTERM save a checkpoint; --resume continues from it.
    """
    lora_only = {"--rank": rank, "--alpha": alpha, "--dropout": dropout, "--target": target, "--quantize": quantized}
    lora_only |= {"--dora": dora or None, "--rslora": rslora or None, "--save-module": save_module}
    lora_only["--merge"] = merge or None
    given = [name for name, value in lora_only.items() if value is not None]
    if full and given:
        raise ValueError(f"{given[0]} is for an adapter; give it or --full, not both")
    if not full and settings["weights_dtype"] != "float32":
        raise ValueError(f"--weights-dtype is {settings['weights_dtype']!r}; it is for --full, as adapters are float32")
    check_quantized(quantized)
    if quantized is not None and merge:
        raise ValueError("--merge needs weights that are not quantized; give it or --quantize, not both")
    # Errors in the data and the folder are raised before a large model is loaded.
    data: DataOptions = {"format": format, "train_on": train_on, "parse_special": parse_special, "on_error": on_error}
    find_formats(find_files(texts), DataConfig(**data))
    checkpoint_to_resume(out, resume)
    vocabulary = Tokenizer.from_file(tokenizer or model)
    if settings["max_steps"] is not None:
        epochs = None
        settings["warmup_steps"] = min(settings["warmup_steps"], settings["max_steps"])
    own_defaults: dict[str, Any] = {"max_steps": 1, "sequence_length": 512, "learning_rate": 2e-5 if full else 2e-4}
    config = training.TrainConfig(
        **settings | {name: value for name, value in own_defaults.items() if settings[name] is None}
    )
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and resolve_device(config.device).type == "cuda")
    loaded = load_model(model, config.weights_dtype if full else "bfloat16" if half else "float32", config.device)
    if settings["sequence_length"] is None:
        config = dataclasses.replace(config, sequence_length=min(512, loaded.config.max_position_embeddings))
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
            seed=config.seed,
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
        config,
        out,
        epochs=epochs,
        resume=resume,
        show_example=show_example,
        **data,
    )
    typer.echo(describe(result))
    if result.interrupted:
        typer.echo(f"stopped; the same command with --resume continues from {result.checkpoint}")
        return EXIT_INTERRUPTED
    model_flags = f"--model {out / 'model'}"
    if not full:
        lora.save(loaded, out / "adapter", base=str(model))
        model_flags = f"--model {model} --adapter {out / 'adapter'}"
    if merge:
        lora.merge(loaded)
        lora.remove(loaded)
    if merge or full:
        save_with_tokenizer(loaded, vocabulary, out / "model")
    typer.echo(f"try: bpe-llama generate 'Once upon a time' {model_flags}")
    return 0


def check_targets(model: LlamaForCausalLM, targets: Sequence[str]) -> None:
    """Raise a ValueError for a --target that names no layer, instead of training only the others."""
    layers = {path.rpartition(".")[2] for path, module in model.named_modules() if not any(module.children())}
    for name in targets:
        if name == "all-linear" or not any(f".{path}".endswith(f".{name}") for path, _ in model.named_modules()):
            raise ValueError(f"--target is {name!r}; expected all-linear alone, or some of {', '.join(sorted(layers))}")
