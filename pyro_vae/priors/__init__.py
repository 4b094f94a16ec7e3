"""Priors p(z): modules whose `forward()` returns a Pyro distribution."""

from pyro_vae.priors.standard_normal import StandardNormal

__all__ = ["StandardNormal"]
