"""Gradients of draws of a mixture, against those of an expectation that has a formula."""

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.posteriors.mixture import _Mixture

NUM_BATCHES, SIZE = 40, 20_000
MOST = 5.0  # standard errors of the mean of 40 batches: fewer than one false failure in 10,000 for ten numbers


def parameters(dim):
    torch.manual_seed(0)
    logits = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
    loc = torch.randn(3, dim, dtype=torch.float64)
    scale = torch.rand(3, dim, dtype=torch.float64) + 0.4
    return [each.requires_grad_() for each in (logits, loc, scale)]


def exact(logits, loc, scale, a):
    """E exp(-|z - a|^2)."""
    wide = 1 + 2 * scale.square()
    of_each = (wide.rsqrt() * (-(loc - a).square() / wide).exp()).prod(-1)
    return (logits.softmax(-1) * of_each).sum()


def errors(make, dim):
    """How many standard errors each number of the gradient is off."""
    given, a = parameters(dim), torch.full((dim,), 0.7, dtype=torch.float64)
    expected = torch.cat([each.flatten() for each in torch.autograd.grad(exact(*given, a), given)])
    found = []
    for _ in range(NUM_BATCHES):
        z = make(*given, SIZE)
        gradient = torch.autograd.grad((-(z - a).square().sum(-1)).exp().mean(), given)
        found.append(torch.cat([each.flatten() for each in gradient]))
    found = torch.stack(found)
    return (found.mean(0) - expected).abs() / (found.std(0) / NUM_BATCHES**0.5)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_draws_have_the_gradient_of_the_expectation(dim):
    assert errors(lambda *given: _Mixture(*given[:3]).rsample((given[3],)), dim).max() < MOST


def test_the_gradient_of_pyro_s_mixture_is_another():
    """So the test can fail: its shares have a gradient that is biased."""

    def by_pyro(logits, loc, scale, size):
        return dist.MixtureOfDiagNormals(loc, scale, logits).expand((size,)).rsample()

    assert errors(by_pyro, 2)[:3].max() > MOST


def test_equal_components_have_a_finite_gradient():
    logits = torch.zeros(3, 2, requires_grad=True)
    loc, scale = torch.zeros(3, 2, 4, requires_grad=True), torch.ones(3, 2, 4, requires_grad=True)
    z = _Mixture(logits, loc, scale).rsample((7,))
    gradients = torch.autograd.grad(z.square().sum(), [logits, loc, scale])
    assert all(gradient.isfinite().all() for gradient in gradients)
