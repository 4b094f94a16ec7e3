"""Gaussians whose dimensions depend on each other, where their networks give large numbers."""

import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv


def outputs(num, size, seed):
    """Numbers of one size, of either sign, as a network gives them in float32."""
    torch.manual_seed(seed)
    return torch.nn.Parameter(size * torch.randn(num).sign())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("latent_dim", [2, 10, 50])
def test_low_rank_far_out(latent_dim, rank, seed):
    out = outputs(latent_dim * (2 + rank), 1e4, seed)
    z_given_x = pv.posteriors.LowRankNormal(torch.nn.Identity(), latent_dim, rank)(out[None])
    log_prob = z_given_x.log_prob(z_given_x.rsample())
    (gradient,) = torch.autograd.grad(log_prob.sum(), [out])
    assert log_prob.isfinite().all() and gradient.isfinite().all()


def test_without_a_bound_there_is_no_covariance():
    """So the test above can fail."""
    factor = outputs(2 * 2, 1e4, 0).view(2, 2)
    with pytest.raises(RuntimeError, match="cholesky"):
        dist.LowRankMultivariateNormal(torch.zeros(2), factor, torch.ones(2))


@pytest.mark.parametrize("latent_dim", [2, 5, 10])
def test_full_rank_far_out(latent_dim):
    out = outputs(latent_dim * (latent_dim + 3) // 2, 1e4, 0)
    z_given_x = pv.posteriors.FullRankNormal(torch.nn.Identity(), latent_dim)(out[None])
    log_prob = z_given_x.log_prob(z_given_x.rsample())
    (gradient,) = torch.autograd.grad(log_prob.sum(), [out])
    assert log_prob.isfinite().all() and gradient.isfinite().all()
