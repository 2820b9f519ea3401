"""Several ranks against one process: the same losses and weights, whatever the number of ranks and the sharding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bpe_llama.model import LlamaForCausalLM, lora, training
from bpe_llama.model.training.config import TrainConfig
from tests.model.training import ranks
from tests.model.training.helpers import CONFIG

SETTINGS: dict[str, Any] = {
    "max_steps": 5,
    "sequence_length": 16,
    "batch_size": 5,  # which two and four ranks cannot split evenly
    "gradient_accumulation": 2,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "eval_every": 2,
    "log_every": 1,
    "device": "cpu",
}


def _tokens() -> np.ndarray[Any, Any]:
    return (np.cumsum(np.random.default_rng(0).integers(0, 3, 2000)) % 64).astype(np.uint16)


def _examples(count: int = 23) -> list[training.Example]:
    """Texts of different lengths, of which very different numbers of tokens are learned."""
    drawn = np.random.default_rng(0)
    texts = [drawn.integers(3, 60, drawn.integers(5, 40)) for _ in range(count)]
    return [training.Example(ids, np.where(np.arange(len(ids)) > drawn.integers(1, 4), ids, -100)) for ids in texts]


def _on_tokens(out: Path, config: TrainConfig, **options: Any) -> LlamaForCausalLM:
    model = LlamaForCausalLM(CONFIG, seed=0)
    training.train(model, out.parent / "tokens.npy", config, out, progress=False, **options)
    return model


def _on_examples(out: Path, config: TrainConfig, **options: Any) -> LlamaForCausalLM:
    model = LlamaForCausalLM(dataclasses.replace(CONFIG, tie_word_embeddings=False), seed=0)
    model.gradient_checkpointing_enable()
    return _train_on_examples(model, out, config, **options)


def _with_adapter(out: Path, config: TrainConfig, **options: Any) -> LlamaForCausalLM:
    model = lora.add(LlamaForCausalLM(CONFIG, seed=0), rank=3)
    return _train_on_examples(model, out, config, **options)


def _with_experts(out: Path, config: TrainConfig, **options: Any) -> LlamaForCausalLM:
    shape = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    return _train_on_examples(LlamaForCausalLM(dataclasses.replace(CONFIG, **shape), seed=0), out, config, **options)


def _train_on_examples(model: LlamaForCausalLM, out: Path, config: TrainConfig, **options: Any) -> LlamaForCausalLM:
    data = _examples()
    training.train_on_examples(model, data[:18], config, out, eval_examples=data[18:], progress=False, **options)
    return model


RUNS: dict[str, Callable[..., LlamaForCausalLM]] = {
    "tokens": _on_tokens,
    "examples": _on_examples,
    "adapter": _with_adapter,
    "experts": _with_experts,
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    np.save(folder / "tokens.npy", _tokens())
    with torch.enable_grad():
        for name, run in RUNS.items():
            save_file(_trained(run(folder / name, TrainConfig(**SETTINGS))), folder / f"{name}.safetensors")
    return folder


@pytest.mark.parametrize(("world", "parallel"), [(2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "fsdp")])
def test_ranks_give_the_losses_and_weights_of_one_process(
    world: int, parallel: str, alone: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "tokens.npy", _tokens())

    def work(rank: int) -> None:
        for name, run in RUNS.items():
            trained = run(tmp_path / name, TrainConfig(**SETTINGS, parallel=parallel))
            save_file(_trained(trained), tmp_path / f"{name}.{rank}.safetensors")

    ranks.run(world, work, tmp_path / "log")
    for name in RUNS:
        theirs, ours = (training.read_metrics(folder / name / "metrics.jsonl") for folder in (alone, tmp_path))
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        for key in ("loss", "grad_norm", "eval_loss"):
            expected, found = ([line[key] for line in lines if key in line] for lines in (theirs, ours))
            np.testing.assert_allclose(found, expected, rtol=2e-5, err_msg=f"{name}: {key}")
        weights = load_file(alone / f"{name}.safetensors")
        for rank in range(world):
            for weight, tensor in load_file(tmp_path / f"{name}.{rank}.safetensors").items():
                torch.testing.assert_close(tensor, weights[weight], rtol=1e-4, atol=2e-5)


def _trained(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}
