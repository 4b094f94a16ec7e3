"""Gaussians over the unconstrained latents of each datum, and mixtures of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.program.tiles import Noise

__all__ = ["FullNormal", "NormalMixture", "moments"]


class FullNormal(NamedTuple):
    """N(loc, L L^T) over u, for each datum."""

    loc: Tensor
    """`(N, D)`, float64."""
    scale_tril: Tensor
    """L, `(N, D, D)`, float64."""

    def at(self, rows: Tensor) -> FullNormal:
        """Select rows by index."""
        return FullNormal(self.loc[rows], self.scale_tril[rows])

    def spread(self, rows: Tensor, num_data: int) -> FullNormal:
        """Place these as rows among more data; the others get standard normals."""
        loc = self.loc.new_zeros(num_data, self.loc.shape[1])
        scale_tril = torch.eye(self.loc.shape[1], dtype=loc.dtype, device=loc.device).repeat(num_data, 1, 1)
        loc[rows], scale_tril[rows] = self.loc, self.scale_tril
        return FullNormal(loc, scale_tril)

    def rsample(self, standard_normal: Tensor) -> Tensor:
        """Map standard normal numbers `(K, N, D)` to u."""
        return self.loc + self.scaled(standard_normal)

    def scaled(self, v: Tensor) -> Tensor:
        """L v, for `(K, N, D)`."""
        return torch.einsum("nij,knj->kni", self.scale_tril, v)

    def scaled_transposed(self, v: Tensor) -> Tensor:
        """L^T v, for `(K, N, D)`."""
        return torch.einsum("nji,knj->kni", self.scale_tril, v)

    def whitened(self, u: Tensor) -> Tensor:
        """L^-1 (u - loc), for `(K, N, D)`."""
        centred = (u - self.loc).movedim(0, -1)
        return torch.linalg.solve_triangular(self.scale_tril, centred, upper=False).movedim(-1, 0)

    @classmethod
    def of(cls, u: Tensor) -> FullNormal:
        """Fit one to draws `(K, N, D)`. The fewer draws there are, the more do variances count, and no covariances."""
        loc, variance = moments(u)
        inside = u.isfinite().all(-1, keepdim=True)
        centred = (u - loc).where(inside, 0.0)
        covariance = torch.einsum("kni,knj->nij", centred, centred) / (inside.sum(0) - 1).clamp(min=1)[..., None]
        share = len(u) / (len(u) + u.shape[-1])
        diagonal = (variance - share * covariance.diagonal(dim1=-2, dim2=-1)).diag_embed()
        return cls(loc, torch.linalg.cholesky(share * covariance + diagonal))

    @property
    def log_volume(self) -> Tensor:
        """log det L + D log(2 pi) / 2, `(N,)`."""
        dim = self.loc.shape[-1]
        return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * dim * math.log(2 * math.pi)

    def log_prob(self, u: Tensor) -> Tensor:
        """Return log densities `(K, N)`, nats."""
        return -0.5 * self.whitened(u).square().sum(-1) - self.log_volume


class NormalMixture(NamedTuple):
    """A mixture of Gaussians over u, for each datum; the first is that of its main mode."""

    parts: tuple[FullNormal, ...]
    log_shares: Tensor
    """`(number of parts, N)`; -inf where a datum has no such part."""

    @property
    def num_parts(self) -> Tensor:
        """How many parts each datum has, `(N,)`."""
        return self.log_shares.isfinite().sum(0)

    @property
    def main(self) -> FullNormal:
        """The Gaussian at the main mode."""
        return self.parts[0]

    def at(self, rows: Tensor) -> NormalMixture:
        """Select rows by index."""
        return NormalMixture(tuple(part.at(rows) for part in self.parts), self.log_shares[:, rows])

    def sample(self, noise: Noise, num_samples: int) -> Tensor:
        """Draw u `(K, N, D)`."""
        normal = noise.normal(num_samples)
        u = self.main.rsample(normal)
        if len(self.parts) == 1:
            return u
        left = self.log_shares.exp().cumsum(0)
        uniform = noise.stratified(num_samples)
        for part, below, share in zip(self.parts[1:], left, self.log_shares[1:], strict=False):
            chosen = (uniform >= below) & share.isfinite()
            u = torch.where(chosen[..., None], part.rsample(normal), u)
        return u

    def log_prob(self, u: Tensor) -> Tensor:
        """Return log densities `(K, N)`, nats."""
        if len(self.parts) == 1:
            return self.main.log_prob(u)
        each = [part.log_prob(u) + share for part, share in zip(self.parts, self.log_shares, strict=True)]
        return torch.stack(each).logsumexp(0)

    def spread(self, rows: Tensor, num_data: int) -> NormalMixture:
        """Place these as rows among more data; the others get placeholders."""
        log_shares = torch.zeros_like(self.log_shares[:, :1]).repeat(1, num_data)
        log_shares[:, rows] = self.log_shares
        return NormalMixture(tuple(part.spread(rows, num_data) for part in self.parts), log_shares)


def moments(u: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of draws `(K, N, D)`, `(N, D)` each, without draws that are not finite."""
    inside = u.isfinite().all(-1, keepdim=True)
    count = inside.sum(0).clamp(min=1)
    loc = u.where(inside, 0.0).sum(0) / count
    variance = (u - loc).square().where(inside, 0.0).sum(0) / (count - 1).clamp(min=1)
    return loc, variance.where(variance > 0, 1.0)
