"""The budget of `log_evidence`, which easy data leave to hard ones."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from truths import assert_unbiased_in_p, draws_of, log_evidence_by_quadrature, small_vae

import pyro_vae as pv
from pyro_vae.evidence.budget import LARGEST_MULTIPLE, chains_of, level_of

pytestmark = [pytest.mark.usefixtures("float64")]


def bent(x, bend):
    """The posterior of a datum is Gaussian where it has no bend."""
    with pyro.plate("data", len(x)):
        one = pyro.sample("one", dist.Normal(0.0, 1.0))
        other = pyro.sample("other", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(other + bend * one.square(), 0.2), obs=x)


def guide_of_bent(x, bend):
    with pyro.plate("data", len(x)):
        pyro.sample("one", dist.Normal(torch.zeros(len(x)), 0.7))
        pyro.sample("other", dist.Normal(x, 0.5))


def exact_of_bent(x, bend):
    """By quadrature over `one`: the other latent and the noise are Gaussian."""
    one = torch.linspace(-10, 10, 20_001)[:, None]
    log_joint = dist.Normal(0.0, 1.0).log_prob(one) + dist.Normal(bend * one.square(), 1.04**0.5).log_prob(x)
    return log_joint.logsumexp(0) + (one[1, 0] - one[0, 0]).log()


def easy_and_hard(num_data, one_in=8):
    torch.manual_seed(1)
    bend = torch.where(torch.arange(num_data) % one_in == 0, 0.5, 0.0)
    x = torch.randn(num_data) + bend * torch.randn(num_data).square()
    return x, bend


def evaluated(x, bend, **options):
    options = dict(tolerance=0.01, max_evaluations=3000, num_posterior_draws=4) | options
    return pv.log_evidence(bent, guide_of_bent, x, bend, **options)


def test_a_level_grants_what_the_total_pays_for():
    """And the next level would cost more than the total."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        wanted = torch.randint(0, 1000, (20,), generator=generator)
        total = torch.randint(0, 12_000, (), generator=generator)
        level = level_of(wanted, total)
        if wanted.sum() <= total:
            assert level >= wanted.max()
        else:
            assert wanted.minimum(level).sum() <= total < wanted.minimum(level + 1).sum()


def test_long_annealing_is_divided_into_more_chains_where_weights_are_even():
    """Up to 64, as all chains of a block are in memory together; the variance is that of ten temperatures."""
    length = torch.tensor([16, 64, 127, 128, 256, 2000, 256, 256, 2000])
    variance = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.2, 3.6, 8.0])
    temperatures, chains = chains_of(length, SimpleNamespace(variance=variance))
    assert temperatures.tolist() == [16, 64, 127, 64, 64, 500, 128, 256, 1000]
    assert chains.tolist() == [16, 16, 16, 32, 64, 64, 32, 16, 32]


def test_what_easy_data_leave_goes_to_hard_ones():
    """One datum in eight is hard; in the twin each has a limit of its own."""
    x, bend = easy_and_hard(64)
    is_hard, exact = bend > 0, exact_of_bent(x, bend)
    shared, own = (evaluated(x, bend, max_evaluations_of=of) for of in ("mean", "datum"))
    assert shared.num_evaluations.double().mean() <= 3000 and (own.num_evaluations <= 3000).all()
    assert (shared.num_evaluations[is_hard] > 6000).all()
    assert (shared.num_evaluations <= 3000 * LARGEST_MULTIPLE).all()
    assert (shared.num_evaluations[~is_hard] == own.num_evaluations[~is_hard]).double().mean() > 0.9
    assert shared.settings["max_evaluations_of"] == "mean" and own.settings["max_evaluations_of"] == "datum"
    errors = [
        torch.cat(
            [(evaluated(x, bend, max_evaluations_of=of, seed=seed).log_evidence - exact)[is_hard] for seed in range(4)]
        )
        for of in ("mean", "datum")
    ]
    assert errors[0].abs().median() < 0.8 * errors[1].abs().median()


def test_draws_that_are_known_to_be_enough_take_no_more_than_these():
    """One datum in eight has a guide that is too wide, and wants more than the mean budget of 600, but not the rest."""
    x = torch.where(torch.arange(64) % 8 == 0, 1.0, -1.0)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, torch.where(x > 0, 1.3, 1.0) * 0.5**0.5))

    found = pv.log_evidence(model, guide, x, tolerance=0.02, max_evaluations=600)
    wide, others = found.num_evaluations[x > 0], found.num_evaluations[x < 0]
    assert (others == others[0]).all() and others[0] < 600
    assert (wide > 600).all() and set((wide - 260).tolist()) <= {512, 1024, 2048}
    assert found.num_evaluations.double().mean() < 590


def test_a_gaussian_posterior_takes_the_fewest_draws():
    """All weights are equal, which few draws from elsewhere tell too."""
    x, bend = easy_and_hard(64, one_in=1000)
    easy = bend == 0
    found = evaluated(x, bend)
    assert (found.num_evaluations[easy] < 1200).double().mean() > 0.9
    assert (found.log_evidence - exact_of_bent(x, bend))[easy].abs().max() < 1e-3


@pytest.mark.parametrize("max_evaluations", [500, 1000, 1500, 2000, 3000])
def test_a_budget_that_all_data_want_is_kept_in_the_mean(max_evaluations):
    x, bend = easy_and_hard(24, one_in=1)
    found = evaluated(x, bend, tolerance=1e-4, max_evaluations=max_evaluations)
    assert 0.7 * max_evaluations < found.num_evaluations.double().mean() <= max_evaluations


def test_shared_evaluations_leave_the_estimates_unbiased():
    """In the twin the measured weights decide what is spent: where they look bad, another run takes their place."""
    vae = small_vae()
    x = draws_of(vae, 100)
    exact = log_evidence_by_quadrature(vae, x, 2).repeat(5)
    pair = (vae.model, vae.guide)
    runs = [pv.log_evidence(*pair, x, tolerance=0.05, max_evaluations=1100, seed=seed) for seed in range(10)]
    assert all((run.num_evaluations > 1100).sum() > 50 for run in runs)
    one, other = (
        [torch.cat([getattr(run, name) for run in half]) for name in ("log_evidence", "std_error")]
        for half in (runs[::2], runs[1::2])
    )
    assert_unbiased_in_p(torch.cat([one[0], other[0]]), exact.repeat(2))
    with pytest.raises(AssertionError):
        assert_unbiased_in_p(torch.where(one[1] < other[1], one[0], other[0]), exact)


def test_numbers_are_those_of_the_place_where_the_budget_is_enough_or_is_that_of_a_datum():
    x, bend = easy_and_hard(24)
    for enough, options in (
        (True, dict(tolerance=0.2)),
        (True, dict(max_evaluations_of="datum")),
        (False, dict()),
    ):
        whole = evaluated(x, bend, **options)
        part = evaluated(x[8:12], bend[8:12], first_index=8, **options)
        same = torch.allclose(part.log_evidence, whole.log_evidence[8:12], atol=1e-10)
        assert same is enough and (part.method == whole.method[8:12] or not enough)


@pytest.mark.parametrize("max_evaluations", [1200, 3000])
def test_a_guide_that_is_not_amortized_has_the_limit_of_each_datum(max_evaluations):
    x, bend = easy_and_hard(8)
    loc = torch.nn.Parameter(x.clone())

    def guide(x, bend):
        with pyro.plate("data", len(x)):
            pyro.sample("one", dist.Normal(torch.zeros(len(x)), 0.7))
            pyro.sample("other", dist.Normal(loc, 0.5))

    found = pv.log_evidence(bent, guide, x, bend, tolerance=1e-3, max_evaluations=max_evaluations)
    assert found.settings["amortized"] is False
    assert (found.num_evaluations <= max_evaluations).all() and len(set(found.method)) == 1


def test_whose_budget_is_one_of_two():
    x, bend = easy_and_hard(3)
    with pytest.raises(ValueError, match="max_evaluations_of: expected one of 'datum', 'mean'; got 'sum'"):
        evaluated(x, bend, max_evaluations_of="sum")
