"""Discrete latents without a draw are summed out, exactly, by every estimator."""

import itertools
import math
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from truths import ESTIMATORS, assert_within

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("float64")
each = pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS)
WEIGHTS, LOCS = (torch.tensor(values, dtype=torch.float64) for values in ([0.2, 0.5, 0.3], [-2.0, 0.0, 3.0]))


def data(*shape):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def nothing(*args):
    """A guide for models whose latents are all summed out."""


# A cluster and a continuous latent


def clusters(x):
    with pyro.plate("data", len(x)):
        cluster = pyro.sample("cluster", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(LOCS[cluster], 0.7))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def guide_of_clusters(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.7 * x, 0.6))


def evidence_of_clusters(x):
    return (WEIGHTS.log() + dist.Normal(LOCS, math.hypot(0.7, 0.5)).log_prob(x[:, None])).logsumexp(-1)


@pytest.mark.one_in(3)
@each
def test_a_cluster_beside_a_continuous_latent(estimate):
    x = data(12)
    evidence = estimate(clusters, guide_of_clusters, x)
    assert evidence.settings["summed_out"] == ["cluster"]
    assert_within(evidence, evidence_of_clusters(x))


@pytest.mark.parametrize("expand", [False, True])
def test_what_a_guide_marks_is_summed_out_of_both(expand):
    """q(z|x) is then a mixture, whose parts a draw need not say."""
    x = data(12)

    def guide(x):
        with pyro.plate("data", len(x)):
            probs = (WEIGHTS.log() + dist.Normal(LOCS, 1.0).log_prob(x[:, None])).softmax(-1)
            cluster = pyro.sample("cluster", dist.Categorical(probs))
            pyro.sample("z", dist.Normal((LOCS[cluster] + 2 * x) / 3, 0.6))

    drawn = pv.importance_sampling(clusters, guide, x)
    summed = pv.importance_sampling(clusters, config_enumerate(guide, expand=expand), x)
    assert "summed_out" not in drawn.settings and summed.settings["summed_out"] == ["cluster"]
    annealed = [] if expand else [pv.ais(clusters, config_enumerate(guide), x, start="guide", num_temperatures=30)]
    for evidence in (drawn, summed, *annealed):
        assert_within(evidence, evidence_of_clusters(x))
    assert summed.std_error.mean() < drawn.std_error.mean()


@pytest.mark.parametrize("estimate", [pv.importance_sampling, partial(pv.ais, num_temperatures=20)], ids=["is", "ais"])
def test_auxiliary_choices_of_a_guide_are_summed_out(estimate):
    def guide(x):
        with pyro.plate("data", len(x)):
            is_wide = pyro.sample("is_wide", dist.Bernoulli(0.3), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(0.7 * x, 0.6 + is_wide))

    x = data(12)
    assert_within(estimate(clusters, guide, x), evidence_of_clusters(x))


def test_both_ways():
    sandwich = pv.bdmc(clusters, guide_of_clusters, data(20), num_temperatures=30)
    assert sandwich.mean_gap < 0.1


@pytest.mark.slow
def test_draws_of_the_posterior():
    """The mean of z is that of the mixture of Gaussians that is its posterior."""
    x = data(8)
    draws = pv.posterior_samples(clusters, guide_of_clusters, x, num_samples=60).latents["z"]
    shares = (WEIGHTS.log() + dist.Normal(LOCS, math.hypot(0.7, 0.5)).log_prob(x[:, None])).softmax(-1)
    gain = 0.49 / 0.74
    exact = (shares * (LOCS + gain * (x[:, None] - LOCS))).sum(-1)
    assert torch.allclose(draws.mean((0, 1)), exact, atol=0.3)


# Nothing but discrete latents


def mixture(x):
    with pyro.plate("data", len(x)):
        cluster = pyro.sample("cluster", dist.Categorical(WEIGHTS))
        pyro.sample("x", dist.Normal(LOCS[cluster], 0.5), obs=x)


@pytest.mark.parametrize("guide", [nothing, None], ids=["a guide of nothing", "no guide"])
@pytest.mark.parametrize("estimate", [pv.importance_sampling, partial(pv.ais, num_temperatures=10), pv.log_evidence])
def test_a_mixture_is_exact(estimate, guide):
    x = data(12)
    evidence = estimate(mixture, guide, x)
    exact = (WEIGHTS.log() + dist.Normal(LOCS, 0.5).log_prob(x[:, None])).logsumexp(-1)
    assert torch.allclose(evidence.log_evidence, exact) and evidence.reliable.all()
    assert (evidence.std_error < 1e-6).all()


def latent_classes(x):
    """A class for each datum, and words of a plate inside with topics of their own."""
    with pyro.plate("data", len(x), dim=-2):
        kind = pyro.sample("kind", dist.Bernoulli(0.3))
        with pyro.plate("words", 3, dim=-1):
            topic = pyro.sample(
                "topic", dist.Categorical(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])[kind.long()])
            )
            pyro.sample("x", dist.Normal(LOCS[topic], 1.0), obs=x)


def test_plates_inside_are_summed_each_for_itself():
    x = data(6, 3)
    shares = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]).log()
    words = (shares[:, None, None] + dist.Normal(LOCS, 1.0).log_prob(x[..., None])).logsumexp(-1).sum(-1)
    exact = (torch.tensor([0.7, 0.3]).log()[:, None] + words).logsumexp(0)
    assert torch.allclose(pv.log_evidence(latent_classes, nothing, x).log_evidence, exact)


STAY, LOC_OF_STATE = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64), torch.tensor([-1.0, 1.0]).double()


def hidden_markov(x, length):
    with pyro.plate("data", len(x)):
        state = 0
        for t in pyro.markov(range(x.shape[-1])):
            with poutine.mask(mask=t < length):
                state = pyro.sample(f"state_{t}", dist.Categorical(STAY[state]))
                pyro.sample(f"x_{t}", dist.Normal(LOC_OF_STATE[state], 0.7), obs=x[:, t])


def test_a_hidden_markov_model_of_different_lengths():
    """What lies past a datum's end is summed out with its own density, and counts for nothing."""
    x, length = data(9, 5), torch.tensor([5, 3, 1, 4, 2, 5, 1, 2, 3])

    def by_brute_force(row):
        total = []
        for states in itertools.product(range(2), repeat=len(row)):
            log_p = sum(STAY[one, other].log() for one, other in itertools.pairwise((0, *states)))
            total.append(log_p + dist.Normal(LOC_OF_STATE[list(states)], 0.7).log_prob(row).sum())
        return torch.stack(total).logsumexp(0)

    exact = torch.stack([by_brute_force(row[:end]) for row, end in zip(x, length.tolist(), strict=True)])
    for guide in (nothing, None):
        assert torch.allclose(pv.importance_sampling(hidden_markov, guide, x, length).log_evidence, exact)


# As in programs of one batch dimension, whose decoders put latents side by side


class Concatenating(torch.nn.Module):
    """Puts z and y into one vector."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(5, 4, generator=generator, dtype=torch.float64)

    def forward(self, z, y):
        return torch.cat([z, y], -1) @ self.weight


DECODER = Concatenating()


def semi_supervised(x, y=None):
    with pyro.plate("data"):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        y = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(x), 3)), obs=y)
        pyro.sample("x", dist.Normal(DECODER(z, y).view(*y.shape[:-1], 4), 0.8).to_event(1), obs=x)


def semi_supervised_guide(x, y=None):
    with pyro.plate("data"):
        if y is None:
            y = pyro.sample("y", dist.OneHotCategorical(logits=x[:, :3]))
        pyro.sample("z", dist.Normal(0.2 * x[:, :2] + 0 * y[..., :1], 0.7).to_event(1))


def of_each_class(x):
    w_z, w_y = DECODER.weight.split([2, 3])
    covariance = w_z.T @ w_z + 0.64 * torch.eye(4)
    return torch.stack([dist.MultivariateNormal(loc, covariance).log_prob(x) for loc in w_y])


MARKED = config_enumerate(semi_supervised_guide, expand=True)
ON_A_PUSH = [pv.importance_sampling, pv.log_evidence]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "guide, estimate",
    [
        *itertools.product([semi_supervised_guide], ON_A_PUSH),
        *itertools.product([MARKED], [*ON_A_PUSH, partial(pv.ais, num_temperatures=20)]),
    ],
)
def test_with_and_without_labels(estimate, guide):
    """The decoder takes no dimension to the left of z, so that each value of y is a draw if it is to be summed out."""
    x, labels = data(9, 4), torch.arange(9) % 3
    each_class = of_each_class(x)
    assert_within(estimate(semi_supervised, guide, x), each_class.logsumexp(0) - math.log(3))
    y = torch.nn.functional.one_hot(labels, 3).double()
    with_label = each_class[labels, torch.arange(9)] - math.log(3)
    assert_within(estimate(semi_supervised, guide, x, y), with_label)


def test_a_model_that_runs_only_on_all_values_at_once():
    """Some decoders repeat z for each class, and then need all of them."""

    def model(x):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(x), 3)))
            loc = DECODER(z.repeat(3, 1), y.reshape(-1, 3)).view(*y.shape[:-1], 4)
            pyro.sample("x", dist.Normal(loc, 0.8).to_event(1), obs=x)

    x = data(9, 4)
    for guide in (semi_supervised_guide, MARKED):
        evidence = pv.importance_sampling(model, guide, x, num_samples=3000)
        assert evidence.settings["summed_out"] == ["y"]
        assert_within(evidence, of_each_class(x).logsumexp(0) - math.log(3))


def test_values_without_a_list_are_still_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            count = pyro.sample("count", dist.Poisson(2.0))
            pyro.sample("x", dist.Normal(count, 1.0), obs=x)

    with pytest.raises(
        ValueError, match="guide: expected it to draw every latent site of the model; got no site 'count'"
    ):
        pv.importance_sampling(model, nothing, data(5))


def test_a_latent_that_the_guide_leaves_out_beside_a_decoder_that_concatenates():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.2 * x[:, :2], 0.9).to_event(1))

    x = data(9, 4)
    for estimate in (pv.importance_sampling, partial(pv.ais, num_temperatures=20), pv.log_evidence):
        evidence = estimate(semi_supervised, guide, x)
        assert evidence.settings["summed_out"] == ["y"]
        # Few chains all miss a mode that holds a few thousandths of p(x), and their error does not know of it.
        error = evidence.log_evidence - (of_each_class(x).logsumexp(0) - math.log(3))
        assert (error.abs() < 4.5 * evidence.std_error + 0.005).all()


def test_too_many_values_to_run_each():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(x), 101)))
            loc = torch.mm(z, torch.ones(2, 1)) + torch.mm(y, torch.ones(101, 1))
            pyro.sample("x", dist.Normal(loc.view(-1), 0.8), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    with pytest.raises(
        ValueError, match="expected at most 100 joint values of the discrete latents of a datum, y, which"
    ):
        pv.importance_sampling(model, guide, data(5))


# Values beside each other, of other rows, and of what no guide draws


def soft_by_position(value):
    return torch.softmax(value, dim=1)  # right for a matrix, and wrong with values to its left


@pytest.mark.parametrize("guide", [nothing, None], ids=["a guide of nothing", "no guide"])
@pytest.mark.parametrize("estimate", [pv.importance_sampling, pv.log_evidence])
def test_a_function_that_counts_dimensions_from_the_left(estimate, guide):
    table = data(3, 4)

    def model(x):
        with pyro.plate("data", len(x)):
            cluster = pyro.sample("cluster", dist.Categorical(WEIGHTS))
            pyro.sample("x", dist.Categorical(soft_by_position(table[cluster])), obs=x)

    x = torch.arange(9) % 4
    exact = (WEIGHTS.log()[:, None] + table.log_softmax(-1)[:, x]).logsumexp(0)
    assert torch.allclose(estimate(model, guide, x).log_evidence, exact)


def test_totals_that_differ_among_rows():
    """The largest comes late, when seven rows have been looked at."""
    totals = torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 2, 2, 5, 5, 9])

    def model(x, totals):
        with pyro.plate("data", len(x)):
            count = pyro.sample("count", dist.Binomial(totals, torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(count, 0.7), obs=x)

    def exact(value, total):
        count = torch.arange(total + 1)
        terms = dist.Binomial(total, torch.tensor(0.4)).log_prob(count) + dist.Normal(count, 0.7).log_prob(value)
        return terms.logsumexp(0)

    x = totals / 2 + 0.3 * data(12)
    evidence = pv.importance_sampling(model, nothing, x, totals)
    assert torch.allclose(evidence.log_evidence, torch.stack(list(map(exact, x, totals))))


def test_values_that_depend_on_another_latent():
    """Thinning: a Binomial of a Binomial is one."""

    def model(x):
        with pyro.plate("data", len(x)):
            many = pyro.sample("many", dist.Binomial(torch.tensor(6.0), torch.tensor(0.25)))
            few = pyro.sample("few", dist.Binomial(many, torch.tensor(0.7)))
            pyro.sample("x", dist.Normal(few, 0.7), obs=x)

    x, few = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 2.5, 1]), torch.arange(7.0)
    terms = dist.Binomial(6, torch.tensor(0.175)).log_prob(few) + dist.Normal(few, 0.7).log_prob(x[:, None])
    for guide in (nothing, None):
        assert torch.allclose(pv.importance_sampling(model, guide, x).log_evidence, terms.logsumexp(-1))


@pytest.mark.parametrize("rare", [0.02, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.1, 0.3))])
def test_without_a_guide_a_rare_choice_is_part_of_the_proposal(rare):
    def model(x):
        with pyro.plate("data", len(x)):
            choice = pyro.sample("choice", dist.Bernoulli(rare))
            z = pyro.sample("z", dist.Normal(5 * choice, 0.5))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    x = torch.tensor([0.0, 0.2, -0.3, 5.0, 4.8, 2.5, 0.1, 5.2, 0.0])
    both = torch.stack([dist.Normal(loc, 0.5**0.5).log_prob(x) for loc in (0.0, 5.0)])
    exact = (torch.tensor([1 - rare, rare]).log()[:, None] + both).logsumexp(0)
    for estimate, options in ((pv.importance_sampling, {"num_samples": 10_000}), (pv.ais, {"num_temperatures": 30})):
        evidence = estimate(model, None, x, **options)
        assert evidence.settings["summed_out"] == ["choice"]
        assert_within(evidence, exact)


def test_a_factor_and_data_that_depend_on_what_is_summed_out():
    def by_factor(x):
        with pyro.plate("data", len(x)):
            cluster = pyro.sample("cluster", dist.Categorical(WEIGHTS))
            pyro.factor("potential", -0.5 * (x - cluster) ** 2)

    def by_difference(x):
        with pyro.plate("data", len(x)):
            cluster = pyro.sample("cluster", dist.Categorical(WEIGHTS))
            pyro.sample("noise", dist.Normal(0.0, 1.0), obs=x - cluster)

    x = data(5)
    exact = (WEIGHTS.log() - 0.5 * (x[:, None] - torch.arange(3)) ** 2).logsumexp(-1)
    assert torch.allclose(pv.importance_sampling(by_factor, nothing, x).log_evidence, exact)
    normalised = exact - 0.5 * math.log(2 * math.pi)
    assert torch.allclose(pv.importance_sampling(by_difference, nothing, x).log_evidence, normalised)


def test_values_that_are_draws_are_said():
    """Each value is one more draw where a program does not take all at once: a warning, and `settings`, say why."""
    x = torch.linspace(-1.0, 1.0, 5)

    def model(x, takes_all=False):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
            assert takes_all or k.shape == z.shape, "one value for each"
            pyro.sample("x", dist.Normal(z + 2 * k, 1.0), obs=x)

    def guide(x, takes_all=False):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.9))

    with pytest.warns(UserWarning, match="got k, whose 2 joint values are draws, .*one value for each"):
        listed = pv.importance_sampling(model, guide, x)
    assert "one value for each" in listed.settings["listed_because"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        at_once = pv.importance_sampling(model, guide, x, kwargs={"takes_all": True})
    assert "listed_because" not in at_once.settings
    assert torch.allclose(listed.log_evidence, at_once.log_evidence, atol=0.2)
