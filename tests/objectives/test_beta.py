"""The ELBO with another weight of its KL term."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal

import pyro_vae as pv
from pyro_vae.objectives import BetaELBO
from pyro_vae.training.kl_weight import KLWeight

pytestmark = pytest.mark.usefixtures("float64", "interpreted")


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Gaussian(pv.nn.MLP(2, [], 3), scale=0.7),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 4)),
    )


def loss_and_gradient(objective, vae, x, **options):
    objective.loss(vae.model, vae.guide, x, **options)  # a first look at the plates draws numbers
    torch.manual_seed(0)
    vae.zero_grad()
    loss = objective.loss_and_grads(vae.model, vae.guide, x, **options)
    return loss, torch.cat([parameter.grad.flatten() for parameter in vae.parameters()])


def rate_and_distortion(vae, x):
    """KL of each datum and latent number, and the rest of the ELBO, at the draws of seed 0."""
    q = vae.encode(x).base_dist
    torch.manual_seed(0)
    z = vae.encode(x).rsample()
    kl = (q.loc.square() + q.scale.square() - 1) / 2 - q.scale.log()
    return kl, -vae.decode(z).log_prob(x).sum()


@pytest.mark.parametrize(("beta", "free_bits"), [(4.0, 0.0), (0.5, 0.0), (1.0, 0.2), (3.0, 0.05)])
def test_by_hand(vae, beta, free_bits):
    x = torch.randn(5, 3)
    loss, gradient = loss_and_gradient(BetaELBO(beta, free_bits), vae, x)
    kl, distortion = rate_and_distortion(vae, x)
    floored = torch.maximum(kl.mean(0), torch.tensor(free_bits)).sum() * len(x)
    expected = distortion + beta * floored
    assert loss == pytest.approx(expected.item())
    by_hand = torch.autograd.grad(expected, [*vae.parameters()], allow_unused=True)
    by_hand = [torch.zeros_like(p) if g is None else g for p, g in zip(vae.parameters(), by_hand, strict=True)]
    assert torch.allclose(gradient, torch.cat([each.flatten() for each in by_hand]))


def test_weight_one_is_pyros_elbo(vae):
    x = torch.randn(5, 3)
    loss, gradient = loss_and_gradient(BetaELBO(), vae, x)
    expected, gradient_of_pyro = loss_and_gradient(TraceMeanField_ELBO(), vae, x)
    assert loss == pytest.approx(expected) and torch.allclose(gradient, gradient_of_pyro)


def test_by_draws_where_there_is_no_formula():
    vae = pv.VAE(
        pv.priors.GaussianMixture(2, num_components=3),
        pv.likelihoods.Gaussian(pv.nn.MLP(2, [], 3), scale=0.7),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 4)),
    )
    x = torch.randn(5, 3)
    loss, gradient = loss_and_gradient(BetaELBO(), vae, x)
    expected, gradient_of_pyro = loss_and_gradient(Trace_ELBO(), vae, x)
    assert loss == pytest.approx(expected) and torch.allclose(gradient, gradient_of_pyro)
    with pytest.raises(ValueError, match="free_bits: expected a formula for the KL divergence of each latent"):
        BetaELBO(free_bits=0.1).loss(vae.model, vae.guide, x)


def test_free_bits_of_a_full_covariance_are_refused():
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Gaussian(pv.nn.MLP(2, [], 3), scale=0.7),
        pv.posteriors.FullRankNormal(pv.nn.MLP(3, [], 5), 2),
    )
    with pytest.raises(ValueError, match="free_bits: expected .*; got z without"):
        BetaELBO(free_bits=0.1).loss(vae.model, vae.guide, torch.randn(4, 3))


def model_of_two(x):
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(torch.tensor(0.0), 1.0))
        z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
        pyro.sample("x", dist.Normal(z1, 1.0), obs=x)


def guide_from_below(x):
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", dist.Normal(pyro.param("a", torch.tensor(0.3)) * x, 0.8))
        pyro.sample("z2", dist.Normal(0.5 * z1, 0.7))


def test_formulas_are_not_used_in_another_order():
    """q(z2|z1) p(z1|z2): the KL of z1 given a z2 that depends on it has another mean; draws give the ELBO."""
    x = torch.tensor([1.0, -0.5, 2.0])
    found = []
    for objective in (BetaELBO(), Trace_ELBO()):
        objective.loss(model_of_two, guide_from_below, x)
        torch.manual_seed(0)
        found.append(objective.loss(model_of_two, guide_from_below, x))
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize("free_bits", [0.0, 0.1])
@pytest.mark.parametrize("num_particles", [1, 4])
def test_scales_and_masks(vae, num_particles, free_bits):
    """Twenty data that four stand for, as many particles as you like, and two of three rows masked."""
    x = torch.randn(4, 3)

    def objective():
        return BetaELBO(2.0, free_bits, num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)

    one, gradient_of_one = loss_and_gradient(objective(), vae, x)
    five, gradient_of_five = loss_and_gradient(objective(), vae, x, num_data=20)
    assert five == pytest.approx(5 * one) and torch.allclose(gradient_of_five, 5 * gradient_of_one)

    rows = torch.tensor([True, False, True, False])
    masked = [poutine.mask(program, mask=rows) for program in (vae.model, vae.guide)]
    torch.manual_seed(0)
    half = objective().loss(*masked, x)
    kl, _ = rate_and_distortion(vae, x)
    floored = 2.0 * 2 * torch.maximum(kl[rows].mean(0), torch.tensor(free_bits)).sum().item()
    silent = BetaELBO(0.0, num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(0)
    assert half == pytest.approx(silent.loss(*masked, x) + floored)


def test_a_graph_gives_what_a_call_as_it_is_gives(vae):
    x = torch.randn(6, 3)
    objective = BetaELBO(4.0, 0.1)
    for _ in range(3):
        loss, gradient = loss_and_gradient(objective, vae, x)
    assert "compiled" in objective.execution(vae.model, vae.guide)
    objective.compile = False
    expected, expected_gradient = loss_and_gradient(objective, vae, x)
    assert loss == pytest.approx(expected) and torch.allclose(gradient, expected_gradient)


def test_warming_up_multiplies_the_weight(vae):
    """At half of the way a weight of 2 is one of 1; the twin is at its end."""
    x = torch.randn(6, 3)
    warmup = KLWeight(10, x.device)
    plain, _ = loss_and_gradient(BetaELBO(1.0), vae, x)
    found = []
    for step in (5, 10):
        warmup.set(step)
        pair = [warmup.applied_to(program) for program in (vae.model, vae.guide)]
        objective = BetaELBO(2.0)
        objective.compile = False
        objective.loss(*pair, x)
        torch.manual_seed(0)
        found.append(objective.loss(*pair, x))
    assert found[0] == pytest.approx(plain) != found[1]


def test_scales_that_differ_take_draws_whatever_the_form():
    """A latent of two numbers, written in two ways, with a scale in the model alone: one loss."""
    found = []
    for prior in (dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.MultivariateNormal(torch.zeros(2), torch.eye(2))):

        def model(x, prior=prior):
            with pyro.plate("data", len(x)):
                with poutine.scale(scale=0.1):
                    z = pyro.sample("z", prior)
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("a", torch.tensor(0.5)) * x, 0.8).to_event(1))

        objective = BetaELBO(2.0)
        x = torch.linspace(-1, 1, 8).reshape(4, 2)
        objective.loss(model, guide, x)
        torch.manual_seed(0)
        found.append(objective.loss(model, guide, x))
    assert found[0] == pytest.approx(found[1])


def test_automatic_guides_and_latents_without_a_guide():
    def model(x, with_extra=False):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            if with_extra:
                pyro.sample("extra", dist.Normal(0.0, 1e-4))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(5)
    guide = AutoNormal(model)
    guide(x)
    losses = []
    for objective in (BetaELBO(), Trace_ELBO()):
        objective.loss(model, guide, x)
        torch.manual_seed(0)
        losses.append(objective.loss(model, guide, x))
    assert losses[0] == pytest.approx(losses[1])
    for objective in (BetaELBO(), pv.objectives.IWELBO(2)):
        with pytest.raises(
            ValueError, match="guide: expected a draw of each latent of the model; got none of site 'extra'"
        ):
            objective.loss(lambda x: model(x, True), guide, x)


def test_free_bits_are_of_each_number_of_a_plate():
    """Two numbers in a plate of their own, with a KL of 0 and of 2 nats: a floor of 1 adds to the first alone."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("number", 2, dim=-2):
                z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z.sum(0), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("number", 2, dim=-2):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor([[0.0], [2.0]])).expand(2, len(x)), 1.0))

    x, losses = torch.zeros(6), []
    for free_bits in (0.0, 1.0):
        objective = BetaELBO(free_bits=free_bits)
        objective.loss(model, guide, x)
        torch.manual_seed(0)
        losses.append(objective.loss(model, guide, x))
    assert losses[1] - losses[0] == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, "beta: expected"),
        ({"beta": math.inf}, "beta: expected"),
        ({"free_bits": -0.1}, "free_bits: expected"),
    ],
)
def test_impossible_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        BetaELBO(**options)
