"""Objectives: what training optimizes."""

from pyro_vae.objectives.base import LogWeights, Objective
from pyro_vae.objectives.beta import BetaELBO
from pyro_vae.objectives.compiled import CompiledTrace_ELBO, CompiledTraceMeanField_ELBO
from pyro_vae.objectives.iwelbo import IWELBO, RenyiBound

__all__ = [
    "IWELBO",
    "BetaELBO",
    "CompiledTraceMeanField_ELBO",
    "CompiledTrace_ELBO",
    "LogWeights",
    "Objective",
    "RenyiBound",
]
