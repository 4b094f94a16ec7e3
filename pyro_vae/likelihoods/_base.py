"""What all likelihoods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_vae import _checks
from pyro_vae.nn import over_leading_dims
from pyro_vae.nn._shared import bounded

__all__ = ["Form", "Likelihood", "PositiveNumber", "ScaledLikelihood", "bounded_exp"]

Form = float | Literal["learned", "per-pixel"]
"""Where a positive number comes from: a constant, a learned parameter, or the network."""

MAX_LOG = 20.0
"""The bound on the logarithm of a mean: e^20 is 500 million."""


def bounded_exp(raw: Tensor) -> Tensor:
    r"""Return $\exp(c \tanh(\rho / c))$, c = 20: near $e^\rho$ around zero, and never zero or infinite."""
    return bounded(raw, MAX_LOG).exp()


class Likelihood(nn.Module):
    """A module whose `forward(z, *context)` returns p(x|z), as a Pyro distribution over one datum x.

    z is `(..., D)`, with any leading dimensions; they are the distribution's batch shape, and all of its other
    dimensions are the event's. A VAE takes any module that keeps this contract. This base adds what likelihoods with
    one network share.

    Args:
        network: any module from z (and context) to the distribution's parameters. Where there are several for each
            number of x, the network gives as many times the channels: the parameters are stacked along the first
            dimension of the output.
    """

    remedy = "transform the data, or use a likelihood that gives them a density"
    """The advice given in the error about data outside the support."""

    last_context: tuple[Any, str] | None = None
    """Where the last of the context has to lie, and the advice given in the error about another; None if anywhere."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def output(self, z: Tensor, *context: Tensor) -> Tensor:
        """Return the network's output, `(..., *shape)`."""
        return over_leading_dims(self.network, z, *context)

    def outputs(self, names: Sequence[str], z: Tensor, *context: Tensor) -> tuple[Tensor, ...]:
        """Return the network's output in as many parts as there are names."""
        out, dim = self.output(z, *context), z.ndim - 1
        if out.ndim <= dim or out.shape[dim] % len(names):
            found = tuple(out.shape[dim:]) if out.ndim > dim else "no dimension but the batch's"
            raise ValueError(
                f"likelihood: expected a network with {len(names)} times the channels of x ({', '.join(names)}); got "
                f"{found}; change its last layer."
            )
        return out.chunk(len(names), dim)

    @staticmethod
    def independent(distribution: Any, z: Tensor) -> dist.Distribution:
        """Make independent numbers one datum: all dimensions but the leading ones of z are the event's."""
        return distribution.to_event(len(distribution.batch_shape) - z.ndim + 1)


class PositiveNumber(nn.Module):
    r"""A positive number of a distribution, such as its scale, in one of three forms.

    - a number: the same constant for all numbers of x;
    - `"learned"`: learned with the weights, one number for all (`shape=()`) or one for each (`shape` that of x);
    - `"per-pixel"`: from the network, which gives another set of channels, $\rho$.

    Learned and per-pixel numbers are $\sigma_{min} + \mathrm{softplus}(\rho)$. For those that span orders of magnitude
    `of` is `bounded_exp`: at steps of one size $e^\rho$ gets from 1 to 1,000 where a softplus gets from 0.7 to 7.
    """

    def __init__(
        self,
        name: str,
        form: Form,
        floor: float,
        shape: int | Sequence[int] = (),
        of: Callable[[Tensor], Tensor] = functional.softplus,
    ) -> None:
        super().__init__()
        self.name, self.of = name, of
        self.floor = _checks.positive(f"min_{name}", floor)
        self.shape = _checks.shape(f"{name}_shape", shape) if shape != () else ()
        self.form: Any = form
        if isinstance(form, str):
            _checks.choice(name, form, ("learned", "per-pixel"))
        else:
            self.form = _checks.positive(name, form)
        if self.shape and form != "learned":
            raise ValueError(
                f'{name}_shape: expected none where {name} is {form!r}; got {self.shape}; pass {name}="learned".'
            )
        self.raw = nn.Parameter(torch.zeros(self.shape)) if form == "learned" else None

    @property
    def is_from_network(self) -> bool:
        """Whether the network gives it."""
        return self.form == "per-pixel"

    def forward(self, raw: Tensor | None, beside: Tensor) -> Tensor | float:
        """Return the number, given what the network says of it, if it does, and another parameter of each entry."""
        if self.shape and not _broadcasts(self.shape, beside.shape):
            raise ValueError(
                f"{self.name}_shape: expected the shape of x, or () for all of its numbers; got {self.shape}, beside a "
                f"network's output of shape {tuple(beside.shape)}; pass the shape of one datum."
            )
        raw = self.raw if raw is None else raw
        return self.form if raw is None else self.floor + self.of(raw)

    def described(self) -> str:
        """Return the arguments that made it."""
        floor = f", min_{self.name}={self.floor}" if isinstance(self.form, str) else ""
        return f"{self.name}={self.form!r}{floor}" + (f", {self.name}_shape={self.shape}" if self.shape else "")


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether one shape is that of the last dimensions of another, up to sizes of 1."""
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


class ScaledLikelihood(Likelihood):
    r"""A likelihood of real numbers with a location and a scale, which takes one of three forms.

    - a number: the same constant for all pixels;
    - `"learned"`: learned with the weights, one number for all pixels, or one for each with `scale_shape`;
    - `"per-pixel"`: from the network, which gives twice as many channels, locations first.

    A learned scale is $\sigma = \sigma_{min} + \mathrm{softplus}(\rho)$. Without the floor the likelihood has no upper
    bound: a pixel that never changes lets $\sigma \to 0$.

    Raises:
        TypeError, ValueError: for a scale that is neither positive nor one of the names; a network whose channels
            cannot be halved.
    """

    def __init__(
        self,
        network: nn.Module,
        scale: Form = "learned",
        min_scale: float = 1e-2,
        scale_shape: int | Sequence[int] = (),
    ) -> None:
        super().__init__(network)
        self.scale, self.min_scale, self.scale_shape = scale, min_scale, scale_shape
        self.scale_form = PositiveNumber("scale", scale, min_scale, scale_shape)

    def loc_and_scale(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return location and scale of each pixel."""
        if not self.scale_form.is_from_network:
            loc = self.output(z, *context)
            return loc, self.scale_form(None, beside=loc)
        loc, raw_scale = self.outputs(("loc", "scale"), z, *context)
        return loc, self.scale_form(raw_scale, beside=loc)

    def extra_repr(self) -> str:
        return self.scale_form.described()
