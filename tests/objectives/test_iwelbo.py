"""Bounds of several particles: their values, and their gradients."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv

pytestmark = [pytest.mark.usefixtures("float64", "interpreted")]

NUM_PARTICLES = 8


@pytest.fixture(scope="module")
def trained():
    """A VAE whose guide is nearly exact, with six data: there gradients along the path have little noise."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(1),
        pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 4), scale=0.7),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(4, [], 2)),
    )
    x = torch.randn(6, 1) @ torch.randn(1, 4) + 0.3 * torch.randn(6, 4)
    pv.fit(vae, x, num_epochs=400, batch_size=6, optim=pv.FusedAdam({"lr": 0.02}), progress=False, compile=False)
    torch.set_default_dtype(dtype)
    return vae, x


def gradients(vae, x, objective, num_runs=150):
    """Gradients of model and guide, a row for each seed."""
    objective.compile = False
    rows = {"model": [], "guide": []}
    for seed in range(num_runs):
        torch.manual_seed(seed)
        vae.zero_grad()
        objective.loss_and_grads(vae.model, vae.guide, x)
        for name, row in rows.items():
            row.append(torch.cat([parameter.grad.flatten() for parameter in getattr(vae, name).parameters()]))
    return {name: torch.stack(row) for name, row in rows.items()}


def largest_difference(one, other):
    """In standard errors of the difference of the means."""
    error = ((one.var(0) + other.var(0)) / len(one)).sqrt()
    return ((one.mean(0) - other.mean(0)) / error).abs().max().item()


@pytest.mark.slow
def test_dreg_has_the_gradient_of_the_bound_and_less_noise(trained):
    """Of ten means none differs by 4 errors (1 time in 1,500 by chance); the twin, STL, is biased by more than 6."""
    found = {
        gradient: gradients(*trained, pv.objectives.IWELBO(NUM_PARTICLES, gradient))
        for gradient in ("standard", "dreg", "stl")
    }
    standard, dreg, stl = found.values()
    assert torch.allclose(standard["model"], dreg["model"])
    assert largest_difference(standard["guide"], dreg["guide"]) < 4
    assert largest_difference(standard["guide"], stl["guide"]) > 6
    assert dreg["guide"].var(0).sum() < standard["guide"].var(0).sum() / 4


def test_stl_has_no_noise_where_the_guide_is_exact():
    """p(z|x) is N(x / 2, 1 / 2): with the guide's parameters there, each draw has the gradient zero."""
    loc, log_scale = (torch.tensor(value, requires_grad=True) for value in (0.5, math.log(0.5) / 2))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", loc) * x, pyro.param("log_scale", log_scale).exp()))

    gradients = {}
    for gradient in ("standard", "stl"):
        objective = pv.objectives.IWELBO(1, gradient)
        pyro.clear_param_store()
        objective.loss_and_grads(model, guide, torch.tensor([0.3, -2.0]))
        found = [pyro.param(name).unconstrained().grad for name in ("loc", "log_scale")]
        gradients[gradient] = max(each.abs().item() for each in found)
        for name in ("loc", "log_scale"):
            pyro.param(name).unconstrained().grad = None
    assert gradients["stl"] < 1e-12 and gradients["standard"] > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["dreg", "stl"])
def test_gradients_of_two_layers_are_those_of_the_bound(gradient):
    """z1 depends on the draw of z2 in the guide: the gradient runs through both, and is scaled once.

    DReG's mean is that of the standard gradient, and STL's of one particle that of the ELBO's, within 4 errors of 300
    draws; the twin is twice as large.
    """
    parameter = torch.tensor(0.3, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.tensor(0.0), 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", parameter)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(slope * x, 0.8))
            pyro.sample("z1", dist.Normal(slope * z2 + x / 3, 0.7))

    x = torch.tensor([1.0, -0.5, 2.0])
    means = {}
    num_particles = 4 if gradient == "dreg" else 1
    for name in ("standard", gradient):
        objective = pv.objectives.IWELBO(num_particles, name)
        objective.compile = False
        draws = []
        for seed in range(300):
            torch.manual_seed(seed)
            objective.loss_and_grads(model, guide, x)
            leaf = pyro.param("slope").unconstrained()
            draws.append(leaf.grad.item())
            leaf.grad = None
        draws = torch.tensor(draws)
        means[name] = draws.mean().item(), (draws.var() / len(draws)).sqrt().item()
    (reference, its_error), (mean, error) = means.values()
    error = math.hypot(error, its_error)
    assert abs(mean - reference) < 4 * error < abs(2 * mean - reference)


def test_the_value_is_the_bound_and_grows_with_particles(trained):
    """It is that of `importance_sampling` from as many draws, within 4 errors."""
    vae, x = trained
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=10_000)
    values = {}
    for num_particles in (1, 10, 100):
        objective = pv.objectives.IWELBO(num_particles)
        objective.compile = False
        draws = torch.tensor([-objective.loss(vae.model, vae.guide, x) / len(x) for _ in range(100)])
        values[num_particles] = draws.mean().item(), (draws.var() / len(draws)).sqrt().item()
    assert values[1][0] < values[10][0] < values[100][0] + 4 * values[100][1]
    for num_particles in (10, 100):
        bound = evidence.all_bounds[num_particles]
        error = math.hypot(values[num_particles][1], bound.mean_std_error)
        assert abs(values[num_particles][0] - bound.mean) < 4 * error < abs(values[1][0] - bound.mean)


@pytest.mark.parametrize("gradient", ["standard", "dreg", "stl"])
def test_graphs_give_what_calls_as_they_are_give(trained, gradient):
    vae, x = trained
    objective = pv.objectives.IWELBO(NUM_PARTICLES, gradient)
    found = []
    for _ in range(4):
        torch.manual_seed(0)
        vae.zero_grad()
        loss = objective.loss_and_grads(vae.model, vae.guide, x)
        found.append((loss, torch.cat([parameter.grad.flatten() for parameter in vae.parameters()])))
    assert "compiled" in objective.execution(vae.model, vae.guide)
    torch.manual_seed(0)
    objective.compile = False
    vae.zero_grad()
    loss = objective.loss_and_grads(vae.model, vae.guide, x)
    gradient = torch.cat([parameter.grad.flatten() for parameter in vae.parameters()])
    assert found[-1][0] == pytest.approx(loss)
    assert torch.allclose(found[-1][1], gradient)


@pytest.mark.filterwarnings("error:IWELBO")
@pytest.mark.parametrize("gradient", ["standard", "dreg"])
def test_gradient_and_update_are_one_graph_where_the_guide_has_groups(gradient):
    """The draws, which are leaves, are no parameters; and the trained weights are those of steps as they are."""
    x, trained = torch.randn(200, 3), []
    for compiled in (True, False):
        torch.manual_seed(0)
        vae = pv.VAE(
            pv.priors.StandardNormal(1),
            pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3)),
            pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2)),
        )
        objective = pv.objectives.IWELBO(6, gradient, guide_groups=3)
        pv.fit(vae, x, objective=objective, num_epochs=3, compile=compiled, progress=False)
        trained.append(torch.cat([parameter.detach().flatten() for parameter in vae.parameters()]))
    assert torch.allclose(*trained, atol=1e-5)


@pytest.mark.parametrize("gradient", ["standard", "dreg"])
def test_scales_multiply_value_and_gradient(trained, gradient):
    vae, x = trained
    found = []
    for num_data in (6, 60):
        objective = pv.objectives.IWELBO(NUM_PARTICLES, gradient)
        torch.manual_seed(0)
        objective.loss(vae.model, vae.guide, x, num_data=num_data)  # a first look at the plates draws numbers
        torch.manual_seed(0)
        vae.zero_grad()
        loss = objective.loss_and_grads(vae.model, vae.guide, x, num_data=num_data)
        found.append((loss, torch.cat([parameter.grad.flatten() for parameter in vae.parameters()])))
    (one, gradient_of_one), (ten, gradient_of_ten) = found
    assert ten == pytest.approx(10 * one)
    assert torch.allclose(10 * gradient_of_one, gradient_of_ten)


def test_groups_and_elbo_lie_between(trained):
    """From the same draws: the ELBO, the mean of two bounds, the bound of all; and what is half ELBO, half bound."""
    vae, x = trained
    values = []
    for options in ({"num_groups": 8}, {"num_groups": 2}, {}, {"elbo_weight": 0.5}, {"elbo_weight": 1.0}):
        objective = pv.objectives.IWELBO(8, **options)
        objective.loss(vae.model, vae.guide, x)
        torch.manual_seed(0)
        values.append(-objective.loss(vae.model, vae.guide, x))
    elbo, groups, bound, half, all_elbo = values
    assert elbo < groups < bound
    assert half == pytest.approx((elbo + bound) / 2) and all_elbo == pytest.approx(elbo)


@pytest.mark.parametrize("gradient", ["standard", "dreg", "stl"])
@pytest.mark.parametrize("vectorize_particles", [True, False])
def test_the_guide_in_groups_and_the_model_by_all(trained, gradient, vectorize_particles):
    """From the same draws: the value and the model's gradient of the bound of 8, the guide's of the mean of 4 of 2."""
    vae, x = trained
    found = {}
    for name, options in {"both": {"guide_groups": 4}, "groups": {"num_groups": 4}, "all": {}}.items():
        objective = pv.objectives.IWELBO(8, gradient, vectorize_particles=vectorize_particles, **options)
        objective.compile = False
        objective.loss(vae.model, vae.guide, x)
        torch.manual_seed(0)
        vae.zero_grad()
        loss = objective.loss_and_grads(vae.model, vae.guide, x)
        halves = [torch.cat([p.grad.flatten() for p in half.parameters()]) for half in (vae.model, vae.guide)]
        found[name] = loss, *halves
    (loss, model, guide), (_, model_of_groups, guide_of_groups), (loss_of_all, model_of_all, guide_of_all) = (
        found.values()
    )
    assert loss == pytest.approx(loss_of_all)
    assert torch.allclose(model, model_of_all) and not torch.allclose(model, model_of_groups)
    assert torch.allclose(guide, guide_of_groups) and not torch.allclose(guide, guide_of_all)


def switched_off(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.poutine.mask(mask=False):
            pyro.sample("off", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_of_switched_off(x):
    loc = pyro.param("loc", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.7))
        with pyro.poutine.mask(mask=False):
            pyro.sample("off", dist.Normal(loc, 1.0))


def test_groups_for_the_guide_where_a_draw_does_not_count():
    pyro.clear_param_store()
    x = torch.randn(6)
    loss = pv.objectives.IWELBO(4, guide_groups=2).loss_and_grads(switched_off, guide_of_switched_off, x)
    gradient = pyro.param("loc").unconstrained().grad
    assert math.isfinite(loss) and gradient.isfinite() and gradient != 0


@pytest.mark.parametrize("options", [{"gradient": "dreg"}, {"gradient": "stl"}, {"guide_groups": 2}])
def test_dropout_is_refused_where_a_gradient_needs_several_runs(options):
    """Each run has other zeros: log p at draws of one, less log q of another, is no bound."""
    network = torch.nn.Sequential(torch.nn.Dropout(0.5), pv.nn.MLP(4, [], 2))
    vae = pv.VAE(
        pv.priors.StandardNormal(1),
        pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 4), scale=0.7),
        pv.posteriors.DiagonalNormal(network),
    )
    x = torch.randn(6, 4)
    with pytest.raises(ValueError, match="guide: expected the same density of the same draws at each run"):
        pv.objectives.IWELBO(4, **options).loss_and_grads(vae.model, vae.guide, x)
    assert math.isfinite(pv.objectives.IWELBO(4).loss_and_grads(vae.model, vae.guide, x))


def test_renyi_by_hand(trained):
    vae, x = trained
    objective = pv.objectives.RenyiBound(alpha=-1.0, num_particles=5)
    objective.loss(vae.model, vae.guide, x)
    torch.manual_seed(0)
    value = objective.loss(vae.model, vae.guide, x)
    torch.manual_seed(0)
    weights = objective.log_weights(vae.model, vae.guide, (x,)).value
    assert value == pytest.approx(-(weights.exp().square().mean(0).sqrt().log()).sum().item())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pv.objectives.IWELBO(5, "path"), "gradient: expected"),
        (lambda: pv.objectives.IWELBO(5, num_groups=2), "num_groups: expected a divisor of the 5 particles; got 2"),
        (lambda: pv.objectives.IWELBO(5, elbo_weight=1.5), "elbo_weight: expected a number from 0 to 1; got 1.5"),
        (lambda: pv.objectives.IWELBO(5, guide_groups=3), "guide_groups: expected a divisor of the 5 particles; got 3"),
        (
            lambda: pv.objectives.IWELBO(4, guide_groups=2, num_groups=2),
            "guide_groups: expected None beside num_groups=2",
        ),
        (lambda: pv.objectives.IWELBO(0), "num_particles: expected"),
        (lambda: pv.objectives.RenyiBound(alpha=1), "alpha: expected a number other than 1; got 1"),
    ],
)
def test_impossible_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("vectorize_particles", [True, False])
def test_a_point_outside_of_the_plate_leaves_the_data_apart(vectorize_particles):
    """The bound is that of each datum; a point's density counts once, however many data there are."""

    def guide(x, has_point):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 3, 1.0))

    def model(x, has_point):
        if has_point:
            pyro.sample("point", dist.Delta(torch.tensor(1.0), log_density=0.25))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.tensor([0.5, -1.0, 2.0])
    objective = pv.objectives.IWELBO(7, vectorize_particles=vectorize_particles, max_plate_nesting=1)
    losses = []
    for has_point in (False, True):
        torch.manual_seed(0)
        losses.append(objective.loss(model, guide, x, has_point))
    assert losses[1] == pytest.approx(losses[0] - 0.25, abs=1e-9)


@pytest.mark.parametrize(
    "objective", [pv.objectives.IWELBO(4), pv.objectives.IWELBO(4, "dreg"), pv.objectives.RenyiBound(num_particles=4)]
)
def test_a_program_that_takes_no_more_dimensions_is_told_how_to_run(objective):
    """Concatenated with a tensor of two dimensions, as in many programs; one by one it runs."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            both = torch.cat([z, torch.ones(len(x), 1)], 1)
            pyro.sample("x", dist.Normal(both.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, None] / 2, 0.7).to_event(1))

    x = torch.randn(5)
    with pytest.raises(ValueError, match="expected a program that takes its particles in .*vectorize_particles=False"):
        objective.loss(model, guide, x)
    with pytest.raises(TypeError, match="missing"):  # not of the particles
        objective.loss(lambda x, y: model(x), lambda x, y: guide(x), x)
    alone = type(objective)(num_particles=4, vectorize_particles=False)
    assert alone.loss(model, guide, x) > 0
