"""Pyro's SVI, which asks an objective for an update."""

from __future__ import annotations

from typing import Any

from pyro import infer
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from pyro.util import warn_if_nan

from pyro_vae.objectives.base import Objective
from pyro_vae.optim import FusedAdam

__all__ = ["SVI"]


class SVI(infer.SVI):
    """Pyro's `SVI`, with a step as one compiled graph where objective and optimizer make it possible.

    With an `Objective` of this package and a `FusedAdam`, `step` asks the objective for value, gradient and update at
    once (`Objective.update`). With all others, and as long as there is no graph, it is Pyro's own step: the objective's
    gradients, then the optimizer.

    Args:
        model, guide, optim, loss, kwargs: as in `pyro.infer.SVI`.

    Examples:
        >>> import pyro, torch
        >>> import pyro_vae as pv
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=x)
        >>> svi = pv.SVI(model, lambda x: None, pv.FusedAdam({"lr": 0.1}), pyro.infer.Trace_ELBO())
        >>> svi.step(torch.zeros(3)) > 0
        True
    """

    def __init__(self, model: Any, guide: Any, optim: PyroOptim, loss: ELBO, **kwargs: Any) -> None:
        super().__init__(model, guide, optim, loss, **kwargs)
        can_update = isinstance(loss, Objective) and type(optim) is FusedAdam
        self.objective = loss if can_update else None

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Take a step; return the loss, nats, summed over the data."""
        found = None
        if self.objective is not None:
            found = self.objective.update(self.model, self.guide, self.optim, *args, **kwargs)
        if found is None:
            return super().step(*args, **kwargs)
        number = found[1].item()
        warn_if_nan(number, "loss")
        return number
