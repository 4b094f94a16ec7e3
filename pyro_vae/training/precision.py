"""Networks in bfloat16, in training alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["Precision", "in_bfloat16"]

Precision = Literal["float32", "bfloat16"]

LAYERS = {
    functional.linear, functional.conv1d, functional.conv2d, functional.conv3d,
    functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d,
}  # fmt: skip
"""The functions in which networks spend their time."""


def in_bfloat16(program: Callable[..., Any]) -> nn.Module:
    """Return the program with its linear and convolutional layers in bfloat16.

    What comes out of a layer is float32 again, as are parameters and their gradients: densities, which lose nats in
    bfloat16, are computed as ever.
    """
    return _InBfloat16(program)


class _InBfloat16(nn.Module):
    def __init__(self, program: Callable[..., Any]) -> None:
        super().__init__()
        self.program = program

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Layers():
            return self.program(*args, **kwargs)


class _Layers(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in LAYERS or args[0].dtype != torch.float32:
            return func(*args, **kwargs)
        return func(*map(_lower, args), **{name: _lower(value) for name, value in kwargs.items()}).float()


def _lower(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) else value
