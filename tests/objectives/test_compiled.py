"""Compiled ELBOs are Pyro's: the same numbers for the same noise, and Pyro's own run where there is no graph."""

import array
import collections
import copy
import functools
import math
import pickle
import random
import re
import resource
import tracemalloc
import types
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from compositions import COMPOSITIONS
from programs import PROGRAMS, Case, bernoulli_vae, binary, data, with_modules
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from truths import needs_compiler

import pyro_vae as pv
from pyro_vae import SVI
from pyro_vae.objectives import base as compiled

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Can't initialize NVML")
COMPILED = {
    Trace_ELBO: pv.objectives.CompiledTrace_ELBO,
    TraceMeanField_ELBO: pv.objectives.CompiledTraceMeanField_ELBO,
}
REFUSED = "expected a program that can be compiled"
COMPILED_AT_ONCE = {"a loc and a scale for each datum"}
READS_NUMBERS = {"one call for each group"}  # a loop over a plate takes its indices for numbers
all_compiled = pytest.mark.filterwarnings(f"error:.*{REFUSED}")


def adam():
    return pyro.optim.Adam({"lr": 0.01})


def fused_adam():
    return pv.FusedAdam({"lr": 0.01})


def history(case, objective, optim, num_rounds=3, between=lambda case, optim, i: None):
    """Losses of some rounds of a step with each of the calls, then the parameters."""
    torch.manual_seed(1)
    svi = SVI(case.model, case.guide, optim, objective)
    losses = []
    for i in range(num_rounds):
        between(case, optim, i)
        for call in case.calls:
            args, kwargs = (call[:-1], call[-1]) if isinstance(call[-1], dict) else (call, {})
            losses += [svi.step(*args, **kwargs), svi.evaluate_loss(*args, **kwargs)]
    store = pyro.get_param_store()
    return torch.tensor(losses), {name: store[name].detach().clone() for name in store}, case


def both(make, elbo, optims=(adam, adam), **options):
    """The history by Pyro's own ELBO, and by the compiled one, from the same start."""
    ours = COMPILED[elbo]
    return [_from_the_start(make, *each, **options) for each in zip((elbo, ours), optims, strict=True)]


def by_pyro(make, elbo, **options):
    """The first of these alone."""
    return _from_the_start(make, elbo, adam, **options)


def _from_the_start(make, objective, optim, **options):
    pyro.clear_param_store()
    torch.manual_seed(0)
    case = make()
    return history(case, objective(**case.options), optim(), **options)


def differences(pair, rtol=1e-7):
    """Where the second of two histories is not the first."""
    (losses, params, case), (found, found_params, found_case) = pair
    assert found_params.keys() == params.keys()
    pairs = {"losses": (found, losses), **{name: (found_params[name], params[name]) for name in params}}
    if hasattr(case, "network"):
        buffers = dict(case.network.named_buffers())
        pairs.update({name: (buffer, buffers[name]) for name, buffer in found_case.network.named_buffers()})
    return [name for name, (one, other) in pairs.items() if not torch.allclose(one, other, rtol=rtol, atol=1e-9)]


@pytest.mark.one_in(18)
@all_compiled
@pytest.mark.parametrize("optim", [adam, fused_adam])
@pytest.mark.parametrize("elbo", COMPILED, ids=lambda elbo: elbo.__name__)
@pytest.mark.parametrize("name", PROGRAMS)
def test_same_steps_as_pyro(name, elbo, optim, interpreted, float64):
    if elbo is TraceMeanField_ELBO and not PROGRAMS[name]().analytic:
        pytest.skip("its guide is no mean field")
    pair = both(PROGRAMS[name], elbo, (adam, optim))
    assert len(interpreted) >= 2 and not differences(pair)


@pytest.mark.one_in(10)
@all_compiled
@pytest.mark.parametrize("name", sorted(COMPOSITIONS.keys() - READS_NUMBERS))
def test_same_steps_of_a_vae_inside_of_other_programs(name, interpreted, float64):
    pair = both(COMPOSITIONS[name], Trace_ELBO, (adam, fused_adam))
    assert len(interpreted) >= 2 and not differences(pair)


@pytest.mark.parametrize("name", READS_NUMBERS)
def test_what_reads_numbers_runs_as_it_is(name, interpreted, float64):
    with pytest.warns(UserWarning, match=f"{REFUSED}; got .*by item"):
        pair = both(COMPOSITIONS[name], Trace_ELBO, (adam, fused_adam))
    assert not interpreted and not differences(pair)


@all_compiled
@pytest.mark.parametrize(
    "name",
    [name if name in COMPILED_AT_ONCE else pytest.param(name, marks=pytest.mark.slow) for name in PROGRAMS],
)
@needs_compiler
def test_same_steps_by_the_compiler(name, float64):
    elbo = TraceMeanField_ELBO if PROGRAMS[name]().analytic else Trace_ELBO
    assert not differences(both(PROGRAMS[name], elbo, (adam, fused_adam)))


@pytest.mark.parametrize("error", [0.0, 1e-3])
def test_a_planted_wrong_gradient_is_caught(error, interpreted, float64, monkeypatch):
    right = compiled.GRADIENT.run

    def wrong(*args):
        (value, *gradients), leaves = right(*args)
        return (value, *((1 + error) * gradient for gradient in gradients)), leaves

    monkeypatch.setattr(compiled, "GRADIENT", compiled.GRADIENT._replace(run=wrong))
    sgd = lambda: pyro.optim.SGD({"lr": 1e-3})  # noqa: E731  (Adam's steps do not depend on a gradient's scale)
    assert bool(differences(both(bernoulli_vae, Trace_ELBO, (sgd, sgd)))) == (error > 0)


@all_compiled
@pytest.mark.parametrize("elbo", COMPILED, ids=lambda elbo: elbo.__name__)
def test_as_a_module_with_an_optimizer_of_torch(elbo, interpreted, float64):
    found = []
    for objective in (elbo, COMPILED[elbo]):
        pyro.clear_param_store()
        torch.manual_seed(0)
        case = bernoulli_vae()
        loss_of = objective()(case.model, case.guide)
        optimizer = torch.optim.Adam(loss_of.parameters(), lr=0.01)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = 2 * loss_of(*case.calls[0])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            with torch.no_grad():
                losses.append(loss_of(*case.calls[0]).item())
        found.append(torch.tensor(losses))
    assert len(interpreted) == 2 and torch.allclose(*found, rtol=1e-10)


def test_a_second_derivative_is_refused(interpreted):
    case = bernoulli_vae()
    loss_of = pv.objectives.CompiledTrace_ELBO()(case.model, case.guide)
    loss_of(*case.calls[0])
    params = list(loss_of.parameters())
    gradients = torch.autograd.grad(loss_of(*case.calls[0]), params, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        torch.autograd.grad(gradients[0].sum(), params)


def test_gradients_are_added(interpreted, float64):
    case = bernoulli_vae()
    elbo = pv.objectives.CompiledTrace_ELBO()
    (param, *_) = case.model.parameters()
    sums = []
    for _ in range(3):  # the first by Pyro, the others by the graph
        torch.manual_seed(2)
        elbo.loss_and_grads(case.model, case.guide, *case.calls[0])
        sums.append(param.grad.clone())
    assert len(interpreted) == 1
    assert torch.allclose(sums[1], 2 * sums[0]) and torch.allclose(sums[2], 3 * sums[0])


SCALE = 0.7


def adjustable():
    """A program that reads whatever a program may read: globals, closures, attributes, lists, arrays, arguments."""
    settings = {"shift": [0.1, 0.2], "widths": np.array([1.0, 1.0])}
    case = with_modules(nn.Dropout(0.3))
    model, network = case.model, case.network

    class Guide:
        power = 1.0

        def __init__(self):
            self.offset = 0.0

        def __call__(self, x):
            pyro.module("network", network)
            loc, scale = network(x).chunk(2, -1)
            loc = SCALE * loc + self.offset + settings["shift"][0]
            with pyro.plate("data", len(x)):
                scale = scale.exp() * float(settings["widths"][0]) * self.power
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    case = Case(model, Guide(), [(data(6),)])
    case.network, case.settings = network, settings
    return case


def _set_global(case, optim):
    globals()["SCALE"] = 0.3


def _set_learning_rate(case, optim):
    if isinstance(optim, pv.FusedAdam):
        optim.optimizers[0].param_groups[0]["lr"] = 0.05
    else:
        for each in optim.optim_objs.values():
            each.param_groups[0]["lr"] = 0.05


def _set_item(container, key, value):
    container[key] = value


def _copy_weights(module):
    with torch.no_grad():
        for param in module.parameters():
            param.mul_(0.5)


def _replace_weights(case, optim):
    case.network[0].weight = nn.Parameter(0.5 * case.network[0].weight.detach())
    pyro.clear_param_store()


CHANGES = {
    "weights in place": lambda case, optim: _copy_weights(case.network),
    "loaded weights": lambda case, optim: case.network.load_state_dict(
        {name: value / 2 for name, value in case.network.state_dict().items()}
    ),
    "other parameters": _replace_weights,
    "a cleared store": lambda case, optim: pyro.clear_param_store(),
    "frozen weights": lambda case, optim: case.network[0].requires_grad_(False),
    "evaluation mode": lambda case, optim: case.network.eval(),
    "a hook": lambda case, optim: case.network[0].register_forward_hook(lambda module, args, output: 2 * output),
    "an attribute": lambda case, optim: setattr(case.guide, "offset", 0.5),
    "an attribute of the class": lambda case, optim: setattr(type(case.guide), "power", 0.5),
    "a new attribute": lambda case, optim: setattr(case.guide, "power", 0.5),
    "a global variable": _set_global,
    "an item of a list": lambda case, optim: _set_item(case.settings["shift"], 0, 0.9),
    "an item of a dictionary": lambda case, optim: _set_item(case.settings, "shift", [0.9]),
    "a number in an array": lambda case, optim: _set_item(case.settings["widths"], 0, 0.5),
    "a learning rate": _set_learning_rate,
}


@pytest.mark.one_in(14)
@all_compiled
@pytest.mark.parametrize("optim", [adam, fused_adam])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_by_the_next_step(name, optim, interpreted, float64):
    def change(case, optim, i):
        if i == 4:
            CHANGES[name](case, optim)

    def start():
        globals()["SCALE"] = 0.7
        return adjustable()

    changed = both(start, Trace_ELBO, (adam, optim), num_rounds=6, between=change)
    assert not differences(changed)
    if name == "a cleared store":  # which the same tensors enter again
        return
    unchanged = by_pyro(start, Trace_ELBO, num_rounds=6)
    assert differences([unchanged, changed[0]]), "what should change the run did not"


class Config:
    scale = 1.0


class Slotted:
    __slots__ = ("scale",)

    def __init__(self):
        self.scale = 1.0


def _of_code(model):
    def other(x):
        prior_and_likelihood(x, 2.0)

    model.__code__ = other.__code__


def prior_and_likelihood(x, scale=1.0):
    z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)


def global_guide(x, *args, **kwargs):
    loc = pyro.param("loc", lambda: torch.zeros(5))
    scale = pyro.param("scale", lambda: torch.full((5,), 0.5), constraint=dist.constraints.positive)
    pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def _module_of_settings():
    module = types.ModuleType("settings")
    module.scale = 1.0
    return module


HOLDERS = {
    "a class": (lambda: type("Config", (Config,), {}), lambda o: o.scale, lambda o: setattr(o, "scale", 2.0)),
    "slots": (Slotted, lambda o: o.scale, lambda o: setattr(o, "scale", 2.0)),
    "a set": (set, lambda o: 2.0 if "b" in o else 1.0, lambda o: o.add("b")),
    "a key": (lambda: {"a": True}, lambda o: 2.0 if "b" in o else 1.0, lambda o: (o.clear(), o.update(b=True))),
    "an attribute of an ordered dictionary": (
        collections.OrderedDict,
        lambda o: getattr(o, "scale", 1.0),
        lambda o: setattr(o, "scale", 2.0),
    ),
    "a deque": (lambda: collections.deque([1.0]), lambda o: o[0], lambda o: o.__setitem__(0, 2.0)),
    "an array": (lambda: array.array("d", [1.0]), lambda o: o[0], lambda o: o.__setitem__(0, 2.0)),
    "a module": (_module_of_settings, lambda o: o.scale, lambda o: setattr(o, "scale", 2.0)),
    "a parameter": (
        lambda: None,
        lambda o: pyro.param("width", torch.ones(5)),
        lambda o: pyro.get_param_store().__setitem__("width", torch.full((5,), 2.0)),
    ),
}


@pytest.mark.one_in(14)
@pytest.mark.parametrize("hidden", [False, True], ids=["seen", "behind poutine.block"])
@pytest.mark.parametrize("optim", [adam, fused_adam])
@pytest.mark.parametrize("name", HOLDERS)
def test_state_of_all_kinds_is_seen(name, optim, hidden, interpreted, float64):
    make, read, change = HOLDERS[name]
    holders = []

    def start():
        holder = make()
        holders.append(holder)

        def model(x):
            prior_and_likelihood(x, read(holder))

        return Case(poutine.block(model, hide_types=["param"]) if hidden else model, global_guide, [(data(6),)])

    def between(case, optim, i):
        if i == 4:
            change(holders[-1])

    changed = both(start, Trace_ELBO, (adam, optim), num_rounds=6, between=between)
    unchanged = by_pyro(start, Trace_ELBO, num_rounds=6)
    assert len(interpreted) >= 2 and not differences(changed) and differences([unchanged, changed[0]])


def test_other_code_is_seen(interpreted, float64):
    def start():
        def model(x):
            prior_and_likelihood(x)

        return Case(model, global_guide, [(data(6),)])

    def between(case, optim, i):
        if i == 4:
            _of_code(case.model)

    assert not differences(both(start, Trace_ELBO, num_rounds=8, between=between))


UNSEEN = {
    "an iterator": (lambda: iter([1.0, 2.0] * 50), next, "whose state cannot be seen"),
    "a cache": (
        lambda: functools.lru_cache(maxsize=1)(lambda: torch.ones(5)),
        lambda o: o(),
        "cached function, whose state",
    ),
    "a seed inside": (lambda: 7, lambda o: torch.manual_seed(o) and 1.0, "differ when compiled"),
    "an attribute that runs code": (
        type("Lazy", (), {"__getattr__": lambda self, name: self.__dict__["_d"][name]}),
        lambda o: 1.0,
        None,
    ),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_state_that_cannot_be_seen_is_refused(name, interpreted, float64):
    make, read, reason = UNSEEN[name]

    def start():
        holder = make()
        return Case(lambda x: prior_and_likelihood(x, read(holder)), global_guide, [(data(6),)])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not differences(both(start, Trace_ELBO, num_rounds=6))
    said = [str(warning.message) for warning in caught if REFUSED in str(warning.message)]
    assert not said if reason is None else said and all(reason in message for message in said)


@needs_compiler
def test_what_the_compiler_draws_otherwise_is_refused(float64):
    """Its Bernoulli draws are others than torch's: seen when the graph is checked."""

    def model(x):
        prior_and_likelihood(torch.bernoulli(x.sigmoid()))

    with pytest.warns(UserWarning, match="differ when compiled|results that differ"):
        pair = both(lambda: Case(model, global_guide, [(data(6),)]), Trace_ELBO)
    assert not differences(pair)


def test_a_program_is_left_as_it_was_by_a_refused_recording(interpreted, float64):
    values, total = {0: 1.0, 1: 2.0}, 0.0

    def model(x):
        nonlocal total
        kept = values[0], total
        values[0] = total = torch.ones(())
        if x.sum() > 100:
            pass
        values[0], total = kept
        prior_and_likelihood(x, values[1])

    with pytest.warns(UserWarning, match="by __bool__"):
        history(Case(model, global_guide, [(data(6),)]), pv.objectives.CompiledTrace_ELBO(), adam())
    assert values == {0: 1.0, 1: 2.0} and total == 0.0


@all_compiled
def test_parameters_made_anew_after_the_store_was_cleared(interpreted):
    svi = SVI(prior_and_likelihood, global_guide, fused_adam(), pv.objectives.CompiledTrace_ELBO())
    for _ in range(3):
        for _ in range(4):
            svi.step(data(6))
        pyro.clear_param_store()
    svi.step(data(6))
    assert type(pyro.param("loc")) is torch.Tensor and len(interpreted) == 3


def test_two_svis_with_one_optimizer_train_what_each_sees(interpreted, float64):
    def model(x):
        prior_and_likelihood(x * pyro.param("width", lambda: torch.ones(5)))

    found = []
    for elbo, optim in ((Trace_ELBO, adam()), (pv.objectives.CompiledTrace_ELBO, fused_adam())):
        pyro.clear_param_store()
        torch.manual_seed(1)
        frozen = poutine.block(model, hide_types=["param"])
        svis = [SVI(each, global_guide, optim, elbo()) for each in (model, frozen)]
        losses = [svi.step(data(6)) for _ in range(6) for svi in svis]
        found.append((torch.tensor(losses), pyro.param("width").detach().clone()))
    assert all(torch.allclose(*each, rtol=1e-7) for each in zip(*found, strict=True))


def test_a_parameter_that_is_used_now_and_then(interpreted, float64):
    def model(x, use):
        width = pyro.param("width", lambda: torch.ones(5))
        prior_and_likelihood(x * width if use else x)

    case = lambda: Case(model, global_guide, [(data(6), True), (data(6), False)])  # noqa: E731
    assert not differences(both(case, Trace_ELBO, (adam, fused_adam), num_rounds=6))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.parametrize("late", [False, True])
def test_hooks_on_gradients_are_heeded(kind, late, interpreted, float64):
    def hook(argument):
        if kind == "register_hook":
            return 0 * argument
        argument.grad.zero_()

    def register(case):
        getattr(next(case.model.parameters()), kind)(hook)
        return case

    def between(case, optim, i):
        if late and i == 4:
            register(case)

    start = bernoulli_vae if late else lambda: register(bernoulli_vae())
    with pytest.warns(UserWarning, match="a hook on the gradient") if not late else nullcontext():
        pair = both(start, Trace_ELBO, (adam, fused_adam), num_rounds=8, between=between)
    assert not differences(pair)


def test_a_subclass_with_an_option_of_its_own(interpreted):
    class Scaled(pv.objectives.CompiledTrace_ELBO):
        factor = 1.0

        def _differentiable_loss_particle(self, model_trace, guide_trace):
            return tuple(self.factor * each for each in super()._differentiable_loss_particle(model_trace, guide_trace))

    case, elbo, losses = bernoulli_vae(), Scaled(), []
    for factor in (1.0, 1.0, 1.0, 2.0, 2.0, 2.0):
        elbo.factor = factor
        torch.manual_seed(0)
        losses.append(elbo.differentiable_loss(case.model, case.guide, *case.calls[0]).item())
    assert losses == pytest.approx([losses[0]] * 3 + [2 * losses[0]] * 3, rel=1e-5)


def test_a_step_without_gradients(interpreted, float64):
    def between(case, optim, i):
        torch.set_grad_enabled(i != 4)

    try:
        assert not differences(both(bernoulli_vae, Trace_ELBO, (adam, fused_adam), num_rounds=8, between=between))
    finally:
        torch.set_grad_enabled(True)


def test_a_number_that_picks_a_branch(interpreted, float64):
    def model(x, b):
        prior_and_likelihood(x, {0.5: 2.0}.get(b, 1.0) if isinstance(b, float) else 3.0)

    case = lambda: Case(model, global_guide, [(data(6), 0.5), (data(6), 0.25)])  # noqa: E731
    assert not differences(both(case, Trace_ELBO))
    assert interpreted


@pytest.mark.parametrize("arguments", [range(40), [np.full(5, i) for i in range(40)]], ids=["whole numbers", "arrays"])
def test_arguments_that_are_others_at_each_call_are_said_and_not_kept(arguments, interpreted):
    elbo = pv.objectives.CompiledTrace_ELBO()
    with pytest.warns(UserWarning, match="arguments that differ at each call"):
        for each in arguments:
            elbo.loss(lambda_model, global_guide, data(6), each)
    assert not interpreted and all(not program.seen for program in elbo._pairs.values())


def lambda_model(x, step):
    prior_and_likelihood(x)


def test_training_and_evaluation_mode_in_turn(interpreted, float64):
    def between(case, optim, i):
        case.network.train(i % 2 == 0)

    pair = both(lambda: with_modules(nn.Dropout(0.4)), Trace_ELBO, num_rounds=8, between=between)
    assert len(interpreted) == 4 and not differences(pair)


def test_a_transposed_weight(interpreted, float64):
    def start():
        return with_modules(nn.Linear(7, 7))

    def between(case, optim, i):
        if i == 4:
            case.network[1].weight.data = case.network[1].weight.data.t()

    assert not differences(both(start, Trace_ELBO, (adam, adam), num_rounds=8, between=between))


def latent_model(x, scale=1.0):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x[:, 0])


def latent_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)) * x[:, 0], 0.5))


def branching_model(x):
    latent_model(x, 1.0 if pyro.param("loc", torch.tensor(0.1)) > 0 else 2.0)


def number_taking_model(x):
    latent_model(x, 1.0 + pyro.param("loc", torch.tensor(0.1)).item() ** 2)


def list_taking_model(x):
    latent_model(x, 1.0 + pyro.param("loc", torch.tensor(0.1)).tolist() ** 2)


def model_of_random_structure(x):
    latent_model(x, random.choice([1.0, 2.0]))


def model_with_numpy_noise(x):
    latent_model(x, np.random.rand() + 0.5)  # noqa: NPY002


class Counting:
    """A program that keeps count of its runs."""

    def __init__(self):
        self.count = 0

    def __call__(self, x):
        self.count += 1
        latent_model(x, 1.0 + 0.1 * self.count)


def discrete_model(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("x", dist.Normal(k, 1.0), obs=x[:, 0])


def discrete_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Bernoulli(pyro.param("p", torch.tensor(0.4))))


def unreparametrized_guide(x):
    with pyro.plate("data", len(x)):
        normal = dist.Normal(pyro.param("loc", torch.tensor(0.1)) * x[:, 0], 0.5)
        pyro.sample("z", normal.has_rsample_(False))


outside = nn.Parameter(torch.tensor(0.3))

REFUSALS = {
    "a branch on a value": (branching_model, latent_guide, "by __bool__"),
    "a number taken from a parameter": (number_taking_model, latent_guide, "by item"),
    "numbers taken as a list": (list_taking_model, latent_guide, "by tolist"),
    "structure by chance": (model_of_random_structure, latent_guide, "Python's random; draw with torch"),
    "noise of numpy's": (model_with_numpy_noise, latent_guide, "numpy.random; draw with torch"),
    "a count of its runs": (Counting, latent_guide, r"model\.count"),
    "a discrete latent": (discrete_model, discrete_guide, "latent site 'k', which is not reparametrized"),
    "a guide without gradients": (latent_model, unreparametrized_guide, "'z', which is not reparametrized"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_compiled_is_said_once_and_runs_as_it_is(name, interpreted, float64, recwarn):
    model, guide, reason = REFUSALS[name]
    runs = []
    for objective in (Trace_ELBO, pv.objectives.CompiledTrace_ELBO):
        pyro.clear_param_store()
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        program = model() if isinstance(model, type) else model
        runs.append(history(Case(program, guide, [(data(6),)]), objective(), adam(), num_rounds=20))
    said = [str(warning.message) for warning in recwarn if REFUSED in str(warning.message)]
    assert len(said) in (1, 2) and len(set(said)) == len(said)  # of the value, and of the gradient
    assert all(re.search(reason, message) for message in said), said
    assert not differences(runs)


def test_an_argument_that_needs_a_gradient(interpreted):
    x = data(6).requires_grad_()
    elbo = pv.objectives.CompiledTrace_ELBO()
    with pytest.warns(UserWarning, match="an argument that needs a gradient"):
        losses = [elbo.differentiable_loss(latent_model, latent_guide, x) for _ in range(3)]
    losses[-1].backward()
    assert not interpreted and x.grad.abs().sum() > 0


def test_inside_a_handler_it_runs_as_it_is(interpreted, float64):
    elbo, theirs, x = pv.objectives.CompiledTrace_ELBO(), Trace_ELBO(), data(6)
    with pytest.warns(UserWarning, match="put the handler inside the model"):
        for seed in range(4):
            with poutine.scale(scale=0.5):
                losses = []
                for objective in (elbo, theirs):
                    torch.manual_seed(seed)
                    losses.append(objective.loss(latent_model, latent_guide, x))
            assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("compiled_scale", [0.6, 0.66])
@needs_compiler
def test_the_same_distribution_with_noise_of_its_own(compiled_scale):
    """Loss and gradient have their exact means, and the loss Pyro's spread.

    Within 4.5 standard errors each, 4 of them: a false failure in 30,000 runs. The twin has a guide that is wider by a
    tenth.
    """
    x, loc, scale, num_draws = 1.3, 0.4, 0.6, 4000

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide_of(scale):
        def guide(x):
            log_scale = pyro.param("log_scale", torch.tensor(scale).log())
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(loc)), log_scale.exp()))

        return guide

    def draws(elbo, scale):
        pyro.clear_param_store()
        found, guide = [], guide_of(scale)
        for _ in range(num_draws):
            loss = elbo.loss_and_grads(model, guide, torch.tensor(x))
            params = [pyro.param(name).unconstrained() for name in ("loc", "log_scale")]
            found.append([loss, *(param.grad.item() for param in params)])
            for param in params:
                param.grad = None
        return torch.tensor(found, dtype=torch.float64)

    exact = torch.tensor(
        [
            0.5 * ((x - loc) ** 2 + scale**2 + loc**2 + scale**2 - 1) + 0.5 * math.log(2 * math.pi) - math.log(scale),
            2 * loc - x,
            2 * scale**2 - 1,
        ]
    )
    ours, theirs = draws(pv.objectives.CompiledTrace_ELBO(), compiled_scale), draws(Trace_ELBO(), scale)
    errors = [(ours.mean(0) - exact) / (ours.std(0) / num_draws**0.5)]
    squares = [(each[:, :1] - exact[0]).square() for each in (ours, theirs)]
    spread = (squares[0].var(0) + squares[1].var(0)).sqrt() / num_draws**0.5
    errors.append((squares[0].mean(0) - squares[1].mean(0)) / spread)
    assert (torch.cat(errors).abs().max() < 4.5) == (compiled_scale == scale)


def test_one_seed_gives_one_run(interpreted):
    elbo, case = pv.objectives.CompiledTraceMeanField_ELBO(), bernoulli_vae()
    losses = []
    for _ in range(4):
        torch.manual_seed(5)
        losses.append(elbo.loss(case.model, case.guide, *case.calls[0]))
    assert len(interpreted) == 1 and np.ptp(losses) < 1e-5 * abs(losses[0])


def test_a_number_that_changes_needs_no_other_graph(interpreted, float64):
    make = PROGRAMS["labels, a weight that changes, a flag"]
    elbo, theirs, case = pv.objectives.CompiledTraceMeanField_ELBO(), TraceMeanField_ELBO(), make()
    for i in range(20):
        losses = []
        for objective in (elbo, theirs):
            torch.manual_seed(i)
            losses.append(objective.loss(case.model, case.guide, *case.calls[0][:2], beta=0.05 * (i + 1)))
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert len(interpreted) == 1


@pytest.mark.slow
def test_many_shapes_run_into_no_limit(interpreted):
    case, elbo = bernoulli_vae(), pv.objectives.CompiledTrace_ELBO()
    with pytest.warns(UserWarning, match="calls of more than 16 kinds") as caught:
        for num_data in range(1, 20):
            for _ in range(3):
                elbo.loss(case.model, case.guide, binary(num_data))
    assert len(interpreted) == 16 and len([w for w in caught if REFUSED in str(w.message)]) == 1


def test_a_program_made_anew_for_each_call_is_no_leak(interpreted):
    case, elbo = bernoulli_vae(), pv.objectives.CompiledTrace_ELBO()
    for _ in range(40):
        elbo.loss(poutine.scale(case.model, 0.5), case.guide, *case.calls[0])
    assert not interpreted and len(elbo._pairs) <= 16


def test_two_pairs_under_one_objective(interpreted, float64):
    elbo, theirs = pv.objectives.CompiledTrace_ELBO(), Trace_ELBO()
    cases = [bernoulli_vae(), bernoulli_vae()]
    for seed in range(4):
        for case in cases:
            losses = []
            for objective in (elbo, theirs):
                torch.manual_seed(seed)
                losses.append(objective.loss(case.model, case.guide, *case.calls[0]))
            assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert len(interpreted) == 2


def test_validation_at_the_first_call():
    case = bernoulli_vae()
    with pytest.raises(ValueError, match="support"):
        pv.objectives.CompiledTrace_ELBO().loss(case.model, case.guide, torch.full((6, 12), 0.5))


def test_copied_and_pickled(interpreted):
    case, elbo = bernoulli_vae(), pv.objectives.CompiledTraceMeanField_ELBO(num_particles=2)
    for _ in range(3):
        elbo.loss(case.model, case.guide, *case.calls[0])
    for other in (copy.deepcopy(elbo), pickle.loads(pickle.dumps(elbo))):
        assert other.num_particles == 2 and isinstance(other.loss(case.model, case.guide, *case.calls[0]), float)


def test_no_new_parameters(interpreted):
    history(bernoulli_vae(), Trace_ELBO(), adam())
    names = set(pyro.get_param_store())
    pyro.clear_param_store()
    history(bernoulli_vae(), pv.objectives.CompiledTrace_ELBO(), fused_adam())
    assert set(pyro.get_param_store()) == names


def resident_memory():
    """Bytes; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return resource.getpagesize() * int(statm.read_text().split()[1]) if statm.exists() else 0


@pytest.mark.slow
@needs_compiler
def test_memory_stays_flat():
    case = bernoulli_vae()
    svi = SVI(case.model, case.guide, fused_adam(), pv.objectives.CompiledTraceMeanField_ELBO())
    tracemalloc.start()
    used = []
    for _ in range(3):
        for _ in range(5000):
            svi.step(*case.calls[0])
        used.append((tracemalloc.get_traced_memory()[0], resident_memory()))
    tracemalloc.stop()
    (traced, resident), (traced_at_end, resident_at_end) = used[0], used[2]
    assert traced_at_end < traced + 50_000
    assert resident_at_end < resident + 20_000_000
