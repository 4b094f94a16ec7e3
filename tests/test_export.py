"""Encoder and decoder as graphs: their numbers are the VAE's, for any number of rows."""

import importlib.util

import pyro.distributions as dist
import pytest
import torch
from laws import LATENT_DIM, LIKELIHOODS, NUM_PIXELS, POSTERIORS
from torch import nn

import pyro_vae as pv


def vae_of(likelihood="Bernoulli", posterior="DiagonalNormal"):
    return pv.VAE(
        pv.priors.StandardNormal(LATENT_DIM),
        LIKELIHOODS[likelihood](lambda factor: pv.nn.MLP(LATENT_DIM, [4], factor * NUM_PIXELS)),
        POSTERIORS[posterior](),
    )


def convolutional():
    encoder = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(36, 4)
    )
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Unflatten(1, (2, 2, 2)), nn.ConvTranspose2d(2, 1, 4, stride=4))
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(decoder),
        pv.posteriors.DiagonalNormal(pv.nn.Batched(encoder, event_dim=3)),
    )


def conditional():
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Gaussian(pv.nn.MLP(2 + 3 + 1, [8], 6), scale="learned"),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(6 + 3 + 1, [8], 4)),
        context_shapes=[3, ()],
    )


class Beta(nn.Module):
    """A likelihood whose parameters its distribution computes."""

    def __init__(self):
        super().__init__()
        self.network = nn.Linear(2, 8)

    def forward(self, z):
        return dist.Beta(*self.network(z).exp().chunk(2, -1)).to_event(1)


def of_a_user():
    return pv.VAE(pv.priors.StandardNormal(2), Beta(), pv.posteriors.DiagonalNormal(nn.Linear(4, 4)))


def incomplete():
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Incomplete(pv.likelihoods.Gaussian(pv.nn.MLP(2, [], 3))),
        pv.posteriors.DiagonalNormal(pv.nn.WithMask(pv.nn.MLP(6, [], 4))),
    )


VAES = {
    **{name: lambda name=name: vae_of(likelihood=name) for name in LIKELIHOODS},
    **{name: lambda name=name: vae_of(posterior=name) for name in POSTERIORS},
    "convolutional": convolutional,
    "conditional": conditional,
    "incomplete": incomplete,
    "a user's": of_a_user,
    "float64": lambda: vae_of().double(),
}  # fmt: skip


NOT_IN_ONNX = {"LowRankNormal"}
"""Whose distributions factorize a matrix."""


def by_torch(vae, folder):
    programs = [torch.export.load(path).module() for path in pv.export.torch_program(vae, folder)]
    return [lambda inputs, run=run: run(*inputs.values()) for run in programs]


def by_onnx(vae, folder):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    def of(path):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def run(inputs):
            found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
            return dict(zip(names, map(torch.as_tensor, found), strict=True))

        return run

    return [of(path) for path in pv.export.onnx(vae, folder)]


ON_A_PUSH = {  # ONNX's recorder takes seconds
    by_torch: {"Gaussian, scale per pixel", "NegativeBinomial", "Categorical", "Product", *POSTERIORS}
    | {"convolutional", "conditional", "a user's"},
    by_onnx: {"Bernoulli", "LowRankNormal", "conditional"},
}
CASES = [
    pytest.param(name, exported, marks=[] if name in some else [pytest.mark.slow])
    for exported, some in ON_A_PUSH.items()
    for name in VAES
]


def base_of(distribution):
    while isinstance(distribution, (torch.distributions.Independent, pv.distributions.Incomplete)):
        distribution = distribution.base_dist
    return distribution


def assert_has_parameters(found, distribution):
    """Those by name, and at least one."""
    base = base_of(distribution)
    assert found.keys() <= base.arg_constraints.keys() and found
    for name, value in found.items():
        torch.testing.assert_close(value, getattr(base, name), rtol=1e-5, atol=1e-5)


@pytest.mark.one_in(2)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("name", "exported"), CASES)
def test_the_numbers_are_the_vae_s(name, exported, tmp_path):
    """Also of other numbers of rows than it was recorded with, and in training mode."""
    torch.manual_seed(0)
    vae = VAES[name]()
    dtype = next(vae.parameters()).dtype
    x, z = torch.zeros(1, *vae.event_shape), vae.prior().sample((1,))
    context = [torch.ones(1, *shape) for shape in vae.context_shapes]
    with torch.random.fork_rng(), torch.no_grad():
        halves = vae.eval().posterior(x.to(dtype), *context), vae.likelihood(z, *context)
    if not all(base_of(half).arg_constraints for half in halves):
        with pytest.raises(TypeError, match="expected a distribution with parameters"):
            exported(vae, tmp_path / "new")
        return
    if name == "SemiAmortizedNormal":  # its steps differentiate
        with pytest.raises(ValueError, match="posterior: expected a network that is one graph"):
            exported(vae, tmp_path / "new")
        return
    if name in NOT_IN_ONNX and exported is by_onnx:
        with pytest.raises(ValueError, match="expected operations that ONNX has"):
            exported(vae, tmp_path / "new")
        return
    encoder, decoder = exported(vae.train(), tmp_path / "new")
    assert vae.training and all(parameter.requires_grad for parameter in vae.parameters())
    vae.eval()
    with torch.no_grad():
        for rows in (1, 2, 7):
            x = torch.rand(rows, *vae.event_shape, dtype=dtype).round()
            z = torch.randn(rows, *vae.prior().event_shape, dtype=dtype)
            context = {f"context_{i}": torch.rand(rows, *s, dtype=dtype) for i, s in enumerate(vae.context_shapes)}
            assert_has_parameters(encoder({"x": x, **context}), vae.posterior(x, *context.values()))
            assert_has_parameters(decoder({"z": z, **context}), vae.likelihood(z, *context.values()))


def test_it_draws_no_numbers_and_changes_no_setting(tmp_path):
    vae = vae_of()
    before, validates = torch.get_rng_state(), torch.distributions.Distribution._validate_args
    pv.export.torch_program(vae, tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert validates == torch.distributions.Distribution._validate_args
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.pt2", "encoder.pt2"]


class Mixture(nn.Module):
    def forward(self, z):
        components = dist.Normal(z[..., None] + torch.tensor([-1.0, 1.0]), 1.0)
        return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(2)), components).to_event(1)


class Factorizing(nn.Linear):
    """A network with an operation that ONNX has not."""

    def forward(self, x):
        squares = x[..., None] * x[..., None, :] + torch.eye(x.shape[-1])
        return super().forward(x) + torch.linalg.cholesky(squares).flatten(-2)


class Branching(nn.Linear):
    """A network that depends on values."""

    def forward(self, x):
        return super().forward(x) * (2 if x.mean() > 0 else 1)


class Counting(nn.Linear):
    """A network that depends on the number of rows."""

    def forward(self, x):
        return super().forward(x) * (2 if len(x) > 4 else 1)


def with_parts(likelihood=None, encoder=None):
    return pv.VAE(
        pv.priors.StandardNormal(2),
        likelihood or pv.likelihoods.Bernoulli(nn.Linear(2, 2)),
        pv.posteriors.DiagonalNormal(encoder or nn.Linear(2, 4)),
    )


REFUSED = {
    "no VAE": (lambda: nn.Linear(2, 2), TypeError, "vae: expected a VAE; got Linear"),
    "a mixture": (lambda: with_parts(Mixture()), TypeError, "likelihood: expected a distribution with parameters.*MixtureSameFamily"),
    "a branch on values": (lambda: with_parts(encoder=Branching(2, 4)), ValueError, "posterior: expected a network that is one graph"),
    "a branch on the number of rows": (lambda: with_parts(encoder=Counting(2, 4)), ValueError, "posterior: expected a network that is one graph"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(make, error, message, tmp_path):
    with pytest.raises(error, match=message):
        pv.export.torch_program(make(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_operations_that_onnx_has_not(tmp_path):
    pytest.importorskip("onnxscript")
    vae = with_parts(encoder=Factorizing(2, 4))
    with pytest.raises(ValueError, match="posterior: expected operations that ONNX has; got .*cholesky"):
        pv.export.onnx(vae, tmp_path)
    assert not list(tmp_path.iterdir()) and len(pv.export.torch_program(vae, tmp_path)) == 2


def test_onnx_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(
        ImportError, match=r"onnx: expected the packages onnx and onnxscript; got no onnx and no onnxscript; pip"
    ):
        pv.export.onnx(vae_of(), tmp_path)
