"""Counts, against scipy; exposures and totals as context."""

import pytest
import scipy.stats
import torch
from torch import nn

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("float64")


def vae_of(likelihood, num_outputs=3, context_shapes=((),)):
    """A VAE of three counts whose likelihood takes one number of context."""

    class WithoutContext(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x, *context):
            return self.network(x)

    torch.manual_seed(0)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        likelihood(pv.nn.MLP(2, [], num_outputs)),
        pv.posteriors.DiagonalNormal(WithoutContext(pv.nn.MLP(3, [], 4))),
        context_shapes=context_shapes,
    )


def test_the_negative_binomial_is_scipys_and_a_gamma_poisson():
    """With mean mu and inverse dispersion r: n = r, p = r / (r + mu)."""
    likelihood = pv.likelihoods.NegativeBinomial(nn.Identity(), inverse_dispersion=2.5)
    log_mean = torch.tensor([[0.3, -1.0, 2.0]])
    x = torch.tensor([[0.0, 1.0, 12.0]])
    distribution = likelihood(log_mean)
    mean = distribution.mean
    assert torch.allclose(mean, log_mean.exp(), rtol=2e-2)  # the bound on the logarithm is smooth
    expected = scipy.stats.nbinom(2.5, (2.5 / (2.5 + mean)).numpy()).logpmf(x.numpy()).sum()
    assert distribution.log_prob(x).item() == pytest.approx(expected)
    assert torch.allclose(distribution.variance, mean + mean.square() / 2.5)


def test_each_gene_has_its_own_dispersion():
    likelihood = pv.likelihoods.NegativeBinomial(pv.nn.MLP(2, [], 3), inverse_dispersion_shape=3)
    assert likelihood.inverse_dispersion_form.raw.shape == (3,)
    x_given_z = likelihood(torch.randn(5, 2))
    x_given_z.log_prob(x_given_z.sample()).sum().backward()
    assert (likelihood.inverse_dispersion_form.raw.grad != 0).all()


def test_steps_of_one_size_take_an_inverse_dispersion_through_orders_of_magnitude():
    """At 7 it is above 500, where a softplus would be 7."""
    counts = pv.likelihoods.NegativeBinomial(pv.nn.MLP(2, [], 3), "learned")
    with torch.no_grad():
        counts.inverse_dispersion_form.raw.fill_(7.0)
        mean, variance = counts(torch.zeros(1, 2)).mean, counts(torch.zeros(1, 2)).variance
    r = mean.square() / (variance - mean)
    assert (r > 500).all() and (r < 1100).all()


def test_an_exposure_multiplies_the_mean():
    vae = vae_of(lambda network: pv.likelihoods.Poisson(network, has_exposure=True))
    z, exposure = torch.randn(4, 2), torch.tensor([1.0, 2.0, 5.0, 100.0])
    means = vae.decode(z, exposure).mean
    assert torch.allclose(means, exposure[:, None] * vae.decode(z, torch.ones(4)).mean)
    assert torch.allclose(means, vae.decode(z, exposure[:, None].expand(4, 1)[:, 0]).mean)
    x = vae.sample(4, exposure)
    evidence = pv.importance_sampling(vae.model, vae.guide, x, exposure, num_samples=50)
    assert evidence.log_evidence.isfinite().all()


def test_a_total_is_taken_from_the_context():
    vae = vae_of(lambda network: pv.likelihoods.Multinomial(network, "context"))
    total = torch.tensor([3.0, 10.0, 1.0])
    x = vae.sample(3, total)
    assert torch.equal(x.sum(-1), total)
    evidence = pv.importance_sampling(vae.model, vae.guide, x, total, num_samples=2000)
    z = vae.prior().sample((20_000,))
    for i in range(3):
        log_likelihood = vae.decode(z, total[i].expand(len(z))).log_prob(x[i])
        exact = log_likelihood.logsumexp(0) - torch.tensor(len(z)).log()
        error = (log_likelihood - exact).exp().std() / len(z) ** 0.5
        assert abs(evidence.log_evidence[i] - exact) < 4.5 * (evidence.std_error[i] ** 2 + error**2) ** 0.5


@pytest.mark.parametrize(
    ("likelihood", "num_outputs", "x", "message"),
    [
        (pv.likelihoods.Poisson, 3, -1.0, "x: expected values in the likelihood's support.*pass counts"),
        (pv.likelihoods.Poisson, 3, 0.5, "x: expected values in the likelihood's support.*pass counts"),
        (lambda n: pv.likelihoods.Binomial(n, 4), 3, 5.0, "x: expected .*whole numbers from 0 to the total"),
        (lambda n: pv.likelihoods.Categorical(n, 4), 12, 4.0, "x: expected .*number the levels 0 to 3"),
        (pv.likelihoods.Beta, 3, 1.0, "x: expected .*map shares of 0 and 1 inside"),
        (pv.likelihoods.LogNormal, 3, 0.0, "x: expected .*a logarithm needs positive numbers"),
        (pv.likelihoods.ContinuousBernoulli, 3, 200.0, "x: expected .*scale grey levels to 0 to 1"),
        (pv.likelihoods.DiscretizedLogistic, 3, 256.0, "x: expected .*whole numbers 0 to 255"),
    ],
)
def test_data_without_a_density(likelihood, num_outputs, x, message):
    vae = vae_of(likelihood, num_outputs, context_shapes=())
    with pytest.raises(ValueError, match=message):
        vae.check(torch.full((2, 3), x))


class Blind(nn.Module):
    """An encoder that sees nothing."""

    def forward(self, x, *context):
        return torch.zeros(len(x), 4)


OF_DATUM = {
    "exposure": (lambda net: pv.likelihoods.Poisson(net, has_exposure=True), [2.0, 0.0], "leave out data without"),
    "total": (lambda net: pv.likelihoods.Binomial(net, "context"), [3.5, 3.0], "pass the total"),
    "words": (lambda net: pv.likelihoods.Multinomial(net, "context"), [-1.0, 3.0], "pass the total"),
    "inside of others": (
        lambda net: pv.likelihoods.Product(pv.likelihoods.Incomplete(pv.likelihoods.Binomial(net, "context"))),
        [3.5, 3.0],
        "pass the total",
    ),
}


@pytest.mark.parametrize("name", OF_DATUM)
def test_impossible_totals_and_exposures(name):
    """Before anything is run, in training and evaluation alike."""
    make, last, message = OF_DATUM[name]
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        make(pv.nn.MLP(2, [], 3)),
        pv.posteriors.DiagonalNormal(Blind()),
        context_shapes=[()],
    )
    x, last = torch.ones(2, *vae.model.datum.event_shape), torch.tensor(last)
    for use in (
        lambda: pv.fit(vae, (x, last), num_epochs=1, progress=False),
        lambda: pv.importance_sampling(vae.model, vae.guide, x, last),
        lambda: vae.sample(2, last),
    ):
        with pytest.raises(ValueError, match=f"context.0.: expected values in the range .*{message}"):
            use()


@pytest.mark.parametrize(
    "make",
    [
        lambda net: pv.likelihoods.Gaussian(net, "learned", scale_shape=4),
        lambda net: pv.likelihoods.Beta(net, concentration_shape=4),
        lambda net: pv.likelihoods.NegativeBinomial(net, inverse_dispersion_shape=(2, 3)),
    ],
)
def test_learned_numbers_of_another_shape(make):
    with pytest.raises(ValueError, match="_shape: expected the shape of x, or .. for all .*got .*, beside"):
        make(pv.nn.MLP(2, [], 3))(torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pv.likelihoods.Categorical(nn.Identity(), 1), "num_levels: expected"),
        (pv.likelihoods.Product, "parts: expected one likelihood or more; got none"),
        (lambda: pv.likelihoods.StudentT(nn.Identity(), df="per-pixel"), 'df: expected a positive number or "learned"'),
        (lambda: pv.likelihoods.Gaussian(nn.Identity(), 0.5, scale_shape=3), "scale_shape: expected none where scale"),
        (
            lambda: pv.likelihoods.Poisson(nn.Identity(), has_exposure=True)(torch.zeros(2, 3)),
            "context: expected an exposure",
        ),
        (
            lambda: pv.likelihoods.Categorical(nn.Identity(), 4)(torch.zeros(2, 5)),
            "likelihood: expected a network with 4 times the channels of x .*got .5,.",
        ),
        (lambda: pv.priors.GaussianMixture(2, 0), "num_components: expected"),
        (
            lambda: pv.priors.VampPrior(pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 4)), torch.zeros(5, 4)),
            "pseudo_inputs: expected rows that the posterior takes as data; got shape .5, 4.",
        ),
        (pv.priors.ConditionalNormal(nn.Identity()), "context: expected what the prior depends on"),
        (lambda: pv.priors.Flow(1), "latent_dim: expected"),
        (
            lambda: pv.posteriors.FullRankNormal(pv.nn.MLP(3, [], 4), 2)(torch.zeros(1, 3)),
            "posterior: expected a network with 5 outputs for latent_dim=2; got 4",
        ),
    ],
)
def test_impossible_parts(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_mixed_table():
    """Two measurements, a flag and a class of four: each part sees its columns, and evidence is of mixed kind."""
    heads = (
        pv.likelihoods.Gaussian(pv.nn.MLP(8, [], 2), "learned"),
        pv.likelihoods.Bernoulli(pv.nn.MLP(8, [], 1)),
        pv.likelihoods.Categorical(pv.nn.MLP(8, [], 4), 4),
    )
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Product(*heads, trunk=pv.nn.MLP(2, [8], 8)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(4, [8], 4)),
    )
    x = vae.sample(5)
    assert vae.reconstruct(x).isfinite().all()
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=50)
    assert evidence.observed.kind == "mixed"
    with pytest.raises(ValueError, match="discrete"):
        _ = evidence.bits_back
    with pytest.raises(ValueError, match="x: expected"):
        vae.check(x + 0.5)
