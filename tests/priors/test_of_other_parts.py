"""Priors that depend on the context, and on the posterior."""

import pytest
import torch

import pyro_vae as pv


def conditional(prior_network, shape):
    return pv.VAE(
        pv.priors.ConditionalNormal(prior_network),
        pv.likelihoods.Gaussian(pv.nn.MLP(2 + 1, [], 3)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(3 + 1, [], 2 * 2)),
        context_shapes=[shape],
    )


def test_a_scalar_context():
    """A network of scalars gives what one of width one gives of a column."""
    torch.manual_seed(0)
    network = pv.nn.MLP((), [4], 2 * 2)
    of_column = pv.nn.MLP(1, [4], 2 * 2)
    of_column.load_state_dict(network.state_dict())
    context = torch.randn(5)
    vae = conditional(network, ())
    assert torch.equal(network(context), of_column(context[:, None]))
    assert vae.prior(context).batch_shape == (5,)
    evidence = pv.importance_sampling(vae.model, vae.guide, vae.sample(5, context), context, num_samples=10)
    assert evidence.log_evidence.shape == (5,)


def test_a_network_that_takes_a_scalar_for_a_row_is_refused():
    """One row of width one cannot be told from one scalar."""
    with pytest.raises(ValueError, match="prior.*: expected a distribution for an input of shape .2,.; got an error"):
        conditional(pv.nn.MLP(1, [4], 2 * 2), ())


def test_a_vamp_prior_has_the_precision_of_its_posterior():
    posterior = pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2)).double()
    vae = pv.VAE(
        pv.priors.VampPrior(posterior, torch.zeros(4, 3, dtype=torch.float32), learn_shares=True),
        pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3)).double(),
        posterior,
    )
    assert vae.sample(2).dtype == torch.float64
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float64}
