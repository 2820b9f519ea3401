"""`bpe-llama finetune`: trains an adapter, or all weights, on text files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bpe_llama._corpus.files import find_files
from bpe_llama._progress import note
from bpe_llama.model import training
from bpe_llama.model.adapters import lora
from bpe_llama.model.checkpoints.huggingface import write_config
from bpe_llama.model.classification import LlamaForSequenceClassification
from bpe_llama.model.cli.classification import is_classifier, load_classifier, report_score
from bpe_llama.model.cli.loading import (
    check_quantized,
    checkpoint_path,
    end_turns,
    group_size_of,
    load_model,
    resize_embeddings,
    save_with_tokenizer,
    vocabulary_of,
    with_template,
)
from bpe_llama.model.cli.options.common import (
    EXIT_INTERRUPTED,
    QUANTIZED,
    ChatTemplateOption,
    GroupSizeOption,
    ResizeOption,
)
from bpe_llama.model.cli.options.run import RunFlags, run_keywords, say_if_nothing_to_resume, say_result
from bpe_llama.model.cli.options.training import training_flags
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.device import resolve_device
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import Pretrained
from bpe_llama.model.quantization import quantize
from bpe_llama.model.training.checkpoints.checkpoint import checkpoint_to_resume
from bpe_llama.model.training.finetuning.classification import LabelledTexts, finetune_classifier, read_labelled
from bpe_llama.model.training.finetuning.conversations import find_formats
from bpe_llama.model.training.finetuning.options import FINETUNE_DEFAULTS, DataConfig
from bpe_llama.model.training.parallel import start
from bpe_llama.model.training.report.loggers import logger_named

EXAMPLE = "Example: bpe-llama finetune notes/ --model SmolLM2-135M-Instruct.Q4_1.gguf --epochs 2 --out tuned"
TASKS = ("text", "classification")
_OF_TEXT = ("format", "train_on", "parse_special")
ADAPTED_LAYERS = (
    *("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"),
    *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
    *("gate_proj", "up_proj", "gate_up_proj", "down_proj", "w1", "w2", "w3"),
)


@training_flags(
    without=("max_seconds", "compile", "packing", "document_mask"),
    defaults=FINETUNE_DEFAULTS | {"max_steps": None, "sequence_length": None, "learning_rate": None},
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
    model: Annotated[str, typer.Option("--model", "-m", help="Initial model: a folder, .gguf or org/name.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: metrics, checkpoint, adapter or model.")],
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", "-t", help="Default: --model's own.")] = None,
    resize: ResizeOption = False,
    chat_template: ChatTemplateOption = None,
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
    group_size: GroupSizeOption = None,
    merge: Annotated[bool, typer.Option("--merge", help="Also save the model with the adapter merged.")] = False,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = 1.0,
    task: Annotated[
        str,
        typer.Option(metavar="|".join(TASKS), help="Learn to continue text, or to label the texts of rows."),
    ] = "text",
    label_field: Annotated[
        str | None, typer.Option(help="With --task classification: the field of the label.  [default: label]")
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(help="With --task classification: the field of the text.  [default: text]")
    ] = None,
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
        typer.Option("--checkpoint-activations", help="As --checkpoint-layers 1: less memory, slower."),
    ] = False,
    run: RunFlags,
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
    if resize and not full:
        raise ValueError(
            "--resize-embeddings is for --full, as an adapter does not hold the new rows; for an adapter, write the "
            "resized model first: bpe-llama convert MODEL FOLDER --tokenizer T --resize-embeddings"
        )
    if not full and settings["weights_dtype"] != "float32":
        raise ValueError(f"--weights-dtype is {settings['weights_dtype']!r}; it is for --full, as adapters are float32")
    check_quantized(quantized, group_size)
    if quantized is not None and merge:
        raise ValueError("--merge needs weights that are not quantized; give it or --quantize, not both")
    # Errors in the data and the folder are raised before a large model is loaded.
    data = DataConfig(format, train_on, parse_special, on_error)
    files = find_files(texts)
    check_task(task, label_field, text_field, data, show_example)
    of_text = {
        "--sample-prompt": run.sample_prompt or None,
        "--teacher": run.teacher,
        "--teacher-weight": run.teacher_weight,
        "--teacher-temperature": run.teacher_temperature,
        "--chat-template": chat_template,
        "--z-loss": settings["z_loss"] or None,
        "--label-smoothing": settings["label_smoothing"] or None,
    }
    for name, value in of_text.items():
        if task == "classification" and value is not None:
            raise ValueError(f"{name} is {value!r}; it is for --task text")
    checkpoint_to_resume(out, run.resume)
    vocabulary = with_template(vocabulary_of(tokenizer, model), chat_template, add_tokens=full and resize)
    labelled: LabelledTexts | None = None
    path = checkpoint_path(model)

    def read_texts(longest: int) -> LabelledTexts:
        known = LlamaConfig.from_json(path).label_names if is_classifier(path) else None
        fields = {"text_field": text_field or "text", "label_field": label_field or "label"}
        return read_labelled(files, vocabulary, longest, labels=known, on_error=on_error, **fields)

    if task == "classification":
        labelled = read_texts(settings["sequence_length"] or 512)
    else:
        find_formats(files, data)
    if settings["max_steps"] is not None:
        epochs = None
        settings["warmup_steps"] = min(settings["warmup_steps"], settings["max_steps"])
    settings["checkpoint_activations"] = max(settings["checkpoint_activations"], int(less_memory))
    chosen: dict[str, Any] = {"max_steps": 1}
    chosen |= {name: value for name, value in settings.items() if value is not None}
    config = training.finetune_config(full=full, **chosen)
    ranks = start(config.device, config.parallel)
    if ranks.is_main:
        say_if_nothing_to_resume(out, run.resume)
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and resolve_device(config.device).type == "cuda")
    loaded: LlamaForCausalLM | LlamaForSequenceClassification
    weights_dtype = config.weights_dtype if full else "bfloat16" if half else "float32"
    device = "cpu" if ranks.sharded else config.device
    if labelled is None:
        loaded = load_model(path, weights_dtype, device)
    else:
        loaded = load_classifier(path, labelled.labels, vocabulary, weights_dtype, device, seed=config.seed)
    if resize:
        resize_embeddings(loaded, model, vocabulary)
    if chat_template is not None:
        end_turns(loaded, vocabulary)
    if settings["sequence_length"] is None:
        config = dataclasses.replace(config, sequence_length=min(512, loaded.config.context_length))
    if not full:
        if quantized is not None:
            group = group_size_of(checkpoint_path(model), quantized, group_size)
            quantize.quantize(loaded.model if labelled else loaded, quantized, group)
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
    if labelled is not None:
        assert isinstance(loaded, LlamaForSequenceClassification)
        if config.sequence_length < (settings["sequence_length"] or 512):
            labelled = read_texts(config.sequence_length)
        callbacks = [logger_named(name) for name in run.logger or ()]
        result, score = finetune_classifier(
            loaded, labelled, config, out, epochs=epochs, resume=run.resume, callbacks=callbacks
        )
    else:
        assert isinstance(loaded, LlamaForCausalLM)
        keywords = run_keywords(loaded, vocabulary, config, run)
        result = training.finetune(
            loaded,
            vocabulary,
            files,
            config,
            out,
            epochs=epochs,
            show_example=show_example,
            **keywords,
            **dataclasses.asdict(data),
        )
        score = None
    unit = "token" if labelled is None else "text"
    if result.interrupted:
        say_result(result, run.as_json, unit)
        return EXIT_INTERRUPTED
    model_flags = f"--model {out / 'model'}"
    if not full:
        if ranks.is_main:
            lora.save(loaded, out / "adapter", base=str(model))  # names the base, too
        model_flags = f"--model {model} --adapter {out / 'adapter'}"
        if labelled is not None and ranks.is_main:
            write_config(loaded, out / "adapter")  # it names the labels
    if merge:
        lora.merge(loaded)
        lora.remove(loaded)
    if ranks.is_main and (merge or (full and labelled is not None)):
        save_with_tokenizer(loaded, vocabulary, out / "model")
    found: dict[str, Any] = {
        "adapter": None if full else str(out / "adapter"),
        "model": str(out / "model") if full or merge else None,
    }
    if labelled is not None and score is not None:
        found["evaluation"] = score.to_dict(labelled.labels)
    say_result(result, run.as_json, unit, **found)
    if labelled is not None:
        report_score(score, labelled.labels, out, on_stdout=not run.as_json)
        fields = "".join(
            f" {flag} {field}"
            for flag, field in (("--text-field", text_field), ("--label-field", label_field))
            if field is not None
        )
        note(
            f"try: bpe-llama eval {model_flags.removeprefix('--model ')} --text {texts[0]}{fields}",
            on_stdout=not run.as_json,
        )
    else:
        what = "generate 'Once upon a time'" if vocabulary.chat_template is None else "chat"
        note(f"try: bpe-llama {what} {model_flags}", on_stdout=not run.as_json)
    return 0


def check_task(
    task: str, label_field: str | None, text_field: str | None, data: DataConfig, show_example: bool
) -> None:
    """Raise a ValueError for a --task that is unknown, or for flags of another task."""
    if task not in TASKS:
        raise ValueError(f"--task is {task!r}; expected {' or '.join(TASKS)}")
    if task == "text":
        flags = {"--label-field": label_field is not None, "--text-field": text_field is not None}
    else:
        flags = {f"--{name.replace('_', '-')}": getattr(data, name) != getattr(DataConfig, name) for name in _OF_TEXT}
        flags["--show-example"] = show_example
    given = [flag for flag, is_given in flags.items() if is_given]
    if given:
        other = next(name for name in TASKS if name != task)
        raise ValueError(f"{given[0]} is for --task {other}, and the task is {task}")


def check_targets(model: Pretrained, targets: Sequence[str]) -> None:
    """Raise a ValueError for a --target that names no layer, instead of training only the others."""
    layers = {path.rpartition(".")[2] for path, module in model.named_modules() if not any(module.children())}
    for name in targets:
        if name == "all-linear" or not any(f".{path}".endswith(f".{name}") for path, _ in model.named_modules()):
            raise ValueError(f"--target is {name!r}; expected all-linear alone, or some of {', '.join(sorted(layers))}")
