"""What is done with an evaluation: kept, shown, handed to arviz, compared; and what else is read off the latents."""

import dataclasses
import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from truths import GaussianPosterior, LinearGaussian, count_and_rate, draws_of, small_vae, two_layers

import pyro_vae as pv
from pyro_vae import diagnostics

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.fixture
def pair():
    vae = small_vae()
    x = draws_of(vae, 8)
    return vae, x


EVALUATIONS = {
    "importance sampling": lambda vae, x: pv.importance_sampling(vae.model, vae.guide, x, num_samples=50),
    "laplace": lambda vae, x: pv.importance_sampling(vae.model, vae.guide, x, num_samples=50, proposal="laplace"),
    "ais": lambda vae, x: pv.ais(vae.model, vae.guide, x, num_temperatures=5),
    "log_evidence": lambda vae, x: pv.log_evidence(vae.model, vae.guide, x, max_evaluations=1500),
    "reciprocal": lambda vae, x: pv.evidence.reciprocal_importance_sampling(vae.model, vae.guide, x, num_samples=50),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation_can_be_kept_and_shown(name, pair, tmp_path):
    evidence = EVALUATIONS[name](*pair)
    for field in ("log_evidence", "std_error", "ess", "khat", "jackknife", "rate", "distortion", "elbo", "gap"):
        assert getattr(evidence, field).shape == (8,) and getattr(evidence, field).dtype == torch.float64
    assert evidence.reliable.dtype == torch.bool and evidence.num_evaluations.dtype == torch.int64
    assert len(evidence.method) == 8
    evidence.save(tmp_path / "evidence.npz")
    again = pv.Evidence.load(tmp_path / "evidence.npz")
    assert again.summary() == evidence.summary() and again.as_dict() == evidence.as_dict()
    assert torch.equal(again.num_evaluations, evidence.num_evaluations)
    assert all(
        torch.equal(a, b) for a, b in zip(again.diagnostics.values(), evidence.diagnostics.values(), strict=True)
    )
    if evidence.draws is not None:
        assert torch.equal(again.draws.latents["z"], evidence.draws.latents["z"])
    json.dumps(evidence.as_dict())
    html = evidence._repr_html_()
    assert "pv-card" in html and "log p(x)" in html
    assert pv.plots.evidence(evidence).axes


def test_the_summary_is_short_and_says_what_to_do(pair):
    vae, x = pair
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=50)
    good, bad = (dataclasses.replace(evidence, reliable=torch.full((8,), value)) for value in (True, False))
    assert good.summary().splitlines()[-1] == "reliable for all 8 data"
    assert len(good.summary().splitlines()) == 5  # title, three figures, one remark
    (warning,) = [line for line in bad.summary().splitlines() if line.startswith("NOT reliable for 8 of 8 data")]
    assert warning.endswith(
        "Use log_evidence, which anneals where that is needed; the certified bound holds all the same."
    )
    auto = pv.log_evidence(vae.model, vae.guide, x, max_evaluations=600, tolerance=1e-9)
    assert "for 0 of 8 data. Raise max_evaluations" in auto.summary()


def test_files_that_are_none_of_ours(tmp_path):
    with pytest.raises(FileNotFoundError, match="path: expected a file that save wrote"):
        pv.Evidence.load(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match="path: expected a file that save wrote"):
        pv.Evidence.load(tmp_path / "text.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match="path: expected a file that save wrote"):
        pv.Evidence.load(tmp_path / "broken.npz")
    np.savez(tmp_path / "other.npz", record=np.array('{"format": 1}'))
    with pytest.raises(ValueError, match=r"path: expected a file that save wrote; got .* \(no 'log_evidence'\)"):
        pv.Evidence.load(tmp_path / "other.npz")
    np.savez(tmp_path / "pickle.npz", record=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="path: expected a file that save wrote"):
        pv.Evidence.load(tmp_path / "pickle.npz")
    with open(tmp_path / "one_array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="path: expected a file that save wrote"):
        pv.Evidence.load(tmp_path / "one_array.npz")


def test_a_file_whose_record_lacks_something(pair, tmp_path):
    EVALUATIONS["importance sampling"](*pair).save(tmp_path / "evidence.npz")
    with np.load(tmp_path / "evidence.npz") as file:
        arrays = dict(file)
    record = json.loads(str(arrays["record"]))
    del record["seed"]
    np.savez(tmp_path / "evidence.npz", **{**arrays, "record": np.array(json.dumps(record))})
    with pytest.raises(ValueError, match=r"path: expected a file that save wrote; got .* \(no 'seed'\)"):
        pv.Evidence.load(tmp_path / "evidence.npz")


GROUPS = {"posterior", "log_likelihood", "sample_stats", "observed_data", "constant_data"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "model"),
    [("evidence", "vae"), ("evidence", "counts"), ("evidence", "two layers"), ("posterior", "two layers")],
)
def test_arviz_and_netcdf(kind, model, tmp_path):
    arviz = pytest.importorskip("arviz")
    if model == "vae":
        vae = small_vae()
        args = (vae.model, vae.guide, draws_of(vae, 8))
    else:
        args = count_and_rate(8) if model == "counts" else two_layers(8)[:3]
    if kind == "evidence":
        result = pv.importance_sampling(*args, num_samples=50, num_posterior_draws=10)
    else:
        result = pv.posterior_samples(*args, num_samples=5, num_chains=2, num_temperatures=2)
    idata = result.to_arviz()
    groups = {str(group).strip("/") for group in (idata.groups() if callable(idata.groups) else idata.groups)}
    assert groups >= GROUPS
    draws = idata["posterior"]
    assert dict(draws.sizes)["datum"] == 8
    assert dict(draws.sizes)["chain"] * dict(draws.sizes)["draw"] == 10
    assert idata["log_likelihood"]["x"].shape[-1] == 8
    idata.to_netcdf(str(tmp_path / "draws.nc"))
    again = arviz.from_netcdf(str(tmp_path / "draws.nc"))
    name = next(iter(draws.data_vars))
    assert np.allclose(again["posterior"][name].values, draws[name].values)


def test_comparisons_are_paired(pair):
    vae, x = pair
    other = small_vae(hidden=(5,))
    a, b = (pv.importance_sampling(each.model, each.guide, x, num_samples=200) for each in (vae, other))
    difference = pv.compare(a, b)
    assert torch.equal(difference.difference, a.log_evidence - b.log_evidence)
    assert difference.std_error == pytest.approx(difference.difference.std().item() / math.sqrt(8))
    assert difference.mean_monte_carlo_std_error == pytest.approx(math.hypot(a.mean_std_error, b.mean_std_error))
    assert pv.compare(a, a).mean == 0
    assert "nats per datum" in repr(difference)


def test_what_cannot_be_compared_is_refused(pair):
    vae, x = pair
    a = pv.importance_sampling(vae.model, vae.guide, x, num_samples=5)
    flipped, fewer, permuted = 1 - x, x[:5], x.flip(0)
    for other in (flipped, fewer, permuted):
        with pytest.raises(ValueError, match="a, b: expected evidence of the same data"):
            pv.compare(a, pv.importance_sampling(vae.model, vae.guide, other, num_samples=5))
    gaussian = small_vae("Gaussian, constant scale")
    with pytest.raises(ValueError, match="a probability and a density"):
        pv.compare(a, pv.importance_sampling(gaussian.model, gaussian.guide, x, num_samples=5))
    with pytest.raises(TypeError, match="b: expected Evidence; got float"):
        pv.compare(a, 1.0)
    with pytest.raises(ValueError, match="b: expected an estimate that is unbiased"):
        pv.compare(a, pv.evidence.reciprocal_importance_sampling(vae.model, vae.guide, x, num_samples=8))


def test_masks_belong_to_the_data():
    guide = standard_normal

    def model(x, seen):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            with pyro.poutine.mask(mask=seen > 0):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, some, others = torch.zeros(4), torch.tensor([1.0, 1, 0, 0]), torch.tensor([0.0, 0, 1, 1])
    one, other = (pv.importance_sampling(model, guide, x, seen, num_samples=5) for seen in (some, others))
    assert pv.compare(one, one).mean == 0
    with pytest.raises(ValueError, match="expected evidence of the same data"):
        pv.compare(one, other)


def test_masks_of_pixels():
    def model(x, seen):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z[..., None], torch.ones(5)).mask(seen > 0).to_event(1), obs=x)

    x, seen = torch.zeros(20, 5), torch.ones(20, 5).index_fill(1, torch.tensor([1, 3]), 0.0)
    one = pv.log_evidence(model, standard_normal, x, seen)
    exact = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(torch.zeros(3))
    assert torch.allclose(one.log_evidence, exact.expand(20), atol=0.3)
    with pytest.raises(ValueError, match="model: expected data all of which count; got masks"):
        one.bits_per_dim(256)
    other = pv.importance_sampling(model, standard_normal, x, 1 - seen, num_samples=5)
    with pytest.raises(ValueError, match="expected evidence of the same data"):
        pv.compare(one, other)


def standard_normal(x, *others):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def test_a_factor_shows_no_data():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.factor("x", dist.Normal(z, 1.0).log_prob(x))

    evidence = pv.importance_sampling(model, standard_normal, torch.linspace(-1, 1, 5), num_samples=1000)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(torch.linspace(-1, 1, 5))
    assert torch.allclose(evidence.log_evidence, exact, atol=0.2)
    with pytest.raises(ValueError, match=r"a: expected evidence of data that can be compared; got .* pyro.factor"):
        pv.compare(evidence, evidence)
    with pytest.raises(ValueError, match=r"got pyro.factor, whose data have no size"):
        evidence.bits_per_dim()


def test_bits_per_dimension(pair):
    vae, x = pair
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=5)
    assert torch.allclose(evidence.bits_per_dim(), -evidence.log_evidence / (6 * math.log(2)))
    assert torch.allclose(evidence.bits_back, -evidence.elbo / math.log(2))
    with pytest.raises(ValueError, match="num_levels: expected None for discrete data"):
        evidence.bits_per_dim(256)

    def uniform(x):  # pixels dequantized to [0, 1]: a uniform density of one is 8 bits a pixel
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Uniform(torch.zeros(6), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    density = pv.importance_sampling(uniform, guide, torch.rand(4, 6), num_samples=5)
    assert torch.allclose(density.bits_per_dim(256), torch.full((4,), 8.0))
    with pytest.raises(ValueError, match="num_levels: expected the number of levels"):
        density.bits_per_dim()


class Diagonal(torch.nn.Module):
    """The exact posterior mean, moved, and the best diagonal scale, stretched."""

    def __init__(self, truth, shift=0.0, inflation=1.0):
        super().__init__()
        self.truth, self.shift, self.inflation = truth, shift, inflation

    def forward(self, x):
        scale = self.inflation / self.truth.precision.diagonal().sqrt()
        return dist.Normal(self.truth.posterior(x).loc + self.shift, scale).to_event(1)


@pytest.mark.slow
def test_the_inference_gap_of_a_linear_gaussian_model():
    """The best factorised Gaussian has the posterior's mean and precision's diagonal; its KL is half the log of the ratio of
    the diagonal's product to the determinant. Amortization: KL between two factorised Gaussians of one family... by draws.
    """
    truth = LinearGaussian(latent_dim=3, data_dim=5)
    vae, x = truth.vae(Diagonal(truth, shift=0.2, inflation=1.4)), truth.draw(16)
    gap = pv.inference_gap(vae.model, vae.guide, x, num_steps=200)
    precision = truth.precision
    approximation = 0.5 * (precision.diagonal().log().sum() - torch.linalg.slogdet(precision).logabsdet)
    shift = torch.full((3,), 0.2)
    covariance = torch.diag(1.4**2 / precision.diagonal())
    kl = 0.5 * ((precision @ covariance).trace() + shift @ precision @ shift - 3)
    kl = kl - 0.5 * (torch.linalg.slogdet(precision).logabsdet + torch.linalg.slogdet(covariance).logabsdet)
    assert torch.allclose(gap.total.mean(), kl, atol=5 * (gap.elbo.mean_std_error + 0.01))
    assert torch.allclose(gap.approximation.mean(), approximation, atol=5 * gap.best_elbo.mean_std_error + 0.01)
    assert torch.allclose(gap.amortization.mean(), kl - approximation, atol=0.1)
    assert torch.allclose(gap.total, gap.approximation + gap.amortization)
    assert "amortization gap" in gap.summary()


def test_evidence_of_other_data_is_refused():
    vae = small_vae()
    x, y = draws_of(vae, 5), draws_of(vae, 5, seed=9)
    other = pv.importance_sampling(vae.model, vae.guide, y, num_samples=5)
    with pytest.raises(ValueError, match="evidence: expected that of the same data"):
        pv.inference_gap(vae.model, vae.guide, x, evidence=other)


@pytest.mark.slow
def test_hmc_draws_follow_the_posterior():
    truth = LinearGaussian(latent_dim=2, data_dim=4)
    vae, x = truth.vae(GaussianPosterior(truth, shift=0.3, inflation=0.7)), truth.draw(30)
    posterior = pv.posterior_samples(vae.model, vae.guide, x, num_samples=200)
    assert posterior.latents["z"].shape == (4, 200, 30, 2)
    assert posterior.guide_latents["z"].shape == (800, 30, 2)
    assert posterior.rhat.median() < 1.02 and posterior.ess.min() > 50
    exact, draws = truth.posterior(x), posterior.latents["z"].flatten(0, 1)
    z = (draws.mean(0) - exact.loc) / (exact.stddev / posterior.ess[:, None].sqrt())
    assert z.abs().mean() < 1.5
    assert torch.allclose(draws.std(0), exact.stddev, rtol=0.25)
    assert "R-hat" in posterior.summary() and pv.plots.posterior(posterior, 3).axes
    same = pv.posterior_samples(vae.model, vae.guide, x[4:6], num_samples=200, first_index=4)
    assert torch.allclose(same.latents["z"], posterior.latents["z"][:, :, 4:6], atol=1e-8)


def test_chains_that_have_not_mixed_are_seen():
    from pyro_vae.evidence.posterior import chain_diagnostics

    torch.manual_seed(0)
    good = torch.randn(4, 200, 1, 2)
    apart = good + torch.arange(4.0)[:, None, None, None]
    wider = good * (1 + torch.arange(4.0)[:, None, None, None])
    assert chain_diagnostics(good)[0] < 1.02
    assert chain_diagnostics(apart)[0] > 1.3
    assert chain_diagnostics(wider)[0] > 1.1  # by the folded draws


@pytest.mark.filterwarnings("ignore")
def test_rhat_is_that_of_arviz():
    arviz = pytest.importorskip("arviz")
    from pyro_vae.evidence.posterior import chain_diagnostics

    torch.manual_seed(0)
    chains = torch.randn(4, 100).cumsum(1) * 0.05 + torch.randn(4, 100)
    rhat, ess = chain_diagnostics(chains[..., None, None])
    assert rhat.item() == pytest.approx(float(arviz.rhat(chains.numpy())), abs=1e-3)
    assert ess.item() == pytest.approx(float(arviz.ess(chains.numpy())), rel=0.05)


def test_importance_resampling_says_how_good_it_is(pair):
    vae, x = pair
    posterior = pv.posterior_samples(vae.model, vae.guide, x, method="importance", num_samples=10, num_proposals=500)
    assert posterior.rhat.isnan().all() and (posterior.ess <= 500).all()
    assert (
        "R-hat" not in posterior.summary()
        and "importance" in pv.plots.posterior(posterior).axes[0].get_legend().get_texts()[0].get_text()
    )
    assert posterior.latents["z"].shape == (4, 10, 8, 2)


@pytest.mark.slow
def test_the_estimator_of_appendix_d_and_its_bias():
    """Right where its Gaussian is the posterior; too high where draws are few; and never called reliable."""
    truth = LinearGaussian(latent_dim=2, data_dim=4)
    vae, x = truth.vae(GaussianPosterior(truth, inflation=0.8)), truth.draw(60)
    error = pv.evidence.reciprocal_importance_sampling(vae.model, vae.guide, x).log_evidence - truth.log_evidence(x)
    assert error.abs().max() < 0.05
    many = truth.draw(1000)
    few = pv.evidence.reciprocal_importance_sampling(vae.model, vae.guide, many, num_samples=8, num_chains=2)
    error = few.log_evidence - truth.log_evidence(many)
    assert error.mean() > 3 * error.std() / math.sqrt(len(many))  # by chance, were it unbiased: 1e-3
    assert not few.reliable.any()
    deep = LinearGaussian(latent_dim=6, data_dim=8).vae()
    with pytest.raises(ValueError, match="at most 5 latent numbers a datum"):
        pv.evidence.reciprocal_importance_sampling(deep.model, deep.guide, torch.randn(3, 8))


def test_latent_use_of_a_linear_gaussian_model():
    """With the exact posterior as guide, q(z) tends to the prior, and I(x; z) to half the log determinant of the precision;
    N = 400 data leave a little of the aggregate's KL."""
    truth = LinearGaussian(latent_dim=1, data_dim=2, scale=1.0)
    vae, x = truth.vae(), truth.draw(400)
    use = pv.latent_use(vae.model, vae.guide, x)
    information = 0.5 * torch.linalg.slogdet(truth.precision).logabsdet
    assert use.mutual_information == pytest.approx(information.item(), abs=0.1)
    assert use.rate == pytest.approx(use.mutual_information + use.aggregate_kl)
    assert abs(use.aggregate_kl) < 0.1
    assert use.num_active == 1
    assert use.activity["z"].item() == pytest.approx(1 - 1 / truth.precision.item(), abs=0.15)


def codes_near_data(scale):
    """Two latent numbers, whose codes are the data and a little noise."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, scale).to_event(1))

    return model, guide


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_total_correlation_of_gaussian_codes(correlation):
    """q(z) of many codes from a Gaussian is one: the total correlation is -log(1 - r^2) / 2, for a z that is almost x.

    N = 1,000 data leave some error, and the empirical q(z) is a little more correlated.
    """
    torch.manual_seed(0)
    scale = 0.3
    r = correlation * (1 - scale**2)
    x = (
        torch.randn(1000, 2)
        @ torch.linalg.cholesky((1 - scale**2) * torch.tensor([[1.0, correlation], [correlation, 1.0]])).mT
    )

    model, guide = codes_near_data(scale)
    use = pv.latent_use(model, guide, x)
    assert use.total_correlation == pytest.approx(-math.log(1 - r**2) / 2, abs=0.06)
    assert use.dimension_wise_kl == pytest.approx(0.0, abs=0.03)
    assert use.total_correlation + use.dimension_wise_kl == pytest.approx(use.aggregate_kl)


@pytest.mark.parametrize("bias", [0.0, 0.03])
def test_total_correlation_is_that_of_the_mixture_of_all_codes(bias, monkeypatch):
    """By quadrature over the plane; six standard errors of eight seeds, by Student's t false in 1 of 2,000; and a
    planted bias is found."""
    torch.manual_seed(0)
    scale = 0.5
    x = torch.randn(200, 2) @ torch.tensor([[1.0, 0.0], [0.6, 0.6]]).mT

    model, guide = codes_near_data(scale)
    axis = torch.linspace(-7.0, 7.0, 281)
    densities = dist.Normal(x.mT[..., None, :], scale).log_prob(axis[:, None]).exp()  # (2, axis, data)
    joint, marginals = densities[0] @ densities[1].mT / len(x), densities.mean(-1)
    cell = (axis[1] - axis[0]) ** 2
    assert cell * joint.sum() == pytest.approx(1.0, abs=1e-9)
    product = marginals[0][:, None] * marginals[1]
    exact = (cell * torch.where(joint > 0, joint * (joint / product).log(), 0.0)).sum()

    log_product = diagnostics._log_product
    monkeypatch.setattr(diagnostics, "_log_product", lambda *args: log_product(*args) - bias)
    found = torch.tensor([pv.latent_use(model, guide, x, num_samples=40, seed=s).total_correlation for s in range(8)])
    z_score = (found.mean() - exact) / (found.std() / math.sqrt(len(found)))
    assert (abs(z_score) < 6) == (bias == 0)


def test_numbers_that_depend_on_each_other_given_x_have_no_total_correlation():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x, torch.tensor([[1.0, 0.5], [0.5, 1.0]])))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    use = pv.latent_use(model, guide, torch.randn(20, 2))
    assert use.total_correlation is None and use.dimension_wise_kl is None


def test_unused_latents_are_not_active():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = torch.stack([x / 2, 0 * x, 0 * x], -1)
            pyro.sample("z", dist.Normal(loc, torch.tensor([0.7, 1.0, 1.0])).to_event(1))

    use = pv.latent_use(model, guide, 1.4 * torch.randn(300))
    assert use.num_active == 1 and use.activity["z"][1:].abs().max() < 0.005
    far = pv.latent_use(model, guide, 1.4 * torch.randn(300) + 20.0)
    assert far.aggregate_kl > 40 and far.mutual_information < use.mutual_information + 0.2
