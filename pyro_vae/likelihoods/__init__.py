"""Likelihoods p(x|z): modules whose `forward(z)` returns a Pyro distribution over one datum x."""

from pyro_vae.likelihoods.bernoulli import Bernoulli
from pyro_vae.likelihoods.beta import Beta
from pyro_vae.likelihoods.categorical import Categorical
from pyro_vae.likelihoods.continuous_bernoulli import ContinuousBernoulli
from pyro_vae.likelihoods.counts import Binomial, Multinomial, NegativeBinomial, Poisson
from pyro_vae.likelihoods.discretized_logistic import DiscretizedLogistic, DiscretizedLogisticMixture
from pyro_vae.likelihoods.gaussian import Gaussian
from pyro_vae.likelihoods.incomplete import Incomplete
from pyro_vae.likelihoods.laplace import Laplace
from pyro_vae.likelihoods.log_normal import LogNormal
from pyro_vae.likelihoods.product import Product
from pyro_vae.likelihoods.student_t import StudentT

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "Incomplete",
    "Laplace",
    "LogNormal",
    "Multinomial",
    "NegativeBinomial",
    "Poisson",
    "Product",
    "StudentT",
]
