"""Annealing, its transitions, bidirectional Monte Carlo and what picks among estimators, against exact truths."""

import math
import sys
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from truths import (
    GaussianPosterior,
    LinearGaussian,
    assert_unbiased,
    assert_unbiased_in_p,
    count_and_rate,
    draws_of,
    log_evidence_by_quadrature,
    negative_binomial,
    small_vae,
    two_layers,
)

import pyro_vae as pv
from pyro_vae.evidence import hmc
from pyro_vae.evidence.cascade import Cascade
from pyro_vae.evidence.gaussians import FullNormal
from pyro_vae.evidence.modes import KnownModes
from pyro_vae.evidence.path import path_from
from pyro_vae.evidence.region import Region
from pyro_vae.evidence.survey import find_modes, survey
from pyro_vae.program import tiles
from pyro_vae.program.core import Program
from pyro_vae.program.inspect import program_of
from pyro_vae.program.structure import Structure
from pyro_vae.program.unconstrained import Unconstrained

pytestmark = pytest.mark.usefixtures("float64")


def approximate(latent_dim=2, shift=0.3, inflation=0.8, num_data=200):
    truth = LinearGaussian(latent_dim=latent_dim, data_dim=latent_dim + 2)
    vae = truth.vae(GaussianPosterior(truth, shift=shift, inflation=inflation))
    x = truth.draw(num_data)
    return vae, x, truth.log_evidence(x)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("num_temperatures", [1, 2, 5, 20])
@pytest.mark.parametrize("start", ["guide", "prior"])
def test_it_is_unbiased_in_p_for_every_number_of_temperatures(start, num_temperatures):
    vae, x, exact = approximate(shift=0.1, inflation=1.2)
    evidence = pv.ais(vae.model, vae.guide, x, start=start, num_temperatures=num_temperatures)
    assert_unbiased_in_p(evidence.log_evidence, exact)


def test_unbiased_in_p_it_is_a_bound_in_log_p():
    """By chance an estimate without a bias in log p(x) passes once in 700 times."""
    vae, x, exact = approximate(shift=0.1, inflation=1.2, num_data=800)
    error = pv.ais(vae.model, vae.guide, x, start="prior", num_temperatures=1).log_evidence - exact
    assert error.mean() < -3 * error.std() / math.sqrt(len(error))


@pytest.mark.slow
def test_the_twin_that_adapts_on_the_measured_run_is_caught():
    """Of two runs the better one for each datum: what a run amounts to that looks at its own weights."""
    vae, x, exact = approximate(shift=0.1, inflation=1.2)
    runs = [pv.ais(vae.model, vae.guide, x, start="prior", num_temperatures=2, seed=seed) for seed in range(2)]
    with pytest.raises(AssertionError, match="standard errors"):
        assert_unbiased_in_p(torch.maximum(runs[0].log_evidence, runs[1].log_evidence), exact)


def test_the_twin_with_a_transition_that_is_not_invariant_is_caught(monkeypatch):
    """Every proposal accepted, with steps too long."""

    def careless(state, density, noise, metric, beta, step_size, num_leapfrog):
        momentum = noise.normal(len(state.position))
        size = torch.full_like(momentum[..., :1], 1.5)
        moved, _ = hmc._leapfrog(state, momentum, density, metric, beta, size, num_leapfrog)
        return moved, torch.ones_like(moved.log_end)

    vae, x, exact = approximate(shift=0.1, inflation=1.2)
    monkeypatch.setattr(hmc, "step", careless)
    evidence = pv.ais(vae.model, vae.guide, x, start="prior", num_temperatures=20)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_unbiased_in_p(evidence.log_evidence, exact)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("schedule", ["linear", "sigmoid", "adaptive"])
@pytest.mark.parametrize("start", ["laplace", "guide", "prior"])
def test_against_quadrature(start, schedule):
    vae = small_vae()
    x = draws_of(vae, 60)
    evidence = pv.ais(vae.model, vae.guide, x, start=start, schedule=schedule, num_temperatures=30)
    exact = log_evidence_by_quadrature(vae, x, 2)
    assert_unbiased(evidence.log_evidence, evidence.std_error, exact)
    assert 0.5 < evidence.diagnostics["acceptance"].mean() < 1


@pytest.mark.one_in(2)
@pytest.mark.parametrize("start", ["laplace", "guide", "prior"])
def test_other_programs(start):
    """Two layers of latents with a hierarchical guide; a positive latent with a further argument."""
    model, guide, x, exact = two_layers(100)
    evidence = pv.ais(model, guide, x, start=start, num_temperatures=20)
    assert (evidence.log_evidence - exact).abs().max() < (1e-8 if start == "laplace" else 0.8)
    assert_unbiased_in_p(evidence.log_evidence, exact)
    model, guide, x, exposure = count_and_rate(100)
    evidence = pv.ais(model, guide, x, exposure, start=start, num_temperatures=20)
    exact = negative_binomial(x, exposure)
    assert_unbiased(evidence.log_evidence, evidence.std_error, exact)


@pytest.mark.slow
def test_fifty_latents():
    """Where importance sampling from the guide is nats too low, and says so."""
    vae, x, exact = approximate(50, shift=0.1, inflation=0.8, num_data=6)
    evidence = pv.ais(vae.model, vae.guide, x, start="guide", num_temperatures=60)
    by_guide = pv.importance_sampling(vae.model, vae.guide, x, num_samples=1000)
    assert (evidence.log_evidence - exact).mean().abs() < 0.5
    assert (by_guide.log_evidence - exact).mean() < -2 and not by_guide.reliable.any()
    assert torch.allclose(pv.ais(vae.model, vae.guide, x, num_temperatures=5).log_evidence, exact, atol=1e-6)


def path_and_noise(num_data=30, start="guide"):
    vae, x, _ = approximate(num_data=num_data)
    program = program_of(vae.model, vae.guide, (x,))
    view = Unconstrained.of(program)
    region = Region.of(program, view, torch.arange(num_data))
    with torch.no_grad():
        gaussians = find_modes(region, survey(region, [region.guide])).gaussians
        return path_from(start, region, gaussians), region.noise, view


def test_leapfrog_is_reversible_and_keeps_volume():
    path, _, view = path_and_noise(3)
    beta, size = torch.full((3,), 0.7), torch.full((1, 3, 1), 0.3)
    u, momentum = torch.randn(1, 3, view.dim), torch.randn(1, 3, view.dim)

    def move(u, momentum):
        state = path.evaluate(u)
        state, end = hmc._leapfrog(state, momentum, path.evaluate, path.gaussian, beta, size, 4)
        return state.position, end

    there, end = move(u, momentum)
    back, start = move(there, -end)
    assert torch.allclose(back, u, atol=1e-10) and torch.allclose(start, -momentum, atol=1e-10)

    def flat(both):
        position, end = move(*both.reshape(2, 1, 3, view.dim))
        return torch.stack([position, end]).flatten()

    step = 1e-5
    both = torch.stack([u, momentum]).flatten()
    columns = [(flat(both + step * e) - flat(both - step * e)) / (2 * step) for e in torch.eye(len(both))]
    assert torch.linalg.slogdet(torch.stack(columns)).logabsdet.abs() < 1e-6


def geweke(step_size, accept_all=False, num_rounds=15, num_data=3000):
    """z ~ p(z), then x ~ p(x|z) and z by HMC given x in turn: z stays a draw from the prior. The worst z-score of the means
    and variances."""
    vae, x, _ = approximate(num_data=num_data)
    truth = LinearGaussian(latent_dim=2, data_dim=4)
    numbers = tiles.Noise(num_data, torch.arange(num_data), 2)
    torch.manual_seed(0)
    z = torch.randn(1, num_data, 2)
    gaussian = FullNormal(torch.zeros(num_data, 2), 0.7 * torch.eye(2).expand(num_data, 2, 2))
    beta, size = torch.ones(num_data), torch.full((num_data,), step_size)
    for _ in range(num_rounds):
        x = z[0] @ truth.weight.T + truth.bias + truth.scale * torch.randn(num_data, 4)
        view = Unconstrained.of(Program(vae.model, vae.guide, (x,), {}, STRUCTURE))
        density = lambda u, view=view: (gaussian.log_prob(u), torch.stack(view.log_joint(u)).sum(0))  # noqa: E731
        evaluate = hmc.evaluating(density)
        state, momentum = evaluate(z), numbers.normal(1)
        if accept_all:
            z = hmc._leapfrog(state, momentum, evaluate, gaussian, beta, size[None, :, None], 3)[0].position
        else:
            z = hmc.step(state, evaluate, numbers, gaussian, beta, size, 3)[0].position
    z = z[0]
    means = z.mean(0) * math.sqrt(num_data)
    variances = (z.square().mean(0) - 1) * math.sqrt(num_data / 2)
    return torch.cat([means, variances]).nan_to_num(nan=1e9).abs().max()


STRUCTURE = Structure(data_dim=-1, particle_dim=-2, amortized=True)


def test_transitions_leave_the_joint_density_invariant():
    """Geweke's test. Of four z-scores none is beyond 4.5: by chance 3e-5. The twin accepts whatever is proposed."""
    assert geweke(0.6) < 4.5
    assert geweke(0.9, accept_all=True) > 4.5


@pytest.mark.parametrize(("num_temperatures", "num_data"), [(5, 300), (25, 100)])
def test_bidirectional_monte_carlo_encloses_the_truth(num_temperatures, num_data):
    truth = LinearGaussian(latent_dim=2, data_dim=4)
    vae = truth.vae(GaussianPosterior(truth, shift=0.3, inflation=0.8))
    sandwich = pv.bdmc(vae.model, vae.guide, num_data=num_data, start="prior", num_temperatures=num_temperatures)
    exact = truth.log_evidence(sandwich.x)
    assert_unbiased_in_p(sandwich.lower, exact)
    assert_unbiased_in_p(-sandwich.upper, -exact)  # E 1 / p-hat = 1 / p, backwards
    noise = 4.5 * sandwich.mean_gap_std_error
    assert (sandwich.lower - exact).mean() < noise and (sandwich.upper - exact).mean() > -noise
    if num_temperatures == 5:
        assert sandwich.mean_gap > noise
    else:
        assert abs(sandwich.mean_gap) < 0.15 + noise
    assert sandwich.certified_gap() > sandwich.mean_gap


def test_bdmc_of_any_model():
    model, guide, x, exposure = count_and_rate(100)
    sandwich = pv.bdmc(model, guide, x, exposure, start="guide", num_temperatures=20)
    exact = negative_binomial(sandwich.x, exposure)
    assert_unbiased_in_p(sandwich.lower, exact)
    assert_unbiased_in_p(-sandwich.upper, -exact)
    assert not torch.equal(sandwich.x, x)
    assert "gap" in sandwich.summary()


def test_the_twin_that_starts_backwards_from_elsewhere_is_caught(monkeypatch):
    """From the prior instead of the z that made x, as on real data it would have to."""
    monkeypatch.setattr(
        sys.modules["pyro_vae.evidence.bdmc"],
        "_as_one_draw",
        lambda program, latents, rows: {k: torch.randn_like(v[None][:, rows]) for k, v in latents.items()},
    )
    monkeypatch.setattr(sys.modules["pyro_vae.evidence.bdmc"], "_refuse_teacher_forcing", lambda *_: None)
    truth = LinearGaussian(latent_dim=2, data_dim=4)
    vae = truth.vae()
    sandwich = pv.bdmc(vae.model, vae.guide, num_data=100, start="prior", num_temperatures=5)
    error = sandwich.upper - truth.log_evidence(sandwich.x)
    assert error.mean() < -4.5 * error.std() / math.sqrt(len(error))  # no upper bound any more


@pytest.mark.one_in(6)
@pytest.mark.parametrize("kind", ["good guide", "no Gaussian", "counts", "bad guide", "two layers"])
def test_log_evidence_picks_what_each_needs(kind):
    if kind in ("good guide", "bad guide"):
        shift, inflation = (0.05, 1.1) if kind == "good guide" else (0.3, 0.4)
        vae, x, exact = approximate(3, shift, inflation, num_data=40)
        pair, args = (vae.model, vae.guide), (x,)
    elif kind == "no Gaussian":
        vae = small_vae()
        x = draws_of(vae, 20)
        pair, args, exact = (vae.model, vae.guide), (x,), log_evidence_by_quadrature(vae, x, 2)
    elif kind == "counts":
        *pair, x, exposure = count_and_rate(40)
        args, exact = (x, exposure), negative_binomial(x, exposure)
    else:
        *pair, x, exact = two_layers(40)
        args = (x,)
    evidence = pv.log_evidence(*pair, *args, tolerance=0.05)
    assert (evidence.num_evaluations <= 6000).all()
    assert evidence.diagnostics["reached"].double().mean() > 0.7
    error = evidence.log_evidence - exact
    assert abs(error.mean()) < 0.03
    assert (error.abs() < 6 * evidence.std_error.clamp(min=1e-7))[evidence.diagnostics["reached"]].all()
    if kind == "good guide":
        assert evidence.method.count("importance sampling from the guide") > 20
        assert evidence.num_evaluations.median() < 1000
    if kind == "bad guide":
        assert "importance sampling from Laplace's Gaussian" in evidence.method
    if kind == "no Gaussian":
        assert "AIS from a fitted Gaussian" in evidence.method


def test_its_estimates_stay_unbiased_in_p():
    vae = small_vae()
    x = draws_of(vae, 100)
    evidence = pv.log_evidence(vae.model, vae.guide, x, tolerance=0.3, max_evaluations=1500)
    assert len(set(evidence.method)) > 1
    assert_unbiased_in_p(evidence.log_evidence, log_evidence_by_quadrature(vae, x, 2))


def test_what_cannot_be_reached_is_flagged():
    vae = small_vae()
    x = draws_of(vae, 20)
    evidence = pv.log_evidence(vae.model, vae.guide, x, tolerance=1e-4, max_evaluations=1500)
    assert not evidence.diagnostics["reached"].any()
    assert "within 0.0001 nats for 0 of 20 data" in evidence.summary()
    with pytest.raises(ValueError, match=r"max_evaluations: expected at least \d+"):
        pv.log_evidence(vae.model, vae.guide, x, max_evaluations=100)


def test_a_budget_that_does_not_pay_for_annealing_goes_to_the_guide():
    vae, x, exact = approximate(3, 0.05, 1.1, num_data=20)
    evidence = pv.log_evidence(vae.model, vae.guide, x, tolerance=1e-4, max_evaluations=500)
    assert set(evidence.method) == {"importance sampling from the guide"}
    assert (evidence.num_evaluations == 500).all() and not evidence.diagnostics["reached"].any()
    assert_unbiased(evidence.log_evidence, evidence.std_error, exact)
    vae = small_vae()
    x = draws_of(vae, 20)
    evidence = pv.log_evidence(vae.model, vae.guide, x, tolerance=1e-4, max_evaluations=1000)
    assert "importance sampling from Laplace's Gaussian" in evidence.method
    assert "AIS from a fitted Gaussian" not in evidence.method
    by_laplace = evidence.num_evaluations[[name.endswith("Laplace's Gaussian") for name in evidence.method]]
    assert ((by_laplace > 850) & (by_laplace <= 1000)).all() and not evidence.diagnostics["reached"].any()


def many_modes(scale):
    """Some forty modes in z, each narrow, of which Laplace's Gaussians see a few; the guide is the prior."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal((40 * z).sin(), scale), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    x = torch.linspace(-0.9, 0.9, 20)
    z = torch.linspace(-8, 8, 400_001)[:, None]
    joint = dist.Normal((40 * z).sin(), scale).log_prob(x) + dist.Normal(0.0, 1.0).log_prob(z)
    return model, guide, x, joint.logsumexp(0) + math.log(16 / 400_000)


def test_modes_that_laplace_would_miss_are_left_to_the_guide():
    model, guide, x, exact = many_modes(0.1)
    by_laplace = pv.importance_sampling(model, guide, x, proposal="laplace")
    assert by_laplace.mean < exact.mean() - 0.5 and not by_laplace.reliable.any()
    evidence = pv.log_evidence(model, guide, x)
    assert all(name.startswith("importance sampling from the guide") for name in evidence.method)
    assert_unbiased(evidence.log_evidence, evidence.std_error, exact)


MIXTURE = {
    "log_evidence": pv.log_evidence,
    **{
        f"ais from {start}": partial(pv.ais, start=start, num_temperatures=20)
        for start in ("laplace", "guide", "prior")
    },
}


@pytest.mark.one_in(6)
@pytest.mark.parametrize("estimator", MIXTURE.values(), ids=MIXTURE)
def test_a_mixture_for_a_prior(estimator):
    """Of two normals at -1 and 1; x ~ N(z, 1)."""

    def model(x):
        with pyro.plate("data", len(x)):
            parts = dist.Normal(torch.tensor([-1.0, 1.0]), 0.5)
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts).expand([len(x)]))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * x, 1.3))

    x = torch.linspace(-3, 3, 100)
    exact = torch.stack([dist.Normal(loc, math.sqrt(1.25)).log_prob(x) for loc in (-1.0, 1.0)]).logsumexp(0) - math.log(
        2
    )
    assert_unbiased_in_p(estimator(model, guide, x).log_evidence, exact)


def test_what_the_guide_contradicts_is_flagged(monkeypatch):
    """Laplace's Gaussian is at one of the modes, and drawn from alone."""
    monkeypatch.setattr(Cascade, "_missed_by", lambda cascade, columns, *_: columns < 0)
    monkeypatch.setattr(KnownModes, "look_around", lambda *_: None)
    model, guide, x, exact = many_modes(0.1)
    evidence = pv.log_evidence(model, guide, x)
    low = evidence.log_evidence < exact - 0.7
    assert low.sum() > 10 and evidence.diagnostics["contradicted"][low].double().mean() > 0.5
    assert not evidence.reliable[evidence.diagnostics["contradicted"]].any()
    assert "missed some of p(x)" in evidence.summary()


ESTIMATORS = {
    "ais": lambda vae, x, **options: pv.ais(vae.model, vae.guide, x, num_temperatures=10, seed=2, **options),
    "ais from guide": lambda vae, x, **options: pv.ais(
        vae.model, vae.guide, x, num_temperatures=10, seed=2, start="guide", **options
    ),
    "log_evidence": lambda vae, x, **options: pv.log_evidence(
        vae.model, vae.guide, x, seed=2, tolerance=0.2, **options
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_same_numbers_in_any_company_and_with_any_number_of_threads(name):
    vae = small_vae()
    x = draws_of(vae, 150)
    whole = ESTIMATORS[name](vae, x)
    part = ESTIMATORS[name](vae, x[120:140], first_index=120)
    assert torch.allclose(part.log_evidence, whole.log_evidence[120:140], atol=1e-8)
    assert part.method == whole.method[120:140]
    if name != "log_evidence":
        chunks = ESTIMATORS[name](vae, x, chunk_size=300)
        assert torch.allclose(chunks.log_evidence, whole.log_evidence, atol=1e-8)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.allclose(ESTIMATORS[name](vae, x).log_evidence, whole.log_evidence, atol=1e-8)
    finally:
        torch.set_num_threads(threads)
    state = torch.get_rng_state()
    ESTIMATORS[name](vae, x[:5])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ais", "log_evidence"])
def test_same_numbers_in_float32(name):
    """In other company to rounding. In other chunks a transition may go the other way by rounding, to within the error."""
    torch.set_default_dtype(torch.float32)
    vae = small_vae()
    x = draws_of(vae, 150)
    whole = ESTIMATORS[name](vae, x)
    part = ESTIMATORS[name](vae, x[120:140], first_index=120)
    error = (part.log_evidence - whole.log_evidence[120:140]).abs()
    assert part.method == whole.method[120:140]
    assert (error < 1e-3).double().mean() > 0.9 and (error < 5 * part.std_error).all()


def test_a_datum_that_no_draw_fits_is_flagged_and_hurts_no_other():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.01))

    x = torch.tensor([0.5, 9.0])
    evidence = pv.ais(model, guide, x, start="guide", num_temperatures=5)
    assert evidence.log_evidence[1] == -math.inf and not evidence.reliable[1]
    assert evidence.log_evidence[0].isfinite()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_prior_with_a_pole(dtype):
    """Of Gamma's density at 0, where the unconstrained number is so low that the rate is no number but 0."""
    shape = torch.tensor(0.05, dtype=dtype)

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(shape, 0.05))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(x + 0.07, torch.tensor(1.1, dtype=dtype)))

    x = torch.tensor([0.0, 1, 0, 4, 100], dtype=dtype)
    exact = dist.NegativeBinomial(shape.double(), probs=torch.tensor(1 / 1.05)).log_prob(x.double())
    for evidence in (pv.log_evidence(model, guide, x), pv.ais(model, guide, x, num_temperatures=20)):
        assert ((evidence.log_evidence - exact).abs() < 5 * evidence.std_error).all()
        assert evidence.reliable.sum() >= 3


def test_numbers_that_are_no_numbers_are_refused_by_their_place():
    """NaN at one datum alone, among several blocks."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.where(x < 6, torch.nan), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    x = torch.zeros(300).index_fill(0, torch.tensor([211]), 7.0)
    for call in (partial(pv.ais, num_temperatures=5), pv.log_evidence, pv.importance_sampling):
        with pytest.raises(ValueError, match="got NaN or .inf, first for the datum at index 211"):
            call(model, guide, x)


def test_guides_that_are_not_amortized():
    from pyro.infer.autoguide import AutoNormal

    truth = LinearGaussian(latent_dim=1, data_dim=2)
    x, vae = truth.draw(12), truth.vae()
    guide = AutoNormal(vae.model, init_scale=0.5)
    guide(x)
    exact = truth.log_evidence(x)
    for evidence in (pv.ais(vae.model, guide, x, num_temperatures=5), pv.log_evidence(vae.model, guide, x)):
        assert torch.allclose(evidence.log_evidence, exact, atol=0.2)
    evidence = pv.ais(vae.model, guide, x, start="guide", num_temperatures=20)
    assert torch.allclose(evidence.log_evidence, exact, atol=0.4)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("start", ["laplace", "guide", "prior"])
def test_as_graphs_it_is_the_same(start, interpreted):
    """Few steps, after which rounding has not grown; and float64."""
    vae, x, _ = approximate(num_data=20)
    options = {"num_temperatures": 4, "num_leapfrog": 1, "start": start}
    plain, graphs = (pv.ais(vae.model, vae.guide, x, compile=c, **options) for c in (False, True))
    assert torch.allclose(plain.log_evidence, graphs.log_evidence, rtol=1e-7)
    one, other = (pv.bdmc(vae.model, vae.guide, num_data=20, compile=c, **options) for c in (False, True))
    assert torch.allclose(one.lower, other.lower, rtol=1e-7) and torch.allclose(one.upper, other.upper, rtol=1e-7)
    assert interpreted
