"""What is specific to the semi-amortized posterior."""

import pyro
import pytest
import torch
from truths import LinearGaussian

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("float64")


def shared_with(truth, num_steps, network=None, **options):
    """A VAE whose posterior is refined for the VAE's own prior and likelihood."""
    prior, likelihood = truth.vae().prior, truth.vae().likelihood
    network = pv.nn.MLP(len(truth.bias), [], 2 * truth.weight.shape[1]) if network is None else network
    posterior = pv.posteriors.SemiAmortizedNormal(
        pv.posteriors.DiagonalNormal(network), prior, likelihood, truth.weight.shape[1], num_steps, **options
    )
    return pv.VAE(prior, likelihood, posterior)


def test_steps_lead_to_the_best_gaussian_with_independent_dimensions():
    """Whatever the network says: for a Gaussian posterior, its mean, and the diagonal of its precision."""
    truth = LinearGaussian(latent_dim=2, data_dim=4)
    x = truth.draw(6)
    exact = truth.posterior(x)
    torch.manual_seed(1)
    refined = shared_with(truth, 200, num_points=64).posterior(x)
    assert torch.allclose(refined.mean, exact.mean, atol=0.02)
    assert torch.allclose(refined.stddev, exact.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt(), rtol=0.15)


@pytest.mark.slow
def test_each_step_raises_the_elbo_of_a_bad_network():
    truth = LinearGaussian(latent_dim=2, data_dim=4)
    x, elbos = truth.draw(50), []
    for num_steps in (1, 3, 10):
        torch.manual_seed(1)
        vae = shared_with(truth, num_steps)
        elbos.append(pv.importance_sampling(vae.model, vae.guide, x, num_samples=1000).guide_elbo.mean)
    assert elbos[0] + 0.1 < elbos[1] < elbos[2] + 0.01 < truth.log_evidence(x).mean() + 0.01


def test_the_gradient_goes_through_the_steps():
    """That of the network, against finite differences; without the steps' own part it is another."""
    truth = LinearGaussian(latent_dim=2, data_dim=4)
    x = truth.draw(5)
    vae = shared_with(truth, 3)
    (bias,) = [value for name, value in vae.posterior.initial.named_parameters() if name.endswith("bias")]

    def of_means():
        return vae.posterior(x).mean.square().sum()

    (gradient,) = torch.autograd.grad(of_means(), bias)
    step = torch.zeros_like(bias).index_fill(0, torch.tensor([0]), 1e-5)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            bias.add_(sign * step)
            ends.append(of_means())
            bias.sub_(sign * step)
    assert torch.isclose((ends[0] - ends[1]) / 2e-5, gradient[0], rtol=1e-5)


def test_it_is_trained_kept_and_evaluated(tmp_path):
    truth = LinearGaussian(latent_dim=2, data_dim=4)
    vae = shared_with(truth, 2)
    history = pv.fit(vae, truth.draw(200), num_epochs=2, optim=pyro.optim.Adam({"lr": 1e-2}), progress=False)
    assert history.train_elbo[1] > history.train_elbo[0]
    x = truth.draw(20)
    evidence = pv.log_evidence(vae.model, vae.guide, x)
    vae.save(tmp_path / "vae")
    again = pv.load(tmp_path / "vae")
    assert again.posterior.likelihood is again.likelihood
    assert torch.equal(pv.log_evidence(again.model, again.guide, x).log_evidence, evidence.log_evidence)


REFUSED = {
    "initial": (lambda part: part(pv.nn.MLP(2, [], 2), None, None, 1), TypeError, "initial: expected a DiagonalNormal"),
    "num_points": (
        lambda part: part(pv.posteriors.DiagonalNormal(pv.nn.MLP(2, [], 2)), None, None, 1, num_points=3),
        ValueError,
        "num_points: expected an even number; got 3; pass 4",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call(pv.posteriors.SemiAmortizedNormal)
