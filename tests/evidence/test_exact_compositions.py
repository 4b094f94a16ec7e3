"""log p(x) of composed linear-Gaussian programs, against formulas that know nothing of Pyro.

With the exact posterior as guide every log weight is log p(x), to rounding: no Monte Carlo, and no tolerance but 1e-9. A
twin of each, with something planted in the program, must differ.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from truths import LinearGaussian

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("float64")
LATENT, NUM_DATA = 2, 7


def gaussian_vae(truth, name=None):
    likelihood = pv.likelihoods.Gaussian(truth.decoder(), scale=truth.scale)
    encoder = pv.nn.MLP(len(truth.bias), [], 2 * truth.weight.shape[1])
    vae = pv.VAE(
        pv.priors.StandardNormal(truth.weight.shape[1]), likelihood, pv.posteriors.DiagonalNormal(encoder), name=name
    )
    return vae.double().requires_grad_(False)


def every_weight(model, guide, *args, **kwargs):
    return pv.evidence.log_weights(model, guide, *args, num_samples=6, **kwargs)


class Views:
    """Two views of one latent: x and y have the same z."""

    def __init__(self):
        self.truths = [LinearGaussian(LATENT, 5, 0.7), LinearGaussian(LATENT, 3, 0.4)]
        self.vaes = [gaussian_vae(truth, name) for truth, name in zip(self.truths, ["left", "right"], strict=True)]
        self.x = [truth.draw(NUM_DATA, seed) for seed, truth in enumerate(self.truths)]
        self.whole = LinearGaussian(LATENT, 8, 1.0)  # both beside each other, in units of their own noise
        self.whole.weight = torch.cat([truth.weight / truth.scale for truth in self.truths])
        self.whole.bias = torch.cat([truth.bias / truth.scale for truth in self.truths])
        self.whole.precision = torch.eye(LATENT) + self.whole.weight.T @ self.whole.weight

    def in_units_of_noise(self, x, y):
        return torch.cat([x / self.truths[0].scale, y / self.truths[1].scale], dim=1)

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.vaes[0].prior())
            self.vaes[0].model(x, z=z)
            self.vaes[1].model(y, z=z)

    def guide(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.whole.posterior(self.in_units_of_noise(x, y)))

    def log_evidence(self):
        units = 5 * math.log(0.7) + 3 * math.log(0.4)
        return self.whole.log_evidence(self.in_units_of_noise(*self.x)) - units


def test_multi_view():
    views = Views()
    exact = views.log_evidence()
    weights = every_weight(views.model, views.guide, *views.x)
    assert torch.allclose(weights, exact.expand_as(weights), atol=1e-9)
    found = pv.log_evidence(views.model, views.guide, *views.x)
    assert torch.allclose(found.log_evidence, exact, atol=1e-9)
    views.vaes[1].likelihood.network.layers[0].bias += 0.1  # planted
    assert not torch.allclose(every_weight(views.model, views.guide, *views.x)[0], exact, atol=1e-2)


class Mixture:
    """Each datum comes from one of two VAEs, which one is a latent site."""

    log_shares = torch.tensor([0.3, 0.7]).double().log()

    def __init__(self):
        self.truths = [LinearGaussian(LATENT, 5, 0.7), LinearGaussian(LATENT, 5, 0.3)]
        self.truths[1].bias = self.truths[1].bias + 1
        self.vaes = [gaussian_vae(truth, f"part_{i}") for i, truth in enumerate(self.truths)]
        self.x = torch.cat([self.truths[0].draw(4), self.truths[1].draw(3)])

    def log_each(self, x):
        return torch.stack([truth.log_evidence(x) for truth in self.truths], dim=-1) + self.log_shares

    def model(self, x):
        with pyro.plate("data", len(x)):
            which = pyro.sample("which", dist.Categorical(logits=self.log_shares))
            for i, vae in enumerate(self.vaes):
                with poutine.mask(mask=which == i):
                    vae.model(x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            which = pyro.sample("which", dist.Categorical(logits=self.log_each(x)))
            for i, truth in enumerate(self.truths):
                with poutine.mask(mask=which == i):
                    pyro.sample(f"part_{i}/z", truth.posterior(x))


def test_mixture_of_vaes():
    mixture = Mixture()
    exact = mixture.log_each(mixture.x).logsumexp(-1)
    weights = every_weight(mixture.model, mixture.guide, mixture.x)
    assert torch.allclose(weights, exact.expand_as(weights), atol=1e-9)
    mixture.log_shares = torch.tensor([0.5, 0.5]).log()  # another model: planted
    assert not torch.allclose(every_weight(mixture.model, mixture.guide, mixture.x)[0], exact, atol=1e-3)


class Chain:
    """z_1 ~ N(0, I), z_t ~ N(A z_{t-1}, q^2 I), and a VAE's likelihood of each frame; the time plate is the outer one."""

    num_frames, noise = 4, 0.6

    def __init__(self):
        self.truth = LinearGaussian(LATENT, 5, 0.7)
        self.vae = gaussian_vae(self.truth)
        generator = torch.Generator().manual_seed(0)
        self.transition = 0.7 * torch.randn(LATENT, LATENT, generator=generator, dtype=torch.float64)
        self.x = torch.randn(NUM_DATA, self.num_frames, 5, generator=generator, dtype=torch.float64)

    def next(self, chain):
        loc = chain[-1] @ self.transition.T if chain else torch.zeros(LATENT, dtype=torch.float64)
        return dist.Normal(loc, self.noise if chain else 1.0).to_event(1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            chain = []
            for t in range(self.num_frames):
                chain.append(pyro.sample(f"z_{t}", self.next(chain)))
            z = torch.stack([each if each.ndim == 2 else each.squeeze(-3) for each in chain], dim=-3)
            with pyro.plate("time", self.num_frames, dim=-2):
                self.vae.model(x.movedim(1, 0), z=z)

    def precision(self):
        """Of all z given all x, `(T D, T D)`, and the weight of x in its mean."""
        size, whole = LATENT, torch.zeros(self.num_frames * LATENT, self.num_frames * LATENT, dtype=torch.float64)
        for t in range(self.num_frames):
            step = torch.zeros(LATENT, self.num_frames * LATENT, dtype=torch.float64)
            step[:, t * size : (t + 1) * size] = torch.eye(LATENT)
            if t:
                step[:, (t - 1) * size : t * size] = -self.transition
            whole += step.T @ step / (self.noise**2 if t else 1.0)
            sees = torch.zeros(5, self.num_frames * LATENT, dtype=torch.float64)
            sees[:, t * size : (t + 1) * size] = self.truth.weight
            whole += sees.T @ sees / self.truth.scale**2
        return whole

    def guide(self, x):
        """The exact posterior, a frame at a time: each given those before it, by conditioning of a joint Gaussian."""
        precision = self.precision()
        information = ((x - self.truth.bias) @ self.truth.weight / self.truth.scale**2).flatten(1)
        loc = torch.linalg.solve(precision, information.T).T
        covariance = torch.linalg.inv(precision)
        with pyro.plate("data", len(x)):
            past = torch.zeros(len(x), 0, dtype=torch.float64)
            for t in range(self.num_frames):
                before, now = slice(0, t * LATENT), slice(t * LATENT, (t + 1) * LATENT)
                gain = covariance[now, before] @ torch.linalg.inv(covariance[before, before])
                mean = loc[:, now] + (past - loc[:, before]) @ gain.T
                spread = covariance[now, now] - gain @ covariance[before, now]
                z = pyro.sample(f"z_{t}", dist.MultivariateNormal(mean, (spread + spread.T) / 2))
                past = torch.cat([past.expand(*z.shape[:-1], -1), z], dim=-1)

    def by_kalman_filter(self):
        """log p(x_1, ..., x_T), one frame after the other."""
        loc = torch.zeros(NUM_DATA, LATENT, dtype=torch.float64)
        covariance, total = torch.eye(LATENT, dtype=torch.float64), torch.zeros(NUM_DATA, dtype=torch.float64)
        weight, noise = self.truth.weight, self.truth.scale**2 * torch.eye(5, dtype=torch.float64)
        for t in range(self.num_frames):
            if t:
                loc = loc @ self.transition.T
                covariance = self.transition @ covariance @ self.transition.T + self.noise**2 * torch.eye(LATENT)
            spread = weight @ covariance @ weight.T + noise
            expected = loc @ weight.T + self.truth.bias
            total = total + dist.MultivariateNormal(expected, spread).log_prob(self.x[:, t])
            gain = covariance @ weight.T @ torch.linalg.inv(spread)
            loc = loc + (self.x[:, t] - expected) @ gain.T
            covariance = covariance - gain @ weight @ covariance
        return total


def test_sequence_against_a_kalman_filter():
    chain = Chain()
    exact = chain.by_kalman_filter()
    weights = every_weight(chain.model, chain.guide, chain.x)
    assert torch.allclose(weights, exact.expand_as(weights), atol=1e-9)
    chain.noise = 0.7  # planted: another model, and its own posterior, but not its own Kalman filter
    assert not torch.allclose(every_weight(chain.model, chain.guide, chain.x)[0], exact, atol=1e-2)


def test_the_estimators_find_the_evidence_of_a_sequence():
    """From a guide that knows nothing of the frames beside its own: Laplace's Gaussian is exact here, the guide is not.

    The guide's importance sampling is compared by its own error, 4.5 of it: by chance 5e-5 of 7 data.
    """
    chain = Chain()

    def guide(x):
        with pyro.plate("data", len(x)):
            for t in range(chain.num_frames):
                exact = chain.truth.posterior(x[:, t])
                pyro.sample(f"z_{t}", dist.MultivariateNormal(exact.loc, scale_tril=1.2 * exact.scale_tril))

    exact = chain.by_kalman_filter()
    assert torch.allclose(pv.log_evidence(chain.model, guide, chain.x).log_evidence, exact, atol=1e-6)
    by_guide = pv.importance_sampling(chain.model, guide, chain.x, num_samples=4000)
    score = (by_guide.log_evidence - exact) / by_guide.std_error
    assert by_guide.std_error.min() > 1e-3 and score.abs().max() < 4.5, score


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_nuts_finds_the_posterior_of_one_image(shift):
    """z of one datum with the likelihood of the VAE, against the exact posterior; a twin that is moved must fail.

    Of each coordinate the mean is compared by its standard error, from the effective draws: with four coordinates,
    means and variances both, 4.5 standard errors fail by chance with 3e-5.
    """
    truth = LinearGaussian(LATENT, 5, 0.7)
    vae, x = gaussian_vae(truth), truth.draw(1)

    def model(x):
        z = vae.model(likelihood=False)
        with pyro.plate("pixels", 1, dim=-1):
            pyro.sample("seen", vae.decode(z), obs=x)

    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(model), num_samples=300, warmup_steps=100, num_chains=1, disable_progbar=True)
    mcmc.run(x)
    draws = mcmc.get_samples()["z"][:, 0]
    exact = truth.posterior(x)
    loc, variance = exact.loc[0] + shift, exact.variance[0]
    ess = pyro.ops.stats.effective_sample_size(draws[None], 0, 1).clamp(max=300)
    off_mean = (draws.mean(0) - loc) / (variance / ess).sqrt()
    squared = (draws - exact.loc[0]).square()
    off_variance = (squared.mean(0) - variance) / (squared.var(0) / (ess / 2)).sqrt()
    assert (max(off_mean.abs().max(), off_variance.abs().max()) < 4.5) == (shift == 0)
