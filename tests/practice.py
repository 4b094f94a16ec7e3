"""Programs as they are written in practice, each with its exact log p(x) for every datum, and with guides.

`PRACTICE[name](num_data)` makes one. It holds no estimator: log p(x) is a closed form, a sum over all discrete latents, or
an integral on a fine grid.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, constraints, transforms
from torch import Tensor


@dataclass(frozen=True)
class Practice:
    """A model, its guides, data drawn from the model, and their exact log p(x)."""

    model: Callable[..., Any]
    guides: dict[str, Callable[..., Any]]
    """"good", "narrow" and "fitted"; mostly "wide" and "shifted" too."""
    args: tuple[Tensor, ...]
    log_evidence: Tensor
    """`(N,)`, float64, nats."""
    continuous: bool = True
    """Whether no latent is discrete."""
    has_modes: bool = False
    """Whether the posterior has several modes."""
    is_circular: bool = False
    """Whether a latent is an angle: its density repeats, so a guide on the whole real line is no guide of it."""
    is_masked: bool = False
    """Whether some sites count for some data alone."""
    has_factor: bool = False
    """Whether the likelihood is a `pyro.factor`."""
    is_singular: bool = False
    """Whether a log density has a kink, a pole or a heavy tail, so that Laplace's Gaussian may be far off."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """The numbers of the model, for a second computation of log p(x)."""
    quadrature: Any = None
    """The grid, where there is one: even where log p(x) is a closed form, guides have their moments from it."""


PRACTICE: dict[str, Callable[[int], Practice]] = {}
"""Each program by name, as a function of the number of data."""


def practice(maker):
    PRACTICE[maker.__name__] = maker
    return maker


NUM_TO_FIT = 400
"""Data from the model on which a "fitted" guide is fitted."""
FIT, TEST = 1, 2
"""Seeds of the data on which guides are fitted, and of those that are given."""


def f64(value):
    return torch.as_tensor(value, dtype=torch.float64)


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.float64)


def randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rand(*shape, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def simulate(model, *blank, sites=("x",), seed):
    """Draw these sites from the model; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]), poutine.block():
        torch.manual_seed(seed)
        trace = poutine.trace(poutine.uncondition(model)).get_trace(*blank)
    values = tuple(trace.nodes[site]["value"].double() for site in sites)
    return values[0] if len(sites) == 1 else values


# Exact computations: each has `log_evidence(*args)` and the posterior's `moments(*args)`.


class LinearGaussian:
    """z ~ N(mean, covariance), x = weight z + bias + noise.

    `observe(*args)` gives x `(N, n)`, weight `(n, D)` or `(N, n, D)`, bias, the noise's variance `(n,)` and a mask or None.
    """

    def __init__(self, covariance, observe, mean=None):
        self.covariance, self.observe = covariance, observe
        self.mean = zeros(len(covariance)) if mean is None else mean

    def _parts(self, *args):
        x, weight, bias, variance, mask = self.observe(*args)
        mask = torch.ones_like(x) if mask is None else mask.double()
        return (x - bias - weight @ self.mean) * mask, weight * mask[..., None], variance.expand_as(x), mask

    @torch.no_grad()
    def log_evidence(self, *args):
        residual, weight, variance, mask = self._parts(*args)
        noise = torch.where(mask == 1, variance, 1.0)  # what is missing stands in as N(0, 1) at 0, and is taken off
        covariance = weight @ self.covariance @ weight.mT + torch.diag_embed(noise)
        filled = dist.MultivariateNormal(torch.zeros_like(residual), covariance).log_prob(residual)
        return filled + 0.5 * math.log(2 * math.pi) * (1 - mask).sum(-1)

    @torch.no_grad()
    def moments(self, *args):
        residual, weight, variance, _ = self._parts(*args)
        precision = torch.linalg.inv(self.covariance) + weight.mT @ (weight / variance[..., None])
        covariance = torch.linalg.inv(precision)
        loc = self.mean + (covariance @ weight.mT @ (residual / variance)[..., None])[..., 0]
        return loc, torch.linalg.cholesky((covariance + covariance.mT) / 2)


class Quadrature:
    """The trapezoidal rule over one or two latents, in unconstrained coordinates.

    `log_joint(*coordinates, *args)` takes coordinates `(G, 1)` and gives `(G, N)`. Each axis is (low, high).
    """

    POINTS: ClassVar[dict[int, int]] = {1: 4001, 2: 401}
    COARSE: ClassVar[dict[int, int]] = {1: 401, 2: 81}
    ROWS_AT_A_TIME = 10

    def __init__(self, log_joint, *axes):
        self.log_joint, self.axes = log_joint, axes

    def _grid(self, num):
        lines = [torch.linspace(low, high, num, dtype=torch.float64) for low, high in self.axes]
        points = torch.cartesian_prod(*lines).reshape(-1, len(lines))
        log_step = sum(math.log((high - low) / (num - 1)) for low, high in self.axes)
        at_edge = sum(((points[:, i] == line[0]) | (points[:, i] == line[-1])).double() for i, line in enumerate(lines))
        return points, (log_step - math.log(2) * at_edge)[:, None]

    def _log_terms(self, num, *args):
        points, log_step = self._grid(num)
        return points, self.log_joint(*points[..., None].unbind(1), *args) + log_step

    @torch.no_grad()
    def log_evidence(self, *args, num=None):
        num = num or self.POINTS[len(self.axes)]
        parts = zip(*(arg.split(self.ROWS_AT_A_TIME) for arg in args), strict=True)
        return torch.cat([self._log_terms(num, *part)[1].logsumexp(0) for part in parts])

    @torch.no_grad()
    def moments(self, *args):
        points, log_terms = self._log_terms(self.COARSE[len(self.axes)], *args)
        weights = log_terms.softmax(0).T
        loc = weights @ points
        centred = points - loc[:, None]
        covariance = torch.einsum("ng,ngi,ngj->nij", weights, centred, centred)
        return loc, torch.linalg.cholesky(covariance + 1e-10 * torch.eye(len(self.axes), dtype=torch.float64))


# Guides


@dataclass(frozen=True)
class Site:
    """A latent site that is a transformed Gaussian in a guide: a scalar, or a vector of `size` numbers."""

    name: str = "z"
    size: int | None = None
    transform: Any = None

    def distribution(self, loc, tril):
        if self.size is None:
            base = dist.Normal(loc[..., 0], tril[..., 0, 0])
        elif torch.equal(tril, torch.diag_embed(tril.diagonal(dim1=-2, dim2=-1))):
            base = dist.Normal(loc, tril.diagonal(dim1=-2, dim2=-1)).to_event(1)
        else:
            base = dist.MultivariateNormal(loc, scale_tril=tril)
        return base if self.transform is None else dist.TransformedDistribution(base, [self.transform])

    def coordinates(self, value):
        value = value if self.transform is None else self.transform.inv(value)
        return value[..., None] if self.size is None else value


Z = (Site(),)
POSITIVE = (Site(transform=transforms.ExpTransform()),)
UNIT_INTERVAL = (Site(transform=transforms.SigmoidTransform()),)


def gaussian_guide(sites, moments, plate="data", masks=None):
    """The sites one after the other, each given those before, from a Gaussian's loc `(N, D)` and tril `(N, D, D)`.

    `masks(*args)`, `(N, number of sites)`, says for which data a site counts.
    """

    def guide(*args):
        loc, tril = moments(*args)
        mask = masks(*args) if masks else torch.ones(len(loc), len(sites), dtype=torch.bool)
        noises, start = [], 0
        with pyro.plate(plate, len(args[0])):
            for i, site in enumerate(sites):
                end = start + (site.size or 1)
                block = tril[:, start:end, start:end]
                here = loc[:, start:end]
                if noises:
                    here = here + (tril[:, start:end, :start] @ torch.cat(noises, -1)[..., None])[..., 0]
                with poutine.mask(mask=mask[:, i]):
                    value = pyro.sample(site.name, site.distribution(here, block))
                if end < loc.shape[-1]:
                    residual = site.coordinates(value) - here
                    noises.append(torch.linalg.solve_triangular(block, residual[..., None], upper=False)[..., 0])
                start = end

    return guide


class Regression:
    """Targets `(N, T)` of data, by least squares on the data and a few fixed nonlinear features: a small encoder.

    It stays within the range of the targets that it was fitted on.
    """

    def __init__(self, args, targets, num_hidden=24, penalty=1e-2):
        flat = self._flat(args)
        self.loc = flat.median(0).values
        deviation = 1.5 * (flat - self.loc).abs().median(0).values  # some data have heavy tails
        self.scale = torch.where(deviation > 0, deviation, flat.std(0) + 1e-6)
        self.hidden = randn(flat.shape[-1], num_hidden, seed=7) / math.sqrt(flat.shape[-1])
        features = self._features(args)
        gram = features.T @ features + penalty * torch.eye(features.shape[-1], dtype=torch.float64)
        self.weight = torch.linalg.solve(gram, features.T @ targets)
        self.low, self.high = targets.min(0).values, targets.max(0).values

    @staticmethod
    def _flat(args):
        return torch.cat([arg.double().flatten(1) if arg.ndim > 1 else arg.double()[:, None] for arg in args], -1)

    def _features(self, args):
        standard = (self._flat(args) - self.loc) / self.scale
        slow = standard.asinh()
        one = torch.ones_like(standard[:, :1])
        return torch.cat([one, standard.clamp(-5, 5), slow.square(), (slow @ self.hidden).tanh()], -1)

    @torch.no_grad()
    def __call__(self, *args):
        return (self._features(args) @ self.weight).clamp(self.low, self.high)


def mean_field(moments, args):
    """What SVI with a mean-field encoder ends up near: posterior means, and scales from the precision's diagonal."""
    loc, tril = moments(*args)
    scale = torch.cholesky_inverse(tril).diagonal(dim1=-2, dim2=-1).rsqrt()
    regression = Regression(args, torch.cat([loc, scale.log()], -1))

    def fitted(*args):
        loc, log_scale = regression(*args).chunk(2, -1)
        return loc, torch.diag_embed(log_scale.exp())

    return fitted


def moved(moments, scale=1.0, shift=0.0):
    """The Gaussian with its scale times `scale`, moved by `shift` of its own standard deviations."""

    def changed(*args):
        loc, tril = moments(*args)
        return loc + shift * tril.square().sum(-1).sqrt(), scale * tril

    return changed


GOOD, NARROW, WIDE = 1.05, 0.4, 2.0
"""Scales of the guides, of the exact posterior's."""


def gaussian_guides(sites, moments, to_fit, **options):
    each = {
        "good": moved(moments, GOOD),
        "narrow": moved(moments, NARROW),
        "wide": moved(moments, WIDE),
        "shifted": moved(moments, 1.2, shift=1.0),
        "fitted": mean_field(moments, to_fit),
    }
    return {name: gaussian_guide(sites, one, **options) for name, one in each.items()}


def family_guides(family, sites, moments, to_fit):
    """Guides of the exact posterior's family; "fitted" is Gaussian in unconstrained coordinates.

    `family(scale, *args)` has about so many times the posterior's scale.
    """

    def guide_of(scale):
        def guide(*args):
            with pyro.plate("data", len(args[0])):
                pyro.sample(sites[0].name, family(scale, *args))

        return guide

    each = {name: guide_of(scale) for name, scale in (("good", GOOD), ("narrow", NARROW), ("wide", WIDE))}
    return each | {"fitted": gaussian_guide(sites, mean_field(moments, to_fit))}


def gamma_guides(posterior, to_fit):
    """`posterior(*args)` gives the shape and the rate of the exact one."""

    def family(scale, *args):
        shape, rate = posterior(*args)
        return dist.Gamma(shape / scale**2, rate / scale**2)

    def moments(*args):
        shape, rate = torch.broadcast_tensors(*posterior(*args))
        loc, scale = shape.digamma() - rate.log(), torch.polygamma(1, shape).sqrt()
        return loc[:, None], scale[:, None, None]

    return family_guides(family, POSITIVE, moments, to_fit)


def sure(log_posterior):
    """Log probabilities that are too sure of one value; where there is doubt, of the second most likely."""
    best, second = log_posterior.topk(2, -1).indices.unbind(-1)
    doubtful = log_posterior.max(-1).values < math.log(0.9)
    one = torch.nn.functional.one_hot(torch.where(doubtful, second, best), log_posterior.shape[-1]).double()
    return (0.999 * one + 0.001 * (1 - one) / (log_posterior.shape[-1] - 1)).log()


def fitted_logits(log_posterior, to_fit):
    regression = Regression(to_fit, log_posterior(*to_fit).log_softmax(-1).clamp(min=-8.0))
    return lambda *args: regression(*args).log_softmax(-1)


def discrete_logits(log_posterior, to_fit):
    """Log probabilities of a discrete latent for each guide; `log_posterior(*args)`, `(N, S)`, need not be normalised."""

    def normal(*args):
        return log_posterior(*args).log_softmax(-1)

    return {
        "good": lambda *args: (0.95 * normal(*args)).log_softmax(-1),
        "narrow": lambda *args: sure(normal(*args)),
        "wide": lambda *args: (0.3 * normal(*args)).log_softmax(-1),
        "fitted": fitted_logits(log_posterior, to_fit),
    }


def categorical_guides(site, log_posterior, to_fit):
    def guide_of(logits):
        def guide(*args):
            with pyro.plate("data", len(args[0])):
                pyro.sample(site, dist.Categorical(logits=logits(*args)))

        return guide

    return {name: guide_of(logits) for name, logits in discrete_logits(log_posterior, to_fit).items()}


def by(model, exact, sites, draw, num_data, plate="data", masks=None, **notes):
    """A program whose guides are Gaussians, from its exact computation; `draw(num, seed)` makes arguments."""
    args = draw(num_data, TEST)
    guides = gaussian_guides(sites, exact.moments, draw(NUM_TO_FIT, FIT), plate=plate, masks=masks)
    quadrature = exact if isinstance(exact, Quadrature) else None
    return Practice(model, guides, args, exact.log_evidence(*args), quadrature=quadrature, **notes)


def only_x(model, *shape):
    """Arguments of a model of x alone, each of this shape."""
    return lambda num, seed: (simulate(model, zeros(num, *shape), seed=seed),)


def standard_normal(*coordinates):
    return sum(-0.5 * z.square() - 0.5 * math.log(2 * math.pi) for z in coordinates)


# Linear-Gaussian programs


@practice
def factor_analysis(num_data):
    """Two factors behind six numbers, each with a noise of its own."""
    weight, bias, scale = randn(6, 2, seed=10), randn(6, seed=11), 0.4 + rand(6, seed=12)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T + bias, scale).to_event(1), obs=x)

    exact = LinearGaussian(torch.eye(2).double(), lambda x: (x, weight, bias, scale**2, None))
    parameters = dict(weight=weight, bias=bias, scale=scale)
    return by(
        model,
        exact,
        [Site("z", 2)],
        only_x(model, 6),
        num_data,
        parameters=parameters,
    )


@practice
def probabilistic_pca(num_data):
    """Three components behind eight numbers, and one noise."""
    weight, scale = randn(8, 3, seed=13), f64(0.5)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MultivariateNormal(zeros(3), torch.eye(3).double()))
            pyro.sample("x", dist.Normal(z @ weight.T, scale).to_event(1), obs=x)

    exact = LinearGaussian(torch.eye(3).double(), lambda x: (x, weight, zeros(8), scale**2, None))
    parameters = dict(weight=weight, scale=scale)
    return by(
        model,
        exact,
        [Site("z", 3)],
        only_x(model, 8),
        num_data,
        parameters=parameters,
    )


@practice
def gaussian_process(num_data):
    """A function at twelve times, observed with noise."""
    times = torch.linspace(0, 3, 12, dtype=torch.float64)
    kernel = (-0.5 * (times[:, None] - times).square() / 0.5**2).exp() + 1e-4 * torch.eye(12).double()
    tril, scale = torch.linalg.cholesky(kernel), f64(0.3)

    def model(x):
        with pyro.plate("data", len(x)):
            f = pyro.sample("f", dist.MultivariateNormal(zeros(12), scale_tril=tril))
            pyro.sample("x", dist.Normal(f, scale).to_event(1), obs=x)

    exact = LinearGaussian(kernel, lambda x: (x, torch.eye(12).double(), zeros(12), scale**2, None))
    parameters = dict(kernel=kernel, scale=scale)
    return by(
        model,
        exact,
        [Site("f", 12)],
        only_x(model, 12),
        num_data,
        parameters=parameters,
    )


@practice
def random_intercepts(num_data):
    """A regression in which each group of five has an intercept."""
    slope, spread, scale = f64(0.8), f64(1.2), f64(0.5)

    def model(x, covariate):
        with pyro.plate("groups", len(x)):
            intercept = pyro.sample("intercept", dist.Normal(f64(0.0), spread))
            loc = intercept[..., None] + slope * covariate
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def draw(num, seed):
        covariate = randn(num, 5, seed=seed)
        return simulate(model, zeros(num, 5), covariate, seed=seed), covariate

    exact = LinearGaussian(
        spread[None, None] ** 2, lambda x, c: (x, torch.ones(5, 1).double(), slope * c, scale**2, None)
    )
    parameters = dict(slope=slope, spread=spread, scale=scale)
    return by(model, exact, [Site("intercept")], draw, num_data, plate="groups", parameters=parameters)


@practice
def random_intercepts_and_slopes(num_data):
    """Each group of six has an intercept and a slope, which are correlated."""
    tril, scale = f64([[1.0, 0.0], [-0.4, 0.6]]), f64(0.5)

    def model(x, covariate):
        with pyro.plate("groups", len(x)):
            intercept = pyro.sample("intercept", dist.Normal(f64(0.5), tril[0, 0]))
            slope = pyro.sample("slope", dist.Normal(1 + tril[1, 0] * (intercept - 0.5), tril[1, 1]))
            loc = intercept[..., None] + slope[..., None] * covariate
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def draw(num, seed):
        covariate = randn(num, 6, seed=seed)
        return simulate(model, zeros(num, 6), covariate, seed=seed), covariate

    def observe(x, covariate):
        return x, torch.stack([torch.ones_like(covariate), covariate], -1), zeros(6), scale**2, None

    exact = LinearGaussian(tril @ tril.T, observe, f64([0.5, 1.0]))
    sites = [Site("intercept"), Site("slope")]
    return by(
        model, exact, sites, draw, num_data, plate="groups", parameters=dict(covariance=tril @ tril.T, scale=scale)
    )


def autoregressive_covariance(num, carry, spread):
    """Of z_0 ~ N(0, 1), z_t ~ N(carry z_{t-1}, spread^2)."""
    step = torch.eye(num).double() - carry * torch.diag(torch.ones(num - 1).double(), -1)
    inverse = torch.linalg.inv(step)
    return inverse @ torch.diag(torch.cat([f64([1.0]), spread**2 * torch.ones(num - 1).double()])) @ inverse.T


@practice
def state_space(num_data):
    """A linear state space of six steps, a site for each state."""
    carry, spread, scale = f64(0.8), f64(0.6), f64(0.5)

    def model(x):
        with pyro.plate("series", len(x)):
            z = pyro.sample("z_0", dist.Normal(f64(0.0), 1.0))
            pyro.sample("x_0", dist.Normal(z, scale), obs=x[..., 0])
            for t in range(1, 6):
                z = pyro.sample(f"z_{t}", dist.Normal(carry * z, spread))
                pyro.sample(f"x_{t}", dist.Normal(z, scale), obs=x[..., t])

    def draw(num, seed):
        return (torch.stack(simulate(model, zeros(num, 6), sites=[f"x_{t}" for t in range(6)], seed=seed), -1),)

    covariance = autoregressive_covariance(6, carry, spread)
    exact = LinearGaussian(covariance, lambda x: (x, torch.eye(6).double(), zeros(6), scale**2, None))
    sites = [Site(f"z_{t}") for t in range(6)]
    parameters = dict(carry=carry, spread=spread, scale=scale)
    return by(model, exact, sites, draw, num_data, plate="series", parameters=parameters)


def _lengths(num, seed, most=5):
    lengths = 1 + (rand(num, seed=seed + 100) * most).floor()
    return torch.arange(most) < lengths[:, None]


@practice
def state_space_of_different_lengths(num_data):
    """Series of one to five steps, padded, with the padding masked in the distributions, as in deep Markov models."""
    carry, spread, scale = f64(0.9), f64(0.5), f64(0.4)

    def model(x, mask):
        z = zeros(1)
        with pyro.plate("data", len(x)):
            for t in range(5):
                there = mask[:, t : t + 1]
                transition = dist.Normal(carry * z, f64(1.0) if t == 0 else spread)
                z = pyro.sample(f"z_{t}", transition.mask(there).to_event(1))
                pyro.sample(f"x_{t}", dist.Normal(z, scale).mask(there).to_event(1), obs=x[:, t])

    def draw(num, seed):
        mask = _lengths(num, seed)
        drawn = simulate(model, zeros(num, 5, 1), mask, sites=[f"x_{t}" for t in range(5)], seed=seed)
        return torch.stack(drawn, 1) * mask[..., None], mask

    covariance = autoregressive_covariance(5, carry, spread)
    exact = LinearGaussian(covariance, lambda x, mask: (x[..., 0], torch.eye(5).double(), zeros(5), scale**2, mask))
    sites = [Site(f"z_{t}", 1) for t in range(5)]
    parameters = dict(carry=carry, spread=spread, scale=scale)
    return by(model, exact, sites, draw, num_data, masks=lambda x, mask: mask, is_masked=True, parameters=parameters)


@practice
def state_space_under_poutine_mask(num_data):
    """The same by `poutine.mask`, with a scalar state."""
    carry, spread, scale = f64(0.7), f64(0.8), f64(0.5)

    def model(x, mask):
        z = zeros()
        with pyro.plate("data", len(x)):
            for t in range(5):
                with poutine.mask(mask=mask[:, t]):
                    z = pyro.sample(f"z_{t}", dist.Normal(carry * z, f64(1.0) if t == 0 else spread))
                    pyro.sample(f"x_{t}", dist.Normal(z, scale), obs=x[:, t])

    def draw(num, seed):
        mask = _lengths(num, seed)
        drawn = simulate(model, zeros(num, 5), mask, sites=[f"x_{t}" for t in range(5)], seed=seed)
        return torch.stack(drawn, 1) * mask, mask

    covariance = autoregressive_covariance(5, carry, spread)
    exact = LinearGaussian(covariance, lambda x, mask: (x, torch.eye(5).double(), zeros(5), scale**2, mask))
    sites = [Site(f"z_{t}") for t in range(5)]
    parameters = dict(carry=carry, spread=spread, scale=scale)
    return by(model, exact, sites, draw, num_data, masks=lambda x, mask: mask, is_masked=True, parameters=parameters)


@practice
def missing_entries(num_data):
    """Factor analysis in which about a third of the numbers are missing, masked in the distribution."""
    weight, scale = randn(6, 2, seed=14), f64(0.6)

    def model(x, mask):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T, scale).mask(mask).to_event(1), obs=x)

    def draw(num, seed):
        mask = rand(num, 6, seed=seed) > 0.35
        return simulate(model, zeros(num, 6), mask, seed=seed) * mask, mask

    exact = LinearGaussian(torch.eye(2).double(), lambda x, mask: (x, weight, zeros(6), scale**2, mask))
    parameters = dict(weight=weight, scale=scale)
    return by(model, exact, [Site("z", 2)], draw, num_data, is_masked=True, parameters=parameters)


@practice
def missing_entries_under_poutine_mask(num_data):
    """Five noisy measurements of one number in an inner plate, some missing, under `poutine.mask`."""
    gains, scale = f64([1.0, 0.5, -1.0, 2.0, 0.2]), f64(0.7)

    def model(x, mask):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(f64(0.3), 1.0))
            with pyro.plate("sensors", 5, dim=-2), poutine.mask(mask=mask.T):
                pyro.sample("x", dist.Normal(gains[:, None] * z, scale), obs=x.T)

    def draw(num, seed):
        mask = rand(num, 5, seed=seed) > 0.4
        return simulate(model, zeros(num, 5), mask, seed=seed).T * mask, mask

    exact = LinearGaussian(
        torch.eye(1).double(), lambda x, mask: (x, gains[:, None], zeros(5), scale**2, mask), f64([0.3])
    )
    return by(model, exact, Z, draw, num_data, is_masked=True, parameters=dict(gains=gains, scale=scale))


@practice
def schools_and_pupils(num_data):
    """A mean for each school, and seven pupils in an inner plate."""
    spread, scale = f64(2.0), f64(1.5)

    def model(x):
        with pyro.plate("schools", len(x), dim=-1):
            mean = pyro.sample("mean", dist.Normal(f64(1.0), spread))
            with pyro.plate("pupils", 7, dim=-2):
                pyro.sample("x", dist.Normal(mean, scale), obs=x.T)

    exact = LinearGaussian(
        spread[None, None] ** 2, lambda x: (x, torch.ones(7, 1).double(), zeros(7), scale**2, None), f64([1.0])
    )
    return by(
        model,
        exact,
        [Site("mean")],
        lambda num, seed: (simulate(model, zeros(num, 7), seed=seed).T,),
        num_data,
        plate="schools",
        parameters=dict(spread=spread, scale=scale),
    )


@practice
def classes_in_schools(num_data):
    """Latents in an inner plate: a mean for each school, and one for each of its three classes, which is seen twice."""
    between, scale = f64(0.7), f64(0.5)

    def model(x):  # (schools, classes, 2)
        with pyro.plate("schools", len(x), dim=-1):
            mean = pyro.sample("mean", dist.Normal(f64(0.0), 1.0))
            with pyro.plate("classes", 3, dim=-2):
                level = pyro.sample("level", dist.Normal(mean, between))
                both = level[..., None] * torch.ones(2).double()
                pyro.sample("x", dist.Normal(both, scale).to_event(1), obs=x.transpose(0, 1))

    covariance = torch.ones(4, 4).double()  # of the mean and the three levels
    covariance[1:, 1:] += between**2 * torch.eye(3).double()
    seen = torch.cat([zeros(3, 1), torch.eye(3).double()], 1).repeat_interleave(2, 0)
    exact = LinearGaussian(covariance, lambda x: (x.flatten(1), seen, zeros(6), scale**2, None))

    def guide_from(moments):
        def guide(x):
            loc, tril = moments(x)
            with pyro.plate("schools", len(x), dim=-1):
                mean = pyro.sample("mean", dist.Normal(loc[:, 0], tril[:, 0, 0]))
                noise = (mean - loc[:, 0]) / tril[:, 0, 0]  # given the mean, the levels are independent
                with pyro.plate("classes", 3, dim=-2):
                    given = loc[:, 1:].T + tril[:, 1:, 0].T * noise
                    pyro.sample("level", dist.Normal(given, tril[:, 1:, 1:].diagonal(dim1=-2, dim2=-1).T))

        return guide

    def draw(num, seed):
        return (simulate(model, zeros(num, 3, 2), seed=seed).transpose(0, 1),)

    args = draw(num_data, TEST)
    each = dict(
        good=moved(exact.moments, GOOD),
        narrow=moved(exact.moments, NARROW),
        wide=moved(exact.moments, WIDE),
        fitted=mean_field(exact.moments, draw(NUM_TO_FIT, FIT)),
    )
    guides = {name: guide_from(moments) for name, moments in each.items()}
    return Practice(model, guides, args, exact.log_evidence(*args), parameters=dict(between=between, scale=scale))


@practice
def errors_in_variables(num_data):
    """A covariate that is measured twice with noise, and a response to its true value."""
    noise, gain, scale = f64(0.6), f64(1.5), f64(0.4)

    def model(x, response):
        with pyro.plate("data", len(x)):
            z = pyro.sample("true", dist.Normal(f64(2.0), 1.0))
            pyro.sample("measured", dist.Normal(z[..., None] * torch.ones(2).double(), noise).to_event(1), obs=x)
            pyro.sample("response", dist.Normal(gain * z, scale), obs=response)

    def draw(num, seed):
        return simulate(model, zeros(num, 2), zeros(num), sites=("measured", "response"), seed=seed)

    def observe(x, response):
        variance = torch.stack([noise, noise, scale]) ** 2
        return (
            torch.cat([x, response[:, None]], -1),
            torch.stack([f64(1.0), f64(1.0), gain])[:, None],
            zeros(3),
            variance,
            None,
        )

    exact = LinearGaussian(torch.eye(1).double(), observe, f64([2.0]))
    parameters = dict(noise=noise, gain=gain, scale=scale)
    return by(model, exact, [Site("true")], draw, num_data, parameters=parameters)


@practice
def natural_units(num_data):
    """Incomes in euros: a prior and a noise whose scale is 1000. The narrow guide starts at scale 1, as guides do."""
    prior, scale = f64(1000.0), f64(1000.0)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(f64(3000.0), prior))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    exact = LinearGaussian(
        prior[None, None] ** 2,
        lambda x: (x[:, None], torch.ones(1, 1).double(), zeros(1), scale[None] ** 2, None),
        f64([3000.0]),
    )
    made = by(model, exact, Z, only_x(model), num_data, parameters=dict(prior=prior, scale=scale))
    narrow = gaussian_guide(Z, moved(exact.moments, 1 / (1000 * math.sqrt(0.5))))
    untrained = gaussian_guide(Z, lambda x: (torch.zeros_like(x)[:, None], torch.ones_like(x)[:, None, None]))
    return replace(made, guides=made.guides | {"narrow": narrow, "untrained": untrained})


@practice
def correlated_outputs(num_data):
    """Three traits with a correlated prior; each is measured three times."""
    factor = randn(3, 3, seed=15)
    covariance, scale = factor @ factor.T + 0.3 * torch.eye(3).double(), f64([0.5, 1.0, 0.3])

    def model(x):  # (N, trait, repeat)
        with pyro.plate("people", len(x)):
            z = pyro.sample("traits", dist.MultivariateNormal(zeros(3), covariance))
            three_times = z[..., None] * torch.ones(3).double()
            pyro.sample("x", dist.Normal(three_times, scale[:, None]).to_event(2), obs=x)

    seen = torch.eye(3).double().repeat_interleave(3, 0)
    exact = LinearGaussian(covariance, lambda x: (x.flatten(1), seen, zeros(9), scale.repeat_interleave(3) ** 2, None))
    parameters = dict(covariance=covariance, scale=scale)
    return by(model, exact, [Site("traits", 3)], only_x(model, 3, 3), num_data, plate="people", parameters=parameters)


@practice
def three_layers(num_data):
    """A chain of three latents above x, each from the one before."""
    scale = f64([1.0, 0.8, 0.6, 0.5])

    def model(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(f64(0.0), scale[0]))
            middle = pyro.sample("middle", dist.Normal(0.9 * top, scale[1]))
            bottom = pyro.sample("bottom", dist.Normal(1.1 * middle, scale[2]))
            pyro.sample("x", dist.Normal(bottom[..., None] * torch.ones(2).double(), scale[3]).to_event(1), obs=x)

    step = torch.linalg.inv(f64([[1, 0, 0], [-0.9, 1, 0], [0, -1.1, 1]]))
    covariance = step @ torch.diag(scale[:3] ** 2) @ step.T
    seen = f64([[0.0, 0.0, 1.0]] * 2)
    exact = LinearGaussian(covariance, lambda x: (x, seen, zeros(2), scale[3] ** 2, None))
    sites = [Site(name) for name in ("top", "middle", "bottom")]
    return by(model, exact, sites, only_x(model, 2), num_data, parameters=dict(scale=scale))


@practice
def missing_covariate(num_data):
    """A covariate that is missing for some: latent there, by `obs_mask`."""
    gain, scale = f64(1.3), f64(0.5)

    def model(x, covariate, known):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(f64(0.0), 1.0))
            c = pyro.sample("covariate", dist.Normal(f64(0.4), 0.8), obs=covariate, obs_mask=known)
            loc = z + gain * c
            pyro.sample("x", dist.Normal(loc[..., None] * torch.ones(2).double(), scale).to_event(1), obs=x)

    def draw(num, seed):
        known = rand(num, seed=seed) > 0.4
        x, covariate = simulate(model, zeros(num, 2), zeros(num), known, sites=("x", "covariate"), seed=seed)
        return x, covariate * known, known

    def observe(x, covariate, known):
        weight = torch.stack([torch.ones_like(covariate), gain * ~known], -1)[:, None].expand(-1, 2, -1)
        return x, weight, (gain * known * covariate)[:, None], scale.expand(2) ** 2, None

    class Exact(LinearGaussian):
        def log_evidence(self, x, covariate, known):
            of_covariate = dist.Normal(f64(0.4), 0.8).log_prob(covariate) * known
            return super().log_evidence(x, covariate, known) + of_covariate

    exact = Exact(torch.diag(f64([1.0, 0.8**2])), observe, f64([0.0, 0.4]))
    return by(
        model,
        exact,
        [Site("z"), Site("covariate_unobserved")],
        draw,
        num_data,
        masks=lambda x, covariate, known: torch.stack([torch.ones_like(known), ~known], -1),
        is_masked=True,
        parameters=dict(gain=gain, scale=scale),
    )


# One latent number, by quadrature


@practice
def logistic_intercepts(num_data):
    """A logistic regression of six answers in which each group has an intercept."""
    slope, spread = f64(1.0), f64(1.5)

    def model(x, covariate):
        with pyro.plate("groups", len(x)):
            intercept = pyro.sample("intercept", dist.Normal(f64(0.0), spread))
            logits = intercept[..., None] + slope * covariate
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def draw(num, seed):
        covariate = randn(num, 6, seed=seed)
        return simulate(model, zeros(num, 6), covariate, seed=seed), covariate

    def log_joint(z, x, covariate):
        sign, logits = 2 * x - 1, (spread * z)[..., None] + slope * covariate
        return standard_normal(z) + torch.nn.functional.logsigmoid(sign * logits).sum(-1) - spread.log()

    def in_units(intercept, x, covariate):
        return log_joint(intercept / spread, x, covariate)

    exact = Quadrature(in_units, (-15, 15))
    parameters = dict(slope=slope, spread=spread)
    return by(model, exact, [Site("intercept")], draw, num_data, plate="groups", parameters=parameters)


def _items(discrimination, difficulty):
    """A person's ability, and right or wrong answers to items."""
    num_items = len(difficulty)

    def model(x):
        with pyro.plate("people", len(x)):
            ability = pyro.sample("ability", dist.Normal(f64(0.0), 1.0))
            logits = discrimination * (ability[..., None] - difficulty)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def log_joint(z, x):
        logits = discrimination * (z[..., None] - difficulty)
        return standard_normal(z) + torch.nn.functional.logsigmoid((2 * x - 1) * logits).sum(-1)

    parameters = dict(discrimination=discrimination, difficulty=difficulty)
    return lambda num_data: by(
        model,
        Quadrature(log_joint, (-9, 9)),
        [Site("ability")],
        only_x(model, num_items),
        num_data,
        plate="people",
        parameters=parameters,
    )


PRACTICE["rasch"] = _items(torch.ones(10).double(), torch.linspace(-2, 2, 10, dtype=torch.float64))
PRACTICE["two_parameter_items"] = _items(0.5 + 2 * rand(12, seed=16), randn(12, seed=17))


@practice
def graded_answers(num_data):
    """An attitude, and five answers on a scale of four steps."""
    cutpoints, loading = f64([-1.5, 0.0, 1.2]), f64([1.0, 0.6, 1.5, 2.0, -1.0])

    def model(x):
        with pyro.plate("people", len(x)):
            z = pyro.sample("attitude", dist.Normal(f64(0.0), 1.0))
            pyro.sample("x", dist.OrderedLogistic(z[..., None] * loading, cutpoints).to_event(1), obs=x)

    edges = torch.cat([f64([-math.inf]), cutpoints, f64([math.inf])])

    def log_joint(z, x):
        predictor = z[..., None] * loading
        probs = torch.sigmoid(edges[x.long() + 1] - predictor) - torch.sigmoid(edges[x.long()] - predictor)
        return standard_normal(z) + probs.log().sum(-1)

    exact = Quadrature(log_joint, (-9, 9))
    parameters = dict(cutpoints=cutpoints, loading=loading)
    return by(model, exact, [Site("attitude")], only_x(model, 5), num_data, plate="people", parameters=parameters)


@practice
def probit(num_data):
    """One answer a person, right with a probability that is the normal CDF of ability and covariate."""
    intercept, gain = f64(0.3), f64(1.7)

    def model(x, covariate):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(f64(0.0), 1.0))
            probs = torch.special.ndtr(intercept + covariate + gain * z).clamp(1e-300, 1 - 1e-16)
            pyro.sample("x", dist.Bernoulli(probs), obs=x)

    def draw(num, seed):
        covariate = randn(num, seed=seed)
        return simulate(model, zeros(num), covariate, seed=seed), covariate

    def log_joint(z, x, covariate):
        return standard_normal(z) + torch.special.log_ndtr((2 * x - 1) * (intercept + covariate + gain * z))

    class Exact(Quadrature):
        def log_evidence(self, x, covariate):
            return torch.special.log_ndtr((2 * x - 1) * (intercept + covariate) / (1 + gain**2).sqrt())

    exact = Exact(log_joint, (-9, 9))
    return by(model, exact, Z, draw, num_data, parameters=dict(intercept=intercept, gain=gain))


@practice
def poisson_lognormal(num_data):
    """Four counts with exposures, at a rate that is log-normal."""
    loc, spread = f64(0.5), f64(0.9)

    def model(x, exposure):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.LogNormal(loc, spread))
            pyro.sample("x", dist.Poisson(rate[..., None] * exposure).to_event(1), obs=x)

    def draw(num, seed):
        exposure = 0.2 + 2 * rand(num, 4, seed=seed)
        return simulate(model, zeros(num, 4), exposure, seed=seed), exposure

    def log_joint(u, x, exposure):
        log_mean = u[..., None] + exposure.log()
        counts = x * log_mean - log_mean.exp() - (x + 1).lgamma()
        return standard_normal((u - loc) / spread) - spread.log() + counts.sum(-1)

    exact = Quadrature(log_joint, (-8, 9))
    sites = [Site("rate", transform=transforms.ExpTransform())]
    return by(model, exact, sites, draw, num_data, parameters=dict(loc=loc, spread=spread))


@practice
def overdispersed_counts(num_data):
    """Six negative binomial counts of a known mean, with a latent dispersion."""
    mean = f64(4.0)

    def model(x):
        with pyro.plate("data", len(x)):
            size = pyro.sample("size", dist.LogNormal(f64(0.5), 0.8))
            logits = (mean.log() - size.log())[..., None]
            counts = dist.NegativeBinomial(size[..., None], logits=logits).expand(size.shape + (6,))
            pyro.sample("x", counts.to_event(1), obs=x)

    def log_joint(u, x):
        size = u.exp()[..., None]
        counts = (x + size).lgamma() - size.lgamma() - (x + 1).lgamma()
        counts = counts + size * (size / (size + mean)).log() + x * (mean / (size + mean)).log()
        return standard_normal((u - 0.5) / 0.8) - math.log(0.8) + counts.sum(-1)

    exact = Quadrature(log_joint, (-7, 8))
    sites = [Site("size", transform=transforms.ExpTransform())]
    return by(model, exact, sites, only_x(model, 6), num_data, parameters=dict(mean=mean))


@practice
def zero_inflated_rate(num_data):
    """Five zero-inflated counts, with a log-normal rate and the zeros' indicator summed out by the distribution."""
    gate = f64(0.35)

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.LogNormal(f64(0.7), 0.7))
            pyro.sample(
                "x", dist.ZeroInflatedPoisson(rate[..., None].expand(rate.shape + (5,)), gate=gate).to_event(1), obs=x
            )

    def log_joint(u, x):
        poisson = x * u[..., None] - u.exp()[..., None] - (x + 1).lgamma()
        counts = torch.where(x == 0, (gate + (1 - gate) * poisson.exp()).log(), (1 - gate).log() + poisson)
        return standard_normal((u - 0.7) / 0.7) - math.log(0.7) + counts.sum(-1)

    exact = Quadrature(log_joint, (-6, 7))
    sites = [Site("rate", transform=transforms.ExpTransform())]
    return by(model, exact, sites, only_x(model, 5), num_data, parameters=dict(gate=gate))


class HurdlePoisson(TorchDistribution):
    """0 with probability `zero`, else a Poisson count that is not 0."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.nonnegative_integer

    def __init__(self, rate, zero):
        self.rate, self.zero = rate, zero
        super().__init__(rate.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return HurdlePoisson(self.rate.expand(batch_shape), self.zero)

    def sample(self, sample_shape=()):
        """By inversion: the first jump of a Poisson process within [0, 1], and the jumps after it."""
        rate = self.rate.expand(self.shape(torch.Size(sample_shape)))
        first = -torch.log1p(torch.rand_like(rate) * torch.expm1(-rate)) / rate
        return torch.where(torch.rand_like(rate) < self.zero, 0.0, 1 + torch.poisson(rate * (1 - first)))

    def log_prob(self, value):
        above = value * self.rate.log() - self.rate - (value + 1).lgamma() - torch.log(-torch.expm1(-self.rate))
        return torch.where(value == 0, self.zero.log(), torch.log1p(-self.zero) + above)


@practice
def hurdle_counts(num_data):
    """Five counts with a hurdle, by a distribution of the user's own."""
    zero = f64(0.4)

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.LogNormal(f64(0.5), 0.8))
            pyro.sample("x", HurdlePoisson(rate[..., None].expand(rate.shape + (5,)), zero).to_event(1), obs=x)

    def log_joint(u, x):
        rate = u.exp()[..., None]
        above = x * u[..., None] - (x + 1).lgamma() - torch.expm1(rate).log() + (1 - zero).log()
        return standard_normal((u - 0.5) / 0.8) - math.log(0.8) + torch.where(x == 0, zero.log(), above).sum(-1)

    exact = Quadrature(log_joint, (-7, 6.5))
    sites = [Site("rate", transform=transforms.ExpTransform())]
    return by(model, exact, sites, only_x(model, 5), num_data, parameters=dict(zero=zero))


class CensoredNormal(TorchDistribution):
    """max(0, N(loc, scale^2)): a density above 0, and a probability at 0."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.nonnegative

    def __init__(self, loc, scale):
        self.uncensored = dist.Normal(loc, scale)
        super().__init__(self.uncensored.batch_shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        base = self.uncensored.expand(batch_shape)
        return CensoredNormal(base.loc, base.scale)

    def sample(self, sample_shape=()):
        return self.uncensored.sample(torch.Size(sample_shape)).clamp(min=0)

    def log_prob(self, value):
        below = torch.special.log_ndtr(-self.uncensored.loc / self.uncensored.scale)
        return torch.where(value > 0, self.uncensored.log_prob(value), below)


@practice
def tobit(num_data):
    """Four expenses of a household, which are 0 where they would be negative."""
    level, scale = f64([0.5, -0.5, 0.0, -1.0]), f64(0.8)

    def model(x):
        with pyro.plate("households", len(x)):
            z = pyro.sample("z", dist.Normal(f64(0.0), 1.0))
            pyro.sample("x", CensoredNormal(z[..., None] + level, scale).to_event(1), obs=x)

    def log_joint(z, x):
        loc = z[..., None] + level
        density = standard_normal((x - loc) / scale) - scale.log()
        return standard_normal(z) + torch.where(x > 0, density, torch.special.log_ndtr(-loc / scale)).sum(-1)

    exact = Quadrature(log_joint, (-9, 9))
    parameters = dict(level=level, scale=scale)
    return by(model, exact, Z, only_x(model, 4), num_data, plate="households", parameters=parameters)


@practice
def half_cauchy_scale(num_data):
    """Five numbers of an unknown scale under a half-Cauchy prior."""

    def model(x):
        with pyro.plate("data", len(x)):
            scale = pyro.sample("scale", dist.HalfCauchy(f64(1.0)))
            pyro.sample("x", dist.Normal(zeros(5), scale[..., None]).to_event(1), obs=x)

    def log_joint(u, x):
        prior = math.log(2 / math.pi) - torch.log1p((2 * u).exp()) + u
        return prior + (standard_normal(x / u.exp()[..., None]) - u[..., None]).sum(-1)

    exact = Quadrature(log_joint, (-14, 16))
    sites = [Site("scale", transform=transforms.ExpTransform())]

    def good(x):
        """With a tail like the posterior's, which is heavier than a log-normal's."""
        loc, tril = exact.moments(x)
        with pyro.plate("data", len(x)):
            base = dist.StudentT(f64(5.0), loc[:, 0], 0.85 * tril[:, 0, 0])
            pyro.sample("scale", dist.TransformedDistribution(base, [transforms.ExpTransform()]))

    made = by(model, exact, sites, only_x(model, 5), num_data, is_singular=True)
    return replace(made, guides=made.guides | {"good": good, "log-normal": made.guides["good"]})


@practice
def uniform_prior(num_data):
    """A share between 0 and 1, of which twice is measured with noise: many posteriors lie at an edge."""
    noise = f64(0.5)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(f64(0.0), f64(1.0)))
            pyro.sample("x", dist.Normal(2 * z, noise), obs=x)

    def log_joint(u, x):
        log_slope = torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u)
        return log_slope + standard_normal((x - 2 * u.sigmoid()) / noise) - noise.log()

    class Exact(Quadrature):
        def log_evidence(self, x):
            return (torch.special.ndtr(x / noise) - torch.special.ndtr((x - 2) / noise)).log() - math.log(2)

    def beta(x, stretch):
        """The Beta distribution that has the posterior's mean and so many times its scale; the posterior is a cut Gaussian."""
        low, high = -x / noise, (2 - x) / noise
        at_low, at_high = standard_normal(low).exp(), standard_normal(high).exp()
        mass = torch.special.ndtr(high) - torch.special.ndtr(low)
        pull = (at_low - at_high) / mass
        variance = noise**2 * (1 + (low * at_low - high * at_high) / mass - pull**2)
        mean = (x + noise * pull) / 2
        concentration = mean * (1 - mean) / (stretch**2 * variance / 4) - 1
        return mean * concentration, (1 - mean) * concentration

    def good(x):
        """With a part that is uniform, for the posterior does not vanish at the edges."""
        a, b = (torch.stack([each, torch.ones_like(x)], -1) for each in beta(x, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(f64([0.8, 0.2])), dist.Beta(a, b)))

    def narrow(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Beta(*beta(x, NARROW)))

    exact = Exact(log_joint, (-30, 30))
    made = by(model, exact, UNIT_INTERVAL, only_x(model), num_data, parameters=dict(noise=noise))
    return replace(made, guides=made.guides | {"good": good, "narrow": narrow})


@practice
def correlation(num_data):
    """Eight pairs of numbers, and an LKJ prior of their correlation."""

    def model(x):
        with pyro.plate("data", len(x)):
            tril = pyro.sample("tril", dist.LKJCholesky(2, f64(2.0)))
            pairs = dist.MultivariateNormal(zeros(2), scale_tril=tril[..., None, :, :])
            pyro.sample("x", pairs.expand(tril.shape[:-2] + (8,)).to_event(1), obs=x)

    def log_joint(u, x):
        r = u.tanh()
        prior = math.log(0.75) + (1 - r**2).log()  # density 3/4 (1 - r^2), LKJ with concentration 2
        squares = (x.square().sum((-1, -2)) - 2 * r * x.prod(-1).sum(-1)) / (1 - r**2)
        pairs = -8 * math.log(2 * math.pi) - 4 * (1 - r**2).log() - squares / 2
        return prior + (1 - r**2).log() + pairs

    exact = Quadrature(log_joint, (-8, 8))
    sites = [Site("tril", 1, transforms.CorrCholeskyTransform())]
    return by(model, exact, sites, only_x(model, 8, 2), num_data)


# Several modes, kinks, angles


def _two_sided_guides(moments, to_fit):
    """Guides for a posterior that is symmetric about 0, from the moments of its positive half.

    "good" has both halves; "one mode" and "fitted" stand on one, as SVI with a Gaussian does; "narrow" is too narrow.
    """

    def both(scale):
        def guide(*args):
            loc, tril = moments(*args)
            ends = torch.stack([-loc[:, 0], loc[:, 0]], -1)
            parts = dist.Normal(ends, scale * tril[:, 0])
            with pyro.plate("data", len(args[0])):
                pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones_like(ends)), parts))

        return guide

    return {
        "good": both(1.1),
        "narrow": both(0.4),
        "one mode": gaussian_guide(Z, moved(moments, GOOD)),
        "fitted": gaussian_guide(Z, mean_field(moments, to_fit)),
    }


def _two_sided(model, log_joint, num_data, **notes):
    half, whole = Quadrature(log_joint, (0, 9)), Quadrature(log_joint, (-9, 9))
    draw = only_x(model)
    args = draw(num_data, TEST)
    guides = _two_sided_guides(half.moments, draw(NUM_TO_FIT, FIT))
    log_evidence = whole.log_evidence(*args)
    return Practice(model, guides, args, log_evidence, has_modes=True, quadrature=whole, **notes)


@practice
def square_and_noise(num_data):
    """x = z^2 + noise: the sign of z is lost."""
    scale = f64(0.4)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(f64(0.0), 1.5))
            pyro.sample("x", dist.Normal(z.square(), scale), obs=x)

    def log_joint(z, x):
        return standard_normal(z / 1.5, (x - z.square()) / scale) - math.log(1.5) - scale.log()

    return _two_sided(model, log_joint, num_data, parameters=dict(scale=scale))


@practice
def magnitude_and_noise(num_data):
    """x = |z| + noise: two modes, and a kink at 0."""
    scale = f64(0.3)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(f64(0.0), 1.0))
            pyro.sample("x", dist.Normal(z.abs(), scale), obs=x)

    def log_joint(z, x):
        return standard_normal(z, (x - z.abs()) / scale) - scale.log()

    made = _two_sided(model, log_joint, num_data, is_singular=True, parameters=dict(scale=scale))
    spread = (1 + scale**2).sqrt()  # by the formula, as the kink costs the grid its accuracy
    (x,) = made.args
    log_evidence = standard_normal(x / spread) - spread.log() + torch.special.log_ndtr(x / scale / spread) + math.log(2)
    return replace(made, log_evidence=log_evidence, quadrature=None)


@practice
def mixture_prior(num_data):
    """A latent whose prior is a mixture of three Gaussians, without a discrete site, seen with noise."""
    weights, locs, spreads, scale = f64([0.2, 0.5, 0.3]), f64([-3.0, 0.0, 2.5]), f64([0.4, 0.5, 0.8]), f64(1.2)

    def model(x):
        with pyro.plate("data", len(x)):
            prior = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, spreads))
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def parts(x):
        """Log weights, means and scales of the posterior's three parts."""
        variance = spreads**2 + scale**2
        log_weights = weights.log() + standard_normal((x[:, None] - locs) / variance.sqrt()) - 0.5 * variance.log()
        return log_weights, (locs * scale**2 + x[:, None] * spreads**2) / variance, scale * spreads / variance.sqrt()

    def moments(x):
        log_weights, loc, spread = parts(x)
        w = log_weights.softmax(-1)
        mean = (w * loc).sum(-1)
        variance = (w * (spread**2 + loc**2)).sum(-1) - mean**2
        return mean[:, None], variance.sqrt()[:, None, None]

    def mixture_guide(stretch):
        def guide(x):
            log_weights, loc, spread = parts(x)
            with pyro.plate("data", len(x)):
                part = dist.Categorical(logits=log_weights)
                pyro.sample("z", dist.MixtureSameFamily(part, dist.Normal(loc, stretch * spread)))

        return guide

    draw = only_x(model)
    args = draw(num_data, TEST)
    guides = {
        "good": mixture_guide(1.1),
        "narrow": mixture_guide(NARROW),
        "one Gaussian": gaussian_guide(Z, moments),
        "fitted": gaussian_guide(Z, mean_field(moments, draw(NUM_TO_FIT, FIT))),
    }
    log_evidence = parts(*args)[0].logsumexp(-1)
    parameters = dict(weights=weights, locs=locs, spreads=spreads, scale=scale)
    return Practice(model, guides, args, log_evidence, has_modes=True, parameters=parameters)


def _angle(centre, prior_concentration, scale):
    """An angle with a von Mises prior, seen as a noisy point near the circle."""

    def model(x):
        with pyro.plate("data", len(x)):
            angle = pyro.sample("angle", dist.VonMises(f64(centre), f64(prior_concentration)))
            point = torch.stack([angle.cos(), angle.sin()], -1)
            pyro.sample("x", dist.Normal(point, scale).to_event(1), obs=x)

    pull = f64([math.cos(centre), math.sin(centre)]) * prior_concentration

    def resultant(x):
        """The posterior is von Mises: the prior's pull and the data's add up."""
        total = pull + x / scale**2
        return torch.atan2(total[:, 1], total[:, 0]), total.norm(dim=-1)

    def log_evidence(x):
        """I_0 scaled by exp(-argument), as `i0e`."""
        _, concentration = resultant(x)
        constant = -math.log(2 * math.pi * scale**2) - (x.square().sum(-1) + 1) / (2 * scale**2)
        prior = math.log(torch.special.i0e(f64(prior_concentration))) + prior_concentration
        return constant + torch.special.i0e(concentration).log() + concentration - prior

    def of_scale(stretch):
        def guide(x):
            direction, concentration = resultant(x)
            with pyro.plate("data", len(x)):
                pyro.sample("angle", dist.VonMises(direction, concentration / stretch**2))

        return guide

    def make(num_data):
        draw = only_x(model, 2)
        args, to_fit = draw(num_data, TEST), draw(NUM_TO_FIT, FIT)
        direction, concentration = resultant(*to_fit)
        targets = torch.stack([direction.cos(), direction.sin(), concentration.log()], -1)
        regression = Regression(to_fit, targets, num_hidden=3)

        def fitted(x):
            cosine, sine, log_concentration = regression(x).unbind(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("angle", dist.VonMises(torch.atan2(sine, cosine), log_concentration.exp()))

        guides = {"good": of_scale(1.1), "narrow": of_scale(NARROW), "wide": of_scale(2.0), "fitted": fitted}
        parameters = dict(centre=centre, concentration=prior_concentration, scale=scale)
        return Practice(model, guides, args, log_evidence(*args), is_circular=True, parameters=parameters)

    return make


PRACTICE["angle"] = _angle(0.5, 1.5, 0.5)
PRACTICE["angle_near_pi"] = _angle(3.1, 3.0, 0.6)


# Conjugate programs


@practice
def counts_with_exposure(num_data):
    """Counts at a Gamma rate, each with an exposure."""
    shape, rate = f64(2.0), f64(1.5)

    def model(x, exposure):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(shape, rate))
            pyro.sample("x", dist.Poisson(z * exposure), obs=x)

    def draw(num, seed):
        exposure = 0.3 + 4 * rand(num, seed=seed)
        return simulate(model, zeros(num), exposure, seed=seed), exposure

    x, exposure = args = draw(num_data, TEST)
    guides = gamma_guides(lambda x, exposure: (shape + x, rate + exposure), draw(NUM_TO_FIT, FIT))
    log_evidence = dist.NegativeBinomial(shape, probs=exposure / (exposure + rate)).log_prob(x)
    return Practice(model, guides, args, log_evidence, parameters=dict(shape=shape, rate=rate))


@practice
def successes_of_trials(num_data):
    """Successes of some number of trials, with a Beta probability."""
    a, b = f64(2.0), f64(3.0)

    def model(x, trials):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(a, b))
            pyro.sample("x", dist.Binomial(trials, z), obs=x)

    def draw(num, seed):
        trials = 1 + (30 * rand(num, seed=seed)).floor()
        return simulate(model, zeros(num), trials, seed=seed), trials

    def family(scale, x, trials):
        return dist.Beta((a + x) / scale**2, (b + trials - x) / scale**2)

    def moments(x, trials):
        exact = family(1.0, x, trials)
        high, low = exact.concentration1, exact.concentration0
        spread = (torch.polygamma(1, high) + torch.polygamma(1, low)).sqrt()
        return (high.digamma() - low.digamma())[:, None], spread[:, None, None]

    x, trials = args = draw(num_data, TEST)
    guides = family_guides(family, UNIT_INTERVAL, moments, draw(NUM_TO_FIT, FIT))
    log_evidence = dist.BetaBinomial(a, b, trials).log_prob(x)
    return Practice(model, guides, args, log_evidence, parameters=dict(a=a, b=b))


@practice
def votes_of_three_parties(num_data):
    """Fifteen votes for three parties, with Dirichlet shares."""
    prior = f64([1.5, 1.0, 0.7])

    def model(x):
        with pyro.plate("data", len(x)):
            shares = pyro.sample("shares", dist.Dirichlet(prior))
            pyro.sample("x", dist.Multinomial(15, shares, validate_args=False), obs=x)

    def moments(x):
        """Of the sticks that are broken off, which are independent Beta variables."""
        posterior = prior + x
        first, rest = posterior[:, :2], posterior.flip(-1).cumsum(-1).flip(-1)[:, 1:]
        loc = first.digamma() - rest.digamma() + f64([2.0, 1.0]).log()
        return loc, torch.diag_embed((torch.polygamma(1, first) + torch.polygamma(1, rest)).sqrt())

    draw = only_x(model, 3)
    (x,) = args = draw(num_data, TEST)
    sites = [Site("shares", 2, transforms.StickBreakingTransform())]
    guides = family_guides(
        lambda scale, x: dist.Dirichlet((prior + x) / scale**2), sites, moments, draw(NUM_TO_FIT, FIT)
    )
    terms = (prior + x).lgamma() - prior.lgamma() - (x + 1).lgamma()
    log_evidence = terms.sum(-1) + prior.sum().lgamma() - (prior.sum() + 15).lgamma() + f64(16.0).lgamma()
    return Practice(model, guides, args, log_evidence, parameters=dict(prior=prior))


@practice
def student_t_by_precisions(num_data):
    """Student's t as a Gaussian whose precision is Gamma."""
    freedom = f64(3.0)

    def model(x):
        with pyro.plate("data", len(x)):
            precision = pyro.sample("z", dist.Gamma(freedom / 2, freedom / 2))
            pyro.sample("x", dist.Normal(f64(0.0), precision.rsqrt()), obs=x)

    draw = only_x(model)
    args = draw(num_data, TEST)
    guides = gamma_guides(lambda x: ((freedom + 1) / 2, (freedom + x.square()) / 2), draw(NUM_TO_FIT, FIT))
    log_evidence = dist.StudentT(freedom, f64(0.0), f64(1.0)).log_prob(*args)
    return Practice(model, guides, args, log_evidence, parameters=dict(freedom=freedom))


@practice
def laplace_by_variances(num_data):
    """Laplace's distribution as a Gaussian whose variance is exponential."""

    def model(x):
        with pyro.plate("data", len(x)):
            variance = pyro.sample("z", dist.Exponential(f64(0.5)))
            pyro.sample("x", dist.Normal(f64(0.0), variance.sqrt()), obs=x)

    def log_joint(u, x):
        return math.log(0.5) - 0.5 * u.exp() + u + standard_normal(x / (u / 2).exp()) - u / 2

    class Exact(Quadrature):
        def log_evidence(self, x):
            return -x.abs() - math.log(2)

    return by(model, Exact(log_joint, (-20, 5.5)), POSITIVE, only_x(model), num_data, is_singular=True)


@practice
def censored_lifetimes(num_data):
    """Three exponential lifetimes at a Gamma rate, some cut off by the study's end, with the likelihood as a factor."""
    shape, rate = f64(2.0), f64(1.5)

    def model(x, died):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(shape, rate))
            log_density = died.double() * z.log()[..., None] - z[..., None] * x
            pyro.factor("likelihood", log_density.sum(-1))

    def draw(num, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            lifetimes = dist.Exponential(dist.Gamma(shape, rate).sample((num, 1)).expand(num, 3)).sample()
        return lifetimes.clamp(max=1.5), lifetimes < 1.5

    def posterior(x, died):
        return shape + died.sum(-1), rate + x.sum(-1)

    args = draw(num_data, TEST)
    new_shape, new_rate = posterior(*args)
    log_evidence = shape * rate.log() - shape.lgamma() + new_shape.lgamma() - new_shape * new_rate.log()
    guides = gamma_guides(posterior, draw(NUM_TO_FIT, FIT))
    return Practice(model, guides, args, log_evidence, has_factor=True, parameters=dict(shape=shape, rate=rate))


@practice
def weibull_with_frailty(num_data):
    """A Weibull lifetime with a Gamma frailty: a density where the end was seen, else the probability to outlive."""
    shape, rate, power = f64(2.5), f64(2.0), f64(1.6)

    def model(x, died):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(shape, rate))
            with poutine.mask(mask=died):
                pyro.sample("x", dist.Weibull(z ** (-1 / power), power), obs=x)
            with poutine.mask(mask=~died):
                pyro.sample(
                    "survival",
                    dist.Bernoulli(logits=-z * x**power - (-torch.expm1(-z * x**power)).log()),
                    obs=torch.ones_like(x),
                )

    def draw(num, seed):
        lifetimes = simulate(model, torch.ones(num).double(), torch.ones(num, dtype=torch.bool), seed=seed)
        ends = 0.3 + 2 * rand(num, seed=seed)
        return torch.minimum(lifetimes, ends), lifetimes < ends

    def posterior(x, died):
        return shape + died, rate + x**power

    x, died = args = draw(num_data, TEST)
    survival = shape * (rate.log() - (rate + x**power).log())
    hazard = (shape * power).log() + (power - 1) * x.log() - (rate + x**power).log()
    guides = gamma_guides(posterior, draw(NUM_TO_FIT, FIT))
    parameters = dict(shape=shape, rate=rate, power=power)
    return Practice(model, guides, args, survival + died * hazard, is_masked=True, parameters=parameters)


@practice
def unknown_mean_and_precision(num_data):
    """Six numbers of which neither mean nor precision is known."""
    shape, rate, count = f64(3.0), f64(2.0), f64(0.5)

    def model(x):
        with pyro.plate("data", len(x)):
            precision = pyro.sample("precision", dist.Gamma(shape, rate))
            mean = pyro.sample("mean", dist.Normal(f64(0.0), (count * precision).rsqrt()))
            six_times = mean[..., None] * torch.ones(6).double()
            pyro.sample("x", dist.Normal(six_times, precision.rsqrt()[..., None]).to_event(1), obs=x)

    def posterior(x):
        total = x.sum(-1)
        new_rate = rate + 0.5 * (x.square().sum(-1) - total**2 / (count + 6))
        return shape + 3, new_rate, total / (count + 6)

    def exact_form(stretch):
        def guide(x):
            new_shape, new_rate, loc = posterior(x)
            with pyro.plate("data", len(x)):
                precision = pyro.sample("precision", dist.Gamma(new_shape / stretch**2, new_rate / stretch**2))
                pyro.sample("mean", dist.Normal(loc, stretch * ((count + 6) * precision).rsqrt()))

        return guide

    def moments(x):
        new_shape, new_rate, loc = posterior(x)
        spread = ((count + 6) * new_shape / new_rate).rsqrt()
        log_spread = torch.polygamma(1, new_shape).sqrt().expand_as(spread)
        return torch.stack([new_shape.digamma() - new_rate.log(), loc], -1), torch.diag_embed(
            torch.stack([log_spread, spread], -1)
        )

    draw = only_x(model, 6)
    args = draw(num_data, TEST)
    new_shape, new_rate, _ = posterior(*args)
    log_evidence = new_shape.lgamma() - shape.lgamma() + shape * rate.log() - new_shape * new_rate.log()
    log_evidence = log_evidence + 0.5 * (count / (count + 6)).log() - 3 * math.log(2 * math.pi)
    sites = [Site("precision", transform=transforms.ExpTransform()), Site("mean")]
    guides = {"good": exact_form(GOOD), "narrow": exact_form(NARROW), "wide": exact_form(WIDE)}
    guides["fitted"] = gaussian_guide(sites, mean_field(moments, draw(NUM_TO_FIT, FIT)))
    parameters = dict(shape=shape, rate=rate, count=count)
    return Practice(model, guides, args, log_evidence, parameters=parameters)


# Two latent numbers and more, by quadrature


@practice
def logistic_intercepts_and_slopes(num_data):
    """A logistic regression of five answers in which each group has an intercept and a slope."""

    def model(x, covariate):
        with pyro.plate("groups", len(x)):
            intercept = pyro.sample("intercept", dist.Normal(f64(0.0), 1.0))
            slope = pyro.sample("slope", dist.Normal(f64(0.0), 1.0))
            logits = intercept[..., None] + (0.5 + slope)[..., None] * covariate
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def draw(num, seed):
        covariate = randn(num, 5, seed=seed)
        return simulate(model, zeros(num, 5), covariate, seed=seed), covariate

    def log_joint(intercept, slope, x, covariate):
        logits = intercept[..., None] + (0.5 + slope)[..., None] * covariate
        return standard_normal(intercept, slope) + torch.nn.functional.logsigmoid((2 * x - 1) * logits).sum(-1)

    exact = Quadrature(log_joint, (-8, 8), (-8, 8))
    return by(model, exact, [Site("intercept"), Site("slope")], draw, num_data, plate="groups")


@practice
def two_steps_of_volatility(num_data):
    """Returns of two days, with a log volatility that drifts."""

    def model(x):
        with pyro.plate("data", len(x)):
            first = pyro.sample("h_0", dist.Normal(f64(-1.0), 1.0))
            second = pyro.sample("h_1", dist.Normal(-1 + 0.9 * (first + 1), 0.5))
            volatility = torch.stack([first, second], -1)
            pyro.sample("x", dist.Normal(zeros(2), (volatility / 2).exp()).to_event(1), obs=x)

    def log_joint(first, second, x):
        prior = standard_normal(first + 1, (second + 1 - 0.9 * (first + 1)) / 0.5) - math.log(0.5)
        returns = standard_normal(x[:, 0] / (first / 2).exp(), x[:, 1] / (second / 2).exp())
        return prior + returns - (first + second) / 2

    exact = Quadrature(log_joint, (-9, 8), (-9, 8))
    return by(model, exact, [Site("h_0"), Site("h_1")], only_x(model, 2), num_data)


@practice
def bernoulli_vae(num_data):
    """Eight black or white pixels, from two latents by a decoder with a hidden layer."""
    first, second = 0.6 * randn(2, 6, seed=18), randn(6, 8, seed=19)

    def decode(z):
        return (z @ first).tanh() @ second

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def log_joint(a, b, x):
        logits = decode(torch.stack([a, b], -1))
        return standard_normal(a, b) + (logits @ x.T)[:, 0] + torch.nn.functional.logsigmoid(-logits).sum(-1)

    exact = Quadrature(log_joint, (-7, 7), (-7, 7))
    parameters = dict(first=first, second=second)
    return by(model, exact, [Site("z", 2)], only_x(model, 8), num_data, parameters=parameters)


@practice
def logistic_normal_shares(num_data):
    """Twenty votes for three parties, with logistic-normal shares."""
    loc, spread = f64([0.3, -0.4]), f64([1.0, 1.3])

    def model(x):
        with pyro.plate("data", len(x)):
            shares = pyro.sample("shares", dist.LogisticNormal(loc, spread))
            pyro.sample("x", dist.Multinomial(20, shares, validate_args=False), obs=x)

    def log_joint(a, b, x):
        log_shares = transforms.StickBreakingTransform()(torch.stack([a, b], -1)).log()
        prior = standard_normal((a - loc[0]) / spread[0], (b - loc[1]) / spread[1]) - spread.log().sum()
        constant = f64(21.0).lgamma() - (x + 1).lgamma().sum(-1)
        return prior + (x * log_shares).sum(-1) + constant

    exact = Quadrature(log_joint, (-9, 9), (-11, 11))
    sites = [Site("shares", 2, transforms.StickBreakingTransform())]
    return by(model, exact, sites, only_x(model, 3), num_data, parameters=dict(loc=loc, spread=spread))


@practice
def softmax_of_normals(num_data):
    """Twenty-five words of four kinds, whose log odds are fixed combinations of two normal latents."""
    contrast = f64([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])

    def model(x):
        with pyro.plate("documents", len(x)):
            z = pyro.sample("z", dist.Normal(zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Multinomial(25, logits=z @ contrast.T, validate_args=False), obs=x)

    def log_joint(a, b, x):
        log_probs = (torch.stack([a, b], -1) @ contrast.T).log_softmax(-1)
        constant = f64(26.0).lgamma() - (x + 1).lgamma().sum(-1)
        return standard_normal(a, b) + (x * log_probs).sum(-1) + constant

    exact = Quadrature(log_joint, (-7, 7), (-7, 7))
    return by(
        model, exact, [Site("z", 2)], only_x(model, 4), num_data, plate="documents", parameters=dict(contrast=contrast)
    )


@practice
def banana(num_data):
    """Rosenbrock's valley: x sees the sum of one latent and the other's square."""
    noise, spread = f64(0.3), f64(1.5)

    def model(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(f64(0.0), 1.0))
            z2 = pyro.sample("z2", dist.Normal(f64(0.0), spread))
            pyro.sample("x", dist.Normal(z2 + z1.square(), noise), obs=x)

    variance = spread**2 + noise**2

    def log_joint(z1, x):
        return standard_normal(z1, (x - z1.square()) / variance.sqrt()) - 0.5 * variance.log()

    exact = Quadrature(log_joint, (-8, 8))

    def valley(stretch):
        """Two halves of z1, and z2 given z1, which is Gaussian."""
        half = Quadrature(log_joint, (0, 8))

        def guide(x):
            loc, tril = half.moments(x)
            ends = torch.stack([-loc[:, 0], loc[:, 0]], -1)
            with pyro.plate("data", len(x)):
                halves = dist.Normal(ends, 1.1 * stretch * tril[:, 0])
                z1 = pyro.sample("z1", dist.MixtureSameFamily(dist.Categorical(torch.ones_like(ends)), halves))
                shrink = spread**2 / variance
                pyro.sample("z2", dist.Normal(shrink * (x - z1.square()), stretch * noise * shrink.sqrt()))

        return guide

    def moments(x):
        """A Gaussian that knows nothing of the valley; the spread of z2 is that at the mean of z1."""
        loc, tril = exact.moments(x)
        second = spread**2 / variance * (x - tril[:, 0, 0] ** 2)
        scales = torch.stack([tril[:, 0, 0], (noise * spread / variance.sqrt()).expand_as(x)], -1)
        return torch.stack([loc[:, 0], second], -1), torch.diag_embed(scales)

    draw = only_x(model)
    args = draw(num_data, TEST)
    guides = {"good": valley(GOOD), "narrow": valley(NARROW), "wide": valley(WIDE)}
    guides["fitted"] = gaussian_guide([Site("z1"), Site("z2")], mean_field(moments, draw(NUM_TO_FIT, FIT)))
    parameters = dict(noise=noise, spread=spread)
    return Practice(
        model, guides, args, exact.log_evidence(*args), has_modes=True, parameters=parameters, quadrature=exact
    )


@practice
def funnel(num_data):
    """Neal's funnel of four latents, three of which are seen with noise."""
    spread = f64(1.5)

    def model(x):
        with pyro.plate("data", len(x)):
            v = pyro.sample("v", dist.Normal(f64(0.0), spread))
            z = pyro.sample("z", dist.Normal(zeros(3), (v / 2).exp()[..., None]).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def log_joint(v, x):
        variance = v.exp()[..., None] + 1
        return (
            standard_normal(v / spread)
            - spread.log()
            + (standard_normal(x / variance.sqrt()) - 0.5 * variance.log()).sum(-1)
        )

    exact = Quadrature(log_joint, (-15, 15))

    def exact_form(moments, stretch):
        def guide(x):
            loc, tril = moments(x)
            with pyro.plate("data", len(x)):
                v = pyro.sample("v", dist.Normal(loc[:, 0], tril[:, 0, 0]))
                shrink = v.sigmoid()[..., None]
                pyro.sample("z", dist.Normal(shrink * x, stretch * shrink.sqrt()).to_event(1))

        return guide

    def around_mean(x):
        loc, tril = exact.moments(x)
        shrink = loc.sigmoid()
        scales = torch.cat([tril[:, 0], shrink.sqrt().expand(-1, 3)], -1)
        return torch.cat([loc, shrink * x], -1), torch.diag_embed(scales)

    draw = only_x(model, 3)
    args = draw(num_data, TEST)
    guides = {
        name: exact_form(moved(exact.moments, scale), scale)
        for name, scale in (("good", 1.1), ("narrow", NARROW), ("wide", WIDE))
    }
    guides["fitted"] = gaussian_guide([Site("v"), Site("z", 3)], mean_field(around_mean, draw(NUM_TO_FIT, FIT)))
    parameters = dict(spread=spread)
    return Practice(
        model, guides, args, exact.log_evidence(*args), is_singular=True, parameters=parameters, quadrature=exact
    )


@practice
def three_kinds_of_data(num_data):
    """One latent behind a measurement, a count and an answer."""

    def model(x, count, answer):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(f64(0.0), 1.0))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)
            pyro.sample("count", dist.Poisson((0.5 + z).exp()), obs=count)
            pyro.sample("answer", dist.Bernoulli(logits=1.5 * z), obs=answer)

    def draw(num, seed):
        return simulate(model, zeros(num), zeros(num), zeros(num), sites=("x", "count", "answer"), seed=seed)

    def log_joint(z, x, count, answer):
        counts = count * (0.5 + z) - (0.5 + z).exp() - (count + 1).lgamma()
        return standard_normal(z, x - 2 * z) + counts + torch.nn.functional.logsigmoid((2 * answer - 1) * 1.5 * z)

    return by(model, Quadrature(log_joint, (-9, 9)), Z, draw, num_data)


# Programs with discrete latents


@practice
def gaussian_mixture(num_data):
    """Three clusters in the plane, with the cluster drawn by the guide."""
    weights, locs = f64([0.5, 0.3, 0.2]), f64([[0.0, 0.0], [2.0, 1.0], [-1.5, 2.0]])
    trils = f64([[[1.0, 0.0], [0.3, 0.8]], [[0.5, 0.0], [0.0, 0.9]], [[0.9, 0.0], [-0.5, 0.7]]])

    def model(x):
        with pyro.plate("data", len(x)):
            cluster = pyro.sample("cluster", dist.Categorical(weights))
            pyro.sample("x", dist.MultivariateNormal(locs[cluster], scale_tril=trils[cluster]), obs=x)

    def log_posterior(x):
        return weights.log() + dist.MultivariateNormal(locs, scale_tril=trils).log_prob(x[:, None])

    draw = only_x(model, 2)
    args = draw(num_data, TEST)
    guides = categorical_guides("cluster", log_posterior, draw(NUM_TO_FIT, FIT))
    parameters = dict(weights=weights, locs=locs, trils=trils)
    return Practice(model, guides, args, log_posterior(*args).logsumexp(-1), continuous=False, parameters=parameters)


@practice
def latent_classes(num_data):
    """Three classes of people, and six answers, independent given the class."""
    weights, probs = f64([0.5, 0.3, 0.2]), 0.1 + 0.8 * rand(3, 6, seed=20)

    def model(x):
        with pyro.plate("data", len(x)):
            kind = pyro.sample("class", dist.Categorical(weights))
            pyro.sample("x", dist.Bernoulli(probs[kind]).to_event(1), obs=x)

    def log_posterior(x):
        return weights.log() + x @ probs.log().T + (1 - x) @ (1 - probs).log().T

    draw = only_x(model, 6)
    args = draw(num_data, TEST)
    guides = categorical_guides("class", log_posterior, draw(NUM_TO_FIT, FIT))
    parameters = dict(weights=weights, probs=probs)
    return Practice(model, guides, args, log_posterior(*args).logsumexp(-1), continuous=False, parameters=parameters)


@practice
def hidden_markov(num_data):
    """A hidden Markov model of five steps and three states; the guide draws each state given the one before."""
    initial = f64([0.6, 0.3, 0.1])
    transition = f64([[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]])
    locs, scale, num_steps = f64([-1.0, 0.5, 2.0]), f64(0.7), 5

    def model(x):
        with pyro.plate("sequences", len(x)):
            probs = initial
            for t in range(num_steps):
                state = pyro.sample(f"z_{t}", dist.Categorical(probs))
                probs = transition[state]
                pyro.sample(f"x_{t}", dist.Normal(locs[state], scale), obs=x[:, t])

    def to_go(x):
        """log p(x_t, ... | z_t) for each step."""
        emission = dist.Normal(locs, scale).log_prob(x[..., None])  # (N, T, S)
        messages = [emission[:, -1]]
        for t in reversed(range(num_steps - 1)):
            ahead = (transition.log() + messages[0][:, None]).logsumexp(-1)
            messages.insert(0, emission[:, t] + ahead)
        return messages

    def guide_from(logits_at):
        """`logits_at(t, previous, x)`, where `previous` is the state before, or None."""

        def guide(x):
            state = None
            with pyro.plate("sequences", len(x)):
                for t in range(num_steps):
                    state = pyro.sample(f"z_{t}", dist.Categorical(logits=logits_at(t, state, x)))

        return guide

    def exact(t, previous, x):
        return (initial if previous is None else transition[previous]).log() + to_go(x)[t]

    def marginals(x):
        """p(z_t | x), as a mean-field guide would have it."""
        ahead, messages = initial.log().expand(len(x), 3), to_go(x)
        found = []
        for t in range(num_steps):
            found.append((ahead + messages[t]).log_softmax(-1))
            emission = dist.Normal(locs, scale).log_prob(x[:, t, None])
            ahead = ((ahead + emission)[..., None] + transition.log()).logsumexp(1)
        return torch.stack(found, 1)

    def draw(num, seed):
        return (
            torch.stack(
                simulate(model, zeros(num, num_steps), sites=[f"x_{t}" for t in range(num_steps)], seed=seed), -1
            ),
        )

    args, to_fit = draw(num_data, TEST), draw(NUM_TO_FIT, FIT)
    regression = Regression(to_fit, marginals(*to_fit).clamp(min=-8.0).flatten(1))
    guides = {
        "good": guide_from(lambda *where: 0.95 * exact(*where).log_softmax(-1)),
        "narrow": guide_from(lambda *where: sure(exact(*where).log_softmax(-1))),
        "wide": guide_from(lambda *where: 0.3 * exact(*where).log_softmax(-1)),
        "fitted": guide_from(lambda t, _, x: regression(x).unflatten(-1, (num_steps, 3))[:, t]),
    }
    log_evidence = (initial.log() + to_go(*args)[0]).logsumexp(-1)
    parameters = dict(initial=initial, transition=transition, locs=locs, scale=scale)
    return Practice(model, guides, args, log_evidence, continuous=False, parameters=parameters)


@practice
def zeros_out_of_season(num_data):
    """Three counts, all 0 out of season, which is a discrete latent; some draws have no likelihood at all."""
    off, rate = f64(0.4), f64(0.8)

    def model(x):
        with pyro.plate("data", len(x)):
            closed = pyro.sample("closed", dist.Bernoulli(off))
            pyro.sample("x", dist.Poisson((rate * (1 - closed))[..., None] * torch.ones(3).double()).to_event(1), obs=x)

    def parts(x):
        """log p(x, open) and log p(x, closed)."""
        poisson = (x * rate.log() - rate - (x + 1).lgamma()).sum(-1)
        return (1 - off).log() + poisson, torch.where((x == 0).all(-1), off.log(), -math.inf)

    def prob_closed(x):
        at_work, closed = parts(x)
        return (closed - torch.logaddexp(at_work, closed)).exp()

    def guide_from(probs):
        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("closed", dist.Bernoulli(probs(x)))

        return guide

    draw = only_x(model, 3)
    args = draw(num_data, TEST)
    regression = Regression(draw(NUM_TO_FIT, FIT), prob_closed(*draw(NUM_TO_FIT, FIT))[:, None])
    guides = {
        "good": guide_from(lambda x: 0.95 * prob_closed(x)),
        "narrow": guide_from(lambda x: torch.where(prob_closed(x) > 0.5, 0.001, 0.002).double()),
        "wide": guide_from(lambda x: torch.full_like(x[:, 0], 0.5)),
        "fitted": guide_from(lambda x: regression(x)[:, 0].clamp(0.01, 0.99) * (x == 0).all(-1)),
    }
    log_evidence = torch.logaddexp(*parts(*args))
    return Practice(model, guides, args, log_evidence, continuous=False, parameters=dict(off=off, rate=rate))


@practice
def missing_treatment(num_data):
    """A treatment that is not on record for some: a discrete latent there, by `obs_mask`."""
    treated, effect, scale = f64(0.4), f64(1.5), f64(0.6)

    def model(x, treatment, known):
        with pyro.plate("data", len(x)):
            c = pyro.sample("treatment", dist.Bernoulli(treated), obs=treatment, obs_mask=known)
            z = pyro.sample("z", dist.Normal(f64(0.0), 1.0))
            loc = (z + effect * c)[..., None] * torch.ones(2).double()
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def draw(num, seed):
        known = rand(num, seed=seed) > 0.5
        x, treatment = simulate(model, zeros(num, 2), zeros(num), known, sites=("x", "treatment"), seed=seed)
        return x, treatment * known, known

    covariance = torch.ones(2, 2).double() + scale**2 * torch.eye(2).double()

    def parts(x):
        """log p(x, c) for c = 0 and c = 1."""
        each = [dist.MultivariateNormal(c * effect * torch.ones(2).double(), covariance).log_prob(x) for c in (0, 1)]
        return torch.stack(each, -1) + torch.stack([1 - treated, treated]).log()

    def guide_from(logits, stretch):
        def guide(x, treatment, known):
            with pyro.plate("data", len(x)):
                with poutine.mask(mask=~known):
                    guess = pyro.sample("treatment_unobserved", dist.Bernoulli(logits=logits(x, treatment, known)))
                c = torch.where(known, treatment, guess)
                variance = 1 / (1 + 2 / scale**2)
                loc = variance * (x.sum(-1) - 2 * effect * c) / scale**2
                pyro.sample("z", dist.Normal(loc, stretch * variance.sqrt()))

        return guide

    def log_odds(x, *_):
        return parts(x).diff(dim=-1)[..., 0]

    args = x, treatment, known = draw(num_data, TEST)
    to_fit = draw(NUM_TO_FIT, FIT)
    regression = Regression((to_fit[0],), log_odds(*to_fit)[:, None])
    guides = {
        "good": guide_from(lambda *args: 0.95 * log_odds(*args), GOOD),
        "narrow": guide_from(
            lambda *args: torch.where(log_odds(*args).abs() < 2, -1, 1) * log_odds(*args).sign() * 7, NARROW
        ),
        "wide": guide_from(lambda *args: 0.3 * log_odds(*args), WIDE),
        "fitted": guide_from(lambda x, *_: 0.6 * regression(x)[:, 0], 1.3),
    }
    of_treatment = parts(x).gather(-1, treatment.long()[:, None])[:, 0]
    log_evidence = torch.where(known, of_treatment, parts(x).logsumexp(-1))
    parameters = dict(treated=treated, effect=effect, scale=scale)
    return Practice(model, guides, args, log_evidence, continuous=False, is_masked=True, parameters=parameters)


@practice
def clusters_with_levels(num_data):
    """A discrete cluster, a continuous level that depends on it, and two measurements of the level."""
    weights, locs, spreads, scale = f64([0.3, 0.7]), f64([-1.5, 1.0]), f64([0.5, 1.0]), f64(0.8)

    def model(x):
        with pyro.plate("data", len(x)):
            cluster = pyro.sample("cluster", dist.Categorical(weights))
            level = pyro.sample("level", dist.Normal(locs[cluster], spreads[cluster]))
            pyro.sample("x", dist.Normal(level[..., None] * torch.ones(2).double(), scale).to_event(1), obs=x)

    def log_posterior(x):
        covariance = spreads[:, None, None] ** 2 + scale**2 * torch.eye(2).double()
        return weights.log() + dist.MultivariateNormal(locs[:, None].expand(2, 2), covariance).log_prob(x[:, None])

    variance = 1 / (1 / spreads**2 + 2 / scale**2)

    def means(x):
        return variance * (locs / spreads**2 + x.sum(-1, keepdim=True) / scale**2)

    def given_cluster(logits, stretch):
        def guide(x):
            with pyro.plate("data", len(x)):
                cluster = pyro.sample("cluster", dist.Categorical(logits=logits(x)))
                loc = torch.where(cluster == 0, means(x)[:, 0], means(x)[:, 1])
                pyro.sample("level", dist.Normal(loc, stretch * variance[cluster].sqrt()))

        return guide

    draw = only_x(model, 2)
    args, to_fit = draw(num_data, TEST), draw(NUM_TO_FIT, FIT)
    logits = discrete_logits(log_posterior, to_fit)

    def fitted(x):
        """The level on average over clusters, and its scale the same for all."""
        probs = logits["fitted"](x).exp()
        with pyro.plate("data", len(x)):
            pyro.sample("cluster", dist.Categorical(probs))
            pyro.sample("level", dist.Normal((probs * means(x)).sum(-1), variance.mean().sqrt()))

    scales = {"good": GOOD, "narrow": NARROW, "wide": WIDE}
    guides = {name: given_cluster(logits[name], stretch) for name, stretch in scales.items()} | {"fitted": fitted}
    log_evidence = log_posterior(*args).logsumexp(-1)
    parameters = dict(weights=weights, locs=locs, spreads=spreads, scale=scale)
    return Practice(model, guides, args, log_evidence, continuous=False, parameters=parameters)


@practice
def spike_and_slab(num_data):
    """An effect that is there or not, and three measurements; where it is not, its size is the prior's."""
    there, scale = f64(0.4), f64(0.7)

    def model(x):
        with pyro.plate("data", len(x)):
            slab = pyro.sample("slab", dist.Bernoulli(there))
            size = pyro.sample("size", dist.Normal(f64(0.0), 2.0))
            loc = (slab * size)[..., None] * torch.ones(3).double()
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def parts(x):
        """log p(x, spike) and log p(x, slab)."""
        covariance = scale**2 * torch.eye(3).double()
        spike = dist.MultivariateNormal(zeros(3), covariance).log_prob(x) + (1 - there).log()
        return torch.stack([spike, dist.MultivariateNormal(zeros(3), covariance + 4).log_prob(x) + there.log()], -1)

    def log_odds(x):
        return parts(x).diff(dim=-1)[..., 0]

    variance = 1 / (1 / f64(4.0) + 3 / scale**2)

    def guide_from(logits, stretch):
        def guide(x):
            with pyro.plate("data", len(x)):
                slab = pyro.sample("slab", dist.Bernoulli(logits=logits(x)))
                loc = slab * variance * x.sum(-1) / scale**2
                pyro.sample("size", dist.Normal(loc, stretch * torch.where(slab == 1, variance.sqrt(), 2.0)))

        return guide

    def fitted(x):
        """Mean-field: the size is the slab's, whether it is there or not."""
        with pyro.plate("data", len(x)):
            pyro.sample("slab", dist.Bernoulli(logits=0.8 * log_odds(x)))
            pyro.sample("size", dist.Normal(variance * x.sum(-1) / scale**2, 0.8))

    args = only_x(model, 3)(num_data, TEST)
    guides = {
        "good": guide_from(lambda x: 0.95 * log_odds(x), GOOD),
        "narrow": guide_from(lambda x: torch.where(log_odds(x).abs() < 1.5, -1, 1) * log_odds(x).sign() * 7, NARROW),
        "wide": guide_from(lambda x: 0.3 * log_odds(x), 1.5),
        "fitted": fitted,
    }
    log_evidence = parts(*args).logsumexp(-1)
    parameters = dict(there=there, scale=scale)
    return Practice(model, guides, args, log_evidence, continuous=False, parameters=parameters)


@practice
def animals_and_visits(num_data):
    """A number of animals at each site, of which three visits count a part: a latent with forty-one values."""
    probs = dist.Poisson(f64(6.0)).log_prob(torch.arange(41).double()).softmax(-1)
    seen = f64(0.45)

    def counts_given(total):
        return dist.Binomial(total[..., None].double().expand(total.shape + (3,)), seen, validate_args=False)

    def model(x):
        with pyro.plate("data", len(x)):
            total = pyro.sample("total", dist.Categorical(probs))
            pyro.sample("x", counts_given(total).to_event(1), obs=x)

    totals = torch.arange(41).double()[:, None]

    def log_posterior(x):
        x = x[:, None]  # (N, 1, 3), against (41, 1)
        choices = (totals + 1).lgamma() - (x + 1).lgamma() - (totals - x + 1).clamp(min=1.0).lgamma()
        each = choices + x * seen.log() + (totals - x) * (1 - seen).log()
        return probs.log() + torch.where(totals >= x, each, -math.inf).sum(-1)

    draw = only_x(model, 3)
    args = draw(num_data, TEST)
    to_fit = draw(NUM_TO_FIT, FIT)
    guides = categorical_guides("total", log_posterior, to_fit)
    regression = fitted_logits(log_posterior, to_fit)

    def fitted(x):
        with pyro.plate("data", len(x)):
            possible = totals[:, 0] >= x.max(-1).values[:, None]
            pyro.sample("total", dist.Categorical(logits=torch.where(possible, regression(x), -math.inf)))

    log_evidence = log_posterior(*args).logsumexp(-1)
    parameters = dict(probs=probs, seen=seen)
    return Practice(model, guides | {"fitted": fitted}, args, log_evidence, continuous=False, parameters=parameters)


@practice
def photons(num_data):
    """A Poisson number of photons, read out with Gaussian noise; the guide's values stop at forty."""
    rate, noise = f64(4.0), f64(0.8)

    def model(x):
        with pyro.plate("data", len(x)):
            count = pyro.sample("count", dist.Poisson(rate))
            pyro.sample("x", dist.Normal(count.double(), noise), obs=x)

    counts = torch.arange(41).double()

    def log_posterior(x):
        prior = counts * rate.log() - rate - (counts + 1).lgamma()
        return prior + standard_normal((x[:, None] - counts) / noise) - noise.log()

    draw = only_x(model)
    args = draw(num_data, TEST)
    guides = categorical_guides("count", log_posterior, draw(NUM_TO_FIT, FIT))
    log_evidence = log_posterior(*args).logsumexp(-1)
    return Practice(model, guides, args, log_evidence, continuous=False, parameters=dict(rate=rate, noise=noise))
