"""Variational autoencoders as Pyro programs, with a likelihood you can trust."""

from pyro_vae import data, nn, plots
from pyro_vae.diagnostics import RateDistortion, rate_distortion
from pyro_vae.evidence import Bound, Evidence, importance_sampling
from pyro_vae.likelihoods import Bernoulli, Gaussian
from pyro_vae.posteriors import DiagonalNormal
from pyro_vae.priors import StandardNormal
from pyro_vae.program import log_weights
from pyro_vae.training import DivergedError, History, fit
from pyro_vae.vae import VAE

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "Bernoulli",
    "Bound",
    "DiagonalNormal",
    "DivergedError",
    "Evidence",
    "Gaussian",
    "History",
    "RateDistortion",
    "StandardNormal",
    "data",
    "fit",
    "importance_sampling",
    "log_weights",
    "nn",
    "plots",
    "rate_distortion",
]
