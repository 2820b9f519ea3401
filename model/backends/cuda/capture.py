"""Captures what a program launches as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Outputs = TypeVar("Outputs")


def captured(
    program: Callable[[], Outputs], device: torch.device, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, Outputs]:
    """Return a graph that replays a program, and the program's outputs, in memory that each replay overwrites.

    The program runs once before the capture, which compiles its kernels: a capture must not. It reads its inputs from
    tensors that stay, and waits for nothing.

    Args:
        program: Launches kernels on the current stream.
        device: A CUDA device.
        pool: Memory of `torch.cuda.graph_pool_handle` that several graphs share, if the outputs of one are used before
            another is replayed.

    Raises:
        RuntimeError: If the program does what a capture cannot hold, or memory is used up.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        warm_up = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            program()
        torch.cuda.current_stream().wait_stream(warm_up)
        # Other threads may allocate meanwhile, which the default mode takes for an error of this one.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = program()
    return graph, outputs
