"""`bpe-llama eval`: perplexity and bits per byte on text, tasks of lm-evaluation-harness, accuracy of classifiers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.documents import read_documents
from bpe_llama._corpus.files import find_files
from bpe_llama._progress import note, reporting
from bpe_llama.model.classification import LlamaForSequenceClassification
from bpe_llama.model.cli.classification import is_classifier, is_classifiers_adapter, load_adapted_classifier
from bpe_llama.model.cli.loading import adapter_path, check_quantized, checkpoint_path, load_generator, vocabulary_of
from bpe_llama.model.cli.options.common import AdapterOption, DeviceOption, GroupSizeOption, QuantizeOption
from bpe_llama.model.evaluation.classification import ClassifierScore, evaluate_classifier
from bpe_llama.model.evaluation.perplexity import DEFAULT_WINDOW
from bpe_llama.model.evaluation.text import TextScore, evaluate_text
from bpe_llama.model.training.finetuning.classification import read_labelled
from bpe_llama.tokenizer import Tokenizer

EXAMPLE = "Example: bpe-llama eval demo-out/model --text notes/ --stride 512"


def command(
    model: Annotated[str, typer.Argument(help="A folder, a .gguf, or org/name on the Hugging Face Hub.")],
    files: Annotated[list[str] | None, typer.Argument(help="More files of --text.", metavar="[FILES]...")] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="A file, folder or glob of text: .txt, .jsonl, .parquet, .gz, .zst; repeatable.", metavar="FILES"
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks of lm-evaluation-harness, names or .yaml files, divided by commas; repeatable.",
            metavar="NAMES_OR_FILES",
        ),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", "-t", help="Default: MODEL's own.")] = None,
    adapter: AdapterOption = None,
    field: Annotated[
        str | None,
        typer.Option(
            "--field",
            "--text-field",
            help="The field of .jsonl and .parquet rows that holds the text.  [default: text]",
        ),
    ] = None,
    label_field: Annotated[
        str | None, typer.Option(help="Of a classifier: the field that holds the label.  [default: label]")
    ] = None,
    separator: Annotated[str | None, typer.Option(help="The text that ends a document within a file.")] = None,
    on_error: Annotated[
        str | None,
        typer.Option(
            metavar="raise|skip",
            help="At a row without text: raise an error, or skip it and report the count.  [default: raise]",
        ),
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Tokens of one forward pass.  [default: 1024 or the context]")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens between the beginnings of windows.  [default: window - 1]")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before each question.  [default: the task's]")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Evaluate only this many questions of each task.")] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Render the questions by the tokenizer's chat template.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Rows of one forward pass.")] = 8,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16.")] = "auto",
    device: DeviceOption = "auto",
    quantized: QuantizeOption = None,
    group_size: GroupSizeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Evaluate a model on text or on tasks, a classifier on labelled rows."""
    if files and not text:
        raise ValueError(f"{files[0]!r} is an argument beside the model; expected it behind --text")
    if not text and not tasks:
        raise ValueError("nothing to evaluate on; give --text FILES, --tasks NAMES_OR_FILES, or both")
    if not tasks and (num_fewshot is not None or limit is not None or apply_chat_template):
        raise ValueError("--num-fewshot, --limit and --apply-chat-template are for --tasks, which is not given")
    of_text = {
        "--window": window,
        "--stride": stride,
        "--separator": separator,
        "--field": field,
        "--on-error": on_error,
    }
    given = [flag for flag, value in of_text.items() if value is not None]
    if given and not text:
        raise ValueError(f"{given[0]} is for --text, which is not given")
    field, on_error = "text" if field is None else field, "raise" if on_error is None else on_error
    bad_rows = BadRows(on_error)
    paths = find_files([*(text or ()), *(files or ())]) if text else []
    names = [name for several in tasks or () for name in several.split(",") if name]
    path, adapter_folder = checkpoint_path(model), None if adapter is None else adapter_path(adapter)
    if is_classifier(path) or is_classifiers_adapter(adapter_folder):
        of_models = {"--tasks": names, "--separator": separator, "--stride": stride}
        wrong = next((flag for flag, value in of_models.items() if value), None)
        if wrong is not None:
            raise ValueError(f"the model is a classifier, and {wrong} is for models that predict text")
        check_quantized(quantized, group_size)
        vocabulary = vocabulary_of(tokenizer, model)
        judge = load_adapted_classifier(path, adapter_folder, vocabulary, dtype, device, quantized, group_size)
        label_score, labels = score_rows_of(
            judge, vocabulary, paths, field, label_field or "label", on_error, window, batch_size
        )
        typer.echo(json.dumps(label_score.to_dict(labels), indent=2) if as_json else label_score.describe(labels))
        return
    if label_field is not None:
        raise ValueError(f"--label-field is for a classifier, and {model} is none")
    if names:
        from bpe_llama.model.evaluation import harness

        found_tasks = harness.find_tasks(names)  # raises before a large model is loaded
    generator = load_generator(model, tokenizer, dtype, device, adapter, quantized, group_size)
    found: dict[str, Any] = {}
    if paths:
        score = evaluate_text(
            generator.model,
            generator.tokenizer,
            read_documents(paths, separator=separator, field=field, bad_rows=bad_rows),
            window=window,
            stride=stride,
            batch_size=batch_size,
        )
        bad_rows.warn(stacklevel=2)
        found["text"] = score.to_dict()
        if not as_json:
            typer.echo(describe_score(score))
    if names:
        results = harness.evaluate_tasks(
            generator,
            found_tasks,
            batch_size=batch_size,
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=apply_chat_template,
        )
        found["tasks"] = results["results"]
        if not as_json:
            typer.echo(harness.describe_results(results))
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))


def score_rows_of(
    model: LlamaForSequenceClassification,
    tokenizer: Tokenizer,
    paths: list[Path],
    text_field: str,
    label_field: str,
    on_error: str,
    window: int | None,
    batch_size: int,
) -> tuple[ClassifierScore, list[str]]:
    """Return the score of a classifier on the rows of files, and the names of its labels."""
    longest = min(DEFAULT_WINDOW, model.config.context_length) if window is None else window
    if not 1 <= longest <= model.config.context_length:
        raise ValueError(f"window is {longest}; expected 1 to the model's context of {model.config.context_length}")
    names = model.config.label_names
    data = read_labelled(
        paths, tokenizer, longest, text_field=text_field, label_field=label_field, labels=names, on_error=on_error
    )
    if data.truncated:
        note(f"{data.truncated} texts truncated to {longest} tokens")
    done = 0
    with reporting(None) as report:

        def advance(more: int) -> None:
            nonlocal done
            done += more
            if report is not None:
                report("classify", done, len(data.texts))

        return evaluate_classifier(model, data.texts, batch_size=batch_size, report=advance), names


def describe_score(score: TextScore) -> str:
    """Return the figures of a text, one a line."""
    return "\n".join(
        (
            f"{score.documents:,} documents, {score.bytes:,} bytes, {score.tokens:,} tokens scored",
            f"loss             {score.loss:.4f} nats per token",
            f"perplexity       {score.perplexity:.4f}",
            f"bits per byte    {score.bits_per_byte:.4f}",
            f"tokens per byte  {score.tokens_per_byte:.4f}",
        )
    )
