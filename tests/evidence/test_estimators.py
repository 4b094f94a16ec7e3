"""Laws of estimators of log p(x)."""

import inspect
import io
import sys
from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import ESTIMATORS
from truths import GaussianPosterior, LinearGaussian, assert_unbiased_in_p

import pyro_vae as pv

pytestmark = [pytest.mark.usefixtures("float64")]
each = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


def approximate(num_data, shift=0.1):
    truth = LinearGaussian(latent_dim=2, data_dim=4)
    vae = truth.vae(GaussianPosterior(truth, shift=shift, inflation=1.3))
    return vae, truth.draw(num_data), truth


@pytest.mark.one_in(2)
@each
def test_unbiased_in_p(estimator):
    """The twin's data are not those that are evaluated."""
    vae, x, truth = approximate(64)
    found = estimator(vae.model, vae.guide, x).log_evidence
    assert_unbiased_in_p(found, truth.log_evidence(x))
    with pytest.raises(AssertionError):
        assert_unbiased_in_p(found + 0.2, truth.log_evidence(x))


@pytest.mark.one_in(3)
@each
def test_the_numbers_of_a_datum_are_those_of_its_place(estimator):
    vae, x, _ = approximate(7)
    whole, part = estimator(vae.model, vae.guide, x), estimator(vae.model, vae.guide, x[3:5], first_index=3)
    assert torch.allclose(part.log_evidence, whole.log_evidence[3:5], atol=1e-10)
    assert part.method == whole.method[3:5] and (part.num_evaluations == whole.num_evaluations[3:5]).all()


@pytest.mark.one_in(2)
@each
def test_what_it_returns(estimator, tmp_path, monkeypatch):
    """The pair is inspected once for each call."""
    calls = Counter()
    module = inspect.getmodule(pv.evidence.estimator.Task)
    plain = module.program_of
    monkeypatch.setattr(module, "program_of", lambda *args: calls.update("i") or plain(*args))
    vae, x, _ = approximate(5)
    evidence = estimator(vae.model, vae.guide, x, seed=3, num_posterior_draws=4)
    assert calls == {"i": 1}
    assert evidence.is_bound and evidence.seed == 3 and len(evidence) == 5
    assert (evidence.num_evaluations > 0).all() and evidence.draws.log_prior.shape == (4, 5)
    assert evidence.settings["amortized"] is True and evidence.settings["compiled"] is False
    assert "log p(x) of 5 data" in evidence.summary()
    evidence.save(tmp_path / "evidence.npz")
    assert pv.Evidence.load(tmp_path / "evidence.npz").log_evidence.equal(evidence.log_evidence)


OPTIONS = ("seed", "bounds", "num_samples", "plate", "progress", "compile", "proposal", "tolerance")


@pytest.mark.one_in(20)
@each
@pytest.mark.parametrize("name", OPTIONS)
def test_a_program_may_have_arguments_that_are_called_like_options(estimator, name):
    """They are the program's in `kwargs`; the scale of the likelihood is handed over by each of these names."""

    def model(x, **kwargs):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, kwargs[name]), obs=x)

    def guide(x, **kwargs):
        variance = 1 / (1 + 1 / kwargs[name] ** 2)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(variance * x / kwargs[name] ** 2, variance**0.5))

    x = torch.tensor([0.5, -1.0])
    found = estimator(model, guide, x, kwargs={name: 2.0})
    exact = dist.Normal(0.0, 5**0.5).log_prob(x)
    assert ((found.log_evidence - exact).abs() < 4 * found.std_error + 1e-9).all()


@each
def test_a_keyword_that_is_no_option_shows_both_ways(estimator):
    vae, x, _ = approximate(3)
    with pytest.raises(TypeError, match=r"scale: expected an option of .*; got scale=2.0; pass .* as kwargs=\{'scale'"):
        estimator(vae.model, vae.guide, x, scale=2.0)
    with pytest.raises(TypeError, match=r"tolerence: .* or an option by its name: tolerance\.|toler"):
        estimator(vae.model, vae.guide, x, tolerence=2.0)
    with pytest.raises(TypeError, match="kwargs: expected a dictionary"):
        estimator(vae.model, vae.guide, x, kwargs=[("scale", 2.0)])


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("estimate", [pv.importance_sampling, pv.ais, pv.log_evidence])
def test_the_bar_says_what_was_found_so_far(monkeypatch, estimate):
    vae, x, _ = approximate(300)  # in several blocks
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    screen = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", screen)
        evidence = estimate(vae.model, vae.guide, x, progress=True)
    last = screen.getvalue().split("\r")[-1]
    assert "300/300" in last
    assert f"log p(x) {evidence.mean:.2f} +- {evidence.mean_std_error:.2f}" in last
