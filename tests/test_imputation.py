"""Missing entries against the exact conditional Gaussian of a linear VAE."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv

DIM, NOISE = 4, 0.5


class Fixed(nn.Module):
    """A posterior that knows little: the prior, whatever x is."""

    def forward(self, x, *context):
        return dist.Normal(torch.zeros(*x.shape[:-1], 2), 1.0).to_event(1)


def linear_vae():
    torch.manual_seed(1)
    decoder = pv.nn.MLP(2, [], DIM, output_bias=torch.arange(DIM).float())
    return pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Gaussian(decoder, scale=NOISE), Fixed())


def exact(vae, x):
    """Mean and sd of the missing entries of one datum, from the joint Gaussian of x."""
    layer = vae.likelihood.network.layers[-1]
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    covariance = weight @ weight.T + NOISE**2 * torch.eye(DIM).double()
    m, o = x.isnan(), ~x.isnan()
    gain = covariance[m][:, o] @ covariance[o][:, o].inverse()
    mean = bias[m] + gain @ (x[o].double() - bias[o])
    return mean, (covariance[m][:, m] - gain @ covariance[o][:, m]).diagonal().sqrt()


def incomplete(vae, num_data=20):
    x = vae.sample(num_data)
    hidden = torch.rand(num_data, DIM) < 0.4
    hidden[:, 0] &= hidden.sum(1) < DIM  # something is observed of each
    hidden[0] = False
    return torch.where(hidden, torch.nan, x)


def deviations(vae, x, done):
    for row in done.rows.tolist():
        mean, sd = exact(vae, x[row])
        m = x[row].isnan()
        yield ((done.x[row][m].double() - mean) / (sd / 200**0.5)).square()
        assert (done.sd[row][m].double() / sd - 1).abs().max() < 0.35


@torch.no_grad()
def test_mean_and_sd_are_the_exact_conditional_gaussian_s():
    """200 draws of each: the mean squared deviation in standard errors is below 2; a chance of less than 1 in 1,000.

    In the twin, which ignores what was observed, the prior's mean is in the place of the conditional one.
    """
    vae = linear_vae()
    x = incomplete(vae)
    done = pv.impute(vae, x, num_draws=200)
    assert torch.equal(done.rows, x.isnan().any(1).nonzero().flatten())
    assert done.evidence.reliable.all()
    assert torch.cat([*deviations(vae, x, done)]).mean() < 2
    assert torch.equal(done.x[~done.missing], x[~x.isnan()])
    assert (done.sd[~done.missing] == 0).all()
    bias = vae.likelihood.network.layers[-1].bias.expand_as(x)
    biased = pv.Imputation(
        torch.where(done.missing, bias, x), done.sd, done.probability, done.missing, done.rows, done.evidence
    )
    assert torch.cat([*deviations(vae, x, biased)]).mean() > 8


def test_a_seed_gives_the_same():
    vae = linear_vae()
    x = incomplete(vae, 5)
    one, other, third = (pv.impute(vae, x, num_draws=20, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.x, other.x)
    assert not torch.equal(one.x, third.x)


def test_bernoulli_images_with_labels():
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.nn.MLP(2 + 3, [8], 12)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(12 + 3, [8], 4)),
        context_shapes=[(3,)],
    )
    x = torch.bernoulli(torch.full((5, 1, 3, 4), 0.5))
    x[1, 0, 0] = torch.nan
    done = pv.impute(vae, x, torch.eye(3)[[0, 1, 2, 0, 1]], num_draws=50)
    assert done.x.shape == x.shape and done.rows.tolist() == [1]
    assert ((done.x[1, 0, 0] > 0) & (done.x[1, 0, 0] < 1)).all()
    p = done.x[1, 0, 0]
    assert torch.allclose(done.sd[1, 0, 0], (p * (1 - p)).sqrt(), atol=1e-4)  # of zeros and ones


class Multivariate(nn.Module):
    def forward(self, z, *context):
        return dist.MultivariateNormal(z, torch.eye(2))


def test_refusals():
    vae = linear_vae()
    with pytest.raises(ValueError, match="x: expected NaN where an entry is missing; got 3 complete data"):
        pv.impute(vae, torch.zeros(3, DIM))
    with pytest.raises(TypeError, match="vae: expected a VAE; got"):
        pv.impute((vae.model, vae.guide), torch.zeros(3, DIM))
    whole = pv.VAE(pv.priors.StandardNormal(2), Multivariate(), Fixed())
    with pytest.raises(ValueError, match="likelihood: expected one whose entries are independent given z; got Multi"):
        pv.impute(whole, torch.tensor([[0.0, torch.nan]]))


def test_deviations_far_from_zero():
    """Of numbers around 5,000, as large as of the same numbers around zero."""
    found = []
    for offset in (0.0, 5000.0):
        torch.manual_seed(0)
        decoder = pv.nn.MLP(1, [], 3, output_bias=offset)
        vae = pv.VAE(
            pv.priors.StandardNormal(1),
            pv.likelihoods.Gaussian(decoder, scale=0.5),
            pv.posteriors.DiagonalNormal(pv.nn.Standardized(pv.nn.MLP(3, [], 2), shift=offset)),
        )
        x = torch.tensor([[0.5, 1.0, torch.nan], [torch.nan, 1.0, 2.0]]) + offset
        found.append(pv.impute(vae, x, num_draws=100).sd)
    assert torch.allclose(*found, atol=0.05) and found[0].max() > 0.5


REFUSED = {
    "no rows": (
        lambda vae: pv.impute(vae, torch.tensor([0.5, torch.nan])),
        "x: expected rows of entries, .*got shape .2,",
    ),
    "context of other data": (
        lambda vae: pv.impute(vae, torch.tensor([[0.5, torch.nan], [0.1, 0.2]]), torch.zeros(7, 1)),
        r"context\[0\]: expected a row for each of 2 data; got shape \(7, 1\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    call, message = REFUSED[case]
    vae = pv.VAE(
        pv.priors.StandardNormal(1),
        pv.likelihoods.Gaussian(pv.nn.MLP(2, [], 2), scale=0.5),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2)),
        context_shapes=[(1,)],
    )
    with pytest.raises(ValueError, match=message):
        call(vae)


def test_a_likelihood_without_a_variance_is_refused_before_anything_is_evaluated(monkeypatch):
    vae = pv.VAE(
        pv.priors.StandardNormal(1),
        pv.likelihoods.StudentT(pv.nn.MLP(1, [], 2), df=1.5),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(2, [], 2)),
    )
    monkeypatch.setattr("pyro_vae.imputation.log_evidence", None)
    with pytest.raises(ValueError, match="vae: expected a likelihood whose entries have a mean and a variance"):
        pv.impute(vae, torch.tensor([[0.5, torch.nan]]))


@torch.no_grad()
def test_levels_alone():
    """The likeliest level and its probability, against an enumeration over a grid of z.

    200 draws: a probability is off by up to 5 standard errors, a chance of less than 1 in 100,000. In the twin the
    levels that were observed are others.
    """
    torch.manual_seed(3)
    decoder = pv.nn.MLP(1, [], 3 * 4)
    decoder.layers[-1].weight.mul_(6)
    vae = pv.VAE(
        pv.priors.StandardNormal(1),
        pv.likelihoods.Categorical(decoder, 3),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(4, [], 2)),
    )
    x = torch.tensor([[0.0, 2.0, torch.nan, 1.0], [2.0, 0.0, torch.nan, 2.0]])
    done = pv.impute(vae, x, num_draws=200)
    z = torch.linspace(-8, 8, 2001)[:, None]
    probs = vae.likelihood(z).base_dist.probs
    exact = []
    for row in x:
        log_joint = vae.prior().log_prob(z) + sum(probs[:, d, int(row[d])].log() for d in (0, 1, 3))
        exact.append((log_joint.softmax(0)[:, None] * probs[:, 2]).sum(0))
    expected = torch.stack(exact)
    level = expected.argmax(1)
    assert torch.equal(done.x[:, 2], level.float()) and done.evidence.reliable.all()
    error = 5 * (expected.amax(1) * (1 - expected.amax(1)) / 200) ** 0.5
    off = (done.probability[:, 2] - expected.gather(1, level[:, None])[:, 0]).abs()
    twin = (done.probability[:, 2] - expected.flip(0).gather(1, level[:, None])[:, 0]).abs()
    assert (off < error).all() and (twin > error).all()
