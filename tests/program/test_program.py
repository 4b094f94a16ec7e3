"""Any Pyro model and guide with a plate over data, and those that have no log p(x) for each datum."""

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn
from truths import GaussianPosterior, LinearGaussian, assert_unbiased, draws_of, small_vae

import pyro_vae as pv
from pyro_vae.program import tiles
from pyro_vae.program.core import LogDensities
from pyro_vae.program.inspect import program_of


def hierarchical(x, scale=1.0):
    """z1 -> z2 -> x, with two features of x in a plate of their own; x ~ N(0, covariance)."""
    with pyro.plate("data", len(x), dim=-2):
        z1 = pyro.sample("z1", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        z2 = pyro.sample("z2", dist.Normal(z1, 0.5))
        with pyro.plate("features", 2, dim=-1):
            pyro.sample("x", dist.Normal(z2, scale), obs=x)


def hierarchical_guide(x, scale=1.0):
    with pyro.plate("data", len(x), dim=-2):
        z2 = pyro.sample("z2", dist.Normal(x.mean(-1, keepdim=True) / 2, 0.9))
        pyro.sample("z1", dist.Normal(0.7 * z2, 0.7))


def hierarchical_evidence(x, scale=1.0):
    covariance = torch.full((2, 2), 1.25, dtype=torch.float64) + scale**2 * torch.eye(2, dtype=torch.float64)
    return dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance).log_prob(x)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_several_latents_nested_plates_and_further_arguments(scale):
    x = torch.randn(100, 2, dtype=torch.float64)
    evidence = pv.importance_sampling(hierarchical, hierarchical_guide, x, num_samples=1000, kwargs={"scale": scale})
    exact = hierarchical_evidence(x, scale)
    assert_unbiased(evidence.log_evidence, evidence.std_error, exact)
    weights = pv.evidence.log_weights(hierarchical, hierarchical_guide, x, num_samples=1000, kwargs={"scale": scale})
    pooled = (weights.sum(1).logsumexp(0) - math.log(1000)) / 100
    with pytest.raises(AssertionError):  # the twin: pooled over the batch, as pyro.infer.Importance does
        assert_unbiased(pooled.expand(100), evidence.std_error, exact.mean().expand(100))


def test_discrete_latents():
    """A mixture of two, by enumeration."""
    means = torch.tensor([-1.0, 2.0], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64)))
            pyro.sample("x", dist.Normal(means[c], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(torch.tensor([0.5, 0.5], dtype=torch.float64)))

    x = torch.randn(100, dtype=torch.float64)
    evidence = pv.importance_sampling(model, guide, x, num_samples=3000)
    exact = (torch.tensor([0.3, 0.7]).log() + dist.Normal(means, 1.0).log_prob(x[:, None])).logsumexp(-1)
    assert_unbiased(evidence.log_evidence, evidence.std_error, exact)


def test_masks_count_and_each_positional_argument_has_rows():
    """A missing pixel is marginalised: its mask takes it out of log p(x)."""
    x = torch.randn(6, 2, dtype=torch.float64)
    seen = torch.tensor([[True, False]] * 6)

    def model(x, seen):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pixels = dist.Normal(z[..., None].expand(*z.shape, 2), 1.0).mask(seen).to_event(1)
            pyro.sample("x", pixels, obs=x)

    def guide(x, seen):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0] / 2, math.sqrt(0.5)))

    weights = pv.evidence.log_weights(model, guide, x, seen, num_samples=4)
    assert torch.allclose(weights, dist.Normal(0.0, math.sqrt(2.0)).log_prob(x[:, 0]))


def test_deterministic_sites_have_no_density():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.deterministic("twice", 2 * z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.deterministic("one", torch.ones(()))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

    x = torch.randn(5, dtype=torch.float64)
    assert torch.allclose(pv.evidence.log_weights(model, guide, x), dist.Normal(0.0, math.sqrt(2.0)).log_prob(x))


@pytest.mark.parametrize("num_data", [3, 60])
def test_a_guide_with_parameters_for_each_datum(num_data):
    truth = LinearGaussian(latent_dim=1, data_dim=2)
    x = truth.draw(num_data)
    vae = truth.vae()
    pyro.set_rng_seed(0)
    guide = AutoNormal(vae.model, init_scale=1.0)
    guide(x)
    evidence = pv.importance_sampling(vae.model, guide, x, num_samples=2000)
    exact = truth.log_evidence(x)
    reliable = evidence.ess > 50  # an untrained guide; where it covers the posterior, it must be right
    assert reliable.sum() > 0.6 * num_data
    assert ((evidence.log_evidence - exact).abs() < 5 * evidence.std_error)[reliable].all()
    pieces = pv.importance_sampling(vae.model, guide, x, num_samples=2000, chunk_size=600)
    assert torch.allclose(pieces.log_evidence, evidence.log_evidence, atol=1e-12)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("num_samples", [1, 7, 2048, 5000])
def test_same_numbers_whatever_the_batch_or_chunk(num_samples):
    vae = small_vae()
    x = draws_of(vae, 40)
    whole = pv.evidence.log_weights(vae.model, vae.guide, x, num_samples=num_samples, seed=5)
    for part in (slice(0, 1), slice(0, 13), slice(0, 39)):
        alone = pv.evidence.log_weights(vae.model, vae.guide, x[part], num_samples=num_samples, seed=5)
        assert torch.allclose(alone, whole[:, part], atol=1e-4)  # float32 rounding, which may depend on the rows
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=num_samples, seed=5)
    assert torch.allclose(evidence.log_evidence, whole.logsumexp(0) - math.log(num_samples), atol=1e-10)
    for chunk_size in (1, 100, 999, 10**6) if num_samples < 100 else (999, 10**6):
        other = pv.importance_sampling(vae.model, vae.guide, x, num_samples=num_samples, seed=5, chunk_size=chunk_size)
        assert torch.allclose(other.log_evidence, evidence.log_evidence, atol=1e-4)  # float32 rounding
    for part in (slice(1, 2), slice(5, 39), slice(39, 40)):
        options = {"num_samples": num_samples, "seed": 5, "first_index": part.start}
        alone = pv.importance_sampling(vae.model, vae.guide, x[part], **options)
        assert torch.allclose(alone.log_evidence, evidence.log_evidence[part], atol=1e-4)
    different = pv.evidence.log_weights(vae.model, vae.guide, x, num_samples=num_samples, seed=6)
    assert ((different.mean(0) - whole.mean(0)).abs() > 1e-3).all()


def test_data_have_noise_of_their_own():
    """Equal data get different draws, in one tile and across tiles: the certificate needs it."""
    vae = small_vae()
    x = draws_of(vae, 1).expand(3000, 6)
    weights = pv.evidence.log_weights(vae.model, vae.guide, x, num_samples=1)[0]
    assert len(weights.unique()) > 2990


def test_the_loss_agrees_with_pyro():
    """The mean log weight is minus Pyro's loss: 500 draws, 4.5 standard errors (7e-6)."""
    vae = small_vae()
    x = draws_of(vae, 10)
    ours = pv.evidence.log_weights(vae.model, vae.guide, x, num_samples=500).sum(1)
    theirs = -torch.tensor([pyro.infer.Trace_ELBO().loss(vae.model, vae.guide, x) for _ in range(500)])
    std_error = ((ours.var() + theirs.var()) / 500).sqrt()
    assert (ours.mean() - theirs.mean()).abs() < 4.5 * std_error
    assert (ours.mean() - 1.1 * theirs.mean()).abs() > 4.5 * std_error


def local_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


def subsampled(x):
    with pyro.plate("data", len(x), subsample_size=2) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def rows_of_many(x):
    with pyro.plate("data", 1000, subsample=x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def rows_of_many_guide(x):
    with pyro.plate("data", 1000, subsample=x):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


def sometimes_subsampled(x):
    with pyro.plate("data", len(x), subsample_size=min(len(x), 8)) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def sometimes_subsampled_guide(x):
    with pyro.plate("data", len(x), subsample_size=min(len(x), 8)) as rows:
        pyro.sample("z", dist.Normal(x[rows] / 2, 1.0))


def binary_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Bernoulli(logits=z), obs=(x > 0.25).float() + (x == 2).float())


def test_a_density_that_depends_on_the_number_of_rows_is_that_of_all():
    x = 3 * torch.randn(300, generator=torch.Generator().manual_seed(0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, len(x) / 100), obs=x)

    evidence = pv.importance_sampling(model, from_the_prior, x, num_samples=500)
    exact = dist.Normal(0.0, math.sqrt(10)).log_prob(x)
    assert_unbiased(evidence.log_evidence, evidence.std_error, exact)


@pytest.mark.parametrize("by_index", [True, False])
def test_rows_that_a_model_closes_over_are_each_datum_s_own(by_index):
    """Also where the first of them are alike, as those of sorted data are."""
    offset = torch.cat([torch.zeros(150), 3 * torch.ones(150)])

    def model(x):
        with pyro.plate("data", len(x)) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + (offset[index] if by_index else offset[: len(x)]), 1.0), obs=x)

    x = offset + 1.4 * torch.randn(300, generator=torch.Generator().manual_seed(0))
    evidence = pv.importance_sampling(model, from_the_prior, x, num_samples=1000)
    exact = dist.Normal(offset, math.sqrt(2)).log_prob(x)
    assert_unbiased(evidence.log_evidence, evidence.std_error, exact)


def test_a_model_that_asserts_its_number_of_rows_runs_on_all():
    def model(x):
        assert len(x) == 20
        with pyro.plate("data", 20):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    assert pv.importance_sampling(model, from_the_prior, torch.zeros(20), num_samples=100).reliable.all()


def from_the_prior(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


REFUSED = {
    "subsampled when there are many": (
        sometimes_subsampled,
        sometimes_subsampled_guide,
        "expected plates of the rows to evaluate, and no others; got plate .data., which takes 8 of",
    ),
    "one impossible datum": (binary_model, local_guide, "got values from 0 to 2 at site 'x'"),
    "given rows of more": (
        rows_of_many,
        rows_of_many_guide,
        "got plate .data., which takes . of 1000; .*len.x. by default",
    ),
}
"""What depends on the number of data, beside `refused.py`."""


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    model, guide, message = REFUSED[case]
    x = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 2.0])
    if isinstance(guide, nn.Module):
        guide(x)
    with pytest.raises(ValueError, match=message):
        pv.importance_sampling(model, guide, x, num_samples=3)


def test_a_draw_outside_the_support_has_no_weight_whatever_the_state_of_the_generator():
    """z ~ Exponential(1), and a guide that draws negative z too: torch makes up a density there."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(torch.ones((), dtype=torch.float64)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.abs(), 1.5))

    x = torch.linspace(-1, 3, 100, dtype=torch.float64)
    found = []
    for state in range(3):
        torch.manual_seed(state)
        found.append(pv.importance_sampling(model, guide, x, num_samples=4000))
    exact = 0.5 - x + dist.Normal(0.0, 1.0).cdf(x - 1).log()
    assert_unbiased(found[0].log_evidence, found[0].std_error, exact)
    assert all(torch.equal(found[0].log_evidence, each.log_evidence) for each in found)


def test_tiles_of_a_large_evaluation_have_seeds_of_their_own():
    """torch's generator of the CPU looks at 32 bits only: hashes of places would collide, by their birthdays."""
    seeds = {tiles.tile_seed(0, place) for place in range(200_000)}
    assert len(seeds) == 200_000
    states = set()
    for place in (50699, 55170, 7, 7 + 2048):
        torch.manual_seed(tiles.tile_seed(0, place))
        states.add(tuple(torch.randn(3).tolist()))
    assert len(states) == 4
    assert not seeds & {tiles.tile_seed(1, place) for place in range(1000)}


def test_a_guide_that_makes_its_parameters_at_its_first_call():
    """They get the size of the data, not that of a trial."""
    truth = LinearGaussian(latent_dim=1, data_dim=2)
    x = truth.draw(30)
    vae = truth.vae()

    def guide(x):
        loc = pyro.param("loc", lambda: torch.zeros(len(x), 1, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    assert len(pv.importance_sampling(vae.model, guide, x, num_samples=10)) == 30
    assert pyro.param("loc").shape == (30, 1)
    auto = AutoNormal(vae.model)
    assert len(pv.importance_sampling(vae.model, auto, x, num_samples=10)) == 30
    assert auto(x)["z"].shape == (30, 1)


def test_a_function_that_closes_over_rows_of_its_own():
    """An offset for each datum that is no argument: right, if only all data are taken together."""
    offset = torch.linspace(-3, 3, 50, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z + offset[: len(x)], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - offset[: len(x)]) / 2, math.sqrt(0.5)))

    x = torch.randn(50, dtype=torch.float64)
    expected = dist.Normal(offset, math.sqrt(2.0)).log_prob(x)
    assert torch.allclose(pv.evidence.log_weights(model, guide, x, num_samples=100), expected)


@pytest.mark.parametrize("size", [7, 8, 11])
def test_a_plate_inside_of_any_size(size):
    def model(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("inside", size, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("inside", size, dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    x = torch.randn(30, size, dtype=torch.float64)
    whole = pv.evidence.log_weights(model, guide, x, num_samples=100)
    assert torch.equal(pv.evidence.log_weights(model, guide, x[:12], num_samples=100), whole[:, :12])


def test_poutine_mask_takes_a_datum_out():
    seen = torch.arange(6) % 2 == 0

    def model(x, seen):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            with poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, seen):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.where(seen, x / 2, 0.0), torch.where(seen, math.sqrt(0.5), 1.0)))

    x = torch.randn(6, dtype=torch.float64)
    expected = torch.where(seen, dist.Normal(0.0, math.sqrt(2.0)).log_prob(x), 0.0)
    assert torch.allclose(pv.evidence.log_weights(model, guide, x, seen, num_samples=4), expected)


def test_several_plates_of_the_same_size_need_a_name():
    def model(x):
        with pyro.plate("groups", len(x), dim=-2), pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(len(x), -1))

    def guide(x):
        with pyro.plate("groups", len(x), dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.expand(len(x), -1) / 2, 1.0))

    with pytest.raises(ValueError, match="plate: expected one plate over the data; got 2"):
        pv.importance_sampling(model, guide, torch.zeros(4), num_samples=3)


@pytest.mark.parametrize("module", [nn.Dropout(), nn.BatchNorm1d(8)], ids=lambda m: type(m).__name__)
def test_modules_in_training_mode_are_refused(module):
    encoder = nn.Sequential(nn.Linear(6, 8), module, nn.Linear(8, 4))
    vae = pv.VAE(
        pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(nn.Linear(2, 6)), pv.posteriors.DiagonalNormal(encoder)
    )
    x = torch.ones(5, 6)
    assert vae.training
    with pytest.raises(ValueError, match=f"{type(module).__name__}.*training mode.*eval"):
        pv.importance_sampling(vae.model, vae.guide, x)
    pv.importance_sampling(vae.eval().model, vae.guide, x, num_samples=3)


def test_an_impossible_datum_has_no_evidence_and_stops_no_other():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("x", torch.where(x > 1, -torch.inf, 0.0) + 0 * z)

    evidence = pv.importance_sampling(model, local_guide, torch.tensor([0.0, 2.0]), num_samples=50)
    assert evidence.log_evidence[1] == -math.inf and evidence.ess[1] == 0
    assert torch.isfinite(evidence.log_evidence[0])
    assert "inf" in evidence.summary()


def test_outer_handlers_see_nothing():
    truth = LinearGaussian()
    vae = truth.vae(GaussianPosterior(truth))
    x = truth.draw(3)
    with poutine.trace() as seen:
        pv.importance_sampling(vae.model, vae.guide, x, num_samples=2)
    assert not list(seen.trace.nodes)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read as Linux gives it")
def test_memory_does_not_grow_with_the_number_of_draws():
    """The peak of a fresh process with 50 times the draws is within a tenth of the other's.

    The twin keeps what the model makes of each draw. (`ru_maxrss` would not do: a process takes over its parent's.)
    """
    code = (
        "import sys, torch, pyro_vae as pv\n"
        "vae = pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(pv.nn.MLP(2, [200], 784)), pv.posteriors.DiagonalNormal(pv.nn.MLP(784, [9], 4)))\n"
        "x = torch.ones(2, 784)\n"
        "kept = []\n"
        "if len(sys.argv) > 2: vae.likelihood.network.register_forward_hook(lambda *call: kept.append(call[-1]))\n"
        "pv.importance_sampling(vae.model, vae.guide, x, num_samples=int(sys.argv[1]))\n"
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )

    def peak(*arguments):
        command = [sys.executable, "-c", code, *arguments]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    few = peak("2000")
    assert peak("100000") < 1.1 * few
    assert peak("100000", "keep") > 1.1 * few


def test_an_inspection_runs_the_pair_a_few_times():
    """As often as it has to; whoever adds a run says so here."""
    vae, calls = small_vae(), Counter()

    def counted(name, program):
        return lambda *args: calls.update([name]) or program(*args)

    program_of(counted("model", vae.model), counted("guide", vae.guide), (draws_of(vae, 20),))
    assert calls == {"guide": 14, "model": 14}


@pytest.mark.parametrize("estimate", [pv.importance_sampling, pv.ais, pv.log_evidence])
def test_a_plate_without_a_size(estimate):
    """Of as many data as the distributions inside of it have."""
    x = torch.randn(6, 1, dtype=torch.float64)

    def model(x):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(0.8 * x, 0.5).to_event(1))

    evidence = estimate(model, guide, x)
    exact = dist.Normal(0.0, 1.25**0.5).log_prob(x)[:, 0]
    assert ((evidence.log_evidence - exact).abs() < 4.5 * evidence.std_error + 1e-6).all()


def test_rows_that_do_not_belong_together():
    with pytest.raises(
        ValueError, match=r"args\[1\]: .* got 3 rows; pass what is shared by the data in kwargs=\{\.\.\.\}\."
    ):
        pv.importance_sampling(hierarchical, hierarchical_guide, torch.zeros(4, 2), torch.zeros(3))


def in_columns(x, like=None):
    """(time, data): each datum has one latent."""
    with pyro.plate("data", x.shape[1], dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for t in range(len(x)):
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[t])


def in_columns_too(x, like=None):
    with pyro.plate("data", x.shape[1], dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("time", len(x), dim=-2):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_of_columns(x, like=None):
    with pyro.plate("data", x.shape[1], dim=-1):
        pyro.sample("z", dist.Normal(x.sum(0) / (len(x) + 1), 0.6))


@pytest.mark.parametrize("model", [in_columns, in_columns_too])
@pytest.mark.parametrize("plate", [None, "data"])
@pytest.mark.parametrize("num_steps", [3, 5])
def test_rows_in_another_dimension_which_may_be_as_many_as_the_first(num_steps, plate, model):
    """Each datum's density has to depend on its own numbers, which tells (time, data) from (data, time)."""
    x = torch.randn(num_steps, 5)
    covariance = torch.ones(num_steps, num_steps) + torch.eye(num_steps)
    exact = dist.MultivariateNormal(torch.zeros(num_steps), covariance).log_prob(x.T)
    for args in ((x,), (x.numpy(),), (x, x.clone())):
        evidence = pv.importance_sampling(model, guide_of_columns, *args, plate=plate, num_samples=2000)
        assert ((evidence.log_evidence - exact).abs() < 5 * evidence.std_error + 1e-3).all()
    assert not torch.allclose(exact[:3], dist.MultivariateNormal(torch.zeros(5), torch.eye(5) + 1).log_prob(x)[:3])


def test_a_statistic_of_all_data_has_no_reading():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.mean(), 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="expected each datum's density to depend on its own row"):
        pv.importance_sampling(model, None, torch.randn(4, 4))


def four_numbers(z):
    assert z.shape[-1] == 4, "four numbers"
    return z


@pytest.mark.parametrize(
    ("network", "kind", "said"),
    [
        (
            four_numbers,
            ValueError,
            r"AssertionError: four numbers, raised by your program in test_program.py:\d+ \(four",
        ),
        (lambda z: z[[100]], ValueError, "IndexError: index 100 .*, raised by your program in test_program.py"),
        (nn.Linear(3, 1), RuntimeError, r"RuntimeError: mat1 and mat2 .*, raised by your program in .*\(model\)"),
        (lambda z: z.foo(), AttributeError, "has no attribute 'foo'"),
    ],
    ids=["assertion", "index", "shapes", "attribute"],
)
def test_errors_of_a_program_are_its_own(network, kind, said):
    """A distribution is blamed only where it raised the error: `tests/refused.py` has one."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(network(z), 1.0), obs=x)

    with pytest.raises(kind, match=said) as caught:
        pv.importance_sampling(model, None, torch.zeros(9))
    assert "LKJ" not in str(caught.value) and "Trace Shapes" not in str(caught.value)


def test_a_distribution_of_a_program_is_a_distribution():
    class Odd(dist.Normal):
        def log_prob(self, value):
            raise AssertionError("no density")

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", Odd(torch.zeros(len(x)), 1.0), obs=x)

    with pytest.raises(ValueError, match="expected distributions that can be drawn from .* AssertionError: no density"):
        pv.importance_sampling(model, None, torch.zeros(9))


@pytest.mark.parametrize("missing", [1, 5])
@pytest.mark.parametrize("guide", [None, local_guide])
def test_nan_without_a_mask_is_counted(missing, guide):
    x = torch.zeros(5)
    x[:missing] = torch.nan

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    said = (
        f"got NaN .*in {missing} of (its )?5 numbers; drop these rows; or .*obs_mask=.*NanMasked|.*NanMasked.*obs_mask"
    )
    with pytest.raises(ValueError, match=said):
        pv.importance_sampling(model, guide, x)


def test_nan_of_a_network_is_not_that_of_the_data():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.full((len(x),), torch.nan), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="expected distributions with possible parameters; .*no NaN in the arguments"):
        pv.importance_sampling(model, None, torch.zeros(5))


class Counted(dist.Multinomial):
    """Words one by one, as topic models have them: its density is not that of one draw, which `support` is of."""

    def log_prob(self, value):
        return (self.logits * value).sum(-1)


class Strict(Counted):
    """The same with a support of its own."""

    support = dist.constraints.simplex


def words(kind):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", kind(1, logits=torch.stack([z, -z, 0.5 * z], -1)), obs=x)

    return model


def test_a_density_that_replaces_pyro_s_is_trusted_beyond_the_support_that_it_inherits():
    """By quadrature, within 4.5 errors of 2,000 draws (7e-6 for each datum); the twin is 0.1 nats off."""
    x = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 2.0]], dtype=torch.float64)
    found = pv.importance_sampling(words(Counted), None, x, num_samples=2000)
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    logits = torch.stack([z, -z, 0.5 * z], -1).log_softmax(-1)
    log_joint = dist.Normal(0.0, 1.0).log_prob(z)[:, None] + logits @ x.T
    exact = log_joint.logsumexp(0) + math.log(18 / 4000)
    error = 4.5 * found.std_error
    assert ((found.log_evidence - exact).abs() < error).all() and (
        (found.log_evidence + 0.1 - exact).abs() > error
    ).any()
    with pytest.raises(ValueError, match="model: expected observed values in the support of their distribution"):
        pv.importance_sampling(words(Strict), None, x)
    with pytest.raises(ValueError, match="model: expected observed numbers; got NaN"):
        pv.importance_sampling(words(Counted), None, x / x.clamp(max=0.5).round())


def narrows(x):
    """z ~ N(0, 1), and a scale that is rounded to zero, and refused, beyond 6."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(0.0, torch.where(z.abs() < 6.0, 1.0, torch.nan)), obs=x)


def of_width(scale):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(()), scale))

    return guide


def test_a_proposal_may_reach_where_the_program_has_no_numbers():
    """Some draws from twice the guide's width lie beyond 6, where there is 2e-9 of p(z); the guide's own are refused."""
    x = torch.linspace(-1, 1, 5)
    with pytest.warns(UserWarning, match="got NaN at draws far from the guide's"):
        found = pv.importance_sampling(narrows, of_width(1.5), x, proposal="inflated", num_samples=4000)
    exact = dist.Normal(0.0, 1.0).log_prob(x)
    assert ((found.log_evidence - exact).abs() < 4.5 * found.std_error).all()
    with pytest.raises(ValueError, match="expected (numbers for log weights; got NaN|distributions with possible)"):
        pv.importance_sampling(narrows, of_width(4.0), x, num_samples=4000)


def test_a_datum_without_any_number_is_not_passed_over():
    """Of three draws for three data: all have numbers, some have, none has. What is left NaN is refused."""
    prior = torch.tensor([[-1.0, torch.nan, torch.nan], [-1.0, -1.0, torch.nan], [-1.0, -1.0, torch.nan]])
    densities = LogDensities(prior, torch.zeros(3, 3), torch.zeros(3, 3))
    with pytest.warns(UserWarning, match="got NaN at draws far from the guide's"):
        _, found = tiles.zero_where_unknown(lambda strips: ({}, densities))([])
    assert found.weight[:, :2].tolist() == [[-1.0, -torch.inf], [-1.0, -1.0], [-1.0, -1.0]]
    assert found.weight[:, 2].isnan().all()
    with pytest.raises(ValueError, match="expected numbers for log weights; got NaN or .inf, first for .* index 2"):
        tiles.refuse_nan(found.weight, range(3))
