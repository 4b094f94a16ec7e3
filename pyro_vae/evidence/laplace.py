"""A Gaussian for each datum's posterior: at its mode, with the curvature there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.program import Latents
from pyro_vae.tiling import Draw
from pyro_vae.unconstrained import Unconstrained

__all__ = ["Gaussian", "LaplaceFit", "fit_laplace", "guide_moments", "laplace_evaluations"]

NUM_DRAWS = 64  # of the guide, to see where it lies and how wide it is
NUM_STEPS, NUM_HESSIANS = 10, 2
MAX_PAIRS = 16_384  # (direction, datum) pairs for which products with the Hessian are formed together


class Gaussian(NamedTuple):
    """N(loc, L L^T) over u, for each datum."""

    loc: Tensor
    """`(N, D)`, float64."""
    scale_tril: Tensor
    """L, `(N, D, D)`, float64."""

    def at(self, rows: Tensor) -> Gaussian:
        """Of some of the data."""
        return Gaussian(self.loc[rows], self.scale_tril[rows])

    def draw(self, view: Unconstrained, normal: Callable[[int], Tensor]) -> Draw:
        """Draw latents, given where standard normal numbers `(K, N, D)` come from."""

        def draw(num_samples: int) -> tuple[Latents, Tensor]:
            u = self.rsample(normal(num_samples))
            latents, stretch = view.unpack(u)
            return latents, self.log_prob(u) - stretch

        return draw

    def rsample(self, standard_normal: Tensor) -> Tensor:
        """u `(K, N, D)` of standard normal numbers of that shape."""
        return self.loc + self.scaled(standard_normal)

    def scaled(self, v: Tensor) -> Tensor:
        """L v, for `(K, N, D)`."""
        return torch.einsum("nij,knj->kni", self.scale_tril, v)

    def scaled_transposed(self, v: Tensor) -> Tensor:
        """L^T v, for `(K, N, D)`."""
        return torch.einsum("nji,knj->kni", self.scale_tril, v)

    def log_prob(self, u: Tensor) -> Tensor:
        """`(K, N)`, nats."""
        centred = (u - self.loc).movedim(0, -1)
        whitened = torch.linalg.solve_triangular(self.scale_tril, centred, upper=False)
        log_volume = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * whitened.square().sum(1).T - log_volume - 0.5 * u.shape[-1] * math.log(2 * math.pi)


class LaplaceFit(NamedTuple):
    """Laplace's Gaussian of each datum's posterior, and what it took to find it."""

    gaussian: Gaussian
    num_evaluations: int


def fit_laplace(
    view: Unconstrained,
    moments: tuple[Tensor, Tensor] | None = None,
    num_steps: int = NUM_STEPS,
    num_hessians: int = NUM_HESSIANS,
) -> LaplaceFit:
    r"""N(m, H^{-1}) with m the mode of $\log p(x, u)$ over u and $H = -\nabla^2 \log p(x, m)$, all data at once.

    From the guide's mean (`moments`, the guide's mean and variance, where they are known), each of `num_hessians`
    rounds forms H and takes `num_steps` steps $m \leftarrow m + a |H|^{-1} \nabla$, where $|H|$ has the absolute
    eigenvalues of H and each datum its own a, halved when its density falls. So away from a mode, and in directions
    where the density bends upwards, the steps still climb. Eigenvalues are kept above that of a Gaussian ten times
    as wide as the guide.

    References:
        Tierney and Kadane (1986); Dauphin et al. (2014), on |H|.
    """

    def density(u: Tensor) -> Tensor:
        prior, likelihood = view.log_joint(u)
        return prior + likelihood

    loc, variance = moments or guide_moments(view)
    floor = 1e-2 / variance.amax(-1, keepdim=True)
    for _ in range(num_hessians):
        scale_tril = _scale_tril(_hessian(density, loc), floor)
        loc = _climb(density, Gaussian(loc, scale_tril), num_steps)
    scale_tril = _scale_tril(_hessian(density, loc), floor)
    return LaplaceFit(Gaussian(loc, scale_tril), laplace_evaluations(view.dim, num_steps, num_hessians))


def laplace_evaluations(dim: int, num_steps: int = NUM_STEPS, num_hessians: int = NUM_HESSIANS) -> int:
    """What `fit_laplace` spends on a datum, a product with the Hessian counting as two."""
    return num_hessians * num_steps + 2 * (num_hessians + 1) * dim


def guide_moments(view: Unconstrained) -> tuple[Tensor, Tensor]:
    """Mean and variance of the guide's draws of u, `(N, D)`; draws outside the prior's support do not count."""
    u, _ = view.draw_guide(NUM_DRAWS)
    inside = u.isfinite().all(-1, keepdim=True)
    count = inside.sum(0).clamp(min=1)
    loc = u.where(inside, 0.0).sum(0) / count
    variance = (u - loc).square().where(inside, 0.0).sum(0) / (count - 1).clamp(min=1)
    return loc, variance.where(variance > 0, 1.0)


def _climb(density: Callable[[Tensor], Tensor], gaussian: Gaussian, num_steps: int) -> Tensor:
    """Steps uphill from the mean of a Gaussian, in its metric."""
    u = gaussian.loc
    size = torch.ones_like(u[:, :1])
    best, value, step = u, torch.full_like(u[:, 0], -math.inf), torch.zeros_like(u)
    for _ in range(num_steps):
        proposed = best + size * step
        new_value, gradient = _with_gradient(density, proposed[None])
        better = (new_value[0] > value)[:, None]
        best = proposed.where(better, best)
        value = new_value[0].where(better[:, 0], value)
        uphill = gaussian.scaled(gaussian.scaled_transposed(gradient))[0]
        step = uphill.where(better, step)
        size = torch.where(better, (1.5 * size).clamp(max=1.0), 0.5 * size)
    return best


def _with_gradient(density: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    u = u.detach().requires_grad_()
    with torch.enable_grad():
        value = density(u)
        (gradient,) = torch.autograd.grad(value.sum(), u)
    return value.detach(), gradient.nan_to_num()


def _hessian(density: Callable[[Tensor], Tensor], loc: Tensor) -> Tensor:
    """Of `(N, D)` points, `(N, D, D)`: the products with all D directions, some of them at a time."""
    num_data, dim = loc.shape
    directions = torch.eye(dim, dtype=loc.dtype, device=loc.device)
    height = max(1, MAX_PAIRS // num_data)
    rows = [_hessian_products(density, loc, some) for some in directions.split(height)]
    hessian = torch.cat(rows).movedim(0, 1).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return (hessian + hessian.mT) / 2


def _hessian_products(density: Callable[[Tensor], Tensor], loc: Tensor, directions: Tensor) -> Tensor:
    u = loc.expand(len(directions), *loc.shape).clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(density(u).sum(), u, create_graph=True)
        if not gradient.requires_grad:  # linear in u
            return torch.zeros_like(u)
        (products,) = torch.autograd.grad((gradient * directions[:, None]).sum(), u, allow_unused=True)
    return torch.zeros_like(u) if products is None else products


def _scale_tril(hessian: Tensor, floor: Tensor) -> Tensor:
    """The Cholesky factor of |H|^{-1} = V S V^T: R^T of the QR decomposition of (V S^{1/2})^T, which always exists."""
    eigenvalues, vectors = torch.linalg.eigh(-hessian)
    root = vectors * eigenvalues.abs().clamp(min=floor).rsqrt()[:, None]
    factor = torch.linalg.qr(root.mT).R.mT
    return factor * factor.diagonal(dim1=-2, dim2=-1).sign()[:, None]
