"""The densities of a program by one graph are those of the model, whatever the numbers of draws and data."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from truths import draws_of, needs_compiler, small_vae

import pyro_vae as pv
from pyro_vae.evidence import modes
from pyro_vae.program import joint
from pyro_vae.program.core import Program
from pyro_vae.program.inspect import program_of
from pyro_vae.program.joint import PAIRS_AT_A_TIME, CompiledJoint, joint_of, pays_to_compile

NUM_DATA = 5


@pytest.fixture
def as_in_a_tile():
    with pyro.validation_enabled(False), torch.no_grad():
        yield


def a_vae():
    vae = small_vae()
    return vae.model, vae.guide, (draws_of(vae, NUM_DATA),)


def two_latents_and_an_exposure():
    """One in a plate beside that over data, one positive; and a site that depends on both."""
    scale = nn.Parameter(torch.tensor(0.7))

    def model(x, exposure):
        with pyro.plate("data", len(x), dim=-1):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            with pyro.plate("groups", 3, dim=-2):
                shift = pyro.sample("shift", dist.Normal(torch.zeros(2), scale).to_event(1))
            loc = shift.sum(-1).sum(-2, keepdim=True)
            pyro.sample("x", dist.Normal(loc, (rate * exposure).sqrt()), obs=x)

    def guide(x, exposure):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("rate", dist.LogNormal(0.1 * exposure, 0.5))
            with pyro.plate("groups", 3, dim=-2):
                pyro.sample("shift", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    return model, guide, (torch.randn(NUM_DATA), 1 + torch.rand(NUM_DATA))


def a_support_that_depends_on_the_datum():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(torch.zeros_like(x), 1 + x.abs()))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(torch.zeros_like(x), 1.5 * (1 + x.abs())))  # beyond the prior's support

    return model, guide, (torch.randn(NUM_DATA),)


def a_guide_in_another_order():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(3.0, 0.5))
            pyro.sample("x", dist.Normal(a + 2 * b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(3.0, 0.6))
            pyro.sample("a", dist.Normal((x - 2 * b) / 2, 1.0))

    return model, guide, (6 + torch.randn(NUM_DATA),)


PROGRAMS = [a_vae, a_guide_in_another_order, two_latents_and_an_exposure, a_support_that_depends_on_the_datum]


def with_gradients(joint, program, latents):
    leaves = {name: value.detach().requires_grad_() for name, value in latents.items()}
    with torch.enable_grad():
        prior, likelihood = joint(program, leaves)
        mixed = (0.3 * prior + 0.7 * likelihood.where(prior.isfinite(), 0.0)).sum()
        return prior, likelihood, *torch.autograd.grad(mixed, list(leaves.values()))


@pytest.mark.parametrize("make", PROGRAMS)
def test_densities_and_gradients_are_the_models(make, float64, interpreted, as_in_a_tile):
    model, guide, args = make()
    program, joint = program_of(model, guide, args), CompiledJoint(num_pairs=8)
    rows_and_draws = ((torch.arange(5), 3), (torch.arange(5), 9), (torch.tensor([3, 1]), 4), (torch.tensor([4]), 11))
    for rows, num_samples in rows_and_draws:
        some = program.at(rows)
        latents, _ = some.draw(num_samples)
        latents = dict(sorted(latents.items(), reverse=num_samples > 3))  # in any order
        for one, other in zip(joint(some, latents), some.log_joint(latents), strict=True):
            assert one.shape == (num_samples, len(rows))
            assert torch.allclose(one, other, rtol=1e-12)
        assert len(joint.rows.kept) <= 2  # however many there were
        found, expected = (with_gradients(each, some, latents) for each in (joint, Program.log_joint))
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape and torch.allclose(one, other, rtol=1e-10, atol=1e-12)
    assert len(interpreted) == 2  # with and without gradients


def test_a_row_that_is_another_shows(float64, interpreted, as_in_a_tile):
    """The twin: had the rows of the data gone to other draws, the densities would not agree."""
    model, guide, (x,) = a_vae()
    program = program_of(model, guide, (x,))
    latents, _ = program.draw(3)
    moved = program.at(torch.arange(NUM_DATA).roll(1))
    assert not torch.allclose(CompiledJoint(8)(moved, latents)[1], program.log_joint(latents)[1], rtol=1e-3)


def test_few_pairs_run_as_they_are_and_no_more_are_taken_than_a_graph_holds(float64, interpreted, as_in_a_tile):
    model, guide, args = a_vae()
    program, joint = program_of(model, guide, args), CompiledJoint(num_pairs=10**9)
    few, many = program.draw(2)[0], program.draw(200)[0]
    assert torch.equal(joint(program, few)[1], program.log_joint(few)[1]) and not interpreted
    assert torch.allclose(joint(program, many)[1], program.log_joint(many)[1])  # a billion rows would not fit
    assert len(interpreted) == 1


def test_a_parameter_that_changes_is_read(float64, interpreted, as_in_a_tile):
    vae = small_vae()
    program, joint = program_of(vae.model, vae.guide, (draws_of(vae, NUM_DATA),)), CompiledJoint(8)
    latents, _ = program.draw(3)
    before = joint(program, latents)[1]
    vae.likelihood.network.layers[-1].bias.add_(1.0)
    after = joint(program, latents)[1]
    assert torch.allclose(after, program.log_joint(latents)[1]) and not torch.allclose(after, before, rtol=1e-3)
    assert len(interpreted) == 1


def test_a_pair_that_runs_on_all_data_together_runs_as_it_is():
    vae = small_vae()
    x = draws_of(vae, 6)
    guide = AutoNormal(vae.model)
    guide(x)
    options = {"num_samples": 100, "proposal": "laplace"}
    plain = pv.importance_sampling(vae.model, guide, x, **options)
    with pytest.warns(UserWarning, match="compile: expected a model and a guide that run on any rows") as warned:
        graph = pv.importance_sampling(vae.model, guide, x, compile=True, **options)
    assert len([each for each in warned if "compile" in str(each.message)]) == 1
    assert torch.equal(plain.log_evidence, graph.log_evidence)


@pytest.mark.parametrize("chunk_size", [0, 2.5])
def test_a_size_that_is_no_size(chunk_size):
    for compile in (False, True):
        with pytest.raises((TypeError, ValueError), match="chunk_size: expected"):
            joint_of(chunk_size, compile)


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Can't initialize NVML")
@pytest.mark.parametrize("make", [pytest.param(a_vae, marks=pytest.mark.slow), a_guide_in_another_order])
def test_estimators_compiled(make, float64, recwarn, monkeypatch):
    """All that evaluate the model by pairs; `ais` and `bdmc` beside the plain ones."""
    monkeypatch.setitem(PAIRS_AT_A_TIME, "cpu", 64)
    model, guide, (x,) = make()
    calls = [
        *(
            lambda compile, proposal=proposal: pv.importance_sampling(
                model, guide, x, num_samples=50, proposal=proposal, compile=compile
            )
            for proposal in ("defensive", "laplace")
        ),
        lambda compile: pv.log_evidence(model, guide, x, tolerance=1e-12, max_evaluations=2200, compile=compile),
    ]
    for call in calls:
        plain, graph = call(False), call(True)
        assert plain.method == graph.method
        assert torch.allclose(plain.log_evidence, graph.log_evidence, rtol=1e-7)
    assert any("AIS" in method for method in plain.method)
    assert not [warning for warning in recwarn if "can be compiled" in str(warning.message)]


BY_THEMSELVES = {
    "importance sampling": partial(pv.importance_sampling, num_samples=200, proposal="laplace"),
    "from the guide": partial(pv.importance_sampling, num_samples=2048),
    "ais": partial(pv.ais, num_temperatures=3),
    "log_evidence": partial(pv.log_evidence, tolerance=1e-12, max_evaluations=2200),
    "bdmc": partial(pv.bdmc, num_temperatures=3),
    "posterior_samples": partial(pv.posterior_samples, num_samples=8, num_temperatures=3),
    "inference_gap": partial(pv.inference_gap, num_steps=2, num_samples=20),
}


@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_by_themselves_they_compile_what_is_worth_it(name, float64, interpreted, monkeypatch):
    """By the evaluations that are asked for times the parameters: a job that is one too small runs as it is."""
    monkeypatch.setitem(PAIRS_AT_A_TIME, "cpu", 64)
    model, guide, (x,) = a_vae()
    call = partial(BY_THEMSELVES[name], model, guide, x)
    call()
    assert not interpreted
    monkeypatch.setitem(joint.WORTH_COMPILING, "cpu", 1.0)
    call(compile=False)
    assert not interpreted
    monkeypatch.setattr(joint, "FEWEST", 1.0)
    call()
    assert interpreted


def test_the_work_is_evaluations_of_all_data_times_parameters(float64, monkeypatch):
    model, guide, (x,) = a_vae()
    program = program_of(model, guide, (x,))
    numbers = sum(each.numel() for each in model.parameters())
    monkeypatch.setattr(joint, "FEWEST", 1.0)
    monkeypatch.setitem(joint.WORTH_COMPILING, "cpu", 50 * len(x) * numbers)
    assert pays_to_compile("auto", program, 50)
    assert not pays_to_compile("auto", program, 49)
    assert pays_to_compile(True, program, 0) and not pays_to_compile(False, program, 1e9)


@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_compile_is_one_of_three(name):
    model, guide, (x,) = a_vae()
    with pytest.raises(ValueError, match="compile: expected .*'auto'.*; got 'always'"):
        BY_THEMSELVES[name](model, guide, x, compile="always")


@needs_compiler
def test_searches_and_fits_run_by_the_graph_too():
    """Without chains all evaluations are those of the search for modes and of the Gaussian's fit. Hessians are not."""
    torch.manual_seed(0)
    network, runs = torch.nn.Linear(2, 3), []

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            runs.append(z.shape)
            pyro.sample("x", dist.Normal(network(z).exp(), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    x, number, found = torch.rand(128, 3), {}, {}
    for compile in (False, True):
        runs.clear()
        found[compile] = pv.ais(model, guide, x, num_temperatures=1, compile=compile).log_evidence
        number[compile] = len(runs)
    assert number[True] <= number[False] - modes.NUM_EXPLORING
    assert torch.allclose(found[True], found[False], atol=1e-3)
