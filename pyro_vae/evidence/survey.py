"""Draw 60 points from distributions wider than a proposal, to find mass that its own draws miss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.evidence.elsewhere import Elsewhere
from pyro_vae.evidence.gaussians import FullNormal, moments
from pyro_vae.evidence.laplace import LaplaceFit, fit_laplace
from pyro_vae.evidence.region import NUM_MOMENT_DRAWS, Component, Latent, Region
from pyro_vae.evidence.summits import Summits, seek_summits

__all__ = ["NUM_POINTS", "Survey", "find_modes", "find_summits", "survey"]

NUM_POINTS = 60  # in all


class Survey(NamedTuple):
    """Draws from a mixture g of densities, and their densities under the model."""

    places: Latent
    log_joint: Tensor
    """log p(x, z), `(M, N)`; -inf where it is not a number."""
    log_mixture: Tensor
    """log g(z), `(M, N)`."""
    is_everything: bool = False
    """Whether the places are all possible values, each once."""

    @property
    def log_ratio(self) -> Tensor:
        """log p(x, z) - log g(z), `(M, N)`."""
        return (self.log_joint - self.log_mixture).where(self.log_joint.isfinite(), -torch.inf)

    def at(self, columns: Tensor) -> Survey:
        """Select rows by index; places are vectors."""
        return Survey(self.places[:, columns], self.log_joint[:, columns], self.log_mixture[:, columns])

    @property
    def num_places(self) -> int:
        """M."""
        return len(self.log_joint)

    @torch.no_grad()
    def against(self, proposal: Component | None) -> Elsewhere:
        """Judge a proposal by these draws. None, one of unknown density, has NaN weights: only p(x) is compared."""
        if proposal is None:
            return Elsewhere(self.log_ratio.cpu(), torch.full_like(self.log_joint, math.nan).cpu())
        with pyro.validation_enabled(False):
            log_prob, has_density = _number(proposal.log_prob(self.places)), self.log_joint.isfinite()
            if proposal.log_weight is None:
                log_weight, log_ratio = self.log_joint - log_prob, self.log_ratio
            else:
                log_weight = _number(proposal.log_weight(self.places))
                log_ratio = log_weight + log_prob - self.log_mixture
        return Elsewhere(*(each.where(has_density, -torch.inf).cpu() for each in (log_ratio, log_weight)))


def survey(region: Any, proposals: Sequence[Component | None]) -> Survey:
    """Draw from the prior and from proposals, as they are and widened; or list all values, where they are few."""
    everything = region.everything()
    if everything is not None:
        log_joint = _number(sum(region.log_joint(everything)))
        return Survey(everything, log_joint, torch.full_like(log_joint, -math.log(len(log_joint))), True)
    components = [each for proposal in proposals if proposal is not None for each in region.widened(proposal)]
    if region.can_draw_prior:
        components.append(Component(region.draw_prior, lambda place: region.log_joint(place)[0]))
    heights = [NUM_POINTS // len(components) + (i < NUM_POINTS % len(components)) for i in range(len(components))]
    drawn = [each.draw(height) for each, height in zip(components, heights, strict=True)]
    places, inside = region.inside(region.join(drawn))
    prior, likelihood = region.log_joint(places)
    of_prior = [prior] if region.can_draw_prior else []
    each = [*(component.log_prob(places) for component in components[: len(components) - len(of_prior)]), *of_prior]
    shares = [math.log(height / NUM_POINTS) for height in heights]
    mixture = torch.stack([_number(density) + share for density, share in zip(each, shares, strict=True)]).logsumexp(0)
    log_joint = _number(prior + likelihood).where(inside, -torch.inf)
    return Survey(places, log_joint.where(~log_joint.isposinf(), -torch.inf), mixture)


def _number(log_density: Tensor) -> Tensor:
    return log_density.where(~log_density.isnan(), -torch.inf)


def find_modes(
    region: Region, seen: Survey, summits: Summits | None = None, allowance: Tensor | None = None
) -> LaplaceFit:
    """Find Laplace's Gaussians, starting at the guide's mean, and where a survey or climbs found what they leave out.

    It consumes noise of the block.
    """
    loc, _ = moments(region.draw_guide(NUM_MOMENT_DRAWS))
    return fit_laplace(region.view, loc, _prior(region, seen), seen.places, seen.log_ratio, summits, allowance)


def find_summits(region: Region, seen: Survey, log_evidence: Tensor) -> Summits:
    """Find mass that draws of the guide, which found `log_evidence`, cannot have seen; climb to it from the prior.

    It consumes noise of the block.
    """
    around = FullNormal.of(region.draw_guide(NUM_MOMENT_DRAWS))
    return seek_summits(region.view, around, _prior(region, seen), region.guide.log_prob, log_evidence)


def _prior(region: Region, seen: Survey) -> Tensor:
    """Draw from the prior; where that is not possible, return the places of a survey."""
    return region.draw_prior(NUM_MOMENT_DRAWS) if region.view.program.can_draw_prior else seen.places
