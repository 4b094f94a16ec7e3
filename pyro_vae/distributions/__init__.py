"""Distributions that Pyro lacks, or has in a form that is not precise enough."""

from pyro_vae.distributions.beta import Beta
from pyro_vae.distributions.concatenated import Concatenated
from pyro_vae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyro_vae.distributions.discretized_logistic import DiscretizedLogistic
from pyro_vae.distributions.incomplete import Incomplete, entries_of
from pyro_vae.distributions.multinomial import Multinomial
from pyro_vae.distributions.negative_binomial import NegativeBinomial

__all__ = [
    "Beta",
    "Concatenated",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Incomplete",
    "Multinomial",
    "NegativeBinomial",
    "entries_of",
]
