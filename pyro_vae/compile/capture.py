"""A compiled graph on a GPU, whose kernels are all launched by one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

__all__ = ["can_be_captured", "captured"]

Run = Callable[..., tuple[Tensor, ...]]

aten = torch.ops.aten
WAITING = {aten._linalg_check_errors.default, aten._local_scalar_dense.default, aten.nonzero.default}
"""Operations in which the CPU waits for a result, such as whether a matrix had a Cholesky factor."""


def can_be_captured(module: fx.GraphModule, tensors: Sequence[Tensor], device: torch.device) -> bool:
    """Tell whether a graph of these tensors runs on a GPU alone: what the CPU hands over would stay what it was."""
    waits = any(node.target in WAITING for node in module.graph.nodes)
    are_there = all(tensor.device == device or not tensor.numel() for tensor in tensors)
    return device.type == "cuda" and are_there and not waits


def captured(run: Run, args: Sequence[Tensor], device: torch.device) -> Run:
    """Capture what `run`, which has run before, launches on a GPU; return a function that launches it at once.

    A training step of a small network is some dozens of kernels, each shorter than the launch of the next. Random
    numbers are drawn from torch's generator, as if each kernel was launched by itself.
    """
    inputs = [arg.clone() for arg in args]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        outputs = run(*inputs)

    def launch(*args: Tensor) -> tuple[Tensor, ...]:
        assert run is not None  # what it closes over must live: the graph knows addresses and no more
        with torch.no_grad():
            for own, arg in zip(inputs, args, strict=True):
                own.copy_(arg)
            graph.replay()
            return tuple(output.clone() for output in outputs)

    return launch
