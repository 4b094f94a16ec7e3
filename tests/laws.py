"""What the laws of each family are tested on: a new part, estimator or objective is one line here."""

import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import pyro_vae as pv

LATENT_DIM, NUM_PIXELS = 2, 3


def encoder(factor):
    return pv.nn.MLP(NUM_PIXELS, [4], factor * LATENT_DIM)


PRIORS = {
    "StandardNormal": lambda: pv.priors.StandardNormal(LATENT_DIM),
}

LIKELIHOODS = {
    "Bernoulli": lambda decoder: pv.likelihoods.Bernoulli(decoder(1)),
    "Gaussian, constant scale": lambda decoder: pv.likelihoods.Gaussian(decoder(1), scale=0.5),
    "Gaussian, learned scale": lambda decoder: pv.likelihoods.Gaussian(decoder(1), scale="learned"),
    "Gaussian, scale per pixel": lambda decoder: pv.likelihoods.Gaussian(decoder(2), scale="per-pixel"),
}
"""From a function that makes a decoder of so many outputs a pixel. Quadrature, gradients and graphs are tested on them."""

POSTERIORS = {
    "DiagonalNormal": lambda: pv.posteriors.DiagonalNormal(encoder(2)),
}

ESTIMATORS = {
    "importance sampling from the guide": pv.importance_sampling,
    **{
        f"importance sampling, {proposal}": lambda *pair, proposal=proposal, **options: pv.importance_sampling(
            *pair, proposal=proposal, **options
        )
        for proposal in ("inflated", "heavy-tailed", "defensive", "laplace")
    },
    **{
        f"AIS from {start}": lambda *pair, start=start, **options: pv.ais(
            *pair, start=start, num_temperatures=20, **options
        )
        for start in ("laplace", "guide", "prior")
    },
    "log_evidence": lambda *pair, **options: pv.log_evidence(*pair, tolerance=0.1, **options),
}
"""Those that are unbiased in p(x)."""

OBJECTIVES = {
    "Trace_ELBO": Trace_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "CompiledTrace_ELBO": pv.objectives.CompiledTrace_ELBO,
    "CompiledTraceMeanField_ELBO": pv.objectives.CompiledTraceMeanField_ELBO,
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
