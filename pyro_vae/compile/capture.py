"""A compiled graph on a GPU, whose kernels are all launched by one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

__all__ = ["Launch", "can_be_captured"]

Run = Callable[..., tuple[Tensor, ...]]

aten = torch.ops.aten
WAITING = {aten._linalg_check_errors.default, aten._local_scalar_dense.default, aten.nonzero.default}
"""Operations in which the CPU waits for a result, such as whether a matrix had a Cholesky factor."""


def can_be_captured(module: fx.GraphModule, tensors: Sequence[Tensor], device: torch.device) -> bool:
    """Tell whether a graph of these tensors runs on a GPU alone: what the CPU hands over would stay what it was."""
    waits = any(node.target in WAITING for node in module.graph.nodes)
    are_there = all(tensor.device == device or not tensor.numel() for tensor in tensors)
    return device.type == "cuda" and are_there and not waits


class Launch:
    """What a compiled graph launches on a GPU, launched at once.

    A training step of a small network is some dozens of kernels, each shorter than the launch of the next. Random
    numbers are drawn from torch's generator, as if each kernel was launched by itself.
    """

    def __init__(self, run: Run, args: Sequence[Tensor], device: torch.device) -> None:
        """Capture a run, which must have run before: the first compiles."""
        self.run = run
        """Keeps what it closes over alive: a CUDA graph knows addresses and no more."""
        self.inputs = [arg.clone() for arg in args]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(self.graph):
            self.outputs = run(*self.inputs)

    @torch.no_grad()
    def __call__(self, *args: Tensor) -> tuple[Tensor, ...]:
        for own, arg in zip(self.inputs, args, strict=True):
            own.copy_(arg)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)
