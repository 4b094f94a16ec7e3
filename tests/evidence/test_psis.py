"""Pareto k-hat: against arviz, against Pyro's fit, and where there is nothing to fit."""

import math

import pytest
import torch
from pyro.ops.stats import fit_generalized_pareto
from torch.distributions import Normal, Pareto

import pyro_vae as pv
from pyro_vae.evidence.psis import khat_threshold, tail_length

pytestmark = pytest.mark.usefixtures("float64")


def weights_of(shape, num_samples, num_data=1, seed=0):
    """Log weights whose tail has this k."""
    torch.manual_seed(seed)
    return Pareto(torch.tensor(1.0), torch.tensor(1 / shape)).sample((num_samples, num_data)).log()


def khat_of_arviz(log_weights):
    import arviz as az

    if az.__version__.startswith("0."):
        return float(az.psislw(log_weights.numpy().copy())[1])
    from arviz_stats.base import array_stats

    # Its own psislw rounds the length of the tail down, where arviz 0.x and the paper round up.
    num = len(log_weights)
    return float(array_stats._ps_tail(log_weights.numpy(), num, tail_length(num), tail="right", log_weights=True)[1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_samples", [30, 100, 1000, 5000])
@pytest.mark.parametrize("shape", [0.1, 0.4, 0.7, 1.5])
def test_khat_is_that_of_arviz(shape, num_samples):
    log_weights = weights_of(shape, num_samples)[:, 0]
    assert pv.evidence.pareto_khat(log_weights).item() == pytest.approx(khat_of_arviz(log_weights), abs=1e-6)


@pytest.mark.parametrize("num_samples", [60, 1000])
def test_khat_is_that_of_pyro(num_samples):
    log_weights = weights_of(0.6, num_samples)[:, 0]
    ordered = log_weights.sort(descending=True).values
    num = tail_length(num_samples)
    k, _ = fit_generalized_pareto(ordered[:num].exp() - ordered[num].exp())
    assert pv.evidence.pareto_khat(log_weights).item() == pytest.approx(k, abs=1e-9)


def test_many_data_at_a_time_and_any_scale():
    log_weights = torch.cat([weights_of(k, 500, 3, seed=i) for i, k in enumerate((0.2, 0.6, 1.2))], dim=1)
    together = pv.evidence.pareto_khat(log_weights)
    alone = torch.stack([pv.evidence.pareto_khat(column) for column in log_weights.T])
    assert torch.allclose(together, alone, atol=1e-12)
    assert torch.allclose(together, pv.evidence.pareto_khat(log_weights - 5000.0), atol=1e-9)
    assert together[:3].mean() < together[3:6].mean() < together[6:].mean()


def test_it_tells_a_narrow_proposal_from_a_wide_one():
    torch.manual_seed(0)
    target, narrow, wide = Normal(0.0, 1.0), Normal(0.0, 0.5), Normal(0.0, 2.0)
    log_weights = []
    for proposal in (narrow, wide):
        z = proposal.sample((4000, 20))
        log_weights.append(target.log_prob(z) - proposal.log_prob(z))
    assert pv.evidence.pareto_khat(log_weights[0]).mean() > 0.5
    assert (pv.evidence.pareto_khat(log_weights[1]) < 0.5).all()


def test_where_there_is_nothing_to_fit():
    equal, one = torch.full((100,), -90.0), torch.full((100,), -math.inf)
    one[17] = -3.0
    assert pv.evidence.pareto_khat(equal).item() == 0.0
    assert pv.evidence.pareto_khat(equal + 1e-14 * torch.randn(100)).item() == 0.0
    assert pv.evidence.pareto_khat(one).item() == math.inf
    assert pv.evidence.pareto_khat(torch.full((100,), -math.inf)).isnan()
    assert pv.evidence.pareto_khat(torch.randn(24)).isnan()
    assert pv.evidence.pareto_khat(torch.randn(25)).isfinite()
    few = torch.full((1000,), -50.0)
    few[:4] = torch.arange(4.0)
    assert pv.evidence.pareto_khat(few).item() == math.inf


def test_thresholds():
    assert khat_threshold(100) == pytest.approx(0.5)
    assert khat_threshold(1000) == khat_threshold(10**6) == 0.5
    assert khat_threshold(1) == -math.inf
