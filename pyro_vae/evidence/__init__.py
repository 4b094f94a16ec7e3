"""Estimators of log p(x), for any Pyro model and guide with a plate over data."""

from pyro_vae.evidence.importance import importance_sampling
from pyro_vae.evidence.result import Bound, Evidence

__all__ = ["Bound", "Evidence", "importance_sampling"]
