"""log p(x) of each datum, for any Pyro model and guide."""

from pyro_vae.evidence import proposals
from pyro_vae.evidence.ais import ais
from pyro_vae.evidence.auto import log_evidence
from pyro_vae.evidence.bdmc import Sandwich, bdmc
from pyro_vae.evidence.bounds import Bound
from pyro_vae.evidence.comparison import Comparison, compare
from pyro_vae.evidence.draws import Draws
from pyro_vae.evidence.gaps import InferenceGap, inference_gap
from pyro_vae.evidence.importance import importance_sampling
from pyro_vae.evidence.log_weights import log_weights
from pyro_vae.evidence.observed import Observed
from pyro_vae.evidence.plan import Plan
from pyro_vae.evidence.posterior import Posterior, posterior_samples
from pyro_vae.evidence.psis import pareto_khat
from pyro_vae.evidence.reciprocal import reciprocal_importance_sampling
from pyro_vae.evidence.result import Evidence

__all__ = [
    "Bound",
    "Comparison",
    "Draws",
    "Evidence",
    "InferenceGap",
    "Observed",
    "Plan",
    "Posterior",
    "Sandwich",
    "ais",
    "bdmc",
    "compare",
    "importance_sampling",
    "inference_gap",
    "log_evidence",
    "log_weights",
    "pareto_khat",
    "posterior_samples",
    "proposals",
    "reciprocal_importance_sampling",
]
