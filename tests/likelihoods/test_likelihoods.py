"""Laws of likelihoods."""

import math
import re

import pytest
import torch
from laws import LATENT_DIM, LIKELIHOODS, NUM_PIXELS, built, rows_are_apart

import pyro_vae as pv


def of_pixels(make, num_pixels):
    """A likelihood of so many pixels."""
    return built(lambda: make(lambda factor: pv.nn.MLP(LATENT_DIM, [4], factor * num_pixels)))


MAKE = {
    name: lambda make=make, num_pixels=NUM_PIXELS: of_pixels(make, num_pixels) for name, make in LIKELIHOODS.items()
}

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.parametrize("make", MAKE.values(), ids=MAKE),
]


def test_leading_dimensions_are_the_batch(make):
    x_given_z = make()(torch.randn(4, 5, LATENT_DIM))
    assert x_given_z.batch_shape == (4, 5) and x_given_z.event_shape == (NUM_PIXELS,)
    assert x_given_z.log_prob(x_given_z.sample()).shape == (4, 5)


def test_rows_are_apart(make):
    assert rows_are_apart(make(), torch.randn(6, LATENT_DIM))


def test_it_sums_or_integrates_to_one(make):
    """A single pixel, by summation or by quadrature; the twin is a density that is a tenth larger."""
    x_given_z = make(num_pixels=1)(torch.randn(LATENT_DIM))
    values, log_area = quadrature(x_given_z)
    inside = x_given_z.support.check(values[:, None])
    mass = (x_given_z.log_prob(values[inside][:, None]) + log_area[inside]).logsumexp(0).exp().item()
    assert mass == pytest.approx(1, abs=1e-3) != 1.1 * mass


MOST = 5.0  # standard errors of a mean: fewer than one false failure in a million


@torch.no_grad()
def test_its_moments_are_those_of_the_density(make):
    """Mean and variance of a single pixel by the same quadrature, and the mean of draws; the twins are a tenth off."""
    x_given_z = make(num_pixels=1)(torch.randn(LATENT_DIM))
    mean, variance = x_given_z.mean, x_given_z.variance
    if mean.isnan():
        pytest.skip("levels have no mean")
    values, log_area = quadrature(x_given_z)
    inside = x_given_z.support.check(values[:, None])
    mass = (x_given_z.log_prob(values[inside][:, None]) + log_area[inside]).softmax(0)
    first = (mass * values[inside]).sum()
    second = (mass * (values[inside] - first).square()).sum()
    assert first == pytest.approx(mean.item(), rel=2e-3, abs=2e-3)
    if variance.isfinite():
        assert second == pytest.approx(variance.item(), rel=2e-2) != 1.1 * second
    draws = x_given_z.sample((20_000,))
    error = MOST * draws.std() / len(draws) ** 0.5
    assert (draws.mean() - mean).abs() < error < (draws.mean() - mean - 0.1 * draws.std()).abs()


def quadrature(x_given_z):
    """Values, and the log area of each."""
    if x_given_z.support.is_discrete:
        return whole_numbers()
    is_share = not x_given_z.support.check(torch.tensor([1.5])).any()
    return unit_interval() if is_share else quantiles_about(x_given_z.sample((501,)))


def unit_interval(num=20_001, limit=36.0):
    """Shares, close together at both ends."""
    logits = torch.linspace(-limit, limit, num)
    log_slope = torch.nn.functional.logsigmoid(logits) + torch.nn.functional.logsigmoid(-logits)
    return torch.sigmoid(logits), log_slope + math.log(2 * limit / (num - 1))


def whole_numbers():
    return torch.arange(1000.0), torch.zeros(1000)


def quantiles_about(draws, num=20_001):
    """Quantiles of a Cauchy distribution about draws, whose tails are as heavy as any, and the log area of each."""
    loc, scale = draws.median(), draws.quantile(0.75) - draws.quantile(0.25)
    cauchy = torch.distributions.Cauchy(loc, scale)
    values = cauchy.icdf((torch.arange(num) + 0.5) / num)
    return values, -cauchy.log_prob(values) - math.log(num)


def test_gradients_are_those_of_finite_differences(make):
    likelihood = make()
    z = torch.randn(2, LATENT_DIM, requires_grad=True)
    x = likelihood(z).sample()
    assert torch.autograd.gradcheck(lambda z: likelihood(z).log_prob(x), z)


def test_all_parameters_matter(make):
    likelihood = make()
    x_given_z = likelihood(torch.randn(3, LATENT_DIM))
    x_given_z.log_prob(x_given_z.sample()).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in likelihood.parameters())


def test_data_outside_of_the_support_are_refused_with_a_remedy(make):
    vae = pv.VAE(
        pv.priors.StandardNormal(LATENT_DIM),
        make(),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(NUM_PIXELS, [], 2 * LATENT_DIM)),
    )
    bad = torch.full((2, NUM_PIXELS), -0.5)
    if bool(vae.likelihood(torch.zeros(1, LATENT_DIM)).support.check(bad).all()):
        assert vae.check(bad).equal(bad)
        return
    with pytest.raises(
        ValueError, match=f"x: expected values in the likelihood's support.*{re.escape(vae.likelihood.remedy)}"
    ):
        vae.check(bad)
