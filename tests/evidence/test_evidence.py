"""Importance sampling from every proposal, and what `Evidence` says of it, against exact truths."""

import math
import re
import sys
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as T
from pyro.infer.autoguide import AutoNormal
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
from pyro_vae.evidence import proposals
from pyro_vae.evidence.auto import Auto
from pyro_vae.evidence.cascade import Cascade
from pyro_vae.evidence.weights import Totals, estimate
from pyro_vae.program import tiles
from pyro_vae.program.inspect import program_of

pytestmark = pytest.mark.usefixtures("float64")


def approximate(latent_dim=3, shift=0.2, inflation=1.3, num_data=200):
    truth = LinearGaussian(latent_dim=latent_dim, data_dim=latent_dim + 2)
    vae = truth.vae(GaussianPosterior(truth, shift=shift, inflation=inflation))
    x = truth.draw(num_data)
    return vae, x, truth.log_evidence(x)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("proposal", ["guide", "inflated", "heavy-tailed", "defensive"])
def test_z_scores_of_each_proposal(proposal):
    vae, x, exact = approximate()
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=1000, proposal=proposal)
    assert evidence.reliable.double().mean() > 0.95
    assert_unbiased(evidence.log_evidence, evidence.std_error, exact)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("proposal", ["laplace", "local"])
def test_z_scores_of_fitted_proposals(proposal):
    vae = small_vae("Gaussian, constant scale", latent_dim=1)
    x = draws_of(vae, 200)
    chosen = pv.proposals.Local(num_steps=100) if proposal == "local" else proposal
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=2000, proposal=chosen)
    exact = log_evidence_by_quadrature(vae, x, 1)
    assert evidence.reliable.double().mean() > 0.3  # of the others k-hat is between 1/2 and 0.7
    # In p: tails are heavy enough that z-scores are skewed, and to choose data by their k-hat would bias them.
    assert_unbiased_in_p(evidence.log_evidence, exact)


def test_laplace_is_exact_for_a_gaussian_with_50_latents():
    vae, x, exact = approximate(50, inflation=0.8, num_data=10)
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=50, proposal="laplace")
    assert torch.allclose(evidence.log_evidence, exact, atol=1e-8)
    assert evidence.reliable.all() and (evidence.khat == 0).all()
    assert evidence.elbo.mean() < exact.mean() - 1  # still the guide's


@pytest.mark.parametrize("proposal", ["guide", "inflated", "defensive", "laplace"])
def test_a_hierarchical_pair(proposal):
    model, guide, x, exact = two_layers(150)
    evidence = pv.importance_sampling(model, guide, x, num_samples=1000, proposal=proposal)
    assert (evidence.log_evidence - exact).abs().max() < 0.3
    if proposal != "laplace":  # which is exact, so that its errors are rounding
        assert_unbiased(evidence.log_evidence, evidence.std_error, exact)


@pytest.mark.parametrize("proposal", ["guide", "inflated", "heavy-tailed", "defensive", "laplace"])
def test_positive_latents_and_further_arguments(proposal):
    model, guide, x, exposure = count_and_rate(200)
    evidence = pv.importance_sampling(model, guide, x, exposure, num_samples=1000, proposal=proposal)
    good = evidence.reliable
    assert good.double().mean() > 0.4
    assert_unbiased(evidence.log_evidence[good], evidence.std_error[good], negative_binomial(x, exposure)[good])


def test_a_flow_for_a_guide():
    """A spline, whose inverse is known, a linear map, and a shift for each datum."""
    truth = LinearGaussian(latent_dim=2, data_dim=4)
    vae, x = truth.vae(), truth.draw(100)
    scale_tril = 1.3 * truth.posterior(x[:1]).scale_tril[0]
    torch.manual_seed(0)
    spline = T.Spline(2, count_bins=4)
    with torch.no_grad():  # near the identity
        for parameter in spline.parameters():
            parameter.mul_(0.1)
    fixed = [spline, T.LowerCholeskyAffine(torch.zeros(2), scale_tril)]

    def guide(x):
        base = dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1)
        shift = T.AffineTransform(truth.posterior(x).loc, 1.0, event_dim=1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(base, [*fixed, shift]))

    exact = truth.log_evidence(x)
    for evidence in (
        pv.importance_sampling(vae.model, guide, x, num_samples=1000),
        pv.importance_sampling(vae.model, guide, x, num_samples=1000, proposal="inflated"),
        pv.ais(vae.model, guide, x, start="guide", num_temperatures=20),
    ):
        assert_unbiased(evidence.log_evidence, evidence.std_error, exact)


def test_the_twin_that_forgets_the_jacobian_is_caught(monkeypatch):
    from pyro_vae.program import unconstrained

    plain = unconstrained._Site.unpack
    monkeypatch.setattr(unconstrained._Site, "unpack", lambda site, u: (plain(site, u)[0], torch.zeros(u.shape[:2])))
    model, guide, x, exposure = count_and_rate(200)
    evidence = pv.importance_sampling(model, guide, x, exposure, num_samples=2000, proposal="laplace")
    with pytest.raises(AssertionError):
        assert_unbiased(evidence.log_evidence, evidence.std_error, negative_binomial(x, exposure))


@pytest.mark.slow
def test_intervals_cover():
    """Of 1,000 intervals of 95 %, 93 to 97 % cover: outside by chance with probability 4e-3 at exact coverage, seed fixed."""
    vae, x, exact = approximate(num_data=1000)
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=500)
    good = evidence.reliable
    covered = ((evidence.log_evidence - exact).abs() < 1.96 * evidence.std_error)[good]
    assert good.sum() > 900
    assert 0.93 <= covered.double().mean() <= 0.97


def test_khat_flags_where_they_do_not():
    """A guide of half the width: an infinite variance, an error as others see it, and few data that are called reliable."""
    vae, x, exact = approximate(shift=0.5, inflation=0.4, num_data=300)
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=1000)
    error, of_draws = evidence.log_evidence - exact, (1 / evidence.ess - 1 / 1000).sqrt()
    assert (error.abs() < 1.96 * of_draws).double().mean() < 0.8  # which are too sure
    assert (error.abs() < 1.96 * evidence.std_error).double().mean() > 0.93
    assert evidence.reliable.double().mean() < 0.1


DELTA = 0.05
MOST_FAILURES = DELTA + 4 * math.sqrt(DELTA * (1 - DELTA) / 100)  # of 100; binomial, so many by chance at most 5e-4


def test_the_certificate_holds_at_infinite_variance():
    """100 times on 30 data, for a guide whose weights have an infinite variance. In the twin data share their noise."""
    vae, x, exact = approximate(1, shift=0.3, inflation=0.6, num_data=1)
    evidence = pv.importance_sampling(vae.model, vae.guide, x.expand(3000, -1), num_samples=3)

    def failures(groups):
        runs = [replace(evidence, log_evidence=group) for group in groups]
        return sum(run.certified_lower_bound(DELTA) > exact.item() for run in runs) / len(runs)

    groups = evidence.log_evidence.split(30)
    assert len(groups) == 100 and failures(groups) < MOST_FAILURES
    assert failures([group[:1].expand(30) for group in groups]) > MOST_FAILURES


def test_the_twin_that_pools_data_is_caught():
    """One average over the draws of two data, instead of one for each."""
    vae, x, exact = approximate()
    log_weights = pv.evidence.log_weights(vae.model, vae.guide, x, num_samples=500).unflatten(1, (-1, 2))
    pooled = (log_weights.logsumexp((0, 2)) - math.log(1000)).repeat_interleave(2)
    std_error = pv.importance_sampling(vae.model, vae.guide, x, num_samples=1000).std_error
    with pytest.raises(AssertionError, match="z-score"):
        assert_unbiased(pooled, std_error, exact)


@pytest.mark.slow
def test_the_twin_that_picks_the_best_of_several_runs_needs_the_union_bound():
    vae, x, exact = approximate(2, inflation=0.7, num_data=1)
    runs = [pv.importance_sampling(vae.model, vae.guide, x, num_samples=2, seed=seed) for seed in range(200)]
    by_choice = [max(runs[i : i + 20], key=lambda e: e.mean) for i in range(0, 200, 20)]
    assert sum(e.certified_lower_bound(0.6) > exact.mean() for e in by_choice) > 0.6 * len(by_choice)
    assert sum(e.certified_lower_bound(0.6, num_tried=20) > exact.mean() for e in by_choice) <= 0.6 * len(by_choice)


@pytest.mark.parametrize("num_samples", [2, 10, 30, 500])
def test_the_jackknife_is_that_of_its_definition(num_samples):
    torch.manual_seed(0)
    log_weights = 2 * torch.randn(num_samples, 7)
    totals = Totals(num_samples)
    for piece in log_weights.split(7):
        totals.add(piece)
    without = torch.stack([log_weights[torch.arange(num_samples) != i].logsumexp(0) for i in range(num_samples)])
    full = log_weights.logsumexp(0) - math.log(num_samples)
    direct = num_samples * full - (num_samples - 1) * (without - math.log(num_samples - 1)).mean(0)
    found = totals.estimate()
    assert torch.allclose(found.jackknife, direct, rtol=1e-4, atol=2e-4)
    assert torch.allclose(found.log_evidence, full, atol=1e-12)
    ess = log_weights.exp().sum(0) ** 2 / log_weights.exp().square().sum(0)
    assert torch.allclose(found.ess, ess)
    if num_samples >= 25:
        assert torch.allclose(found.khat, pv.evidence.pareto_khat(log_weights))


def test_the_jackknife_has_less_bias():
    vae, x, exact = approximate(inflation=1.5, num_data=2000)
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=20)
    plain, corrected = (evidence.log_evidence - exact).mean(), (evidence.jackknife - exact).mean()
    noise = 4.5 * evidence.mean_std_error  # fails by chance: 7e-6
    assert plain < -noise
    assert abs(corrected) < 0.5 * abs(plain) + noise


def strict(x):
    """A prior on [0, 1], which the guide's draws for the second datum and most of those for the third miss."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def careless(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, torch.where(x == -2.6, 1.0, 0.01)))


@pytest.mark.parametrize("proposal", ["guide", "inflated"])
def test_weights_of_zero_are_flagged_and_hurt_no_other_datum(proposal):
    x = torch.tensor([0.5, 9.0, -2.6])
    evidence = pv.importance_sampling(strict, careless, x, num_samples=200, proposal=proposal)
    assert evidence.log_evidence[1] == -math.inf and evidence.ess[1] == 0
    assert evidence.khat[1].isnan() and evidence.std_error[1].isnan() and not evidence.reliable[1]
    assert evidence.log_evidence[0].isfinite()
    assert not evidence.reliable[2] and evidence.ess[2] < 4
    assert "NOT reliable for" in evidence.summary() and "log p(x) = -inf for" in evidence.summary()
    assert pv.plots.evidence(evidence).axes
    assert pv.compare(evidence, evidence).mean == 0


def test_one_weight_that_is_not_zero():
    log_weights = torch.full((100, 2), -math.inf)
    log_weights[7, 0] = -3.0
    found = estimate(log_weights)
    assert found.log_evidence[0] == pytest.approx(-3 - math.log(100)) and found.ess[0] == 1
    assert found.std_error[0] == 1 and found.khat[0] == math.inf and found.jackknife[0].isnan()
    assert found.log_evidence[1] == -math.inf and found.khat[1].isnan()
    assert not found.reliable.any()


def test_equal_weights():
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.draw(5)
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=100)
    assert evidence.reliable.all()
    assert torch.allclose(evidence.jackknife, truth.log_evidence(x))
    assert torch.allclose(evidence.ess, torch.full((5,), 100.0))


def test_fewer_than_25_draws_have_no_khat():
    vae, x, _ = approximate(num_data=3)
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=24)
    assert evidence.khat.isnan().all() and not evidence.reliable.any()


@pytest.mark.parametrize("proposal", ["laplace", "heavy-tailed", "defensive"])
def test_same_numbers_in_any_company(proposal):
    vae = small_vae()
    x = draws_of(vae, 40)
    options = {"num_samples": 100, "proposal": proposal, "seed": 3}
    whole = pv.importance_sampling(vae.model, vae.guide, x, **options)
    part = pv.importance_sampling(vae.model, vae.guide, x[5:9], first_index=5, **options)
    assert torch.allclose(part.log_evidence, whole.log_evidence[5:9], atol=1e-10)
    chunks = pv.importance_sampling(vae.model, vae.guide, x, chunk_size=50, **options)
    assert torch.allclose(chunks.log_evidence, whole.log_evidence, atol=1e-10)


def test_proposals_see_noise_of_their_own():
    """The draws that fit a proposal and those that are weighed differ, or the estimate would be biased."""
    seen = []

    class Spy(proposals.FromGuide):
        def fit(self, block, region):
            fitted = super().fit(block, region)
            seen.append(block.program.draw(2)[0]["z"])
            return fitted._replace(draw=lambda strips: seen.append(fitted.draw(strips)) or seen[-1])

    vae, x, _ = approximate(num_data=2)
    pv.importance_sampling(vae.model, vae.guide, x, num_samples=2, proposal=Spy())
    pilot, (measured, _) = seen
    assert not torch.isin(pilot, measured["z"]).any()


@pytest.fixture
def seeds(monkeypatch):
    """What torch's generator is set to, for each tile and each purpose."""
    used = []
    plain = tiles.tile_seed
    monkeypatch.setattr(tiles, "tile_seed", lambda seed, place: used.append(plain(seed, place)) or used[-1])
    return used


MIXED = {
    "laplace": lambda vae, x: pv.importance_sampling(vae.model, vae.guide, x, num_samples=500, proposal="laplace"),
    "ais": lambda vae, x: pv.ais(vae.model, vae.guide, x, num_temperatures=5),
    "log_evidence": lambda vae, x: pv.log_evidence(vae.model, vae.guide, x, tolerance=0.1, max_evaluations=2000),
    "bdmc": lambda vae, x: pv.bdmc(vae.model, vae.guide, num_data=200, num_temperatures=5),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", MIXED)
def test_no_noise_comes_twice(name, seeds):
    """Neither in a pilot run and the measured run, nor in two blocks or tiles."""
    vae = small_vae()
    MIXED[name](vae, draws_of(vae, 200))  # two blocks
    assert len(set(seeds)) == len(seeds) > 5


def test_the_twin_whose_pilot_shares_its_noise_is_caught(seeds, monkeypatch):
    vae = small_vae()
    monkeypatch.setattr(sys.modules["pyro_vae.evidence.annealing"], "seed_for", lambda seed, purpose: seed)
    MIXED["ais"](vae, draws_of(vae, 200))
    assert len(set(seeds)) < len(seeds)


def test_draws_by_importance_resampling_follow_the_posterior():
    vae, x, _ = approximate(num_data=50)
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=5000, num_posterior_draws=200)
    truth = LinearGaussian(latent_dim=3, data_dim=5)
    exact = truth.posterior(x)
    z = (evidence.draws.latents["z"].mean(0) - exact.loc) / (exact.stddev / math.sqrt(200))
    assert abs(z.mean()) < 4.5 / math.sqrt(z.numel())
    assert 0.5 < z.square().mean() < 1.6
    assert evidence.draws.log_likelihood.shape == (200, 50)


def test_rate_and_distortion_are_the_elbo():
    vae, x, _ = approximate(num_data=20)
    for proposal in ("guide", "laplace"):
        evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=50, proposal=proposal)
        assert torch.allclose(evidence.elbo, -(evidence.rate + evidence.distortion))


def by_proposal(proposal):
    return lambda vae, x: pv.importance_sampling(vae.model, vae.guide, x, num_samples=512, proposal=proposal)


COUNTED = {  # whether all data get Laplace's Gaussian
    "guide": (by_proposal("guide"), False),
    "defensive": (by_proposal("defensive"), False),
    "laplace": (by_proposal("laplace"), True),
    "ais": (lambda vae, x: pv.ais(vae.model, vae.guide, x, num_temperatures=30), True),
    "ais from the prior": (
        lambda vae, x: pv.ais(vae.model, vae.guide, x, num_temperatures=30, start="prior", num_posterior_draws=200),
        True,
    ),
    "log_evidence": (lambda vae, x: pv.log_evidence(vae.model, vae.guide, x, tolerance=0.01), True),
    "log_evidence by the guide": (
        lambda vae, x: pv.log_evidence(vae.model, vae.guide, x, max_evaluations=1000, tolerance=1e-3),
        False,
    ),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", COUNTED)
def test_evaluations_are_counted(name):
    """`num_evaluations` is the number of (draw, datum) pairs at which the likelihood was evaluated, to within what trial
    runs take; products with the Hessian, which evaluate it once and go through it twice, count as two."""
    estimator, has_hessian = COUNTED[name]
    vae, x, _ = approximate(shift=0.8, inflation=0.5, num_data=128)  # whole blocks, so that nothing is filled up
    pairs = []
    vae.likelihood.register_forward_pre_hook(lambda module, args: pairs.append(args[0].shape[:-1].numel()))
    evidence = estimator(vae, x)
    hessians = 3 * 3 * 128 if has_hessian else 0
    assert evidence.num_evaluations.sum().item() == pytest.approx(sum(pairs) + hessians, rel=0.03)


@pytest.mark.parametrize("max_evaluations", [1028, 1128])
def test_a_search_that_costs_more_than_foreseen_leaves_no_datum_out(max_evaluations):
    """Posteriors of eight dimensions with heavy tails, of which some take many rounds: each has draws after them."""
    weight = torch.randn(8, 40)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.StudentT(3.0, torch.tanh(z) @ weight, 0.3).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.1 * x[:, :8], 0.3).to_event(1))

    x = torch.tanh(torch.randn(6, 8)) @ weight + 0.3 * torch.randn(6, 40)
    evidence = pv.log_evidence(model, guide, x, tolerance=0.1, max_evaluations=max_evaluations)
    assert len(evidence) == len(evidence.elbo) == len(evidence.method) == 6
    assert (evidence.num_evaluations > max_evaluations).any()  # what was begun is finished


def test_an_estimator_that_loses_a_datum_is_found_out(monkeypatch):
    vae = small_vae()
    lost = Cascade._keep

    def keep_one_less(self, columns, found, *rest):
        if len(columns) > 1:
            lost(self, columns[1:], type(found)(*(each[1:] for each in found)), *rest)

    monkeypatch.setattr(Cascade, "_keep", keep_one_less)
    with pytest.raises(RuntimeError, match="Auto: expected an estimate for each of 5 data; got"):
        pv.log_evidence(vae.model, vae.guide, draws_of(vae, 5), num_posterior_draws=1, tolerance=0.5)


def test_few_data_run_the_model_once_a_tile():
    """Six data with 4,000 draws are 24,000 pairs, of which a tile holds 2,048."""
    vae, x, _ = approximate(num_data=6)
    heights = []
    runs = list(tiles.tiles_of(*strips_of(vae, x, heights)))
    assert len(runs) == len(heights) == 12 and sum(heights) == 4000


def strips_of(vae, x, heights):
    """The first six columns of a block of 128, whose strips have 16 draws."""
    program = program_of(vae.model, vae.guide, (x,))

    def joint(program, latents):
        heights.append(len(next(iter(latents.values()))))
        return program.log_joint(latents)

    block = tiles.Block(program, range(6), slice(0, 6), 0)
    return block, tiles.evaluating(program, tiles.in_strips(program, program.draw), joint), 4000, 0, 128


def test_draws_from_the_posterior_are_those_of_any_company():
    vae, x, _ = approximate(num_data=40)
    options = dict(num_samples=400, proposal="laplace", num_posterior_draws=5)
    few, many = (pv.importance_sampling(vae.model, vae.guide, data, **options) for data in (x[:3], x))
    assert torch.allclose(few.draws.latents["z"], many.draws.latents["z"][:, :3])


def test_the_tolerance_of_a_mean_is_that_of_the_data_set_and_cheaper():
    """False failures: 20 seeds within 4.5 standard errors and half the tolerance of bias, 1e-4."""
    vae, x, exact = approximate()
    tolerance = 0.01
    each = pv.log_evidence(vae.model, vae.guide, x, tolerance=tolerance)
    for seed in range(20):
        found = pv.log_evidence(vae.model, vae.guide, x, tolerance=tolerance, tolerance_of="mean", seed=seed)
        assert found.mean_std_error <= tolerance
        assert abs(found.mean - exact.mean()) <= 4.5 * found.mean_std_error + tolerance / 2
        assert found.num_evaluations.sum() < 0.8 * each.num_evaluations.sum()
    assert found.settings["tolerance_of_mean"] == tolerance
    assert found.settings["tolerance"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "tolerance, num_data, expected", [(0.1, 1, 0.1), (0.01, 4, 0.02), (0.01, 10_000, 0.1), (2.0, 100, 2.0)]
)
def test_what_the_tolerance_of_a_mean_leaves_to_each_datum(tolerance, num_data, expected):
    """Errors average to the tolerance, and a bias of half the variance stays below half of it."""
    assert Auto(tolerance).for_mean_of(num_data).tolerance == pytest.approx(expected)


def test_a_plan_is_made_of_a_few_data():
    vae, x, _ = approximate(num_data=200)
    plan = pv.log_evidence(vae.model, vae.guide, x, tolerance=0.1, plan=True)
    assert (plan.num_data, plan.num_timed) == (200, 10)
    found = pv.log_evidence(vae.model, vae.guide, x, tolerance=0.1)
    assert plan.num_evaluations == pytest.approx(found.num_evaluations[:10].double().mean().item())
    assert plan.seconds > 0
    assert re.fullmatch(r"about .* for 200 data, by the first 10: [\d,]+ evaluations each", str(plan))


def test_a_plan_of_what_cannot_be_parted_is_refused():
    model, _, x, _ = two_layers(3)
    guide = AutoNormal(model)
    guide(x)
    with pytest.raises(ValueError, match="plan: expected a model and a guide that run on any rows"):
        pv.log_evidence(model, guide, x, plan=True)


def test_whose_tolerance_is_one_of_two():
    vae, x, _ = approximate(num_data=3)
    with pytest.raises(ValueError, match="tolerance_of: expected one of 'datum', 'mean'; got 'sum'"):
        pv.log_evidence(vae.model, vae.guide, x, tolerance_of="sum")
