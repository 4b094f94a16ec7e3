"""Laws of priors."""

import copy

import pytest
import torch
from laws import LATENT_DIM, PRIORS, built
from truths import grid

import pyro_vae as pv

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)]


def test_shapes(make):
    prior = built(make)()
    assert prior.batch_shape == () and prior.event_shape == (LATENT_DIM,)
    assert prior.sample((5,)).shape == (5, LATENT_DIM)


@pytest.mark.one_in(2)
def test_it_integrates_to_one(make):
    """By quadrature; the twin is twice the density."""
    z, log_area = grid(LATENT_DIM, num=801, limit=40.0)
    mass = (built(make)().log_prob(z) + log_area).logsumexp(0).exp().item()
    assert mass == pytest.approx(1, abs=1e-3) != 2 * mass


def test_it_follows_its_module(make):
    prior = built(make)
    other = copy.deepcopy(prior).float()
    other.load_state_dict(prior.state_dict())
    z = torch.zeros(LATENT_DIM)
    assert other().log_prob(z.float()).item() == pytest.approx(prior().log_prob(z).item(), rel=1e-5)
    assert other().sample().dtype == torch.float32


def test_in_a_vae(make):
    vae = pv.VAE(
        built(make),
        pv.likelihoods.Bernoulli(pv.nn.MLP(LATENT_DIM, [], 4)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(4, [], 2 * LATENT_DIM)),
    )
    evidence = pv.importance_sampling(vae.model, vae.guide, vae.sample(3), num_samples=50)
    assert (evidence.log_evidence < 0).all()
