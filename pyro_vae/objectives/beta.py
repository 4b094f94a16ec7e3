"""The ELBO with another weight of its KL term."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae import _checks
from pyro_vae.objectives.base import Objective, refuse_not_reparametrized
from pyro_vae.program.masks import elements_of
from pyro_vae.program.sites import drawn_sites, sample_sites

__all__ = ["BetaELBO"]

Site = dict[str, Any]


class BetaELBO(Objective):
    r"""The ELBO with a weighted KL term and free bits, $E_q \log p(x|z) - \beta \sum_d \max(\lambda, \overline{KL}_d)$.

    $\overline{KL}_d$ is the KL divergence of latent number d from its prior, averaged over the data of a batch. For
    $\beta \ge 1$ the value is at most the ELBO, and so a lower bound of log p(x). For $\beta < 1$ it is **no bound**.
    It is reported in nats, summed over the data times their scale, with the opposite sign.

    The KL term is that of formulas where all latents have one and the guide draws them in the model's order, and of
    draws otherwise. Free bits need the formulas, for each latent number.

    Args:
        beta: the weight; the larger, the less z says about x.
        free_bits: $\lambda$, nats that each latent number may say for free, so that none is switched off early.
        kwargs: Pyro's, as of `Trace_ELBO`: `num_particles`, `vectorize_particles`, `max_plate_nesting`.

    Raises:
        TypeError, ValueError: for impossible numbers; for latents that are not reparametrized, and with free bits for
            those without a formula.

    References:
        Higgins et al. (2017), beta-VAE; Kingma et al. (2016), Improved variational inference with inverse
        autoregressive flow, appendix C.8, for free bits.

    Examples:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(1),
        ...     pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3)),
        ...     pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2)),
        ... )
        >>> history = pv.fit(vae, torch.randn(200, 3), objective=BetaELBO(beta=4.0), num_epochs=1, progress=False)
    """

    def __init__(self, beta: float = 1.0, free_bits: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.beta = _checks.not_negative("beta", beta)
        self.free_bits = _checks.not_negative("free_bits", free_bits)

    def value_and_surrogate(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return minus the weighted ELBO, twice."""
        runs = [self._run_loss(*traces) for traces in self._get_traces(model, guide, args, kwargs)]
        loss = torch.stack(runs).sum() / self.num_particles
        return loss, loss

    def _run_loss(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Tensor:
        refuse_not_reparametrized(guide_trace)
        latents = drawn_sites(guide_trace)
        observed = [site for name, site in sample_sites(model_trace) if name not in latents]
        log_likelihood = torch.stack([site["log_prob_sum"] for site in observed]).sum()
        return self.beta * self._kl(model_trace, guide_trace, latents) - log_likelihood

    def _kl(self, model_trace: poutine.Trace, guide_trace: poutine.Trace, latents: dict[str, Site]) -> Tensor:
        pairs = [(model_trace.nodes[name], site) for name, site in latents.items()]
        in_model = [name for name, _ in sample_sites(model_trace) if name in latents]
        formulas = [kl for pair in pairs if (kl := _formula(*pair)) is not None]
        if in_model != list(latents) or len(formulas) < len(pairs):
            if self.free_bits:
                raise ValueError(
                    "free_bits: expected a formula for the KL divergence of each latent, and latents in the same order "
                    f"in model and guide; got {', '.join(latents)} without; pass free_bits=0, or use DiagonalNormal."
                )
            return torch.stack([log_q["log_prob_sum"] - log_p["log_prob_sum"] for log_p, log_q in pairs]).sum()
        return torch.stack([self._floored(*pair, kl) for pair, kl in zip(pairs, formulas, strict=True)]).sum()

    def _floored(self, in_model: Site, in_guide: Site, kl: Tensor) -> Tensor:
        """Sum the KL divergence of a site's elements over the batch, and over numbers where it is above the floor."""
        if not self.free_bits:
            return _weighed(in_model, kl).sum()
        num_joined = in_guide["fn"].event_dim - elements_of(in_guide).fn.event_dim
        if math.prod(in_guide["fn"].event_shape) != math.prod(kl.shape[kl.ndim - num_joined :]):
            raise ValueError(
                f"free_bits: expected latents that are independent given x; got site {in_guide['name']!r}, a "
                f"{type(elements_of(in_guide).fn).__name__}; pass free_bits=0, or use DiagonalNormal."
            )
        batch = list(range(kl.ndim - num_joined))
        total, weight = _weighed(in_model, kl), _weighed(in_model, torch.ones_like(kl))
        total, weight = (each.sum(batch) if batch else each for each in (total, weight))
        return torch.maximum(total, self.free_bits * weight).sum()


def _formula(in_model: Site, in_guide: Site) -> Tensor | None:
    """Return the KL divergence of each element of a latent; None without a formula."""
    try:
        return kl_divergence(elements_of(in_guide).fn, elements_of(in_model).fn)
    except NotImplementedError:
        return None


def _weighed(site: Site, values: Tensor) -> Tensor:
    """Multiply by a site's scale, and by its mask."""
    mask = elements_of(site).mask
    num_joined = values.ndim - len(site["fn"].batch_shape)
    scale = site["scale"]
    if isinstance(scale, Tensor):
        scale = scale.reshape(*scale.shape, *[1] * num_joined)
    return scale_and_mask(values, scale=scale, mask=mask)
