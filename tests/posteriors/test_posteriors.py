"""Laws of posteriors."""

import pytest
import torch
from laws import LATENT_DIM, NUM_PIXELS, POSTERIORS, built, rows_are_apart

import pyro_vae as pv

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.parametrize("make", POSTERIORS.values(), ids=POSTERIORS),
]


def test_leading_dimensions_are_the_batch(make):
    z_given_x = built(make)(torch.randn(4, 5, NUM_PIXELS))
    assert z_given_x.batch_shape == (4, 5) and z_given_x.event_shape == (LATENT_DIM,)


def test_rows_are_apart(make):
    assert rows_are_apart(built(make), torch.randn(6, NUM_PIXELS))


def test_draws_carry_a_gradient(make):
    posterior = built(make)
    posterior(torch.randn(3, NUM_PIXELS)).rsample().sum().backward()
    assert all(parameter.grad is not None for parameter in posterior.parameters())


def test_extreme_networks_have_a_finite_density(make):
    """The last layer far out: no scale of zero or infinity."""
    posterior = built(make)
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter.mul_(1e3)
    z_given_x = posterior(torch.randn(5, NUM_PIXELS))
    assert z_given_x.log_prob(z_given_x.rsample()).isfinite().all()


def test_a_latent_of_another_shape_is_refused_with_a_remedy(make):
    with pytest.raises(ValueError, match="posterior: expected q.z.x. over z of shape .*give its network"):
        pv.VAE(
            pv.priors.StandardNormal(LATENT_DIM + 1),
            pv.likelihoods.Bernoulli(pv.nn.MLP(LATENT_DIM + 1, [], NUM_PIXELS)),
            built(make),
        )
