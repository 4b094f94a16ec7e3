"""What the laws of each family are tested on: a new part, estimator or objective is one line here."""

from functools import partial

import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import pyro_vae as pv

LATENT_DIM, NUM_PIXELS = 2, 3


def encoder(factor):
    return encoder_of(factor * LATENT_DIM)


def encoder_of(num_outputs):
    return pv.nn.MLP(NUM_PIXELS, [4], num_outputs)


PRIORS = {
    "StandardNormal": lambda: pv.priors.StandardNormal(LATENT_DIM),
    "GaussianMixture": lambda: pv.priors.GaussianMixture(LATENT_DIM, num_components=3),
    "VampPrior": lambda: pv.priors.VampPrior(POSTERIORS["DiagonalNormal"](), torch.randn(4, NUM_PIXELS)),
    "VampPrior, shares learned": lambda: pv.priors.VampPrior(
        POSTERIORS["DiagonalNormal"](), torch.randn(4, NUM_PIXELS), learn_shares=True
    ),
    "Flow, affine": lambda: pv.priors.Flow(LATENT_DIM, num_transforms=2, hidden_dims=[4]),
    "Flow, spline": lambda: pv.priors.Flow(LATENT_DIM, "spline", num_transforms=2, hidden_dims=[4]),
    "Flow, gated": lambda: pv.priors.Flow(LATENT_DIM, "gated", num_transforms=2, hidden_dims=[4]),
    "Flow, autoregressive": lambda: pv.priors.Flow(LATENT_DIM, num_transforms=2, hidden_dims=[4], autoregressive=True),
}

LIKELIHOODS = {
    "Bernoulli": lambda decoder: pv.likelihoods.Bernoulli(decoder(1)),
    "Gaussian, constant scale": lambda decoder: pv.likelihoods.Gaussian(decoder(1), scale=0.5),
    "Gaussian, learned scale": lambda decoder: pv.likelihoods.Gaussian(decoder(1), scale="learned"),
    "Gaussian, scale per pixel": lambda decoder: pv.likelihoods.Gaussian(decoder(2), scale="per-pixel"),
    "StudentT": lambda decoder: pv.likelihoods.StudentT(decoder(1), df="learned"),
    "Laplace": lambda decoder: pv.likelihoods.Laplace(decoder(1)),
    "LogNormal": lambda decoder: pv.likelihoods.LogNormal(decoder(2), scale="per-pixel"),
    "ContinuousBernoulli": lambda decoder: pv.likelihoods.ContinuousBernoulli(decoder(1)),
    "Beta": lambda decoder: pv.likelihoods.Beta(decoder(1)),
    "Beta, concentration per pixel": lambda decoder: pv.likelihoods.Beta(decoder(2), "per-pixel"),
    "Categorical": lambda decoder: pv.likelihoods.Categorical(decoder(4), num_levels=4),
    "DiscretizedLogistic": lambda decoder: pv.likelihoods.DiscretizedLogistic(decoder(1), num_levels=16),
    "DiscretizedLogisticMixture": lambda decoder: pv.likelihoods.DiscretizedLogisticMixture(
        decoder(6), num_components=2, num_levels=16
    ),
    "Poisson": lambda decoder: pv.likelihoods.Poisson(decoder(1)),
    "Poisson, zero-inflated": lambda decoder: pv.likelihoods.Poisson(decoder(2), zero_inflated=True),
    "Binomial": lambda decoder: pv.likelihoods.Binomial(decoder(1), total_count=5),
    "NegativeBinomial": lambda decoder: pv.likelihoods.NegativeBinomial(decoder(1)),
    "NegativeBinomial, zero-inflated": lambda decoder: pv.likelihoods.NegativeBinomial(
        decoder(3), "per-pixel", zero_inflated=True
    ),
    "Product": lambda decoder: pv.likelihoods.Product(pv.likelihoods.Gaussian(decoder(1), "learned")),
}
"""From a function that makes a decoder of so many outputs a pixel. Quadrature, gradients and graphs are tested on them."""

POSTERIORS = {
    "DiagonalNormal": lambda: pv.posteriors.DiagonalNormal(encoder(2)),
    "FullRankNormal": lambda: pv.posteriors.FullRankNormal(encoder_of(5), LATENT_DIM),
    "LowRankNormal": lambda: pv.posteriors.LowRankNormal(encoder(3), LATENT_DIM),
    "NormalMixture": lambda: pv.posteriors.NormalMixture(encoder_of(10), LATENT_DIM),
    "Flow, affine": lambda: pv.posteriors.Flow(encoder_of(7), LATENT_DIM, 3, num_transforms=2, hidden_dims=[4]),
    "Flow, spline": lambda: pv.posteriors.Flow(encoder_of(7), LATENT_DIM, 3, "spline", 2, [4]),
    "Flow, autoregressive": lambda: pv.posteriors.Flow(
        encoder_of(7), LATENT_DIM, 3, num_transforms=2, hidden_dims=[4], autoregressive=True
    ),
    "Flow, inverse autoregressive": lambda: pv.posteriors.Flow(
        encoder_of(7), LATENT_DIM, 3, num_transforms=2, hidden_dims=[4], autoregressive="inverse"
    ),
    "Flow, gated inverse autoregressive": lambda: pv.posteriors.Flow(
        encoder_of(7), LATENT_DIM, 3, "gated", 2, [4], autoregressive="inverse"
    ),
    "SemiAmortizedNormal": lambda: pv.posteriors.SemiAmortizedNormal(
        pv.posteriors.DiagonalNormal(encoder(2)),
        pv.priors.StandardNormal(LATENT_DIM),
        pv.likelihoods.Gaussian(pv.nn.MLP(LATENT_DIM, [4], NUM_PIXELS)),
        LATENT_DIM,
        num_steps=2,
        step_size=0.05,
    ),
}

ESTIMATORS = {
    "importance sampling from the guide": pv.importance_sampling,
    **{
        f"importance sampling, {proposal}": lambda *pair, proposal=proposal, **options: pv.importance_sampling(
            *pair, proposal=proposal, **options
        )
        for proposal in ("inflated", "heavy-tailed", "defensive", "laplace", "gaussian")
    },
    **{
        f"AIS from {start}": lambda *pair, start=start, **options: pv.ais(
            *pair, start=start, num_temperatures=20, **options
        )
        for start in ("laplace", "gaussian", "guide", "prior")
    },
    "log_evidence": lambda *pair, **options: pv.log_evidence(*pair, tolerance=0.1, **options),
}
"""Those that are unbiased in p(x)."""

OBJECTIVES = {
    "Trace_ELBO": Trace_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "CompiledTrace_ELBO": pv.objectives.CompiledTrace_ELBO,
    "CompiledTraceMeanField_ELBO": pv.objectives.CompiledTraceMeanField_ELBO,
    "IWELBO": pv.objectives.IWELBO,
    "IWELBO, DReG": partial(pv.objectives.IWELBO, gradient="dreg"),
    "IWELBO, guide in groups": lambda num_particles=4, **options: pv.objectives.IWELBO(
        2 * num_particles, guide_groups=num_particles, **options
    ),
    "BetaELBO": pv.objectives.BetaELBO,
    "IWELBO, mixed with the ELBO": partial(pv.objectives.IWELBO, gradient="dreg", elbo_weight=0.5),
    "RenyiBound": lambda **options: pv.objectives.RenyiBound(alpha=0.3, **options),
}
"""Those whose value is -log p(x) where the guide is the exact posterior."""


def built(make):
    """A part with random weights, and biases that are not zero."""
    torch.manual_seed(5)
    part = make()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return part.to(torch.get_default_dtype())


def rows_are_apart(part, rows):
    """Whether a row's distribution is the same alone and in company."""
    together = part(rows)
    value = together.sample()
    alone = [part(row[None]).log_prob(each[None]) for row, each in zip(rows, value, strict=True)]
    return torch.allclose(together.log_prob(value), torch.cat(alone))
