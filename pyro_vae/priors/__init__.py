"""Priors p(z): modules whose `forward()` returns a Pyro distribution."""

from pyro_vae.priors.conditional_normal import ConditionalNormal
from pyro_vae.priors.flow import Flow
from pyro_vae.priors.mixture import GaussianMixture, VampPrior
from pyro_vae.priors.standard_normal import StandardNormal

__all__ = ["ConditionalNormal", "Flow", "GaussianMixture", "StandardNormal", "VampPrior"]
