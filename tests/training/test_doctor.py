"""What `fit` says of a step that diverged: each cause is planted, and must be found where it was planted."""

import dataclasses
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from truths import draws_of, small_vae

import pyro_vae as pv
from pyro_vae.training.batches import batches_of
from pyro_vae.training.doctor import add_note_of_bad_data

NUM_DATA = 40


@pytest.fixture(params=["as it is", "as graphs"])
def execution(request, interpreted):
    """Options of `fit` for steps by Pyro, and by graphs of a whole step, which are checked 100 at a time."""
    yield {"compile": request.param == "as graphs"}
    assert bool(interpreted) == (request.param == "as graphs")


def diagnosed(program, data, **options):
    """The diagnosis of a training that must diverge."""
    options = {"num_epochs": 6, "batch_size": 10, "progress": False} | options
    with pytest.raises(pv.DivergedError) as caught:
        pv.fit(program, data, **options)
    assert str(caught.value.diagnosis) in str(caught.value)
    return caught.value.diagnosis


def numbers(num_columns=6):
    return torch.randn(NUM_DATA, num_columns, generator=torch.Generator().manual_seed(1))


def marked(row):
    """Data in which one datum has a 7 in front."""
    x = numbers()
    x[:, 0] = x[:, 0].clamp(-3, 3)
    x[row, 0] = 7.0
    return x


class AtTheMark(nn.Module):
    """A layer that does something else to the datum that is marked, from some call in training on."""

    def __init__(self, there, outputs=4, from_call=7):
        super().__init__()
        self.layer, self.there = nn.Linear(6, outputs), there
        self.register_buffer("calls", torch.zeros(()))
        self.from_call = from_call

    def forward(self, x):
        self.calls += self.training
        is_there = (x[..., :1] == 7) & (self.calls >= self.from_call)
        return self.there(self.layer(x), is_there)


def vae_of(encoder=None, decoder=None, posterior=None):
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Gaussian(decoder or pv.nn.MLP(2, [8], 6)),
        posterior or pv.posteriors.DiagonalNormal(encoder or pv.nn.MLP(6, [8], 4)),
    )


# Data


class Tables(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row]


def regression(x, y):
    slope = pyro.param("slope", torch.zeros(6))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=y)


def nothing(*args):
    pass


@pytest.mark.parametrize("row", [30, 28])
@pytest.mark.parametrize("validation", [True, False])
def test_a_datum_of_a_pair(row, validation, execution):
    x, y = numbers(), numbers()[:, 0]
    y[row] = torch.nan
    with pyro.validation_enabled(validation):
        found = diagnosed((regression, nothing), (x, y), **execution)
    assert (found.cause, found.data, found.data_are_of, found.site) == ("data", (row,), "the data", "y")
    assert found.epoch == 1 and f"data: {row} of the data" in str(found)


def test_a_datum_of_the_first_batch_is_refused_before_training():
    """In the words of the distribution, and with a note."""
    x, y = numbers(), numbers()[:, 0]
    y[3] = torch.nan
    with pytest.raises(ValueError, match="Error while computing log_prob at site 'y'") as caught:
        pv.fit((regression, nothing), (x, y), batch_size=10, progress=False)
    assert "NaN or infinity is in datum 3 of the data." in caught.value.__notes__


@pytest.mark.parametrize("row", [3, 28])
@pytest.mark.parametrize("kind", ["a data set", "a loader", "a loader in order", "a loader with a generator"])
def test_a_datum_of_a_loader(row, kind):
    """A generator of the loader's own is not asked for its order again: the place in the batch remains."""
    x = numbers()
    x[row] = torch.inf
    options = {"shuffle": kind != "a loader in order"}
    if kind.endswith("generator"):
        options["generator"] = torch.Generator().manual_seed(0)
    data = Tables(x) if kind == "a data set" else torch.utils.data.DataLoader(Tables(x), 10, **options)

    def model(x):
        loc = pyro.param("loc", torch.zeros(6))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    found = diagnosed((model, nothing), data)
    assert found.cause == "data" and found.site == "x"
    if kind.endswith("generator"):
        assert found.data_are_of == "the batch" and len(found.data) == 1 and 0 <= found.data[0] < 10
    else:
        assert (found.data_are_of, found.data) == ("the data", (row,))


def test_a_vae_refuses_a_datum_in_its_own_words():
    x = numbers()
    x[28] = torch.nan
    with pytest.raises(ValueError, match="expected finite") as caught:
        pv.fit(vae_of(), Tables(x), batch_size=10, progress=False)
    assert not isinstance(caught.value, pv.DivergedError)
    assert any("NaN or infinity is in datum 28 of the data" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("kind", ["rows", "a data set"])
def test_rows_of_a_batch_are_those_in_it(kind):
    x = torch.arange(23.0)[:, None]
    batches = batches_of("data", x if kind == "rows" else Tables(x), None, torch.device("cpu"), 5, False, 0)
    for epoch in (0, 1):
        for place, (batch,) in enumerate(batches.epoch(epoch)):
            assert batch.flatten().tolist() == batches.rows(epoch, place)


# Scales, modules, gradients


class Collapsing(nn.Module):
    """A posterior whose scale is 0 for the marked datum."""

    def __init__(self):
        super().__init__()
        self.network = AtTheMark(lambda out, is_there: torch.where(is_there, 0.0, out.exp()), outputs=2)

    def forward(self, x):
        scale = self.network(x)
        return dist.Normal(torch.zeros_like(scale), scale).to_event(1)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("row", [3, 28])
@pytest.mark.parametrize("validation", [True, False])
def test_a_scale_of_zero(row, validation, execution):
    with pyro.validation_enabled(validation and execution["compile"]):  # torch refuses it, in words of its own
        found = diagnosed(vae_of(posterior=Collapsing()), marked(row), **execution)
    assert (found.cause, found.site, found.data) == ("scale", "z", (row,))
    assert (found.smallest_scale, found.smallest_scale_site) == (0.0, "z") and "min_scale" in found.remedy
    assert (found.epoch, found.module) == (2, None)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("factor", [1e30, torch.inf, torch.nan])
@pytest.mark.parametrize("row", [3, 28])
def test_a_module_that_explodes(row, factor, execution):
    encoder = nn.Sequential(
        nn.Identity(), AtTheMark(lambda out, is_there: out * torch.where(is_there, factor, 1.0)), nn.Linear(4, 4)
    )
    found = diagnosed(vae_of(encoder), marked(row), **execution)
    assert (found.cause, found.module, found.data) == ("module", "guide.posterior.network.1", (row,))
    assert found.output == {1e30: found.output, torch.inf: "infinity", torch.nan: "NaN"}[factor]
    assert factor != 1e30 or 1e19 < float(found.output) < 1e32


@pytest.mark.parametrize("row", [3, 28])
def test_a_root_at_zero(row, execution):
    """The loss is finite, and the gradient is none: 0 / 0."""
    encoder = nn.Sequential(
        AtTheMark(lambda out, is_there: (out * torch.where(is_there, 0.0, 1.0)).square().sqrt()), nn.Linear(4, 4)
    )
    found = diagnosed(vae_of(encoder), marked(row), **execution)
    assert (found.cause, found.operation, found.module) == ("gradient", "sqrt", "guide.posterior.network.0")
    assert found.data == (row,) and found.site is None
    assert found.parameter.startswith("guide.posterior.network.0.layer.")
    assert found.code.startswith("test_doctor.py:") and "sqrt()" in found.code


def test_a_density_of_zero(execution):
    """A Beta density at 1, where the guide puts one datum."""
    x = numbers().sigmoid().clamp(0.1, 0.9)
    x[28, 0] = 1.0

    def model(x):
        shape = pyro.param("shape", torch.full((6,), 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Beta(shape, 2.0, validate_args=False).to_event(1), obs=x)

    found = diagnosed((model, nothing), x, **execution)
    assert (found.cause, found.site, found.data) == ("density", "x", (28,))


@pytest.mark.parametrize("optim", [pyro.optim.SGD({"lr": 1e3}), pv.FusedAdam({"lr": 1e20})], ids=["SGD", "FusedAdam"])
def test_a_learning_rate_that_is_too_high(optim):
    vae = small_vae("Gaussian, learned scale")
    found = diagnosed(vae, draws_of(vae, NUM_DATA), optim=optim)
    assert found.cause == "learning rate" and "clip_grad_norm" in found.remedy
    assert found.parameter is not None or found.growth > 1


def test_a_learning_rate_that_is_too_high_for_graphs(interpreted):
    vae = small_vae()
    found = diagnosed(vae, draws_of(vae, NUM_DATA), optim=pv.FusedAdam({"lr": 1e20}), compile=True)
    assert found.cause == "learning rate" and interpreted


def test_a_healthy_rate_is_not_blamed(execution):
    """The twin: the same program and the same rate, but a module is at fault."""
    encoder = AtTheMark(lambda out, is_there: out / torch.where(is_there, 0.0, 1.0))
    found = diagnosed(vae_of(encoder), marked(28), optim=pv.FusedAdam({"lr": 1e-3}), **execution)
    assert (found.cause, found.growth) == ("module", None)


def test_a_pair_with_a_module_of_its_own(execution):
    """Which is found in its run alone, and named as the program names it."""
    nets = {"net": AtTheMark(lambda out, is_there: out / torch.where(is_there, 0.0, 1.0), outputs=2)}

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])

    def guide(x):
        net = pyro.module("net", nets["net"])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    found = diagnosed((model, guide), marked(28), objective=Trace_ELBO(), **execution)
    assert (found.cause, found.site, found.data) == ("module", "z", (28,))
    assert found.module == "AtTheMark"  # its parameters are those of its layer


def test_the_step_is_the_first_that_diverged(interpreted):
    """Of the compiled steps that are checked together, and by the loss of Pyro's own steps."""
    found = []
    for compile in (False, True):
        pyro.clear_param_store()
        encoder = AtTheMark(lambda out, is_there: out / torch.where(is_there, 0.0, 1.0), from_call=12)
        found.append(diagnosed(vae_of(encoder), marked(28), compile=compile))
    assert dataclasses.replace(found[0], output=None) == dataclasses.replace(found[1], output=None)
    assert found[0].step >= 12


def test_what_went_before_is_restored(interpreted):
    """After a divergence, parameters and the optimizer's moments are finite, and training can go on."""
    optim = pv.FusedAdam({"lr": 1e-3})
    encoder = AtTheMark(lambda out, is_there: out / torch.where(is_there, 0.0, 1.0))
    vae = vae_of(encoder)
    diagnosed(vae, marked(28), optim=optim, compile=True)
    moments = [tensor for some in optim.moments() for tensor in some]
    assert moments and all(tensor.isfinite().all() for tensor in [*vae.parameters(), *moments])
    encoder.from_call = 10**9
    assert len(pv.fit(vae, marked(28), optim=optim, num_epochs=1, batch_size=10, progress=False)) == 1


def test_the_datum_is_told_from_as_many_particles():
    """Ten particles of ten data, of which one has a scale of zero at last: its particles are all of one datum."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))
            scale = torch.where(x[:, :1] == 7, 0.0, pyro.param("scale", torch.ones(())))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.ones(())) * x, 1.0).to_event(1))

    objective = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    with pyro.validation_enabled(False):
        found = diagnosed((model, guide), marked(23), objective=objective, compile=False)
    assert (found.site, found.data) == ("x", (23,))


@pytest.mark.parametrize("shape", [(3, 3), (1, 1, 4, 4)])
def test_bad_data_are_found_in_batches_as_large_as_a_datum(shape):
    x = torch.zeros(shape)
    x[-1].view(-1)[0] = torch.nan
    error = ValueError()
    add_note_of_bad_data(error, SimpleNamespace(may_be_incomplete=False), (x,), None)
    assert error.__notes__ == [f"NaN or infinity is in datum {len(x) - 1} of the batch."]
