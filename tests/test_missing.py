"""Data with missing entries: the likelihood counts what was observed, by every estimator, objective and imputation."""

import math

import pyro.distributions as dist
import pytest
import torch
from laws import ESTIMATORS, LATENT_DIM, LIKELIHOODS, NUM_PIXELS, built
from torch import nn
from truths import LinearGaussian, assert_unbiased, grid

import pyro_vae as pv
from pyro_vae.distributions import Concatenated

Incomplete, WithMask = pv.likelihoods.Incomplete, pv.nn.WithMask
NAN = math.nan


# Laws of each likelihood


def of_pixels(name):
    return built(lambda: LIKELIHOODS[name](lambda factor: pv.nn.MLP(LATENT_DIM, [4], factor * NUM_PIXELS)))


def by_entry(distribution, x):
    """log p of each entry, from the parts of a likelihood of complete data."""
    if isinstance(distribution, Concatenated):
        pieces = x.split(distribution.widths, -1)
        return torch.cat([by_entry(*pair) for pair in zip(distribution.parts, pieces, strict=True)], -1)
    return distribution.base_dist.log_prob(x)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_missing_entry_leaves_the_sum_and_the_gradient(name):
    likelihood = of_pixels(name)
    z = torch.randn(4, LATENT_DIM, requires_grad=True)
    x = likelihood(z).sample().double()
    missing = torch.tensor([[False] * 3, [True] * 3, [True, False, False], [False, True, True]])
    found = Incomplete(likelihood)(z).log_prob(x.masked_fill(missing, NAN))
    kept = by_entry(likelihood(z), x).masked_fill(missing, 0).sum(-1)
    assert torch.allclose(found, kept) and found[1] == 0
    assert not torch.allclose(found, likelihood(z).log_prob(x))  # the twin: a mask forgotten
    both = [torch.autograd.grad(each.sum(), z, retain_graph=True)[0] for each in (found, kept)]
    assert torch.allclose(*both) and both[0][1].abs().max() == 0


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_draws_means_and_supports_are_those_of_the_likelihood_but_for_nan(name):
    likelihood = of_pixels(name)
    of_all, of_some = (each(torch.zeros(2, LATENT_DIM)) for each in (likelihood, Incomplete(likelihood)))
    x = of_all.sample().float()
    assert of_some.expand((3, 2)).log_prob(x).shape == (3, 2)
    torch.manual_seed(1)
    draw = of_all.sample()
    torch.manual_seed(1)
    assert draw.equal(of_some.sample()) and of_some.has_rsample == of_all.has_rsample
    assert torch.allclose(of_some.log_prob(x), of_all.log_prob(x))
    assert of_some.support.is_discrete == of_all.support.is_discrete
    with_nan, outside = x.clone(), x.clone()
    with_nan[0, 0], outside[0, 0] = NAN, math.inf
    assert of_some.support.check(with_nan).all() and not of_all.support.check(with_nan).all()
    assert of_some.support.check(outside).equal(of_all.support.check(outside))


# Against the exact marginal Gaussian


class OfObserved(nn.Module):
    """The exact posterior of a linear-Gaussian model given what was observed, moved and widened."""

    def __init__(self, truth, shift=0.0, inflation=1.0):
        super().__init__()
        self.truth, self.shift, self.inflation = truth, shift, inflation

    def forward(self, x):
        weight, observed = self.truth.weight, (~x.isnan()).double()
        centred = torch.where(x.isnan(), 0.0, x.double() - self.truth.bias)
        of_prior = torch.eye(weight.shape[1], dtype=torch.float64)
        precision = of_prior + torch.einsum("dk,nd,dl->nkl", weight, observed, weight) / self.truth.scale**2
        covariance = torch.linalg.inv(precision)
        loc = torch.einsum("nkl,nl->nk", covariance, centred @ weight / self.truth.scale**2)
        return dist.MultivariateNormal(loc + self.shift, scale_tril=self.inflation * torch.linalg.cholesky(covariance))


def incomplete_vae(truth, **options):
    return pv.VAE(
        pv.priors.StandardNormal(truth.weight.shape[1]),
        Incomplete(pv.likelihoods.Gaussian(truth.decoder(), scale=truth.scale)),
        OfObserved(truth, **options),
    ).double()


def incomplete_data(truth, num_data):
    """A quarter is missing at random: of the first datum nothing, of the second all."""
    x = truth.draw(num_data)
    missing = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.25
    missing[0], missing[1] = False, True
    return x.masked_fill(missing, NAN)


def marginal(truth, x):
    """log p(x observed): of each datum, the rows of the covariance that were observed."""
    covariance = truth.weight @ truth.weight.T + truth.scale**2 * torch.eye(len(truth.bias), dtype=torch.float64)
    found = torch.zeros(len(x), dtype=torch.float64)
    for i, row in enumerate(x):
        o = ~row.isnan()
        if o.any():
            found[i] = dist.MultivariateNormal(truth.bias[o], covariance[o][:, o]).log_prob(row[o])
    return found


def forgotten(truth, x):
    """The twin: zeros, the usual filling, taken for data."""
    return truth.log_evidence(x.nan_to_num(0.0))


@pytest.mark.usefixtures("float64")
def test_with_the_exact_posterior_every_weight_is_the_evidence_of_what_was_observed():
    truth = LinearGaussian()
    x = incomplete_data(truth, 30)
    vae = incomplete_vae(truth)
    weights = pv.evidence.log_weights(vae.model, vae.guide, x, num_samples=5)
    assert (weights - marginal(truth, x)).abs().max() < 1e-10 and weights[:, 1].abs().max() < 1e-10
    assert (weights - forgotten(truth, x)).abs().max() > 1


@pytest.mark.one_in(3)
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_agree_with_the_exact_evidence_of_what_was_observed(estimator):
    """Within 4.5 errors, 7e-6 by chance for each of 10 data (AIS, with Student's tails, 4e-4), or to rounding."""
    truth = LinearGaussian(latent_dim=2, data_dim=4)
    x = incomplete_data(truth, 10)
    vae = incomplete_vae(truth, shift=0.1, inflation=1.2)
    evidence = ESTIMATORS[estimator](vae.model, vae.guide, x)
    exact, allowed = marginal(truth, x), 4.5 * evidence.std_error + 1e-4
    assert ((evidence.log_evidence - exact).abs() < allowed).all()
    assert not ((evidence.log_evidence - forgotten(truth, x)).abs() < allowed).all()


@pytest.mark.usefixtures("float64")
def test_importance_sampling_has_no_bias_that_its_error_does_not_cover():
    """By chance less than 1.2e-4, see `assert_unbiased`."""
    truth = LinearGaussian()
    x = incomplete_data(truth, 100)
    vae = incomplete_vae(truth, shift=0.2, inflation=1.2)
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=1000)
    assert_unbiased(evidence.log_evidence, evidence.std_error, marginal(truth, x))
    with pytest.raises(AssertionError):
        assert_unbiased(evidence.log_evidence, evidence.std_error, forgotten(truth, x))


@pytest.mark.usefixtures("float64")
def test_iwelbo_is_miwae_s_bound_written_by_hand():
    truth, num_particles = LinearGaussian(), 7
    x = incomplete_data(truth, 12)
    vae = incomplete_vae(truth, shift=0.3, inflation=1.3)
    objective = pv.objectives.IWELBO(num_particles, max_plate_nesting=1)
    objective.compile = False
    torch.manual_seed(5)
    found = -objective.loss(vae.model, vae.guide, x)
    torch.manual_seed(5)
    q = vae.posterior(x)
    z = q.rsample((num_particles,))
    log_weight = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z)
    of_entries = dist.Normal(z @ truth.weight.T + truth.bias, truth.scale).log_prob(x.nan_to_num(0.0))
    bound, twin = (
        ((log_weight + each.sum(-1)).logsumexp(0) - math.log(num_particles)).sum().item()
        for each in (torch.where(x.isnan(), 0.0, of_entries), of_entries)
    )
    assert found == pytest.approx(bound, abs=1e-9) != twin
    assert found < marginal(truth, x).sum()


@pytest.mark.usefixtures("float64")
def test_imputation_by_the_vae_s_own_guide_is_the_exact_conditional_gaussian():
    """The mean squared deviation of 70 entries, in errors of so many effective draws, is below 2 (a chance of 1e-5)."""
    truth = LinearGaussian()
    x = incomplete_data(truth, 60)
    done = pv.impute(incomplete_vae(truth), x, num_draws=400)
    covariance = truth.weight @ truth.weight.T + truth.scale**2 * torch.eye(len(truth.bias), dtype=torch.float64)
    scores, twins = [], []
    for i in done.rows.tolist():
        m = x[i].isnan()
        gain = covariance[m][:, ~m] @ covariance[~m][:, ~m].inverse()
        mean = truth.bias[m] + gain @ (x[i][~m] - truth.bias[~m])
        sd = (covariance[m][:, m] - gain @ covariance[~m][:, m]).diagonal().sqrt()
        num_draws = 1 / (1 / 400 + 1 / done.evidence.ess[done.rows == i])  # resampled from the effective ones
        of_location = ((sd.square() - truth.scale**2) / num_draws).sqrt()  # E(x|z) is averaged, not x
        scores.append(((done.x[i][m] - mean) / of_location).square())
        twins.append(((done.x[i][m] - truth.bias[m]) / of_location).square())
        assert (done.sd[i][m] / sd - 1).abs().max() < 0.25
    assert torch.cat(scores).mean() < 2 < torch.cat(twins).mean()
    assert done.evidence.gap.abs().max() < 1e-10  # by the guide, which is exact
    assert (done.sd[~done.missing] == 0).all() and (done.probability[~done.missing] == 1).all()
    assert done.probability[done.missing].isnan().all()


# Tables of several kinds


def table_vae():
    """Real numbers, positive ones, a count and a class of three, of one latent number."""
    torch.manual_seed(2)
    heads = (
        pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 2), scale=0.5),
        pv.likelihoods.LogNormal(pv.nn.MLP(1, [], 1), scale=0.5),
        pv.likelihoods.Poisson(pv.nn.MLP(1, [], 1)),
        pv.likelihoods.Categorical(pv.nn.MLP(1, [], 3), num_levels=3),
    )
    return pv.VAE(
        pv.priors.StandardNormal(1),
        Incomplete(pv.likelihoods.Product(*heads)),
        pv.posteriors.DiagonalNormal(WithMask(pv.nn.MLP(10, [4], 2), fill=torch.ones(5))),
    ).to(torch.get_default_dtype())


@pytest.mark.usefixtures("float64")
@torch.no_grad()
def test_a_mixed_table_against_quadrature():
    """log p, means and probabilities within 4.5 errors, 7e-6 by chance for each of 14 numbers."""
    vae = table_vae()
    x = vae.sample(5)
    x[torch.arange(5), torch.arange(5)] = NAN
    x[:4, 4] = NAN
    done = pv.impute(vae, x, num_draws=400, max_evaluations=1000)
    z, log_cell = grid(1)
    log_joint = vae.likelihood(z[:, None]).log_prob(x) + vae.prior().log_prob(z)[:, None]
    log_evidence = log_joint.logsumexp(0) + log_cell
    assert ((done.evidence.log_evidence - log_evidence[done.rows]).abs() < 4.5 * done.evidence.std_error + 1e-4).all()
    weight = log_joint.softmax(0)
    of_numbers, of_levels = vae.likelihood.likelihood(z).parts[:3], vae.likelihood.likelihood(z).parts[3]
    means = torch.cat([part.mean for part in of_numbers], -1)
    num_draws = torch.ones(len(x))
    num_draws[done.rows] = 1 / (1 / 400 + 1 / done.evidence.ess)
    of_prior = vae.prior().log_prob(z).softmax(0)
    scores, twins = [], []
    for i, d in done.missing.nonzero().tolist():
        level = int(done.x[i, d]) if d == 4 else None
        curve = means[:, d] if level is None else of_levels.base_dist.probs[:, 0, level]
        found = done.x[i, d] if level is None else done.probability[i, d]
        for some, share in ((scores, weight[:, i]), (twins, of_prior)):
            mean = share @ curve
            error = ((weight[:, i] @ (curve - weight[:, i] @ curve).square()) / num_draws[i]).sqrt()
            some.append((abs(found - mean) / error).item())
    assert max(scores) < 4.5 < max(twins)
    assert done.sd[:, 4][done.missing[:, 4]].isnan().all() and done.sd[:, :4].isfinite().all()


# What is refused


def plain_vae(**parts):
    given = {
        "prior": pv.priors.StandardNormal(1),
        "likelihood": Incomplete(pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3))),
        "posterior": pv.posteriors.DiagonalNormal(WithMask(pv.nn.MLP(6, [], 2))),
        **parts,
    }
    return pv.VAE(**given)


X = torch.tensor([[0.5, 1.0, NAN], [NAN, NAN, NAN], [1.0, 2.0, 3.0]])
COMPLETE = {
    "likelihood": pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3)),
    "posterior": pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2)),
}
NO_ENCODER = "posterior.x.: expected an encoder of incomplete data, .* wrap its network in pv.nn.WithMask"
REFUSED = {
    "NaN for a likelihood of complete data": (
        lambda: plain_vae(**COMPLETE).check(X),
        "x: expected finite numbers; got NaN or infinity in 2 of these 3 data.*pv.likelihoods.Incomplete",
    ),
    "an encoder that makes NaN of NaN": (lambda: plain_vae(posterior=COMPLETE["posterior"]), NO_ENCODER),
    "another": (
        lambda: plain_vae(posterior=pv.posteriors.FullRankNormal(pv.nn.MLP(3, [], 2), latent_dim=1)),
        NO_ENCODER,
    ),
    "a mixture that cannot draw": (
        lambda: plain_vae(posterior=pv.posteriors.NormalMixture(pv.nn.MLP(3, [], 6), latent_dim=1, num_components=2)),
        NO_ENCODER,
    ),
    "entries that depend on each other": (
        lambda: plain_vae(likelihood=Incomplete(pv.likelihoods.Multinomial(pv.nn.MLP(1, [], 3), 4))),
        "^likelihood: expected one whose entries are independent given z; got Multinomial, of event shape .3,.; its",
    ),
    "infinity": (
        lambda: plain_vae().check(X.nan_to_num(math.inf)),
        "x: expected finite numbers, or NaN where one is missing; got infinity in 2 of these 3 data .first at index 0",
    ),
    "values outside of the support": (
        lambda: plain_vae(likelihood=Incomplete(pv.likelihoods.Bernoulli(pv.nn.MLP(1, [], 3)))).check(X),
        "x: expected values in the likelihood's support, \\{0, 1\\} or NaN; got 0.5 at index .* and values from 0.5 to 3 in all",
    ),
    "NaN in the context": (
        lambda: plain_vae(
            likelihood=Incomplete(pv.likelihoods.Gaussian(pv.nn.MLP(2, [], 3))),
            posterior=pv.posteriors.DiagonalNormal(WithMask(pv.nn.MLP(7, [], 2))),
            context_shapes=[()],
        ).model(X, torch.tensor([NAN, 0.0, 0.0])),
        "context.0.: expected finite numbers",
    ),
    "a tensor for a pair": (
        lambda: pv.fit((plain_vae().model, plain_vae().guide), X, progress=False),
        "x: expected finite numbers; .* pv.data.from_tensor.x, missing='keep'.",
    ),
    "infinity in data with missing entries": (
        lambda: pv.data.from_tensor(X.nan_to_num(math.inf), missing="keep"),
        "x: expected finite numbers, or NaN where one is missing; got infinity",
    ),
    "a fill that is not finite": (lambda: WithMask(nn.Identity(), fill=NAN), "fill: expected finite numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_bits_of_each_number_are_refused_where_numbers_are_missing():
    vae = plain_vae(likelihood=Incomplete(pv.likelihoods.Bernoulli(pv.nn.MLP(1, [], 3))))
    x = torch.tensor([[0.0, 1.0, NAN]])
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=50)
    with pytest.raises(ValueError, match="model: expected data all of which count"):
        evidence.bits_per_dim()


# The encoder


def test_the_encoder_sees_filled_data_and_the_mask():
    fill = torch.tensor([7.0, 8.0, 9.0])
    assert WithMask(nn.Identity(), fill)(X[:2]).tolist() == [[0.5, 1, 9, 1, 1, 0], [7, 8, 9, 0, 0, 0]]
    images = torch.full((5, 2, 1, 4, 4), NAN)
    assert WithMask(nn.Identity(), event_dim=3)(images).shape == (5, 2, 2, 4, 4)
    assert WithMask(pv.nn.MLP(6 + 1, [], 2))(X, torch.ones(3)).shape == (3, 2)


def test_a_posterior_that_looks_at_nothing_needs_no_mask():
    class Prior(nn.Module):
        def forward(self, x):
            return dist.Normal(torch.zeros(*x.shape[:-1], 1), 1.0).to_event(1)

    assert plain_vae(posterior=Prior()).guide(X).shape == (3, 1)


# Training


def correlated(num_data=200):
    torch.manual_seed(1)
    x = torch.randn(num_data, 1) @ torch.tensor([[1.0, -1.0, 2.0]]) + 0.3 * torch.randn(num_data, 3)
    return x.masked_fill(torch.rand_like(x) < 0.4, NAN)


@pytest.mark.one_in(3)
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("objective", ["IWELBO", "CompiledTrace_ELBO", "CompiledTraceMeanField_ELBO"])
def test_compiled_steps_are_the_eager_ones(objective):
    x, losses = correlated(20), {}
    x = torch.cat([x, (x[:, :1] > 0).float().masked_fill(x[:, :1].isnan(), NAN)], 1)
    for is_compiled in (True, False):
        heads = (
            pv.likelihoods.StudentT(pv.nn.MLP(1, [], 6), scale="per-pixel", df="learned"),
            pv.likelihoods.Categorical(pv.nn.MLP(1, [], 2), num_levels=2),
        )
        torch.manual_seed(3)
        vae = pv.VAE(
            pv.priors.StandardNormal(1),
            Incomplete(pv.likelihoods.Product(*heads)),
            pv.posteriors.DiagonalNormal(WithMask(pv.nn.MLP(8, [], 2))),
        )
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.copy_(0.3 * torch.randn_like(parameter))
        chosen = getattr(pv.objectives, objective)(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
        chosen.compile = is_compiled
        svi = pv.SVI(vae.model, vae.guide, pv.FusedAdam({"lr": 1e-2}), chosen)
        losses[is_compiled] = torch.tensor([svi.step(x) for _ in range(3)])
        assert ("as it is" in chosen.execution(vae.model, vae.guide)) != is_compiled
    assert torch.allclose(losses[True], losses[False], rtol=1e-4)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("as_dataset", [False, True])
def test_fit_learns_from_what_was_observed(as_dataset):
    """Of correlated columns, what was observed tells of the rest: far better than the best independent Gaussians."""
    x = correlated()
    vae = plain_vae(
        likelihood=Incomplete(pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3), "learned")),
        posterior=pv.posteriors.DiagonalNormal(WithMask(pv.nn.MLP(6, [16], 2))),
    )
    data = pv.data.from_tensor(x, missing="keep") if as_dataset else x
    pv.fit(vae, data, validation=x[:50], num_epochs=40, batch_size=50, optim=pv.FusedAdam({"lr": 3e-2}), progress=False)
    found = pv.importance_sampling(vae.model, vae.guide, x, num_samples=200)
    mean = x.nanmean(0)
    spread = (x - mean).square().nanmean(0).sqrt()
    alone = dist.Normal(mean, spread).log_prob(x.nan_to_num(0)).masked_fill(x.isnan(), 0).sum(-1).mean()
    assert found.mean > alone + 0.3


def test_a_diagnosis_does_not_blame_missing_entries():
    with pytest.raises(pv.DivergedError) as caught:
        pv.fit(plain_vae(), correlated(), optim=pv.FusedAdam({"lr": 1e30}), num_epochs=3, progress=False)
    assert caught.value.diagnosis.cause == "learning rate" and not caught.value.diagnosis.data


def test_it_comes_back_from_a_file(tmp_path):
    vae = plain_vae(posterior=pv.posteriors.DiagonalNormal(WithMask(pv.nn.MLP(6, [], 2), fill=torch.randn(3))))
    vae.save(tmp_path / "vae.safetensors")
    again = pv.load(tmp_path / "vae.safetensors")
    assert repr(again) == repr(vae) and "WithMask" in repr(vae) and "Incomplete" in repr(vae)
    assert again.encode(X).mean.equal(vae.encode(X).mean)
    assert vae.reconstruct(X).isfinite().all() and vae.sample(4).isfinite().all()


# Data sets


@pytest.mark.parametrize("binarization", ["dynamic", "static", "threshold", None])
def test_a_data_set_keeps_what_is_missing(binarization):
    grey = torch.rand(50, 3).masked_fill(torch.rand(50, 3) < 0.3, NAN)
    data = pv.data.from_tensor(grey, missing="keep", binarization=binarization)
    batch = data.batch(torch.arange(50))
    assert data.x.isnan().equal(grey.isnan()) and batch.isnan().equal(grey.isnan())
    known = batch[~grey.isnan()]
    assert (((known == 0) | (known == 1)).all()) == (binarization is not None)
    assert data.mean.isfinite().all()
    assert data.provenance.sha256 != pv.data.from_tensor(grey.nan_to_num(0)).provenance.sha256
