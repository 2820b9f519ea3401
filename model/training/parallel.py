"""Ranks: the processes that train one model together, as `torchrun` starts them.

    torchrun --standalone --nproc-per-node 4 -m bpe_llama.cli pretrain tokens.npy --tokenizer tokenizer.json --out run

A micro-batch has the same rows whatever the number of ranks; each rank computes some of them. With DDP every rank holds
the whole model and gradients are summed. With FSDP2 weights, gradients and moments are sharded: each rank holds a part
and gathers a layer while it computes it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime
import functools
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bpe_llama._core import shown
from bpe_llama.model.device import resolve_device
from bpe_llama.model.layers.loss import IGNORED
from bpe_llama.model.llama import DecoderLayer
from bpe_llama.model.pretrained import Pretrained
from bpe_llama.model.training.config import TrainConfig
from bpe_llama.model.training.data.batches import Batch
from bpe_llama.model.training.step import LossFunction, Scored, TensorBatch

# How long a rank waits for others, for example while rank 0 encodes a corpus; and for rank 0 to report its own error.
TIMEOUT, ERROR_TIMEOUT = datetime.timedelta(minutes=30), datetime.timedelta(seconds=10)

Result = TypeVar("Result")
_ERROR = "bpe_llama/error"


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks; by default it is the only one, and every method returns at once.

    Attributes:
        rank: Number of this process, from 0. Rank 0 writes files and messages.
        world: Number of processes.
        device: The device of this rank.
        sharded: FSDP2 instead of DDP.
        control: Group of all ranks for small messages between CPUs, by gloo.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sharded: bool = False
    control: Any = None

    @property
    def is_main(self) -> bool:
        """Return whether this is rank 0."""
        return self.rank == 0

    def sum(self, *values: float) -> tuple[float, ...]:
        """Return the sums of the values over all ranks, in float64."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(tensor, group=self.control)
        return tuple(tensor.tolist())

    def gathered(self, value: Result) -> list[Result]:
        """Return the value of each rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value, group=self.control)
        return values

    def on_main(self, function: Callable[[], Result]) -> Result:
        """Call a function on rank 0, and return its result, or raise its ValueError or OSError, on every rank."""
        if self.world == 1:
            return function()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except (ValueError, OSError) as error:
                outcome[1] = error
        torch.distributed.broadcast_object_list(outcome, src=0, group=self.control)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    @contextlib.contextmanager
    def entered_on_main(self, context: AbstractContextManager[object]) -> Iterator[None]:
        """Enter a context on rank 0, such as a lock; the other ranks continue when it is entered."""
        with contextlib.ExitStack() as stack:
            self.on_main(lambda: bool(stack.enter_context(context)))
            yield

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.sum(0.0)

    def finish(self) -> None:
        """Wait for the other ranks and leave torch's process group, at the end of a process."""
        if self.world > 1:
            self.barrier()
            torch.distributed.destroy_process_group()

    def check_same(self, what: str, value: str) -> None:
        """Raise a `ValueError` that names a rank with another value than rank 0, on every rank."""
        first, *others = self.gathered(value)
        for rank, other in enumerate(others, start=1):
            if other != first:
                raise ValueError(f"{what} of rank {rank} is {other}, that of rank 0 {first}; expected the same")

    def rows(self, batch: Batch) -> Batch:
        """Return this rank's rows of a batch: consecutive ones, as many as another rank's or one more or fewer.

        A rank without a row has the first row as padding, so that it takes part in every pass.
        """
        if self.world == 1:
            return batch
        rows = len(batch.ids)
        if self.rank < rows:
            return batch.rows(self.rank, min(self.world, rows))
        padding = batch.rows(0, rows)
        labels, mask = np.full_like(padding.labels, IGNORED), np.zeros_like(padding.ids)
        return dataclasses.replace(padding, labels=labels, attention_mask=mask)

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, without a gradient."""
        summed = tensor.detach().clone()
        torch.distributed.all_reduce(summed)
        return summed

    def reduce(self, sums: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Return sums (n,) over all rows, and the norm of the whole gradient, from those of this rank."""
        if self.world == 1:
            return sums, norm
        *totals, squared = self.sum_tensor(torch.cat([sums.double(), norm.double().square()[None]]))
        return torch.stack(totals).float(), squared.sqrt().float() if self.sharded else norm

    @contextlib.contextmanager
    def only_main_prints(self) -> Iterator[None]:
        """Discard what the other ranks print and their warnings; errors are raised on every rank."""
        if self.is_main:
            yield
            return
        with open(os.devnull, "w", encoding="utf-8") as nowhere, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield


def is_reported_by_rank_0(error: str) -> bool:
    """Return whether rank 0, and not this rank, reports the error with which this process ends.

    The other ranks wait for rank 0 to end with the same message. One that fails alone reports its error itself.
    """
    try:
        if _world_of_environment() == 1:
            return False
        from torch.distributed.rendezvous import rendezvous

        store, rank, _ = next(rendezvous("env://", timeout=ERROR_TIMEOUT))
        if rank == 0:
            store.set(_ERROR, error)
            return False
        return bool(store.get(_ERROR).decode() == error)
    except (RuntimeError, ValueError):  # rank 0 did not come in time, or there is no torchrun
        return False


def _world_of_environment() -> int:
    """Return `WORLD_SIZE`, 1 if it is not set; of several ranks, check what torch reads with it."""
    world = _environment("WORLD_SIZE", 1, 1 << 16)
    if world > 1:
        _environment("RANK", 0, world)
        _environment("MASTER_PORT", 0, 1 << 16)
    return world


def _environment(name: str, least: int, end: int) -> int:
    """Return an environment variable that must be a number from `least` up to `end`; `least` if it is not set."""
    value = os.environ.get(name, str(least))
    if not re.fullmatch("[0-9]{1,9}", value) or not least <= int(value) < end:
        expected = f"a number from {least} to {end - 1}, as torchrun sets it"
        raise ValueError(f"the environment variable {name} is {shown(value)}; expected {expected}")
    return int(value)


def start(device: str = "auto", parallel: str = "auto") -> Ranks:
    """Return this process's place among the ranks that `torchrun` started; the options are those of `TrainConfig`.

    The first call sets up torch's default process group, by NCCL on CUDA and gloo on CPUs; it stays for later runs of
    the process. A process group that exists already is used. With several ranks `"cuda"` is the device numbered
    `LOCAL_RANK`; a device with a number, or no device for this rank, is a `ValueError`.
    """
    distributed = torch.distributed
    initialized = distributed.is_available() and distributed.is_initialized()
    world = distributed.get_world_size() if initialized else _world_of_environment()
    found = resolve_device(device)
    if world == 1:
        return Ranks(device=found)
    if found.type == "cuda":
        if device not in ("auto", "cuda"):
            raise ValueError(
                f"device is {shown(device)} for {world} ranks; expected 'auto' or 'cuda', numbered by LOCAL_RANK"
            )
        found = resolve_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(found)
    if not initialized:
        backend = "cpu:gloo,cuda:nccl" if found.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=TIMEOUT)
    control = _control_group(distributed.group.WORLD)
    return Ranks(distributed.get_rank(), world, found, parallel == "fsdp", control)


@functools.cache
def _control_group(_of: object) -> Any:
    return torch.distributed.new_group(backend="gloo", timeout=TIMEOUT)


class _Applied(nn.Module):
    """Its forward pass calls a function of the model, so that hooks of DDP and FSDP2 are around all that it does."""

    def __init__(self, model: Pretrained) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: LossFunction, batch: TensorBatch, learned: int) -> Tensor | Scored:
        """Return the result of the function."""
        return function(self.model, batch, learned)


class ReplicatedLoss:
    """A loss function whose backward pass sums the gradients of all ranks (DDP), once a step.

    Every rank is given the weights of rank 0. `uses_all`: the loss depends on every trained parameter.

    Source: Li et al. 2020, arXiv:2006.15704.
    """

    def __init__(self, model: Pretrained, loss_fn: LossFunction, *, uses_all: bool) -> None:
        self.loss_fn = loss_fn
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions also call it forward_sync_buffers
            self.ddp = nn.parallel.DistributedDataParallel(
                _Applied(model),
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=not uses_all,
            )
        self.ddp.register_comm_hook(None, lambda _, bucket: _summed(bucket))

    def __call__(self, model: Pretrained, batch: TensorBatch, learned: int) -> Tensor | Scored:
        """Return the loss of this rank's rows."""
        return self.ddp(self.loss_fn, batch, learned)


def _summed(bucket: Any) -> torch.futures.Future[Tensor]:
    """Sum gradients over ranks; DDP's default divides by their number, but losses are already divided by tokens."""
    work = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


class ShardedModel:
    """A copy of a model, of which this rank holds a part of each weight on its device (FSDP2).

    Each layer is gathered while it is computed, the other weights while a loss function is; gradients are summed over
    ranks in float32. The model itself keeps its whole weights, which must lie on the CPU; `gather` updates them.

    All ranks construct it; its attribute `model` is the copy. With a pass in bfloat16 weights are gathered in bfloat16;
    with `config.compile` each layer is compiled.

    Source: Zhao et al. 2023, arXiv:2304.11277.
    """

    def __init__(self, model: Pretrained, ranks: Ranks, config: TrainConfig) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        for weight in model.parameters():
            torch.distributed.broadcast(weight.detach(), src=0, group=ranks.control)
        shared = {id(weight): nn.Parameter(weight.detach(), weight.requires_grad) for weight in model.parameters()}
        self.model = copy.deepcopy(model, shared)  # the copy shares the weights
        self._root = _Applied(self.model)
        mesh = init_device_mesh(ranks.device.type, (ranks.world,))
        # As autocast does: products in bfloat16, embedding and residual stream in float32.
        dtype = torch.bfloat16 if config.uses_bfloat16(ranks.device.type) else None
        in_layers = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        in_root = MixedPrecisionPolicy(None, torch.float32, cast_forward_inputs=False)
        for layer in [module for module in self.model.modules() if isinstance(module, DecoderLayer)]:
            if config.compile:
                layer.compile()
            fully_shard(layer, mesh=mesh, mp_policy=in_layers)
        # Evaluations have no backward pass that would shard the root's weights again, so its forward pass does.
        fully_shard(self._root, mesh=mesh, mp_policy=in_root, reshard_after_forward=True)
        for module in self._root.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    def gathered_for(self, function: LossFunction) -> LossFunction:
        """Return a loss function of the copy, for which its weights are gathered."""
        return lambda _, batch, learned: self._root(function, batch, learned)


@torch.no_grad()
def gather(sharded: Pretrained, model: Pretrained) -> None:
    """Copy the trained weights of a `ShardedModel` into its whole model, one at a time; all ranks take part."""
    for part, whole in zip(sharded.parameters(), model.parameters(), strict=True):  # the parts are DTensors
        if whole.requires_grad:
            whole.copy_(part.full_tensor())  # type: ignore[attr-defined]
