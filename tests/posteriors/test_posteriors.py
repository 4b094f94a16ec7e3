"""Laws of posteriors."""

import math

import pytest
import torch
from laws import LATENT_DIM, NUM_PIXELS, POSTERIORS, built, rows_are_apart
from truths import grid

import pyro_vae as pv

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.parametrize("make", POSTERIORS.values(), ids=POSTERIORS),
]


def test_leading_dimensions_are_the_batch(make):
    z_given_x = built(make)(torch.randn(4, 5, NUM_PIXELS))
    assert z_given_x.batch_shape == (4, 5) and z_given_x.event_shape == (LATENT_DIM,)


def test_rows_are_apart(make):
    assert rows_are_apart(built(make), torch.randn(6, NUM_PIXELS))


def test_draws_carry_a_gradient(make):
    posterior = built(make)
    posterior(torch.randn(3, NUM_PIXELS)).rsample().sum().backward()
    assert all(parameter.grad is not None for parameter in posterior.parameters())


def test_a_draw_has_the_density_that_its_copy_has(make):
    """What a distribution remembers of its own draws changes neither density nor gradient."""
    posterior = built(make)
    z_given_x = posterior(torch.randn(3, NUM_PIXELS))
    z = z_given_x.rsample((5,))
    own, copied = (z_given_x.log_prob(each) for each in (z, z.clone()))
    assert torch.allclose(own, copied, rtol=1e-9, atol=1e-9)
    gradients = (
        torch.autograd.grad(each.sum(), [*posterior.parameters()], retain_graph=True, allow_unused=True)
        for each in (own, copied)
    )
    assert all(a is b or torch.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in zip(*gradients, strict=True))


def test_a_draw_that_is_changed_in_place_is_another(make):
    z_given_x = built(make)(torch.randn(3, NUM_PIXELS))
    with torch.no_grad():
        z = z_given_x.rsample()
        z_given_x.log_prob(z)
        z += 1.0
        assert torch.allclose(z_given_x.log_prob(z), z_given_x.log_prob(z.clone()), rtol=1e-9, atol=1e-9)


def test_draws_in_inference_mode_have_a_density(make):
    posterior, x = built(make), torch.randn(3, NUM_PIXELS)
    if isinstance(posterior, pv.posteriors.SemiAmortizedNormal):
        pytest.skip("its steps take gradients")
    with torch.inference_mode():
        z_given_x = posterior(x)
        assert z_given_x.log_prob(z_given_x.rsample()).isfinite().all()


def test_the_density_of_a_draw_without_gradient_has_one(make):
    """As wake-sleep and score functions need it."""
    posterior, x = built(make), torch.randn(3, NUM_PIXELS)
    gradients = []
    for alone in (False, True):
        torch.manual_seed(0)
        z_given_x = posterior(x)
        with torch.no_grad():
            z = z_given_x.rsample()
        log_prob = z_given_x.log_prob(z.clone() if alone else z).sum()
        gradients.append(torch.autograd.grad(log_prob, [*posterior.parameters()], allow_unused=True))
    assert any(gradient is not None for gradient in gradients[0])
    assert all(a is b or torch.allclose(a, b, rtol=1e-9) for a, b in zip(*gradients, strict=True))


def test_a_vamp_prior_of_it_is_the_mean_of_its_densities(make):
    posterior, pseudo_inputs = built(make), torch.randn(6, NUM_PIXELS)
    prior, z = pv.priors.VampPrior(posterior, pseudo_inputs)(), torch.randn(4, 5, LATENT_DIM)
    densities = torch.stack([posterior(each).log_prob(z) for each in pseudo_inputs])
    assert torch.allclose(prior.log_prob(z), densities.logsumexp(0) - math.log(6), rtol=1e-9, atol=1e-9)
    assert prior.sample((3,)).shape == (3, LATENT_DIM)


def test_extreme_networks_have_a_finite_density(make):
    """The last layer far out: no scale of zero or infinity."""
    posterior = built(make)
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter.mul_(1e3)
    z_given_x = posterior(torch.randn(5, NUM_PIXELS))
    assert z_given_x.log_prob(z_given_x.rsample()).isfinite().all()


EXTREME = [-1e4, -50.0, 0.0, 50.0, 1e4]


class Given(torch.nn.Module):
    """A network that gives the same numbers for all x."""

    def __init__(self, out):
        super().__init__()
        self.out = torch.nn.Parameter(out)

    def forward(self, x):
        return self.out.expand(*x.shape[:-1], -1)


def test_values_and_gradients_are_finite_far_out(make):
    """Network outputs of up to 10,000, in float32."""
    posterior = built(make).float()
    encoder = posterior.initial if hasattr(posterior, "initial") else posterior
    width = encoder.network.out_shape[0]
    for seed in range(20):
        torch.manual_seed(seed)
        encoder.network = Given(torch.tensor(EXTREME, dtype=torch.float32)[torch.randint(len(EXTREME), (width,))])
        z_given_x = posterior(torch.zeros(4, NUM_PIXELS, dtype=torch.float32))
        log_prob = z_given_x.log_prob(z_given_x.rsample())
        (gradient,) = torch.autograd.grad(log_prob.sum(), [encoder.network.out])
        assert log_prob.isfinite().all() and gradient.isfinite().all()


AREA = grid(LATENT_DIM, num=1201, limit=30.0)


@pytest.mark.one_in(2)
def test_it_integrates_to_one(make):
    """By quadrature; the twin is a density that is a tenth larger."""
    z, log_area = AREA
    mass = (built(make)(torch.randn(NUM_PIXELS)).log_prob(z) + log_area).logsumexp(0).exp().item()
    assert mass == pytest.approx(1, abs=1e-3) != 1.1 * mass


NUM_BATCHES, MOST = 30, 6.0


@pytest.mark.one_in(2)
def test_draws_have_the_gradient_of_the_expectation(make):
    """That of E (z_1^2 + z_1 z_2 + z_2) for all biases, by quadrature of the density.

    A number is off by up to 6 standard errors of a mean of 30 batches: a false failure in 10,000 runs of all numbers.
    The twin is a gradient that is half as large again.
    """
    posterior, x = built(make), torch.randn(NUM_PIXELS)
    if make is POSTERIORS["Flow, spline"]:
        pytest.skip("the bins of its splines are narrower than those of a grid")
    parameters = [each for name, each in posterior.named_parameters() if name.endswith("bias")]
    z, log_area = AREA
    density = (posterior(x).log_prob(z) + log_area).exp()
    of_density = _gradient((density * _function(z)).sum(), parameters)
    batches = torch.stack([
        _gradient(_function(posterior(x.expand(2000, -1)).rsample()).mean(), parameters) for _ in range(NUM_BATCHES)
    ])  # fmt: skip
    error = MOST * batches.std(0) / NUM_BATCHES**0.5 + 1e-5
    assert ((batches.mean(0) - of_density).abs() < error).all()
    assert ((1.5 * batches.mean(0) - of_density).abs() > error).any()


def test_draws_have_the_gradient_of_finite_differences(make):
    """In a direction of all biases, with the same noise; the twin is a thousandth larger."""
    if make is POSTERIORS["NormalMixture"]:
        pytest.skip("which part a draw comes of has no derivative")
    posterior, x = built(make), torch.randn(NUM_PIXELS).expand(1000, -1)
    parameters = [each for name, each in posterior.named_parameters() if name.endswith("bias")]
    directions = [torch.randn_like(each) for each in parameters]

    def mean(step=0.0):
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(step * direction)
        value = _function(posterior(x).rsample()).mean()
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.sub_(step * direction)
        return value

    slope = (_gradient(mean(), parameters) * torch.cat([each.flatten() for each in directions])).sum().item()
    difference = (mean(1e-6) - mean(-1e-6)).item() / 2e-6
    assert slope == pytest.approx(difference, rel=1e-4) != pytest.approx(1.001 * difference, rel=1e-4)


def _function(z):
    return z[..., 0].square() + z.prod(-1) + z[..., 1]


def _gradient(value, parameters):
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([each.flatten() for each in found])


def test_a_latent_of_another_shape_is_refused_with_a_remedy(make):
    with pytest.raises(ValueError, match="posterior: expected q.z.x. over z of shape .*give its network"):
        pv.VAE(
            pv.priors.StandardNormal(LATENT_DIM + 1),
            pv.likelihoods.Bernoulli(pv.nn.MLP(LATENT_DIM + 1, [], NUM_PIXELS)),
            built(make),
        )
