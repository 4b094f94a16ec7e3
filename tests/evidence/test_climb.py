"""Climbs by L-BFGS, in a few dimensions where the summit is known."""

import pyro
import pyro.distributions as dist
import torch

import pyro_vae as pv
from pyro_vae.evidence.climb import climb
from pyro_vae.evidence.gaussians import FullNormal

CURVATURE = torch.logspace(-1.5, 1.5, 10).double()


def standard(num_data, dim):
    return FullNormal(torch.zeros(num_data, dim).double(), torch.eye(dim).double().expand(num_data, dim, dim))


def quadratic(u):
    return -0.5 * (CURVATURE * (u - 1).square()).sum(-1)


def bent(u):
    """Rosenbrock's valley, as a ridge: the summit is at (1, 1)."""
    return -(1 - u[..., 0]).square() - 100 * (u[..., 1] - u[..., 0].square()).square()


def by_gradients(density, metric, start, num_evaluations):
    """The same climb without a memory."""
    end = climb(density, metric, start, 1)
    for _ in range(num_evaluations // 2):
        end = climb(density, metric, end.position, 2)
    return end


def test_it_gets_to_a_summit_where_gradients_do_not():
    for density, dim in ((quadratic, 10), (bent, 2)):
        start = torch.zeros(3, 4, dim).double()
        end = climb(density, standard(4, dim), start, 60)
        assert end.value.min() > -1e-4 and (end.position - 1).abs().max() < 2e-2 and end.gain.max() < 1e-2
        assert by_gradients(density, standard(4, dim), start, 60).value.max() < -1e-2


def test_it_is_the_same_in_any_metric_and_takes_one_step_in_the_right_one():
    right = FullNormal(torch.zeros(4, 10).double(), CURVATURE.rsqrt().diag().expand(4, 10, 10))
    end = climb(quadratic, right, torch.zeros(3, 4, 10).double(), 2)
    assert torch.allclose(end.position, torch.ones(()).double()) and end.gain.max() < 1e-20


def test_each_climb_goes_its_own_way():
    """What others in the batch do changes nothing."""
    torch.manual_seed(0)
    start = torch.randn(3, 4, 2).double()
    all_at_once = climb(bent, standard(4, 2), start, 15)
    alone = climb(bent, standard(1, 2), start[1:2, 2:3], 15)
    assert torch.allclose(all_at_once.position[1:2, 2:3], alone.position, rtol=1e-9)


def test_each_evaluation_is_counted():
    seen = []

    def counted(u):
        seen.append(len(u))
        return bent(u)

    climb(counted, standard(4, 2), torch.zeros(3, 4, 2).double(), 15)
    assert seen == [3] * 15


def test_from_a_start_of_no_density_there_is_no_climb():
    """NaN and minus infinity: their gain is infinite, so that no end is taken for a summit; another goes up beside."""

    def density(u):
        return bent(u).where(u[..., 0] > -5, -torch.inf)

    start = torch.zeros(1, 3, 2).double()
    start[0, 0], start[0, 1] = torch.nan, -10
    end = climb(density, standard(3, 2), start, 60)
    assert end.value[0, :2].isneginf().all() and end.gain[0, :2].isposinf().all()
    assert end.position[0, 0].isnan().all() and end.position[0, 1].eq(-10).all() and end.value[0, 2] > -1e-6


def test_a_step_beyond_the_support_is_halved():
    def density(u):
        """A gamma's of shape 3, whose summit is at 2; its gradient at the start leads beyond 0."""
        return (2 * u[..., 0].log() - u[..., 0]).where(u[..., 0] > 0, torch.nan)

    end = climb(density, standard(2, 1), torch.full((1, 2, 1), 9.0).double(), 40)
    far = climb(density, standard(2, 1), torch.full((1, 2, 1), 1e-3).double(), 40)
    assert torch.allclose(end.position, torch.tensor(2.0).double(), atol=1e-3)
    assert torch.allclose(far.position, torch.tensor(2.0).double(), atol=1e-3)


def test_where_the_density_bends_upwards_it_climbs_all_the_same():
    """From beside a saddle between two summits."""

    def two_summits(u):
        return -(u[..., 0].square() - 4).square() - u[..., 1].square()

    end = climb(two_summits, standard(1, 2), torch.tensor([[[0.01, 3.0]], [[-0.01, 3.0]]]).double(), 40)
    assert torch.allclose(end.position, torch.tensor([[[2.0, 0.0]], [[-2.0, 0.0]]]).double(), atol=1e-3)


def test_a_first_step_that_is_a_thousand_times_too_long_is_no_end():
    """Counts with a logarithmic link, from where a Newton step leads to e^15,000: the mode is found at the usual cost."""
    counts = torch.tensor([[2000.0, 500.0, 3.0]]).double()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson((3 * z - 1).exp()).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.full((len(x), 3), -2.0).double(), 0.1).to_event(1))

    found = pv.importance_sampling(model, guide, counts, proposal="laplace", num_samples=1000)
    z = torch.linspace(-10, 10, 100_001).double()[:, None]
    log_joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Poisson((3 * z - 1).exp()).log_prob(counts[0])
    exact = (log_joint.logsumexp(0) + (z[1] - z[0]).log()).sum()
    assert found.diagnostics["converged"].all()
    assert abs(found.log_evidence.item() - exact) < 5 * found.std_error.item()
