"""Guides with noise of their own, whose density the model says: the pseudo-marginal argument."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from truths import ESTIMATORS, assert_within

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("float64")


def data(num_data=12):
    return 1.5 * torch.randn(num_data, generator=torch.Generator().manual_seed(2))


def model(x, scale=0.9):
    """z ~ N(0, 1), x ~ N(z, 1), and r(u|z, x) = N((z - x / 2) / 2, scale^2), on which nothing depends."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("u", dist.Normal((z - x / 2) / 2, scale))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def without_density(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_with(infer):
    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=infer)
            pyro.sample("z", dist.Normal(x / 2 + u / 2, 0.6))

    return guide


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "local"])
@pytest.mark.parametrize("infer", [{"is_auxiliary": True}, None], ids=["marked", "unmarked"])
def test_its_weights_have_the_mean_p(infer, name):
    x = data()
    evidence = ESTIMATORS[name](model, guide_with(infer), x)
    assert_within(evidence, dist.Normal(0.0, math.sqrt(2)).log_prob(x))


def test_a_density_that_is_closer_has_smaller_errors():
    def poor(x):
        return model(x, scale=5.0)

    errors = [pv.importance_sampling(program, guide_with(None), data()).std_error.mean() for program in (model, poor)]
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("infer", [{"is_auxiliary": True}, None], ids=["marked", "unmarked"])
def test_without_a_density_it_is_refused_with_the_remedy(infer):
    with pytest.raises(ValueError, match=r"give it a density in the model, as a\s+latent on which nothing depends"):
        pv.importance_sampling(without_density, guide_with(infer), data())
