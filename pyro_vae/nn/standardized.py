"""Inputs brought to zero and one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_vae import _checks

__all__ = ["Standardized"]


class Standardized(nn.Module):
    r"""A network of $(x - \mathrm{shift}) / \mathrm{scale}$, for an encoder of data that are far from zero and one.

    x itself stays as it is, and so does log p(x): only the network sees other numbers. Bytes 0 to 255, as
    `DiscretizedLogistic` takes them, come to lie between -1 and 1 by `Standardized(network, 127.5, 127.5)`.

    Args:
        network: a module of x, and of further arguments, which are passed on as they are.
        shift: a number, or a tensor that is broadcast against one datum: `(C, 1, 1)` for the channels of images.
        scale: a positive number, or a tensor of such.

    Shapes: those of the network.

    Raises:
        ValueError: for numbers that are not finite, or a scale that is not positive.

    Examples:
        >>> network = Standardized(nn.Flatten(), shift=127.5, scale=127.5)
        >>> network(torch.tensor([[0.0, 255.0]]))
        tensor([[-1.,  1.]])
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, shift: Tensor | float = 0.0, scale: Tensor | float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("shift", _numbers("shift", shift))
        self.register_buffer("scale", _numbers("scale", scale))
        if not (self.scale > 0).all():
            raise ValueError(
                f"scale: expected positive numbers; got {self.scale.min().item():g}; give a column that never changes "
                "a scale of 1."
            )

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """Return the network's output at the standardized x."""
        return self.network((x - self.shift) / self.scale, *context)

    def extra_repr(self) -> str:
        return ", ".join(f"{name} of shape {tuple(getattr(self, name).shape)}" for name in ("shift", "scale"))


def _numbers(name: str, values: Tensor | float) -> Tensor:
    return _checks.finite(name, torch.as_tensor(values, dtype=torch.get_default_dtype()).clone())
