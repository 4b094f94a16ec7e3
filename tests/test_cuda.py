"""On a GPU: densities, training and log p(x) are those of the CPU. Skipped where there is none."""

import copy

import pyro
import pytest
import torch
from laws import ESTIMATORS, LATENT_DIM, LIKELIHOODS, NUM_PIXELS, OBJECTIVES, POSTERIORS, PRIORS, built

import pyro_vae as pv

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
NUM_DATA = 12


def decoder(factor):
    return pv.nn.MLP(LATENT_DIM, [4], factor * NUM_PIXELS)


def vae_of(prior="StandardNormal", likelihood="Bernoulli", posterior="DiagonalNormal"):
    vae = built(lambda: pv.VAE(PRIORS[prior](), LIKELIHOODS[likelihood](decoder), POSTERIORS[posterior]()))
    torch.manual_seed(1)
    z = vae.prior().sample((NUM_DATA,))
    return vae, vae.likelihood(z).sample()


def linear_gaussian():
    """A VAE, a guide that is its exact posterior but half as wide again in variance, data, and their exact log p(x)."""
    torch.manual_seed(2)
    mean, scale = torch.nn.Linear(LATENT_DIM, NUM_PIXELS), 0.7
    weight, bias = mean.weight.detach(), mean.bias.detach()
    precision = torch.eye(LATENT_DIM) + weight.T @ weight / scale**2
    unused = pv.posteriors.DiagonalNormal(torch.nn.Linear(NUM_PIXELS, 2 * LATENT_DIM))
    vae = pv.VAE(pv.priors.StandardNormal(LATENT_DIM), pv.likelihoods.Gaussian(mean, scale=scale), unused)
    marginal = torch.distributions.MultivariateNormal(bias, weight @ weight.T + scale**2 * torch.eye(NUM_PIXELS))
    x = marginal.sample((NUM_DATA,))
    covariance = precision.inverse()

    def guide(x):
        loc = (x - bias.to(x.device)) @ weight.to(x.device) @ covariance.to(x.device) / scale**2
        wide = torch.linalg.cholesky(1.5 * covariance.to(x.device))
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.MultivariateNormal(loc, scale_tril=wide))

    return vae, guide, x, marginal.log_prob(x)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_log_densities_are_those_of_the_cpu(likelihood):
    vae, x = vae_of(likelihood=likelihood)
    z = vae.prior().sample((NUM_DATA,))
    here = vae.likelihood(z).log_prob(x)
    there = copy.deepcopy(vae).cuda().likelihood(z.cuda()).log_prob(x.cuda())
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_and_posterior_trains_and_is_evaluated(prior, posterior):
    vae, x = vae_of(prior=prior, posterior=posterior)
    vae, x = vae.cuda(), x.cuda()
    pv.fit(vae, x, num_epochs=2, batch_size=4, objective=pyro.infer.Trace_ELBO(), progress=False)
    by_guide = pv.importance_sampling(vae.model, vae.guide, x, num_samples=2000)
    annealed = pv.log_evidence(vae.model, vae.guide, x, tolerance=0.1)
    error = (by_guide.std_error**2 + annealed.std_error**2).sqrt()
    close = (by_guide.log_evidence - annealed.log_evidence).abs() < 5 * error + 1e-3
    assert close[by_guide.reliable & annealed.reliable].all()
    assert annealed.reliable.any()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_trains_as_one_graph(likelihood):
    vae, x = vae_of(likelihood=likelihood)
    vae, x = vae.cuda(), x.cuda()
    history = pv.fit(vae, x.repeat(4, 1), num_epochs=6, batch_size=NUM_DATA, compile=True, progress=False)
    assert history.execution.startswith("compiled"), history.execution
    assert all(parameter.is_cuda and parameter.isfinite().all() for parameter in vae.parameters())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains(name):
    vae, x = vae_of()
    vae, x = vae.cuda(), x.cuda().repeat(20, 1)
    before = [parameter.clone() for parameter in vae.parameters()]
    pv.fit(vae, x, num_epochs=3, batch_size=40, objective=OBJECTIVES[name](num_particles=4), progress=False)
    assert any(not torch.equal(one, other) for one, other in zip(before, vae.parameters(), strict=True))


@pytest.mark.parametrize("name", ["Trace_ELBO", "TraceMeanField_ELBO"])
def test_steps_as_graphs_are_pyro_s_own(name):
    """Losses and parameters after each step, with the same random numbers."""
    results = []
    for objective in (OBJECTIVES[f"Compiled{name}"](), OBJECTIVES[name]()):
        pyro.clear_param_store()
        vae, x = vae_of()
        vae, x = vae.cuda(), x.cuda()
        svi = pv.SVI(vae.model, vae.guide, pv.FusedAdam({"lr": 1e-2}), objective)
        torch.manual_seed(3)
        losses = [svi.step(x) for _ in range(20)]
        results.append((losses, [parameter.detach().clone() for parameter in vae.parameters()]))
    (losses, parameters), (other_losses, other_parameters) = results
    assert losses == pytest.approx(other_losses, rel=1e-4)
    for one, other in zip(parameters, other_parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_finds_the_exact_log_evidence(name, compile):
    """False failures: 12 data within 5 standard errors, 1e-5. A truth that is 0.5 off must not be found."""
    vae, guide, x, truth = linear_gaussian()
    vae, x, truth = vae.cuda(), x.cuda(), truth.double()
    found = ESTIMATORS[name](vae.model, guide, x, compile=compile)
    allowed = 5 * found.std_error.cpu() + 1e-4
    assert ((found.log_evidence.cpu() - truth).abs() < allowed).all()
    assert not ((found.log_evidence.cpu() - truth - 0.5).abs() < allowed).all()


def test_the_certified_bound_is_below_the_exact_log_evidence():
    vae, guide, x, truth = linear_gaussian()
    found = pv.log_evidence(vae.cuda().model, guide, x.cuda(), tolerance=0.1)
    assert truth.mean() - 1 < found.certified_lower_bound() <= truth.mean()


def test_a_run_is_kept_resumed_and_loaded(tmp_path):
    vae, x = vae_of()
    again = copy.deepcopy(vae).cuda()
    vae, x = vae.cuda(), x.cuda().repeat(20, 1)
    options = dict(batch_size=40, compile=True, progress=False)
    pv.fit(again, x, num_epochs=8, **options)
    pyro.clear_param_store()
    pv.fit(vae, x, num_epochs=4, run=tmp_path / "a", **options)
    pv.fit(vae, x, num_epochs=8, run=tmp_path / "a", resume=True, **options)
    for one, other in zip(vae.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(
        torch.equal(one, other.cpu())
        for one, other in zip(pv.load(tmp_path / "a").parameters(), vae.parameters(), strict=True)
    )


def test_posterior_draws_gaps_and_bdmc_run():
    vae, x = vae_of()
    vae, x = vae.cuda(), x.cuda()
    draws = pv.posterior_samples(vae.model, vae.guide, x, num_samples=50)
    assert all(values.isfinite().all() for values in draws.latents.values())
    assert pv.bdmc(vae.model, vae.guide, x[:4], num_temperatures=50).mean_gap < 0.5
    gap = pv.inference_gap(vae.model, vae.guide, x[:4])
    assert (gap.approximation + gap.amortization > -0.1).all()


def test_data_are_moved_to_where_the_program_is():
    vae, x = vae_of()
    labelled = pv.data.from_tensor(x.repeat(4, 1))
    for data in (labelled, x.repeat(4, 1), x.repeat(4, 1).numpy()):
        pv.fit(vae.cuda(), data, num_epochs=1, batch_size=12, progress=False, validation=data)
