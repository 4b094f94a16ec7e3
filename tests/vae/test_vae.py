"""The VAE as a Pyro program: under every handler, objective and optimizer that takes one."""

import copy
import itertools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn
from truths import LIKELIHOODS, draws_of, small_vae

import pyro_vae as pv

OBJECTIVES = {
    "trace": Trace_ELBO(),
    "trace, 5 particles": Trace_ELBO(num_particles=5),
    "trace, 5 vectorised": Trace_ELBO(num_particles=5, vectorize_particles=True),
    "mean field": TraceMeanField_ELBO(),
    "mean field, 5 vectorised": TraceMeanField_ELBO(num_particles=5, vectorize_particles=True),
    "graph": TraceGraph_ELBO(),
}
WITH_MODULE = [name for name in OBJECTIVES if name != "graph"]  # Pyro's TraceGraph_ELBO has no differentiable_loss


def changed(module, before):
    return [name for name, value in module.named_parameters() if not torch.equal(value, before[name])]


def snapshot(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


@pytest.fixture(params=[False, True], ids=["shared params", "local params"])
def module_local_params(request):
    with pyro.settings.context(module_local_params=request.param):
        yield


@pytest.mark.one_in(5)
@pytest.mark.usefixtures("module_local_params")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_svi_trains_every_parameter(likelihood, objective):
    vae = small_vae(likelihood)
    x = draws_of(vae, 8)
    before = snapshot(vae)
    loss = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), OBJECTIVES[objective]).step(x)
    assert torch.isfinite(torch.tensor(loss))
    assert changed(vae, before) == list(before)


@pytest.mark.usefixtures("module_local_params")
@pytest.mark.parametrize("objective", WITH_MODULE)
def test_elbo_as_a_module_has_all_parameters(objective):
    vae = small_vae()
    x = draws_of(vae, 8)
    loss = OBJECTIVES[objective](vae.model, vae.guide)
    assert {id(p) for p in loss.parameters()} == {id(p) for p in vae.parameters()}
    before = snapshot(vae)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    loss(x).backward()
    optimizer.step()
    assert changed(vae, before) == list(before)


@pytest.mark.parametrize("names", [(None, None), ("first", "second"), ("vae", None)])
def test_two_vaes_in_one_process_both_train(names):
    vaes = [small_vae(name=name) for name in names]
    x = draws_of(vaes[0], 8)
    for _ in range(2):
        before = [snapshot(vae) for vae in vaes]
        for vae in vaes:
            SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x)
        assert all(changed(vae, old) == list(old) for vae, old in zip(vaes, before, strict=True))


def test_a_copy_trains_apart_from_its_original():
    vae = small_vae()
    x = draws_of(vae, 8)
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x)
    twin = copy.deepcopy(vae)
    before, before_twin = snapshot(vae), snapshot(twin)
    SVI(twin.model, twin.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x)
    assert changed(vae, before) == []
    assert changed(twin, before_twin) == list(before_twin)


def test_a_name_that_is_taken_is_refused_before_anything_trains():
    first, second = small_vae(name="mine"), small_vae(name="mine")
    x = draws_of(first, 8)  # registers the first
    before = snapshot(second)
    with pytest.raises(ValueError, match="name: expected a name that is free.*'mine'.*clear_param_store"):
        SVI(second.model, second.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x)
    assert changed(second, before) == []
    pyro.clear_param_store()
    second.model(x)


@pytest.fixture
def loaded_store(tmp_path):
    """Trained parameters as another process has saved them."""

    def load(**kwargs):
        vae = small_vae(**kwargs)
        SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(draws_of(vae, 8))
        pyro.get_param_store().save(tmp_path / "store.pt")
        pyro.clear_param_store()
        pyro.get_param_store().load(tmp_path / "store.pt")
        return vae

    return load


ENTRANCES = {
    "SVI": lambda vae, x: SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x),
    "fit": lambda vae, x: pv.fit(vae, x, num_epochs=1, progress=False),
    "log_weights": lambda vae, x: pv.evidence.log_weights(vae.model, vae.guide, x, num_samples=3),
    "model": lambda vae, x: vae.model(x),
    "sample": lambda vae, x: vae.sample(3),
    "reconstruct": lambda vae, x: vae.reconstruct(x),
    "decode": lambda vae, x: vae.decode(torch.zeros(3, 2)),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_loaded_parameters_that_are_not_used_give_one_warning(loaded_store, entrance):
    loaded_store()
    vae, x = small_vae(), torch.ones(3, 6)
    with pytest.warns(
        UserWarning, match=r"got 'vae.(model|guide)\$\$\$\w+.* and \d more.*load_state_dict.*name="
    ) as said:
        ENTRANCES[entrance](vae, x)
        for each in ENTRANCES.values():
            each(vae, x)
    assert len([each for each in said if "loaded parameters" in str(each.message)]) == 1


@pytest.mark.parametrize("is_late", [False, True], ids=["before the first call", "after the warning"])
def test_loaded_parameters_can_be_taken_over(loaded_store, is_late):
    trained, vae = loaded_store(), small_vae()
    x = torch.ones(3, 6)
    if is_late:
        with pytest.warns(UserWarning, match="expected no loaded parameters"):
            used(vae)
    for role in ("model", "guide"):
        pyro.module(f"vae.{role}", getattr(vae, role), update_module_params=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae.model(x)
        vae.guide(x)
    assert all(torch.equal(*pair) for pair in zip(vae.parameters(), trained.parameters(), strict=True))
    before = snapshot(vae)
    used(vae)
    assert changed(vae, before) == list(before)


def used(vae):
    return ENTRANCES["SVI"](vae, torch.ones(3, 6))


def rebuilt():
    used(small_vae())
    used(small_vae())  # while the first is gone


def copied():
    vae = small_vae()
    used(vae)
    twin = copy.deepcopy(vae)
    del vae
    used(twin)


def of_other_shapes(loaded_store):
    loaded_store(hidden=(5,))
    used(small_vae())


def of_another_name(loaded_store):
    loaded_store()
    used(small_vae(name="mine"))


def of_the_same_values(loaded_store):
    vae = small_vae()
    vae.load_state_dict(loaded_store().state_dict())
    used(vae)


def put_back():
    vae = small_vae()
    used(vae)
    state = pyro.get_param_store().get_state()
    pyro.clear_param_store()
    pyro.get_param_store().set_state(state)
    used(vae)
    used(small_vae())


SILENT = [rebuilt, copied, put_back, of_other_shapes, of_another_name, of_the_same_values]


@pytest.mark.parametrize("case", SILENT, ids=lambda case: case.__name__)
def test_parameters_in_the_store_that_nobody_can_have_meant(case, loaded_store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        case(loaded_store) if case.__code__.co_argcount else case()


def test_parameters_of_any_layout_in_memory_train():
    """Pyro's store would keep a contiguous copy of one that is not, and train that."""
    decoder = nn.Sequential(nn.Linear(2, 36), nn.Unflatten(1, (4, 3, 3)), nn.Conv2d(4, 4, 3, padding=1))
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(decoder),
        pv.posteriors.DiagonalNormal(pv.nn.MLP((4, 3, 3), [], 4)),
    )
    vae.to(memory_format=torch.channels_last)
    assert not all(parameter.is_contiguous() for parameter in vae.parameters())
    for _ in range(2):
        before = snapshot(vae)
        SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(torch.ones(3, 4, 3, 3))
        assert changed(vae, before) == list(before)
    assert all(name.startswith(("vae.model", "vae.guide")) for name in pyro.get_param_store())


def test_a_frozen_part_stays_as_it_is():
    vae = small_vae().eval()
    x = draws_of(vae, 8)
    vae.likelihood.requires_grad_(False)
    before = snapshot(vae)
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x)
    assert changed(vae, before) == [name for name in before if "posterior" in name]


def test_loaded_weights_are_seen_at_once():
    vae, other = small_vae(), small_vae()
    x = draws_of(vae, 8)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    vae.load_state_dict(other.state_dict())
    weights = [pv.evidence.log_weights(each.model, each.guide, x, num_samples=3) for each in (vae, other)]
    assert torch.equal(*weights)


def test_flat_data_and_images_are_alike():
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.nn.MLP(2, [8], 12)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(12, [8], 4)),
    )
    x = torch.bernoulli(torch.full((5, 12), 0.5))
    shapes = [(5, 12), (5, 1, 3, 4), (5, 3, 4), (5, 12, 1)]
    weights = [pv.evidence.log_weights(vae.model, vae.guide, x.reshape(shape), num_samples=3) for shape in shapes]
    assert all(torch.equal(weights[0], other) for other in weights)


class ConvEncoder(nn.Sequential):
    """A network that knows one batch dimension only."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4))


def test_any_network_serves_with_vectorised_particles():
    decoder = nn.Sequential(nn.Linear(2, 4 * 36), nn.Unflatten(1, (4, 6, 6)), nn.ConvTranspose2d(4, 1, 3, padding=1))
    vae = pv.VAE(
        pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(decoder), pv.posteriors.DiagonalNormal(ConvEncoder())
    )
    assert vae.event_shape == (1, 6, 6)
    x = torch.bernoulli(torch.full((5, 36), 0.5))  # flat data for a convolutional VAE
    elbo = TraceMeanField_ELBO(num_particles=7, vectorize_particles=True)
    assert torch.isfinite(torch.tensor(SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), elbo).step(x)))
    assert pv.importance_sampling(vae.model, vae.guide, x, num_samples=10).log_evidence.shape == (5,)


def test_without_data_the_model_generates():
    vae = small_vae()
    trace = poutine.trace(vae.model).get_trace(num_data=7)
    assert trace.nodes["x"]["value"].shape == (7, 6) and not trace.nodes["x"]["is_observed"]
    assert vae.model().shape == (1, 2)
    assert vae.sample(9).shape == (9, 6)
    assert set(Predictive(vae.model, num_samples=4)()) == {"z", "x"}


def test_predictive_with_the_guide():
    vae = small_vae()
    x = draws_of(vae, 5)
    for parallel in (False, True):
        draws = Predictive(vae.model, guide=vae.guide, num_samples=8, parallel=parallel)(x)
        assert draws["z"].shape == (8, 5, 2)
    # With x released, the model draws it anew: the posterior predictive.
    again = Predictive(poutine.uncondition(vae.model), guide=vae.guide, num_samples=8)(x)["x"]
    assert again.shape == (8, 5, 6) and not torch.equal(again[0], again[1])


def test_conditioning_and_replay():
    vae = small_vae()
    x, z = draws_of(vae, 5), torch.randn(5, 2)
    trace = poutine.trace(poutine.condition(vae.model, data={"z": z})).get_trace(x)
    expected = vae.prior().log_prob(z).sum() + vae.likelihood(z).log_prob(x).sum()
    assert torch.isclose(trace.log_prob_sum(), expected)
    assert torch.equal(poutine.condition(vae.model, data={"z": z})(x), z)
    guide_trace = poutine.trace(vae.guide).get_trace(x)
    replayed = poutine.trace(poutine.replay(vae.model, trace=guide_trace)).get_trace(x)
    assert torch.equal(replayed.nodes["z"]["value"], guide_trace.nodes["z"]["value"])


def test_scale_multiplies_the_objective_but_not_the_evidence():
    vae = small_vae()
    x = draws_of(vae, 5)
    scaled = (poutine.scale(vae.model, 3.0), poutine.scale(vae.guide, 3.0))
    losses = []
    for pair in ((vae.model, vae.guide), scaled):
        torch.manual_seed(0)
        losses.append(Trace_ELBO().loss(*pair, x))
    assert losses[1] == pytest.approx(3 * losses[0], rel=1e-5)
    weights = [pv.evidence.log_weights(*pair, x, num_samples=3) for pair in ((vae.model, vae.guide), scaled)]
    assert torch.equal(*weights)


@pytest.mark.parametrize("arguments", [{"subsample_size": 5}, {"num_data": 80}], ids=str)
def test_subsampling_plates_are_unbiased(arguments):
    """The loss of a part, scaled, estimates the loss of the whole: 200 draws, 4.5 standard errors (7e-6)."""
    vae = small_vae()
    x = draws_of(vae, 20)
    objective = TraceMeanField_ELBO()
    part = x[:20] if "subsample_size" in arguments else x
    factor = 1 if "subsample_size" in arguments else 80 / 20
    losses = torch.tensor([objective.loss(vae.model, vae.guide, part, **arguments) for _ in range(200)])
    whole = torch.tensor([objective.loss(vae.model, vae.guide, x) for _ in range(200)]) * factor
    std_error = ((losses.var() + whole.var()) / 200).sqrt()
    assert (losses.mean() - whole.mean()).abs() < 4.5 * std_error
    assert (losses.mean() - 1.2 * whole.mean()).abs() > 4.5 * std_error  # the twin
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), objective).step(part, **arguments)


def test_construction_and_evaluation_draw_nothing_from_the_generator():
    torch.manual_seed(0)
    vae = small_vae()
    x = draws_of(vae, 5)
    state = torch.get_rng_state()
    pv.VAE(vae.prior, vae.likelihood, vae.posterior)
    pv.importance_sampling(vae.model, vae.guide, x, num_samples=5)
    assert torch.equal(state, torch.get_rng_state())


def test_the_posterior_scale_is_bounded_and_smooth():
    raw = torch.tensor([-1e4, -3.0, 0.0, 3.0, 1e4], dtype=torch.float64, requires_grad=True)
    posterior = pv.posteriors.DiagonalNormal(nn.Identity(), max_log_scale=7.0)
    scale = posterior(torch.stack([torch.zeros(5, dtype=torch.float64), raw], -1)).base_dist.scale.flatten()
    assert scale.min() >= torch.tensor(-7.0).exp() * 0.999 and scale.max() <= torch.tensor(7.0).exp() * 1.001
    (gradient,) = torch.autograd.grad(scale.sum(), raw)
    assert torch.isfinite(gradient).all() and (scale.diff() > 0).all()


def test_the_scale_of_a_gaussian_keeps_its_floor():
    likelihood = pv.likelihoods.Gaussian(nn.Linear(2, 12), scale="per-pixel", min_scale=0.05)
    with torch.no_grad():
        likelihood.network.bias.fill_(-1e4)
    assert likelihood(torch.zeros(1, 2)).base_dist.scale.min().item() == pytest.approx(0.05)
    assert "min_scale=0.05" in repr(likelihood)


def test_log_normal_networks_far_out_have_a_reconstruction():
    """In float32, whose largest number is e^88."""
    likelihood = pv.likelihoods.LogNormal(nn.Linear(2, 4), scale="per-pixel")
    for signs in itertools.product([-1e4, 1e4], repeat=4):
        with torch.no_grad():
            likelihood.network.bias.copy_(torch.tensor(signs))
        found = pv.VAE(pv.priors.StandardNormal(2), likelihood, pv.posteriors.DiagonalNormal(nn.Linear(2, 4)))
        assert found.reconstruct(torch.ones(1, 2)).isfinite().all()


def test_output_bias_starts_at_the_mean():
    mean = torch.tensor([0.1, 0.5, 0.9])
    net = pv.nn.MLP(4, [8], 3, output_bias=torch.logit(mean))
    assert torch.allclose(pv.likelihoods.Bernoulli(net)(torch.zeros(1, 4)).mean, mean[None])


def test_inside_an_outer_plate():
    """A plate to the left of "data" repeats z, each with its own likelihood of the same x."""
    vae = small_vae()
    x = draws_of(vae, 5)

    def guide(x):
        with pyro.plate("repeats", 3, dim=-2):
            return vae.guide(x)

    def model(x):
        with pyro.plate("repeats", 3, dim=-2):
            return vae.model(x)

    assert guide(x).shape == model(x).shape == (3, 5, 2)
    assert torch.isfinite(torch.tensor(Trace_ELBO().loss(model, guide, x)))


BAD_SIZES = {
    "both": ({"num_data": 80, "subsample_size": 3}, "subsample_size: expected it with x.*without num_data"),
    "too many": ({"subsample_size": 6}, "subsample_size: expected at most 5, the data in x; got 6"),
    "too few": ({"num_data": 4}, "num_data: expected at least 5; got 4"),
}


@pytest.mark.parametrize("case", BAD_SIZES)
def test_sizes_that_contradict_each_other(case):
    vae = small_vae()
    x = draws_of(vae, 5)
    arguments, message = BAD_SIZES[case]
    for program in (vae.model, vae.guide):
        with pytest.raises(ValueError, match=message):
            program(x, **arguments)
    with pytest.raises(ValueError, match="subsample_size: expected it with x"):
        vae.model(subsample_size=3)


class Returning(nn.Module):
    """A likelihood of any kind, from a linear layer."""

    def __init__(self, make, width):
        super().__init__()
        self.make, self.layer = make, nn.Linear(2, width)

    def forward(self, z):
        return self.make(self.layer(z))


def pixels(logits):
    """Of three, with five grey levels each."""
    return dist.Categorical(logits=logits.unflatten(-1, (3, 5)))


def mixture(out):
    return dist.MixtureSameFamily(
        dist.Categorical(logits=out[..., :2]), dist.Categorical(logits=out[..., 2:12].unflatten(-1, (2, 5)))
    )


def likeliest(out):
    return out.unflatten(-1, (3, 5)).argmax(-1).float()


def rows_of(out):
    return torch.ones(out.shape[:-1], dtype=torch.bool)


CENTRES = {
    "Categorical": (lambda out: pixels(out).to_event(1), likeliest),
    "masked": (lambda out: pixels(out).mask(rows_of(out)[..., None]).to_event(1).mask(rows_of(out)), likeliest),
    "expanded": (
        lambda out: dist.torch_distribution.ExpandedDistribution(pixels(out).to_event(1), out.shape[:-1]),
        likeliest,
    ),
    "mixture of Categoricals": (
        lambda out: mixture(out).expand([*out.shape[:-1]]),
        lambda out: (
            (out[..., :2].softmax(-1)[..., None] * out[..., 2:12].unflatten(-1, (2, 5)).softmax(-1)).sum(-2).argmax(-1)
        ),
    ),
    "OneHotCategorical": (lambda out: dist.OneHotCategorical(logits=out), lambda out: out.softmax(-1)),
    "Multinomial": (lambda out: dist.Multinomial(3, logits=out), lambda out: 3 * out.softmax(-1)),
    "Poisson": (lambda out: dist.Poisson(out.exp()).to_event(1), torch.exp),
    "Delta": (lambda out: dist.Delta(out).to_event(1), lambda out: out),
    "Cauchy": (lambda out: dist.Cauchy(out, 1.0).to_event(1), lambda out: out),
    "HalfCauchy": (lambda out: dist.HalfCauchy(out.exp()).to_event(1), torch.zeros_like),
    "StudentT, in part without a mean": (
        lambda out: dist.StudentT(torch.tensor([0.5, 3.0]).repeat(8)[:15], out, 1.0).to_event(1),
        lambda out: out,
    ),
}


@pytest.mark.parametrize("case", CENTRES)
def test_a_reconstruction_is_finite(case):
    make, expected = CENTRES[case]
    width = make(torch.zeros(1, 15)).event_shape.numel()
    likelihood = Returning(make, 15)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        likelihood,
        pv.posteriors.DiagonalNormal(nn.Linear(width, 4) if width > 1 else Widened()),
    )
    x = vae.sample(7)
    found = vae.reconstruct(x)
    assert found.shape == x.shape and found.isfinite().all()
    with torch.no_grad():
        out = likelihood.layer(vae.encode(x).mean)
    assert torch.allclose(found, expected(out).to(found.dtype))


class Widened(nn.Module):
    """A network for data that are single numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 4)

    def forward(self, x):
        return self.layer(x[..., None])


def test_the_posterior_may_have_no_mean():
    class Heavy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, x):
            return dist.Cauchy(self.layer(x), 1.0).to_event(1)

    vae = pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(nn.Linear(2, 6)), Heavy())
    x = torch.ones(3, 6)
    assert torch.equal(vae.reconstruct(x), vae.decode(vae.posterior.layer(x)).mean)


NO_CENTRE = {
    "MultivariateStudentT": lambda out: dist.MultivariateStudentT(torch.tensor(0.5), out[..., :2], torch.eye(2)),
    "MixtureSameFamily\\(Independent\\(Categorical\\)\\)": lambda out: dist.MixtureSameFamily(
        dist.Categorical(logits=out[..., :2]),
        dist.Categorical(logits=out[..., :12].unflatten(-1, (2, 3, 2))).to_event(1),
    ),
    "TransformedDistribution\\(Independent\\(Normal\\)\\)": lambda out: dist.TransformedDistribution(
        dist.Normal(out[..., :3], 1.0).to_event(1), [dist.transforms.TanhTransform()]
    ),
}


@pytest.mark.parametrize("name", NO_CENTRE)
def test_without_a_mean_and_a_mode_there_is_no_reconstruction(name):
    make = NO_CENTRE[name]
    width = make(torch.zeros(1, 15)).event_shape.numel()
    vae = pv.VAE(pv.priors.StandardNormal(2), Returning(make, 15), pv.posteriors.DiagonalNormal(nn.Linear(width, 4)))
    with pytest.raises(ValueError, match=rf"likelihood: expected .*; got {name}, with .* mode.*draw from it"):
        vae.reconstruct(vae.sample(3))


@pytest.mark.parametrize("make", [lambda out: dist.Normal(out, 1.0).to_event(1), lambda out: pixels(out).to_event(1)])
def test_networks_that_are_nan_have_no_reconstruction(make):
    width = make(torch.zeros(1, 15)).event_shape.numel()
    vae = pv.VAE(pv.priors.StandardNormal(2), Returning(make, 15), pv.posteriors.DiagonalNormal(nn.Linear(width, 4)))
    with torch.no_grad():
        vae.likelihood.layer.bias.fill_(torch.nan)
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="a mode that is no better"):
        vae.reconstruct(torch.ones(3, width))
