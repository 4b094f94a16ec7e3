"""Linear-Gaussian models, where log p(x) and the posterior are known in closed form."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from truths import GaussianPosterior, LinearGaussian, assert_unbiased

import pyro_vae as pv
from pyro_vae.program.inspect import program_of

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("latent_dim", [1, 3, 50])
def test_with_the_exact_posterior_every_weight_is_the_evidence(latent_dim):
    truth = LinearGaussian(latent_dim, data_dim=60)
    x = truth.draw(20)
    vae = truth.vae()
    exact = truth.log_evidence(x)
    weights = pv.evidence.log_weights(vae.model, vae.guide, x, num_samples=7)
    assert (weights - exact).abs().max() < 1e-10
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=7)
    assert (evidence.log_evidence - exact).abs().max() < 1e-10
    assert (evidence.elbo - exact).abs().max() < 1e-10  # the bound touches, as in EM's E-step
    assert evidence.gap.abs().max() < 1e-10
    assert (evidence.ess - 7).abs().max() < 1e-9
    assert evidence.std_error.max() < 1e-6
    assert math.isclose(evidence.certified_lower_bound(0.01), exact.mean().item() - math.log(100) / 20, abs_tol=1e-10)


def test_the_twin_with_another_guide_does_not_touch():
    truth = LinearGaussian()
    x = truth.draw(20)
    vae = truth.vae(GaussianPosterior(truth, shift=0.01))
    weights = pv.evidence.log_weights(vae.model, vae.guide, x, num_samples=7)
    assert (weights - truth.log_evidence(x)).abs().max() > 1e-4


def decoder_of(components, mean, scale):
    """Our parts with scikit-learn's parameters: x = z W + mean + noise."""
    vae = pv.VAE(
        pv.priors.StandardNormal(len(components)),
        pv.likelihoods.Gaussian(torch.nn.Linear(*components.shape), "learned", scale_shape=scale.shape),
        pv.posteriors.DiagonalNormal(torch.nn.Linear(components.shape[1], 2 * len(components))),
    )
    with torch.no_grad():
        vae.likelihood.network.weight.copy_(components.T)
        vae.likelihood.network.bias.copy_(mean)
        vae.likelihood.scale_form.raw.copy_((scale - vae.likelihood.scale_form.floor).expm1().log())
    return vae


@pytest.mark.parametrize("scales", ["one for each", "one for all"])
def test_factor_analysis_and_probabilistic_pca_are_those_of_scikit_learn(scales):
    """Fitted by scikit-learn, evaluated by ours: exact by Laplace's Gaussian, whatever the guide."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    torch.manual_seed(3)
    x = torch.randn(300, 2) @ torch.randn(2, 7) + torch.randn(300, 7) * (0.5 + torch.rand(7)) + 2
    if scales == "one for each":
        theirs = decomposition.FactorAnalysis(2).fit(x.numpy())
        components, scale = torch.tensor(theirs.components_), torch.tensor(theirs.noise_variance_).sqrt()
    else:
        theirs = decomposition.PCA(2).fit(x.numpy())
        noise = torch.tensor(theirs.noise_variance_)
        lengths = (torch.tensor(theirs.explained_variance_) - noise).sqrt()
        components, scale = torch.tensor(theirs.components_) * lengths[:, None], noise.sqrt()
    vae = decoder_of(components, torch.tensor(theirs.mean_), scale)
    found = pv.importance_sampling(vae.model, vae.guide, x, num_samples=5, proposal="laplace")
    assert (found.log_evidence - torch.tensor(theirs.score_samples(x.numpy()))).abs().max() < 1e-6


GUIDES = {"shifted": (0.3, 1.0), "inflated": (0.0, 1.4), "shifted and inflated": (0.2, 1.2)}


@pytest.mark.parametrize("guide", GUIDES)
def test_gap_is_the_kl_to_the_posterior(guide):
    truth = LinearGaussian()
    x = truth.draw(100)
    posterior = GaussianPosterior(truth, *GUIDES[guide])
    vae = truth.vae(posterior)
    kl = torch.distributions.kl_divergence(posterior(x), truth.posterior(x))
    bound = pv.importance_sampling(vae.model, vae.guide, x, num_samples=1000).bounds(1)
    assert_unbiased(bound.value, bound.std_error, truth.log_evidence(x) - kl)
    with pytest.raises(AssertionError):  # the sign of the KL term
        assert_unbiased(bound.value, bound.std_error, truth.log_evidence(x) + kl)
    if guide != "shifted":  # where the two directions of the KL divergence are the same
        reverse = torch.distributions.kl_divergence(truth.posterior(x), posterior(x))
        with pytest.raises(AssertionError):
            assert_unbiased(bound.value, bound.std_error, truth.log_evidence(x) - reverse)


def test_log_weight_is_evidence_plus_log_ratio_to_the_posterior():
    """log w = log p(x) + log p(z|x) - log q(z|x), draw by draw."""
    truth = LinearGaussian()
    x = truth.draw(9)
    posterior = GaussianPosterior(truth, shift=0.3, inflation=1.2)
    vae = truth.vae(posterior)
    program = program_of(vae.model, vae.guide, (x,))
    latents, log_guide = program.draw(4)
    log_weight = sum(program.log_joint(latents)) - log_guide
    z = latents["z"]
    expected = truth.log_evidence(x) + truth.posterior(x).log_prob(z) - posterior(x).log_prob(z)
    assert log_weight.shape == (4, 9)
    assert torch.allclose(log_weight, expected)


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["inflated", "shifted and inflated"])
def test_importance_sampling_agrees_within_its_stated_error(guide):
    truth = LinearGaussian()
    x = truth.draw(400)
    vae = truth.vae(GaussianPosterior(truth, *GUIDES[guide]))
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=1500)
    exact = truth.log_evidence(x)
    assert_unbiased(evidence.log_evidence, evidence.std_error, exact)
    assert abs(evidence.mean - exact.mean().item()) < 4.5 * evidence.mean_std_error
    for planted in (evidence.log_evidence + 0.5 * evidence.std_error, exact + 1.3 * (evidence.log_evidence - exact)):
        with pytest.raises(AssertionError):
            assert_unbiased(planted, evidence.std_error, exact)


def test_bounds_rise_to_the_evidence():
    """L_k <= L_2k <= log p(x), each difference compared with its standard error (4.5 of them: 3.4e-6 a comparison)."""
    truth = LinearGaussian()
    x = truth.draw(150)
    vae = truth.vae(GaussianPosterior(truth, shift=0.5, inflation=1.3))
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=2000, bounds=[1, 2, 10, 100])
    exact = truth.log_evidence(x).mean().item()
    bounds = [evidence.bounds(k) for k in (1, 2, 10, 100, 2000)]
    for lower, upper in pairwise(bounds):
        margin = 4.5 * math.hypot(lower.mean_std_error, upper.mean_std_error)
        assert lower.mean < upper.mean + margin
        assert upper.mean < exact + 4.5 * upper.mean_std_error
    assert bounds[1].mean > bounds[0].mean + 0.1  # the rise itself is seen, not only noise
    assert torch.equal(bounds[-1].value, evidence.log_evidence)
    assert torch.equal(bounds[0].value, evidence.elbo)


@pytest.mark.parametrize("k", [1, 3, 10, 64])
def test_bounds_are_means_over_groups_of_the_same_weights(k):
    truth = LinearGaussian()
    x = truth.draw(5)
    vae = truth.vae(GaussianPosterior(truth, shift=0.5))
    weights = pv.evidence.log_weights(vae.model, vae.guide, x, num_samples=5000, seed=3)
    groups = weights[: 5000 // k * k].unflatten(0, (-1, k)).logsumexp(1) - math.log(k)
    bound = pv.importance_sampling(vae.model, vae.guide, x, num_samples=5000, seed=3, bounds=[k]).bounds(k)
    assert torch.allclose(bound.value, groups.mean(0), atol=1e-12)
    assert torch.allclose(bound.std_error, groups.std(0) / math.sqrt(len(groups)), atol=1e-12)


def test_certificate_holds_as_often_as_it_says():
    """At delta = 0.2, one draw each and a poor guide: 400 runs, a violation is at most Binomial(400, 0.2)."""
    truth = LinearGaussian(latent_dim=1, data_dim=2)
    x = truth.draw(3).repeat(400, 1)
    vae = truth.vae(GaussianPosterior(truth, inflation=0.5))  # too narrow: weights of infinite variance
    exact = truth.log_evidence(x[:3]).mean().item()
    everything = pv.importance_sampling(vae.model, vae.guide, x, num_samples=2)
    runs = [replace(everything, log_evidence=three) for three in everything.log_evidence.split(3)]
    violated = sum(run.certified_lower_bound(0.2) > exact for run in runs)
    assert violated < 400 * 0.2 + 4.5 * math.sqrt(400 * 0.2 * 0.8)  # fails by chance: less than 3e-5
    # The twin: noise that the data share. Three hundred data with one and the same estimate are no evidence of more.
    vae = truth.vae(GaussianPosterior(truth, shift=0.3))
    everything = pv.importance_sampling(vae.model, vae.guide, x, num_samples=2)
    shared = [replace(everything, log_evidence=one.expand(300)) for one in everything.log_evidence[::3]]
    violated = sum(run.certified_lower_bound(0.2) > truth.log_evidence(x[:1]).item() for run in shared)
    assert violated > 400 * 0.2 + 4 * math.sqrt(400 * 0.2 * 0.8)


def test_errors_by_hand():
    """Of three draws: the delta method, the mean over data, and the two kinds of error kept apart."""
    truth = LinearGaussian()
    x = truth.draw(6)
    vae = truth.vae(GaussianPosterior(truth, shift=0.3))
    for k in (2, 3):
        weights = pv.evidence.log_weights(vae.model, vae.guide, x, num_samples=k).exp()
        evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=k)
        assert torch.allclose(evidence.log_evidence, weights.mean(0).log())
        assert torch.allclose(evidence.std_error, weights.std(0) / math.sqrt(k) / weights.mean(0))
        assert torch.allclose(evidence.ess, weights.sum(0).square() / weights.square().sum(0))
        assert evidence.mean_std_error == pytest.approx((evidence.std_error.square().sum() / 36).sqrt().item())
        assert evidence.sampling_error == pytest.approx(evidence.log_evidence.std().item() / math.sqrt(6))
    one = pv.importance_sampling(vae.model, vae.guide, x[:1], num_samples=1)
    assert one.std_error.isnan().all() and math.isnan(one.sampling_error)
    assert json.loads(json.dumps(one.as_dict(), allow_nan=False))["monte_carlo_std_error"] is None


@pytest.mark.slow
def test_the_error_of_the_mean_is_its_spread_over_seeds():
    """200 seeds: the ratio of standard deviations has a standard error of 5 %; 0.8 to 1.25 are 4.5 of them (7e-6)."""
    truth = LinearGaussian()
    x = truth.draw(10)
    vae = truth.vae(GaussianPosterior(truth, inflation=1.3))
    runs = [pv.importance_sampling(vae.model, vae.guide, x, num_samples=300, seed=seed) for seed in range(200)]
    spread = torch.tensor([run.mean for run in runs]).std().item()
    stated = sum(run.mean_std_error for run in runs) / 200
    assert 0.8 < stated / spread < 1.25


def test_rate_and_distortion_in_closed_form():
    truth = LinearGaussian()
    x = truth.draw(100)
    posterior = GaussianPosterior(truth, shift=0.3, inflation=1.2)
    vae = truth.vae(posterior)
    rate = torch.distributions.kl_divergence(
        posterior(x), torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3))
    )
    num_samples = 4000
    found = pv.rate_distortion(vae.model, vae.guide, x, num_samples=num_samples)
    parts = [pv.rate_distortion(vae.model, vae.guide, x, num_samples=40, seed=seed) for seed in range(1, 26)]
    for value, exact, each in (
        (found.rate, rate, torch.stack([part.rate for part in parts])),
        (
            found.distortion,
            rate.neg() - truth_elbo(truth, posterior, x),
            torch.stack([part.distortion for part in parts]),
        ),
    ):
        std_error = each.std(0).mean() * math.sqrt(40 / num_samples)
        assert abs((value - exact).mean()) < 5 * std_error / math.sqrt(len(x))
        assert abs((1.1 * value - exact).mean()) > 5 * std_error / math.sqrt(len(x))  # the twin


def truth_elbo(truth, posterior, x):
    return truth.log_evidence(x) - torch.distributions.kl_divergence(posterior(x), truth.posterior(x))


@pytest.mark.slow
def test_training_finds_the_maximum_likelihood_of_probabilistic_pca():
    """The ELBO of a linear VAE has the maximum of PPCA's likelihood (Tipping and Bishop 1999; Lucas et al. 2019)."""
    truth = LinearGaussian(latent_dim=2, data_dim=5, scale=0.5)
    x = truth.draw(400)
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Gaussian(pv.nn.MLP(2, [], 5), scale="learned"),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(5, [], 4)),
    )
    decay = pyro.optim.CosineAnnealingLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.03}, "T_max": 700})
    svi = SVI(vae.model, vae.guide, decay, TraceMeanField_ELBO())
    for _ in range(700):
        svi.step(x)
        decay.step()
    weight, bias = (parameter.detach() for parameter in vae.likelihood.network.parameters())
    noise = vae.likelihood(torch.zeros(1, 2)).base_dist.scale.detach().flatten()[0]

    def log_likelihood(noise):
        covariance = weight @ weight.T + noise**2 * torch.eye(5)
        return torch.distributions.MultivariateNormal(bias, covariance).log_prob(x).mean()

    eigenvalues = torch.linalg.eigvalsh(x.T.cov(correction=0)).flip(0)
    best_variance = eigenvalues[2:].mean()
    log_det = eigenvalues[:2].log().sum() + 3 * best_variance.log()
    best = -0.5 * (5 * math.log(2 * math.pi) + log_det + 5)
    assert best - 0.005 < log_likelihood(noise) < best + 1e-9
    assert torch.allclose(noise, best_variance.sqrt(), rtol=0.03)
    assert log_likelihood(1.1 * noise) < best - 0.005  # the twin: a scale that is 10 % off
