"""Pyro's automatic guides, for each datum."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer import autoguide as guides
from truths import LinearGaussian, assert_within

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("float64")
OF_EACH_DATUM = {
    "AutoNormal": guides.AutoNormal,
    "AutoNormalMessenger": guides.AutoNormalMessenger,
    "AutoHierarchicalNormalMessenger": guides.AutoHierarchicalNormalMessenger,
    "AutoRegressiveMessenger": guides.AutoRegressiveMessenger,
}
OF_ALL_TOGETHER = {
    "AutoDiagonalNormal": guides.AutoDiagonalNormal,
    "AutoMultivariateNormal": guides.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": guides.AutoLowRankMultivariateNormal,
    "AutoIAFNormal": guides.AutoIAFNormal,
    "AutoLaplaceApproximation": guides.AutoLaplaceApproximation,
    "AutoGaussian": guides.AutoGaussian,
    "AutoStructured": guides.AutoStructured,
    "AutoDelta": guides.AutoDelta,
}
TRUTH = LinearGaussian(latent_dim=2, data_dim=3, scale=0.8)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        loc = (TRUTH.weight * z[..., None, :]).sum(-1) + TRUTH.bias
        pyro.sample("x", dist.Normal(loc, TRUTH.scale).to_event(1), obs=x)


def fitted(guide, model, *args, num_steps=150):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(num_steps):
        svi.step(*args)
    return guide


@pytest.mark.filterwarnings("ignore:.*got one that runs on all")
@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", OF_EACH_DATUM)
def test_those_of_each_datum_are_taken_as_they_are(name, recwarn):
    x = TRUTH.draw(6)
    guide = fitted(OF_EACH_DATUM[name](model), model, x)
    for estimate in (pv.importance_sampling, pv.log_evidence):
        assert_within(estimate(model, guide, x), TRUTH.log_evidence(x))
    assert not [each for each in recwarn if "Gaussians take its place" in str(each.message)]


@pytest.mark.filterwarnings("ignore:.*got one that runs on all")
@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", OF_ALL_TOGETHER)
def test_gaussians_take_the_place_of_those_of_all_data_together(name):
    x = TRUTH.draw(6)
    guide = fitted(OF_ALL_TOGETHER[name](model), model, x)
    for estimate in (pv.importance_sampling, partial(pv.ais, num_temperatures=20)):
        with pytest.warns(UserWarning, match=f"got {name}.* Gaussians take its place, site by site"):
            assert_within(estimate(model, guide, x), TRUTH.log_evidence(x))


@pytest.mark.one_in(2)
@pytest.mark.filterwarnings("ignore:.*got one that runs on all", "ignore:.*Gaussians take its place")
@pytest.mark.parametrize("name", ["AutoDiagonalNormal", "AutoDelta"])
def test_sites_of_several_kinds(name):
    """A simplex, a positive number, and a plate inside."""
    counts = dist.Multinomial(9, torch.full((6, 3), 1 / 3)).sample()

    def model(counts):
        with pyro.plate("data", len(counts), dim=-2):
            shares = pyro.sample("shares", dist.Dirichlet(torch.full((len(counts), 1, 3), 2.0)))
            with pyro.plate("inside", 2, dim=-1):
                pyro.sample("noise", dist.Gamma(2.0, 1.0))
            pyro.sample("counts", dist.Multinomial(9, shares, validate_args=False), obs=counts[:, None])

    exact = dist.DirichletMultinomial(torch.full((3,), 2.0), 9).log_prob(counts)
    guide = fitted(OF_ALL_TOGETHER[name](model), model, counts)
    assert_within(pv.log_evidence(model, guide, counts, tolerance=0.1, max_evaluations=2000), exact)


def test_latents_that_data_share_are_refused_as_with_any_guide():
    def shared(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    x = torch.randn(5)
    guide = fitted(guides.AutoMultivariateNormal(shared), shared, x, num_steps=1)
    with pytest.raises(ValueError, match="joint=True"):
        pv.importance_sampling(shared, guide, x)
