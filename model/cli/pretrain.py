"""`bpe-llama pretrain`: trains a model from scratch, or further, on token files or shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bpe_llama._by_name import open_tokenizer
from bpe_llama._files import read_json_object
from bpe_llama._progress import note
from bpe_llama.model import training
from bpe_llama.model.cli.loading import end_turns, load_model, resize_embeddings, with_template
from bpe_llama.model.cli.options.common import EXIT_INTERRUPTED, ChatTemplateOption, ResizeOption
from bpe_llama.model.cli.options.run import RunFlags, run_keywords, say_if_nothing_to_resume, say_result
from bpe_llama.model.cli.options.training import training_flags
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.config_json import text_part
from bpe_llama.model.generation.prompts import check_vocabulary
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.training.parallel import start

EXAMPLE = "Example: bpe-llama pretrain tokens.npy --tokenizer tokenizer.json --hidden-size 256 --layers 6 --out run"


@training_flags(without=("eval_fraction",))
def command(
    data: Annotated[
        list[Path], typer.Argument(help="Ids: a .npy of `bpe-llama encode --out`, or a folder of `encode-corpus`.")
    ],
    tokenizer: Annotated[str, typer.Option("--tokenizer", "-t", help="The tokenizer of these ids.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the run: metrics, loss curve, checkpoint, model.")
    ],
    config: Annotated[
        Path | None, typer.Option(help="A config.json with the model's shape; ids that it lacks are the tokenizer's.")
    ] = None,
    start_from: Annotated[str | None, typer.Option(help="Initial weights: a folder, .gguf or org/name.")] = None,
    resize: ResizeOption = False,
    chat_template: ChatTemplateOption = None,
    hidden_size: Annotated[int | None, typer.Option(help="Hidden size D.  [default: 256]")] = None,
    layers: Annotated[int | None, typer.Option(help="Number of layers.  [default: 6]")] = None,
    heads: Annotated[int | None, typer.Option(help="Number of attention heads.  [default: 8]")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Number of key/value heads; default: --heads.")] = None,
    intermediate_size: Annotated[int | None, typer.Option(help="Width of the MLP; default: 8/3 D.")] = None,
    context: Annotated[int | None, typer.Option(help="Context length in tokens.  [default: 1024]")] = None,
    tie: Annotated[
        bool | None, typer.Option(help="Tie the output projection to the embedding.  [default: tie]")
    ] = None,
    *,
    weight: Annotated[
        list[float] | None, typer.Option(help="Share of the rows, once for each DATA in order; default: by size.")
    ] = None,
    eval_file: Annotated[
        Path | None, typer.Option(help="Ids to evaluate on; default: the last 1 % of each DATA.")
    ] = None,
    run: RunFlags,
    **settings: Any,
) -> int:
    """Train a LLaMA on token files or shards. Ctrl-C and SIGTERM save a checkpoint; --resume continues from it."""
    if resize and start_from is None:
        raise ValueError("--resize-embeddings is for the model of --start-from; expected both, or neither")
    sizes: dict[str, Any] = {"hidden_size": hidden_size, "layers": layers, "heads": heads, "kv_heads": kv_heads}
    sizes |= {"intermediate_size": intermediate_size, "context": context, "tie": tie}
    sizes = {name: value for name, value in sizes.items() if value is not None}
    files = [flag for flag, value in (("--config", config), ("--start-from", start_from)) if value is not None]
    given = [*files, *(f"--{name.replace('_', '-')}" for name in sizes)]
    if files and len(given) > 1:
        raise ValueError(f"{given[1]} is given beside {given[0]}, which has the model's shape; expected one of them")
    if weight and len(weight) != len(data):
        raise ValueError(f"{len(weight)} --weight for {len(data)} DATA; expected one for each")
    source = dict(zip(data, weight, strict=True)) if weight else data
    if len(set(data)) < len(data):
        raise ValueError("a DATA is given twice; give it a larger --weight")
    vocabulary = with_template(open_tokenizer(tokenizer), chat_template, add_tokens=start_from is None or resize)
    for path in (*data, *([eval_file] if eval_file else [])):
        training.open_corpus(path).check_tokenizer(vocabulary)  # before a large model is constructed
    settings["warmup_steps"] = min(settings["warmup_steps"], settings["max_steps"])
    train_config = training.TrainConfig(**settings)
    ranks = start(train_config.device, train_config.parallel)
    if ranks.is_main and (run.resume or start_from is not None):
        say_if_nothing_to_resume(out, run.resume)
    if start_from is not None:
        model = load_model(start_from, train_config.weights_dtype, "cpu" if ranks.sharded else train_config.device)
        if resize:
            resize_embeddings(model, start_from, vocabulary)
        check_vocabulary(vocabulary, model.config.vocab_size)
    else:
        shape = new_shape(vocabulary.vocab_size, **sizes) if config is None else LlamaConfig.from_json(config)
        check_vocabulary(vocabulary, shape.vocab_size)
        file = config / "config.json" if config is not None and config.is_dir() else config
        named = {} if file is None else text_part(read_json_object(file))[0]
        ids = {"bos_token_id": vocabulary.bos_id, "eos_token_id": vocabulary.eos_id}
        shape = shape.replace(**{name: value for name, value in ids.items() if name not in named})
        model = training.start_as_identity(LlamaForCausalLM(shape, seed=train_config.seed))
    if chat_template is not None or (start_from is None and "eos_token_id" not in named):
        end_turns(model, vocabulary)
    note(f"{sum(weight.numel() for weight in model.parameters()):,} parameters")
    keywords = run_keywords(model, vocabulary, train_config, run)
    result = training.train(model, source, train_config, out, eval_file=eval_file, tokenizer=vocabulary, **keywords)
    say_result(result, run.as_json, model=None if result.interrupted else str(out / "model"))
    if result.interrupted:
        return EXIT_INTERRUPTED
    note(f"try: bpe-llama generate 'Once upon a time' --model {out / 'model'}", on_stdout=not run.as_json)
    return 0


def new_shape(
    vocab_size: int,
    *,
    hidden_size: int = 256,
    layers: int = 6,
    heads: int = 8,
    kv_heads: int | None = None,
    intermediate_size: int | None = None,
    context: int = 1024,
    tie: bool = True,
) -> LlamaConfig:
    """Return the config of a new model by the values of the flags; the help has their defaults."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=-(-hidden_size * 8 // 3 // 32) * 32 if intermediate_size is None else intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        tie_word_embeddings=tie,
    )
