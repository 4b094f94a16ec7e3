"""What goes wrong without care: each row of the table in docs/composition.md, before Pyro and before the check."""

import re
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_vae as pv

X = torch.randn(4, generator=torch.Generator().manual_seed(0))
PAGE = Path(__file__).parents[2] / "docs" / "composition.md"


def model_of(plate="data", size=4, scale=1.0, network=None, registered=True):
    def model(x):
        if network is not None and registered:
            pyro.module("network", network)
        with pyro.plate(plate, size, subsample_size=4), poutine.scale(scale=scale):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = z if network is None else network(z[..., None])[..., 0]
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    return model


def guide(x):
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, scale))


def without_z(x):
    pyro.param("scale", torch.tensor(1.0))


def with_another_site(x):
    guide(x)
    with pyro.plate("other", len(x)):
        pyro.sample("e", dist.Normal(0.0, 1.0))


def without_parameters(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5))


def in_two_groups(x):
    with pyro.plate("groups", 2, dim=-2):
        model_of()(x)


def with_the_name_of_another(network):
    poutine.trace(model_of(network=nn.Linear(1, 1))).get_trace(X)
    return model_of(network=network)


def unregistered(network):
    return model_of(network=network, registered=False)


NOTHING = ""
PLATES = "plates differ, or take different rows"
TAKEN = "a second network under a name that is taken"
# (mistake, the programs, what Pyro's step warns of, or the error that it raises)
CASES = [
    ("the guide leaves out a latent site", lambda: (model_of(), without_z), "Found vars in model but not guide"),
    ("the guide has a site that the model has not", lambda: (model_of(), with_another_site), "vars in guide but not"),
    (PLATES, lambda: (model_of("other"), guide), "plate statements in guide but not"),
    (PLATES, lambda: (model_of("rows", 20), guide), "plate statements in guide but not"),
    (PLATES, lambda: (in_two_groups, guide), ValueError("shapes disagree at site 'z'")),
    ("scales differ", lambda: (model_of(scale=3.0), guide), NOTHING),
    ("masks differ", lambda: (poutine.mask(model_of(), mask=X > 0), guide), NOTHING),
    (TAKEN, lambda: (with_the_name_of_another(nn.Linear(1, 1)), guide), NOTHING),
    ("a network that no `pyro.module` registers", lambda: (unregistered(nn.Linear(1, 1)), guide), NOTHING),
    ("everything is frozen", lambda: (model_of(), without_parameters), NOTHING),
]


def what_the_check_says():
    """The last column of the page's table."""
    rows = [row.strip("| ").split(" | ") for row in PAGE.read_text().splitlines() if row.startswith("|")]
    rows = rows[rows.index(["mistake", "what Pyro does", "what the check says"]) + 2 :]
    said, last = {}, ""
    for mistake, _, message in rows:
        last = last if message == "the same" else message.split("`")[1]
        said[mistake] = last
    return said


def test_every_row_of_the_page_is_tested():
    assert what_the_check_says().keys() == {mistake for mistake, *_ in CASES}


@pytest.mark.parametrize(("mistake", "programs", "pyro_says"), CASES)
def test_what_pyro_does_and_what_the_check_says(mistake, programs, pyro_says, recwarn):
    model, guide = programs()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    if isinstance(pyro_says, Exception):
        with pytest.raises(type(pyro_says), match=str(pyro_says)):
            svi.step(X)
    else:
        svi.step(X)
        warned = [str(warning.message) for warning in recwarn]
        assert any(pyro_says in message for message in warned) if pyro_says else not warned
    pyro.clear_param_store()
    model, guide = programs()
    with pytest.raises(ValueError, match=re.escape(what_the_check_says()[mistake])):
        pv.check_program(model, guide, X)


@pytest.mark.parametrize(
    ("model_with", "moves"), [(with_the_name_of_another, False), (unregistered, False), (model_of, True)]
)
def test_it_never_trains(model_with, moves):
    network = nn.Linear(1, 1)
    before = network.weight.clone()
    SVI(model_with(network=network), guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(X)
    assert torch.equal(before, network.weight) is not moves
