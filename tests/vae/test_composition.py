"""A VAE inside other programs: the densities are those of the formula, and what would train wrongly is refused."""

import contextlib
import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from compositions import COMPOSITIONS, LATENT, WIDTH, log_joint_of, vae_of
from programs import binary
from pyro import poutine
from pyro.contrib.autoname import name_count, scope
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal, AutoNormalMessenger
from pyro.nn import PyroModule
from torch import nn

import pyro_vae as pv


@pytest.fixture(params=[False, True], ids=["shared params", "local params"])
def module_local_params(request):
    with pyro.settings.context(module_local_params=request.param):
        yield


def traces(case, *args):
    guide = poutine.trace(case.guide).get_trace(*args)
    return guide, poutine.trace(poutine.replay(case.model, trace=guide)).get_trace(*args)


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_density_by_hand(name, float64):
    case = COMPOSITIONS[name]()
    for args in case.calls:
        guide, model = traces(case, *args)
        latents = {key: site["value"] for key, site in guide.nodes.items() if site["type"] == "sample"}
        assert torch.isclose(model.log_prob_sum(), case.log_joint(latents, *args), rtol=1e-10)


@pytest.mark.usefixtures("module_local_params")
@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_svi_trains_every_parameter(name, validation):
    if pyro.settings.get("module_local_params") and name == "a Bayesian last layer":
        pytest.skip("SVI.step fails in Pyro itself: a PyroModule with local parameters empties the store for a moment")
    case = COMPOSITIONS[name]()
    elbo = Trace_ELBO(**case.options)
    with pyro.validation_enabled(validation):
        pv.check_program(case.model, case.guide, *case.calls[0])
        before = [parameter.detach().clone() for module in case.modules for parameter in module.parameters()]
        loss = SVI(case.model, case.guide, pyro.optim.Adam({"lr": 0.01}), elbo).step(*case.calls[0])
    assert torch.isfinite(torch.tensor(loss))
    after = [parameter for module in case.modules for parameter in module.parameters()]
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.usefixtures("module_local_params")
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_check_program_leaves_no_trace(name):
    case = COMPOSITIONS[name]()
    pyro.param("mine", torch.tensor(1.0))
    state = torch.get_rng_state()
    pv.check_program(case.model, case.guide, *case.calls[0])
    assert torch.equal(torch.get_rng_state(), state) and set(pyro.get_param_store()) == {"mine"}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_torch_optimizers_train_every_parameter(name):
    """Of an ELBO module, whose parameters are those of the modules in it."""
    case = COMPOSITIONS[name]()
    parameters = [parameter for module in case.modules for parameter in module.parameters()]
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    Trace_ELBO(**case.options).differentiable_loss(case.model, case.guide, *case.calls[0]).backward()
    optimizer.step()
    assert not any(torch.equal(one, other) for one, other in zip(before, parameters, strict=True))


def reaching(case, *args):
    """The gradient that each module's parameters get from one draw, with its noise fixed."""
    parameters = [list(module.parameters()) for module in case.modules]
    torch.manual_seed(5)
    loss = Trace_ELBO().differentiable_loss(case.model, case.guide, *args)
    gradients = torch.autograd.grad(loss, [p for own in parameters for p in own])
    return torch.cat([gradient.flatten() for gradient in gradients[: len(parameters[0])]]), torch.cat(
        [gradient.flatten() for gradient in gradients[len(parameters[0]) :]]
    )


def test_gradients_reach_the_vae_whose_data_they_come_from(float64):
    case = COMPOSITIONS["two in one plate"]()
    x, y = case.calls[0]
    left, right = reaching(case, x, y)
    left_of_others, same_right = reaching(case, 1 - x, y)
    assert torch.equal(right, same_right) and not torch.equal(left, left_of_others)
    assert left.abs().sum() > 0 and right.abs().sum() > 0


def test_loading_one_leaves_the_other():
    case, other = COMPOSITIONS["two in one plate"](), COMPOSITIONS["two in one plate"]()
    left, right = case.modules
    svi = SVI(case.model, case.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(*case.calls[0])
    kept = {name: value.clone() for name, value in right.state_dict().items()}
    left.load_state_dict(other.modules[0].state_dict())
    assert all(torch.equal(value, kept[name]) for name, value in right.state_dict().items())
    before = [parameter.detach().clone() for parameter in left.parameters()]
    svi.step(*case.calls[0])  # and the loaded one goes on training, under its name in the store
    assert not any(torch.equal(*pair) for pair in zip(before, left.parameters(), strict=True))
    store = pyro.get_param_store()
    stored = {id(store[name].unconstrained()) for name in store}
    assert stored == {id(parameter) for vae in case.modules for parameter in vae.parameters()}


def latent():
    return torch.linspace(-1, 1, 6 * LATENT).reshape(6, LATENT)


def trace_of(program, *args):
    trace = poutine.trace(program).get_trace(*args)
    trace.compute_log_prob()
    return trace


def under_scope(vae, x):
    trace = trace_of(scope(vae.model, prefix="outer"), x)
    assert {"outer/z", "outer/x"} <= set(trace.nodes) and not {"z", "x"} & set(trace.nodes)


def under_scale(vae, x):
    trace = trace_of(poutine.scale(poutine.condition(vae.model, data={"z": latent()}), scale=0.5), x)
    assert torch.isclose(trace.log_prob_sum(), 0.5 * log_joint_of(vae, latent(), x).sum())


def under_mask(vae, x):
    mask = torch.arange(6) < 2
    trace = trace_of(poutine.mask(poutine.condition(vae.model, data={"z": latent()}), mask=mask), x)
    assert torch.isclose(trace.log_prob_sum(), log_joint_of(vae, latent(), x)[:2].sum())


def under_condition(vae, x):
    trace = trace_of(poutine.condition(vae.model, data={"z": latent()}), x)
    assert trace.nodes["z"]["is_observed"]
    assert torch.isclose(trace.log_prob_sum(), log_joint_of(vae, latent(), x).sum())


def under_do(vae, x):
    """z is set from outside: what follows sees it, and its own density counts no more."""
    trace = trace_of(poutine.do(vae.model, data={"z": latent()}), x)
    assert torch.isclose(trace.nodes["x"]["log_prob_sum"], vae.likelihood(latent()).log_prob(x).sum())
    assert not torch.equal(trace.nodes["z"]["value"], latent())


def under_block(vae, x):
    trace = trace_of(poutine.block(vae.model, hide=["x"]), x)
    assert "z" in trace.nodes and "x" not in trace.nodes


def under_replay(vae, x):
    guide = trace_of(vae.guide, x)
    trace = trace_of(poutine.replay(vae.model, trace=guide), x)
    assert torch.equal(trace.nodes["z"]["value"], guide.nodes["z"]["value"])
    assert torch.isclose(trace.log_prob_sum(), log_joint_of(vae, guide.nodes["z"]["value"], x).sum())


def halved(vae):
    """Other values for the parameters of the model, by the names that Pyro's handlers know."""
    return {name: value.detach() / 2 for name, value in vae.model.named_parameters()}


def has_parameters(trace, vae, values, x):
    """Whether p(x|z) is computed with these."""
    own = {name.removeprefix("likelihood."): value for name, value in values.items()}
    p_x = torch.func.functional_call(vae.likelihood, own, (trace.nodes["z"]["value"],))
    assert torch.isclose(trace.nodes["x"]["log_prob_sum"], p_x.log_prob(x).sum())


def under_substitute(vae, x):
    values = halved(vae)
    has_parameters(trace_of(poutine.substitute(vae.model, data=values), x), vae, values, x)


def under_lift(vae, x):
    """Parameters become draws from a prior, and the network computes with them."""
    trace = trace_of(lambda: under_lift_with_priors(vae, x))
    drawn = {name: trace.nodes[f"vae.model$$${name}"] for name, _ in vae.model.named_parameters()}
    assert all(site["type"] == "sample" for site in drawn.values())
    has_parameters(trace, vae, {name: site["value"] for name, site in drawn.items()}, x)


HANDLERS = {
    fn.__name__.removeprefix("under_"): fn
    for fn in (
        *(under_scope, under_scale, under_mask, under_condition, under_do, under_block, under_replay),
        *(under_substitute, under_lift),
    )
}


@pytest.mark.filterwarnings("ignore:pyro.module data did not find params")
@pytest.mark.parametrize("handler", HANDLERS)
def test_handlers(handler, float64):
    HANDLERS[handler](vae_of(), binary(6))


def test_predictive_of_a_program():
    case = COMPOSITIONS["two in one plate"]()
    x, y = case.calls[0]
    draws = Predictive(case.model, guide=case.guide, num_samples=3)(x, y)
    assert {name: tuple(draws[name].shape) for name in ("left/z", "right/z")} == {
        "left/z": (3, 6, LATENT),
        "right/z": (3, 6, LATENT),
    }
    anew = Predictive(poutine.uncondition(case.model), guide=case.guide, num_samples=3)(x, y)
    assert anew["left/x"].shape == anew["right/x"].shape == (3, 6, WIDTH)


def test_a_copy_gets_a_name_of_its_own():
    vae = vae_of(name="first")
    x = binary(6)
    vae.model(x)
    twin = copy.deepcopy(vae)
    with pytest.raises(ValueError, match=r"name: expected a name that is free.*'first'.*vae.name = "):
        twin.model(x)
    twin.name = "second"
    assert {"second/z", "second/x"} <= set(trace_of(twin.model, x).nodes)
    assert vae.name == "first" and "first/z" in trace_of(vae.guide, x).nodes


def test_a_frozen_part_stays_as_it_is_and_gives_no_warning(recwarn):
    case = COMPOSITIONS["two in one plate"]()
    left, right = case.modules
    left.requires_grad_(False)
    before = [parameter.clone() for parameter in left.parameters()]
    svi = SVI(case.model, case.guide, pv.FusedAdam({"lr": 0.01}), Trace_ELBO())
    pv.check_program(case.model, case.guide, *case.calls[0])
    moved = [parameter.detach().clone() for parameter in right.parameters()]
    svi.step(*case.calls[0])
    assert all(torch.equal(*pair) for pair in zip(before, left.parameters(), strict=True))
    assert not any(torch.equal(*pair) for pair in zip(moved, right.parameters(), strict=True))
    assert not [warning for warning in recwarn if "requires_grad" in str(warning.message)]


@pytest.mark.parametrize("size", [(), (3,)], ids=["no groups", "groups"])
def test_without_data_it_generates(size):
    """Under plates of all kinds, and from a latent that is given."""
    vae = vae_of(name="mine")
    with pyro.plate_stack("outer", size, rightmost_dim=-2), pyro.plate("data", 5, dim=-1):
        trace = trace_of(vae.model)
    assert trace.nodes["mine/x"]["value"].shape == (*size, 5, WIDTH)
    assert vae.sample(4).shape == (4, WIDTH)
    assert trace_of(lambda: vae.model(z=torch.zeros(7, LATENT))).nodes["mine/x"]["value"].shape == (7, WIDTH)


def test_context_of_one_row_is_shared():
    vae = vae_of(context=3)
    one, x = torch.eye(3)[:1], binary(6).float()
    trace = trace_of(poutine.condition(vae.model, data={"z": latent()}), x, one)
    expected = log_joint_of(vae, latent(), x, one.expand(6, 3)).sum()
    assert torch.isclose(trace.log_prob_sum(), expected)
    assert vae.sample(4, one).shape == (4, WIDTH)
    assert vae.reconstruct(x, one).shape == (6, WIDTH)


def test_the_label_is_enumerated(float64):
    """The loss of TraceEnum_ELBO is the sum over labels, each by hand with the draw of z that it was given."""
    vae = vae_of(context=3)
    x, shares = binary(6), torch.tensor([0.2, 0.3, 0.5])

    def model(x):
        with pyro.plate("data", len(x)):
            vae.model(x, pyro.sample("y", dist.OneHotCategorical(shares)))

    def guide(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(3) / 3), infer={"enumerate": "parallel"})
            vae.guide(x, y)

    kept = poutine.trace(poutine.enum(guide, first_available_dim=-2))
    torch.manual_seed(0)
    drawn = kept.get_trace(x).nodes["z"]["value"]
    assert drawn.shape == (3, 6, LATENT)
    terms = []
    for y, z in zip(torch.eye(3), drawn, strict=True):
        q_z = vae.encode(x, y.expand(6, 3))
        log_joint = log_joint_of(vae, z, x, y.expand(6, 3)) + (shares @ y).log()
        terms.append((log_joint - q_z.log_prob(z) + torch.tensor(3.0).log()) / 3)
    torch.manual_seed(0)
    loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x)
    assert loss == pytest.approx(-torch.stack(terms).sum().item(), rel=1e-6)


X = binary(6).float()


def calls_in(size, dim, call):
    def run():
        with pyro.plate("outer", size, dim=dim):
            return call()

    return run


def of_two(first, second):
    def program(role):
        def run(x):
            getattr(first, role)(x)
            getattr(second, role)(x)

        return run

    return program("model"), program("guide")


def checked(model, guide, *args, **kwargs):
    return lambda: pv.check_program(model, guide, *args, **kwargs)


def other_plates():
    vae = vae_of()

    def model(x):
        with pyro.plate("outer", 2, dim=-2):
            vae.model(x)

    return checked(model, vae.guide, X)


def other_rows():
    vae = vae_of()

    def model(x):
        with pyro.plate("all", 20, subsample_size=6):
            vae.model(x)

    def guide(x):
        with pyro.plate("some", 20, subsample_size=6):
            vae.guide(x)

    return checked(model, guide, X)


def stray():
    """Two networks of the user's own under one name."""
    vae, networks = vae_of(), [nn.Linear(LATENT, WIDTH) for _ in range(2)]

    def model_of(network):
        def model(x):
            pyro.module("network", network)
            with pyro.plate("data", len(x)):
                z = vae.model(likelihood=False)
                pyro.sample("x", dist.Bernoulli(logits=network(z)).to_event(1), obs=x)

        return model

    trace_of(model_of(networks[0]), X)
    return checked(model_of(networks[1]), vae.guide, X)


def unregistered():
    vae, network = vae_of(), nn.Linear(LATENT, WIDTH)

    def model(x):
        with pyro.plate("data", len(x)):
            z = vae.model(likelihood=False)
            pyro.sample("x", dist.Bernoulli(logits=network(z)).to_event(1), obs=x)

    return checked(model, vae.guide, X)


def frozen():
    return vae_of().requires_grad_(False)


def step_of(vae, optim):
    return lambda: SVI(vae.model, vae.guide, optim, Trace_ELBO()).step(X)


def step_with(model, guide):
    def model_of_one_plate(x):
        with pyro.plate("data", len(x)):
            model(x)

    def guide_of_one_plate(x):
        with pyro.plate("data", len(x)):
            guide(x)

    return lambda: SVI(model_of_one_plate, guide_of_one_plate, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(X)


class Nameless(PyroModule):
    """A likelihood whose parameters lie in Pyro's store under names that are not the VAE's."""

    def __init__(self):
        super().__init__()
        self.network = nn.Linear(LATENT, WIDTH)

    def forward(self, z):
        return dist.Bernoulli(logits=self.network(z)).to_event(1)


def without_its_latent(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def without_a_plate(x):
    loc = pyro.param("loc", torch.zeros(()))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(loc + z.sum(-1), 1.0), obs=x[:, 0])


def under_lift_with_priors(vae, x):
    priors = {name: dist.Normal(value, 0.1).to_event(value.ndim) for name, value in halved(vae).items()}
    return poutine.lift(vae.model, prior=priors)(x)


REFUSED = {
    "two without names": (
        lambda: lambda: trace_of(of_two(vae_of(), vae_of())[0], X),
        r"name: expected names that are free in this program; got 'data' for a second time; give each VAE a name",
    ),
    "two without names in one plate": (
        lambda: lambda: trace_of(calls_in(6, -1, lambda: of_two(vae_of(), vae_of())[0](X))),
        r"name: expected names that are free in this program; got 'z' for a second time",
    ),
    "two of one name": (
        lambda: lambda: of_two(vae_of(name="a"), vae_of(name="a"))[0](X),
        r"name: expected a name that is free in Pyro's parameter store; got 'a'",
    ),
    "a guide that misses a site": (
        lambda: checked(without_its_latent, lambda x: None, X),
        r"guide: expected it to draw every latent site of the model; got no site 'z'",
    ),
    "a guide that has it under another name": (
        lambda: checked(without_its_latent, vae_of(name="a").guide, X),
        r"guide: expected it to draw every.*got no site 'z', but 'a/z', which the model has not; add it to the guide under",
    ),
    "a plate of another name": (
        lambda: checked((v := vae_of(name="a")).model, lambda x: calls_in(6, -1, lambda: v.guide(x))(), X),
        r"guide: expected site 'a/z' in the plates.*'a/data' of size 6 at dim=-1; got 'outer' of size 6",
    ),
    "a guide that misses a site, at the first step": (
        lambda: step_with(of_two(a := vae_of(name="a"), vae_of(name="b"))[0], a.guide),
        r"guide: expected it to draw site 'b/z', as the model does; got none; call the VAE's guide there",
    ),
    "a plate of another name, at the first step": (
        lambda: (
            lambda: SVI(
                (v := vae_of(name="a")).model,
                lambda x: calls_in(6, -1, lambda: v.guide(x))(),
                pyro.optim.Adam({"lr": 0.01}),
                Trace_ELBO(),
            ).step(X)
        ),
        r"guide: expected site 'a/z' in the plates.*'a/data' of size 6 at dim=-1; got 'outer' of size 6",
    ),
    "a guide without the scope, at the first step": (
        lambda: step_with(scope((v := vae_of()).model, prefix="outer"), v.guide),
        r"guide: expected it to draw site 'outer/z'",
    ),
    "a site that the model does not have": (
        lambda: checked((a := vae_of()).model, of_two(a, vae_of(name="b"))[1], X),
        r"guide: expected latent sites of the model alone; got site 'b/z'",
    ),
    "other plates": (
        other_plates,
        r"guide: expected site 'z' in the plates.*'outer' of size 2 at dim=-2; got 'data' of size 6",
    ),
    "other rows": (other_rows, r"guide: expected site 'z' in the plates.*'all' of size 6 at dim=-1; got 'some' of"),
    "another scale": (
        lambda: lambda: pv.check_program(lambda x: vae_of().model(x, num_data=60), vae_of().guide, X),
        r"guide: expected site 'z' with the scale that it has in the model, 10; got 1",
    ),
    "a network under a name that is taken": (stray, r"got one of shape \(12, 2\), and another.*'network\$\$\$weight'"),
    "a network without a name": (unregistered, r"got one of shape \(12, 2\), and it is not there; register its module"),
    "all is frozen": (lambda: checked((v := frozen()).model, v.guide, X), r"expected a parameter to train; got none"),
    "frozen, FusedAdam": (
        lambda: step_of(frozen(), pv.FusedAdam({"lr": 0.01})),
        r"params: expected parameters to train; got none",
    ),
    "frozen, fit": (
        lambda: lambda: pv.fit(frozen(), X, num_epochs=1),
        r"program: expected parameters to train; got none",
    ),
    "context, fit": (
        lambda: lambda: pv.fit(vae_of(context=3), X),
        r"data: expected x and 1 further.*\(\(3,\),\).*got 0",
    ),
    "rows that are not those of the plate": (
        lambda: calls_in(4, -1, lambda: vae_of().model(X)),
        r"x: expected \(4, 12\).*4 at dim=-1.*got \(6, 12\)",
    ),
    "groups without a plate": (
        lambda: lambda: vae_of().model(X.reshape(2, 3, 12)),
        r"x: expected \(N, 12\).*\(none\); got \(2, 3, 12\).*pyro.plate\(.groups., 2, dim=-2\)",
    ),
    "groups of another size": (
        lambda: calls_in(5, -2, lambda: vae_of().guide(X.reshape(2, 3, 12))),
        r"x: expected \(N, 12\).*5 at dim=-2.*got \(2, 3, 12\)",
    ),
    "two ways to read a shape": (
        lambda: calls_in(6, -2, lambda: vae_of().guide(X.reshape(6, 1, 3, 4))),
        r"x: expected a shape that can be read in one way; got \(6, 1, 3, 4\), whose.*are the first 1 or 2",
    ),
    "num_data in a plate": (
        lambda: calls_in(6, -1, lambda: vae_of().model(X, num_data=60)),
        r"num_data: expected None inside of a plate at dim=-1.*got 60",
    ),
    "subsample_size in a plate": (
        lambda: calls_in(6, -1, lambda: vae_of().guide(X, subsample_size=3)),
        r"subsample_size: expected None inside of a plate at dim=-1.*got 3",
    ),
    "no label": (lambda: lambda: vae_of(context=3).model(X), r"context: expected 1 arguments after x.*got 0"),
    "a label too many": (
        lambda: lambda: vae_of().guide(X, torch.zeros(6, 3)),
        r"context: expected 0 arguments after x.*got 1",
    ),
    "labels of another width": (
        lambda: lambda: vae_of(context=3).model(X, torch.zeros(6, 4)),
        r"context\[0\]: expected shape \(..., N, 3\); got \(6, 4\)",
    ),
    "fewer labels than data": (
        lambda: lambda: vae_of(context=3).model(X, torch.zeros(4, 3)),
        r"x: expected as many rows in each argument; got: x has 6, context\[0\] has 4",
    ),
    "labels that are no numbers": (
        lambda: lambda: vae_of(context=3).model(X, torch.full((6, 3), torch.nan)),
        r"context\[0\]: expected finite numbers",
    ),
    "a latent of another width": (
        lambda: lambda: vae_of().model(X, z=torch.zeros(6, 3)),
        r"z: expected shape \(..., N, 2\); got \(6, 3\)",
    ),
    "another number of draws than labels": (
        lambda: lambda: vae_of(context=3).sample(4, torch.eye(3)),
        r"num_samples: expected 3, one for each row of the context; got 4",
    ),
    "other masks": (
        lambda: checked(poutine.mask((v := vae_of()).model, mask=torch.arange(6) < 2), v.guide, X),
        r"guide: expected site 'z' with the mask.*keeps 4 of 12; got one that keeps 12 of 12",
    ),
    "a dimension without a plate": (
        lambda: checked(without_a_plate, vae_of().guide, X),
        r"invalid log_prob shape",
    ),
    "a nameless PyroModule": (
        lambda: (
            lambda: pv.VAE(
                pv.priors.StandardNormal(LATENT), Nameless(), pv.posteriors.DiagonalNormal(nn.Linear(WIDTH, 4))
            )
        ),
        r"likelihood: expected modules of torch's, or a PyroModule with a name; got Nameless",
    ),
    "lifted inside of a plate": (
        lambda: calls_in(6, -1, lambda: under_lift_with_priors(vae_of(), X)),
        r"expected a value of shape \(7, 2\), the parameter's; got \(6, 7, 2\).*outside of all plates",
    ),
    "fewer latents than data": (
        lambda: lambda: vae_of().model(X, z=torch.zeros(4, 2)),
        r"x: expected as many rows in each argument; got: x has 6, z has 4",
    ),
    "x without a likelihood": (lambda: lambda: vae_of().model(X, likelihood=False), r"likelihood: expected True"),
    "neither z nor x": (
        lambda: lambda: vae_of().model(z=latent(), likelihood=False),
        r"z: expected None where the likelihood is switched off",
    ),
    "a latent and a part of the rows": (
        lambda: lambda: vae_of().model(X, z=latent(), subsample_size=2),
        r"subsample_size: expected None where z is given",
    ),
    "a name with a slash": (lambda: lambda: vae_of(name="a/b"), r"name: expected text without '/'.*got 'a/b'"),
    "a lifted parameter of another shape": (
        lambda: lambda: poutine.lift(vae_of().model, prior=dist.Normal(0.0, 1.0))(X),
        r"expected a value of shape \(7, 2\), the parameter's; got \(\), from a handler such as poutine.lift",
    ),
}


@pytest.mark.filterwarnings("ignore:pyro.module prior did not find params")
@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    make, message = REFUSED[case]
    call = make()
    with pytest.raises((ValueError, TypeError), match=message):
        call()


SHAPES = {
    "one image, with a dimension of one": ((1, 1, WIDTH), {}, (1, WIDTH)),
    "images of one row": ((5, 1, WIDTH), {}, (5, WIDTH)),
    "images in groups": ((3, 5, 3, 4), {"groups": 3}, (3, 5, WIDTH)),
    "images with channels in groups": ((3, 5, 1, 3, 4), {"groups": 3}, (3, 5, WIDTH)),
    "one image for each group": ((3, 1, WIDTH), {"groups": 3}, (3, 1, WIDTH)),
    "as many images as groups": ((3, WIDTH), {"groups": 3}, (3, WIDTH)),
    "images of one row, as many as particles": ((5, 1, WIDTH), {"num_particles_vectorized": 5}, (5, WIDTH)),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_are_read_in_one_way(case):
    shape, outer, expected = SHAPES[case]
    vae, x = vae_of(), torch.ones(shape)
    with contextlib.ExitStack() as plates:
        for i, (name, size) in enumerate(outer.items()):
            plates.enter_context(pyro.plate(name, size, dim=-2 - i))
        trace = trace_of(vae.model, x)
    assert trace.nodes["x"]["value"].shape == expected


def test_any_number_of_draws_is_read_alike():
    """As many particles or draws as data change nothing of how x is read."""
    vae, x = vae_of(), X[:4, None]
    assert torch.isfinite(
        torch.tensor(Trace_ELBO(num_particles=4, vectorize_particles=True).loss(vae.model, vae.guide, x))
    )
    assert Predictive(vae.model, num_samples=4, parallel=True)(x)["z"].shape == (4, 4, LATENT)
    for num_data in (2, 3):
        assert len(pv.importance_sampling(vae.model, vae.guide, x[:num_data], num_samples=num_data)) == num_data


def test_one_latent_for_each_group(float64):
    vae, x, z = vae_of(), binary(18).reshape(3, 6, WIDTH), torch.randn(3, 1, LATENT)

    def model():
        with pyro.plate("groups", 3, dim=-2), pyro.plate("data", 6, dim=-1):
            vae.model(x, z=z)

    expected = vae.likelihood(z.expand(3, 6, LATENT)).log_prob(x).sum()
    assert torch.isclose(trace_of(model).log_prob_sum(), expected)


class KnownErrors(nn.Module):
    """p(x|z, sigma), whose context cannot be zero."""

    def __init__(self):
        super().__init__()
        self.network = nn.Linear(LATENT, WIDTH)

    def forward(self, z, sigma):
        return dist.Normal(self.network(z), sigma).to_event(1)


def test_a_context_that_may_not_be_zero():
    encoder = pv.posteriors.DiagonalNormal(pv.nn.MLP(2 * WIDTH, [4], 2 * LATENT))
    vae = pv.VAE(pv.priors.StandardNormal(LATENT), KnownErrors(), encoder, context_shapes=[(WIDTH,)])
    sigma = torch.rand(6, WIDTH) + 0.1
    assert vae.model(X, sigma).shape == (6, LATENT)


class Shared(nn.Module):
    """A prior or a likelihood about a layer that both have."""

    def __init__(self, layer, adds_z):
        super().__init__()
        self.layer, self.adds_z = layer, adds_z

    def forward(self, *args):
        *z, context = args
        return dist.Normal(self.layer(context) + (z[0] if self.adds_z else 0), 1.0).to_event(1)


def test_values_reach_a_layer_that_two_parts_share(float64):
    layer = nn.Linear(3, LATENT)
    encoder = pv.posteriors.DiagonalNormal(pv.nn.MLP(LATENT + 3, [], 2 * LATENT))
    vae = pv.VAE(Shared(layer, False), Shared(layer, True), encoder, context_shapes=[(3,)])
    x, context, z = torch.randn(6, LATENT), torch.randn(6, 3), torch.randn(6, LATENT)
    values = {name: torch.randn_like(value) for name, value in vae.model.named_parameters()}
    trace = trace_of(poutine.substitute(poutine.condition(vae.model, data={"z": z}), data=values), x, context)
    loc = nn.functional.linear(context, *values.values())
    expected = dist.Normal(loc, 1.0).log_prob(z).sum() + dist.Normal(z + loc, 1.0).log_prob(x).sum()
    assert torch.isclose(trace.log_prob_sum(), expected)


def regression(x):
    weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(weight, 1.0), obs=x)


@pytest.mark.parametrize("automatic", [AutoNormal, AutoNormalMessenger])
def test_check_program_takes_automatic_guides(automatic):
    guide = automatic(regression)
    pv.check_program(regression, guide, torch.randn(5))
    pv.check_program(regression, guide, torch.randn(5, requires_grad=True))


def test_a_guide_may_be_replayed_with_many_draws():
    vae = vae_of()
    with pyro.plate("mine", 5, dim=-2):
        drawn = poutine.trace(vae.guide).get_trace(X)
    assert poutine.trace(poutine.replay(vae.model, trace=drawn)).get_trace(X).nodes["z"]["value"].shape == (
        5,
        6,
        LATENT,
    )


def test_calls_whose_names_are_counted():
    vae = vae_of()

    def twice(role):
        @name_count
        def program(x):
            for rows in (x, x[:4]):
                with pyro.plate("data", len(rows)):
                    getattr(vae, role)(rows)

        return program

    assert SVI(twice("model"), twice("guide"), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(X) > 0


ROWS = torch.arange(6) < 4
COLUMNS = torch.tensor([True, False, True, True, True, True])


def by_poutine(mask):
    def draw(fn):
        with poutine.mask(mask=mask):
            return pyro.sample("z", fn.to_event(1))

    return draw


def inside(mask):
    """As Pyro's deep Markov model has it: the mask is of numbers, and broadcasts."""
    return lambda fn: pyro.sample("z", fn.mask(mask).to_event(1))


def outside(mask):
    return lambda fn: pyro.sample("z", fn.to_event(1).mask(mask))


def at_two_layers(fn):
    return pyro.sample("z", fn.mask(COLUMNS).to_event(1).mask(ROWS))


def jointly(mask):
    """By a guide whose event cannot be taken apart."""

    def draw(fn):
        with poutine.mask(mask=mask):
            return pyro.sample("z", dist.MultivariateNormal(fn.mean, torch.eye(6)))

    return draw


def masked_pair(in_model, in_guide):
    """Six rows of six latents each, so that a mask of the rows is none of the columns."""

    def model(x):
        with pyro.plate("data", 6):
            z = in_model(dist.Normal(torch.zeros(6, 6), 1.0))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(6, 6))
        with pyro.plate("data", 6):
            in_guide(dist.Normal(loc, 1.0))

    return model, guide


SAME_MASKS = {
    "of the distribution, in both": (inside(ROWS[:, None]), inside(ROWS[:, None])),
    "of numbers, in both": (inside(ROWS[:, None] & COLUMNS), inside((ROWS[:, None] & COLUMNS).float())),
    "of the program and of the distribution": (by_poutine(ROWS), inside(ROWS[:, None])),
    "outside of the event and inside": (outside(ROWS), inside(ROWS[:, None].expand(6, 6))),
    "of the program and outside of the event": (by_poutine(ROWS), outside(ROWS)),
    "at two layers": (at_two_layers, inside(ROWS[:, None] & COLUMNS)),
    "of columns": (inside(COLUMNS), inside(COLUMNS.expand(6, 6))),
    "of a joint guide": (inside(ROWS[:, None]), jointly(ROWS)),
    "nothing": (by_poutine(False), inside(torch.zeros(6, 1))),
    "everything": (by_poutine(True), inside(torch.ones(6, 6))),
    "everything, without a mask": (outside(torch.ones(6)), lambda fn: pyro.sample("z", fn.to_event(1))),
}


@pytest.mark.parametrize("case", SAME_MASKS)
def test_masks_that_are_alike(case):
    for pair in (SAME_MASKS[case], SAME_MASKS[case][::-1]):
        pyro.clear_param_store()
        model, guide = masked_pair(*pair)
        pv.check_program(model, guide, torch.zeros(6))


def test_a_mask_that_broadcasts_over_latents():
    """As many rows as latents hide what is not aligned; here they are six and two."""

    def model(x):
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Normal(torch.zeros(6, 2), 1.0).mask(ROWS[:, None]).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide_with(mask):
        def guide(x):
            loc = pyro.param("loc", torch.zeros(6, 2))
            with pyro.plate("data", 6):
                pyro.sample("z", dist.Normal(loc, 1.0).mask(mask).to_event(1))

        return guide

    pv.check_program(model, guide_with(ROWS[:, None].float()), torch.zeros(6))
    with pytest.raises(ValueError, match="keeps 8 of 12; got one that keeps 6 of 12"):
        pv.check_program(model, guide_with(torch.tensor([True, False])), torch.zeros(6))


OTHER_MASKS = {
    "rows for columns": (by_poutine(ROWS), inside(ROWS), "24 of 36; got one that keeps 24 of 36"),
    "other rows": (inside(ROWS[:, None]), inside(~ROWS[:, None]), "24 of 36; got one that keeps 12 of 36"),
    "in the model alone": (inside(ROWS[:, None]), jointly(True), "24 of 36; got one that keeps 36 of 36"),
    "in the guide alone": (outside(torch.ones(6)), outside(ROWS), "36 of 36; got one that keeps 24 of 36"),
    "columns of a joint guide": (inside(COLUMNS), jointly(ROWS), "30 of 36; got one that keeps 24 of 36"),
    "one of two layers": (at_two_layers, outside(ROWS), "20 of 36; got one that keeps 24 of 36"),
}


@pytest.mark.parametrize("case", OTHER_MASKS)
def test_masks_that_are_not(case):
    *pair, found = OTHER_MASKS[case]
    model, guide = masked_pair(*pair)
    with pytest.raises(
        ValueError, match=f"guide: expected site 'z' with the mask .*keeps {found}; put both into the same"
    ):
        pv.check_program(model, guide, torch.zeros(6))


def test_a_mask_of_no_dimensions():
    model, guide = masked_pair(by_poutine(torch.tensor(True)), by_poutine(torch.tensor(True)))
    pv.check_program(model, guide, torch.zeros(6))

    def one(x):
        with poutine.mask(mask=torch.tensor(False)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    pv.check_program(one, one, torch.zeros(6))


def test_a_mask_of_an_outer_plate():
    def program(fn, **kwargs):
        with (
            pyro.plate("groups", 3, dim=-2),
            pyro.plate("data", 6),
            poutine.mask(mask=torch.tensor([[1], [0], [1]]) > 0),
        ):
            z = pyro.sample("z", fn.expand([3, 6, 2]).to_event(1))
            if kwargs:
                pyro.sample("x", dist.Normal(z.sum(-1), 1.0), **kwargs)

    def model(x):
        program(dist.Normal(0.0, 1.0), obs=x)

    pv.check_program(model, lambda x: program(dist.Normal(pyro.param("loc", torch.zeros(())), 1.0)), torch.zeros(6))


def partly_observed(latent, amortized, is_masked):
    """Some of c are observed; a guide for all of them, with weights or scales that rows share or do not."""

    def model(x, c, obs_mask):
        with pyro.plate("data", len(x)):
            value = pyro.sample("c", latent(torch.zeros(len(x), 2)), obs=c, obs_mask=obs_mask)
            pyro.sample("x", dist.Normal(value, 0.5), obs=x)

    def guide(x, c, obs_mask):
        weight = pyro.param("weight", torch.zeros(() if amortized else (len(x), 1)))
        with pyro.plate("data", len(x)), poutine.mask(mask=~obs_mask if is_masked else True):
            pyro.sample("c_unobserved", latent(weight * x[:, None].expand(-1, 2)))

    return model, guide


LATENTS = {
    "continuous": lambda out: dist.Normal(out[..., 0], out[..., 1].exp()),
    "discrete": lambda out: dist.Categorical(logits=out),
}


@pytest.mark.parametrize("amortized", [True, False])
@pytest.mark.parametrize("latent", LATENTS)
def test_what_is_observed_in_part(latent, amortized):
    args = torch.randn(6), torch.zeros(6), ROWS
    pv.check_program(*partly_observed(LATENTS[latent], amortized, is_masked=True), *args)
    with pytest.raises(
        ValueError, match=r"'c_unobserved' with the mask.*guide's site into poutine.mask\(mask=~obs_mask\)"
    ):
        pv.check_program(*partly_observed(LATENTS[latent], amortized, is_masked=False), *args)


def test_an_automatic_guide_of_what_is_observed_in_part():
    model, _ = partly_observed(LATENTS["continuous"], True, True)
    args = torch.randn(6), torch.zeros(6), ROWS
    pv.check_program(model, AutoNormalMessenger(model), *args)
    with pytest.raises(ValueError, match="as AutoNormalMessenger does by itself"):
        pv.check_program(model, AutoNormal(model), *args)


@pytest.mark.parametrize("latent", LATENTS)
def test_why_a_guide_without_the_mask_is_refused(latent):
    """Where c is observed nothing but its entropy trains the guide, and with it the weights that all rows share."""
    found = []
    x = torch.cat([torch.full((30,), 1.0), torch.full((10,), -1.0)]).repeat(2)
    obs_mask = torch.arange(len(x)) % 4 > 0
    infer, elbo = {}, Trace_ELBO()
    if latent == "discrete":
        infer, elbo = {"enumerate": "parallel"}, TraceEnum_ELBO(max_plate_nesting=1)
    for is_masked in (True, False):
        pyro.clear_param_store()
        torch.manual_seed(0)

        def model(x, c, obs_mask):
            with pyro.plate("data", len(x)):
                value = pyro.sample("c", LATENTS[latent](torch.zeros(len(x), 2)), obs=c, obs_mask=obs_mask)
                pyro.sample("x", dist.Normal(2.0 * value - 1.0, 0.5), obs=x)

        def guide(x, c, obs_mask, is_masked=is_masked):
            out = pyro.param("bias", torch.zeros(2)) + x[:, None] * pyro.param("weight", torch.zeros(2))
            with pyro.plate("data", len(x)), poutine.mask(mask=~obs_mask if is_masked else True):
                pyro.sample("c_unobserved", LATENTS[latent](out), infer=infer)

        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), elbo)
        for _ in range(150):
            svi.step(x, (x > 0).to(x.dtype), obs_mask)
        out = pyro.param("bias") + pyro.param("weight")
        found.append(LATENTS[latent](out).entropy().item())
    # p(c|x=1): with odds of exp(8), 0.003 nats; or with a standard deviation of 1 / sqrt(1 + 16), 0.003 nats as well.
    assert found[0] == pytest.approx(0.003, abs=0.15) and found[1] > 0.2
