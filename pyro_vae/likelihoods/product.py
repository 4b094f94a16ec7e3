"""Data of several kinds side by side."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae.distributions import Concatenated
from pyro_vae.likelihoods._base import Likelihood
from pyro_vae.nn import over_leading_dims

__all__ = ["Product"]


class Product(nn.Module):
    r"""Vectors side by side, independent given z, $p(x|z) = \prod_i p_i(x_i|z)$: for tables of mixed kinds.

    Args:
        parts: likelihoods of vectors `(D_1,)`, `(D_2,)`, ..., in the order of x's columns. Each sees the context.
        trunk: a network of z and context that all parts share; they then see its output in the place of z. Without one,
            each part sees z.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape `(D_1 + D_2 + ...,)`.

    Raises:
        ValueError: for no parts, or a part whose event is no vector.

    Examples:
        Two measurements, a flag and a class of four:

        >>> import torch
        >>> from pyro_vae.likelihoods import Bernoulli, Categorical, Gaussian
        >>> from pyro_vae.nn import MLP
        >>> heads = Gaussian(MLP(8, [], 2), "learned"), Bernoulli(MLP(8, [], 1)), Categorical(MLP(8, [], 4), 4)
        >>> Product(*heads, trunk=MLP(2, [16], 8))(torch.zeros(3, 2)).event_shape
        torch.Size([4])
    """

    def __init__(self, *parts: nn.Module, trunk: nn.Module | None = None) -> None:
        super().__init__()
        if not parts:
            raise ValueError("parts: expected one likelihood or more; got none; pass them in the order of columns.")
        self.parts = nn.ModuleList(parts)
        self.trunk = trunk

    @property
    def remedy(self) -> str:
        """Give the advice of each part."""
        return "; ".join(dict.fromkeys(getattr(part, "remedy", Likelihood.remedy) for part in self.parts))

    @property
    def last_context(self) -> tuple[Any, str] | None:
        """Ask of the context what the first part does that asks for anything."""
        return next(filter(None, (getattr(part, "last_context", None) for part in self.parts)), None)

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """Return p(x|z)."""
        shared = z if self.trunk is None else over_leading_dims(self.trunk, z, *context)
        found: list[Any] = [part(shared, *context) for part in self.parts]
        for i, each in enumerate(found):
            if len(each.event_shape) != 1:
                raise ValueError(
                    f"parts[{i}]: expected a distribution over a vector; got event shape {tuple(each.event_shape)}; "
                    "flatten the output of its network."
                )
        return Concatenated(found)
