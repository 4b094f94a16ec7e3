"""What draws from elsewhere say about a proposal."""

import math

import torch
from torch.distributions import Normal

from pyro_vae.evidence.elsewhere import Elsewhere


def seen_of(width, num_data=2000, num_draws=60):
    """p(x, z) is N(z; 0, 1), so that p(x) = 1; q has another width, and draws come from one that is twice as wide as p."""
    torch.manual_seed(0)
    p, q, g = (Normal(torch.zeros((), dtype=torch.float64), scale) for scale in (1.0, width, 2.0))
    z = g.sample((num_draws, num_data))
    return Elsewhere(p.log_prob(z) - g.log_prob(z), p.log_prob(z) - q.log_prob(z))


def test_equal_weights_have_no_variance_whichever_draws_there_are():
    found = seen_of(1.0).relative_variance(torch.zeros(2000), 0.0)
    assert (found.abs() < 1e-12).all()


def test_the_variance_of_the_weights_of_a_wider_proposal():
    r"""$s^2 / \sqrt{2 s^2 - 1} - 1$ for a width s, and less than half the spread of the plain mean."""
    width, log_evidence = 1.5, torch.zeros(2000)
    seen = seen_of(width)
    found = seen.relative_variance(log_evidence, 0.0)
    exact = width**2 / math.sqrt(2 * width**2 - 1) - 1
    assert abs(found.mean() - exact) < 4.5 * found.std() / math.sqrt(len(found))
    plain = (seen.log_ratio + seen.log_weight).exp().mean(0) - 1
    assert abs(plain.mean() - exact) < 4.5 * plain.std() / math.sqrt(len(plain))
    assert found.std() < plain.std() / 2
