"""Latents that the model makes points (Delta) of what is before them, against the closed form."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from truths import assert_within

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("float64")
X = torch.linspace(-2.0, 2.0, 5, dtype=torch.float64)


def model(x, has_density=False):
    """w ~ N(0, 1), z = 2 w, x ~ N(z, 1); the point may have the log density -w^2 / 2."""
    unit = pyro.sample("unit", dist.Delta(torch.ones(())))
    with pyro.plate("data", len(x)):
        w = pyro.sample("w", dist.Normal(torch.zeros(()), unit))
        z = pyro.sample("z", dist.Delta(2 * w, log_density=-w.square() / 2 if has_density else 0.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x, **kwargs):
    with pyro.plate("data", len(x)):
        pyro.sample("w", dist.Normal(0.4 * x, 0.5))


def guide_of_both(x, **kwargs):
    with pyro.plate("data", len(x)):
        w = pyro.sample("w", dist.Normal(0.4 * x, 0.5))
        pyro.sample("z", dist.Delta(2 * w))


def exact(has_density=False):
    if has_density:  # N(w; 0, 1) exp(-w^2 / 2) is the root of a half times N(w; 0, 1 / 2)
        return dist.Normal(0.0, 3**0.5).log_prob(X) - torch.tensor(2.0).log() / 2
    return dist.Normal(0.0, 5**0.5).log_prob(X)


GUIDES = {
    "that leaves it out": lambda: guide,
    "None": lambda: None,
    "that has the point, too": lambda: guide_of_both,
    "AutoNormal of the others": lambda: AutoNormal(poutine.block(model, hide=["z", "unit"]), init_scale=0.5),
    "AutoDelta": lambda: AutoDelta(model),
}


@pytest.mark.filterwarnings(
    "ignore:guide. expected one density", "ignore:model, guide. expected a pair that runs on any"
)
@pytest.mark.parametrize("estimate", [pv.importance_sampling, pv.log_evidence])
@pytest.mark.parametrize("name", GUIDES)
def test_a_point_is_no_latent(name, estimate):
    evidence = estimate(
        model, GUIDES[name](), X, **({"num_samples": 4000} if estimate is pv.importance_sampling else {})
    )
    assert_within(evidence, exact())
    assert set(evidence.observed.values) == {"x"}


@pytest.mark.parametrize("guide", [guide, None])
def test_its_log_density_counts(guide):
    evidence = pv.importance_sampling(model, guide, X, kwargs={"has_density": True}, proposal="laplace")
    assert torch.allclose(evidence.log_evidence, exact(has_density=True))  # a Gaussian, exactly
    assert set(evidence.observed.values) == {"x"}
    assert not torch.allclose(evidence.log_evidence, exact(), atol=0.1)  # the twin


def test_where_all_latents_are_points():
    def certain(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Delta(torch.ones(())))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    evidence = pv.importance_sampling(certain, None, X, num_samples=10)
    assert torch.allclose(evidence.log_evidence, dist.Normal(1.0, 1.0).log_prob(X))


def test_points_of_an_enumerated_latent():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
            z = pyro.sample("z", dist.Delta(2 * k - 1))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    both = torch.stack([dist.Normal(1.0, 1.0).log_prob(X), dist.Normal(-1.0, 1.0).log_prob(X)])
    expected = (both + torch.tensor([0.3, 0.7]).log()[:, None]).logsumexp(0)
    assert torch.allclose(pv.importance_sampling(model, None, X, num_samples=10).log_evidence, expected)


def test_posterior_draws_are_of_what_is_drawn():
    draws = pv.posterior_samples(model, guide, X, num_samples=50)
    assert set(draws.latents) == {"w"}
    assert torch.allclose(draws.latents["w"].mean((0, 1)), 0.4 * X, atol=0.2)


def test_a_density_where_the_model_has_a_point():
    def wide(x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Normal(0.4 * x, 0.5))
            pyro.sample("z", dist.Normal(2 * w, 1.0))

    with pytest.raises(
        ValueError, match="guide: expected nothing at site 'z', which the model makes a point .* leave it"
    ):
        pv.importance_sampling(model, wide, X)
