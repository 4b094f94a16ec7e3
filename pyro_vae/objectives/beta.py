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
from pyro_vae.objectives.base import Objective, is_same_scale, refuse_not_reparametrized, refuse_unguided
from pyro_vae.program.masks import elements_of
from pyro_vae.program.refusals import refuse_points
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
        TypeError, ValueError: for impossible numbers; for latents that are not reparametrized, or points (Delta) in the
            guide alone; with free bits for those without a formula.

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

    @property
    def sums_over_rows(self) -> bool:  # type: ignore[override]
        """Free bits are those of a batch's mean."""
        return not self.free_bits

    def value_and_surrogate(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return minus the weighted ELBO, twice."""
        runs = [self._run_loss(*traces) for traces in self._get_traces(model, guide, args, kwargs)]
        loss = torch.stack(runs).sum() / self.num_particles
        return loss, loss

    def _run_loss(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Tensor:
        refuse_not_reparametrized(guide_trace)
        refuse_unguided(model_trace, guide_trace)
        refuse_points(drawn_sites(model_trace), drawn_sites(guide_trace))
        log_likelihood: Any = sum(
            site["log_prob_sum"] for name, site in sample_sites(model_trace) if name not in guide_trace
        )
        return self.beta * self._kl(model_trace, guide_trace) - log_likelihood

    def _kl(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Tensor:
        drawn = drawn_sites(guide_trace)
        latents = {name: site for name, site in sample_sites(model_trace) if name in guide_trace}
        pairs = [(site, drawn[name]) for name, site in latents.items() if name in drawn]
        formulas = [kl for pair in pairs if (kl := _formula(*pair)) is not None]
        if list(latents) != list(drawn) or len(formulas) < len(drawn):
            self._refuse_free_bits(f"got {', '.join(drawn)} without")
            return sum(site["log_prob_sum"] for site in drawn.values()) - sum(
                site["log_prob_sum"] for site in latents.values()
            )
        shared = self._shared_dims(model_trace, guide_trace)
        return torch.stack([self._floored(*pair, kl, shared) for pair, kl in zip(pairs, formulas, strict=True)]).sum()

    def _floored(self, in_model: Site, in_guide: Site, kl: Tensor, shared: set[int]) -> Tensor:
        """Sum the KL divergence of a site's elements over the batch, and over numbers where it is above the floor."""
        total = _weighed(in_model, kl)
        if not self.free_bits:
            return total.sum()
        num_joined = in_guide["fn"].event_dim - elements_of(in_guide).fn.event_dim
        if math.prod(in_guide["fn"].event_shape) != math.prod(kl.shape[kl.ndim - num_joined :]):
            self._refuse_free_bits(f"got site {in_guide['name']!r}, whose numbers depend on each other given x,")
        num_plates = kl.ndim - num_joined
        batch = [num_plates + dim for dim in shared if num_plates + dim >= 0]
        weight = _weighed(in_model, torch.ones_like(kl))
        total, weight = (each.sum(batch) if batch else each for each in (total, weight))
        return torch.maximum(total, self.free_bits * weight).sum()

    def _refuse_free_bits(self, found: str) -> None:
        if self.free_bits:
            raise ValueError(
                "free_bits: expected a formula for the KL divergence of each latent number, and latents in the same "
                f"order in model and guide; {found}; pass free_bits=0, or use DiagonalNormal."
            )


def _formula(in_model: Site, in_guide: Site) -> Tensor | None:
    """Return the KL divergence of each element of a latent; None without a formula.

    It takes one scale and one mask for both terms, which draws need not have.
    """
    if in_model["scale"] is not in_guide["scale"] and not is_same_scale(in_model["scale"], in_guide["scale"]):
        return None
    if elements_of(in_model).mask is not None and elements_of(in_guide).mask is None:
        return None
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
