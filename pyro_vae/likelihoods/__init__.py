"""Likelihoods p(x|z): modules whose `forward(z)` returns a Pyro distribution over one datum x."""

from pyro_vae.likelihoods.bernoulli import Bernoulli
from pyro_vae.likelihoods.gaussian import Gaussian

__all__ = ["Bernoulli", "Gaussian"]
