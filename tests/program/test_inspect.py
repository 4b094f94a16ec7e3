"""What an inspection meets on its way: it is on record, said beside the error that follows, and draws nothing away."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("float64")
X = torch.linspace(-2.0, 2.0, 5, dtype=torch.float64)
CHANCES = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)


def model(x, places=None):
    """z ~ N(0, 1), x ~ N(z, 1), about numbers of each place."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z if places is None else z + places, 1.0), obs=x)


def guide_of_places(x, places=None):
    """One with a parameter for each datum."""
    loc = pyro.param("loc", X / 2)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


@pytest.mark.filterwarnings("ignore:model, guide. expected a pair that runs on any rows")
def test_why_all_rows_are_run():
    options = {"num_samples": 50, "proposal": "laplace"}
    of_places = pv.importance_sampling(model, guide_of_places, X, kwargs={"places": torch.arange(5.0)}, **options)
    assert of_places.settings["undivided_because"].startswith("RuntimeError: The size of tensor")
    assert torch.allclose(of_places.log_evidence, dist.Normal(torch.arange(5.0), 2**0.5).log_prob(X))
    divided = pv.importance_sampling(model, guide_of_places, X, **options)
    assert "undivided_because" not in divided.settings
    assert "not_amortized_because" in divided.settings


@pytest.mark.filterwarnings("ignore:model, guide. expected a pair that runs on any rows")
def test_why_all_rows_are_run_where_places_count():
    def by_place(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + torch.arange(len(x)), 1.0), obs=x)

    found = pv.importance_sampling(by_place, guide_of_places, X, num_samples=50, proposal="laplace")
    assert found.settings["undivided_because"] == "other densities of the same rows among fewer"
    assert torch.allclose(found.log_evidence, dist.Normal(torch.arange(5.0), 2**0.5).log_prob(X))


def mixture(x, alone="", together=""):
    """y of three values, x ~ N(y, 1); what it raises for one value a datum, and for all values."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(CHANCES))
        reason = alone if y.ndim < 2 else together
        if reason:
            raise RuntimeError(reason)
        pyro.sample("x", dist.Normal(y.double(), 1.0), obs=x)


@config_enumerate
def guide_of_mixture(x, **kwargs):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(CHANCES))


def test_why_a_value_was_not_compared_with_itself_alone():
    expected = (dist.Normal(torch.arange(3.0)[:, None], 1.0).log_prob(X) + CHANCES.log()[:, None]).logsumexp(0)
    for alone in ("", "all values at once, please"):
        found = pv.importance_sampling(mixture, guide_of_mixture, X, kwargs={"alone": alone}, num_samples=5)
        assert torch.allclose(found.log_evidence, expected)
        assert alone in found.settings.get("not_compared_because", "")
        assert ("not_compared_because" in found.settings) == bool(alone)


def test_what_one_value_raised_is_said_where_all_values_fail():
    with pytest.raises(RuntimeError, match="too many values") as error:
        kwargs = {"alone": "a first mistake", "together": "too many values"}
        pv.importance_sampling(mixture, guide_of_mixture, X, kwargs=kwargs)
    (note,) = error.value.__notes__
    assert note.startswith("With one value of y for each datum, it raised RuntimeError: ")
    assert "a first mistake" in note


def test_what_the_model_alone_raised_is_said_beside_a_refusal():
    def broken(x, y):
        raise KeyError("weights")

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"args\[1\]: expected one row for each of the 5 data") as error:
        pv.importance_sampling(broken, guide, X[:, None], torch.zeros(4))
    assert error.value.__notes__ == ["The model alone, on these arguments, raised KeyError: 'weights'."]


def listed(x):
    """A mixture that takes one value of y for each datum."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(CHANCES))
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        if y.shape[0] != len(x):
            raise RuntimeError("one value for each")
        pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)


EVALUATIONS = {
    "importance_sampling": lambda *pair: pv.importance_sampling(*pair, X, num_samples=5),
    "latent_use": lambda *pair: pv.latent_use(*pair, X, num_samples=2),
    "bdmc": lambda *pair: pv.bdmc(*pair, X, num_temperatures=3, num_chains=2),
    "log_weights": lambda *pair: pv.evidence.log_weights(*pair, X, num_samples=2),
}


@pytest.mark.filterwarnings("ignore:model. expected discrete latents that take all")
@pytest.mark.parametrize("program", [model, listed])
@pytest.mark.parametrize("name", EVALUATIONS)
def test_the_callers_generator_stays_where_it_was(name, program):
    before = torch.get_rng_state()
    EVALUATIONS[name](program, None)
    assert torch.equal(torch.get_rng_state(), before)
