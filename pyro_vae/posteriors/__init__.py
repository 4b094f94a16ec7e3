"""Approximate posteriors q(z|x): modules whose `forward(x)` returns a Pyro distribution."""

from pyro_vae.posteriors.diagonal_normal import DiagonalNormal

__all__ = ["DiagonalNormal"]
