"""What Pyro's distributions can be as latents: `LATENTS[name]` says which estimators evaluate one, and proves it.

The program of each is z ~ D, x ~ N(features of z, 0.5^2), with a guide that is a little off. Its log p(x) is a sum over
a grid of the support: with volumes for a density, without for a probability.
"""

import inspect
import itertools
import math
from dataclasses import dataclass, field

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints, transforms
from torch import Tensor

NOISE = 0.5
LEVELS = torch.tensor([0.5, 0.1, 0.3, 0.7, 0.9, 0.05]).double()
SHIFTS = torch.tensor([0.1, -0.4, 0.5, 0.3, -0.2, 0.6]).double()

ALL = frozenset(
    {"guide", "inflated", "defensive", "laplace", "local", "ais", "ais: guide", "ais: prior", "log_evidence"}
)
FIXED = ALL - {"local"}  # a guide that has no reparametrized draws, or no parameters of its own
UNDRAWN = ALL - {"defensive", "ais: prior"}  # a prior that has no draws
# Without gradients: log_evidence draws from the guide, or sums over a support that can be listed.
GUIDE = frozenset({"guide", "log_evidence"})
REFINED = GUIDE | {"local"}  # a support that the real numbers cannot be mapped to
NONE = frozenset()


@dataclass(frozen=True)
class Reference:
    """Points of a support with the logs of their volumes; probabilities have volume 1."""

    points: Tensor
    log_volumes: Tensor

    def map(self, function):
        """The same volumes about other points."""
        return Reference(function(self.points), self.log_volumes)


@dataclass(frozen=True)
class Latent:
    """A prior, a guide, a reference measure, and the estimators that must evaluate them; the others must refuse."""

    prior: object
    guide: object
    reference: object
    evaluated_by: frozenset = ALL
    features: object = None
    mass: float | None = 1.0
    """Of the prior under the reference measure; None where it is improper."""
    shown: object = field(default=lambda points: points)
    """What a draw shows of a point: a straight-through sample is a rounded one."""

    def of(self, z):
        """What the likelihood sees of z, `(..., F)`."""
        if self.features is not None:
            return self.features(z)
        return z.double().reshape(*z.shape[: z.ndim - self.event_dim], -1)

    @property
    def event_dim(self):
        return len(made(self.guide).event_shape)

    def log_masses(self):
        """log p(z) plus the log of the volume, at each point of the reference measure; and the points."""
        reference = self.reference()
        log_prob = made(self.prior).log_prob(reference.points).double()
        return reference.points, log_prob.nan_to_num(nan=-torch.inf) + reference.log_volumes

    def data(self):
        """Features of points at some levels of the prior's mass, moved a little."""
        if self.reference is None:
            return SHIFTS[:, None].expand(-1, made(self.guide).event_shape.numel())
        points, log_masses = self.log_masses()
        if self.mass is None:
            log_masses = log_masses - 0.5 * points.double().reshape(len(points), -1).square().sum(-1)
        levels = log_masses.softmax(0).cumsum(0)
        chosen = torch.searchsorted(levels, LEVELS * levels[-1]).clamp(max=len(points) - 1)
        x = self.of(self.shown(points[chosen]))
        return x + NOISE * SHIFTS[:, None] * torch.linspace(1, -0.5, x.shape[1]).double()

    def log_evidence(self, x):
        """log p(x) of each datum, by a sum over the reference measure."""
        points, log_masses = self.log_masses()
        features = self.of(self.shown(points))
        return torch.stack([(log_masses + log_likelihood(features, row)).logsumexp(0) for row in x])

    def programs(self, log_factor=0.0):
        """Model and guide; a factor on the model's density makes it another one."""

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", dist.Normal(self.of(z), NOISE).to_event(1), obs=x)
                if log_factor:
                    pyro.factor("planted", torch.full((len(x),), log_factor).double())

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.guide())

        return model, guide


def log_likelihood(features, row):
    return dist.Normal(features, NOISE).log_prob(row).sum(-1)


def made(make):
    """A distribution that does not check what it is given: a grid touches the edges of a support."""
    with pyro.validation_enabled(False):
        return make()


# Reference measures


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def _of_line(u, points, log_slopes):
    return Reference(points, log_slopes + (u[1] - u[0]).log())


def line(bound=20.0, num_points=20001):
    """The real line, far out in sparse points: z = sinh(u)."""
    u = torch.linspace(-bound, bound, num_points, dtype=torch.float64)
    return _of_line(u, u.sinh(), u.cosh().log())


def half_line(low=0.0, num_points=20001):
    """All above a number: z = low + exp(u)."""
    u = torch.linspace(-25, 25, num_points, dtype=torch.float64)
    return _of_line(u, low + u.exp(), u)


def interval(low=0.0, high=1.0, num_points=20001):
    """z = low + (high - low) sigmoid(u)."""
    u = torch.linspace(-25, 25, num_points, dtype=torch.float64)
    slopes = torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u) + math.log(high - low)
    return _of_line(u, low + (high - low) * u.sigmoid(), slopes)


def cells(low, high, num_points):
    """The midpoints of equal cells."""
    width = (high - low) / num_points
    points = low + width * (torch.arange(num_points, dtype=torch.float64) + 0.5)
    return Reference(points, torch.full_like(points, math.log(width)))


def circle(num_points=4000):
    """Angles."""
    return cells(-math.pi, math.pi, num_points)


def product(one, other):
    """Pairs `(..., 2)`."""
    points = torch.cartesian_prod(one.points, other.points)
    return Reference(points, torch.cartesian_prod(one.log_volumes, other.log_volumes).sum(-1))


def plane(bound=4.0, num_points=401):
    return product(line(bound, num_points), line(bound, num_points))


def torus():
    return product(circle(400), circle(400))


def unit_circle():
    """Points of the plane, with the length of arc as their measure."""
    return circle().map(lambda angle: torch.stack([angle.cos(), angle.sin()], -1))


def sphere():
    """Points of space, with the surface as their measure: heights and longitudes cut it in equal parts (Archimedes)."""

    def at(pair):
        height, angle = pair.unbind(-1)
        radius = (1 - height.square()).sqrt()
        return torch.stack([radius * angle.cos(), radius * angle.sin(), height], -1)

    return product(cells(-1, 1, 600), circle(400)).map(at)


def simplex():
    """Three shares, with the plane of the first two as their measure: breaking a stick."""
    pairs = product(*[interval(num_points=501)] * 2)
    first, second = pairs.points.unbind(-1)
    rest = 1 - first
    points = torch.stack([first, rest * second, rest * (1 - second)], -1)
    return Reference(points, pairs.log_volumes + rest.clamp(min=1e-300).log())


def correlations():
    """Matrices 2 x 2, with their one correlation as the measure."""

    def at(r):
        return torch.stack([torch.ones_like(r), r, r, torch.ones_like(r)], -1).reshape(-1, 2, 2)

    return interval(-1, 1, 4001).map(at)


def correlation_factors():
    """Their Cholesky factors."""

    def at(r):
        entries = [torch.ones_like(r), torch.zeros_like(r), r, (1 - r.square()).clamp(min=1e-300).sqrt()]
        return torch.stack(entries, -1).reshape(-1, 2, 2)

    return interval(-1, 1, 4001).map(at)


def covariances():
    """Positive definite matrices 2 x 2, with their three numbers as the measure: by the Cholesky factor."""
    logs, off = torch.linspace(-4, 2.5, 61).double(), torch.linspace(-6, 6, 81).double()
    a, b, c = torch.cartesian_prod(logs, off, logs).unbind(-1)
    first, last = a.exp(), c.exp()
    points = torch.stack([first**2, first * b, first * b, b**2 + last**2], -1).reshape(-1, 2, 2)
    steps = 2 * (logs[1] - logs[0]).log() + (off[1] - off[0]).log()
    return Reference(points, math.log(4) + 3 * a + 2 * c + steps)


def counted(points):
    return Reference(points, torch.zeros(len(points)).double())


def numbers(below):
    return counted(torch.arange(below).double())


def one_hot(size):
    return counted(torch.eye(size).double())


def counts(total, size):
    """All ways of putting `total` balls into `size` boxes."""
    every = itertools.product(range(total + 1), repeat=size)
    return counted(torch.tensor([each for each in every if sum(each) == total]).double())


def enumerated(make):
    return counted(made(make).enumerate_support())


# Rows


def around(angles):
    return torch.cat([angles.cos(), angles.sin()], -1)


def angle(z):
    return around(z[..., None])


def off_diagonal(z):
    return z[..., 1, 0, None]


def entries(z):
    return torch.stack([z[..., 0, 0], z[..., 1, 0], z[..., 1, 1]], -1)


def by_family(family, prior, guide, reference, evaluated_by=ALL, **options):
    """Prior and guide of one family, by the parameters of each."""
    return Latent(lambda: family(**prior), lambda: family(**guide), reference, evaluated_by, **options)


def location_scale(family, evaluated_by=ALL, reference=line, **others):
    prior, guide = dict(loc=t(0.3)[0], scale=t(0.8)[0]), dict(loc=t(0.2)[0], scale=t(1.0)[0])
    others = {name: t(value)[0] for name, value in others.items()}
    return by_family(family, prior | others, guide | others, reference, evaluated_by)


def one(value):
    return torch.tensor(value, dtype=torch.float64)


def gaussians(covariance=((1.0, 0.4), (0.4, 0.8))):
    prior = dict(loc=t(0.3, -0.2), scale_tril=torch.linalg.cholesky(one(covariance)))
    return prior, dict(loc=t(0.2, 0.0), scale_tril=1.2 * prior["scale_tril"])


TRIL = torch.linalg.cholesky(one([[1.0, 0.4], [0.4, 0.8]]))


def wide(*shape):
    """A guide on all real numbers."""
    return lambda: dist.Normal(torch.zeros(shape).double(), 1.3).to_event(len(shape))


def discrete_hmm(logit):
    initial, transition = t(0.0, logit), one([[1.0, 0.0], [logit, 0.5]])
    return dist.DiscreteHMM(initial, transition, dist.Categorical(logits=one([[1.0, 0.0], [0.0, 1.0]])), duration=2)


def hmm_parts(scale):
    return dict(
        initial_dist=dist.Normal(t(0.2), one(scale)).to_event(1),
        transition_matrix=one([[0.8]]),
        transition_dist=dist.Normal(t(0.0), one(scale)).to_event(1),
        observation_matrix=one([[1.0]]),
        observation_dist=dist.Normal(t(0.0), one(0.5 * scale)).to_event(1),
    )


def path_of_two():
    return plane().map(lambda pair: pair[..., None])


def coalescence():
    return dist.CoalescentTimesWithRate(t(5.0, 5.0), torch.ones(5).double())


def before_five():
    exponential = dist.Exponential(t(0.8)[0])
    return dist.TransformedDistribution(exponential, [transforms.AffineTransform(5.0, -1.0)]).expand([1]).to_event(1)


def binary_trees():
    return torch.tensor([[[0, 1], [0, 2]], [[0, 1], [1, 2]], [[0, 2], [1, 2]]])


def halves():
    return dist.Categorical(probs=t(0.4, 0.6))


def rejector(scale):
    normal = dist.Normal(t(0.0)[0], one(scale))
    return dist.Rejector(normal, lambda z: -0.1 * z.square(), -0.5 * torch.log1p(one(0.2 * scale**2)))


LATENTS = {
    # On the real line
    "Normal": location_scale(dist.Normal),
    "NanMaskedNormal": location_scale(dist.NanMaskedNormal),
    "Laplace": location_scale(dist.Laplace),
    "Logistic": location_scale(dist.Logistic),
    "SkewLogistic": location_scale(dist.SkewLogistic, asymmetry=1.5),
    "SoftLaplace": location_scale(dist.SoftLaplace),
    "SoftAsymmetricLaplace": location_scale(dist.SoftAsymmetricLaplace, NONE, asymmetry=1.5, softness=0.8),
    "AsymmetricLaplace": location_scale(dist.AsymmetricLaplace, asymmetry=1.5),
    "Gumbel": location_scale(dist.Gumbel),
    "Cauchy": location_scale(dist.Cauchy),
    "StudentT": location_scale(dist.StudentT, df=3.0),
    "Stable": location_scale(dist.Stable, reference=lambda: line(12.0, 3001), stability=1.7, skew=0.3),
    "StableWithLogProb": location_scale(
        dist.StableWithLogProb, reference=lambda: line(12.0, 3001), stability=1.7, skew=0.3
    ),
    # Of several real numbers
    "MultivariateNormal": by_family(dist.MultivariateNormal, *gaussians(), plane),
    "NanMaskedMultivariateNormal": by_family(dist.NanMaskedMultivariateNormal, *gaussians(), plane),
    "OMTMultivariateNormal": by_family(dist.OMTMultivariateNormal, *gaussians(), plane, NONE),
    "AVFMultivariateNormal": Latent(
        lambda: dist.AVFMultivariateNormal(t(0.3, -0.2), TRIL, torch.zeros(2, 1, 2).double()),
        wide(2),
        plane,
        NONE,
    ),
    "LowRankMultivariateNormal": Latent(
        lambda: dist.LowRankMultivariateNormal(t(0.3, -0.2), one([[0.7], [0.4]]), t(0.5, 0.6)),
        lambda: dist.LowRankMultivariateNormal(t(0.2, 0.0), one([[0.8], [0.4]]), t(0.7, 0.8)),
        plane,
    ),
    "MultivariateStudentT": Latent(
        lambda: dist.MultivariateStudentT(t(4.0)[0], t(0.3, -0.2), TRIL),
        lambda: dist.MultivariateStudentT(t(4.0)[0], t(0.2, 0.0), 1.2 * TRIL),
        lambda: plane(9.0),
    ),
    "MixtureOfDiagNormals": Latent(
        lambda: dist.MixtureOfDiagNormals(one([[0.5, 0.0], [-0.5, 0.5]]), one([[0.6, 0.9], [0.8, 0.5]]), t(0.2, 0.0)),
        lambda: dist.MixtureOfDiagNormals(one([[0.5, 0.0], [-0.5, 0.5]]), one([[0.7, 1.0], [0.9, 0.7]]), t(0.0, 0.0)),
        plane,
    ),
    "MixtureOfDiagNormalsSharedCovariance": Latent(
        lambda: dist.MixtureOfDiagNormalsSharedCovariance(one([[0.5, 0.0], [-0.5, 0.5]]), t(0.6, 0.9), t(0.2, 0.0)),
        lambda: dist.MixtureOfDiagNormalsSharedCovariance(one([[0.5, 0.0], [-0.5, 0.5]]), t(0.8, 1.1), t(0.0, 0.0)),
        plane,
    ),
    "GaussianScaleMixture": Latent(
        lambda: dist.GaussianScaleMixture(t(0.6, 0.9), t(0.2, 0.0), t(1.0, 1.5)), wide(2), None, NONE
    ),
    "GaussianHMM": Latent(
        lambda: dist.GaussianHMM(**hmm_parts(0.7), duration=2),
        lambda: dist.GaussianHMM(**hmm_parts(0.9), duration=2),
        path_of_two,
        FIXED,
    ),
    "GammaGaussianHMM": Latent(
        lambda: dist.GammaGaussianHMM(
            dist.Gamma(one(3.0), one(2.0)),
            dist.MultivariateNormal(t(0.2), one([[0.6]])),
            one([[0.8]]),
            dist.MultivariateNormal(t(0.0), one([[0.5]])),
            one([[1.0]]),
            dist.MultivariateNormal(t(0.0), one([[0.3]])),
            duration=2,
        ),
        wide(2, 1),
        lambda: plane(9.0).map(lambda pair: pair[..., None]),
        UNDRAWN,
    ),
    "IndependentHMM": Latent(
        lambda: dist.IndependentHMM(
            dist.GaussianHMM(
                dist.Normal(torch.full((1, 1), 0.2).double(), 0.7).to_event(1),
                one([[0.8]]),
                dist.Normal(t(0.0), one(0.7)).to_event(1),
                one([[1.0]]),
                dist.Normal(t(0.0), one(0.35)).to_event(1),
                duration=2,
            )
        ),
        wide(2, 1),
        path_of_two,
    ),
    "LinearHMM": Latent(lambda: dist.LinearHMM(**hmm_parts(0.7), duration=2), wide(2, 1), None, NONE),
    "GaussianMRF": Latent(
        lambda: dist.GaussianMRF(
            dist.MultivariateNormal(t(0.2), one([[0.6]])),
            dist.MultivariateNormal(t(0.0, 0.0), one([[0.8, 0.3], [0.3, 0.7]])),
            dist.MultivariateNormal(t(0.0, 0.0), one([[0.8, 0.5], [0.5, 0.7]])),
        ),
        wide(2, 1),
        path_of_two,
        UNDRAWN,
    ),
    # Wrappers
    "Independent": Latent(
        lambda: dist.Independent(dist.Normal(t(0.3, -0.2), t(0.8, 1.0)), 1),
        lambda: dist.Independent(dist.Normal(t(0.2, 0.0), t(1.0, 1.2)), 1),
        plane,
    ),
    "ExpandedDistribution": Latent(
        lambda: dist.ExpandedDistribution(dist.Normal(one(0.3), one(0.8)), torch.Size([])),
        lambda: dist.ExpandedDistribution(dist.Normal(one(0.2), one(1.0)), torch.Size([])),
        line,
        FIXED,
    ),
    "MaskedDistribution": Latent(
        lambda: dist.Normal(one(0.3), one(0.8)).mask(torch.tensor(True)),
        lambda: dist.Normal(one(0.2), one(1.0)).mask(torch.tensor(True)),
        line,
    ),
    "MaskedMixture": Latent(
        lambda: dist.MaskedMixture(
            torch.tensor(True), dist.Normal(one(0.0), one(1.0)), dist.Normal(one(0.3), one(0.8))
        ),
        lambda: dist.MaskedMixture(
            torch.tensor(False), dist.Normal(one(0.2), one(1.0)), dist.Normal(one(0.0), one(9.0))
        ),
        line,
        FIXED,
    ),
    "MixtureSameFamily": Latent(
        lambda: dist.MixtureSameFamily(halves(), dist.Normal(t(-0.7, 0.6), t(0.5, 0.4))),
        lambda: dist.MixtureSameFamily(halves(), dist.Normal(t(-0.8, 0.6), t(0.7, 0.6))),
        line,
        FIXED,
    ),
    "FoldedDistribution": Latent(
        lambda: dist.FoldedDistribution(dist.Normal(one(0.3), one(0.8))),
        lambda: dist.FoldedDistribution(dist.Normal(one(0.2), one(1.0))),
        half_line,
        FIXED,
    ),
    "TransformedDistribution": Latent(
        lambda: dist.TransformedDistribution(dist.Normal(one(0.3), one(0.8)), [transforms.SigmoidTransform()]),
        lambda: dist.TransformedDistribution(dist.Normal(one(0.2), one(1.0)), [transforms.SigmoidTransform()]),
        interval,
        FIXED,
    ),
    "Rejector": Latent(lambda: rejector(1.0), wide(), line, NONE),
    # On half of it
    "Exponential": by_family(dist.Exponential, dict(rate=one(1.2)), dict(rate=one(0.9)), half_line),
    "HalfNormal": by_family(dist.HalfNormal, dict(scale=one(0.8)), dict(scale=one(1.0)), half_line),
    "HalfCauchy": by_family(dist.HalfCauchy, dict(scale=one(0.8)), dict(scale=one(1.0)), half_line),
    "LogNormal": location_scale(dist.LogNormal, reference=half_line),
    "Gamma": by_family(
        dist.Gamma, dict(concentration=one(2.0), rate=one(2.0)), dict(concentration=one(1.7), rate=one(1.5)), half_line
    ),
    "InverseGamma": by_family(
        dist.InverseGamma,
        dict(concentration=one(3.0), rate=one(2.0)),
        dict(concentration=one(2.5), rate=one(2.0)),
        half_line,
    ),
    "Chi2": by_family(dist.Chi2, dict(df=one(3.0)), dict(df=one(2.8)), half_line),
    "FisherSnedecor": by_family(
        dist.FisherSnedecor, dict(df1=one(4.0), df2=one(5.0)), dict(df1=one(3.5), df2=one(4.0)), half_line
    ),
    "Weibull": by_family(
        dist.Weibull,
        dict(scale=one(1.0), concentration=one(1.5)),
        dict(scale=one(1.1), concentration=one(1.3)),
        half_line,
    ),
    "Pareto": by_family(
        dist.Pareto, dict(scale=one(0.5), alpha=one(2.5)), dict(scale=one(0.5), alpha=one(2.0)), lambda: half_line(0.5)
    ),
    "GeneralizedPareto": by_family(
        dist.GeneralizedPareto,
        dict(loc=one(0.2), scale=one(0.8), concentration=one(0.2)),
        dict(loc=one(0.2), scale=one(1.0), concentration=one(0.3)),
        lambda: half_line(0.2),
    ),
    # On an interval
    "Uniform": by_family(
        dist.Uniform,
        dict(low=one(-1.0), high=one(2.0)),
        dict(low=one(-1.0), high=one(2.0)),
        lambda: interval(-1, 2),
        FIXED,
    ),
    "Beta": by_family(
        dist.Beta,
        dict(concentration1=one(2.0), concentration0=one(3.0)),
        dict(concentration1=one(1.8), concentration0=one(2.5)),
        interval,
    ),
    "AffineBeta": by_family(
        dist.AffineBeta,
        dict(concentration1=one(2.0), concentration0=one(3.0), loc=one(-1.0), scale=one(3.0)),
        dict(concentration1=one(1.8), concentration0=one(2.5), loc=one(-1.0), scale=one(3.0)),
        lambda: interval(-1, 2),
    ),
    "Kumaraswamy": by_family(
        dist.Kumaraswamy,
        dict(concentration1=one(2.0), concentration0=one(3.0)),
        dict(concentration1=one(1.8), concentration0=one(2.5)),
        interval,
    ),
    "ContinuousBernoulli": by_family(dist.ContinuousBernoulli, dict(probs=one(0.3)), dict(probs=one(0.4)), interval),
    "RelaxedBernoulli": by_family(
        dist.RelaxedBernoulli,
        dict(temperature=one(0.7), probs=one(0.3)),
        dict(temperature=one(0.6), probs=one(0.4)),
        interval,
        FIXED,
    ),
    "RelaxedBernoulliStraightThrough": by_family(
        dist.RelaxedBernoulliStraightThrough,
        dict(temperature=one(0.7), probs=one(0.3)),
        dict(temperature=one(0.6), probs=one(0.4)),
        interval,
        NONE,
        shown=torch.round,
    ),
    "TruncatedPolyaGamma": Latent(
        lambda: dist.TruncatedPolyaGamma(one(1.0)),
        lambda: dist.TransformedDistribution(dist.Beta(one(1.5), one(10.0)), [transforms.AffineTransform(0.0, 2.5)]),
        lambda: interval(0, 2.5),
        FIXED & UNDRAWN,
        features=lambda z: 4 * z[..., None],
    ),
    # On a circle or a sphere
    "VonMises": by_family(
        dist.VonMises,
        dict(loc=one(2.5), concentration=one(1.5)),
        dict(loc=one(2.3), concentration=one(1.2)),
        circle,
        FIXED,
        features=angle,
    ),
    "SineBivariateVonMises": by_family(
        dist.SineBivariateVonMises,
        dict(
            phi_loc=one(2.5),
            psi_loc=one(-0.5),
            phi_concentration=one(1.5),
            psi_concentration=one(2.0),
            correlation=one(0.6),
        ),
        dict(
            phi_loc=one(2.3),
            psi_loc=one(-0.4),
            phi_concentration=one(1.2),
            psi_concentration=one(1.6),
            correlation=one(0.4),
        ),
        torus,
        FIXED,
        features=around,
    ),
    "SineSkewed": Latent(
        lambda: dist.SineSkewed(dist.VonMises(t(0.5, -2.5), t(1.5, 1.2)).to_event(1), t(0.3, -0.4)),
        lambda: dist.SineSkewed(dist.VonMises(t(0.4, -2.3), t(1.2, 1.0)).to_event(1), t(0.2, -0.3)),
        torus,
        FIXED,
        features=around,
    ),
    "ProjectedNormal": by_family(
        dist.ProjectedNormal, dict(concentration=t(0.8, 0.6)), dict(concentration=t(0.6, 0.6)), unit_circle, REFINED
    ),
    "VonMises3D": Latent(
        lambda: dist.VonMises3D(t(0.8, 0.6, -0.5)), lambda: dist.ProjectedNormal(t(0.5, 0.4, -0.3)), sphere, REFINED
    ),
    # On a simplex
    "Dirichlet": by_family(
        dist.Dirichlet, dict(concentration=t(2.0, 3.0, 1.5)), dict(concentration=t(1.8, 2.5, 1.4)), simplex
    ),
    "LogisticNormal": by_family(
        dist.LogisticNormal,
        dict(loc=t(0.3, -0.2), scale=t(0.8, 1.0)),
        dict(loc=t(0.2, 0.0), scale=t(1.0, 1.2)),
        simplex,
    ),
    "RelaxedOneHotCategorical": by_family(
        dist.RelaxedOneHotCategorical,
        dict(temperature=one(0.7), probs=t(0.2, 0.5, 0.3)),
        dict(temperature=one(0.6), probs=t(0.3, 0.4, 0.3)),
        simplex,
        FIXED,
    ),
    "RelaxedOneHotCategoricalStraightThrough": by_family(
        dist.RelaxedOneHotCategoricalStraightThrough,
        dict(temperature=one(0.7), probs=t(0.2, 0.5, 0.3)),
        dict(temperature=one(0.6), probs=t(0.3, 0.4, 0.3)),
        simplex,
        NONE,
        shown=lambda z: torch.nn.functional.one_hot(z.argmax(-1), 3).double(),
    ),
    # Matrices
    "LKJ": by_family(
        dist.LKJ,
        dict(dim=2, concentration=one(2.0)),
        dict(dim=2, concentration=one(1.5)),
        correlations,
        NONE,
        features=off_diagonal,
    ),
    "LKJCholesky": by_family(
        dist.LKJCholesky,
        dict(dim=2, concentration=one(2.0)),
        dict(dim=2, concentration=one(1.5)),
        correlation_factors,
        FIXED,
        features=off_diagonal,
    ),
    "LKJCorrCholesky": by_family(
        dist.LKJCorrCholesky,
        dict(d=2, eta=one(2.0)),
        dict(d=2, eta=one(1.5)),
        correlation_factors,
        NONE,
        features=off_diagonal,
    ),
    "Wishart": by_family(
        dist.Wishart,
        dict(df=one(4.0), covariance_matrix=one([[0.3, 0.1], [0.1, 0.4]])),
        dict(df=one(3.8), covariance_matrix=one([[0.35, 0.1], [0.1, 0.45]])),
        covariances,
        REFINED,
        features=entries,
    ),
    # Of finite support
    "Bernoulli": by_family(dist.Bernoulli, dict(probs=one(0.3)), dict(probs=one(0.4)), lambda: numbers(2), GUIDE),
    "Categorical": by_family(
        dist.Categorical, dict(probs=t(0.2, 0.5, 0.3)), dict(probs=t(0.3, 0.4, 0.3)), lambda: numbers(3), GUIDE
    ),
    "OneHotCategorical": by_family(
        dist.OneHotCategorical, dict(probs=t(0.2, 0.5, 0.3)), dict(probs=t(0.3, 0.4, 0.3)), lambda: one_hot(3), GUIDE
    ),
    "OneHotCategoricalStraightThrough": by_family(
        dist.OneHotCategoricalStraightThrough,
        dict(probs=t(0.2, 0.5, 0.3)),
        dict(probs=t(0.3, 0.4, 0.3)),
        lambda: one_hot(3),
        GUIDE,
    ),
    "OrderedLogistic": by_family(
        dist.OrderedLogistic,
        dict(predictor=one(0.2), cutpoints=t(-1.0, 1.0)),
        dict(predictor=one(0.4), cutpoints=t(-1.0, 1.0)),
        lambda: numbers(3),
        GUIDE,
    ),
    "Binomial": by_family(
        dist.Binomial,
        dict(total_count=5, probs=one(0.3)),
        dict(total_count=5, probs=one(0.4)),
        lambda: numbers(6),
        GUIDE,
    ),
    "BetaBinomial": by_family(
        dist.BetaBinomial,
        dict(concentration1=one(2.0), concentration0=one(3.0), total_count=5),
        dict(concentration1=one(1.8), concentration0=one(2.5), total_count=5),
        lambda: numbers(6),
        GUIDE,
    ),
    # Of finite support, but with no list of it
    "ExtendedBinomial": by_family(
        dist.ExtendedBinomial,
        dict(total_count=one(5.0), probs=one(0.3)),
        dict(total_count=one(5.0), probs=one(0.4)),
        lambda: numbers(6),
        GUIDE,
    ),
    "ExtendedBetaBinomial": by_family(
        dist.ExtendedBetaBinomial,
        dict(concentration1=one(2.0), concentration0=one(3.0), total_count=one(5.0)),
        dict(concentration1=one(1.8), concentration0=one(2.5), total_count=one(5.0)),
        lambda: numbers(6),
        GUIDE,
    ),
    "Multinomial": by_family(
        dist.Multinomial,
        dict(total_count=3, probs=t(0.2, 0.5, 0.3)),
        dict(total_count=3, probs=t(0.3, 0.4, 0.3)),
        lambda: counts(3, 3),
        GUIDE,
    ),
    "DirichletMultinomial": by_family(
        dist.DirichletMultinomial,
        dict(concentration=t(2.0, 3.0, 1.5), total_count=3),
        dict(concentration=t(1.8, 2.5, 1.4), total_count=3),
        lambda: counts(3, 3),
        GUIDE,
    ),
    "DiscreteHMM": Latent(
        lambda: discrete_hmm(0.3),
        lambda: discrete_hmm(0.1),
        lambda: counted(torch.tensor(list(itertools.product(range(2), repeat=2)))),
        GUIDE,
    ),
    "OneOneMatching": by_family(
        dist.OneOneMatching,
        dict(logits=one([[0.5, 0.0], [0.2, 0.3]])),
        dict(logits=one([[0.3, 0.0], [0.2, 0.3]])),
        lambda: counted(torch.tensor([[0, 1], [1, 0]])),
        GUIDE,
    ),
    "OneTwoMatching": by_family(
        dist.OneTwoMatching,
        dict(logits=one([[0.5, 0.0], [0.2, 0.3], [0.0, 0.4], [0.1, 0.0]])),
        dict(logits=one([[0.3, 0.0], [0.2, 0.3], [0.0, 0.4], [0.1, 0.0]])),
        lambda: counted(torch.tensor(sorted(set(itertools.permutations([0, 0, 1, 1]))))),
        GUIDE,
    ),
    "SpanningTree": by_family(
        dist.SpanningTree,
        dict(edge_logits=t(0.5, 0.0, 0.2)),
        dict(edge_logits=t(0.3, 0.0, 0.2)),
        lambda: counted(binary_trees()),
        NONE,
    ),
    "Empirical": by_family(
        dist.Empirical,
        dict(samples=t(0.0, 1.0, 2.5), log_weights=t(0.2, 0.5, 0.3).log()),
        dict(samples=t(0.0, 1.0, 2.5), log_weights=t(0.3, 0.4, 0.3).log()),
        None,
        NONE,
    ),
    "Delta": Latent(lambda: dist.Delta(one(0.7)), lambda: dist.Delta(one(0.7)), lambda: counted(t(0.7))),
    # Of whole numbers without end
    "Poisson": by_family(dist.Poisson, dict(rate=one(2.0)), dict(rate=one(2.5)), lambda: numbers(100), GUIDE),
    "Geometric": by_family(dist.Geometric, dict(probs=one(0.4)), dict(probs=one(0.35)), lambda: numbers(150), GUIDE),
    "NegativeBinomial": by_family(
        dist.NegativeBinomial,
        dict(total_count=one(3.0), probs=one(0.4)),
        dict(total_count=one(3.0), probs=one(0.45)),
        lambda: numbers(150),
        GUIDE,
    ),
    "GammaPoisson": by_family(
        dist.GammaPoisson,
        dict(concentration=one(3.0), rate=one(1.5)),
        dict(concentration=one(2.5), rate=one(1.2)),
        lambda: numbers(150),
        GUIDE,
    ),
    "ZeroInflatedPoisson": by_family(
        dist.ZeroInflatedPoisson,
        dict(rate=one(2.0), gate=one(0.3)),
        dict(rate=one(2.5), gate=one(0.3)),
        lambda: numbers(100),
        GUIDE,
    ),
    "ZeroInflatedNegativeBinomial": by_family(
        dist.ZeroInflatedNegativeBinomial,
        dict(total_count=one(3.0), probs=one(0.4), gate=one(0.3)),
        dict(total_count=one(3.0), probs=one(0.45), gate=one(0.3)),
        lambda: numbers(150),
        GUIDE,
    ),
    "ZeroInflatedDistribution": Latent(
        lambda: dist.ZeroInflatedDistribution(dist.Geometric(one(0.4)), gate=one(0.3)),
        lambda: dist.ZeroInflatedDistribution(dist.Geometric(one(0.35)), gate=one(0.3)),
        lambda: numbers(150),
        GUIDE,
    ),
    "LogNormalNegativeBinomial": Latent(
        lambda: dist.LogNormalNegativeBinomial(one(3.0), one(-0.4), one(0.3)),
        lambda: dist.NegativeBinomial(one(2.5), logits=one(-0.1)),
        lambda: numbers(150),
        GUIDE,
    ),
    # Without draws, without a density, or without a mass
    "CoalescentTimesWithRate": Latent(
        coalescence, before_five, lambda: half_line().map(lambda z: (5 - z)[:, None]), GUIDE
    ),
    "CoalescentTimes": Latent(
        lambda: dist.CoalescentTimes(t(5.0, 5.0)),
        before_five,
        lambda: half_line().map(lambda z: (5 - z)[:, None]),
        GUIDE,
    ),
    "GroupedNormalNormal": Latent(
        lambda: dist.GroupedNormalNormal(t(0.0), t(1.0), t(0.5), torch.tensor([0])), wide(1), None, NONE
    ),
    "ImproperUniform": Latent(
        lambda: dist.ImproperUniform(constraints.real, (), ()), wide(), lambda: line(6.0), UNDRAWN, mass=None
    ),
    "Unit": Latent(lambda: dist.Unit(one(0.3)), lambda: dist.Unit(one(0.0)), None, NONE),
}

NO_LATENTS = {
    "TorchDistribution": "the base class of Pyro's distributions",
    "ExponentialFamily": "the base class of torch's exponential families",
}


def distributions():
    """The names of all classes of distributions that Pyro exports."""
    found = {name: getattr(dist, name) for name in dist.__all__}
    return sorted(
        name
        for name, value in found.items()
        if inspect.isclass(value) and issubclass(value, torch.distributions.Distribution)
    )
