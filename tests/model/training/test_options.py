"""Options of a run: optimizers, schedules, averaged weights, float8, recomputed layers, callbacks, a custom loss."""

from __future__ import annotations

import json
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bpe_llama.model import LlamaConfig, LlamaForCausalLM, training
from bpe_llama.model.training.config import with_epochs
from bpe_llama.model.training.float8 import use_float8
from bpe_llama.model.training.optimizers.adamw import MasterAdamW
from bpe_llama.model.training.optimizers.muon import MuonAdamW
from tests.model.training.helpers import SETTINGS, fresh, losses
from tests.small_models import TINY


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "muon"},
        {"weights_dtype": "bfloat16", "master_weights": True},
        {"ema_decay": 0.9},
        {"optimizer": "muon", "ema_decay": 0.5},
    ],
    ids=str,
)
def test_every_optimizer_resumes_exactly(
    options: dict[str, Any], token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = training.TrainConfig(max_steps=6, eval_every=2, **options, **SETTINGS)
    whole, parts = fresh(), fresh()
    result = training.train(whole, token_file, config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(training.loop.Trainer, "unfinished", lambda self: self.step < 3)
        training.train(fresh(), token_file, config, tmp_path / "parts", progress=False)
    again = training.train(parts, token_file, config, tmp_path / "parts", resume=True, progress=False)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert all(map(torch.equal, parts.parameters(), whole.parameters()))
    assert again.eval_loss == result.eval_loss
    (changed,) = [key for key in ("optimizer", "master_weights", "ema_decay") if key in options][:1]
    other = {"optimizer": "adamw", "master_weights": False, "ema_decay": 0.0}[changed]
    with pytest.raises(ValueError, match=f"{changed} was .* and is {other!r}"):
        training.train(
            fresh(),
            token_file,
            training.TrainConfig(**(config.to_dict() | {changed: other, "betas": (0.9, 0.95)})),
            tmp_path / "parts",
            resume=True,
        )


def test_numbers_of_numpy_are_stored_as_json_has_them() -> None:
    given = {"max_steps": np.int64(3), "learning_rate": np.float32(0.5), "compile": np.bool_(False)}
    config = training.TrainConfig(**given, betas=[np.float32(0.5), 0.75], max_seconds=np.int32(60))
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    plain = {"max_steps": 3, "learning_rate": 0.5, "betas": (0.5, 0.75), "max_seconds": 60.0}
    assert config == training.TrainConfig(**plain)
    assert type(config.max_steps) is int and type(config.learning_rate) is float


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_numbers_that_are_whole_train_as_floats(token_file: Path, tmp_path: Path, optimizer: str) -> None:
    options = {"optimizer": optimizer, "betas": (0, 0), "weight_decay": 0, "learning_rate": 1}
    config = training.TrainConfig(max_steps=1, sequence_length=8, batch_size=2, warmup_steps=0, **options)
    assert config.betas == (0.0, 0.0) and all(type(beta) is float for beta in config.betas)
    training.train(fresh(), token_file, config, tmp_path / "run", progress=False)


def test_epochs_of_too_many_steps_are_refused() -> None:
    for epochs, rows in ((1e308, 10**6), (10**30, 1)):
        with pytest.raises(ValueError, match=r"epochs is 1\S+, \S+ steps; expected fewer than 2\*\*63"):
            with_epochs(training.TrainConfig(), epochs, rows)


def test_muon_does_not_update_norms_that_are_matrices() -> None:
    fields = TINY | {"model_type": "cohere", "eos_token_id": 1, "use_qk_norm": True}
    model = LlamaForCausalLM(LlamaConfig.from_dict(fields))
    norms = [weight for name, weight in model.named_parameters() if "q_norm" in name or "k_norm" in name]
    optimizer = MuonAdamW(model, training.TrainConfig(learning_rate=0.1))
    assert norms and all(weight.dim() == 2 and weight.eq(1).all() for weight in norms)
    assert not any(optimizer.is_hidden(weight) for weight in norms)


def test_muon_names_the_version_of_torch_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ImportError, match=r"optimizer 'muon' needs torch 2\.9 or later; this is torch \d"):
        MuonAdamW(fresh(), training.TrainConfig())


def test_muon_updates_the_layers_and_adamw_the_rest() -> None:
    model = fresh()
    optimizer = MuonAdamW(model, training.TrainConfig(learning_rate=0.1, weight_decay=0.0))
    names = {id(weight): name for name, weight in model.named_parameters()}
    by_muon = {names[id(weight)] for weight in model.parameters() if optimizer.is_hidden(weight)}
    assert by_muon == {name for name in names.values() if name.endswith("_proj.weight")}
    weight = model.model.layers[0].mlp.up_proj.weight
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    torch.manual_seed(0)
    for value in model.parameters():
        value.grad = torch.randn_like(value)
    optimizer.step()
    update = before["model.layers.0.mlp.up_proj.weight"] - weight.detach()
    # The singular values of a nearly orthogonal update, scaled by 0.2 * sqrt(the larger size), are about equal.
    singular = torch.linalg.svdvals(update) / (0.1 * 0.2 * max(weight.shape) ** 0.5)
    assert singular.min() > 0.6 and singular.max() < 1.3
    assert update.square().mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.2)
    embedding = before["model.embed_tokens.weight"] - model.model.embed_tokens.weight.detach()
    torch.testing.assert_close(embedding.abs(), torch.full_like(embedding, 0.1))  # AdamW's first step


def test_master_weights_follow_adamw_in_float32() -> None:
    torch.manual_seed(0)
    start = torch.randn(40, 30).bfloat16()
    exact, ours = nn.Parameter(start.float()), nn.Parameter(start.clone())
    options = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
    theirs, master = torch.optim.AdamW([exact], **options), MasterAdamW([ours], **options)
    for _ in range(30):
        exact.grad = torch.randn(40, 30).bfloat16().float()
        ours.grad = exact.grad.bfloat16()
        theirs.step()
        master.step()
    torch.testing.assert_close(master.state[ours]["master"], exact.detach())
    assert torch.equal(ours, exact.bfloat16())


def test_the_average_is_evaluated_saved_and_left_in_the_model(token_file: Path, tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Record(training.Callback):
        def on_step(self, run: training.Run, metrics: dict[str, float]) -> None:
            seen.append({name: weight.detach().clone() for name, weight in run.model.named_parameters()})

    config = training.TrainConfig(max_steps=5, ema_decay=0.3, **SETTINGS)
    model = fresh()
    result = training.train(model, token_file, config, tmp_path / "run", callbacks=[Record()], progress=False)
    expected = seen[0]
    for step, weights in enumerate(seen[1:], start=1):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * weights[name] for name in weights}
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name])
    tokens = training.open_tokens(token_file)
    held_out = tokens[-max(16, len(tokens) // 100) :]
    assert result.eval_loss == pytest.approx(training.evaluate(model, held_out, window=16), rel=1e-5)
    raw = LlamaForCausalLM.from_pretrained(result.checkpoint)
    assert torch.equal(raw.lm_head.weight, seen[-1]["model.embed_tokens.weight"])


def test_schedules() -> None:
    shape: dict[str, Any] = {"max_steps": 110, "warmup_steps": 10, "min_learning_rate_ratio": 0.5}
    stable = training.TrainConfig(schedule="warmup_stable_decay", learning_rate=1.0, decay_fraction=0.2, **shape)
    rates = [training.learning_rate_at(stable, step) for step in range(111)]
    assert (
        rates[9:91] == pytest.approx([1.0] * 82)
        and rates[100] == pytest.approx(0.75)
        and rates[110] == pytest.approx(0.5)
    )
    constant = training.TrainConfig(schedule="constant", learning_rate=1.0, **shape)
    assert {training.learning_rate_at(constant, step) for step in range(10, 111)} == {1.0}
    # Warm-up ends after its share of the time, if steps are slow.
    timed = training.TrainConfig(max_seconds=100.0, learning_rate=1.0, warmup_fraction=0.05, **shape)
    assert training.learning_rate_at(timed, 0, elapsed=0.0) == pytest.approx(0.1)
    assert training.learning_rate_at(timed, 1, elapsed=2.5) == pytest.approx(0.5)
    assert training.learning_rate_at(timed, 2, elapsed=6.0) > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear"}, "schedule is 'linear', expected cosine, warmup_stable_decay or constant"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd', expected adamw or muon"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0, expected 0 up to 1"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1, expected 0 up to 1"),
        ({"z_loss": float("nan")}, "z_loss is nan, expected at least 0"),
        ({"master_weights": True}, "master_weights is True and weights_dtype 'float32'"),
        ({"optimizer": "muon", "weights_dtype": "bfloat16"}, "optimizer is 'muon' and weights_dtype 'bfloat16'"),
        ({"learning_rate": 1e31}, r"learning_rate is 1e\+31, expected a positive number up to 1e30"),
        ({"batch_size": 2**62}, r"batch_size \* .* tokens in a step, expected at most 2,147,483,648"),
        ({"gradient_accumulation": 2**62}, r"\* gradient_accumulation is .* tokens in a step, expected at most"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training.TrainConfig(**options)


def test_recomputed_layers_change_memory_and_not_the_loss(token_file: Path, tmp_path: Path) -> None:
    curves = []
    for every in (0, 1, 2):
        calls: list[nn.Module] = []
        model = fresh()
        for layer in model.model.layers:
            layer.register_forward_pre_hook(lambda module, *_, calls=calls: calls.append(module))
        config = training.TrainConfig(max_steps=2, eval_fraction=0.0, checkpoint_activations=every, **SETTINGS)
        training.train(model, token_file, config, tmp_path / str(every), progress=False)
        curves.append(losses(tmp_path / str(every)))
        assert [calls.count(layer) for layer in model.model.layers] == [2 if every == 0 else 4, 4 if every == 1 else 2]
    assert curves[0] == curves[1] == curves[2]


def test_float8_needs_a_gpu_and_keeps_names_and_dtypes(token_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype is 'float8' and the device cpu; expected a GPU"):
        training.train(fresh(), token_file, training.TrainConfig(dtype="float8", **SETTINGS), tmp_path / "run")
    shape: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4), seed=0).train()
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 64, (4, 16)))
    before = {name: (weight.dtype, weight.shape) for name, weight in model.state_dict().items()}
    model(ids, labels=ids).loss.backward()
    exact = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    use_float8(model, torch.device("cpu"), emulate=True)
    assert type(model.model.layers[0].mlp.up_proj) is not nn.Linear and type(model.lm_head) is nn.Linear
    assert {name: (weight.dtype, weight.shape) for name, weight in model.state_dict().items()} == before
    model(ids, labels=ids).loss.backward()
    for name, weight in model.named_parameters():
        error = (weight.grad - exact[name]).norm() / exact[name].norm()
        assert error < 0.15, name  # float8 keeps 3 or 4 significant bits
    assert any(not torch.equal(weight.grad, exact[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda weight: None, "None"),
        (lambda weight: "much", "'much'"),
        (lambda weight: weight[0], r"a tensor of torch.float32, shape \(\d+,\), requires_grad=True"),
        (lambda weight: weight.sum() * 1j, r"a tensor of torch.complex64, shape \(\), requires_grad=True"),
        (lambda weight: torch.tensor(1.0), r"a tensor of torch.float32, shape \(\), requires_grad=False"),
    ],
)
def test_a_loss_without_a_gradient_is_named(token_file: Path, tmp_path: Path, returned: Any, message: str) -> None:
    def loss_fn(model: LlamaForCausalLM, batch: training.TensorBatch, learned: int) -> Any:
        return returned(model.model.embed_tokens.weight)

    config = training.TrainConfig(max_steps=1, **SETTINGS)
    with pytest.raises(ValueError, match=f"loss_fn returned {message}; expected a scalar float tensor with a gradient"):
        training.train(fresh(), token_file, config, tmp_path / "run", loss_fn=loss_fn, progress=False)


def test_token_bytes_are_checked_and_missing_ones_are_0(token_file: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(max_steps=1, **SETTINGS)
    for wrong in (np.full(64, -1), np.ones((64, 2), int), np.full(64, np.nan), "abc"):
        with pytest.raises(ValueError, match=r"token_bytes (is|have)"):
            training.train(fresh(), token_file, config, tmp_path / "run", token_bytes=wrong, progress=False)
    bits = []
    for given in ([1] * 40, np.arange(64) < 40, np.arange(99) < 40):
        out = tmp_path / str(len(bits))
        training.train(fresh(), token_file, config, out, token_bytes=given, progress=False)
        metrics = training.read_metrics(out / "metrics.jsonl")
        bits.append([line[key] for line in metrics for key in line if "bits_per_byte" in key])
    assert bits[0] and bits[0] == bits[1] == bits[2]


def test_a_custom_loss_and_callbacks_see_the_run(token_file: Path, tmp_path: Path) -> None:
    events: list[tuple[str, float]] = []

    class Record(training.Callback):
        def on_start(self, run: training.Run) -> None:
            events.append(("start", run.step))

        def on_step(self, run: training.Run, metrics: dict[str, float]) -> None:
            events.append(("step", metrics["loss"]))

        def on_eval(self, run: training.Run, metrics: dict[str, float]) -> None:
            events.append(("eval", metrics["eval_loss"]))

        def on_checkpoint(self, run: training.Run, folder: Path) -> None:
            events.append((folder.name, run.step))

        def on_end(self, run: training.Run, result: training.TrainResult) -> None:
            events.append(("end", result.step))

        def close(self) -> None:
            events.append(("close", 0))

    def doubled(model: LlamaForCausalLM, batch: training.TensorBatch, learned: int) -> torch.Tensor:
        return 2 * training.batch_loss(model, batch, learned)

    config = training.TrainConfig(max_steps=2, **SETTINGS)
    training.train(fresh(), token_file, config, tmp_path / "plain", progress=False)
    training.train(fresh(), token_file, config, tmp_path / "run", loss_fn=doubled, callbacks=[Record()], progress=False)
    first = losses(tmp_path / "plain")[1]
    assert events[:2] == [("start", 0), ("step", pytest.approx(2 * first))]
    assert [name for name, _ in events[2:]] == ["step", "eval", "step-00000002", "end", "close"]

    events.clear()
    texts = [training.Example(np.arange(2, 8), np.arange(2, 8))] * 5
    once = {"eval_examples": iter(texts[4:]), "callbacks": iter([Record()])}  # each can be read once
    training.train_on_examples(fresh(), iter(texts[:4]), config, tmp_path / "once", progress=False, **once)
    assert [name for name, _ in events] == ["start", "step", "step", "eval", "step-00000002", "end", "close"]

    class Failing(Record):
        def on_step(self, run: training.Run, metrics: dict[str, float]) -> None:
            raise RuntimeError("mine")

    events.clear()
    with pytest.raises(RuntimeError, match="mine"):
        training.train(fresh(), token_file, config, tmp_path / "failing", callbacks=[Failing()], progress=False)
    assert events[-1][0] == "close" and not list((tmp_path / "failing").glob("step-*"))


def test_z_loss_and_label_smoothing_reach_the_loss(token_file: Path, tmp_path: Path) -> None:
    options = {"z_loss": 0.01, "label_smoothing": 0.1}
    config = training.TrainConfig(max_steps=1, **options, **SETTINGS)
    training.train(fresh(), token_file, config, tmp_path / "run", progress=False)
    tokens = training.open_tokens(token_file)[:-40]
    ids = torch.from_numpy(training.TokenBatches(tokens, window=16, batch_size=4, vocab_size=64).batch(0).ids)
    logits = fresh().train()(ids).logits[:, :-1].flatten(0, 1)
    expected = nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), label_smoothing=0.1)
    expected = expected + 0.01 * logits.logsumexp(-1).square().mean()
    assert losses(tmp_path / "run")[1] == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"label_smoothing is 0.1 and z_loss 0.01, .* expected 0 with a loss_fn"):
        training.train(fresh(), token_file, config, tmp_path / "other", loss_fn=lambda *_: torch.zeros(()))


def test_no_module_hides_a_public_name() -> None:
    modules = {module.name for module in pkgutil.iter_modules(training.__path__)}  # the reference shows them instead
    assert modules and not modules & set(training.__all__)
