"""A Gaussian fitted to each datum's posterior by variational inference."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from truths import LinearGaussian

import pyro_vae as pv
from pyro_vae.evidence import cascade, variational
from pyro_vae.evidence.cascade import Cascade
from pyro_vae.evidence.derivatives import hessian_of, scale_tril_of
from pyro_vae.evidence.gaussians import FullNormal
from pyro_vae.evidence.variational import NUM_PAIRS, NUM_TURNS, fit_normal
from pyro_vae.program.tiles import Noise


def noise(num_data, dim):
    torch.manual_seed(3)
    return Noise(num_data, torch.arange(num_data), dim)


def start(num_data, dim, scale=1.0):
    return FullNormal(torch.zeros(num_data, dim).double(), scale * torch.eye(dim).double().repeat(num_data, 1, 1))


def densities_of(gaussian):
    return lambda rows: gaussian.at(rows).log_prob


def same(density):
    """Return one density for all data."""
    return lambda rows: density


def test_a_gaussian_is_found_in_any_units():
    """Ten data, four dimensions, of any covariance, from 1.5 away and 0.6 of the width."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(10, 4, 4, generator=generator).double()
    covariance = factor @ factor.mT + 0.3 * torch.eye(4)
    truth = FullNormal(torch.randn(10, 4, generator=generator).double(), torch.linalg.cholesky(covariance))
    near = FullNormal(truth.loc + 1.5, truth.scale_tril * 0.6)
    found, *_ = fit_normal(densities_of(truth), near, noise(10, 4))
    assert torch.allclose(found.loc, truth.loc, atol=0.05)
    assert torch.allclose(found.scale_tril @ found.scale_tril.mT, covariance, rtol=0.05, atol=0.05)


def test_what_is_a_gaussian_already_stays_as_it_is():
    """To the last bit; a start that is a little off, in the twin, does not."""
    truth = FullNormal(torch.randn(10, 4).double(), torch.eye(4).double().repeat(10, 1, 1))
    kept = fit_normal(densities_of(truth), truth, noise(10, 4))
    moved = fit_normal(densities_of(truth), truth._replace(loc=truth.loc + 0.1), noise(10, 4))
    assert kept.is_exact.all() and all(map(torch.equal, kept.gaussian, truth))
    assert not moved.is_exact.any() and not torch.equal(moved.gaussian.loc, truth.loc + 0.1)


def test_what_is_a_gaussian_already_takes_one_turn():
    truth = FullNormal(torch.randn(10, 4).double(), torch.eye(4).double().repeat(10, 1, 1))
    assert (fit_normal(densities_of(truth), truth, noise(10, 4)).num_turns == 1).all()


def test_a_fit_goes_on_where_it_still_rises():
    """Two of four data start twice as far away as four steps lead; the others neither go on nor feel them."""
    truth = FullNormal(torch.zeros(4, 3).double(), torch.eye(3).double().repeat(4, 1, 1))
    near = truth._replace(loc=truth.loc + 0.5)
    far = near._replace(loc=near.loc + 9.0 * torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None])
    gone_on = fit_normal(densities_of(truth), far, noise(4, 3))
    after = torch.rand(1)
    stopped = fit_normal(densities_of(truth), far, noise(4, 3), most_turns=NUM_TURNS)
    alone = fit_normal(densities_of(truth), near, noise(4, 3))
    assert after.equal(torch.rand(1))
    assert gone_on.num_turns.tolist() == [gone_on.num_turns[0], NUM_TURNS, gone_on.num_turns[2], NUM_TURNS]
    assert (gone_on.gaussian.loc.norm(dim=-1) < 0.1).all() and (gone_on.num_turns[::2] > NUM_TURNS).all()
    assert (stopped.gaussian.loc.norm(dim=-1)[::2] > 3).all()
    assert gone_on.gaussian.loc[1::2].equal(alone.gaussian.loc[1::2])


def test_the_best_gaussian_of_a_skewed_density():
    """log p(u) = 2 u - 2 e^u (a log Gamma): E u = m, E e^u = e^{m + s^2 / 2} give m = -s^2 / 2, s^2 = 1/2 in closed form."""
    pairs = Noise(400, torch.arange(400), 1)
    torch.manual_seed(5)
    mode = FullNormal(torch.zeros(400, 1).double(), torch.full((400, 1, 1), math.sqrt(0.5)).double())
    found, *_ = fit_normal(same(lambda u: (2 * u - 2 * u.exp()).sum(-1)), mode, pairs)
    variance = found.scale_tril[:, 0, 0].square()
    for values, truth in ((found.loc[:, 0], -0.25), (variance, 0.5)):
        error = values.std() / math.sqrt(len(values))
        # The ridge and what each fit takes back leave a bias below a twentieth of a standard deviation.
        assert abs(values.mean() - truth) < 4 * error + 0.035, (values.mean(), error)


def test_a_step_that_loses_is_taken_back():
    """Where the density falls off a cliff beside the start, it stays."""

    def density(u):
        return torch.where(u.abs().amax(-1) < 0.5, 5.0, -1e6) + 50 * u.sum(-1)

    narrow = start(3, 2, 0.05)
    found, *_ = fit_normal(same(density), narrow, noise(3, 2))
    assert (found.loc.abs() < 0.5).all()
    nowhere, *_ = fit_normal(same(lambda u: -torch.inf * u.square().sum(-1)), narrow, noise(3, 2))
    assert nowhere.loc.equal(narrow.loc) and nowhere.scale_tril.equal(narrow.scale_tril)


def banana(x):
    with pyro.plate("data", len(x)):
        one = pyro.sample("one", dist.Normal(0.0, 1.0))
        other = pyro.sample("other", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(other + 0.5 * one.square(), 0.5), obs=x)


def guide_of_banana(x):
    with pyro.plate("data", len(x)):
        pyro.sample("one", dist.Normal(0.0, 1.0))
        pyro.sample("other", dist.Normal(x / 2, 1.0))


@pytest.fixture(scope="module")
def bananas():
    x = torch.linspace(-1, 2, 30)
    one, other = torch.meshgrid(*[torch.linspace(-7, 7, 701).double()] * 2, indexing="ij")
    prior = -0.5 * (one.square() + other.square()) - math.log(2 * math.pi)
    likelihood = dist.Normal(other + 0.5 * one.square(), torch.tensor(0.5).double())
    exact = torch.stack([(prior + likelihood.log_prob(each)).flatten().logsumexp(0) for each in x.double()])
    return x, exact + 2 * math.log(0.02)


def test_it_serves_better_than_laplace_where_the_posterior_is_bent(bananas):
    x, exact = bananas
    found = {}
    for name in ("laplace", "gaussian"):
        evidence = pv.ais(banana, guide_of_banana, x, start=name, num_temperatures=10)
        z = (evidence.log_evidence - exact) / evidence.std_error
        assert z.mean().abs() < 4 * z.std() / math.sqrt(len(z)) + 0.1 and z.square().mean() < 2
        found[name] = evidence
    variances = {name: each.diagnostics["log_weights"].var(0).mean() for name, each in found.items()}
    assert variances["gaussian"] < variances["laplace"]
    more = found["gaussian"].num_evaluations - found["laplace"].num_evaluations
    assert ((more % (2 * NUM_PAIRS) == 0) & (more >= NUM_TURNS * 2 * NUM_PAIRS)).all()


def test_it_is_a_proposal(bananas):
    x, exact = bananas
    fitted = pv.importance_sampling(banana, guide_of_banana, x, proposal=pv.proposals.Gaussian(), num_samples=4000)
    assert set(fitted.method) == {"importance sampling from a fitted Gaussian"}
    ratio = (fitted.log_evidence - exact).exp()
    assert (ratio.mean() - 1).abs() < 4 * ratio.std() / math.sqrt(len(ratio))  # one in 16,000 fails


def test_a_linear_gaussian_pair():
    """Laplace's Gaussian is the posterior, which the fit leaves as it is: the numbers are exact."""
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.draw(40)
    evidence = pv.ais(vae.model, vae.guide, x, start="gaussian", num_temperatures=3)
    error = (evidence.log_evidence - truth.log_evidence(x)).abs()
    assert evidence.reliable.all() and error.max() < 1e-6
    wide = pv.ais(vae.model, vae.guide, x, start="prior", num_temperatures=3)
    assert not (wide.log_evidence - truth.log_evidence(x)).abs().max() < 1e-6


BESIDE_THE_GUIDE = (" and Laplace's Gaussian", " and a fitted Gaussian")


@pytest.mark.parametrize("max_evaluations", [1400, 6000])
def test_where_laplace_has_missed_some_a_mixture_with_the_guide_takes_its_place(bananas, monkeypatch, max_evaluations):
    x, exact = bananas
    monkeypatch.setattr(Cascade, "_is_missed", lambda self, columns, *_: torch.ones_like(columns, dtype=torch.bool))
    evidence = pv.log_evidence(banana, guide_of_banana, x, tolerance=0.02, max_evaluations=max_evaluations)
    can_anneal = max_evaluations > 1400
    named = {"AIS from the guide and a fitted Gaussian"} if can_anneal else set()
    named |= {f"importance sampling from the guide{also}" for also in ("", *BESIDE_THE_GUIDE)}
    assert set(evidence.method) <= named and (not can_anneal or any("AIS" in name for name in evidence.method))
    assert evidence.num_evaluations.double().mean() <= max_evaluations
    z = (evidence.log_evidence - exact) / evidence.std_error
    assert z.mean().abs() < 4 * z.std() / math.sqrt(len(z)) + 0.2 and z.square().mean() < 2


def test_what_a_fitted_gaussian_has_seen_is_annealed_from_it_alone(bananas, monkeypatch):
    """Where the guide's draws exceed Laplace's estimate, but not that of the Gaussian that is fitted further."""
    x, exact = bananas
    monkeypatch.setattr(Cascade, "_missed_by", lambda self, columns, *_: torch.ones(len(columns), dtype=torch.bool))
    evidence = pv.log_evidence(banana, guide_of_banana, x, tolerance=0.02)
    assert "AIS from a fitted Gaussian" in evidence.method
    z = (evidence.log_evidence - exact) / evidence.std_error
    assert z.mean().abs() < 4 * z.std() / math.sqrt(len(z)) + 0.2 and z.square().mean() < 2


def two_sided(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 3.0).to_event(1))
        loc = z[..., 0].abs() + 0.1 * z[..., 1] * z[..., 2]
        pyro.sample("x", dist.StudentT(1.0, loc, 0.05), obs=x)


def broad_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 3.0).to_event(1))


def num_wrong(x):
    """How many data are called reliable, and are off by 0.3 nats and more."""
    truth = pv.importance_sampling(two_sided, broad_guide, x, num_samples=100_000, seed=1)
    evidence = pv.log_evidence(two_sided, broad_guide, x)
    return int((evidence.reliable & ((evidence.log_evidence - truth.log_evidence).abs() > 0.3)).sum())


def test_a_gaussian_on_one_of_two_modes_does_not_settle_what_the_guide_saw(monkeypatch):
    """It is half of p(x), within the error of the guide's few draws: few data are then called reliable; and many, were
    it enough that the guide did not find significantly more."""
    x = torch.linspace(1, 8, 80)
    few = num_wrong(x)
    monkeypatch.setattr(cascade, "MORE", -cascade.DOUBT)
    assert few <= 10 < num_wrong(x)  # 4 and 17


def test_a_mixture_that_looks_good_is_drawn_from_once_more(monkeypatch):
    """Few draws let it look better than it is: on real digits one was off by 0.67 nats, with budget left."""
    truth = LinearGaussian()
    vae, x = truth.vae(), truth.draw(20)
    monkeypatch.setattr(Cascade, "_is_missed", lambda self, columns, *_: torch.ones_like(columns, dtype=torch.bool))
    monkeypatch.setattr(cascade.Budget, "num_draws", of_poor_guides(cascade.Budget.num_draws))
    twice = pv.log_evidence(vae.model, vae.guide, x, tolerance=0.5)
    assert set(twice.method) == {"importance sampling from the guide and Laplace's Gaussian"}
    monkeypatch.setattr(Cascade, "_confirmed", lambda self, columns, needed, *_: needed)
    once = pv.log_evidence(vae.model, vae.guide, x, tolerance=0.5)
    assert (twice.num_evaluations - once.num_evaluations == cascade.LAPLACE_PILOT).all()


def of_poor_guides(num_draws):
    def found(self, pilot, num_pilot, *args):
        needed = num_draws(self, pilot, num_pilot, *args)
        return torch.full_like(needed, torch.inf) if num_pilot == cascade.GUIDE_PILOT else needed

    return found


@pytest.fixture(scope="module")
def images():
    """A VAE of 16 latents whose posteriors Laplace's Gaussian fits badly, and data of it."""
    torch.manual_seed(0)
    decoder = pv.nn.MLP(16, [32], 24)
    for parameter in decoder.parameters():
        parameter.data.mul_(2.0)
    posterior = pv.posteriors.DiagonalNormal(pv.nn.MLP(24, [16], 32))
    vae = pv.VAE(pv.priors.StandardNormal(16), pv.likelihoods.Bernoulli(decoder), posterior).eval()
    with torch.no_grad():
        return vae, vae.likelihood(vae.prior().sample((24,))).sample()


def with_a_small_budget(vae, x, seed=0):
    budget = dict(max_evaluations=1700, max_evaluations_of="datum")
    evidence = pv.log_evidence(vae.model, vae.guide, x, tolerance=0.02, **budget, seed=seed)
    assert (evidence.num_evaluations <= 1700).all()
    return evidence


def test_where_annealing_is_too_dear_a_fitted_gaussian_is_drawn_from(images, monkeypatch):
    """A few hundred draws from it are worth more than thousands from Laplace's, where few of these count."""
    vae, x = images
    truth = pv.ais(vae.model, vae.guide, x, num_temperatures=300, seed=9)

    def found():
        runs = [with_a_small_budget(vae, x, seed) for seed in range(2)]
        errors = torch.cat([run.log_evidence - truth.log_evidence for run in runs])
        return errors, {name for run in runs for name in run.method}

    fitted, names = found()
    assert "importance sampling from a fitted Gaussian" in names
    ratio = fitted.exp()
    assert (ratio.mean() - 1).abs() < 4 * ratio.std() / math.sqrt(len(ratio))  # one in 16,000 fails
    monkeypatch.setattr(cascade, "FEW_COUNT", 0.0)
    from_laplace, _ = found()
    assert fitted.square().mean() < 0.25 * from_laplace.square().mean()


def test_what_the_fit_costs_is_not_spent_again(images, monkeypatch):
    left = []
    spend = Cascade._spend_the_rest

    def spy(self, columns, source):
        left.append(int(self._unspent(columns).sum()))
        spend(self, columns, source)

    monkeypatch.setattr(Cascade, "_spend_the_rest", spy)
    with_a_small_budget(*images)
    of_fitted = sum(left)
    left.clear()
    monkeypatch.setattr(cascade, "FEW_COUNT", 0.0)
    with_a_small_budget(*images)
    assert sum(left) - of_fitted >= NUM_TURNS * 2 * NUM_PAIRS * len(images[1])  # each datum was fitted


def test_the_guide_is_drawn_from_too_where_the_fit_has_missed_some(images, monkeypatch):
    monkeypatch.setattr(Cascade, "_is_missed", lambda self, columns, *_: torch.ones_like(columns, dtype=torch.bool))
    names = set(with_a_small_budget(*images).method)
    assert "importance sampling from the guide and a fitted Gaussian" in names
    assert "importance sampling from a fitted Gaussian" not in names


@pytest.mark.parametrize("max_evaluations", [552, 600])
def test_a_small_budget_is_kept(bananas, max_evaluations):
    x, _ = bananas
    evidence = pv.log_evidence(banana, guide_of_banana, x, tolerance=1e-3, max_evaluations=max_evaluations)
    assert (evidence.num_evaluations <= max_evaluations).all()


@pytest.mark.parametrize("max_evaluations", [1700, 2200, 2600])
def test_a_budget_is_kept_where_fits_go_on(images, max_evaluations, monkeypatch):
    """As if every ELBO still rose: each datum takes what is left to it beside its draws or its annealing."""
    vae, x = images
    monkeypatch.setattr(variational, "STILL_RISING", -math.inf)
    options = {"max_evaluations": max_evaluations, "max_evaluations_of": "datum"}
    spent = pv.log_evidence(vae.model, vae.guide, x, tolerance=1e-3, **options).num_evaluations
    monkeypatch.setattr(variational, "MOST_TURNS", NUM_TURNS)
    without = pv.log_evidence(vae.model, vae.guide, x, tolerance=1e-3, **options).num_evaluations
    assert (spent <= max_evaluations).all() and not spent.equal(without)


def test_a_pole_beside_the_start_is_no_crash():
    """Gradients as large as numbers get, as of a Dirichlet close to a corner, in one datum of two."""

    def density(u):
        wall = torch.relu(u[:, :1] - 1.0).sum(-1)
        return -0.5 * u.square().sum(-1) - 1.7e308 * torch.nn.functional.pad(wall, (0, 1))

    two = FullNormal(torch.full((2, 3), 0.9).double(), torch.eye(3).double().repeat(2, 1, 1))
    found, *_ = fit_normal(same(density), two, noise(2, 3))
    assert all(each.isfinite().all() for each in found)
    assert found.loc[1].abs().max() < 0.05 and found.loc[0].max() < 1.0


def test_a_curvature_near_the_largest_number_stays_finite():
    """Twice it is infinite, for which there are no eigenvalues."""
    largest = torch.finfo(torch.float64).max
    hessian = hessian_of(lambda u: -0.3 * largest * u.square().sum(-1), torch.zeros(1, 2).double())
    assert (2 * hessian).diagonal(dim1=1, dim2=2).isinf().all()
    assert scale_tril_of(hessian, torch.ones(1, 1).double()).isfinite().all()
