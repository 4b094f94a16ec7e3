"""A weight of the KL term that grows in the first epochs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

__all__ = ["KLWeight"]


class KLWeight:
    r"""The weight $\beta_t = \min(1, t / T)$ of the KL term at step t of T, counted from 1."""

    def __init__(self, num_steps: int, device: torch.device) -> None:
        self.num_steps = num_steps
        self.value = torch.ones((), device=device)

    def set(self, step: int) -> None:
        """Set the weight for a step, counted from 1."""
        self.value.fill_(min(1.0, step / self.num_steps))

    def applied_to(self, program: Callable[..., Any]) -> nn.Module:
        """Return the program with the log densities of its latents times the weight."""
        return _Weighted(program, self.value)


class _Weighted(nn.Module):
    def __init__(self, program: Callable[..., Any], weight: Tensor) -> None:
        super().__init__()
        self.program = program
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _ScaleOfLatents(self.weight):
            return self.program(*args, **kwargs)


class _ScaleOfLatents(Messenger):
    """Multiply the scale of all sites that are not observed."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.weight
