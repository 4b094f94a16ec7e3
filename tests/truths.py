"""Models whose log p(x) is known: linear-Gaussian in closed form, and any small one by quadrature."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import LIKELIHOODS
from torch import nn

import pyro_vae as pv


def _has_compiler():
    from torch._inductor import cpp_builder

    try:
        return bool(cpp_builder.get_cpp_compiler())
    except Exception:  # of a machine without one
        return False


needs_compiler = pytest.mark.skipif(not _has_compiler(), reason="no C++ compiler is installed: nothing is compiled")

ESTIMATORS = {
    "importance sampling": pv.importance_sampling,
    "inflated": lambda *pair, **options: pv.importance_sampling(*pair, proposal="inflated", **options),
    "laplace": lambda *pair, **options: pv.importance_sampling(*pair, proposal="laplace", **options),
    "local": lambda *pair, **options: pv.importance_sampling(*pair, proposal="local", **options),
    "ais": pv.ais,
    "log_evidence": pv.log_evidence,
}
"""Of log p(x), for pairs with continuous latents."""


class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(Wz + b, scale^2 I), with its exact evidence and posterior."""

    def __init__(self, latent_dim=3, data_dim=5, scale=0.7):
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(data_dim, latent_dim, generator=generator, dtype=torch.float64)
        self.bias = torch.randn(data_dim, generator=generator, dtype=torch.float64)
        self.scale = scale
        self.precision = torch.eye(latent_dim, dtype=torch.float64) + self.weight.T @ self.weight / scale**2

    def decoder(self):
        data_dim, latent_dim = self.weight.shape
        net = pv.nn.MLP(latent_dim, [], data_dim)
        with torch.no_grad():
            net.layers[0].weight.copy_(self.weight)
            net.layers[0].bias.copy_(self.bias)
        return net

    def vae(self, posterior=None):
        latent_dim = self.weight.shape[1]
        likelihood = pv.likelihoods.Gaussian(self.decoder(), scale=self.scale)
        return pv.VAE(pv.priors.StandardNormal(latent_dim), likelihood, posterior or GaussianPosterior(self)).double()

    def draw(self, num_data, seed=2):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(num_data, self.weight.shape[1], generator=generator, dtype=torch.float64)
        noise = torch.randn(num_data, len(self.bias), generator=generator, dtype=torch.float64)
        return z @ self.weight.T + self.bias + self.scale * noise

    def log_evidence(self, x):
        covariance = self.weight @ self.weight.T + self.scale**2 * torch.eye(len(self.bias), dtype=torch.float64)
        return dist.MultivariateNormal(self.bias, covariance).log_prob(x)

    def posterior(self, x):
        loc = torch.linalg.solve(self.precision, self.weight.T @ (x - self.bias).T / self.scale**2).T
        return dist.MultivariateNormal(loc, precision_matrix=self.precision)


class GaussianPosterior(nn.Module):
    """The exact posterior of a linear-Gaussian model, moved by `shift` and with its scale times `inflation`."""

    def __init__(self, truth, shift=0.0, inflation=1.0):
        super().__init__()
        self.truth, self.shift, self.inflation = truth, shift, inflation

    def forward(self, x):
        exact = self.truth.posterior(x.double())
        return dist.MultivariateNormal(exact.loc + self.shift, scale_tril=self.inflation * exact.scale_tril)


def two_layers(num_data):
    """z2 ~ N(0, 1), z1 ~ N(z2, 1), x ~ N(z1, 1), so that x ~ N(0, 3); a guide that is a little off; x; log p(x)."""
    one = torch.ones((), dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(0 * one, one))
            z1 = pyro.sample("z1", dist.Normal(z2, one))
            pyro.sample("x", dist.Normal(z1, one), obs=x)

    def guide(x):  # exact: z1 | x is N(2x/3, 2/3), z2 | z1 is N(z1/2, 1/2)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0.6 * x, 1.1 * math.sqrt(2 / 3) * one))
            pyro.sample("z2", dist.Normal(0.5 * z1, 1.2 * math.sqrt(1 / 2) * one))

    marginal = dist.Normal(0 * one, math.sqrt(3.0))
    x = marginal.sample((num_data,))
    return model, guide, x, marginal.log_prob(x)


SHAPE, RATE = 3.0, 1.5


def count_and_rate(num_data):
    """rate ~ Gamma, count ~ Poisson(rate * exposure): a positive latent, and a further argument; counts; exposures."""

    def model(x, exposure):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.tensor(SHAPE).double(), RATE))
            pyro.sample("x", dist.Poisson(z * exposure), obs=x)

    def guide(x, exposure):  # of the posterior Gamma(SHAPE + x, RATE + exposure), the mean, and a spread
        with pyro.plate("data", len(x)):
            mean = ((SHAPE + x) / (RATE + exposure)).log()
            pyro.sample("z", dist.LogNormal(mean, 1.5 / (SHAPE + x).sqrt()))

    exposure = torch.linspace(0.5, 4, num_data, dtype=torch.float64)
    rates = dist.Gamma(torch.tensor(SHAPE).double(), RATE).sample((num_data,))
    return model, guide, dist.Poisson(rates * exposure).sample(), exposure


def negative_binomial(x, exposure):
    """log p(x) of `count_and_rate`."""
    return dist.NegativeBinomial(SHAPE, probs=exposure / (exposure + RATE)).log_prob(x)


def grid(latent_dim, num=None, limit=8.0):
    """Points `(G, latent_dim)` over a cube, and the log volume of one cell."""
    num = num or {1: 1001, 2: 161}[latent_dim]
    points = torch.linspace(-limit, limit, num, dtype=torch.float64)
    z = torch.cartesian_prod(*[points] * latent_dim).reshape(-1, latent_dim)
    return z, latent_dim * math.log(2 * limit / (num - 1))


@torch.no_grad()
def log_joint_on_grid(vae, x, z):
    """log p(x, z), `(G, N)`."""
    likelihood, log_prior = vae.likelihood(z), vae.prior().log_prob(z)
    return torch.stack([likelihood.log_prob(row) + log_prior for row in vae.check(x)], dim=1)


def log_evidence_by_quadrature(vae, x, latent_dim):
    """log of the integral of p(x, z) over z, by the trapezoidal rule (spectrally exact for these smooth integrands)."""
    z, log_cell = grid(latent_dim)
    return log_joint_on_grid(vae, x, z).logsumexp(0) + log_cell


def small_vae(likelihood="Bernoulli", latent_dim=2, hidden=(8,), **kwargs):
    """A VAE of six pixels with random weights, in the default dtype."""
    torch.manual_seed(3)
    vae = pv.VAE(
        pv.priors.StandardNormal(latent_dim),
        LIKELIHOODS[likelihood](lambda factor: pv.nn.MLP(latent_dim, list(hidden), 6 * factor)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(6, list(hidden), 2 * latent_dim)),
        **kwargs,
    )
    with torch.no_grad():  # larger weights, so that the posterior is no Gaussian
        for parameter in vae.likelihood.parameters():
            parameter.mul_(1.5)
    return vae.to(torch.get_default_dtype())


def draws_of(vae, num_data, seed=4):
    """Data from the model itself."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return vae.sample(num_data).detach()


def assert_unbiased(estimate, std_error, truth, num_sigmas=4.5):
    """z-scores over independent data have mean 0 and variance 1.

    Under the null the mean is normal and the mean square about so, with a longer tail to the right: of 60 data this fails
    by chance with probability 1.2e-4, of 400 with 3e-5 (the normal and the chi-squared tails beyond 4.5 sigma). Scores of
    AIS with 16 chains are Student's t with 15 degrees of freedom, for which it is 9e-4 of 60.
    """
    z = ((estimate - truth) / std_error).double()
    n = len(z)
    mean, variance = z.mean().item(), z.square().mean().item()
    assert abs(mean) < num_sigmas / math.sqrt(n), f"mean z-score {mean:.3f} of {n}"
    assert abs(variance - 1) < num_sigmas * math.sqrt(2 / n), f"mean squared z-score {variance:.3f} of {n}"


def assert_unbiased_in_p(log_p, exact):
    """The mean of p-hat / p over independent data is 1: outside of 4.5 of its standard errors by chance 7e-6."""
    ratio = (log_p - exact).exp()
    z = (ratio.mean() - 1) / (ratio.std() / math.sqrt(len(ratio)))
    assert abs(z) < 4.5, f"mean of p-hat / p {ratio.mean():.3f}, {z:.1f} standard errors from 1"


def assert_within(evidence, exact, num_errors=4.5):
    """Within 4.5 standard errors (7e-6 for each datum), or 1e-4 nats, where a Gaussian is exact to rounding."""
    found = evidence.log_evidence
    assert found.isfinite().all() and ((found - exact).abs() < num_errors * evidence.std_error + 1e-4).all()
    assert not ((found + 0.5 - exact).abs() < num_errors * evidence.std_error + 1e-4).all()  # the twin
