"""Objectives: what training optimizes."""

from pyro_vae.objectives.base import LogWeights, Objective
from pyro_vae.objectives.compiled import CompiledTrace_ELBO, CompiledTraceMeanField_ELBO

__all__ = ["CompiledTraceMeanField_ELBO", "CompiledTrace_ELBO", "LogWeights", "Objective"]
