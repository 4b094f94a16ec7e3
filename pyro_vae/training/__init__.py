"""Training."""

from pyro_vae.training.fit import fit
from pyro_vae.training.history import DivergedError, History

__all__ = ["DivergedError", "History", "fit"]
