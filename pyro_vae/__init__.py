"""Variational autoencoders as Pyro programs, with a likelihood you can trust."""

from pyro_vae import (
    data,
    distributed,
    distributions,
    evidence,
    export,
    hub,
    likelihoods,
    nn,
    objectives,
    plots,
    posteriors,
    priors,
    training,
)
from pyro_vae.diagnostics import LatentUse, RateDistortion, latent_use, rate_distortion
from pyro_vae.evidence import (
    Bound,
    Comparison,
    Evidence,
    InferenceGap,
    Posterior,
    Sandwich,
    ais,
    bdmc,
    compare,
    importance_sampling,
    inference_gap,
    log_evidence,
    posterior_samples,
    proposals,
)
from pyro_vae.imputation import Imputation, impute
from pyro_vae.objectives.svi import SVI
from pyro_vae.optim import FusedAdam
from pyro_vae.program.check import check_program
from pyro_vae.report import write_report
from pyro_vae.training import DivergedError, History, fit, load
from pyro_vae.vae import VAE

__version__ = "0.1.0"

__all__ = [
    "SVI",
    "VAE",
    "Bound",
    "Comparison",
    "DivergedError",
    "Evidence",
    "FusedAdam",
    "History",
    "Imputation",
    "InferenceGap",
    "LatentUse",
    "Posterior",
    "RateDistortion",
    "Sandwich",
    "ais",
    "bdmc",
    "check_program",
    "compare",
    "data",
    "distributed",
    "distributions",
    "evidence",
    "export",
    "fit",
    "hub",
    "importance_sampling",
    "impute",
    "inference_gap",
    "latent_use",
    "likelihoods",
    "load",
    "log_evidence",
    "nn",
    "objectives",
    "plots",
    "posterior_samples",
    "posteriors",
    "priors",
    "proposals",
    "rate_distortion",
    "training",
    "write_report",
]
