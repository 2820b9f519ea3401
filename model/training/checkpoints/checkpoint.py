"""Checkpoints: folders of safetensors and JSON files that are written atomically and hold only finite values.

A checkpoint `step-00001000/` (`step-00001000.1/` if that step was saved before) holds `config.json` and
`model.safetensors`, so that it loads as a model, `optimizer.safetensors`, and `training.json` with the step, the
training time, the options and the fingerprint of the data. For a model with adapters, it holds the adapters in peft's
format instead of the model. With FSDP, a folder `optimizer/` holds the part of each rank instead of one file; any
number of ranks resumes from either.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from bpe_llama._core import shown
from bpe_llama._files import flush, read_json_object, write_text
from bpe_llama.model.adapters import lora
from bpe_llama.model.checkpoints.assemble import check_shapes, fill
from bpe_llama.model.checkpoints.tensor_files import read, read_all, stored_in
from bpe_llama.model.checkpoints.tensor_files import save as save_tensors
from bpe_llama.model.pretrained import Pretrained
from bpe_llama.model.quantization.layers import QuantizedLinear
from bpe_llama.model.training.checkpoints.distributed import load_shards, save_shards
from bpe_llama.model.training.config import TrainConfig, masks_documents
from bpe_llama.model.training.data.batches import Batches, short_hash
from bpe_llama.model.training.optimizers.adamw import local
from bpe_llama.model.training.optimizers.state import load_optimizer_tensors, optimizer_tensors
from bpe_llama.model.training.parallel import Ranks
from bpe_llama.model.training.step import Recent

_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")
_UNFINISHED = ".saving-"
_OPTIMIZER = "optimizer"
# Options that must not change when a run resumes: they determine the tokens of each step and the optimizer's state.
_FIXED_OPTIONS = (
    *("sequence_length", "batch_size", "gradient_accumulation", "packing", "document_mask", "eval_fraction", "seed"),
    *("weights_dtype", "master_weights", "optimizer", "ema_decay"),
)


@dataclass(frozen=True)
class TrainState:
    """The state of a run.

    Attributes:
        step: Steps done, including skipped ones.
        elapsed: Seconds trained.
        settings: The run's options, as `TrainConfig.to_dict` returns them.
        skipped: Number of skipped steps.
        recent: Sums over the steps since the last line of metrics.
        data: The `fingerprint` of the batches; empty if it is unknown.
        base: The `base_fingerprint` of the model; empty if it is unknown.
    """

    step: int
    elapsed: float
    settings: dict[str, Any]
    skipped: int = 0
    recent: Recent = field(default_factory=Recent)
    data: str = ""
    base: str = ""


def find_checkpoint(out: Path) -> Path | None:
    """Return the latest checkpoint in `out`, or None."""
    return next(reversed(_checkpoints(out)), None)


def _checkpoints(out: Path) -> dict[Path, tuple[int, int]]:
    """Return the checkpoints in `out`, the earliest first: their steps, and how many were saved of the step before."""
    found: dict[Path, tuple[int, int]] = {}
    for folder in out.glob("step-*"):
        if folder.is_dir() and (name := _NAME.fullmatch(folder.name)):
            found[folder] = int(name[1]), int(name[2] or 0)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def checkpoint_to_resume(out: Path, resume: bool) -> Path | None:
    """Return the checkpoint from which a run in `out` resumes, None for step 0; a run there raises if not `resume`."""
    for path in out.glob("step-*"):
        if _NAME.fullmatch(path.name) and not path.is_dir():
            raise ValueError(f"{path}: no folder, where a run writes a checkpoint; expected no such file")
    checkpoint = find_checkpoint(out)
    if checkpoint is not None and not resume:
        raise ValueError(
            f"{out}: holds a run already ({checkpoint.name}); continue it with --resume (resume=True), or choose "
            "another folder"
        )
    return checkpoint


def save_checkpoint(
    out: Path,
    model: Pretrained,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    ranks: Ranks | None = None,
    sharded: Pretrained | None = None,
    keep: int = 1,
) -> Path:
    """Write the checkpoint of `state.step` into `out`, remove older ones, and return its folder.

    A process killed at any moment leaves the previous checkpoint or the new one complete: the new one is flushed to
    disk and renamed before older ones are removed. The newest `keep` stay, this one included; 0: all. An earlier one of
    the same step never stays.

    `model` has whole weights; with FSDP `sharded` is the model that is trained, to which the optimizer belongs. All
    `ranks` call this function. Rank 0 writes; with FSDP each writes its part of the optimizer's state.

    Raises:
        ValueError: If a weight or a moment of the optimizer is not finite. The previous checkpoint stays.
        OSError: If it cannot be written, for example on a full disk. The previous checkpoint stays.
    """
    ranks = ranks or Ranks()
    tensors = {key: tensor.contiguous() for key, tensor in optimizer_tensors(sharded or model, optimizer).items()}
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    wrong = [key for key, tensor in [*trained.items(), *tensors.items()] if not local(tensor).isfinite().all()]
    for key in [key for keys in ranks.gathered(wrong[:1]) for key in keys]:
        raise ValueError(f"{out}: step {state.step} is not saved, as {key} is not finite; {_previous(out)}")
    try:
        shards = save_shards(out / f"{_UNFINISHED}{_OPTIMIZER}", tensors, ranks) if ranks.sharded and tensors else None
        return ranks.on_main(lambda: _write(out, model, tensors, state, shards, keep))
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OSError(
            f"{out}: the checkpoint of step {state.step} cannot be written: {reason}; {_previous(out)}"
        ) from None


def _previous(out: Path) -> str:
    previous = find_checkpoint(out)
    return "there is no earlier one" if previous is None else f"{previous.name} stays"


def _write(
    out: Path, model: Pretrained, tensors: dict[str, Tensor], state: TrainState, shards: Path | None, keep: int
) -> Path:
    remove_unfinished(out, shards)
    revisions = [revision for step, revision in _checkpoints(out).values() if step == state.step]
    name = f"step-{state.step:08d}" + (f".{revisions[-1] + 1}" if revisions else "")
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=out) as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        for adapter, place in _adapter_folders(model, folder).items():
            lora.save(model, place, adapter)
        if not lora.names(model):
            model.save_pretrained(folder, portable=not model.config.unknown_to_transformers)
        if shards is None:
            save_tensors(tensors, folder / f"{_OPTIMIZER}.safetensors")
        else:
            shards.rename(folder / _OPTIMIZER)
        write_text(folder / "training.json", json.dumps(asdict(state), indent=2) + "\n")
        for path in [*folder.rglob("*"), folder]:
            flush(path)
        final = folder.rename(out / name)
        flush(out)
    remove_surplus(final, keep)
    return final


def remove_surplus(latest: Path, keep: int) -> None:
    """Remove the checkpoints beside `latest` that are too many if `keep` stay, and earlier ones of its step."""
    others = _checkpoints(latest.parent)
    latest_step, _ = others.pop(latest)
    same_step = [folder for folder, (step, _) in others.items() if step == latest_step]
    earlier = [folder for folder in others if folder not in same_step]
    for surplus in same_step + earlier[: len(earlier) + 1 - keep if keep else 0]:
        # Renamed first, so that a kill leaves no part of a checkpoint.
        shutil.rmtree(surplus.rename(surplus.with_name(f"{_UNFINISHED}{surplus.name}")))


def remove_unfinished(out: Path, but: Path | None = None) -> None:
    """Remove what killed processes left of checkpoints that they wrote or removed, `but` for this folder."""
    for unfinished in out.glob(f"{_UNFINISHED}*"):
        if unfinished == but:
            continue
        if unfinished.is_dir() and not unfinished.is_symlink():
            shutil.rmtree(unfinished)
        else:
            unfinished.unlink()


def load_run(
    out: Path, model: Pretrained, config: TrainConfig, batches: Batches, ranks: Ranks, *, resume: bool
) -> tuple[Path | None, TrainState]:
    """Load the weights of the latest checkpoint in `out`, and return its folder and state; without one those of step 0.

    A `ValueError` names an option that must not change, the data, or the base of an adapter, if they differ from those
    of the checkpoint.
    """
    ranks.on_main(lambda: remove_unfinished(out))
    checkpoint = ranks.on_main(lambda: checkpoint_to_resume(out, resume))
    if checkpoint is None:
        return None, TrainState(0, 0.0, {})
    state = read_state(checkpoint)
    before, now = (_fixed(TrainConfig().to_dict() | settings) for settings in (state.settings, config.to_dict()))
    names = [name for name in _FIXED_OPTIONS if before[name] != now[name]]
    if changed := [f"{name} was {shown(before[name])} and is {shown(now[name])}" for name in names]:
        raise ValueError(f"{checkpoint}: cannot resume: {'; '.join(changed)}")
    if state.data not in ("", batches.fingerprint):
        raise ValueError(
            f"{checkpoint}: cannot resume: the data was {state.data:.1000} and is {batches.fingerprint}; "
            "begin a new run from its weights to train on other data"
        )
    if state.base not in ("", base := ranks.on_main(lambda: base_fingerprint(model))):
        raise ValueError(
            f"{checkpoint}: cannot resume: the fingerprint of the frozen weights was {state.base} and is {base}; "
            "expected the same base model below the adapter"
        )
    load_weights(checkpoint, model)
    return checkpoint, state


def base_fingerprint(model: Pretrained) -> str:
    """Return a hash of the weights below adapters, which a checkpoint does not hold; empty without adapters.

    It is of about 64 values of each, spread evenly and rounded to bfloat16, the dtype in which a GPU may hold them.
    """
    if not lora.names(model):
        return ""
    own = _learned_by_adapters(model)
    layers = (module for module in model.modules() if isinstance(module, QuantizedLinear))
    quantized = (buffer for layer in layers for buffer in layer.buffers())
    frozen = [*(weight.detach() for weight in model.parameters() if id(weight) not in own), *quantized]
    sampled = (values.flatten()[:: max(1, values.numel() // 64)].to(torch.bfloat16) for values in frozen)
    return short_hash(*(values.view(torch.int16).cpu().numpy() for values in sampled))


def _fixed(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the options that must not change, with what `document_mask` stands for where it is None."""
    masks = masks_documents(settings["document_mask"], settings["packing"])
    return {name: settings[name] for name in _FIXED_OPTIONS} | {"document_mask": masks}


def read_state(folder: Path) -> TrainState:
    """Return the state of the run that saved `folder`; a missing or damaged file is a `ValueError`."""
    path = folder / "training.json"
    with _reading(folder):
        values: dict[str, Any] = {"skipped": 0, "recent": [], "data": "", "base": ""} | read_json_object(path)
    recent = values["recent"]
    numbers = recent if isinstance(recent, list) and len(recent) <= len(Recent._fields) else [recent]
    for name, value in (("elapsed", values.get("elapsed")), *(("recent", number) for number in numbers)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise ValueError(f"{path}: {name} is {shown(value)}; expected finite numbers")
    for name, value in (("step", values.get("step")), ("skipped", values["skipped"])):
        if type(value) is not int or not 0 <= value < 1 << 53:
            raise ValueError(f"{path}: {name} is {shown(value)}; expected an integer of at least 0, below 2**53")
    if not isinstance(values.get("settings"), dict):
        raise ValueError(f"{path}: settings is {shown(values.get('settings'))}; expected an object")
    for name in ("data", "base"):
        if not isinstance(values[name], str):
            raise ValueError(f"{path}: {name} is {shown(values[name])}; expected a fingerprint")
    step, elapsed, settings = values["step"], float(values["elapsed"]), values["settings"]
    return TrainState(step, elapsed, settings, values["skipped"], Recent(*numbers), values["data"], values["base"])


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn an error of a file into one that names the checkpoint."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: not a complete checkpoint: {error}") from None


def load_optimizer_state(folder: Path, model: Pretrained, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimizer's state of `folder`, which any number of ranks wrote, for the weights of `model`.

    A `ValueError` says if a file is missing, damaged or does not match the model; likewise `load_weights`.
    """
    whole, shards = folder / f"{_OPTIMIZER}.safetensors", folder / _OPTIMIZER
    with _reading(folder):
        if shards.is_dir() or any(hasattr(weight, "to_local") for weight in model.parameters()):  # the model is sharded
            tensors = load_shards(shards if shards.is_dir() else whole, model)
        else:
            tensors = read_all(whole)
    load_optimizer_tensors(model, optimizer, tensors)


def load_weights(folder: Path, model: Pretrained) -> None:
    """Load the weights of `folder`, or its adapters, into the model."""
    for name, place in _adapter_folders(model, folder).items():
        lora.restore(model, place, name)
    if lora.names(model):
        return
    path, tied = folder / "model.safetensors", {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    with _reading(folder):
        found = {name: tensor.shape for name, tensor in stored_in(path).items() if name not in tied}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    check_shapes(found, expected, f"{folder}: the checkpoint is of another model")
    fill(model, read(path, found))


def _adapter_folders(model: Pretrained, folder: Path) -> dict[str, Path]:
    """Return the folder of each adapter in a checkpoint, in peft's layout."""
    return {name: folder if name == "default" else folder / name for name in lora.names(model)}


def _learned_by_adapters(model: Pretrained) -> set[int]:
    """Return the identities of the weights of all adapters, active or not."""
    layers = [layer for _, layer in lora.adapted_layers(model)]
    return {id(weight) for layer in layers for name in layer.names() for weight in layer.learned(name)}


def check_trainable(model: Pretrained, predicts_text: bool = True) -> None:
    """Raise `ValueError` unless a checkpoint would hold all that is trained, and a model for text is a causal LM."""
    if predicts_text and "score" in dict(model.named_children()):
        raise ValueError(f"the model is a {type(model).__name__}; expected a LlamaForCausalLM, which predicts text")
    layers = [layer for _, layer in lora.adapted_layers(model)]
    if any(layer.unmerged is not None for layer in layers):
        raise ValueError("adapters are merged into the weights; unmerge them, or remove them, before training")
    own = _learned_by_adapters(model)
    beside = [name for name, weight in model.named_parameters() if weight.requires_grad and id(weight) not in own]
    if layers and beside:
        raise ValueError(
            f"{', '.join(beside[:4])}: trained beside adapters, whose files cannot hold it; expected it frozen, or its "
            "module in the adapter's modules_to_save"
        )
