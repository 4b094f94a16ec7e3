"""The first and second derivatives of log p(x, u), for many data at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pyro_vae.evidence.gaussians import moments
from pyro_vae.program.joint import as_it_is
from pyro_vae.program.unconstrained import Unconstrained

__all__ = [
    "LogDensity",
    "hessian_of",
    "is_twice_differentiable",
    "log_density",
    "lower_factor",
    "scale_tril_of",
    "smallest_curvature",
    "with_gradient",
    "with_second_derivatives",
]

MAX_PAIRS = 4096  # (draw, datum) pairs whose gradients are found together
MAX_PRODUCTS = 16_384  # (direction, datum) pairs for which products with the Hessian are formed together

LogDensity = Callable[[Tensor], Tensor]


def log_density(view: Unconstrained) -> LogDensity:
    """Make a function of places `(K, N, D)` that returns log p(x, u), `(K, N)`, for `with_gradient`."""

    def density(u: Tensor) -> Tensor:
        prior, likelihood = view.log_joint(u)
        return prior + likelihood

    return density


def with_second_derivatives(view: Unconstrained) -> LogDensity:
    """Make the same, by the model as it is: a graph can be differentiated once."""
    return log_density(replace(view, joint=as_it_is))


def with_gradient(density: LogDensity, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p(x, u) `(K, N)` at places `(K, N, D)`, and its gradient.

    Places are evaluated a few at a time: a decoder's gradient takes memory for each (draw, datum) pair.
    """
    parts = [_with_gradient(density, part) for part in u.split(max(1, MAX_PAIRS // u.shape[1]))]
    value, gradient = (torch.cat(each) for each in zip(*parts, strict=True))
    return value, gradient


def _with_gradient(density: LogDensity, u: Tensor) -> tuple[Tensor, Tensor]:
    u = u.detach().requires_grad_()
    with torch.enable_grad():
        value = density(u)
        (gradient,) = torch.autograd.grad(value.sum(), u)
    return value.detach(), gradient.nan_to_num()


def hessian_of(density: LogDensity, loc: Tensor) -> Tensor:
    """Return the Hessians `(N, D, D)` at points `(N, D)`, from products with all D directions, a few at a time."""
    num_data, dim = loc.shape
    directions = torch.eye(dim, dtype=loc.dtype, device=loc.device)
    height = max(1, MAX_PRODUCTS // num_data)
    rows = [_hessian_products(density, loc, some) for some in directions.split(height)]
    hessian = torch.cat(rows).movedim(0, 1).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return hessian / 2 + hessian.mT / 2  # the sum of two numbers may overflow


def _hessian_products(density: LogDensity, loc: Tensor, directions: Tensor) -> Tensor:
    u = loc.expand(len(directions), *loc.shape).clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(density(u).sum(), u, create_graph=True)
        if not gradient.requires_grad:  # linear in u
            return torch.zeros_like(u)
        (products,) = torch.autograd.grad((gradient * directions[:, None]).sum(), u, allow_unused=True)
    return torch.zeros_like(u) if products is None else products


def scale_tril_of(hessian: Tensor, floor: Tensor) -> Tensor:
    """Factor |H|^{-1} = V S V^T as L L^T: L = R^T of the QR decomposition of (V S^{1/2})^T, which always exists."""
    eigenvalues, vectors = torch.linalg.eigh(-hessian)
    root = vectors * eigenvalues.abs().clamp(min=floor).rsqrt()[:, None]
    return lower_factor(root)


def lower_factor(root: Tensor) -> Tensor:
    """Return L, lower triangular with a positive diagonal, with L L^T = R R^T of a root R `(N, D, D)`."""
    factor = torch.linalg.qr(root.mT).R.mT
    return factor * factor.diagonal(dim1=-2, dim2=-1).sign()[:, None]


def smallest_curvature(prior: Tensor) -> Tensor:
    """Return a hundredth of the prior's least precision, `(N, 1)`."""
    loc, _ = moments(prior)
    centred = (prior - loc).nan_to_num().movedim(0, 1)
    largest = torch.linalg.matrix_norm(centred, ord=2).square() / len(prior)
    return 1e-2 / largest.clamp(min=1e-12)[:, None]


def is_twice_differentiable(view: Unconstrained, place: Tensor) -> bool:
    """Tell whether log p(x, u) has second derivatives, as the search for modes needs, at a place `(N, D)`."""
    try:
        _hessian_products(with_second_derivatives(view), place, torch.ones_like(place[:1]))
    except RuntimeError:  # from what has no gradient
        return False
    return True
