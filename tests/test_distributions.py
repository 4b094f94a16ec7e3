"""Distributions that Pyro lacks, against scipy's and against exact sums and integrals."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from laws import LIKELIHOODS

import pyro_vae as pv
from pyro_vae.distributions import (
    Beta,
    Concatenated,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Incomplete,
    Multinomial,
    NegativeBinomial,
)

pytestmark = pytest.mark.usefixtures("float64")

LOGITS = [0.0, 1e-8, -1e-3, 0.04, 0.11, -0.3, 3.0, -30.0, 700.0]


@pytest.mark.parametrize("logit", LOGITS)
def test_the_continuous_bernoulli_integrates_to_one(logit):
    """And has its mean: by quadrature with the logarithm of the largest density taken out."""
    distribution = ContinuousBernoulli(torch.tensor(logit))
    peak = distribution.log_prob(distribution.mode).item()

    def density(x):
        return math.exp(distribution.log_prob(torch.tensor(x)).item() - peak)

    points = [0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999]
    mass, _ = scipy.integrate.quad(density, 0, 1, points=points, epsabs=1e-14)
    mean, _ = scipy.integrate.quad(lambda x: x * density(x), 0, 1, points=points, epsabs=1e-14)
    assert math.log(mass) + peak == pytest.approx(0, abs=1e-9) and math.log(1.01 * mass) + peak != pytest.approx(
        0, abs=1e-9
    )
    assert distribution.mean.item() == pytest.approx(mean / mass, abs=1e-9)


@pytest.mark.parametrize("logit", LOGITS)
def test_the_variance_of_the_continuous_bernoulli_is_the_slope_of_its_mean(logit):
    """In float32 too; the twin is the variance of another logit."""
    at = torch.tensor(logit, requires_grad=True)
    (slope,) = torch.autograd.grad(ContinuousBernoulli(at).mean, at)
    for dtype in (torch.float32, torch.float64):
        variance = ContinuousBernoulli(at.detach().to(dtype)).variance.item()
        assert variance == pytest.approx(slope.item(), rel=1e-5, abs=1e-9)
    if abs(logit) >= 0.3:
        assert ContinuousBernoulli(1.1 * at.detach()).variance.item() != pytest.approx(slope.item(), rel=1e-5, abs=1e-9)


def test_the_continuous_bernoulli_loses_no_digit_near_zero():
    """In float32, to float64's value; the twin is torch's distribution."""
    logits = torch.linspace(-0.2, 0.2, 401)
    exact = ContinuousBernoulli(logits).log_prob(torch.tensor(0.25))
    single = ContinuousBernoulli(logits.float()).log_prob(torch.tensor(0.25, dtype=torch.float32)).double()
    of_torch = torch.distributions.ContinuousBernoulli(logits=logits.float())
    twin = of_torch.log_prob(torch.tensor(0.25, dtype=torch.float32)).double()
    assert (single - exact).abs().max() < 2e-7
    assert not (twin - exact).abs().max() < 2e-7


@pytest.mark.parametrize("logit", [-40.0, -2.0, 0.0, 1e-5, 0.5, 200.0])
def test_draws_of_the_continuous_bernoulli_have_its_mean(logit):
    """Within 4.5 standard errors of 20,000 draws (7 in a million by chance for each); the twin is moved by as much."""
    distribution = ContinuousBernoulli(torch.tensor(logit))
    draws = distribution.sample((20_000,))
    error = 4.5 * draws.std().item() / math.sqrt(len(draws))
    assert draws.min() >= 0 and draws.max() <= 1
    assert (
        abs(draws.mean().item() - distribution.mean.item())
        < error
        < abs(draws.mean().item() - distribution.mean.item() + 2 * error)
    )


def test_levels_sum_to_one_and_take_the_tails():
    """Also far outside and with a scale far below a bin's width."""
    loc = torch.tensor([-5.0, -1.0, 0.1, 0.9, 7.0])[:, None]
    levels = DiscretizedLogistic(loc, torch.tensor([1e-3, 0.01, 0.5, 20.0]), num_levels=256)
    values = torch.arange(256.0).reshape(-1, 1, 1)
    log_probs = levels.log_prob(values)
    assert torch.allclose(log_probs.logsumexp(0), torch.zeros(5, 4), atol=1e-12)
    assert torch.allclose(levels.mean, (values * log_probs.exp()).sum(0), atol=1e-9)
    assert torch.equal(levels.mode, log_probs.argmax(0).double())


def test_levels_are_differences_of_scipys_distribution_function():
    loc, scale, last = 0.2, 0.3, 7
    levels = DiscretizedLogistic(torch.tensor(loc), torch.tensor(scale), num_levels=last + 1)
    edges = np.concatenate([[-np.inf], (2 * np.arange(1, last + 1) - 1) / last - 1, [np.inf]])
    expected = np.diff(scipy.stats.logistic(loc, scale).cdf(edges))
    assert levels.log_prob(torch.arange(last + 1.0)).exp().numpy() == pytest.approx(expected)
    drawn = levels.sample((20_000,))
    counts = torch.bincount(drawn.long(), minlength=last + 1)
    assert scipy.stats.chisquare(counts.numpy(), 20_000 * expected).pvalue > 1e-5


def test_the_multinomial_is_scipys_and_knows_its_total():
    total, probs = torch.tensor([3.0, 7.0]), torch.tensor([0.2, 0.5, 0.3])
    counts = Multinomial(total, probs.log().expand(2, 3))
    x = torch.tensor([[1.0, 2.0, 0.0], [3.0, 3.0, 1.0]])
    expected = [
        float(scipy.stats.multinomial(int(n), probs.numpy()).logpmf(row.numpy()))
        for n, row in zip(total, x, strict=True)
    ]
    assert counts.log_prob(x).numpy() == pytest.approx(expected)
    assert counts.log_prob(x.flip(0)).tolist() == [-math.inf, -math.inf]
    draws = counts.sample((20_000,))
    assert torch.equal(draws.sum(-1), total.expand(20_000, 2))
    assert (draws.mean(0) - counts.mean).abs().max() < 4.5 * draws.std(0).max() / math.sqrt(20_000)


def test_a_beta_refuses_its_ends():
    support = Beta(torch.tensor(2.0), torch.tensor(3.0)).support
    assert support.check(torch.tensor([0.0, 1e-9, 0.5, 1.0])).tolist() == [False, True, True, False]


def test_parts_side_by_side():
    parts = [dist.Normal(torch.zeros(4, 2), 1.0).to_event(1), dist.Bernoulli(torch.full((4, 3), 0.3)).to_event(1)]
    both = Concatenated(parts)
    x = torch.cat([torch.randn(4, 2), torch.ones(4, 3)], -1)
    assert torch.allclose(both.log_prob(x), parts[0].log_prob(x[:, :2]) + parts[1].log_prob(x[:, 2:]))
    assert both.support.check(x).all() and not both.support.check(x + 0.5).any()
    assert both.sample((6,)).shape == (6, 4, 5) and not both.has_rsample


class Silent(dist.Normal):
    """A distribution that does not know its variance."""

    @property
    def variance(self):
        raise NotImplementedError


def test_variances_side_by_side():
    parts = [dist.Normal(torch.zeros(2), 3.0).to_event(1), Silent(torch.zeros(1), 1.0).to_event(1)]
    variance = Incomplete(Concatenated(parts)).variance
    assert variance[:2].tolist() == [9.0, 9.0]
    assert variance[2].isnan()  # its distribution does not say


FAR_FROM_ZERO = {
    "uniform": dist.Uniform(torch.tensor([2.0, 5.0]), torch.tensor([3.0, 9.0])),
    "Pareto": dist.Pareto(torch.tensor([4.0, 8.0]), torch.tensor(0.5)),
    "log-normal": dist.LogNormal(torch.zeros(2), 1.0),
    "Beta": Beta(torch.ones(2), 2 * torch.ones(2)),
    "negative binomial": dist.NegativeBinomial(torch.ones(2), logits=torch.zeros(2)),
    "levels": DiscretizedLogistic(torch.zeros(2), torch.ones(2), num_levels=7),
}


@pytest.mark.parametrize("name", FAR_FROM_ZERO)
def test_a_missing_entry_is_left_out_whatever_the_support(name):
    entries = FAR_FROM_ZERO[name]
    value = entries.sample()
    half = torch.where(torch.tensor([True, False]), value, torch.nan)
    with pyro.validation_enabled(True):
        found = Incomplete(entries.to_event(1), validate_args=True).log_prob(half)
    assert found == entries.log_prob(value)[0]


EXTREME = [-1e4, -50.0, 0.0, 50.0, 1e4]
SINGLE = torch.float32


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_values_and_gradients_are_finite_far_out(name):
    """Network outputs of up to 10,000, in float32, for one number of x."""
    widths: list[int] = []
    likelihood = LIKELIHOODS[name](lambda factor: widths.append(factor) or torch.nn.Identity()).float()
    z = torch.cartesian_prod(*[torch.tensor(EXTREME, dtype=SINGLE)] * widths[0]).reshape(-1, widths[0])
    x = likelihood(torch.zeros_like(z[:1])).sample()
    log_prob = likelihood(z.requires_grad_()).log_prob(x.expand(len(z), 1))
    log_prob.sum().backward()
    assert log_prob.isfinite().all() and z.grad.isfinite().all()


@pytest.mark.parametrize("shape", [0.1, 1.0, 1e3, 1e5, 1e8])
def test_a_nearly_poisson_negative_binomial_keeps_its_digits_in_float32(shape):
    """Pyro's is off by 15 nats for 765 counts of a mean of one, where r = 100,000."""
    counts = torch.tensor(np.random.default_rng(0).poisson(1.0, 765), dtype=torch.float32)
    r = torch.tensor(shape, dtype=torch.float32)
    expected = scipy.stats.nbinom.logpmf(counts.numpy(), shape, shape / (shape + 1)).sum()
    errors = {
        make: abs(make(r, logits=-r.log()).log_prob(counts).sum().item() - expected)
        for make in (NegativeBinomial, dist.NegativeBinomial)
    }
    assert errors[NegativeBinomial] < 1e-2
    if shape == 1e5:
        assert errors[dist.NegativeBinomial] > 1


def test_a_binomial_beside_real_numbers_is_fitted_and_evaluated():
    """Its support has the dimensions of its total, which those of the other parts lack."""
    net = pv.nn.MLP
    likelihood = pv.likelihoods.Product(
        pv.likelihoods.Binomial(net(2, [], 1), 3), pv.likelihoods.Gaussian(net(2, [], 1))
    )
    vae = pv.VAE(pv.priors.StandardNormal(2), likelihood, pv.posteriors.DiagonalNormal(net(2, [], 4)))
    x = torch.tensor([[2.0, 0.5]] * 6)
    pv.fit(vae, x, num_epochs=1, progress=False)
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=100)
    assert evidence.log_evidence.isfinite().all()
    with pytest.raises(ValueError, match="support"):
        pv.fit(vae, x + torch.tensor([2.0, 0.0]), num_epochs=1, progress=False)


@pytest.mark.parametrize("value", ["inverse", "banana"])
def test_a_prior_s_flow_is_autoregressive_or_not(value):
    with pytest.raises(ValueError, match="autoregressive: expected"):
        pv.priors.Flow(2, autoregressive=value)
