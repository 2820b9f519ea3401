"""Checkpoints: a folder that appears whole or not at all, of safetensors and JSON files, and of finite numbers.

A checkpoint `step-00001000/` (`step-00001000.1/` where that step was saved before) holds `config.json` and
`model.safetensors` (so it loads like any model), `optimizer.safetensors`, and `training.json` with the step, the time
trained, the run's settings and what tells its data from other data. Of a model with adapters, all that is trained, it
holds the adapters (as peft saves them) instead of the model.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bpe_llama.model.adapters import lora
from bpe_llama.model.training.optimizer import load_optimizer_tensors, optimizer_tensors

if TYPE_CHECKING:
    from bpe_llama.model.llama import LlamaForCausalLM

_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")
_UNFINISHED = ".saving-"


@dataclass(frozen=True)
class TrainState:
    """The state of a run.

    Attributes:
        step: Steps done, those skipped included.
        elapsed: Seconds trained.
        settings: The run's settings, as `TrainConfig.to_dict` gives them.
        skipped: How many of the steps were skipped.
        recent: The sum of the losses since the last line of metrics, and the number of their steps.
        data: The `identity` of the batches that are trained on; empty where it is not known.
    """

    step: int
    elapsed: float
    settings: dict[str, Any]
    skipped: int = 0
    recent: tuple[float, int] = (0.0, 0)
    data: str = ""


def find_checkpoint(out: Path) -> Path | None:
    """Return the latest checkpoint in `out`, or None."""
    return max(_checkpoints(out), key=_step_and_revision, default=None)


def checkpoint_to_resume(out: Path, resume: bool) -> Path | None:
    """Return the checkpoint that a run in `out` goes on from, or None where it begins.

    Raises:
        ValueError: If `out` holds a run that is not to be resumed.
    """
    checkpoint = find_checkpoint(out)
    if checkpoint is not None and not resume:
        raise ValueError(f"{out}: holds a run already ({checkpoint.name}); resume it or choose another folder")
    return checkpoint


def save_checkpoint(out: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, state: TrainState) -> Path:
    """Write the checkpoint of `state.step` into `out`, remove older ones, and return its folder.

    A process killed at any moment leaves the previous checkpoint or the new one, whole: the new one is flushed to disk
    and renamed to a name that no other has; only then are the others removed.

    Raises:
        ValueError: If a weight or a moment of the optimizer is not finite. The older checkpoint stays.
        OSError: If it cannot be written, such as on a full disk. The older checkpoint stays.
    """
    tensors = {key: tensor.contiguous() for key, tensor in optimizer_tensors(model, optimizer).items()}
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for key, tensor in [*trained.items(), *tensors.items()]:
        if not tensor.isfinite().all():
            raise ValueError(f"{out}: step {state.step} is not saved, for {key} is not finite; {_kept(out)}")
    try:
        return _write(out, model, tensors, state)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OSError(f"{out}: the checkpoint of step {state.step} cannot be written: {reason}; {_kept(out)}") from None


def _kept(out: Path) -> str:
    kept = find_checkpoint(out)
    return "there is no earlier one" if kept is None else f"{kept.name} stays"


def _write(out: Path, model: LlamaForCausalLM, tensors: dict[str, Tensor], state: TrainState) -> Path:
    for unfinished in out.glob(f"{_UNFINISHED}*"):  # by a process that was killed
        shutil.rmtree(unfinished)
    older = _checkpoints(out)
    saved_before = [revision for step, revision in map(_step_and_revision, older) if step == state.step]
    name = f"step-{state.step:08d}" + (f".{max(saved_before) + 1}" if saved_before else "")
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=out) as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        for adapter, place in _adapter_folders(model, folder).items():
            lora.save(model, place, adapter)
        if not lora.names(model):
            # Options that transformers does not compute can be trained and saved, too.
            options = {"portable": False} if model.config.unknown_to_transformers else {}
            model.save_pretrained(folder, **options)
        save_file(tensors, folder / "optimizer.safetensors")
        (folder / "training.json").write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
        for path in [*folder.rglob("*"), folder]:
            _to_disk(path)
        final = folder.rename(out / name)
        _to_disk(out)
    for other in older:
        shutil.rmtree(other)
    return final


def _to_disk(path: Path) -> None:
    """Flush a file or a folder to disk, so that it survives a power failure."""
    if path.is_dir() and os.name == "nt":  # which cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checkpoints(out: Path) -> list[Path]:
    return [folder for folder in out.glob("step-*") if _NAME.fullmatch(folder.name) and folder.is_dir()]


def _step_and_revision(folder: Path) -> tuple[int, int]:
    """Return a checkpoint's step, and how often that step was saved before."""
    found = _NAME.fullmatch(folder.name)
    return (int(found[1]), int(found[2] or 0)) if found else (-1, 0)


def load_checkpoint(folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> TrainState:
    """Load `folder` into the model and the optimizer and return where the run stood.

    Raises:
        ValueError: If a file is missing, damaged or of another model.
    """
    try:
        values = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        total, count = values.get("recent", (0.0, 0))
        state = TrainState(
            step=int(values["step"]),
            elapsed=float(values["elapsed"]),
            settings=dict(values["settings"]),
            skipped=int(values.get("skipped", 0)),
            recent=(float(total), int(count)),
            data=str(values.get("data", "")),
        )
        weights = {} if lora.names(model) else load_file(folder / "model.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: not a whole checkpoint: {error}") from None
    for name, place in _adapter_folders(model, folder).items():
        lora.restore(model, place, name)
    if weights:
        _load_weights(folder, model, weights)
    load_optimizer_tensors(model, optimizer, moments)
    return state


def _adapter_folders(model: LlamaForCausalLM, folder: Path) -> dict[str, Path]:
    """Return where each adapter of a model lies in a checkpoint, as peft arranges them."""
    return {name: folder if name == "default" else folder / name for name in lora.names(model)}


def _load_weights(folder: Path, model: LlamaForCausalLM, weights: dict[str, Tensor]) -> None:
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}
    found = {name: tensor.shape for name, tensor in weights.items() if name not in tied}
    if expected != found:
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ValueError(f"{folder}: the checkpoint is of another model: {', '.join(different[:8])} differ")
    model.load_state_dict(weights, strict=False)
