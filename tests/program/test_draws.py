"""Programs that take one batch dimension and no more, plates as people write them, and arguments without rows."""

import contextlib

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.nn.utils.rnn import pack_padded_sequence
from truths import ESTIMATORS, assert_within

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("float64")
each = pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS)
WEIGHT = torch.tensor([[0.8, -0.3, 0.5], [0.1, 0.9, -0.6]], dtype=torch.float64)


def data(num_data=12):
    return torch.randn(num_data, 3, generator=torch.Generator().manual_seed(2))


def exact(x):
    return dist.MultivariateNormal(torch.zeros(3), WEIGHT.T @ WEIGHT + 0.25 * torch.eye(3)).log_prob(x)


def of_one_batch(x):
    """z ~ N(0, I), x ~ N(Wz, 0.5^2), by a decoder that takes a matrix and nothing else."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(torch.mm(z, WEIGHT), 0.5).to_event(1), obs=x.view(-1, 3))


def posterior(x):
    covariance = torch.linalg.inv(torch.eye(2) + WEIGHT @ WEIGHT.T / 0.25)
    return torch.mm(x, WEIGHT.T) @ covariance / 0.25, covariance.diagonal().sqrt()


def guide_of_one_batch(x):
    loc, scale = posterior(x)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.2 * scale).to_event(1))


@pytest.mark.one_in(3)
@each
def test_a_decoder_of_matrices(estimate):
    x = data()
    evidence = estimate(of_one_batch, guide_of_one_batch, x)
    assert evidence.settings["draws"] == "as rows" and evidence.settings["amortized"]
    assert_within(evidence, exact(x))


def test_draws_of_the_posterior_lie_by_datum():
    x = data()
    means = pv.posterior_samples(of_one_batch, guide_of_one_batch, x, num_samples=200).latents["z"].mean((0, 1))
    assert torch.allclose(means, posterior(x)[0], atol=0.2)  # 4.5 errors of 150 draws, at least
    assert not torch.allclose(means, posterior(x.flip(0))[0], atol=0.2)


def test_rows_do_not_depend_on_their_company():
    x = data()
    whole = pv.importance_sampling(of_one_batch, guide_of_one_batch, x, num_samples=100)
    part = pv.importance_sampling(of_one_batch, guide_of_one_batch, x[4:9], num_samples=100, first_index=4)
    assert torch.allclose(whole.log_evidence[4:9], part.log_evidence, atol=1e-12)


def test_draws_as_rows_by_graphs(interpreted):
    x = data()
    plain, graph = (
        pv.importance_sampling(of_one_batch, guide_of_one_batch, x, num_samples=300, compile=compile)
        for compile in (False, True)
    )
    assert interpreted and torch.allclose(plain.log_evidence, graph.log_evidence, atol=1e-8)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("estimate", [pv.importance_sampling, pv.log_evidence])
def test_a_guide_with_parameters_for_each_datum(estimate):
    """Neither rows nor draws can be more than there are."""
    x = data()
    loc, scale = posterior(x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.2 * scale).to_event(1))

    with pytest.warns(UserWarning, match="12 data together, its draws one by one"):
        evidence = estimate(of_one_batch, guide, x)
    assert_within(evidence, exact(x))


@pytest.mark.one_in(6)
@each
def test_masked_latents_among_rows(estimate):
    """A second latent counts for every other datum only."""
    x, counts = data(), torch.arange(12) % 2 == 0

    def model(x, counts):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            with poutine.mask(mask=counts):
                extra = pyro.sample("extra", dist.Normal(0.0, 1.0))
            loc = torch.mm(z, WEIGHT) + torch.where(counts, extra, 0.0).view(-1, 1)
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(x, counts):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.mm(x, WEIGHT.T) / 2, 0.7).to_event(1))
            pyro.sample("extra", dist.Normal(x.mean(-1) / 2, 0.8))

    with_extra = dist.MultivariateNormal(
        torch.zeros(3), WEIGHT.T @ WEIGHT + torch.ones(3, 3) + 0.25 * torch.eye(3)
    ).log_prob(x)
    assert_within(estimate(model, guide, x, counts), torch.where(counts, with_extra, exact(x)))


@pytest.mark.one_in(3)
@each
@pytest.mark.filterwarnings("ignore:.*got one that runs on all")
def test_a_model_that_knows_how_many_rows_it_has(estimate):
    """Estimators that look at some data longer than at others run it on all of them."""
    x = data()
    shift = torch.linspace(-1, 1, 12)

    def model(x):
        assert len(x) == 12
        with pyro.plate("data", 12):
            z = pyro.sample("z", dist.Normal(torch.zeros(12, 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ WEIGHT + shift[:, None], 0.5).to_event(1), obs=x)

    def guide(x):
        loc, scale = posterior(x - shift[:, None])
        with pyro.plate("data", 12):
            pyro.sample("z", dist.Normal(loc, 1.2 * scale).to_event(1))

    evidence = estimate(model, guide, x)
    assert not evidence.settings["amortized"]
    assert_within(evidence, exact(x - shift[:, None]))


# Plates


def simple(*plates):
    """z ~ N(0, 1) and x ~ N(z, 1), each of whose sites lies in a plate made anew."""
    of_z, of_x, of_guide = plates

    def model(x):
        plate = of_z(x)
        with plate:
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        with plate if of_x is of_z else of_x(x):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with of_guide(x):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    return model, guide


def sized(name):
    return lambda x: pyro.plate(name, len(x))


def unsized(x):
    return pyro.plate("data")


def given_rows(x):
    return pyro.plate("data", len(x), subsample=x)


def none_at_all(x):
    return contextlib.nullcontext()


in_data, in_rows = sized("data"), sized("rows")
PLATES = {
    "two names": (in_data, in_data, in_rows),
    "a plate for each site": (in_data, in_rows, in_data),
    "without a size": (unsized, unsized, unsized),
    "without a size in the model": (unsized, unsized, in_data),
    "given the rows": (given_rows, given_rows, in_data),
    "none": (none_at_all, none_at_all, none_at_all),
    "none in the guide": (in_data, in_data, none_at_all),
}


@pytest.mark.parametrize("kind", PLATES)
def test_plates_as_they_are_written(kind):
    x = data()[:, 0]
    evidence = pv.log_evidence(*simple(*PLATES[kind]), x)
    assert evidence.settings["amortized"]
    assert_within(evidence, dist.Normal(0.0, 2**0.5).log_prob(x))


@pytest.mark.parametrize("plate", [None, "data"])
def test_rows_in_another_dimension(plate):
    """Time comes first, and lengths have one number a datum."""
    x, shift = data().T, torch.linspace(-1, 1, 12)

    def model(x, shift):
        with pyro.plate("data", x.shape[1]):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[1], 2), 1.0).to_event(1))
            for t, loc in enumerate((z @ WEIGHT).unbind(-1)):
                pyro.sample(f"x_{t}", dist.Normal(loc + shift, 0.5), obs=x[t])

    def guide(x, shift):
        guide_of_one_batch((x - shift).T)

    evidence = pv.log_evidence(model, guide, x, shift, plate=plate)
    assert len(evidence) == 12 and evidence.settings["amortized"]
    assert_within(evidence, exact((x - shift).T))


def test_weights_that_are_as_many_as_rows_are_no_rows():
    """Without plates, a vector of weights of all data could be taken for one latent of each."""
    x, y = torch.randn(5, 5), torch.randn(5)

    def model(x, y):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(5), 1.0))
        pyro.sample("y", dist.Normal(x @ weights, 1.0), obs=y)

    with pytest.raises(ValueError, match="expected"):
        pv.importance_sampling(model, None, x, y)


# Arguments without rows


class Config:
    """Settings of a program."""

    scale = 0.5


@pytest.mark.parametrize("others", [(None,), (3, "name"), (Config(),), (torch.tensor(2.0),), ([1, 2],)])
def test_arguments_without_rows(others):
    x = data()

    def with_others(program):
        def run(x, *given):
            assert all(one is other for one, other in zip(given, others, strict=True))
            return program(x)

        return run

    model, guide = map(with_others, (of_one_batch, guide_of_one_batch))
    assert_within(pv.importance_sampling(model, guide, x, *others), exact(x))


def test_a_packed_sequence():
    """It has the rows of x, which cannot be selected: the pair runs on all data."""
    x = data()
    packed = pack_padded_sequence(x[..., None], torch.full((12,), 3), batch_first=True)

    def with_packed(program):
        def run(x, packed):
            again = packed.data.view(3, 12).T
            assert again.shape == x.shape
            return program(again)

        return run

    model, guide = map(with_packed, (of_one_batch, guide_of_one_batch))
    with pytest.warns(UserWarning, match="all 12 data together"):
        evidence = pv.importance_sampling(model, guide, x, packed)
    assert_within(evidence, exact(x))


def test_too_many_arguments():
    with pytest.raises(TypeError, match=r"3 arguments by position.*; pass options by name, num_samples=1000"):
        pv.importance_sampling(of_one_batch, guide_of_one_batch, data(), 1000, 3)


# Factors


def test_a_factor_in_a_guide_is_no_part_of_its_density():
    """As in a guide that trains a classifier beside."""
    x = data()

    def guide(x):
        with pyro.plate("data", len(x)):
            loc, scale = posterior(x)
            pyro.factor("classification_loss", 3 * x[:, 0], has_rsample=False)
            pyro.sample("z", dist.Normal(loc, 1.2 * scale).to_event(1))

    assert_within(pv.log_evidence(of_one_batch, guide, x), exact(x))
