"""What all likelihoods share."""

from __future__ import annotations

from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_vae import _checks
from pyro_vae.nn import over_leading_dims

__all__ = ["Likelihood", "ScaledLikelihood"]

ScaleForm = float | Literal["learned", "per-pixel"]


class Likelihood(nn.Module):
    """A module whose `forward(z, *context)` returns p(x|z), as a Pyro distribution over one datum x.

    z is `(..., D)`, with any leading dimensions; they are the distribution's batch shape, and all of its other
    dimensions are the event's. A VAE takes any module that keeps this contract. This base adds what likelihoods with
    one network share.

    Args:
        network: any module from z (and context) to the distribution's parameters.
    """

    remedy = "transform the data, or use a likelihood that gives them a density"
    """The advice given in the error about data outside the support."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def output(self, z: Tensor, *context: Tensor) -> Tensor:
        """Return the network's output, `(..., *shape)`."""
        return over_leading_dims(self.network, z, *context)

    @staticmethod
    def independent(distribution: Any, z: Tensor) -> dist.Distribution:
        """Make independent numbers one datum: all dimensions but the leading ones of z are the event's."""
        return distribution.to_event(len(distribution.batch_shape) - z.ndim + 1)


class ScaledLikelihood(Likelihood):
    r"""A likelihood of real numbers with a location and a scale, which takes one of three forms.

    - a number: the same constant for all pixels;
    - `"learned"`: one number for all pixels, learned with the weights;
    - `"per-pixel"`: from the network, which gives twice as many channels, locations first.

    A learned scale is $\sigma = \sigma_{min} + \mathrm{softplus}(\rho)$. Without the floor the likelihood has no upper
    bound: a pixel that never changes lets $\sigma \to 0$.

    Raises:
        TypeError, ValueError: for a scale that is neither positive nor one of the names; an odd number of channels.
    """

    def __init__(self, network: nn.Module, scale: ScaleForm, min_scale: float) -> None:
        super().__init__(network)
        self.min_scale = _checks.positive("min_scale", min_scale)
        self.scale: Any
        if isinstance(scale, str):
            self.scale = _checks.choice("scale", scale, ("learned", "per-pixel"))
        else:
            self.scale = _checks.positive("scale", scale)
        self.raw_scale = nn.Parameter(torch.zeros(())) if scale == "learned" else None

    def loc_and_scale(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return location and scale of each pixel."""
        loc = self.output(z, *context)
        if self.raw_scale is not None:
            return loc, self._above_floor(self.raw_scale)
        if self.scale == "per-pixel":
            loc, raw_scale = _halves(loc, z.ndim - 1)
            return loc, self._above_floor(raw_scale)
        return loc, self.scale

    def _above_floor(self, raw_scale: Tensor) -> Tensor:
        return self.min_scale + functional.softplus(raw_scale)

    def extra_repr(self) -> str:
        floor = f", min_scale={self.min_scale}" if isinstance(self.scale, str) else ""
        return f"scale={self.scale!r}{floor}"


def _halves(out: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    if out.shape[dim] % 2:
        raise ValueError(
            f"likelihood: expected a network with twice the channels of x (mean and scale); got {out.shape[dim]}; "
            "change its last layer."
        )
    loc, raw_scale = out.chunk(2, dim)
    return loc, raw_scale
