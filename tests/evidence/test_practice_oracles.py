"""log p(x) of the programs in `practice`, computed a second time by other means."""

import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pyro
import pytest
import torch
from practice import PRACTICE, Quadrature
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.poutine.subsample_messenger import _Subsample
from scipy import integrate, special, stats

NUM_DATA = 20


@cache
def made(name, num_data=NUM_DATA):
    return PRACTICE[name](num_data)


def first(program, num):
    return replace(program, args=tuple(arg[:num] for arg in program.args), log_evidence=program.log_evidence[:num])


# By a second formula, or by scipy's integration


def normal(x, loc, covariance):
    """log density of each row of x, whose means are the rows of loc."""
    return stats.multivariate_normal(np.zeros(x.shape[-1]), covariance).logpdf(x - loc)


def exchangeable(num, between, within):
    return between * np.ones((num, num)) + within * np.eye(num)


def integrated(log_joint, low, high, exact, points=None):
    """log of the integral over one latent; the oracle only sets the scale of the integrand, which is 1 if it is right."""

    def integrand(z):
        return np.exp(log_joint(z) - exact)

    integral, _ = integrate.quad_vec(integrand, low, high, epsabs=1e-9, epsrel=1e-9, points=points, limit=2000)
    return exact + np.log(integral)


def over_two_normals(log_likelihood, num=80, limit=8.0):
    """log of the expectation over two standard normals, by Gauss and Legendre; `log_likelihood` gives `(P, N)`."""
    nodes, weights = np.polynomial.legendre.leggauss(num)
    a, b = (limit * each.reshape(-1, 1) for each in np.meshgrid(nodes, nodes))
    log_weights = np.log(limit**2 * np.outer(weights, weights)).reshape(-1, 1)
    prior = stats.norm.logpdf(a) + stats.norm.logpdf(b)
    return special.logsumexp(log_likelihood(a, b) + prior + log_weights, axis=0)


def answers(x, logits):
    """log probability of answers 0 and 1, summed over the last dimension."""
    return special.log_expit((2 * x - 1) * logits).sum(-1)


def factor_analysis(exact, x, weight, bias, scale):
    from sklearn.decomposition import FactorAnalysis

    model = FactorAnalysis(2)
    model.components_, model.mean_, model.noise_variance_ = weight.T, bias, scale**2
    return model.score_samples(x)


def probabilistic_pca(exact, x, weight, scale):
    return normal(x, 0, weight @ weight.T + scale**2 * np.eye(8))


def gaussian_process(exact, x, kernel, scale):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    times = np.linspace(0, 3, 12)[:, None]
    regressor = GaussianProcessRegressor(RBF(0.5), alpha=1e-4 + scale**2, optimizer=None)
    return np.array([regressor.fit(times, row).log_marginal_likelihood_value_ for row in x])


def random_intercepts(exact, x, covariate, slope, spread, scale):
    return normal(x, slope * covariate, exchangeable(5, spread**2, scale**2))


def random_intercepts_and_slopes(exact, x, covariate, covariance, scale):
    found = []
    for row, c in zip(x, covariate, strict=True):
        of_row = 1 - 0.4 * (c + c[:, None]) + (0.4**2 + 0.6**2) * np.outer(c, c)
        found.append(normal(row, 0.5 + c, of_row + 0.25 * np.eye(6)))
    return np.array(found)


def kalman(series, carry, spread, scale):
    """log p of one series by the filter."""
    mean, variance, total = 0.0, 1.0, 0.0
    for value in series:
        total += stats.norm.logpdf(value, mean, np.sqrt(variance + scale**2))
        gain = variance / (variance + scale**2)
        mean, variance = mean + gain * (value - mean), (1 - gain) * variance
        mean, variance = carry * mean, carry**2 * variance + spread**2
    return total


def state_space(exact, x, carry, spread, scale):
    return np.array([kalman(row, carry, spread, scale) for row in x])


def state_space_of_lengths(exact, x, mask, carry, spread, scale):
    x = x.reshape(mask.shape)
    return np.array([kalman(row[there], carry, spread, scale) for row, there in zip(x, mask, strict=True)])


def of_those_seen(x, mask, loc, covariance):
    found = [
        normal(row[seen], loc[seen], covariance[np.ix_(seen, seen)]) if seen.any() else 0.0
        for row, seen in zip(x, mask, strict=True)
    ]
    return np.array(found)


def missing_entries(exact, x, mask, weight, scale):
    return of_those_seen(x, mask, np.zeros(6), weight @ weight.T + scale**2 * np.eye(6))


def missing_entries_under_poutine_mask(exact, x, mask, gains, scale):
    return of_those_seen(x, mask, 0.3 * gains, np.outer(gains, gains) + scale**2 * np.eye(5))


def schools_and_pupils(exact, x, spread, scale):
    return normal(x, 1.0, exchangeable(7, spread**2, scale**2))


def classes_in_schools(exact, x, between, scale):
    same_class = np.kron(np.eye(3), np.ones((2, 2)))
    return normal(x.reshape(len(x), 6), 0, 1 + between**2 * same_class + scale**2 * np.eye(6))


def errors_in_variables(exact, x, response, noise, gain, scale):
    covariance = [[1 + noise**2, 1, gain], [1, 1 + noise**2, gain], [gain, gain, gain**2 + scale**2]]
    return normal(np.column_stack([x, response]), [2, 2, 2 * gain], covariance)


def natural_units(exact, x, prior, scale):
    return stats.norm.logpdf(x, 3000, np.hypot(1000, 1000))


def correlated_outputs(exact, x, covariance, scale):
    noise = np.diag(np.repeat(scale, 3) ** 2)
    return normal(x.reshape(len(x), 9), 0, np.kron(covariance, np.ones((3, 3))) + noise)


def three_layers(exact, x, scale):
    return normal(x, 0, exchangeable(2, 1.1**2 * (0.9**2 + 0.8**2) + 0.6**2, 0.5**2))


def missing_covariate(exact, x, covariate, known, gain, scale):
    seen = normal(x, gain * covariate[:, None], exchangeable(2, 1, scale**2)) + stats.norm.logpdf(covariate, 0.4, 0.8)
    return np.where(known, seen, normal(x, 0.4 * gain, exchangeable(2, 1 + (0.8 * gain) ** 2, scale**2)))


def logistic_intercepts(exact, x, covariate, slope, spread):
    def log_joint(z):
        return stats.norm.logpdf(z) + answers(x, spread * z + slope * covariate)

    return integrated(log_joint, -10, 10, exact)


def items(exact, x, discrimination, difficulty):
    return integrated(lambda z: stats.norm.logpdf(z) + answers(x, discrimination * (z - difficulty)), -10, 10, exact)


def graded_answers(exact, x, cutpoints, loading):
    steps = x.astype(int)

    def log_joint(z):
        above = special.expit(z * loading - cutpoints[:, None])  # P(x > step), (3, 5)
        levels = np.vstack([np.ones(5), above, np.zeros(5)])
        probs = levels[:-1] - levels[1:]
        return stats.norm.logpdf(z) + np.log(probs[steps, np.arange(5)]).sum(-1)

    return integrated(log_joint, -10, 10, exact)


def probit(exact, x, covariate, intercept, gain):
    def log_joint(z):
        return stats.norm.logpdf(z) + stats.norm.logcdf((2 * x - 1) * (intercept + covariate + gain * z))

    return integrated(log_joint, -10, 10, exact)


def poisson_lognormal(exact, x, exposure, loc, spread):
    def log_joint(rate):
        return stats.lognorm.logpdf(rate, spread, scale=np.exp(loc)) + stats.poisson.logpmf(x, rate * exposure).sum(-1)

    return integrated(log_joint, 1e-12, 200, exact)


def overdispersed_counts(exact, x, mean):
    def log_joint(z):
        size = np.exp(0.5 + 0.8 * z)
        return stats.norm.logpdf(z) + stats.nbinom.logpmf(x, size, size / (size + mean)).sum(-1)

    return integrated(log_joint, -10, 10, exact)


def zero_inflated_rate(exact, x, gate):
    def log_joint(z):
        each = gate * (x == 0) + (1 - gate) * stats.poisson.pmf(x, np.exp(0.7 + 0.7 * z))
        return stats.norm.logpdf(z) + np.log(np.maximum(each, 1e-300)).sum(-1)

    return integrated(log_joint, -9, 9, exact)


def hurdle_counts(exact, x, zero):
    def log_joint(z):
        poisson = stats.poisson(np.exp(0.5 + 0.8 * z))
        each = np.where(x == 0, np.log(zero), np.log(1 - zero) + poisson.logpmf(x) - poisson.logsf(0))
        return stats.norm.logpdf(z) + each.sum(-1)

    return integrated(log_joint, -8, 7, exact)


def tobit(exact, x, level, scale):
    def log_joint(z):
        each = np.where(x > 0, stats.norm.logpdf(x, z + level, scale), stats.norm.logcdf(0, z + level, scale))
        return stats.norm.logpdf(z) + each.sum(-1)

    return integrated(log_joint, -10, 10, exact)


def half_cauchy_scale(exact, x):
    def log_joint(u):
        return stats.halfcauchy.logpdf(np.exp(u)) + u + stats.norm.logpdf(x, 0, np.exp(u)).sum(-1)

    return integrated(log_joint, -20, 25, exact)


def uniform_prior(exact, x, noise):
    return integrated(lambda z: stats.norm.logpdf(x, 2 * z, noise), 0, 1, exact)


def correlation(exact, x):
    first, second = x[..., 0], x[..., 1]

    def log_joint(r):
        pairs = stats.norm.logpdf(first) + stats.norm.logpdf(second, r * first, np.sqrt(1 - r**2))
        return np.log(0.75 * (1 - r**2)) + pairs.sum(-1)

    return integrated(log_joint, -1 + 1e-12, 1 - 1e-12, exact)


def square_and_noise(exact, x, scale):
    def log_joint(z):
        return stats.norm.logpdf(z, 0, 1.5) + stats.norm.logpdf(x, z**2, scale)

    return integrated(log_joint, -12, 12, exact, points=[-1, 0, 1])


def magnitude_and_noise(exact, x, scale):
    def log_joint(z):
        return stats.norm.logpdf(z) + stats.norm.logpdf(x, abs(z), scale)

    return integrated(log_joint, -10, 10, exact, points=[0])


def mixture_prior(exact, x, weights, locs, spreads, scale):
    def log_joint(z):
        return np.log(weights @ stats.norm.pdf(z, locs, spreads)) + stats.norm.logpdf(x, z, scale)

    return integrated(log_joint, -8, 10, exact)


def angle(exact, x, centre, concentration, scale):
    def log_joint(z):
        point = np.array([np.cos(z), np.sin(z)])
        return stats.vonmises.logpdf(z, concentration, centre) + stats.norm.logpdf(x, point, scale).sum(-1)

    return integrated(log_joint, 0, 2 * np.pi, exact)


def counts_with_exposure(exact, x, exposure, shape, rate):
    return stats.nbinom.logpmf(x, shape, rate / (rate + exposure))


def successes_of_trials(exact, x, trials, a, b):
    return stats.betabinom.logpmf(x, trials, a, b)


def votes_of_three_parties(exact, x, prior):
    return stats.dirichlet_multinomial(prior, 15).logpmf(x.astype(int))


def student_t_by_precisions(exact, x, freedom):
    return stats.t.logpdf(x, freedom)


def laplace_by_variances(exact, x):
    return stats.laplace.logpdf(x)


def censored_lifetimes(exact, x, died, shape, rate):
    def log_joint(z):
        lives = stats.expon(scale=1 / z)
        return stats.gamma.logpdf(z, shape, scale=1 / rate) + np.where(died, lives.logpdf(x), lives.logsf(x)).sum(-1)

    return integrated(log_joint, 1e-12, 60, exact)


def weibull_with_frailty(exact, x, died, shape, rate, power):
    def log_joint(z):
        lives = stats.weibull_min(power, scale=z ** (-1 / power))
        return stats.gamma.logpdf(z, shape, scale=1 / rate) + np.where(died, lives.logpdf(x), lives.logsf(x))

    return integrated(log_joint, 1e-12, 60, exact)


def unknown_mean_and_precision(exact, x, shape, rate, count):
    spread = rate / shape * (np.eye(6) + np.ones((6, 6)) / count)
    return stats.multivariate_t(np.zeros(6), spread, df=2 * shape).logpdf(x)


def logistic_intercepts_and_slopes(exact, x, covariate):
    def log_likelihood(a, b):
        return answers(x, a[..., None] + (0.5 + b[..., None]) * covariate)

    return over_two_normals(log_likelihood)


def two_steps_of_volatility(exact, x):
    def log_likelihood(a, b):
        first = -1 + a
        second = -1 + 0.9 * (first + 1) + 0.5 * b
        today, tomorrow = (stats.norm.logpdf(x[:, t], 0, np.exp(h / 2)) for t, h in enumerate((first, second)))
        return today + tomorrow

    return over_two_normals(log_likelihood)


def bernoulli_vae(exact, x, first, second):
    def log_likelihood(a, b):
        logits = np.tanh(np.hstack([a, b]) @ first) @ second
        return answers(x, logits[:, None])

    return over_two_normals(log_likelihood)


def logistic_normal_shares(exact, x, loc, spread):
    def log_likelihood(a, b):
        one, two = special.expit(loc[0] + spread[0] * a - np.log(2)), special.expit(loc[1] + spread[1] * b)
        shares = np.stack([one, (1 - one) * two, (1 - one) * (1 - two)], -1)
        return stats.multinomial.logpmf(x.astype(int), 20, shares)

    return over_two_normals(log_likelihood)


def softmax_of_normals(exact, x, contrast):
    def log_likelihood(a, b):
        shares = special.softmax(np.hstack([a, b]) @ contrast.T, -1)[:, None]
        return stats.multinomial.logpmf(x.astype(int), 25, shares / shares.sum(-1, keepdims=True))

    return over_two_normals(log_likelihood)


def banana(exact, x, noise, spread):
    """z1^2 is a chi-squared variable."""
    scale = np.hypot(noise, spread)

    def density(root, value):
        return 2 * root * stats.chi2.pdf(root**2, 1) * stats.norm.pdf(value, root**2, scale)

    return np.log([integrate.quad(density, 1e-12, 10, args=(value,), epsrel=1e-10, points=[1])[0] for value in x])


def funnel(exact, x, spread):
    def log_joint(v):
        return stats.norm.logpdf(v, 0, spread) + stats.norm.logpdf(x, 0, np.sqrt(1 + np.exp(v))).sum(-1)

    return integrated(log_joint, -15, 15, exact)


def three_kinds_of_data(exact, x, count, answer):
    def log_joint(z):
        counts = stats.poisson.logpmf(count, np.exp(0.5 + z))
        return stats.norm.logpdf(z) + stats.norm.logpdf(x, 2 * z) + counts + answers(answer[:, None], 1.5 * z)

    return integrated(log_joint, -10, 8, exact)


def gaussian_mixture(exact, x, weights, locs, trils):
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(3)
    covariances = trils @ trils.transpose(0, 2, 1)
    model.weights_, model.means_, model.covariances_ = weights, locs, covariances
    model.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(covariances))
    return model.score_samples(x)


def latent_classes(exact, x, weights, probs):
    return np.log(np.prod(np.where(x[:, None] == 1, probs, 1 - probs), -1) @ weights)


def hidden_markov(exact, x, initial, transition, locs, scale):
    """The sum over all 243 paths."""
    paths = np.array(list(itertools.product(range(3), repeat=5)))
    prior = np.log(initial[paths[:, 0]]) + np.log(transition[paths[:, :-1], paths[:, 1:]]).sum(-1)
    return special.logsumexp(prior + stats.norm.logpdf(x[:, None], locs[paths], scale).sum(-1), axis=-1)


def zeros_out_of_season(exact, x, off, rate):
    return np.log(off * (x == 0).all(-1) + (1 - off) * stats.poisson.pmf(x, rate).prod(-1))


def missing_treatment(exact, x, treatment, known, treated, effect, scale):
    likelihood = [np.exp(normal(x, c * effect, exchangeable(2, 1, scale**2))) for c in (0, 1)]
    of_each = np.stack([(1 - treated) * likelihood[0], treated * likelihood[1]])
    return np.log(np.where(known, of_each[treatment.astype(int), np.arange(len(x))], of_each.sum(0)))


def clusters_with_levels(exact, x, weights, locs, spreads, scale):
    each = [
        w * np.exp(normal(x, m, exchangeable(2, s**2, scale**2)))
        for w, m, s in zip(weights, locs, spreads, strict=True)
    ]
    return np.log(sum(each))


def spike_and_slab(exact, x, there, scale):
    spike = stats.norm.pdf(x, 0, scale).prod(-1)
    return np.log((1 - there) * spike + there * np.exp(normal(x, 0, exchangeable(3, 4, scale**2))))


def animals_and_visits(exact, x, probs, seen):
    prior = stats.poisson.pmf(np.arange(41), 6) / stats.poisson.cdf(40, 6)
    return np.log(sum(prior[n] * stats.binom.pmf(x, n, seen).prod(-1) for n in range(41)))


def photons(exact, x, rate, noise):
    return np.log(sum(stats.poisson.pmf(n, rate) * stats.norm.pdf(x, n, noise) for n in range(100)))


SECOND_COMPUTATIONS = {name: globals()[name] for name in PRACTICE if name in globals()} | {
    "state_space_of_different_lengths": state_space_of_lengths,
    "state_space_under_poutine_mask": state_space_of_lengths,
    "rasch": items,
    "two_parameter_items": items,
    "angle_near_pi": angle,
}


def in_numpy(value):
    return value.numpy() if isinstance(value, torch.Tensor) else value


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", PRACTICE)
def test_a_second_computation_agrees(name):
    program = made(name)
    parameters = {key: in_numpy(value) for key, value in program.parameters.items()}
    exact = program.log_evidence.numpy()
    again = SECOND_COMPUTATIONS[name](exact, *map(in_numpy, program.args), **parameters)
    assert again.shape == exact.shape
    np.testing.assert_allclose(again, exact, rtol=0, atol=1e-6)
    if program.quadrature:  # with half the step; some have a closed form too
        num, few = 2 * Quadrature.POINTS[len(program.quadrature.axes)] - 1, first(program, 2)
        finer = Quadrature.log_evidence(program.quadrature, *few.args, num=num)
        assert (finer - few.log_evidence).abs().max() < 1e-8


def test_the_hidden_markov_model_agrees_with_hmmlearn():
    hmm = pytest.importorskip("hmmlearn.hmm")
    program = made("hidden_markov")
    model = hmm.GaussianHMM(3, covariance_type="spherical")
    model.startprob_, model.transmat_ = (program.parameters[key].numpy() for key in ("initial", "transition"))
    model.means_ = program.parameters["locs"].numpy()[:, None]
    model.covars_ = np.full(3, program.parameters["scale"].item() ** 2)
    scores = [model.score(row[:, None]) for row in program.args[0].numpy()]
    np.testing.assert_allclose(scores, program.log_evidence.numpy(), atol=1e-8)


def test_the_state_space_agrees_with_statsmodels():
    statespace = pytest.importorskip("statsmodels.tsa.statespace.mlemodel")
    program = made("state_space")
    carry, spread, scale = (program.parameters[key].item() for key in ("carry", "spread", "scale"))
    for row, exact in zip(program.args[0].numpy(), program.log_evidence.numpy(), strict=True):
        model = statespace.MLEModel(row, k_states=1, initialization="known", initial_state=[0], initial_state_cov=[[1]])
        model["design", 0, 0], model["transition", 0, 0], model["selection", 0, 0] = 1, carry, 1
        model["obs_cov", 0, 0], model["state_cov", 0, 0] = scale**2, spread**2
        assert abs(model.ssm.loglike() - exact) < 1e-8


# By draws


def sites_of(trace):
    nodes = trace.nodes.values()
    return [node for node in nodes if node["type"] == "sample" and not isinstance(node["fn"], _Subsample)]


def per_datum(trace, latent=None):
    """The trace's log density `(K, N)`: of all sites, or of those that are latent or are not."""
    total = 0.0
    for site in sites_of(trace):
        is_data = site["is_observed"] or site["infer"].get("is_auxiliary", False)
        if latent is None or latent != is_data:
            log_prob = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
            total = total + log_prob[(None,) * (5 - log_prob.ndim)].sum((1, 2, 3))
    return total


def particles(fn, num):
    return pyro.plate("_draws", num, dim=-5)(fn)


@torch.no_grad()
def weights_from_prior(program, num):
    trace = poutine.trace(particles(program.model, num)).get_trace(*program.args)
    return per_datum(trace, latent=False)


@torch.no_grad()
def weights_from_guide(program, guide, num):
    drawn = poutine.trace(particles(program.guides[guide], num)).get_trace(*program.args)
    model = particles(poutine.replay(program.model, trace=drawn), num)
    return per_datum(poutine.trace(model).get_trace(*program.args)) - per_datum(drawn)


def scores(log_weights, exact, min_ess=1000):
    """z-scores of p-hat / p for each datum of enough effective draws, and one of their mean, weighted by precision."""
    ratio = (log_weights - exact).exp()
    ess = ratio.sum(0).square() / ratio.square().sum(0)
    ratio = ratio[:, ess > min_ess]
    if not ratio.numel():
        return torch.zeros(0)
    error, spread = ratio.mean(0) - 1, ratio.std(0).clamp(min=1e-12) / math.sqrt(len(ratio))
    each = error / spread
    together = (error / spread**2).sum() / (1 / spread**2).sum().sqrt()
    return torch.cat([each, together[None]])


def assert_agrees(log_weights, exact):
    """No score is beyond 4.5. Of 20 data and their mean, one is by chance in 7,000 tests."""
    found = scores(log_weights, exact)
    assert len(found) > 1
    assert found.abs().max() < 4.5


FAR_FROM_PRIOR = {"correlated_outputs", "gaussian_process", "probabilistic_pca"}
"""Too few draws from the prior come near the data."""


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", sorted(set(PRACTICE) - FAR_FROM_PRIOR))
def test_draws_from_the_prior_agree(name):
    program = first(made(name), 6)
    log_weights = torch.cat([weights_from_prior(program, 10_000) for _ in range(4)])
    assert_agrees(log_weights, program.log_evidence)


def test_the_second_computation_finds_a_planted_error():
    program = made("factor_analysis")
    parameters = {key: in_numpy(value) for key, value in program.parameters.items()}
    again = factor_analysis(None, in_numpy(program.args[0]), **parameters)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(again, program.log_evidence.numpy() + 0.05, rtol=0, atol=1e-6)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", PRACTICE)
def test_draws_from_the_good_guide_agree(name):
    program = made(name)
    log_weights = weights_from_guide(program, "good", 4000)
    assert_agrees(log_weights, program.log_evidence)
    for error in (-0.05, 0.05):  # the twins
        with pytest.raises(AssertionError):
            assert_agrees(log_weights, program.log_evidence + error)


# The programs and their guides


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", PRACTICE)
def test_the_elbo_is_below_log_evidence(name):
    """By Pyro's own estimator, with a margin for its noise."""
    program = made(name)
    elbos = []
    for guide in ("good", "fitted"):
        loss = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=2)
        values = -torch.tensor([loss.loss(program.model, program.guides[guide], *program.args) for _ in range(5)])
        assert values.isfinite().all()
        elbos.append(values.mean() / NUM_DATA)
        assert values.mean() < program.log_evidence.sum() + 4.5 * values.std() / math.sqrt(5) + 1e-6
    assert elbos[0] > elbos[1] - 0.1


@torch.no_grad()
def share_of_draws(program, guide, num=2000):
    """The effective number of draws of each datum, as a share of all."""
    weights = weights_from_guide(program, guide, num).softmax(0)
    return 1 / (num * weights.square().sum(0))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", PRACTICE)
def test_the_good_guide_is_good_and_the_narrow_one_is_not(name):
    program = made(name)
    good = share_of_draws(program, "good")
    assert good.min() > 0.5
    assert share_of_draws(program, "narrow").mean() < 0.9 * good.mean()


@pytest.mark.parametrize("name", PRACTICE)
def test_the_oracle_is_one_number_for_each_datum(name):
    program = made(name)
    assert program.log_evidence.shape == (NUM_DATA,)
    assert program.log_evidence.dtype == torch.float64
    assert program.log_evidence.isfinite().all()
    assert {len(arg) for arg in program.args} == {NUM_DATA}
    assert {"good", "narrow", "fitted"} <= set(program.guides)
    assert program.continuous == (not any(site["fn"].support.is_discrete for site in latents_of(program)))


def latents_of(program):
    trace = poutine.trace(program.model).get_trace(*program.args)
    return [site for site in sites_of(trace) if not site["is_observed"]]


@pytest.mark.parametrize("name", PRACTICE)
def test_any_rows_in_any_dtype_by_default(name, float64):
    """A few rows have the densities that they have among all, in float64 whatever the default."""
    program = made(name)
    rows = torch.tensor([3, 0, 11])
    few = tuple(arg[rows] for arg in program.args)
    for guide in program.guides.values():
        with torch.no_grad():
            drawn = poutine.trace(guide).get_trace(*few)
            among_few = poutine.trace(poutine.replay(program.model, trace=drawn)).get_trace(*few)
        assert per_datum(drawn).shape[-1] == 3
        assert per_datum(among_few).dtype == torch.float64
