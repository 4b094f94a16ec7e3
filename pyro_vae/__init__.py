"""Variational autoencoders as Pyro programs, with a likelihood you can trust."""

from pyro_vae import data, nn, plots
from pyro_vae.compiled import CompiledTrace_ELBO, CompiledTraceMeanField_ELBO
from pyro_vae.composition import check_program
from pyro_vae.diagnostics import LatentUse, RateDistortion, latent_use, rate_distortion
from pyro_vae.evidence import (
    Bound,
    Comparison,
    Defensive,
    Evidence,
    Guide,
    InferenceGap,
    Inflated,
    Laplace,
    Local,
    Posterior,
    Sandwich,
    ais,
    bdmc,
    compare,
    importance_sampling,
    inference_gap,
    log_evidence,
    pareto_khat,
    posterior_samples,
    reciprocal_importance_sampling,
)
from pyro_vae.likelihoods import Bernoulli, Gaussian
from pyro_vae.optim import FusedAdam
from pyro_vae.posteriors import DiagonalNormal
from pyro_vae.priors import StandardNormal
from pyro_vae.tiling import log_weights
from pyro_vae.training import DivergedError, History, fit
from pyro_vae.vae import VAE

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "Bernoulli",
    "Bound",
    "Comparison",
    "CompiledTraceMeanField_ELBO",
    "CompiledTrace_ELBO",
    "Defensive",
    "DiagonalNormal",
    "DivergedError",
    "Evidence",
    "FusedAdam",
    "Gaussian",
    "Guide",
    "History",
    "InferenceGap",
    "Inflated",
    "Laplace",
    "LatentUse",
    "Local",
    "Posterior",
    "RateDistortion",
    "Sandwich",
    "StandardNormal",
    "ais",
    "bdmc",
    "check_program",
    "compare",
    "data",
    "fit",
    "importance_sampling",
    "inference_gap",
    "latent_use",
    "log_evidence",
    "log_weights",
    "nn",
    "pareto_khat",
    "plots",
    "posterior_samples",
    "rate_distortion",
    "reciprocal_importance_sampling",
]
