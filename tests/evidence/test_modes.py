"""Modes that a guide does not know, in 20 dimensions of which one has them; log p(x) by quadrature over that one."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.evidence import cascade, derivatives, laplace, modes, summits
from pyro_vae.evidence.gaussians import FullNormal
from pyro_vae.evidence.region import Region
from pyro_vae.evidence.survey import find_modes, survey
from pyro_vae.program.inspect import program_of
from pyro_vae.program.unconstrained import Unconstrained

DIM, NUM_DATA, NOISE = 20, 60, 0.1
MOST = 7  # data that may be missed


def program(square_of):
    """A model whose first number sees a function of z_0, and all others their own z, and a guide for one root."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
            mean = torch.cat([square_of(z[..., :1]).square(), z[..., 1:]], -1)
            pyro.sample("x", dist.Normal(mean, NOISE).to_event(1), obs=x)

    return model


def guide_at(root_of):
    def guide(x):
        loc = torch.cat([root_of(x[:, :1]), x[:, 1:] / (1 + NOISE**2)], -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, NOISE).to_event(1))

    return guide


def data_from(low, high):
    torch.manual_seed(0)
    return torch.cat([torch.linspace(low, high, NUM_DATA)[:, None], torch.randn(NUM_DATA, DIM - 1)], -1)


def exact(square_of, x):
    z = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    x = x.double()
    one = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(square_of(z).square(), NOISE).log_prob(x[:, :1])
    others = dist.Normal(0.0, math.sqrt(1 + NOISE**2)).log_prob(x[:, 1:]).sum(1)
    return one.logsumexp(1) + math.log(12 / 20000) + others


def two(z):
    """Zero at 0.4: the posterior has a mode to its left and one, of a third of the mass, to its right."""
    return z - 0.4


def wide(z):
    """Zero at 0.7 and -0.7: a wide mode about either."""
    return z.square() - 0.5


def num_missed(square_of, root_of, x, seed):
    """How many data are called reliable, and lack a mode."""
    found = pv.log_evidence(program(square_of), guide_at(root_of), x, tolerance=0.1, seed=seed)
    return int((found.reliable & (found.log_evidence < exact(square_of, x) - 0.25)).sum())


LEFT = two, lambda x: 0.4 - x.clamp(min=0.1).sqrt(), data_from(0.8, 1.5)
RIGHT = wide, lambda x: (0.5 + x.clamp(min=0).sqrt()).sqrt(), data_from(0.01, 0.1)


@pytest.mark.parametrize("seed", [0, 1])
def test_climbs_find_a_mode_that_the_draws_of_a_good_guide_have_missed(seed):
    """Without it log p(x) is 0.37 too low. In eight seeds none to three of 60 were missed; more than seven come once in a thousand."""
    assert num_missed(*LEFT, seed) <= MOST


@pytest.mark.parametrize("seed", [0, 1])
def test_climbs_of_five_steps_from_fewer_places_do_not(seed, monkeypatch):
    monkeypatch.setattr(summits, "NUM_CLIMBING", 5)
    monkeypatch.setattr(summits, "NUM_PRIOR_STARTS", 2)
    monkeypatch.setattr(summits, "NUM_FAR_STARTS", 2)
    assert num_missed(*LEFT, seed) > MOST


@pytest.mark.parametrize("seed", [0, 1])
def test_a_mode_five_deviations_away_is_another(seed):
    """Without it log p(x) is 0.69 too low. In eight seeds none to three of 60 were missed; more than seven come once in a thousand."""
    assert num_missed(*RIGHT, seed) <= MOST


@pytest.mark.parametrize("seed", [0, 1])
def test_ends_of_climbs_that_are_taken_for_draws_belong_to_the_mode_that_is_known(seed, monkeypatch):
    def are_away(known, end):
        return known.are_away(end.position) & (end.gain < known.view.dim)

    monkeypatch.setattr(modes.KnownModes, "_are_new", are_away)
    assert num_missed(*RIGHT, seed) > MOST


def corners(x):
    """Sixteen modes, at the corners of a cube of four dimensions, and two more dimensions."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(torch.cat([z[..., :4].square(), z[..., 4:]], -1), 0.2).to_event(1), obs=x)


def modes_of(x, allowance):
    torch.manual_seed(0)
    program = program_of(corners, None, (x,))
    region = Region.of(program, Unconstrained.of(program), torch.arange(len(x)))
    with torch.no_grad():
        fit = find_modes(region, survey(region, [region.guide]), allowance=allowance)
    return fit.gaussians.log_shares.isfinite().sum(0), fit.num_evaluations


def test_where_there_are_two_modes_more_starts_look_for_others_if_they_may():
    x = torch.cat([torch.full((10, 4), 0.8), torch.zeros(10, 2)], -1)
    with_more, cost = modes_of(x, None)
    without, cheaper = modes_of(x, torch.full((10,), 100.0))
    more = laplace.NUM_MORE_STARTS * modes.NUM_EXPLORING
    assert with_more.double().mean() > 1.4 * without.double().mean() and (cost - cheaper >= more).all()
    enough, _ = modes_of(x, cheaper + more)
    assert enough.equal(with_more)


def test_starts_are_far_from_what_is_known_and_from_each_other():
    gaussian = FullNormal(torch.zeros(1, 1).double(), torch.eye(1).double()[None])
    places = torch.tensor([0.1, 3.0, 3.1, -2.0, 3.2]).double()[:, None, None]
    found = modes.farthest(gaussian, places, gaussian.whitened(places).norm(dim=-1), 2)
    assert torch.allclose(found.flatten(), torch.tensor([3.2, -2.0]).double())


def test_gradients_of_many_places_are_found_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(derivatives, "MAX_PAIRS", 10)
    heights, u = [], torch.randn(7, 4, 2).double()

    def density(u):
        heights.append(len(u))
        return -u.square().sum(-1) / 2

    value, gradient = derivatives.with_gradient(density, u)
    assert max(heights) == 2 and torch.equal(gradient, -u) and torch.allclose(value, -u.square().sum(-1) / 2)


def four_modes(x):
    """The roots of two numbers, and counts, whose posteriors are skewed."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
        pyro.sample("squares", dist.Normal(z[..., :2].square(), 0.2).to_event(1), obs=x[:, :2])
        pyro.sample("counts", dist.Poisson((2 * z[..., 2:]).exp()).to_event(1), obs=x[:, 2:])


def broad_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), DIM), 1.0).to_event(1))


def by_quadrature(x):
    z = torch.linspace(-8, 8, 10_001, dtype=torch.float64)[:, None, None]
    of_squares = dist.Normal(z.square(), 0.2).log_prob(x[:, :2].double())
    of_counts = dist.Poisson((2 * z).exp()).log_prob(x[:, 2:].double())
    joint = torch.cat([of_squares, of_counts], -1) + dist.Normal(0.0, 1.0).log_prob(z)
    return (joint.logsumexp(0) + math.log(16 / 10_000)).sum(-1)


def test_many_skewed_modes_are_drawn_from_by_fitted_gaussians(monkeypatch):
    """In three seeds the mean error was 0.05 to 0.06, and 0.07 to 0.08 by Laplace's Gaussians, for as many evaluations;
    more than half of the data were reliable, and a quarter."""
    torch.manual_seed(0)
    counts = dist.Poisson((2 * torch.randn(120, DIM - 2)).exp()).sample()
    x = torch.cat([0.8 + 0.6 * torch.rand(120, 2), counts], -1)
    fitted = pv.log_evidence(four_modes, broad_guide, x)
    monkeypatch.setattr(cascade, "FEW_COUNT", 0.0)
    by_laplace = pv.log_evidence(four_modes, broad_guide, x)
    assert set(fitted.method) == {"importance sampling from the guide and a fitted Gaussian"}
    assert fitted.num_evaluations.sum() < 1.01 * by_laplace.num_evaluations.sum()
    error, error_by_laplace = ((each.log_evidence - by_quadrature(x)).abs().mean() for each in (fitted, by_laplace))
    assert error < 0.85 * error_by_laplace
    assert fitted.reliable.sum() > 1.5 * by_laplace.reliable.sum()
