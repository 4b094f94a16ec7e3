"""`FusedAdam` takes the steps of Pyro's Adam, and hands its state over."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.optim.lr_scheduler import ExponentialLR

import pyro_vae as pv


def model(x):
    loc = pyro.param("loc", torch.zeros(3))
    scale = pyro.param("scale", torch.ones(3), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


def guide(x):
    pass


def rates(name):
    return {"lr": 0.01} if "loc" in name else {"lr": 0.003, "betas": (0.8, 0.9)}


def rates_of_which_one_is_zero(name):
    return {"lr": 0.01 if "loc" in name else 0.0}


X = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 5.0]])
OPTIONS = {
    "a rate": {"lr": 0.01},
    "all options": {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.1},
    "by name": rates,
    "one left as it is": rates_of_which_one_is_zero,
}


def values():
    return torch.cat([pyro.param(name).detach() for name in ("loc", "scale")])


def steps(optim, num_steps):
    svi = SVI(model, guide, optim, Trace_ELBO())
    for _ in range(num_steps):
        svi.step(X)
    return values()


@pytest.mark.parametrize("name", OPTIONS)
def test_steps_of_pyros_adam(name, float64):
    expected = steps(pyro.optim.Adam(OPTIONS[name]), 20)
    pyro.clear_param_store()
    assert torch.allclose(steps(pv.FusedAdam(OPTIONS[name]), 20), expected, rtol=1e-6)


def test_a_schedule(float64):
    theirs = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": 0.5})
    ours = pv.FusedAdam({"lr": 0.01}, lr_scheduler=functools.partial(ExponentialLR, gamma=0.5))
    found = []
    for optim in (theirs, ours):
        pyro.clear_param_store()
        for _ in range(3):
            steps(optim, 5)
            optim.step()
        found.append(values())
    assert torch.allclose(*found, rtol=1e-6)
    pyro.clear_param_store()
    assert not torch.allclose(steps(pv.FusedAdam({"lr": 0.01}), 15), found[0], rtol=1e-3)


@pytest.mark.parametrize("by_file", [False, True])
@pytest.mark.parametrize(("first", "second"), [(pv.FusedAdam,) * 2, (pyro.optim.Adam, pv.FusedAdam)])
def test_it_goes_on_from_a_state(first, second, by_file, tmp_path, float64):
    expected = steps(first({"lr": 0.01}), 20)
    pyro.clear_param_store()
    before = first({"lr": 0.01})
    steps(before, 12)
    after = second({"lr": 0.5})  # the rate is part of the state
    if by_file:
        before.save(tmp_path / "optim.pt")
        after.load(tmp_path / "optim.pt")
    else:
        after.set_state(before.get_state())
    assert torch.allclose(steps(after, 8), expected, rtol=1e-6)


def test_its_state_is_read_by_pyros_adam(float64):
    expected = steps(pv.FusedAdam({"lr": 0.01}), 20)
    pyro.clear_param_store()
    before, after = pv.FusedAdam({"lr": 0.01}), pyro.optim.Adam({"lr": 0.5})
    steps(before, 12)
    after.set_state(before.get_state())
    assert torch.allclose(steps(after, 8), expected, rtol=1e-6)


def test_a_state_is_set_at_once_for_parameters_in_training(float64):
    optim = pv.FusedAdam({"lr": 0.01})
    steps(optim, 5)
    state = optim.get_state()
    params = [pyro.param(name).unconstrained() for name in ("loc", "scale")]
    start = [param.detach().clone() for param in params]
    expected = steps(optim, 5)
    with torch.no_grad():
        for param, value in zip(params, start, strict=True):
            param.copy_(value)
    optim.set_state(state)
    assert torch.allclose(steps(optim, 5), expected, rtol=1e-12)


def test_only_the_parameters_of_the_step_move():
    optim = pv.FusedAdam({"lr": 0.1})
    params = [pyro.param(name, torch.zeros(2)).unconstrained() for name in "ab"]
    for param in params:
        param.grad = torch.ones(2)
    optim(params)
    params[0].grad, params[1].grad = torch.ones(2), torch.ones(2)
    before = params[1].detach().clone()
    optim([params[0]])
    assert torch.equal(params[1], before) and torch.equal(params[1].grad, torch.ones(2))


def test_options_of_some_are_not_those_of_others():
    optim = pv.FusedAdam(lambda name: {"lr": 0.1, "weight_decay": 0.5} if name == "a" else {"lr": 0.1})
    params = [pyro.param(name, torch.ones(1)).unconstrained() for name in "ab"]
    for param in params:
        param.grad = torch.zeros(1)
    optim(params)
    assert params[0] < 0.95 and params[1] == 1.0


def test_a_parameter_without_gradient_stays():
    optim = pv.FusedAdam({"lr": 0.1})
    param = pyro.param("a", torch.zeros(2)).unconstrained()
    optim([param])
    assert torch.equal(param, torch.zeros(2))


@pytest.mark.parametrize(
    ("optim_args", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr, the learning rate: expected a finite number above 0; got -1.0"),
        ({"lr": "fast"}, TypeError, "lr, the learning rate: expected a positive number"),
        ({"lr": 1e-3, "amsgrad": True}, TypeError, "optim_args: expected a dictionary of .*; got .*amsgrad"),
        (1e-3, TypeError, "optim_args: expected a dictionary of .*; got 0.001"),
        ({"learning_rate": 1e-3}, TypeError, "which has 'learning_rate'; the learning rate is called lr"),
        (
            {"lr": 1e-3, "clip_norm": 10.0},
            TypeError,
            "which has 'clip_norm'; the norm of the gradient is clipped by FusedAdam.*clip_grad_norm",
        ),
        ({"clip_grad_norm": 0.0}, ValueError, "optim_args: clip_grad_norm: expected a finite number above 0; got 0.0"),
        ({"clip_grad_norm": "ten"}, TypeError, "optim_args: clip_grad_norm: expected a positive number"),
        ({"betas": (1.2, 0.9)}, ValueError, r"optim_args: expected values that .*Adam takes; got .*Invalid beta.*1\.2"),
        ({"betas": 0.9}, ValueError, "optim_args: expected values that torch.optim.Adam takes; got"),
        ({"weight_decay": -1.0}, ValueError, "optim_args: expected values .*Invalid weight_decay value: -1.0"),
        ({"eps": "small"}, ValueError, "optim_args: expected values that torch.optim.Adam takes; got"),
    ],
)
def test_bad_options(optim_args, error, message):
    with pytest.raises(error, match=message):
        pv.FusedAdam(optim_args)


@pytest.mark.parametrize(
    ("lr_scheduler", "message"),
    [
        (
            {"clip_norm": 10.0},
            r"got {'clip_norm': 10.0}; the norm of the gradient is clipped by FusedAdam.*pyro.optim.ClippedAdam",
        ),
        (1e-3, "got 0.001; pass functools.partial"),
        (lambda module, name: {"clip_norm": 10.0}, "got an error from it, .*missing 1 required positional argument"),
        (lambda optimizer: {"clip_norm": 10.0}, "got {'clip_norm': 10.0} from it; pass functools.partial"),
        (torch.optim.lr_scheduler.StepLR, "got an error from it, .*missing 1 .*'step_size'; pass functools.partial"),
        (
            pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": 0.5}),
            "got <pyro.optim.lr_scheduler.PyroLRScheduler.*; pass functools.partial",
        ),
    ],
)
def test_what_is_no_schedule_is_refused_at_once(lr_scheduler, message):
    with pytest.raises(TypeError, match=f"lr_scheduler: expected a function from a torch optimizer .*; {message}"):
        pv.FusedAdam({"lr": 1e-3}, lr_scheduler)


def test_gradients_are_clipped_by_pyros_adam_beside_a_compiled_objective(float64, interpreted):
    """What the docstring says of them."""
    clip_args, ends = {"clip_norm": 0.1, "clip_value": 0.05}, []
    for elbo in (Trace_ELBO(), pv.objectives.CompiledTrace_ELBO()):
        pyro.clear_param_store()
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}, clip_args), elbo)
        for _ in range(5):
            svi.step(X)
        ends.append(values())
    assert interpreted and torch.allclose(*ends, rtol=1e-6)


def clipped_by_torch(start, gradients, largest):
    """Parameters after steps of torch's Adam, each after `torch.nn.utils.clip_grad_norm_`."""
    params = [torch.nn.Parameter(value.clone()) for value in start]
    adam = torch.optim.Adam(params, lr=0.01)
    for step in gradients:
        for param, gradient in zip(params, step, strict=True):
            param.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(params, largest)
        adam.step()
    return torch.cat([param.detach().flatten() for param in params])


@pytest.mark.parametrize("is_set_later", [False, True])
@pytest.mark.parametrize("is_recorded", [False, True])
def test_clipping_is_torchs(is_recorded, is_set_later, float64):
    """Steps with a gradient that is longer than the limit, and steps with a shorter one. The twin clips nothing."""
    start, sizes = [torch.randn(3, 4), torch.randn(5)], [0.1, 20.0, 0.3, 7.0, 0.01]
    gradients = [[size * torch.randn_like(value) for value in start] for size in sizes]
    lengths = [torch.cat([gradient.flatten() for gradient in step]).norm() for step in gradients]
    assert min(lengths) < 2.0 < max(lengths)

    def ends(limit):
        pyro.clear_param_store()
        options = {"lr": 0.01} if is_set_later else {"lr": 0.01, "clip_grad_norm": limit}
        optim = pv.FusedAdam((lambda name: options) if is_set_later else options)
        optim.clip_grad_norm = limit
        params = [pyro.param(f"p{i}", value.clone()).unconstrained() for i, value in enumerate(start)]
        for number, step in enumerate(gradients):
            if is_recorded and number:
                optim.prepare()
                with torch.no_grad():
                    optim.update(params, [gradient.clone() for gradient in step])
                continue
            for param, gradient in zip(params, step, strict=True):
                param.grad = gradient.clone()
            optim(params)
        return torch.cat([param.detach().flatten() for param in params])

    expected = clipped_by_torch(start, gradients, 2.0)
    assert torch.allclose(ends(2.0), expected, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(ends(None), expected, rtol=1e-3)


def test_a_clipped_step_is_one_graph(float64, interpreted):
    """Another limit needs another graph; the gradient for the step between is a third."""
    ends = []
    for kind, elbo in ((SVI, Trace_ELBO()), (pv.SVI, pv.objectives.CompiledTrace_ELBO())):
        pyro.clear_param_store()
        optim = pv.FusedAdam({"lr": 0.01, "clip_grad_norm": 0.5})
        svi = kind(model, guide, optim, elbo)
        for step in range(10):
            if step == 5:
                optim.clip_grad_norm = 0.05
            svi.step(X)
        ends.append(values())
    assert len(interpreted) == 3 and torch.allclose(*ends, rtol=1e-9)


def test_one_parameter_alone_is_not_clipped():
    with pytest.raises(TypeError, match="which has 'clip_grad_norm'; .*set the optimizer's attribute clip_grad_norm"):
        steps(pv.FusedAdam(lambda name: {"clip_grad_norm": 1.0}), 1)


def test_bad_options_by_name():
    with pytest.raises(TypeError, match="optim_args: expected a dictionary"):
        steps(pv.FusedAdam(lambda name: {"momentum": 0.9}), 1)


@pytest.mark.parametrize("order", [("single", "double"), ("double", "single")])
def test_parameters_of_two_precisions_in_one_recorded_step(order):
    """Each is updated in its own precision, whichever comes first."""
    dtypes = {"single": torch.float32, "double": torch.float64}
    found = []
    for is_recorded in (False, True):
        pyro.clear_param_store()
        params = [pyro.param(name, torch.ones(3, dtype=dtypes[name])).unconstrained() for name in order]
        gradients = [torch.linspace(0.1, 0.7, 3, dtype=param.dtype) for param in params]
        optim = pv.FusedAdam({"lr": 0.01})
        for step in range(3):
            if is_recorded and step:
                optim.prepare()
                with torch.no_grad():
                    optim.update(params, gradients)
                continue
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = gradient.clone()
            optim(params)
        found.append(pyro.param("double").detach().clone())
    assert torch.allclose(*found, rtol=1e-13, atol=0)


@pytest.mark.parametrize("changed", ["the parameter", "the gradient", "a loaded state"])
def test_layouts_in_memory_do_not_matter(changed, float64):
    """torch's fused step takes gradients and moments for laid out as the parameter is."""
    start, gradients = torch.randn(3, 4, 5, 5), torch.randn(6, 3, 4, 5, 5)
    ends = []
    for make, layout in ((pyro.optim.Adam, torch.contiguous_format), (pv.FusedAdam, torch.channels_last)):
        pyro.clear_param_store()
        param, optim = pyro.param("p", start.clone()).unconstrained(), make({"lr": 0.1})
        for i, gradient in enumerate(gradients):
            if i == 3 and changed == "the parameter":
                param.data = param.data.contiguous(memory_format=layout)
            if i == 3 and changed == "a loaded state":
                state = optim.get_state()
                moments = state["p"]["state"][0]
                for name in ("exp_avg", "exp_avg_sq"):
                    moments[name] = moments[name].contiguous(memory_format=layout)
                optim.set_state(state)
            param.grad = gradient.contiguous(
                memory_format=layout if changed == "the gradient" else torch.contiguous_format
            )
            optim({param})
        ends.append(param.detach())
    assert torch.allclose(*ends)


@pytest.mark.parametrize("content", [b"", b"no state", b"PK\x03\x04 and no more"])
def test_files_without_a_state_are_refused(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(ValueError, match="filename: expected a state that save wrote; got '.*state.pt'"):
        pv.FusedAdam({"lr": 0.1}).load(tmp_path / "state.pt")
