"""Nonlinear decoders with one and two latent dimensions, where log p(x) and the ELBO are integrals on a grid."""

import pyro
import pytest
import torch
from truths import (
    LIKELIHOODS,
    assert_unbiased,
    draws_of,
    grid,
    log_evidence_by_quadrature,
    log_joint_on_grid,
    small_vae,
)

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.one_in(10)
@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_importance_sampling_agrees_with_quadrature(likelihood, latent_dim):
    vae = small_vae(likelihood, latent_dim)
    x = draws_of(vae, 60)
    # The prior's draws times a wide guide: weights of finite variance for each of these data.
    evidence = pv.importance_sampling(vae.model, prior_guide(vae), x, num_samples=2000)
    exact = log_evidence_by_quadrature(vae, x, latent_dim)
    assert_unbiased(evidence.log_evidence, evidence.std_error, exact)
    with pytest.raises(AssertionError):
        assert_unbiased(evidence.log_evidence + 1.5 * evidence.std_error, evidence.std_error, exact)


def prior_guide(vae):
    """q(z|x) = p(z), whatever x: a guide that is no part of a VAE."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", vae.prior())

    return guide


@pytest.mark.parametrize("likelihood", [name for name in LIKELIHOODS if name.startswith(("Bernoulli", "Gaussian"))])
def test_likelihood_is_normalised(likelihood):
    """Summed over all binary images, or integrated by its own normal, p(x|z) is 1."""
    vae = small_vae(likelihood)
    p_x = vae.likelihood(torch.randn(3, 2))
    if likelihood == "Bernoulli":
        images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)
        total = torch.stack([p_x.log_prob(image) for image in images]).logsumexp(0)
        assert torch.allclose(total, torch.zeros(3), atol=1e-12)
    else:
        normal = torch.distributions.Normal(p_x.mean, p_x.variance.sqrt())
        x = torch.randn(3, 6)
        assert torch.allclose(p_x.log_prob(x), normal.log_prob(x).sum(-1))


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_evidence_is_elbo_plus_kl(latent_dim):
    """log p(x) = ELBO + KL(q(z|x) || p(z|x)), each of the three an integral of its own."""
    vae = small_vae(latent_dim=latent_dim)
    x = draws_of(vae, 10)
    z, log_cell = grid(latent_dim, limit=12.0)
    log_joint = log_joint_on_grid(vae, x, z)
    log_evidence = log_evidence_by_quadrature(vae, x, latent_dim)  # on another grid
    log_posterior = log_joint.log_softmax(0) - log_cell  # normalised by itself
    log_q = torch.stack([vae.encode(x[i : i + 1]).log_prob(z) for i in range(10)], dim=1).detach()
    q = (log_q + log_cell).exp()
    elbo = (q * (log_joint - log_q)).sum(0)
    kl = (q * (log_q - log_posterior)).sum(0)
    assert torch.allclose(log_evidence, elbo + kl, atol=1e-7)
    assert (kl > 1e-3).all()
    bound = pv.importance_sampling(vae.model, vae.guide, x, num_samples=20_000).bounds(1)
    assert ((bound.value - elbo).abs() < 4.5 * bound.std_error).all()  # fails by chance: 7e-5
    assert not ((bound.value - log_evidence).abs() < 4.5 * bound.std_error).any()


def test_gaussian_with_constant_scale_is_least_squares():
    vae = small_vae("Gaussian, constant scale")
    z, x = torch.randn(4, 2), torch.randn(4, 6)
    p_x = vae.likelihood(z)
    squares = (x - p_x.mean).square().sum(-1) / (2 * 0.5**2)
    constant = 6 * torch.tensor(0.5).log() + 3 * torch.tensor(2 * torch.pi).log()
    assert torch.allclose(-p_x.log_prob(x), squares + constant)
