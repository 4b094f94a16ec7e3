"""Programs that visit their data one after the other: `for i in pyro.plate("data", len(x))`."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from truths import assert_within

import pyro_vae as pv
from pyro_vae.program.in_turn import InTurn

pytestmark = pytest.mark.usefixtures("float64")
ESTIMATORS = {
    "importance sampling": pv.importance_sampling,
    "laplace": lambda *pair: pv.importance_sampling(*pair, proposal="laplace", num_samples=200),
    "ais": lambda *pair: pv.ais(*pair, num_temperatures=15),
}
each = pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS)


def data(num_data=5):
    return 1.5 * torch.randn(num_data, 3, generator=torch.Generator().manual_seed(2))


def model(x):
    """z ~ N(0, I_2), x ~ N(sum z, I_3)."""
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z_{i}", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = z.sum(-1, keepdim=True).expand(*z.shape[:-1], 3)
        pyro.sample(f"x_{i}", dist.Normal(mean, 1.0).to_event(1), obs=x[i])


def guide(x):
    for i in pyro.plate("data", len(x)):
        loc = (x[i].sum(-1, keepdim=True) / 7).expand(2)
        pyro.sample(f"z_{i}", dist.MultivariateNormal(loc, torch.tensor([[0.8, -0.3], [-0.3, 0.8]])))


def exact(x):
    return dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 2.0).log_prob(x)


@pytest.mark.one_in(3)
@each
def test_each_datum_has_its_number(estimate):
    x = data()
    evidence = estimate(model, guide, x)
    assert evidence.settings["amortized"] and evidence.settings["draws"] == "side by side"
    assert_within(evidence, exact(x))


def test_without_a_guide():
    assert_within(pv.importance_sampling(model, None, data(), num_samples=5_000), exact(data()))


@pytest.mark.slow
def test_draws_of_the_posterior_have_one_name_for_all_data():
    x = data()
    draws = pv.posterior_samples(model, guide, x, num_samples=300)
    sums = draws.latents["z"].sum(-1).mean((0, 1))
    assert draws.latents["z"].shape[2:] == (len(x), 2)
    assert torch.allclose(sums, x.sum(1) * 2 / 7, atol=4.5 * math.sqrt(2 / 7 / 300))  # 7e-6 for each datum
    assert not torch.allclose(sums, x.flip(0).sum(1) * 2 / 7, atol=4.5 * math.sqrt(2 / 7 / 300))


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("with_guide", [True, False])
def test_nothing_is_left_to_draw(first, with_guide):
    """A chain of two states for each datum, all summed out: exact, against a sum over the four paths."""
    weights, means = torch.tensor([0.3, 0.7]), torch.tensor([-1.0, 1.0])
    change = torch.tensor([[0.9, 0.1], [0.4, 0.6]])

    @config_enumerate
    def chain(x):
        for i in pyro.plate("data", len(x)):
            state = None
            for t in pyro.markov(range(2)):
                probs = weights if state is None else change[state]
                state = pyro.sample(f"z_{i + first}_{t}", dist.Categorical(probs))
                pyro.sample(f"x_{i + first}_{t}", dist.Normal(means[state], 1.0), obs=x[i, t])

    def nothing(x):
        pass

    x = data()
    likelihoods = dist.Normal(means, 1.0).log_prob(x[:, :2, None]).exp()
    paths = weights[:, None] * change * likelihoods[:, 0, :, None] * likelihoods[:, 1, None]
    found = pv.importance_sampling(chain, nothing if with_guide else None, x, num_samples=3)
    assert torch.allclose(found.log_evidence, paths.sum((1, 2)).log(), atol=1e-9)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["z_{i}", "{i}", "z{i}_0", "z_0_{i}", "z_{j}"])
def test_names(name):
    """The place of a datum is the one number that tells their sites apart."""

    def named(x):
        for i in pyro.plate("data", len(x)):
            pyro.sample(name.format(i=i, j=i + 1), dist.Normal(0.0, 1.0))
            pyro.sample("x" + name.format(i=i, j=i + 1), dist.Normal(0.0, 1.0), obs=x[i, 0])

    assert_within(
        pv.importance_sampling(named, None, data(), num_samples=2), dist.Normal(0.0, 1.0).log_prob(data()[:, 0])
    )


def test_plates_and_masks_inside_of_a_turn():
    """Missing values of three, each with a latent of its own: x_j ~ N(0, 2)."""
    x, there = data(), torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0]]).bool()

    def masked(x, there):
        for i in pyro.plate("data", len(x)):
            with pyro.plate(f"values_{i}", 3), pyro.poutine.mask(mask=there[i]):
                z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
                pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    def masked_guide(x, there):
        for i in pyro.plate("data", len(x)):
            with pyro.plate(f"values_{i}", 3), pyro.poutine.mask(mask=there[i]):
                pyro.sample(f"z_{i}", dist.Normal(0.4 * x[i], 0.8))

    evidence = pv.importance_sampling(masked, masked_guide, x, there)
    assert_within(evidence, (dist.Normal(0.0, math.sqrt(2)).log_prob(x) * there).sum(1))


def test_a_discrete_latent_is_summed_out():
    x, weights, means = data()[:, 0], torch.tensor([0.3, 0.7]), torch.tensor([-2.0, 2.0])

    def mixture(x):
        for i in pyro.plate("data", len(x)):
            k = pyro.sample(f"k_{i}", dist.Categorical(weights))
            z = pyro.sample(f"z_{i}", dist.Normal(means[k], 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    def of_z(x):
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z_{i}", dist.Normal(x[i] / 2, 2.0))

    evidence = pv.importance_sampling(mixture, of_z, x)
    assert evidence.settings["summed_out"] == ["k"]
    assert_within(evidence, (weights.log() + dist.Normal(means, math.sqrt(2)).log_prob(x[:, None])).logsumexp(-1))


def test_parameters_for_each_datum():
    x = data(4)
    shifts = torch.tensor([0.3, -0.2, 0.1, 0.4])

    def by_place(x):
        for i in pyro.plate("data", len(x)):
            loc = (x[i].sum(-1, keepdim=True) / 7).expand(2) + shifts[i]
            pyro.sample(f"z_{i}", dist.Normal(loc, 1.0).to_event(1))

    with pytest.warns(UserWarning, match="runs on all 4 data together"):
        evidence = pv.importance_sampling(model, by_place, x)
    assert not evidence.settings["amortized"]
    assert_within(evidence, exact(x))


def test_parts_in_other_places_are_found_out(monkeypatch):
    """The twin of `test_each_datum_has_its_number`: each datum takes the latents of another."""
    parts_of = InTurn.parts_of
    monkeypatch.setattr(
        InTurn, "parts_of", lambda self, values: parts_of(self, {name: value.flip(1) for name, value in values.items()})
    )
    with pytest.raises(ValueError, match="expected"):
        pv.importance_sampling(model, guide, data())


def test_other_sites_for_some_data_are_refused():
    def ragged(x):
        for i in pyro.plate("data", len(x)):
            for t in range(1 + i % 2):
                pyro.sample(f"z_{i}_{t}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(0.0, 1.0), obs=x[i, 0])

    with pytest.raises(ValueError, match="expected the same sites for each datum of the plate 'data'"):
        pv.importance_sampling(ragged, None, data())


def test_other_distributions_for_some_data_are_refused():
    def several(x):
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0) if i % 2 else dist.Laplace(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i, 0])

    with pytest.raises(ValueError, match=r"one kind of distribution for all data.*Laplace.*Normal"):
        pv.importance_sampling(several, None, data())


@pytest.mark.parametrize("evaluate", [pv.inference_gap, lambda *pair: pv.importance_sampling(*pair, proposal="local")])
def test_refinement_is_refused(evaluate):
    with pytest.raises(ValueError, match="visits data in turn"):
        evaluate(model, guide, data())
