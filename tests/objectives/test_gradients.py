"""The two SGVB estimators: A, all Monte Carlo (`Trace_ELBO`), and B, with the KL's formula (`TraceMeanField_ELBO`)."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from truths import LIKELIHOODS, LinearGaussian, draws_of, small_vae

pytestmark = pytest.mark.usefixtures("float64")

ESTIMATORS = {"A": Trace_ELBO(), "B": TraceMeanField_ELBO()}
NUM_DRAWS = 400


def closed_form_kl(m, s):
    """KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1 - log s^2) / 2, summed over dimensions."""
    return 0.5 * (m**2 + s**2 - 1 - (s**2).log()).sum(-1)


def losses_and_gradients(estimator, vae, x, num_draws=NUM_DRAWS):
    """Losses `(num_draws,)` and gradients `(num_draws, P)` of independent draws."""
    rows = []
    for _ in range(num_draws):
        loss = ESTIMATORS[estimator].differentiable_loss(vae.model, vae.guide, x)
        gradient = torch.autograd.grad(loss, list(vae.parameters()))
        rows.append(torch.cat([loss.detach()[None], *(g.flatten() for g in gradient)]))
    values = torch.stack(rows)
    return values[:, 0], values[:, 1:]


def z_scores(a, b):
    return (a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / len(a)).sqrt()


@pytest.fixture(scope="module")
def both_estimators():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    vae = small_vae(hidden=(3,))
    x = draws_of(vae, 5)
    torch.manual_seed(0)
    yield {name: losses_and_gradients(name, vae, x) for name in ESTIMATORS}
    torch.set_default_dtype(dtype)


@pytest.mark.slow
def test_both_estimators_have_the_same_mean_and_gradient(both_estimators):
    """Of about 60 z-scores none is beyond 5 (3.6e-5 by chance)."""
    (loss_a, gradient_a), (loss_b, gradient_b) = both_estimators["A"], both_estimators["B"]
    assert z_scores(loss_a, loss_b).abs() < 5
    assert z_scores(gradient_a, gradient_b).abs().max() < 5
    # The twins: a KL weight of 1.5, or of none.
    assert z_scores(loss_a, 1.2 * loss_b).abs() > 5
    assert z_scores(gradient_a, 1.5 * gradient_b).abs().max() > 5


def test_the_analytic_kl_has_the_smaller_variance(both_estimators):
    """A ratio of two variances of 400 draws has a standard error of about 0.1; half is 5 of them from one."""
    (loss_a, gradient_a), (loss_b, gradient_b) = both_estimators["A"], both_estimators["B"]
    assert loss_b.var() < 0.5 * loss_a.var()
    assert gradient_b.var(0).sum() < 0.7 * gradient_a.var(0).sum()


class ExactNormal(nn.Module):
    """The posterior of a linear-Gaussian model of one latent, as a Normal: Pyro knows its KL to the prior."""

    def __init__(self, truth):
        super().__init__()
        self.truth = truth

    def forward(self, x):
        exact = self.truth.posterior(x)
        return dist.Normal(exact.loc, exact.stddev).to_event(1)


def test_at_the_posterior_it_is_the_other_way_round():
    """Estimator A has no variance where q is the posterior: its terms cancel. B's remaining term does not."""
    truth = LinearGaussian(latent_dim=1)
    vae, x = truth.vae(ExactNormal(truth)), truth.draw(10)
    losses = {
        name: torch.tensor([each.loss(vae.model, vae.guide, x) for _ in range(9)]) for name, each in ESTIMATORS.items()
    }
    assert losses["A"].std() < 1e-10
    assert losses["B"].std() > 1e-3


@pytest.mark.parametrize("latent_dim", [1, 4])
def test_kl_by_formula_and_by_draws(latent_dim):
    """Without a likelihood that depends on z the loss is the KL: B is exact at every draw, A within its error."""
    vae = small_vae("Gaussian, constant scale", latent_dim)
    for parameter in vae.likelihood.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(7, 6)
    q = vae.encode(x).base_dist
    kl = closed_form_kl(q.loc, q.scale).sum().detach()
    constant = dist.Normal(0.0, 0.5).log_prob(x).sum()
    by_formula = torch.tensor([ESTIMATORS["B"].loss(vae.model, vae.guide, x) for _ in range(3)]) + constant
    assert torch.allclose(by_formula, kl.expand(3), rtol=1e-12)
    by_draws = torch.tensor([ESTIMATORS["A"].loss(vae.model, vae.guide, x) for _ in range(NUM_DRAWS)]) + constant
    std_error = by_draws.std() / NUM_DRAWS**0.5
    assert (by_draws.mean() - kl).abs() < 4.5 * std_error  # fails by chance: 7e-6
    with_variance_for_scale = closed_form_kl(q.loc, q.variance).sum()  # the twin: sigma and sigma^2 mixed up
    assert (by_draws.mean() - with_variance_for_scale).abs() > 4.5 * std_error


@pytest.mark.slow
@pytest.mark.parametrize("num_particles", [2, 10])
@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("estimator", [Trace_ELBO, TraceMeanField_ELBO])
def test_particles_divide_the_variance(estimator, vectorize, num_particles):
    """L particles leave the mean and divide the variance by L; 0.49 to 2.03 are 5 standard errors of the ratio's log."""
    vae = small_vae(hidden=(3,))
    x = draws_of(vae, 5)
    many = estimator(num_particles=num_particles, vectorize_particles=vectorize)
    num = 200
    one_by_one = torch.tensor([estimator().loss(vae.model, vae.guide, x) for _ in range(num)])
    together = torch.tensor([many.loss(vae.model, vae.guide, x) for _ in range(num)])
    assert z_scores(one_by_one, together).abs() < 4.5
    assert 0.49 < num_particles * together.var() / one_by_one.var() < 2.03


def directional_derivatives(objective, vae, x, num_directions=5, step=1e-5):
    """By autograd and by central differences, with the same noise in each evaluation."""
    parameters = list(vae.parameters())

    def loss():
        torch.manual_seed(1)
        return objective.differentiable_loss(vae.model, vae.guide, x)

    gradient = torch.autograd.grad(loss(), parameters)
    for seed in range(num_directions):
        generator = torch.Generator().manual_seed(seed)
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        by_autograd = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
        values = []
        for sign in (1, -2):
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.data.add_(d, alpha=sign * step)
            values.append(loss().detach())
        for parameter, d in zip(parameters, direction, strict=True):
            parameter.data.add_(d, alpha=step)
        yield by_autograd, (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_are_those_of_finite_differences(estimator, likelihood):
    vae = small_vae(likelihood)
    x = draws_of(vae, 4)
    for by_autograd, by_differences in directional_derivatives(ESTIMATORS[estimator], vae, x):
        assert torch.isclose(by_autograd, by_differences, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_twin_with_a_wrong_gradient_is_caught(estimator):
    """A posterior whose scale forgets its gradient, as with `sample` in place of `rsample`."""

    class Forgetful(nn.Module):
        def __init__(self, posterior):
            super().__init__()
            self.posterior = posterior

        def forward(self, x):
            q = self.posterior(x).base_dist
            return dist.Normal(q.loc, q.scale.detach()).to_event(1)

    vae = small_vae()
    x = draws_of(vae, 4)
    vae.guide.posterior = Forgetful(vae.posterior)
    pairs = directional_derivatives(ESTIMATORS[estimator], vae, x)
    assert not any(torch.isclose(a, b, rtol=1e-6, atol=1e-7) for a, b in pairs)


def test_loss_is_minus_elbo():
    """A step of SVI lowers the loss, which is the negated ELBO."""
    vae = small_vae()
    x = draws_of(vae, 50)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), TraceMeanField_ELBO(num_particles=5))
    losses = [svi.step(x) for _ in range(100)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert min(losses) > 0  # of a discrete x: log p(x) < 0
