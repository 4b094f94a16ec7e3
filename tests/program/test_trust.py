"""What would be a wrong number without a word: masks, spaces, draws that meet, modes, guides that are too sure."""

import math

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn
from truths import GaussianPosterior, LinearGaussian, assert_unbiased_in_p

import pyro_vae as pv

ESTIMATORS = {
    **{
        name: lambda *pair_and_args, name=name: pv.importance_sampling(*pair_and_args, num_samples=500, proposal=name)
        for name in ("guide", "inflated", "heavy-tailed", "defensive", "laplace")
    },
    "ais": lambda *pair_and_args: pv.ais(*pair_and_args, num_temperatures=20),
    "ais from the guide": lambda *pair_and_args: pv.ais(*pair_and_args, num_temperatures=20, start="guide"),
    "ais from the prior": lambda *pair_and_args: pv.ais(*pair_and_args, num_temperatures=20, start="prior"),
    "log_evidence": pv.log_evidence,
}
"""All but `local`, which spends 2,400 evaluations on each datum, and refines no discrete latent."""

pytestmark = pytest.mark.usefixtures("float64")

STEPS, NOISE = 3, 0.5


def assert_right(evidence, exact):
    """Check that E p-hat = p over the data, and that those called reliable lie within five errors (6e-7 each)."""
    if not torch.allclose(evidence.log_evidence, exact, atol=1e-6):
        assert_unbiased_in_p(evidence.log_evidence, exact)
    error = (evidence.log_evidence - exact).abs()
    assert (error <= 5 * evidence.std_error + 0.02)[evidence.reliable].all()


def chain(mask_latents, mask_guide=None):
    """z_t ~ N(0.8 z_{t-1}, 1), x_t ~ N(z_t, 0.5^2), as far as a datum goes; `mask_latents(mask, fn)` draws a latent."""

    def model(x, length):
        with pyro.plate("data", len(x)):
            z = x.new_zeros(())
            for t in range(STEPS):
                on = t < length
                z = mask_latents(on, f"z{t}", dist.Normal(0.8 * z, 1.0))
                with poutine.mask(mask=on):
                    pyro.sample(f"x{t}", dist.Normal(z, NOISE), obs=x[:, t])

    def guide(x, length):
        with pyro.plate("data", len(x)):
            z = x.new_zeros(())
            for t in range(STEPS):
                on = t < length
                # Where nothing is seen, the prior: a latent that the model counts all the same needs a guide that covers it.
                loc = torch.where(on, 0.8 * x[:, t] + 0.16 * z, 0.8 * z)
                z = (mask_guide or mask_latents)(on, f"z{t}", dist.Normal(loc, torch.where(on, 0.5, 1.0)))

    return model, guide


def by_poutine(on, name, fn):
    with poutine.mask(mask=on):
        return pyro.sample(name, fn)


def by_distribution(on, name, fn):
    return pyro.sample(name, fn.mask(on))


def not_at_all(on, name, fn):
    return pyro.sample(name, fn)


def log_evidence_of_chain(x, length):
    covariance = torch.empty(STEPS, STEPS)
    variances = [sum(0.64**i for i in range(t + 1)) for t in range(STEPS)]
    for i in range(STEPS):
        for j in range(STEPS):
            covariance[i, j] = variances[min(i, j)] * 0.8 ** abs(i - j)
    covariance = covariance + NOISE**2 * torch.eye(STEPS)
    return torch.stack(
        [
            dist.MultivariateNormal(torch.zeros(n), covariance[:n, :n]).log_prob(row[:n])
            for row, n in zip(x, length.tolist(), strict=True)
        ]
    )


def chain_data(num_data=60):
    return torch.randn(num_data, STEPS), 1 + torch.arange(num_data) % STEPS


ON_A_PUSH = ("by poutine.mask", "in the model alone")
MASKS = {
    "by poutine.mask": chain(by_poutine),
    "by distribution.mask": chain(by_distribution),
    "in the model alone": chain(by_poutine, not_at_all),
    "in the guide alone, where it is none": chain(not_at_all, by_poutine),
    "in each in its way": chain(by_distribution, by_poutine),
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    "where",
    [pytest.param(where, marks=[] if where in ON_A_PUSH else pytest.mark.slow) for where in MASKS],
)
def test_masked_latents_are_no_dimension(where, estimator):
    """5 ways to mask, 9 estimators: z-scores of 60 data in p, at a level of 7e-6 each."""
    torch.manual_seed(1)
    x, length = chain_data()
    evidence = ESTIMATORS[estimator](*MASKS[where], x, length)
    assert_right(evidence, log_evidence_of_chain(x, length))
    assert evidence.certified_lower_bound() < log_evidence_of_chain(x, length).mean()


@pytest.mark.parametrize("estimator", ["guide", "log_evidence"])
def test_masked_latents_are_not_compiled(estimator):
    """What counts is another thing for each block: pairs with masks run as they are, and say so."""
    x, length = chain_data(4)
    model, guide = chain(by_poutine)
    options = {"log_evidence": {"tolerance": 0.2}, "guide": {"num_samples": 1024}}
    estimate = pv.log_evidence if estimator == "log_evidence" else pv.importance_sampling
    plain = estimate(model, guide, x, length, **options[estimator])
    with pytest.warns(UserWarning, match="compile: expected .* without masked latents"):
        compiled = estimate(model, guide, x, length, compile=True, **options[estimator])
    assert torch.equal(plain.log_evidence, compiled.log_evidence)


def test_draws_of_what_does_not_count_do_not_widen_the_weights():
    """A guide that is exact for what counts, and far off for what does not, has weights that are all p(x)."""
    truth = LinearGaussian(latent_dim=1, data_dim=1)

    def model(x, on):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).mask(torch.stack([~on | on, on], -1)).to_event(1))
            loc = (z[..., :1] @ truth.weight.T + truth.bias).squeeze(-1)
            pyro.sample("x", dist.Normal(loc, truth.scale), obs=x[:, 0])

    def guide(x, on):
        exact = truth.posterior(x)
        loc = torch.cat([exact.loc, 30 + 0 * exact.loc], -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, torch.cat([exact.stddev, 1 + 0 * exact.loc], -1)).to_event(1))

    x = truth.draw(4)
    evidence = pv.importance_sampling(model, guide, x, torch.zeros(4, dtype=torch.bool), num_samples=100)
    assert torch.allclose(evidence.log_evidence, truth.log_evidence(x), atol=1e-10) and evidence.reliable.all()


@pytest.mark.parametrize("estimator", ["guide", "laplace", "log_evidence"])
def test_ragged_items_under_an_automatic_guide(estimator):
    """Latents in a plate of their own, of which each datum has some; AutoNormal masks none."""

    def model(x, mask):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("items", 3, dim=-2), poutine.mask(mask=mask.T):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    x, mask = torch.randn(5, 3), torch.arange(3) <= torch.arange(5)[:, None]
    guide = AutoNormal(model, init_scale=0.8)
    guide(x, mask)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).where(mask, torch.zeros(())).sum(-1)
    evidence = ESTIMATORS[estimator](model, guide, x, mask)
    assert (evidence.log_evidence - exact).abs().max() < 0.3


@pytest.mark.parametrize("estimator", ["guide", "log_evidence"])
def test_a_value_that_is_observed_for_some(estimator):
    """Pyro's obs_mask, of a coin that picks another; the guide draws it for all, without a mask."""
    p = torch.tensor([0.05, 0.95])

    def model(x, coin, seen):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(2)), obs=coin, obs_mask=seen)
            pyro.sample("x", dist.Bernoulli(p[c]), obs=x)

    def guide(x, coin, seen):
        with pyro.plate("data", len(x)):
            pyro.sample("c_unobserved", dist.Categorical(torch.ones(2)))

    coin, seen = torch.arange(40) % 2, torch.arange(40) % 3 > 0
    x = (torch.arange(40) % 5 > 1).double()
    exact = math.log(0.5) + dist.Bernoulli(p[coin]).log_prob(x).where(seen, torch.zeros(()))
    evidence = ESTIMATORS[estimator](model, guide, x, coin, seen)
    assert torch.allclose(evidence.log_evidence[seen], exact[seen])
    assert (evidence.log_evidence - exact).abs().max() < (1e-9 if estimator == "log_evidence" else 0.2)


def test_masked_latents_that_matter_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=x > 0):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(ValueError, match="model: expected masked latents on which nothing depends that counts"):
        pv.importance_sampling(model, guide, torch.randn(6))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("concentration", [pytest.param(0.1, marks=pytest.mark.slow), 3.0])
def test_angles(estimator, concentration):
    """Of all directions, so that some posteriors lie about the place where angles begin anew."""
    centre = 3.0  # of the prior

    def model(x):
        with pyro.plate("data", len(x)):
            angle = pyro.sample("angle", dist.VonMises(torch.tensor(centre), concentration))
            pyro.sample("x", dist.Normal(torch.stack([angle.cos(), angle.sin()], -1), 0.7).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("angle", dist.VonMises(torch.atan2(x[:, 1], x[:, 0]), 2.0))

    x = torch.randn(60, 2)
    angle = torch.linspace(-math.pi, math.pi, 4001)[:-1, None]
    likelihood = dist.Normal(torch.stack([angle.cos(), angle.sin()], -1), 0.7).to_event(1).log_prob(x)
    prior = dist.VonMises(torch.tensor(centre), concentration).log_prob(angle)
    exact = (prior + likelihood).logsumexp(0) + math.log(2 * math.pi / 4000)
    evidence = ESTIMATORS[estimator](model, guide, x)
    assert_right(evidence, exact)


def test_a_guide_on_the_line_for_an_angle_counts_each_angle_once():
    def model(x):
        with pyro.plate("data", len(x)):
            angle = pyro.sample("angle", dist.VonMises(torch.tensor(0.0), 0.5))
            pyro.sample("x", dist.Normal(angle.cos(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("angle", dist.Normal(torch.zeros(len(x)), 4.0))

    x = torch.linspace(-1, 1, 30)
    angle = torch.linspace(-math.pi, math.pi, 4001)[:-1, None]
    joint = dist.VonMises(torch.tensor(0.0), 0.5).log_prob(angle) + dist.Normal(angle.cos(), 1.0).log_prob(x)
    evidence = pv.importance_sampling(model, guide, x, num_samples=4000)
    assert_unbiased_in_p(evidence.log_evidence, joint.logsumexp(0) + math.log(2 * math.pi / 4000))


class Mixing(nn.Module):
    """A decoder that takes its place by a function of several data or draws."""

    def __init__(self, mix):
        super().__init__()
        self.linear, self.mix = nn.Linear(2, 6), mix

    def forward(self, z):
        return self.mix(self.linear(z))


def soft_of_first(value):
    return value.softmax(0 if value.ndim in (0, 1, 3) else 1)  # what nn.Softmax() does without a dimension


MEETING = {
    "a softmax that counts from the left": soft_of_first,
    "BatchNorm of as many channels as rows": nn.BatchNorm1d(6).eval(),
    "PReLU of as many channels as rows": nn.PReLU(6),
    "a mean over draws": lambda value: value - value.mean(0, keepdim=True) if value.ndim > 2 else value,
    "a mean over data": lambda value: value - value.mean(-2, keepdim=True),
}


def mixing_pair(mix):
    """z ~ N(0, I), x ~ N(mix(Wz + b), 0.3^2), and log p(x) of a batch by quadrature."""
    torch.manual_seed(0)
    if isinstance(mix, nn.Module):
        for parameter in mix.parameters():
            nn.init.uniform_(parameter, 0.2, 1.5)
    decoder = Mixing(mix).double().requires_grad_(False)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.3).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).expand([len(x), 2]).to_event(1))

    def exact(x):
        line = torch.linspace(-5, 5, 201)
        z = torch.cartesian_prod(line, line)
        prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + 2 * math.log(0.05)
        return (prior + dist.Normal(decoder(z), 0.3).log_prob(x[:, None]).sum(-1)).logsumexp(-1)

    return model, guide, exact


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("kind", "estimate"),
    [
        *((kind, pv.importance_sampling) for kind in list(MEETING)[:-1]),
        ("PReLU of as many channels as rows", pv.log_evidence),
        *(pytest.param(kind, pv.log_evidence, marks=pytest.mark.slow) for kind in list(MEETING)[:2]),
    ],
)
def test_draws_that_would_meet_are_run_as_they_are_alone(kind, estimate):
    """Side by side, these decoders would take draws for data or for channels."""
    model, guide, exact = mixing_pair(MEETING[kind])
    x = 0.3 * torch.randn(6, 6)
    evidence = estimate(model, guide, x)
    assert evidence.settings["draws"] in ("as rows", "one by one")
    assert_right(evidence, exact(x))


@pytest.mark.usefixtures("float64")
def test_data_that_meet_are_refused():
    model, guide, _ = mixing_pair(MEETING["a mean over data"])
    for estimate in (pv.importance_sampling, pv.log_evidence):
        with pytest.raises(ValueError, match=r"model.*: expected .*; got"):
            estimate(model, guide, torch.randn(6, 6))


def test_what_counts_dimensions_from_the_right_is_taken():
    decoder = Mixing(nn.Softmax(dim=-1))
    vae = pv.VAE(pv.priors.StandardNormal(2), Grey(decoder), pv.posteriors.DiagonalNormal(pv.nn.MLP(6, [4], 4)))
    assert len(pv.importance_sampling(vae.model, vae.guide, torch.rand(6, 6), num_samples=30)) == 6


class Grey(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, z):
        return dist.Normal(self.network(z), 1.0).to_event(1)


def simple_pair():
    """z ~ N(0, 1), x ~ N(z, 1)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    return model, guide


def test_data_of_a_model_that_reads_them_are_not_simulated():
    def mean(x, z):
        before = torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], -1)
        return z[..., None] + 0.9 * before

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(mean(x, z), 0.7).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x[:, 0], 1.0))

    with pytest.raises(ValueError, match="the model reads x, as teacher forcing does"):
        pv.bdmc(model, guide, torch.zeros(10, 4), num_temperatures=5)
    assert len(pv.log_evidence(model, guide, torch.randn(4, 4))) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    network = nn.Linear(1, 1).to(dtype)

    def by_a_module(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(network(z.to(dtype)).float().squeeze(-1), 1.0), obs=x)

    def by_a_tensor(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            scale = torch.ones((), dtype=dtype)
            pyro.sample("x", dist.Normal(z.to(dtype).squeeze(-1), scale), obs=x.to(dtype))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, None] / 2, 0.8).to_event(1))

    for model in (by_a_module, by_a_tensor):
        with pytest.raises(ValueError, match=r"expected .* in float32 or float64; got torch\..*float16"):
            pv.importance_sampling(model, guide, torch.randn(3))


def test_bits_of_data_in_another_unit_are_refused():
    model, guide = simple_pair()
    evidence = pv.importance_sampling(model, guide, torch.tensor([0.5, 200.0]), num_samples=30)
    with pytest.raises(ValueError, match=r"x: expected data scaled to \[0, 1\].*got values from 0.5 to 200"):
        evidence.bits_per_dim(256)
    inside = pv.importance_sampling(model, guide, torch.tensor([0.5, 0.7]), num_samples=30)
    assert inside.bits_per_dim(256).shape == (2,)


def test_what_was_not_measured():
    """NaN that the distribution takes for missing is no impossible value; under any other it is."""

    def model(x, likelihood=dist.NanMaskedNormal):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", likelihood(z[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.nan_to_num().sum(-1) / 3, 0.7))

    x = torch.tensor([[0.3, math.nan], [1.0, -0.5]])
    pair = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    exact = torch.stack(
        [dist.Normal(0.0, math.sqrt(2)).log_prob(x[0, 0]), dist.MultivariateNormal(torch.zeros(2), pair).log_prob(x[1])]
    )
    for estimate in (pv.importance_sampling, pv.log_evidence):
        assert torch.allclose(estimate(model, guide, x).log_evidence, exact, atol=0.1)
    with pytest.raises(
        ValueError, match="model: expected observed numbers; got NaN at site .x., in 1 of its 4 numbers"
    ):
        pv.importance_sampling(lambda x: model(x, dist.Normal), guide, x)


def gaussian_process(num_points=20, num_data=6):
    """Curves whose posterior is a Gaussian, far from what a mean-field guide can be."""
    t = torch.linspace(0, 1, num_points)
    kernel = torch.exp(-0.5 * (t[:, None] - t) ** 2 / 0.25) + 1e-6 * torch.eye(num_points)
    marginal = dist.MultivariateNormal(torch.zeros(num_points), kernel + 0.09 * torch.eye(num_points))

    def model(x):
        with pyro.plate("curves", len(x)):
            f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(num_points), kernel))
            pyro.sample("x", dist.Normal(f, 0.3).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("curves", len(x)):
            pyro.sample("f", dist.Normal(torch.zeros(len(x), num_points), 0.03).to_event(1))

    x = marginal.sample((num_data,))
    return model, guide, x, marginal.log_prob(x)


def natural_units():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1000.0))
            pyro.sample("x", dist.Normal(z, 1000.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    marginal = dist.Normal(torch.tensor(0.0), 1000 * math.sqrt(2))
    x = marginal.sample((20,))
    return model, guide, x, marginal.log_prob(x)


@pytest.mark.parametrize("make", [gaussian_process, natural_units])
def test_a_gaussian_posterior_is_found_from_anywhere(make):
    *pair, x, exact = make()
    for evidence in (pv.importance_sampling(*pair, x, proposal="laplace", num_samples=200), pv.log_evidence(*pair, x)):
        assert torch.allclose(evidence.log_evidence, exact, atol=1e-5)
        assert evidence.reliable.double().mean() >= 0.9
    assert evidence.num_evaluations.double().mean() < 1500


def test_a_search_that_finds_no_mode_is_flagged():
    """A density that rises for ever, as far as six rounds go."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1e6))
            pyro.factor("rising", -10 * (z / 3e5 - 4).abs() ** 0.25 + 0 * x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    evidence = pv.importance_sampling(model, guide, torch.zeros(3), proposal="laplace", num_samples=50)
    assert not evidence.diagnostics["converged"].all()
    assert "has not come to its end" in evidence.summary()


def of_width(width, num_data=250):
    """x ~ N(0, 2) by z ~ N(0, 1), and a guide of the right mean and `width` times the right scale."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, width * math.sqrt(0.5)))

    marginal = dist.Normal(torch.tensor(0.0), math.sqrt(2))
    x = marginal.sample((num_data,))
    return model, guide, x, marginal.log_prob(x)


@pytest.mark.parametrize(("width", "least", "most"), [(0.1, 0, 0.02), (0.3, 0, 0.02), (0.5, 0, 0.3), (0.9, 0.9, 1)])
def test_guides_that_are_too_narrow(width, least, most):
    """Of 250 data, of which fewer than 2 % may be called reliable and be off by four errors, and 95 % intervals hold."""
    model, guide, x, exact = of_width(width)
    evidence = pv.importance_sampling(model, guide, x, num_samples=1000)
    error, reliable = (evidence.log_evidence - exact).abs(), evidence.reliable
    assert least <= reliable.double().mean() <= most
    assert (error > 4 * evidence.std_error)[reliable].double().sum() <= 0.02 * reliable.sum()
    if reliable.sum() > 100:
        assert (error < 1.96 * evidence.std_error)[reliable].double().mean() > 0.93


def test_what_k_hat_alone_would_believe(monkeypatch):
    """The twin: without draws from elsewhere a narrow guide is called reliable, and is wrong."""
    monkeypatch.setattr("pyro_vae.evidence.importance.checked", lambda found, *_: found)
    monkeypatch.setattr("pyro_vae.evidence.weights.khat_threshold", lambda number: 0.667)
    model, guide, x, exact = of_width(0.3)
    evidence = pv.importance_sampling(model, guide, x, num_samples=1000)
    off = (evidence.log_evidence - exact).abs() > 4 * evidence.std_error
    assert (off & evidence.reliable).double().mean() > 0.05


def two_modes(num_data=60):
    """x = z^2 + noise; a guide that sees the positive root alone, and one that is the prior."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z * z, 0.3), obs=x)

    def of_one(x):
        with pyro.plate("data", len(x)):
            root = x.clamp(min=0.05).sqrt()
            pyro.sample("z", dist.Normal(root, 0.2 / (0.3 + root)))

    def of_both(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    x = torch.randn(num_data) ** 2 + 0.3 * torch.randn(num_data)
    z = torch.linspace(-8, 8, 40_001)[:, None]
    joint = dist.Normal(torch.tensor(0.0), 1.0).log_prob(z) + dist.Normal(z * z, 0.3).log_prob(x)
    return model, of_one, of_both, x, joint.logsumexp(0) + math.log(16 / 40_000)


@pytest.mark.parametrize(
    ("guide", "estimator"),
    [
        *(("of one", estimator) for estimator in ("guide", "laplace", "ais", "log_evidence")),
        ("of both", "guide"),
        *(
            pytest.param("of both", estimator, marks=pytest.mark.slow)
            for estimator in ("laplace", "ais", "log_evidence")
        ),
    ],
)
def test_a_mode_that_is_missed_is_found_or_flagged(estimator, guide):
    torch.manual_seed(2)
    model, *guides, x, exact = two_modes()
    evidence = ESTIMATORS[estimator](model, guides[guide == "of both"], x)
    missed = (evidence.log_evidence - exact).abs() > 0.3
    assert (missed & evidence.reliable).sum() <= 0.03 * evidence.reliable.sum()
    if estimator == "log_evidence":
        assert missed.double().mean() < 0.05


def too_sure(p):
    """A fair coin that decides on x, and a guide that says heads with probability p."""

    def model(x):
        with pyro.plate("data", len(x)):
            heads = pyro.sample("heads", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(4 * heads, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("heads", dist.Bernoulli(torch.full((len(x),), p)))

    x = torch.tensor([-1.0, 0.0, 2.0, 5.0])
    exact = torch.stack([dist.Normal(loc, 1.0).log_prob(x) for loc in (0.0, 4.0)]).logsumexp(0) + math.log(0.5)
    return model, guide, x, exact


def test_a_discrete_guide_that_never_drew_the_likely_value():
    model, guide, x, exact = too_sure(1 - 1e-12)
    evidence = pv.importance_sampling(model, guide, x)
    assert ((evidence.log_evidence - exact).abs() > 0.5).sum() == 3 and evidence.reliable.tolist() == [False] * 3 + [
        True
    ]
    assert "draws from elsewhere found more" in evidence.summary()


def test_few_values_are_summed():
    model, guide, x, exact = too_sure(1 - 1e-12)
    evidence = pv.log_evidence(model, guide, x)
    assert torch.allclose(evidence.log_evidence, exact, atol=1e-12)
    assert evidence.reliable.all() and set(evidence.method) == {"a sum over all values"}
    assert (evidence.num_evaluations == 202).all()  # the guide's, for the ELBO, and both values
    heads = evidence.draws.latents["heads"]
    assert heads.shape == (16, 4) and (heads[:, 0] == 0).all() and (heads[:, 3] == 1).all()


def test_values_without_number_are_drawn():
    def model(x):
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Poisson(torch.tensor(3.0)))
            pyro.sample("x", dist.Normal(n, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("n", dist.Poisson(x.clamp(min=0.5)))

    x = torch.tensor([1.0, 3.0, 6.0])
    n = torch.arange(60.0)[:, None]
    exact = (dist.Poisson(torch.tensor(3.0)).log_prob(n) + dist.Normal(n, 1.0).log_prob(x)).logsumexp(0)
    evidence = pv.log_evidence(model, guide, x)
    assert (evidence.log_evidence - exact).abs().max() < 0.2 and evidence.num_evaluations.max() <= 6000


@pytest.mark.parametrize(
    "estimator", ["guide", "guide, 10 draws", "inflated", "defensive", "laplace", "local", "ais", "log_evidence"]
)
def test_one_datum_costs_one_datum(estimator):
    """The decoder is run for as many (draw, datum) pairs as are counted, with 15 % and 150 for looking at the program."""
    truth = LinearGaussian(latent_dim=3, data_dim=5)
    vae, x = truth.vae(GaussianPosterior(truth, 0.3, 0.6)), truth.draw(1)
    if estimator == "local":
        vae = pv.VAE(pv.priors.StandardNormal(3), vae.likelihood, pv.posteriors.DiagonalNormal(pv.nn.MLP(5, [4], 6)))
    pairs = []
    vae.likelihood.register_forward_pre_hook(lambda module, args: pairs.append(args[0].shape[:-1].numel()))
    if estimator == "guide, 10 draws":
        evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=10)
    elif estimator == "local":
        evidence = pv.importance_sampling(vae.model, vae.guide, x, proposal="local")
    else:
        evidence = ESTIMATORS[estimator](vae.model, vae.guide, x)
    assert sum(pairs) <= 1.15 * evidence.num_evaluations.item() + 150


def full_covariance():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        tril = torch.tensor([[0.8, 0.0], [-0.3, 0.7]])
        with pyro.plate("data", len(x)):
            loc = (x / 3)[..., None].expand(*x.shape, 2)
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril))

    return model, guide


@pytest.mark.slow
def test_a_guide_of_full_covariance_is_refined():
    model, guide = full_covariance()
    x = torch.randn(5)
    exact = dist.Normal(0.0, math.sqrt(3)).log_prob(x)
    local = pv.importance_sampling(model, guide, x, proposal="local")
    assert torch.allclose(local.log_evidence, exact, atol=0.05)
    gap = pv.inference_gap(model, guide, x[:2])
    assert gap.approximation.abs().max() < 0.05


@pytest.mark.parametrize("estimator", ["defensive", "ais from the guide"])
def test_a_flow_without_an_inverse_is_refused_where_one_is_needed(estimator):
    model, _ = full_covariance()
    flow = T.planar(2)

    def guide(x):
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            base = dist.Normal((x / 3)[..., None].expand(*x.shape, 2), 0.8).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    x = torch.randn(5)
    with pytest.raises(ValueError, match="guide: expected a density at values that it has not drawn.*planar"):
        ESTIMATORS[estimator](model, guide, x)
    exact = dist.Normal(0.0, math.sqrt(3)).log_prob(x)
    for name in ("guide", "log_evidence"):
        assert (ESTIMATORS[name](model, guide, x).log_evidence - exact).abs().max() < 0.4


def test_supports_of_each_datum():
    """z ~ Uniform(0, b_n), x ~ N(z, 0.5^2), of other bounds for other data, in whatever company."""

    def model(x, bound):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(0 * bound, bound))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x, bound):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(0 * bound, bound))

    bound = torch.tensor([1.0, 3.0, 0.5, 6.0])
    x = 0.7 * bound
    normal = dist.Normal(torch.tensor(0.0), 1.0)
    exact = ((normal.cdf(x / 0.5) - normal.cdf((x - bound) / 0.5)) / bound).log()
    for estimator in ("guide", "laplace", "ais"):
        evidence = ESTIMATORS[estimator](model, guide, x, bound)
        assert (evidence.log_evidence - exact).abs().max() < 0.4
    rest = pv.ais(model, guide, x[2:], bound[2:], num_temperatures=20, first_index=2)
    assert torch.allclose(ESTIMATORS["ais"](model, guide, x, bound).log_evidence[2:], rest.log_evidence)


def test_an_automatic_guide_of_an_angle():
    def model(x):
        with pyro.plate("data", len(x)):
            angle = pyro.sample("angle", dist.VonMises(torch.tensor(0.0), 2.0))
            pyro.sample("x", dist.Normal(angle.cos(), 1.0), obs=x)

    x = torch.linspace(-1, 1, 30)
    guide = AutoNormal(model, init_scale=0.9)
    guide(x)
    angle = torch.linspace(-math.pi, math.pi, 4001)[:-1, None]
    joint = dist.VonMises(torch.tensor(0.0), 2.0).log_prob(angle) + dist.Normal(angle.cos(), 1.0).log_prob(x)
    exact = joint.logsumexp(0) + math.log(2 * math.pi / 4000)
    for estimator in ("guide", "defensive", "log_evidence"):
        assert_right(ESTIMATORS[estimator](model, guide, x), exact)


@pytest.mark.slow
def test_values_that_another_latent_decides():
    """n ~ Categorical, m ~ Binomial(n + 1, 1/2): a list of values from one draw is no list of all."""

    def model(x):
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Categorical(torch.ones(4)))
            m = pyro.sample("m", dist.Binomial(n + 1.0, 0.5))
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Categorical(torch.ones(len(x), 4)))
            pyro.sample("m", dist.Binomial(n + 1.0, 0.5))

    x = torch.tensor([0.5, 3.9])
    pairs = [(n, m) for n in range(4) for m in range(n + 2)]
    exact = torch.stack(
        [
            dist.Binomial(n + 1, torch.tensor(0.5)).log_prob(torch.tensor(float(m))) + dist.Normal(m, 1.0).log_prob(x)
            for n, m in pairs
        ]
    ).logsumexp(0) - math.log(4)
    for seed in range(4):
        evidence = pv.log_evidence(model, guide, x, seed=seed)
        assert ((evidence.log_evidence - exact).abs() <= 5 * evidence.std_error + 1e-9).all()


def test_a_mask_that_a_draw_decides():
    """z counts where k is 1, which it rarely is: it is no dimension of the others alone."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.05)))
            with poutine.mask(mask=k > 0):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(2 * k * z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(torch.full((len(x),), 0.5)))
            pyro.sample("z", dist.Normal(x / 2, 0.5))

    x = torch.full((20,), 1.0)
    parts = torch.tensor([0.95, 0.05]).log()
    densities = torch.stack([dist.Normal(0.0, scale).log_prob(x) for scale in (0.5, math.sqrt(4.25))])
    evidence = pv.importance_sampling(model, guide, x, num_samples=2000)
    assert_unbiased_in_p(evidence.log_evidence, (parts[:, None] + densities).logsumexp(0))


def test_the_model_decides_what_a_draw_leaves_out():
    """A guide that masks a branch that it hardly ever draws, against its own model, changes no number."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(4) / 4))
            with poutine.mask(mask=k < 2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.where(k < 2, 3 * z, 0.0), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.01, 0.79, 0.1, 0.1])))
            with poutine.mask(mask=k == 1):
                pyro.sample("z", dist.Normal(0.3 * x, 0.5))

    x = torch.full((40,), 4.0)
    parts = torch.tensor([0.5, 0.5]).log()[:, None]
    densities = torch.stack([dist.Normal(0.0, scale).log_prob(x) for scale in (10**0.5, 1.0)])
    evidence = pv.importance_sampling(model, guide, x, num_samples=20_000)
    assert_unbiased_in_p(evidence.log_evidence, (parts + densities).logsumexp(0))
