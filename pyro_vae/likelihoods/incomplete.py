"""Data of which some entries are missing."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae import distributions
from pyro_vae.distributions.incomplete import or_missing
from pyro_vae.likelihoods._base import Likelihood

__all__ = ["Incomplete"]


class Incomplete(nn.Module):
    r"""Data with NaN where an entry is missing, $p(x_o|z) = \prod_{d \in o} p(x_d|z)$, o what was observed.

    It makes a likelihood of complete data one of what was observed. A VAE with it takes NaN in x, in training and in
    all that comes after: objectives are bounds of log p(x_o), with `IWELBO` that of MIWAE, and estimators return
    log p(x_o) of each datum. Draws are complete. That an entry is missing is taken to say nothing of its value beyond
    what the observed ones say (missing at random).

    The encoder sees NaN as well: `pv.nn.WithMask` makes a network take it. With a mask beside x, write
    `torch.where(observed, x, torch.nan)`.

    Args:
        likelihood: one whose entries are independent given z; a `Product` of such, for tables of several kinds.

    Shapes: those of the likelihood.

    Raises:
        ValueError: (by the VAE) for entries that depend on each other given z.

    References:
        Mattei and Frellsen (2019), MIWAE: deep generative modelling and imputation of incomplete data sets; Nazabal,
        Olmos, Ghahramani and Valera (2020), Handling incomplete heterogeneous data using VAEs.

    Examples:
        >>> import torch
        >>> import pyro_vae as pv
        >>> _ = torch.manual_seed(0)
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(1),
        ...     Incomplete(pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3))),
        ...     pv.posteriors.DiagonalNormal(pv.nn.WithMask(pv.nn.MLP(2 * 3, [], 2))),
        ... )
        >>> x = torch.tensor([[0.5, 1.0, torch.nan], [torch.nan, torch.nan, torch.nan]])
        >>> evidence = pv.importance_sampling(vae.model, vae.guide, x, proposal=pv.proposals.Laplace())
        >>> abs(round(evidence.log_evidence[1].item(), 4))  # nothing observed
        0.0
    """

    def __init__(self, likelihood: nn.Module) -> None:
        super().__init__()
        self.likelihood = likelihood

    @property
    def remedy(self) -> str:
        """Give the likelihood's advice."""
        return getattr(self.likelihood, "remedy", Likelihood.remedy)

    @property
    def last_context(self) -> tuple[Any, str] | None:
        """Ask of the context what the likelihood asks."""
        return getattr(self.likelihood, "last_context", None)

    @property
    def support(self) -> Any:
        """What the likelihood says of its support, and NaN; None if it says nothing."""
        support = getattr(self.likelihood, "support", None)
        return None if support is None else or_missing(support)

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """Return p(x_o|z), for any o."""
        return distributions.Incomplete(self.likelihood(z, *context))
