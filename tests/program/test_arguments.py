"""Arguments as programs in practice take them: dictionaries, None, what is shared first, keywords."""

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("float64")


class Batch(NamedTuple):
    """As a loader gives it."""

    shift: Any
    x: Any


def model(x, shift):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(shift.sum(), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def guide(x, shift):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((shift.sum() + 4 * x) / 5, 5**-0.5))


X, SHIFT = torch.linspace(-1, 2, 6, dtype=torch.float64), torch.tensor([0.3, 0.4], dtype=torch.float64)

STYLES = {
    "a dictionary": (lambda f: lambda b: f(b["x"], b["shift"]), ({"shift": SHIFT, "x": X},), {}),
    "arrays in a dictionary": (lambda f: lambda b: f(b["x"], b["shift"]), ({"x": X.numpy(), "shift": SHIFT},), {}),
    "a named tuple": (lambda f: lambda b: f(b.x, b.shift), (Batch(SHIFT, X),), {}),
    "dictionaries in a tuple": (lambda f: lambda b: f(b[1]["x"], b[0]), ((SHIFT, {"x": X}),), {}),
    "None first": (lambda f: lambda mask, x, shift: f(x, shift), (None, X), {"shift": SHIFT}),
    "what is shared first": (lambda f: lambda shift, x: f(x, shift), (SHIFT, X), {}),
    "by keyword": (lambda f: f, (), {"x": X, "shift": SHIFT}),
}


@pytest.mark.parametrize("style", STYLES)
def test_rows_are_found(style):
    """With the exact posterior as guide each log weight is log p(x); a datum alone has the number it has among others."""
    wrap, args, kwargs = STYLES[style]
    pair = wrap(model), wrap(guide)
    exact = dist.Normal(SHIFT.sum(), 1.25**0.5).log_prob(X)
    found = pv.importance_sampling(*pair, *args, kwargs=kwargs, num_samples=4)
    assert found.settings["amortized"] and torch.allclose(found.log_evidence, exact, atol=1e-12)
    annealed = pv.ais(*pair, *args, kwargs=kwargs, num_temperatures=10)
    assert ((annealed.log_evidence - exact).abs() < 5 * annealed.std_error + 1e-6).all()


def test_what_is_shared_decides_what_an_evaluation_is(tmp_path):
    """A folder of another shift is not gone on with."""
    wrap, args, _ = STYLES["a dictionary"]
    pair = wrap(model), wrap(guide)
    pv.importance_sampling(*pair, *args, num_samples=4, partial=tmp_path / "part")
    with pytest.raises(ValueError, match="partial"):
        pv.importance_sampling(*pair, {"x": X, "shift": SHIFT + 1}, num_samples=4, partial=tmp_path / "part")


def test_rows_that_may_lie_elsewhere_are_not_taken_for_shared():
    """(time, data), beside lengths: that no datum depends on another's column could not be seen.

    As tensors by position they are taken: there it is looked for.
    """

    def chain(batch):
        with pyro.plate("data", len(batch["lengths"])):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            for t, x in enumerate(batch["x"]):
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x)

    x, lengths = torch.randn(4, 6), torch.full((6,), 4)
    with pytest.raises(TypeError, match="got a dictionary; pass its tensors, and wrap model and guide"):
        pv.importance_sampling(chain, None, {"x": x, "lengths": lengths})
    found = pv.importance_sampling(lambda x, lengths: chain({"x": x, "lengths": lengths}), None, x, lengths)
    exact = dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 1.0).log_prob(x.T)
    assert ((found.log_evidence - exact).abs() < 4.5 * found.std_error).all()


def test_what_no_plate_tells_is_refused():
    def plain(batch):
        z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=batch["x"])

    with pytest.raises(TypeError, match="x: expected a tensor .*got a dictionary; pass its tensors, and wrap model"):
        pv.importance_sampling(plain, None, {"x": X})
    with pytest.raises(TypeError, match="x: expected a tensor .*got a dictionary"):
        pv.bdmc(STYLES["a dictionary"][0](model), None, {"x": X, "shift": SHIFT})
