"""Approximate posteriors q(z|x): modules whose `forward(x)` returns a Pyro distribution."""

from pyro_vae.posteriors.diagonal_normal import DiagonalNormal
from pyro_vae.posteriors.flow import Flow
from pyro_vae.posteriors.mixture import NormalMixture
from pyro_vae.posteriors.normal import FullRankNormal, LowRankNormal
from pyro_vae.posteriors.semi_amortized import SemiAmortizedNormal

__all__ = ["DiagonalNormal", "Flow", "FullRankNormal", "LowRankNormal", "NormalMixture", "SemiAmortizedNormal"]
