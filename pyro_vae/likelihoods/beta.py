"""Shares between 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import distributions
from pyro_vae.likelihoods._base import Form, Likelihood, PositiveNumber

__all__ = ["Beta"]


class Beta(Likelihood):
    r"""Independent numbers between 0 and 1, $x_d \sim \mathrm{Beta}(\mu_d \kappa_d, (1 - \mu_d) \kappa_d)$.

    The network gives the logit of the mean $\mu$; the concentration $\kappa$, how close x lies to it, has three forms.
    At 0 and at 1 the density is zero or infinite, so both are refused.

    Args:
        network: any module from z (and context) to the logit of each mean (`"per-pixel"`: logit and raw concentration).
        concentration: a positive number, `"learned"` or `"per-pixel"`.
        min_concentration: the floor of a learned concentration.
        concentration_shape: how many are learned: `()`, one for all, or the shape of x.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape of one datum.

    References:
        Ferrari and Cribari-Neto (2004), Beta regression for modelling rates and proportions.

    Examples:
        >>> import torch
        >>> from pyro_vae.nn import MLP
        >>> Beta(MLP(2, [8], 5))(torch.zeros(3, 2)).mean[0]
        tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000], grad_fn=<SelectBackward0>)
    """

    remedy = "map shares of 0 and 1 inside, x -> (x * (n - 1) + 0.5) / n for n observations, or use ContinuousBernoulli"

    def __init__(
        self,
        network: nn.Module,
        concentration: Form = "learned",
        min_concentration: float = 1e-2,
        concentration_shape: int | Sequence[int] = (),
    ) -> None:
        super().__init__(network)
        self.concentration, self.min_concentration = concentration, min_concentration
        self.concentration_shape = concentration_shape
        self.concentration_form = PositiveNumber("concentration", concentration, min_concentration, concentration_shape)

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """Return p(x|z)."""
        if self.concentration_form.is_from_network:
            logit, raw = self.outputs(("mean", "concentration"), z, *context)
        else:
            logit, raw = self.output(z, *context), None
        concentration = self.concentration_form(raw, beside=logit)
        tiny = torch.finfo(logit.dtype).eps
        mean = tiny + (1 - 2 * tiny) * torch.sigmoid(logit)
        return self.independent(distributions.Beta(mean * concentration, (1 - mean) * concentration), z)

    def extra_repr(self) -> str:
        return self.concentration_form.described()
