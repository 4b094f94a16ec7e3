"""log p(x) of each datum, for any Pyro model and guide."""

from pyro_vae.evidence.ais import ais
from pyro_vae.evidence.auto import log_evidence
from pyro_vae.evidence.bdmc import Sandwich, bdmc
from pyro_vae.evidence.comparison import Comparison, compare
from pyro_vae.evidence.gaps import InferenceGap, inference_gap
from pyro_vae.evidence.importance import importance_sampling
from pyro_vae.evidence.posterior import Posterior, posterior_samples
from pyro_vae.evidence.proposals import Defensive, Guide, Inflated, Laplace, Local
from pyro_vae.evidence.psis import pareto_khat
from pyro_vae.evidence.reciprocal import reciprocal_importance_sampling
from pyro_vae.evidence.result import Bound, Draws, Evidence, Observed

__all__ = [
    "Bound",
    "Comparison",
    "Defensive",
    "Draws",
    "Evidence",
    "Guide",
    "InferenceGap",
    "Inflated",
    "Laplace",
    "Local",
    "Observed",
    "Posterior",
    "Sandwich",
    "ais",
    "bdmc",
    "compare",
    "importance_sampling",
    "inference_gap",
    "log_evidence",
    "pareto_khat",
    "posterior_samples",
    "reciprocal_importance_sampling",
]
