"""What several networks are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import _checks

__all__ = ["Residual", "bounded", "glorot", "vector"]


class Residual(nn.Module):
    """h + f(h)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, h: Tensor) -> Tensor:
        """Return a tensor of the shape of h."""
        return h + self.branch(h)


def bounded(raw: Tensor, bound: float) -> Tensor:
    r"""Return $c \tanh(\rho / c)$: nearly $\rho$ around zero, and never beyond c."""
    return bound * torch.tanh(raw / bound)


def glorot(layer: Any, gain: float = 1.0) -> Any:
    """Start the weights from Glorot's uniform distribution, and biases at zero."""
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def vector(name: str, values: Tensor | float, size: int) -> Tensor:
    """Return one number, or one for each of `size` outputs, as a vector."""
    flat = torch.as_tensor(values, dtype=torch.get_default_dtype()).flatten()
    if len(flat) not in (1, size):
        raise ValueError(f"{name}: expected 1 or {size} numbers; got {len(flat)}; reshape it.")
    return _checks.finite(name, flat).expand(size)
