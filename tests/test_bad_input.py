"""What cannot be is refused: one table. Each message names the argument, what was found, what is expected, and a remedy."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_vae as pv

BINARY = torch.bernoulli(torch.full((5, 12), 0.5), generator=torch.Generator().manual_seed(0))


def vae_of(likelihood="Bernoulli", event=12):
    torch.manual_seed(0)
    part = pv.likelihoods.Bernoulli if likelihood == "Bernoulli" else pv.likelihoods.Gaussian
    if event == 12:
        encoder, decoder = pv.nn.MLP(12, [8], 4), pv.nn.MLP(2, [8], 12)
    else:
        encoder, decoder = pv.nn.MLP(event, [8], 4), pv.nn.MLP(2, [8], event)
    return pv.VAE(pv.priors.StandardNormal(2), part(decoder), pv.posteriors.DiagonalNormal(encoder))


def with_value(value, row=3):
    x = BINARY.clone()
    x[row, 2] = value
    return x


BAD_X = {
    "nan": (
        with_value(torch.nan),
        ValueError,
        r"(x|data): expected finite.*NaN or infinity in 1 of these 5.*index 3.*remove",
    ),
    "inf": (with_value(torch.inf), ValueError, r"(x|data): expected finite.*NaN or infinity in 1 of these 5"),
    "grey of 0 to 1": (
        with_value(0.5),
        ValueError,
        r"(x|data): expected.*\{0, 1\}; got 0.5 at index \[3, \d+\], and values from 0 to 1 .*binarize.*grey",
    ),
    "grey of 0 to 255": (255 * BINARY, ValueError, r"got 255 at index .* from 0 to 255 in all; binarize"),
    "uint8 of 0 to 255": ((255 * BINARY).byte(), ValueError, r"from 0 to 255 .*binarize"),
    "-1 to 1": (2 * BINARY - 1, ValueError, r"got -1 at index .* from -1 to 1 in all; binarize"),
    "list": (BINARY.tolist(), TypeError, r"(x|data): expected a tensor .*got a list; convert it with torch.as_tensor"),
    "none": (None, TypeError, r"(x|data): expected a tensor .*got None; pass the data"),
    "(x, label)": ((BINARY, torch.zeros(5)), TypeError, r"got a tuple of 2, as a data loader.*unpack it"),
    "[x, label]": ([BINARY, torch.zeros(5)], TypeError, r"got a list of 2, as a data loader.*unpack it"),
    "sparse": (
        BINARY.to_sparse(),
        TypeError,
        r"(x|data): expected a dense tensor; got layout torch.sparse_coo.*to_dense",
    ),
    "complex": (BINARY + 0j, TypeError, r"(x|data): expected real numbers; got torch.complex64"),
    "array of objects": (
        np.array([object()] * 12),
        TypeError,
        r"(x|data): expected an array of numbers; got dtype object",
    ),
    "a number": (torch.tensor(1.0), ValueError, r"(x|data): expected a batch .*got a single number"),
    "one flat image": (
        BINARY[0],
        ValueError,
        r"got one datum of shape \(12,\) without a batch dimension; pass (x|data)\[None\]",
    ),
    "one image": (
        BINARY[0].reshape(3, 4),
        ValueError,
        r"one datum of shape \(3, 4\) without a batch.*(x|data)\[None\]",
    ),
    "wrong width": (
        torch.ones(5, 13),
        ValueError,
        r"(x|data): expected 12 numbers a datum.*got shape \(5, 13\), 13 a datum",
    ),
    "wrong channels": (
        torch.ones(5, 3, 3, 4),
        ValueError,
        r"(x|data): expected 12 numbers.*got shape \(5, 3, 3, 4\), 36",
    ),
    "channels last": (BINARY.reshape(5, 2, 6, 1), ValueError, r"channels first.*\(5, 2, 6, 1\).*permute"),
    "empty": (BINARY[:0], ValueError, r"(x|data): expected at least one datum; got shape \(0, 12\)"),
    "another device": (
        BINARY.to("meta"),
        ValueError,
        r"(x|data): expected a tensor on cpu.*got one on meta; call (x|data).to",
    ),
}


def unchanged(vae, before):
    return all(torch.equal(a, b) for a, b in zip(vae.parameters(), before, strict=True))


ENTRANCES = {
    "SVI.step": lambda vae, x: SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(x),
    "fit": lambda vae, x: pv.fit(vae, x, num_epochs=1, progress=False),
    "importance_sampling": lambda vae, x: pv.importance_sampling(vae.model, vae.guide, x, num_samples=2),
    "reconstruct": lambda vae, x: vae.reconstruct(x),
}


@pytest.mark.parametrize("validation", [True, False], ids=["validation on", "validation off"])
@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("case", BAD_X)
def test_data_without_a_likelihood_are_refused_before_anything_changes(case, entrance, validation):
    x, error, message = BAD_X[case]
    vae = vae_of()
    before = [parameter.detach().clone() for parameter in vae.parameters()]
    with pyro.validation_enabled(validation), pytest.raises(error, match=message):
        ENTRANCES[entrance](vae, x)
    assert unchanged(vae, before)


@pytest.mark.parametrize("entrance", [name for name in ENTRANCES if name != "reconstruct"])
def test_one_bad_row_of_many_is_found_before_the_first_step(entrance):
    vae = vae_of()
    x = torch.ones(30_000, 12)
    x[-1, 0] = torch.nan
    before = [parameter.detach().clone() for parameter in vae.parameters()]
    with pytest.raises(ValueError, match=r"(x|data): expected finite"):
        ENTRANCES[entrance](vae, x)
    assert unchanged(vae, before)


GOOD_X = {
    **{str(dtype): BINARY.to(dtype) for dtype in (torch.uint8, torch.bool, torch.int64, torch.float16, torch.float64)},
    "numpy float64": BINARY.double().numpy(),
    "numpy bool": BINARY.bool().numpy(),
    "image": BINARY.reshape(5, 1, 3, 4),
    "not contiguous": BINARY.T.contiguous().T,
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("case", GOOD_X)
def test_data_that_can_be_cast_are(case, entrance):
    results = [ENTRANCES[entrance](vae_of(), x) for x in (GOOD_X[case],)]
    assert results[0] is not None


@pytest.mark.parametrize("case", GOOD_X)
def test_a_cast_changes_no_number(case):
    vae = vae_of()
    evidence = [pv.importance_sampling(vae.model, vae.guide, x, num_samples=9) for x in (BINARY, GOOD_X[case])]
    assert torch.equal(evidence[0].log_evidence, evidence[1].log_evidence)


def test_channels_last_for_an_image_shape():
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Gaussian(pv.nn.MLP(2, [8], (3, 4, 4))),
        pv.posteriors.DiagonalNormal(pv.nn.MLP((3, 4, 4), [8], 4)),
    )
    vae.model(torch.zeros(5, 3, 4, 4))
    with pytest.raises(ValueError, match=r"channels first.*\(5, 4, 4, 3\).*permute\(0, 3, 1, 2\)"):
        vae.model(torch.zeros(5, 4, 4, 3))


WHOLE = {
    "zero": (0, ValueError),
    "negative": (-1, ValueError),
    "nan": (float("nan"), TypeError),
    "fractional": (1.5, TypeError),
    "a float": (2.0, TypeError),
    "text": ("2", TypeError),
    "bool": (True, TypeError),
}
TAKES_WHOLE = {
    "latent_dim": pv.priors.StandardNormal,
    "hidden_dims": lambda value: pv.nn.MLP(2, [value], 2),
    "in_shape": lambda value: pv.nn.MLP(value, [2], 2),
    "out_shape": lambda value: pv.nn.MLP(2, [2], value),
    "num_epochs": lambda value: pv.fit(vae_of(), BINARY, num_epochs=value),
    "batch_size": lambda value: pv.fit(vae_of(), BINARY, batch_size=value),
    "num_samples": lambda value: pv.importance_sampling(*pair(), BINARY, num_samples=value),
    "bounds": lambda value: pv.importance_sampling(*pair(), BINARY, bounds=[value]),
    "chunk_size": lambda value: pv.importance_sampling(*pair(), BINARY, chunk_size=value),
    "num_temperatures": lambda value: pv.ais(*pair(), BINARY, num_temperatures=value),
    "num_leapfrog": lambda value: pv.ais(*pair(), BINARY, num_leapfrog=value),
    "max_evaluations": lambda value: pv.log_evidence(*pair(), BINARY, max_evaluations=value),
    "num_steps": lambda value: pv.inference_gap(*pair(), BINARY, num_steps=value),
    "num_data": lambda value: vae_of().model(num_data=value),
    "subsample_size": lambda value: vae_of().model(BINARY, subsample_size=value),
}


def pair():
    vae = vae_of()
    return vae.model, vae.guide


@pytest.mark.parametrize("value", WHOLE)
@pytest.mark.parametrize("argument", TAKES_WHOLE)
def test_whole_numbers(argument, value):
    number, error = WHOLE[value]
    with pytest.raises(error, match=f"{argument}: expected (a whole number|at least 1); got"):
        TAKES_WHOLE[argument](number)


POSITIVE = {
    "zero": (0.0, ValueError),
    "negative": (-1.0, ValueError),
    "nan": (float("nan"), ValueError),
    "inf": (float("inf"), ValueError),
    "none": (None, TypeError),
}
TAKES_POSITIVE = {
    "scale": lambda value: pv.likelihoods.Gaussian(nn.Linear(2, 12), scale=value),
    "min_scale": lambda value: pv.likelihoods.Gaussian(nn.Linear(2, 12), scale="learned", min_scale=value),
    "max_log_scale": lambda value: pv.posteriors.DiagonalNormal(nn.Linear(12, 4), max_log_scale=value),
    "optim: lr, the learning rate": lambda value: pv.fit(vae_of(), BINARY, optim=pyro.optim.Adam({"lr": value})),
    "tolerance": lambda value: pv.log_evidence(*pair(), BINARY, tolerance=value),
    "threshold": lambda value: pv.latent_use(*pair(), BINARY, threshold=value),
    "factors": lambda value: pv.proposals.Inflated((value,)),
    "delta": lambda value: pv.importance_sampling(*pair(), BINARY, num_samples=2).certified_lower_bound(value),
}


@pytest.mark.parametrize("value", POSITIVE)
@pytest.mark.parametrize("argument", TAKES_POSITIVE)
def test_positive_numbers(argument, value):
    number, error = POSITIVE[value]
    with pytest.raises(error, match=f"{argument}: expected a (finite|positive) number"):
        TAKES_POSITIVE[argument](number)


def under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pv.importance_sampling(*pair(), BINARY, num_samples=10)


def half_precise():
    vae = vae_of()

    class Half(nn.Module):
        def forward(self, z):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return vae.likelihood(z)

    return pv.VAE(pv.priors.StandardNormal(2), Half(), vae.posterior).model, vae.guide


def with_batch_norm():
    network = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    vae = pv.VAE(
        pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(mlp(2, 12)), pv.posteriors.DiagonalNormal(network).eval()
    )
    vae.train()
    return vae.model, vae.guide


def with_nan():
    vae = vae_of()
    with torch.no_grad():
        next(vae.likelihood.parameters()).fill_(torch.nan)
    return vae.model, vae.guide


def speechless(num_data):
    raise RuntimeError


def discrete():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Bernoulli(logits=z[..., None] * torch.ones(12)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.5))

    return model, guide


def nested_support():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Uniform(torch.zeros(()), 1.0))
            b = pyro.sample("b", dist.Uniform(torch.zeros(()), 1.0 + a))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Uniform(torch.zeros(()), 1.0))
            pyro.sample("b", dist.Uniform(torch.zeros(()), 1.0))

    return model, guide


def coupled(location):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(location(x, z), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    return model, guide


def without_plate():
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    return model, guide


def mlp(*widths):
    return pv.nn.MLP(widths[0], [], widths[-1])


LATE = torch.cat([torch.zeros(11), 5 + torch.arange(20.0)])
COUPLED = {
    "the mean": (lambda x, z: z + x.mean(), torch.arange(5.0)),
    "the mean, of data that start alike": (lambda x, z: z + x.mean(), LATE),
    "the largest": (lambda x, z: z * x.max(), torch.arange(30.0)),
    "the first": (lambda x, z: z + x[0], torch.arange(30.0)),
    "other latents": (lambda x, z: 3 * (z - z.mean(-1, keepdim=True)), torch.zeros(40)),
    "latents before": (lambda x, z: z.cumsum(-1), torch.zeros(40)),
}


@pytest.mark.parametrize("case", COUPLED)
def test_data_that_depend_on_each_other_are_refused(case):
    location, x = COUPLED[case]
    with pytest.raises(ValueError, match="model: expected each datum's density to depend on its own row and latents"):
        pv.importance_sampling(*coupled(location), x, num_samples=10)


class Prior(nn.Module):
    def __init__(self, event_dim):
        super().__init__()
        self.event_dim = event_dim

    def forward(self):
        return dist.Normal(torch.zeros(2), 1.0).to_event(self.event_dim)


OTHERS = {
    "prior is no module": (lambda: pv.VAE(2, mlp(2, 12), mlp(12, 4)), TypeError, "prior: expected a torch.nn.Module"),
    "a network for a likelihood": (
        lambda: pv.VAE(pv.priors.StandardNormal(2), mlp(2, 12), mlp(12, 4)),
        TypeError,
        r"likelihood\(z\): expected it to return a Pyro distribution; got Tensor",
    ),
    "a prior whose dimensions are no event": (
        lambda: pv.VAE(
            Prior(event_dim=0), pv.likelihoods.Bernoulli(mlp(2, 12)), pv.posteriors.DiagonalNormal(mlp(12, 4))
        ),
        ValueError,
        r"prior\(\): expected batch shape \(\) or \(1,\) for one datum.*got \(2,\); declare them with .to_event",
    ),
    "a prior that takes no context": (
        lambda: pv.VAE(
            Prior(event_dim=1),
            pv.likelihoods.Bernoulli(mlp(5, 12)),
            pv.posteriors.DiagonalNormal(mlp(15, 4)),
            context_shapes=[(3,)],
        ),
        ValueError,
        r"prior\(\*context\).*got an error, .*positional argument.*each part with all of context_shapes: let it take as",
    ),
    "decoder of another latent_dim": (
        lambda: pv.VAE(
            pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(mlp(3, 12)), pv.posteriors.DiagonalNormal(mlp(12, 4))
        ),
        ValueError,
        r"likelihood\(z\): expected a distribution for an input of shape \(1, 2\)",
    ),
    "encoder of another width": (
        lambda: pv.VAE(
            pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(mlp(2, 12)), pv.posteriors.DiagonalNormal(mlp(13, 4))
        ),
        ValueError,
        r"posterior\(x\): expected a distribution for an input of shape \(1, 12\)",
    ),
    "encoder of another latent_dim": (
        lambda: pv.VAE(
            pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(mlp(2, 12)), pv.posteriors.DiagonalNormal(mlp(12, 6))
        ),
        ValueError,
        r"posterior: expected q\(z\|x\) over z of shape \(2,\).*got \(3,\); give its network 4 outputs",
    ),
    "odd encoder": (
        lambda: pv.VAE(
            pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(mlp(2, 12)), pv.posteriors.DiagonalNormal(mlp(12, 5))
        ),
        ValueError,
        "2 . latent_dim outputs",
    ),
    "odd decoder": (
        lambda: pv.likelihoods.Gaussian(mlp(2, 13), scale="per-pixel")(torch.zeros(1, 2)),
        ValueError,
        "2 times the channels of x .loc, scale.; got .13,.",
    ),
    "unknown scale": (
        lambda: pv.likelihoods.Gaussian(mlp(2, 12), scale="free"),
        ValueError,
        "scale: expected one of 'learned'",
    ),
    "output bias": (
        lambda: pv.nn.MLP(2, [], 3, output_bias=torch.zeros(2)),
        ValueError,
        "output_bias: expected 1 or 3",
    ),
    "name": (
        lambda: pv.VAE(
            pv.priors.StandardNormal(2),
            pv.likelihoods.Bernoulli(mlp(2, 12)),
            pv.posteriors.DiagonalNormal(mlp(12, 4)),
            name=3,
        ),
        TypeError,
        "name: expected text",
    ),
    "guide before model": (
        lambda: pv.fit((vae_of().guide, vae_of().model), BINARY, progress=False),
        ValueError,
        r"program: expected a model that observes data by .* got none, and 'x' in the guide; .* .model, guide., in this",
    ),
    "guide before model, checked": (
        lambda: pv.check_program(vae_of().guide, vae_of().model, BINARY),
        ValueError,
        "guide: expected it to observe nothing that the model does not; got data at site 'x'; .* swap model and guide",
    ),
    "parts in another order": (
        lambda: pv.VAE(
            pv.likelihoods.Bernoulli(mlp(2, 12)), pv.priors.StandardNormal(2), pv.posteriors.DiagonalNormal(mlp(12, 4))
        ),
        ValueError,
        r"prior\(\): expected a distribution.*; .*give the parts in the order prior, likelihood, posterior",
    ),
    "a VAE for a model": (
        lambda: pv.log_evidence(vae_of(), BINARY),
        TypeError,
        r"guide: expected a Pyro program.*; got one of type Tensor; pass model and guide first.*vae.model, vae.guide, x",
    ),
    "option of fit": (
        lambda: pv.fit(vae_of(), BINARY, num_epoch=1),
        TypeError,
        "num_epoch: expected an option of fit; got num_epoch=1; pass num_epochs",
    ),
    "option of an objective": (
        lambda: pv.objectives.IWELBO(num_particle=3),
        TypeError,
        "num_particle: expected an option of IWELBO; got num_particle=3; pass num_particles",
    ),
    "program": (
        lambda: pv.fit(nn.Linear(2, 2), BINARY),
        TypeError,
        r"program: expected a VAE, or a pair .model, guide.",
    ),
    "objective": (
        lambda: pv.fit(vae_of(), BINARY, objective="trace"),
        TypeError,
        "objective: expected an instance of ELBO",
    ),
    "optim": (
        lambda: pv.fit(vae_of(), BINARY, optim=torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)),
        TypeError,
        "optim: expected one of Pyro's optimizers, FusedAdam, or a torch optimizer's class",
    ),
    "validation": (lambda: pv.fit(vae_of(), BINARY, validation=torch.full((3, 12), 0.5)), ValueError, "binarize"),
    "proposal": (
        lambda: pv.importance_sampling(*pair(), BINARY, proposal="prior"),
        ValueError,
        "proposal: expected one of 'guide', 'inflated'.*got 'prior'",
    ),
    "proposal of another kind": (
        lambda: pv.importance_sampling(*pair(), BINARY, proposal=3),
        TypeError,
        "proposal: expected one of 'guide'.*got 3",
    ),
    "start": (
        lambda: pv.ais(*pair(), BINARY, start="mode"),
        ValueError,
        "start: expected one of 'laplace', 'gaussian', 'guide'",
    ),
    "schedule": (lambda: pv.ais(*pair(), BINARY, schedule="cubic"), ValueError, "schedule: expected one of 'adaptive'"),
    "one chain": (lambda: pv.ais(*pair(), BINARY, num_chains=1), ValueError, "num_chains: expected at least 2; got 1"),
    "a weight above one": (
        lambda: pv.proposals.Defensive(1.5),
        ValueError,
        "weight: expected a number between 0 and 1; got 1.5",
    ),
    "no num_tried": (
        lambda: pv.importance_sampling(*pair(), BINARY, num_samples=10).certified_lower_bound(0.1, num_tried=0),
        ValueError,
        "num_tried: expected at least 1",
    ),
    "autocast": (under_autocast, ValueError, "expected evaluation in full precision; got autocast to"),
    "autocast inside": (
        lambda: pv.importance_sampling(*half_precise(), BINARY, num_samples=10),
        ValueError,
        "expected evaluation in full precision; got autocast to",
    ),
    "BatchNorm in training mode": (
        lambda: pv.ais(*with_batch_norm(), BINARY, num_temperatures=2),
        ValueError,
        "expected modules in evaluation mode; got BatchNorm1d in training mode",
    ),
    "grey data, annealed": (
        lambda: pv.ais(*pair(), with_value(0.5), num_temperatures=2),
        ValueError,
        "expected observed values in the support|expected values in the likelihood's support",
    ),
    "grey data, for draws from the posterior": (
        lambda: pv.posterior_samples(*pair(), with_value(0.5), num_samples=4),
        ValueError,
        "expected observed values in the support|expected values in the likelihood's support",
    ),
    "NaN parameters, for data": (lambda: pv.bdmc(*with_nan(), num_data=3), ValueError, "look for NaN"),
    "a model that fails without a word": (
        lambda: pv.bdmc(speechless, None, num_data=3),
        ValueError,
        "expected one that data can be drawn from; got ; look for NaN",
    ),
    "a class for a proposal": (
        lambda: pv.importance_sampling(*pair(), BINARY, proposal=pv.proposals.Laplace),
        TypeError,
        r"proposal: expected one of .* or an object such as Inflated\(1.5\)",
    ),
    "no factors": (lambda: pv.proposals.Inflated(()), ValueError, "factors: expected at least one"),
    "a certificate of what is too high": (
        lambda: pv.evidence.reciprocal_importance_sampling(*pair(), BINARY, num_samples=8).certified_lower_bound(),
        ValueError,
        "evidence: expected an estimator that is unbiased in p.*no certified lower bound",
    ),
    "NaN parameters": (lambda: pv.ais(*with_nan(), BINARY, num_temperatures=2), ValueError, "(?i)nan"),
    "a discrete latent": (
        lambda: pv.ais(*discrete(), BINARY, num_temperatures=2),
        ValueError,
        "expected continuous latents, for a gradient is needed; got the discrete site 'z'",
    ),
    "a discrete latent for Laplace": (
        lambda: pv.importance_sampling(*discrete(), BINARY, proposal="laplace"),
        ValueError,
        "expected continuous latents, for a gradient is needed; got the discrete site 'z'",
    ),
    "a support that depends on a latent": (
        lambda: pv.ais(*nested_support(), BINARY[:, 0], num_temperatures=2),
        ValueError,
        "expected supports that do not depend on other latents; got site 'b'",
    ),
    "no plate": (lambda: pv.log_evidence(*without_plate(), BINARY[:, 0]), ValueError, "plate"),
    "rows and num_data": (
        lambda: pv.bdmc(*pair(), BINARY, num_data=3),
        ValueError,
        "num_data: expected None where args give the rows",
    ),
    "seed": (lambda: pv.fit(vae_of(), BINARY, seed=-1), ValueError, "seed: expected at least 0"),
    "k": (
        lambda: pv.importance_sampling(*pair(), BINARY, num_samples=100).bounds(7),
        ValueError,
        "k: expected one of 1, 5, 10, 50, 100; got 7",
    ),
    "bounds": (
        lambda: pv.importance_sampling(*pair(), BINARY, num_samples=10, bounds=[11]),
        ValueError,
        "bounds: expected each k to be at most num_samples=10; got 11",
    ),
    "delta": (
        lambda: pv.importance_sampling(*pair(), BINARY, num_samples=10).certified_lower_bound(1.0),
        ValueError,
        "delta: expected a number between 0 and 1",
    ),
    "nothing to evaluate": (lambda: pv.importance_sampling(*pair()), TypeError, "x: expected the data"),
    "arguments of other lengths": (
        lambda: pv.importance_sampling(*pair(), BINARY, torch.zeros(4)),
        ValueError,
        r"args\[1\]: expected one row for each of the 5 data.*got 4 rows",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_others(case):
    call, error, message = OTHERS[case]
    with pytest.raises(error, match=message):
        call()
