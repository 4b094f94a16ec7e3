"""Latents that the model makes points (Delta) of what is before them, against the closed form."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoNormal
from truths import assert_within

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("float64")
X = torch.linspace(-2.0, 2.0, 5, dtype=torch.float64)


def model(x, has_density=False):
    """w ~ N(0, 1), z = 2 w, x ~ N(z, 1); the point may have the log density -w^2 / 2."""
    unit = pyro.sample("unit", dist.Delta(torch.ones(())))
    with pyro.plate("data", len(x)):
        w = pyro.sample("w", dist.Normal(torch.zeros(()), unit))
        z = pyro.sample("z", dist.Delta(2 * w, log_density=-w.square() / 2 if has_density else 0.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x, **kwargs):
    with pyro.plate("data", len(x)):
        pyro.sample("w", dist.Normal(0.4 * x, 0.5))


def guide_of_both(x, **kwargs):
    with pyro.plate("data", len(x)):
        w = pyro.sample("w", dist.Normal(0.4 * x, 0.5))
        pyro.sample("z", dist.Delta(2 * w))


def exact(has_density=False):
    if has_density:  # N(w; 0, 1) exp(-w^2 / 2) is the root of a half times N(w; 0, 1 / 2)
        return dist.Normal(0.0, 3**0.5).log_prob(X) - torch.tensor(2.0).log() / 2
    return dist.Normal(0.0, 5**0.5).log_prob(X)


GUIDES = {
    "that leaves it out": lambda: guide,
    "None": lambda: None,
    "that has the point, too": lambda: guide_of_both,
    "AutoNormal of the others": lambda: AutoNormal(poutine.block(model, hide=["z", "unit"]), init_scale=0.5),
    "AutoDelta": lambda: AutoDelta(model),
}


@pytest.mark.filterwarnings(
    "ignore:guide. expected one density", "ignore:model, guide. expected a pair that runs on any"
)
@pytest.mark.parametrize("estimate", [pv.importance_sampling, pv.log_evidence])
@pytest.mark.parametrize("name", GUIDES)
def test_a_point_is_no_latent(name, estimate):
    evidence = estimate(
        model, GUIDES[name](), X, **({"num_samples": 4000} if estimate is pv.importance_sampling else {})
    )
    assert_within(evidence, exact())
    assert set(evidence.observed.values) == {"x"}


@pytest.mark.parametrize("guide", [guide, None])
def test_its_log_density_counts(guide):
    evidence = pv.importance_sampling(model, guide, X, kwargs={"has_density": True}, proposal="laplace")
    assert torch.allclose(evidence.log_evidence, exact(has_density=True))  # a Gaussian, exactly
    assert set(evidence.observed.values) == {"x"}
    assert not torch.allclose(evidence.log_evidence, exact(), atol=0.1)  # the twin


def test_where_all_latents_are_points():
    def certain(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Delta(torch.ones(())))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    evidence = pv.importance_sampling(certain, None, X, num_samples=10)
    assert torch.allclose(evidence.log_evidence, dist.Normal(1.0, 1.0).log_prob(X))


def test_points_of_an_enumerated_latent():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
            z = pyro.sample("z", dist.Delta(2 * k - 1))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    both = torch.stack([dist.Normal(1.0, 1.0).log_prob(X), dist.Normal(-1.0, 1.0).log_prob(X)])
    expected = (both + torch.tensor([0.3, 0.7]).log()[:, None]).logsumexp(0)
    assert torch.allclose(pv.importance_sampling(model, None, X, num_samples=10).log_evidence, expected)


def test_posterior_draws_are_of_what_is_drawn():
    draws = pv.posterior_samples(model, guide, X, num_samples=50)
    assert set(draws.latents) == {"w"}
    assert torch.allclose(draws.latents["w"].mean((0, 1)), 0.4 * X, atol=0.2)


def test_a_density_where_the_model_has_a_point():
    def wide(x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Normal(0.4 * x, 0.5))
            pyro.sample("z", dist.Normal(2 * w, 1.0))

    with pytest.raises(
        ValueError, match="guide: expected nothing at site 'z', which the model makes a point .* leave it"
    ):
        pv.importance_sampling(model, wide, X)


def guide_with_parameters(x, **kwargs):
    """The posterior of `model`, for parameters that are trained."""
    slope = pyro.param("slope", torch.tensor(0.4))
    scale = pyro.param("scale", torch.tensor(0.2**0.5), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("w", dist.Normal(slope * x, scale))


def points_of_map(x):
    with pyro.plate("data", len(x)):
        pyro.sample("w", dist.Delta(pyro.param("point", torch.zeros(5))))


def plain(x):
    """`model` without its points."""
    with pyro.plate("data", len(x)):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(2 * w, 1.0), obs=x)


def plated(x, is_point=True, log_density=0.0):
    """`model` whose only point may be `pyro.deterministic`."""
    with pyro.plate("data", len(x)):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        point = dist.Delta(2 * w, log_density=log_density)
        z = pyro.sample("z", point) if is_point else pyro.deterministic("z", 2 * w)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


OBJECTIVES = {
    "CompiledTrace_ELBO": pv.objectives.CompiledTrace_ELBO,
    "CompiledTraceMeanField_ELBO": pv.objectives.CompiledTraceMeanField_ELBO,
    "IWELBO": lambda: pv.objectives.IWELBO(3),
    "IWELBO, dreg": lambda: pv.objectives.IWELBO(3, "dreg"),
    "RenyiBound": lambda: pv.objectives.RenyiBound(0.5),
    "BetaELBO": lambda: pv.objectives.BetaELBO(2.0),
}


@pytest.mark.filterwarnings("ignore:Found vars in model")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_are_those_without_the_point(name):
    """A point is no latent; its log density counts, which the second of the two shows."""

    def losses(**kwargs):
        pyro.set_rng_seed(0)
        objective = OBJECTIVES[name]()
        objective.compile = False
        return torch.tensor(objective.loss_and_grads(plated, guide_with_parameters, X, **kwargs))

    assert torch.isclose(losses(), losses(is_point=False))
    assert torch.isclose(losses(log_density=-1.0), losses() + 5.0)


@pytest.mark.filterwarnings("ignore:Found vars in model")
def test_graphs_of_a_model_with_points(interpreted):
    objective = pv.objectives.CompiledTraceMeanField_ELBO()
    svi = pv.SVI(model, guide_with_parameters, pv.FusedAdam({"lr": 1e-3}), objective)
    losses = [float(svi.step(X)) for _ in range(3)]
    assert torch.tensor(losses).isfinite().all()
    assert "compiled" in objective.execution(model, guide_with_parameters)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if not name.startswith("Compiled")])
@pytest.mark.parametrize(
    "guide", [lambda: points_of_map, lambda: AutoDelta(plain), lambda: AutoLaplaceApproximation(plain)]
)
def test_points_have_no_bound(name, guide):
    with pytest.raises(ValueError, match=r"guide: expected densities; got a point \(Delta\) at site 'w'"):
        OBJECTIVES[name]().loss_and_grads(plain, guide(), X)


def test_an_elbo_at_points_is_that_of_map():
    """log p(x, z) at the points, which `CompiledTrace_ELBO` climbs as Pyro's does."""
    expected = (dist.Normal(0.0, 1.0).log_prob(torch.zeros(5)) + dist.Normal(0.0, 1.0).log_prob(X)).sum()
    found = pv.objectives.CompiledTrace_ELBO().loss(plain, points_of_map, X)
    assert found == pytest.approx(-expected.item())


def test_a_latent_that_is_left_out_and_is_no_point():
    def two(x):
        pyro.sample("other", dist.Normal(0.0, 1.0))
        model(x)

    with (
        pytest.warns(UserWarning, match="Found vars"),
        pytest.raises(ValueError, match="guide: expected a draw of each latent .* none of site 'other'"),
    ):
        pv.objectives.CompiledTraceMeanField_ELBO().loss_and_grads(two, guide_with_parameters, X)


def moved(x):
    guide_with_parameters(x)
    pyro.sample("unit", dist.Delta(pyro.param("one", torch.ones(()))))


def elsewhere(x):
    guide_with_parameters(x)
    pyro.sample("unit", dist.Delta(torch.tensor(2.0)))


def weighted(x):
    guide_with_parameters(x)
    pyro.sample("unit", dist.Delta(torch.ones(()), log_density=1.0))


def wide(x):
    guide_with_parameters(x)
    pyro.sample("unit", dist.Normal(1.0, 1.0))


def repeated(x):
    guide_with_parameters(x)
    pyro.sample("unit", dist.Delta(torch.ones(())))


@pytest.mark.parametrize("guide", [guide_with_parameters, repeated])
def test_check_program_takes_points(guide):
    pv.check_program(model, guide, X)


@pytest.mark.parametrize(
    ("guide", "found"),
    [
        (moved, "a point with a parameter of its own, which training would move"),
        (elsewhere, "another point, which has a weight of 0"),
        (weighted, "a point with a log density, which an ELBO would subtract"),
        (wide, "a Normal, whose draws have a weight of 0; leave it out"),
        (AutoDelta(model), "a draw of AutoDelta, which has a weight of 0; make the guide of poutine.block"),
        (AutoNormal(model), "a draw of AutoNormal, which has a weight of 0; make the guide of poutine.block"),
    ],
)
def test_check_program_refuses_other_points(guide, found):
    with pytest.raises(ValueError, match=rf"guide: expected nothing at site 'unit', .*; got {found}") as error:
        pv.check_program(model, guide, X)
    assert "Trace Shapes" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize("automatic", [AutoDelta, AutoNormal])
def test_fit_refuses_automatic_guides_of_points(automatic):
    with pytest.raises(ValueError, match="guide: expected nothing at site 'unit', .* poutine.block"):
        pv.fit((model, automatic(model)), X, num_epochs=1, progress=False)


@pytest.mark.filterwarnings("ignore:Found vars in model")
def test_fit_trains_as_without_points():
    slopes = []
    for some_model in (model, plain):
        pyro.clear_param_store()
        pyro.param("slope", torch.tensor(0.0))
        optim = pv.FusedAdam({"lr": 0.02})
        pv.fit((some_model, guide_with_parameters), X, optim=optim, num_epochs=5, progress=False)
        slopes.append(pyro.param("slope").item())
    assert slopes[0] == pytest.approx(slopes[1])
    assert slopes[0] > 0.05


def test_bdmc_lies_about_the_truth():
    sandwich = pv.bdmc(model, guide, X, num_temperatures=10, num_chains=4)
    assert torch.allclose(sandwich.lower, exact_of(sandwich.x), atol=1e-3)  # Laplace's Gaussian is the posterior
    assert torch.allclose(sandwich.upper, exact_of(sandwich.x), atol=1e-3)
    assert not torch.allclose(sandwich.lower, dist.Normal(0.0, 2**0.5).log_prob(sandwich.x), atol=0.1)  # the twin


def exact_of(x):
    return dist.Normal(0.0, 5**0.5).log_prob(x)


@pytest.mark.filterwarnings("ignore:guide. expected a density")
def test_all_data_together():
    evidence = pv.importance_sampling(model, AutoDelta(model), X, joint=True, proposal="laplace", num_samples=100)
    assert torch.allclose(evidence.log_evidence, exact().sum(), atol=1e-3)


def test_all_data_together_of_a_guide_of_points_with_a_gaussian():
    evidence = pv.log_evidence(plain, AutoLaplaceApproximation(plain), X, joint=True)
    assert_within(evidence, exact().sum()[None])
    with pytest.raises(AssertionError):  # the twin
        assert_within(evidence, exact().sum()[None] + 0.5)


def test_all_data_together_of_an_automatic_guide_of_points():
    with pytest.raises(ValueError, match="guide: expected nothing at site 'unit', .* got a draw of an automatic guide"):
        pv.importance_sampling(plain_with_unit, AutoNormal(plain_with_unit), X, joint=True)


def plain_with_unit(x):
    pyro.sample("unit", dist.Delta(torch.zeros(())))
    plain(x)


@pytest.mark.filterwarnings("ignore:guide. expected one density", "ignore:model, guide. expected a pair")
def test_auxiliary_draws_are_no_latents():
    """Gaussians take the place of `AutoDelta`; what they are made of is counted nowhere."""
    automatic = AutoDelta(plain)
    assert set(pv.latent_use(plain, automatic, X).activity) == {"w"}
    draws = pv.posterior_samples(plain, automatic, X, num_samples=50, method="importance", num_proposals=500)
    assert set(draws.latents) == set(draws.guide_latents) == {"w"}
    assert set(pv.importance_sampling(plain, automatic, X, num_samples=50).draws.latents) == {"w"}


@pytest.mark.parametrize("guide", [guide, None])
def test_what_the_latent_is_used_for(guide):
    """q(z|x) = N(0.4 x, 1 / 4), and the activity is the variance of its mean; without a guide, nothing."""
    use = pv.latent_use(model, guide, X)
    expected = (0.4 * X).var().item() if guide else 0.0
    assert use.activity["w"].item() == pytest.approx(expected, abs=0.05)


def test_the_inference_gap_beside_points():
    """Tolerances are four standard errors, which one seed in 15,000 exceeds."""

    def wide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("w", dist.Normal(0.4 * x, 1.0))

    evidence = pv.importance_sampling(model, wide, X, proposal="laplace", num_samples=50)
    gap = pv.inference_gap(model, wide, X, evidence=evidence, num_samples=400, num_steps=10, num_particles=4)
    kl = [0.5 / variance - 0.5 + 0.5 * torch.tensor(variance).log() for variance in (0.2, 0.5)]
    assert torch.allclose(gap.total.mean(), kl[0], atol=0.25)
    assert not torch.allclose(gap.total.mean(), kl[1], atol=0.25)  # the twin: of a point z = w


def test_the_inference_gap_of_points():
    with pytest.raises(ValueError, match=r"guide: expected densities; got a point \(Delta\) at site 'w'"):
        pv.inference_gap(plain, points_of_map, X)
