"""Defaults of the command line are those of Python, except where a list below says otherwise."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from bpe_llama import Tokenizer, cli
from bpe_llama.cli import encode_corpus, train_tokenizer
from bpe_llama.counts import DEFAULT_PATTERN
from bpe_llama.model import LlamaForCausalLM, lora, training
from bpe_llama.model.checkpoints.gguf_write import save_gguf
from bpe_llama.model.cli import chat, convert, eval, finetune, generate, pretrain, serve
from bpe_llama.model.cli.options.training import TRAINING_FLAGS
from bpe_llama.model.evaluation.text import evaluate_text
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.server.config import ServerConfig
from bpe_llama.model.server.scheduler import Scheduler
from bpe_llama.model.training.finetuning.options import FULL_LEARNING_RATE
from bpe_llama.training import _Training


def _of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of a function's arguments."""
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


def _of_class(options: type) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(options)}


def _same(command: Callable[..., Any], python: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Compare the defaults of a command with those of Python; `names` maps flags to arguments of another name."""
    flags = _of(command)
    shared = {name: names.get(name, name) for name in flags if names.get(name, name) in python}
    assert len(shared) >= 1 + len(names)
    # A flag that is absent, or a list without entries, is None.
    found = {name: flags[name] or None for name in shared}
    assert found == {name: python[argument] or None for name, argument in shared.items()}


def test_tokenizers() -> None:
    _same(train_tokenizer.command, _of_class(_Training) | {"vocab_size": 32_000}, {"threads": "num_threads"})
    (option,) = inspect.signature(train_tokenizer.command, eval_str=True).parameters["pattern"].annotation.__metadata__
    assert f"default: {DEFAULT_PATTERN}, or" in option.help
    _same(encode_corpus.command, _of(Tokenizer.encode_corpus), {"threads": "num_threads"})


def test_the_default_pattern(tmp_path: Any) -> None:
    (tmp_path / "a.txt").write_text("It's 12345 words, they'll SAY. " * 40, encoding="utf-8")
    out = tmp_path / "tokenizer.json"
    assert cli.main(["train-tokenizer", str(tmp_path / "a.txt"), "--vocab-size", "270", "-o", str(out), "-q"]) == 0
    expected = Tokenizer.train(tmp_path / "a.txt", vocab_size=270, progress=False)
    trained = Tokenizer.from_file(out)
    assert (trained.pattern, trained.merges) == (expected.pattern, expected.merges)


def test_generation() -> None:
    ours = _of_class(GenerationOptions)
    # Absent flags are None, so that a model's generation_config.json can say otherwise; the help says the default.
    for command, others in (
        (generate.command, {}),
        (chat.command, {"max_new_tokens": 512, "temperature": 0.7, "top_p": 0.9}),
    ):
        flags = inspect.signature(command, eval_str=True).parameters
        for name in ours.keys() & flags.keys() - {"preset"}:
            assert flags[name].default is None, name
            (option,) = flags[name].annotation.__metadata__
            said = (option.help or "").partition("the model's own, else ")[2].rstrip("]")
            assert not said or float(said) == others.get(name, ours[name]), name
    assert _of(generate.command)["preset"] == ours["preset"]


def test_training() -> None:
    fields = _of_class(training.TrainConfig)
    flags = {name: value for name, value in _of(pretrain.command).items() if name in TRAINING_FLAGS}
    assert flags == {name: fields[name] for name in flags}
    helps = inspect.signature(pretrain.command, eval_str=True).parameters
    for flag, default in _of(pretrain.new_shape).items():
        (option,) = helps[flag].annotation.__metadata__
        value = {None: "default: ", True: f"default: {flag}"}.get(default, f"default: {default}")
        assert value in option.help
    tuned = training.finetune_config(max_steps=9)
    flags = {name: value for name, value in _of(finetune.command).items() if name in TRAINING_FLAGS}
    # These are None: they depend on the epochs, the model's context and --full; and checkpoints on the time.
    none = {name for name in flags if flags[name] is None}
    assert none == {"max_steps", "sequence_length", "learning_rate", "save_every"}
    assert all(value == getattr(tuned, name) for name, value in flags.items() if value is not None)
    assert training.finetune_config(full=True).learning_rate == FULL_LEARNING_RATE
    _same(finetune.command, _of(training.finetune) | {"epochs": 1.0}, {})
    helps = inspect.signature(finetune.command, eval_str=True).parameters
    for flag, argument in (("rank", "rank"), ("alpha", "alpha"), ("dropout", "dropout")):
        (option,) = helps[flag].annotation.__metadata__
        assert f"[default: {_of(lora.add)[argument]:g}]" in option.help


@pytest.mark.parametrize(
    ("command", "python", "names"),
    [
        (eval.command, _of(evaluate_text), {}),
        (convert.command, _of(save_gguf), {}),
        (serve.command, _of(Scheduler.__init__), {}),
        (serve.command, _of_class(ServerConfig), {}),
        (generate.command, _of(LlamaForCausalLM.from_pretrained), {}),
    ],
)
def test_other_commands(command: Callable[..., Any], python: Mapping[str, Any], names: Mapping[str, str]) -> None:
    python = dict(python)
    if "tokenizer" in python:
        del python["tokenizer"]  # of another type
    _same(command, python, names)
    assert _of(serve.command)["prefix_cache_mb"] << 20 == _of(Scheduler.__init__)["prefix_cache_bytes"]
