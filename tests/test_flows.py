"""Inverses of autoregressive transforms against those of zuko, which take as many passes as there are dimensions."""

import pytest
import torch
import zuko

import pyro_vae as pv
from pyro_vae._flows import flow_of
from pyro_vae.compile.graph import compiled

DIM = 12


def transform_of(strength: float, kind: str = "affine"):
    """One transform, whose dimensions depend on those before them as much as `strength` says."""
    torch.manual_seed(0)
    flow = flow_of(kind, DIM, 0, num_transforms=1, hidden_dims=[32], autoregressive=True).double()
    with torch.no_grad():
        for parameter in flow.transform.parameters():
            parameter.normal_(std=strength / parameter.shape[-1] ** 0.5)
    return flow.transform.transforms[0]


def inverted(transform, y):
    """Return the inverse and the gradient of a function of it, by y."""
    y = y.clone().requires_grad_()
    x = transform.inv(y)
    return x.detach(), torch.autograd.grad(x.sin().sum(), y)[0]


@pytest.mark.parametrize("strength", [0.1, 1.0, 3.0], ids=["weak", "medium", "strong"])
@pytest.mark.parametrize("kind", ["affine", "gated", "spline"])
def test_an_inverse_that_has_settled_is_that_of_all_passes(kind, strength):
    y = torch.randn(7, DIM, dtype=torch.float64)
    settling = transform_of(strength, kind)(None)
    whole = zuko.transforms.AutoregressiveTransform(settling.meta, settling.passes)
    (x, gradient), (expected, expected_gradient) = (inverted(each, y) for each in (settling, whole))
    assert torch.equal(x, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


def test_a_gated_transform_narrows_each_dimension_and_an_affine_one_widens_some():
    x = torch.randn(7, DIM, dtype=torch.float64)
    for kind, widens in (("gated", False), ("affine", True)):
        jacobian = torch.func.vmap(torch.func.jacrev(transform_of(1.0, kind)(None)))(x)
        slopes = jacobian.diagonal(dim1=-2, dim2=-1)
        assert (slopes > 0).all() and (slopes > 1).any() == widens


def test_a_transform_of_weak_dependence_settles_early():
    passes = 0

    def meta(x):
        nonlocal passes
        passes += 1
        return transform.meta(x)

    transform = transform_of(0.3)(None)
    type(transform)(meta, transform.passes).inv(torch.randn(7, DIM, dtype=torch.float64))
    assert 2 < passes < DIM


def test_a_recorded_inverse_takes_all_passes():
    transform = transform_of(3.0)

    def inverse(y):
        return (transform(None).inv(y),)

    weak, strong = (scale * torch.randn(7, DIM, dtype=torch.float64) for scale in (1e-3, 3.0))
    run = compiled(inverse, weak)
    assert run is not inverse
    torch.testing.assert_close(run(strong), inverse(strong))


def test_under_vmap_it_takes_all_passes():
    inverse, y = transform_of(3.0)(None).inv, torch.randn(7, DIM, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(inverse)(y), inverse(y))


def test_a_user_may_compile_it_whole():
    inverse, y = transform_of(0.3)(None).inv, torch.randn(7, DIM, dtype=torch.float64)

    @torch.compile(backend="eager", fullgraph=True)
    def run(y):
        return inverse(y)

    torch.testing.assert_close(run(y), inverse(y))


def test_a_flow_that_is_copied_and_saved_still_settles(tmp_path):
    posterior = pv.posteriors.Flow(pv.nn.MLP(5, [8], 2 * DIM + 3), DIM, 3, autoregressive="inverse")
    vae = pv.VAE(pv.priors.StandardNormal(DIM), pv.likelihoods.Bernoulli(pv.nn.MLP(DIM, [8], 5)), posterior)
    vae.save(tmp_path / "vae.pt")
    again = pv.load(tmp_path / "vae.pt")
    transforms = again.posterior(torch.zeros(1, 5)).flow.transform.transforms
    assert {type(each.inv).__name__ for each in transforms} == {"SettlingTransform"}
