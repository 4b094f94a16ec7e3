"""A compiled graph on a GPU, whose kernels are all launched by one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["can_be_captured", "captured"]

Run = Callable[..., tuple[Tensor, ...]]


def can_be_captured(tensors: Sequence[Tensor], device: torch.device) -> bool:
    """Tell whether these are on a GPU: a number that the CPU hands over would stay what it was."""
    return device.type == "cuda" and all(tensor.device == device or not tensor.numel() for tensor in tensors)


def captured(run: Run, args: Sequence[Tensor], device: torch.device) -> Run:
    """Capture what `run`, which has run before, launches on a GPU; return a function that launches it at once.

    A training step of a small network is some dozens of kernels, each shorter than the launch of the next. Random
    numbers are drawn from torch's generator, as if each kernel was launched by itself.
    """
    inputs = [arg.clone() for arg in args]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, pool=_pool(device)):
        outputs = run(*inputs)

    def launch(*args: Tensor) -> tuple[Tensor, ...]:
        assert run is not None  # what it closes over must live: the graph knows addresses and no more
        with torch.no_grad():
            for own, arg in zip(inputs, args, strict=True):
                own.copy_(arg)
            graph.replay()
            return tuple(output.clone() for output in outputs)

    return launch


@cache
def _pool(device: torch.device) -> Any:
    """The memory that graphs of a device take in turn: nothing but their outputs, which are copied, outlives a run."""
    with torch.cuda.device(device):
        return torch.cuda.graph_pool_handle()
