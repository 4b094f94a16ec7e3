"""Models without a guide, and all data as one datum, against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from truths import LinearGaussian, assert_within

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("float64")
ESTIMATORS = {
    "importance sampling": pv.importance_sampling,
    "laplace": lambda *pair, **options: pv.importance_sampling(*pair, proposal="laplace", **options),
    "ais": pv.ais,
    "log_evidence": pv.log_evidence,
}
each = pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS)


@each
def test_without_a_guide(estimate):
    truth = LinearGaussian(latent_dim=1, data_dim=2)
    vae = truth.vae()
    x = truth.draw(8)
    options = {"num_samples": 4000} if estimate is pv.importance_sampling else {}
    assert_within(estimate(vae.model, None, x, **options), truth.log_evidence(x))


def regression(x, y, prior_scale=1.0):
    """Weights that all data share."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), prior_scale).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((w * x).sum(-1), 0.5), obs=y)


def regression_data(num_data=12):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(num_data, 2, generator=generator)
    return x, x @ torch.tensor([0.7, -0.4]) + 0.5 * torch.randn(num_data, generator=generator)


def regression_evidence(x, y, prior_scale=1.0):
    covariance = prior_scale**2 * x @ x.T + 0.25 * torch.eye(len(x))
    return dist.MultivariateNormal(torch.zeros(len(x)), covariance).log_prob(y)


@pytest.mark.one_in(3)
@each
def test_a_regression(estimate):
    x, y = regression_data()
    options = {"num_samples": 20_000} if estimate is pv.importance_sampling else {}
    evidence = estimate(regression, None, x, y, joint=True, **options)
    assert len(evidence) == 1
    assert_within(evidence, regression_evidence(x, y))


@pytest.mark.parametrize("estimate", [pv.importance_sampling, pv.log_evidence])
def test_a_regression_by_matrix_products(estimate):
    """A vector of weights, and no dimension to its left."""
    x, y = regression_data()

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    def guide(x, y):
        precision = torch.eye(2) + 4 * x.T @ x
        loc = torch.linalg.solve(precision, 4 * x.T @ y)
        pyro.sample("w", dist.MultivariateNormal(loc, precision_matrix=precision / 1.3))

    options = {"num_samples": 300} if estimate is pv.importance_sampling else {"max_evaluations": 1500}
    with pytest.warns(UserWarning, match="as .*x @ w does not; .* one by one, which is slow"):
        evidence = estimate(model, guide, x, y, joint=True, **options)
    assert_within(evidence, regression_evidence(x, y))


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def test_automatic_guides_of_all_data(kind):
    x, y = regression_data()
    guide = kind(regression, init_scale=0.3)
    svi = SVI(regression, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(150):
        svi.step(x, y)
    for estimate in (pv.importance_sampling, pv.log_evidence):
        assert_within(estimate(regression, guide, x, y, joint=True), regression_evidence(x, y))


def test_points_are_where_the_search_for_a_gaussian_starts():
    x, y = regression_data()
    guide = AutoDelta(regression)
    svi = SVI(regression, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(150):
        svi.step(x, y)
    with pytest.warns(UserWarning, match="got AutoDelta.* Gaussians of unit variance"):
        evidence = pv.importance_sampling(regression, guide, x, y, joint=True, proposal="laplace")
    assert_within(evidence, regression_evidence(x, y))
    assert evidence.khat < 0.5


def test_points_of_a_program_without_arguments():
    def model():
        scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Exponential(scale), obs=torch.tensor(1.5))

    exact = torch.tensor(2.0 / 2.5**3).log()
    with pytest.warns(UserWarning, match="got AutoDelta"):
        assert_within(pv.log_evidence(model, AutoDelta(model), joint=True), exact)


def binomials(reads, sizes, latent):
    """Successes of so many trials each, of which there are noisy readings."""
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(reads)):
        pyro.sample("y", dist.Normal(pyro.sample("z", latent(sizes, p)).to(reads), 1.0), obs=reads)


def listed_binomial(sizes, p):
    """The binomial as a Categorical, whose list of values is the same for all data."""
    counts = torch.arange(sizes.max() + 1)
    size = sizes[:, None]
    log_prob = dist.Binomial(size, p[..., None], validate_args=False).log_prob(counts)
    return dist.Categorical(logits=log_prob.masked_fill(counts > size, -torch.inf))


def test_binomials_of_unequal_sizes():
    """They have no common list of values to sum over; the error says so, and what it says to do gives log p(x)."""
    reads, sizes = torch.tensor([3.0, 6.0, 2.0]), torch.tensor([5.0, 9.0, 4.0])

    def guide(reads, sizes, latent):
        pyro.sample("p", dist.Beta(4.0, 4.0))

    with pytest.raises(ValueError, match="one list of values .*Inhomogeneous total count.* as a Categorical"):
        pv.log_evidence(binomials, guide, reads, sizes, dist.Binomial, joint=True)
    p = (torch.arange(1000) + 0.5) / 1000
    each = dist.Normal(torch.arange(10.0), 1.0).log_prob(reads[:, None])
    each = (listed_binomial(sizes, p[:, None]).logits + each).logsumexp(-1).sum(-1)
    exact = (dist.Beta(2.0, 2.0).log_prob(p) + each).logsumexp(0) - math.log(1000)
    assert_within(pv.log_evidence(binomials, guide, reads, sizes, listed_binomial, joint=True), exact)


def test_a_bayes_factor():
    x, y = regression_data()
    narrow, wide = (
        pv.log_evidence(regression, None, x, y, joint=True, kwargs={"prior_scale": scale}) for scale in (1.0, 20.0)
    )
    exact = regression_evidence(x, y) - regression_evidence(x, y, 20.0)
    assert pv.compare(narrow, wide).mean == pytest.approx(exact.item(), abs=0.1)


@pytest.mark.one_in(3)
@each
def test_a_coin_of_all_data(estimate):
    """Beta-Binomial."""
    counts, sizes = torch.tensor([3.0, 5.0, 1.0]), torch.tensor([8.0, 9.0, 7.0])

    def model(counts, sizes):
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        with pyro.plate("data", len(counts)):
            pyro.sample("x", dist.Binomial(sizes, p), obs=counts)

    def log_beta(a, b):
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

    choose = torch.lgamma(sizes + 1) - torch.lgamma(counts + 1) - torch.lgamma(sizes - counts + 1)
    a, b = torch.tensor(2.0), torch.tensor(3.0)
    exact = choose.sum() + log_beta(a + counts.sum(), b + (sizes - counts).sum()) - log_beta(a, b)
    assert_within(estimate(model, None, counts, sizes, joint=True), exact)


@each
def test_mean_and_variance_of_all_data(estimate):
    """Normal-inverse-gamma."""
    x = torch.tensor([0.3, 1.2, -0.4, 0.8, 1.9])
    a, b, kappa = 3.0, 2.0, 0.5

    def model(x):
        variance = pyro.sample("variance", dist.InverseGamma(a, b))
        mean = pyro.sample("mean", dist.Normal(0.0, (variance / kappa).sqrt()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, variance.sqrt()), obs=x)

    n, mean = len(x), x.mean()
    kappa_n, a_n = kappa + n, a + n / 2
    b_n = b + 0.5 * (x - mean).square().sum() + kappa * n * mean**2 / (2 * kappa_n)
    exact = (
        math.lgamma(a_n) - math.lgamma(a) + a * math.log(b) - a_n * b_n.log()
        + 0.5 * math.log(kappa / kappa_n) - n / 2 * math.log(2 * math.pi)
    )  # fmt: skip
    options = {"num_samples": 4000} if estimate is pv.importance_sampling else {}
    assert_within(estimate(model, None, x, joint=True, **options), exact)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_a_guide_on_one_of_two_modes(side):
    """a, b ~ N(0, 5^2), and each x from one or the other: modes with a and b exchanged, of unequal weights."""
    weights = torch.tensor([0.45, 0.55])
    x = torch.cat([torch.randn(9, generator=torch.Generator().manual_seed(0)) + middle for middle in (2.0, 7.0)])

    def log_likelihood(a, b):
        each = [w.log() + dist.Normal(m[..., None], 1.0).log_prob(x) for w, m in zip(weights, (a, b), strict=True)]
        return torch.logaddexp(*each).sum(-1)

    def model(x):
        a, b = (pyro.sample(name, dist.Normal(0.0, 5.0)) for name in "ab")
        pyro.factor("x", log_likelihood(a, b))

    def guide(x):
        for name, sign in (("a", -side), ("b", side)):
            pyro.sample(name, dist.Normal(4.5 + 2.5 * sign, 0.4))

    grid = torch.linspace(-15, 15, 601)
    a, b = torch.meshgrid(grid, grid, indexing="ij")
    log_joint = log_likelihood(a, b) + sum(dist.Normal(0.0, 5.0).log_prob(each) for each in (a, b))
    exact = log_joint.flatten().logsumexp(0) + 2 * math.log(grid[1] - grid[0])
    evidence = pv.log_evidence(model, guide, x, joint=True)
    assert (evidence.log_evidence - exact).abs() < 4.5 * evidence.std_error + 1e-3  # by chance 7e-6
    assert evidence.std_error < 0.1  # each mode has a tenth of the mass at least
