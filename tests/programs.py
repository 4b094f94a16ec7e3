"""Pairs of a model and a guide, of the kinds that a compiled ELBO stands for: `PROGRAMS[name]()` makes one."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyro_vae as pv


class Case:
    """A pair, the arguments of each call in turn, and the options of the ELBO."""

    def __init__(self, model, guide, calls, analytic=True, **options):
        self.model, self.guide, self.calls, self.options = model, guide, calls, options
        self.analytic = analytic
        """Whether the mean-field ELBO applies: no latent depends on another in the guide."""


def data(num_data, width=5, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_data, width, generator=generator, dtype=torch.get_default_dtype())


def binary(num_data, width=12):
    return (data(num_data, width) > 0.5).to(torch.get_default_dtype())


def bernoulli_vae():
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.nn.MLP(2, [7], 12)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(12, [7], 4)),
    )
    return Case(vae.model, vae.guide, [(binary(6),), (binary(6),), (binary(4),)])


def gaussian_vae_scaled_and_masked():
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Gaussian(pv.nn.MLP(2, [7], 5)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(5, [7], 4)),
    )
    mask = torch.arange(6) < 4
    return Case(*(poutine.mask(poutine.scale(fn, 0.3), mask) for fn in (vae.model, vae.guide)), [(data(6),)])


def vectorized_particles():
    case = bernoulli_vae()
    return Case(case.model, case.guide, case.calls, num_particles=3, vectorize_particles=True)


def particles_in_turn():
    case = bernoulli_vae()
    return Case(case.model, case.guide, case.calls, num_particles=3)


def subsampled():
    weights = pv.nn.MLP(5, [], 2)

    def model(x):
        pyro.module("weights", weights)
        with pyro.plate("data", 20, subsample_size=6) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[rows, 0])

    def guide(x):
        with pyro.plate("data", 20, subsample_size=6) as rows:
            pyro.sample("z", dist.Normal(weights(x[rows]), 0.5).to_event(1))

    return Case(model, guide, [(data(20),)])


def with_modules(*layers):
    network = nn.Sequential(nn.Linear(5, 7), *layers, nn.Tanh(), nn.Linear(7, 4))
    decoder = nn.Linear(2, 5)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("network", network)
        loc, scale = network(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    case = Case(model, guide, [(data(6),)])
    case.network = network
    return case


def constrained_parameters():
    def model(x):
        noise = pyro.param("noise", torch.tensor(0.7), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.LogNormal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(rate[..., None], noise).expand([len(x), 5]).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: torch.zeros(6))
        scale = pyro.param("scale", lambda: torch.full((6,), 0.3), constraint=constraints.interval(0.1, 2.0))
        with pyro.plate("data", 6):
            pyro.sample("rate", dist.LogNormal(loc, scale))

    return Case(model, guide, [(data(6).abs(),)])


def a_guide_for_each_datum():
    """Loc and scale of one shape, updated together, over which torch 2.15's compiler stumbles at first."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(20), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])

    def guide(x):
        loc = pyro.param("loc", lambda: torch.zeros(len(x), 20))
        scale = pyro.param("scale", lambda: torch.full_like(loc, 0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Case(model, guide, [(data(3),)])


def conditional_with_arguments():
    weights = nn.ModuleList([nn.Linear(5, 4), nn.Linear(2, 5)])

    def model(x, label=None, *, beta=1.0, shared=None, flip=False):
        pyro.module("weights", weights)
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", dist.Normal(label[..., None] * torch.ones(2), 1.0).to_event(1))
            loc = weights[1](-z if flip else z) + (0 if shared is None else shared["shift"])
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x, label=None, *, beta=1.0, shared=None, flip=False):
        loc, scale = weights[0](x).chunk(2, -1)
        with pyro.plate("data", len(x)), poutine.scale(scale=beta):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    calls = [
        (data(6), torch.arange(6.0), dict(beta=0.5)),
        (data(6), torch.arange(6.0), dict(beta=0.25)),
        (data(6), torch.arange(6.0), dict(flip=True)),
        (data(6), torch.arange(6.0), dict(shared={"shift": torch.ones(5)})),
    ]
    return Case(model, guide, calls)


def hierarchy():
    """Global and local latents, one of which depends on the other in the guide."""

    def model(x):
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 2.0))
        scale = pyro.sample("scale", dist.Gamma(torch.tensor(2.0), 2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mean, scale))
            with pyro.plate("repeats", 5):
                pyro.sample("x", dist.Normal(z, 0.5), obs=x.T)

    def guide(x):
        mean = pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.3))
        pyro.sample("scale", dist.LogNormal(pyro.param("log_scale", torch.tensor(-0.1)), 0.2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("local", torch.zeros(6)) + mean, 0.4))

    return Case(model, guide, [(data(6),)], analytic=False)


class Regression(PyroModule):
    """Bayesian weights, by PyroSample."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](5, 1)
        self.linear.weight = PyroSample(dist.Normal(torch.tensor(0.0), 1.0).expand([1, 5]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(torch.tensor(0.0), 1.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        loc = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(loc, 0.5), obs=y)


def bayesian_regression():
    model = Regression()
    return Case(model, AutoNormal(model), [(data(6), data(6)[:, 0])])


def automatic_full_covariance():
    model = Regression()
    return Case(model, AutoMultivariateNormal(model), [(data(6), data(6)[:, 0])], analytic=False)


def flow():
    transform = dist.transforms.affine_coupling(2, hidden_dims=[6])
    network = nn.Linear(5, 4)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([len(x), 5]).to_event(1), obs=x)

    def guide(x):
        pyro.module("transform", transform)
        pyro.module("network", network)
        loc, scale = network(x).chunk(2, -1)
        base = dist.Normal(loc, scale.exp()).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(base, [transform]))

    return Case(model, guide, [(data(6),)])


def convolutional():
    encoder = nn.Sequential(nn.Conv2d(1, 3, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))
    decoder = nn.Sequential(nn.Linear(2, 27), nn.ReLU(), nn.Unflatten(-1, (3, 3, 3)), nn.ConvTranspose2d(3, 1, 4, 2))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(3), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    return Case(model, guide, [(binary(6, 64).reshape(6, 1, 8, 8),)])


def with_a_factor():
    case = with_modules()

    def model(x):
        case.model(x)
        pyro.factor("penalty", -0.5 * pyro.param("weight", torch.tensor(1.5)) ** 2)

    return Case(model, case.guide, case.calls)


class Shifted(nn.Module):
    """A pair with a number of Python among its parameters."""

    def __init__(self):
        super().__init__()
        self.shift, self.loc = 1.0, nn.Parameter(torch.zeros(3))

    def model(self, x):
        pyro.module("shifted", self)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.loc + self.shift, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pass


PROGRAMS = {
    "a Bernoulli VAE": bernoulli_vae,
    "a Gaussian VAE, scaled and masked": gaussian_vae_scaled_and_masked,
    "particles, vectorised": vectorized_particles,
    "particles in turn": particles_in_turn,
    "a plate that subsamples": subsampled,
    "batch normalisation": lambda: with_modules(nn.BatchNorm1d(7)),
    "dropout": lambda: with_modules(nn.Dropout(0.4)),
    "constrained parameters, one for each datum": constrained_parameters,
    "a loc and a scale for each datum": a_guide_for_each_datum,
    "labels, a weight that changes, a flag": conditional_with_arguments,
    "global and local latents": hierarchy,
    "weights by PyroSample": bayesian_regression,
    "an automatic guide of full covariance": automatic_full_covariance,
    "a flow": flow,
    "convolutions": convolutional,
    "a factor": with_a_factor,
}
