"""Training on a GPU: the losses of the CPU, a resumed run, float8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bpe_llama.model import training
from tests.model.training.helpers import CONFIG, SETTINGS, fresh, losses

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and none is here"),
]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    ids = np.random.default_rng(0).integers(3, CONFIG.vocab_size, 2000, dtype=np.uint16)
    np.save(tmp_path / "tokens.npy", ids)
    return tmp_path / "tokens.npy"


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_losses_are_those_of_the_cpu(
    tokens: Path, tmp_path: Path, dtype: str, tolerance: float, compiled: bool
) -> None:
    found = {}
    runs = {"expected": ("cpu", "float32", False), "found": ("cuda", dtype, compiled)}
    for name, (device, dtype_, compile_) in runs.items():
        settings = {**SETTINGS, "max_steps": 8, "device": device, "dtype": dtype_, "compile": compile_}
        training.train(fresh(), tokens, training.TrainConfig(**settings), tmp_path / name, progress=False)
        found[name] = losses(tmp_path / name)
    assert found["found"] == pytest.approx(found["expected"], rel=tolerance)


def test_a_resumed_run_goes_on_with_the_losses_of_one_run(tokens: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "device": "cuda", "dtype": "bfloat16", "save_every": 5}
    whole = training.TrainConfig(**settings, max_steps=10)
    training.train(fresh(), tokens, whole, tmp_path / "whole", progress=False)

    class Stops(training.Callback):
        def on_checkpoint(self, run: training.Run, folder: Path) -> None:
            raise RuntimeError("the power is out")

    with pytest.raises(RuntimeError, match="the power is out"):
        training.train(fresh(), tokens, whole, tmp_path / "parts", progress=False, callbacks=[Stops()])
    training.train(fresh(), tokens, whole, tmp_path / "parts", progress=False, resume=True)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)


def test_a_float8_run_learns_what_a_bfloat16_run_does(tokens: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("float8 needs a GPU of capability 8.9")
    found = {}
    for dtype in ("bfloat16", "float8"):
        settings = {**SETTINGS, "max_steps": 10, "device": "cuda", "dtype": dtype, "sequence_length": 32}
        training.train(fresh(), tokens, training.TrainConfig(**settings), tmp_path / dtype, progress=False)
        found[dtype] = losses(tmp_path / dtype)
    assert found["float8"] == pytest.approx(found["bfloat16"], rel=0.1)
