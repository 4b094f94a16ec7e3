"""Real numbers with heavy tails."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae.likelihoods._base import Form, PositiveNumber, ScaledLikelihood

__all__ = ["StudentT"]


class StudentT(ScaledLikelihood):
    r"""Independent real numbers with heavy tails, $p(x|z) = \prod_d \mathrm{St}(x_d; \mu_d(z), \sigma_d, \nu)$.

    An outlier costs $(\nu + 1) \log |x|$, not $x^2$. The scale has the three forms of `Gaussian`; it is no standard
    deviation, which is $\sigma \sqrt{\nu / (\nu - 2)}$.

    Args:
        network: any module from z (and context) to the location of each number (`"per-pixel"`: location and raw scale).
        scale: a positive number, `"learned"` or `"per-pixel"`.
        df: degrees of freedom $\nu$: a positive number, or `"learned"`, one for all, above `min_df`.
        min_scale, min_df: floors of learned numbers. Above two degrees of freedom the variance is finite.
        scale_shape: how many scales are learned: `()`, one for all, or the shape of x.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape of one datum.

    References:
        Takahashi, Iwata, Yamanaka, Yamada and Yagi (2018), Student-t variational autoencoder for robust density
        estimation.

    Examples:
        >>> import torch
        >>> from pyro_vae.nn import MLP
        >>> StudentT(MLP(2, [8], 30), scale="learned", df=4.0)(torch.zeros(3, 2)).event_shape
        torch.Size([30])
    """

    def __init__(
        self,
        network: nn.Module,
        scale: Form = "learned",
        df: Form = 4.0,
        min_scale: float = 1e-2,
        min_df: float = 2.0,
        scale_shape: int | Sequence[int] = (),
    ) -> None:
        super().__init__(network, scale, min_scale, scale_shape)
        self.df, self.min_df = df, min_df
        if df == "per-pixel":
            raise ValueError('df: expected a positive number or "learned"; got "per-pixel"; pass one of these.')
        self.df_form = PositiveNumber("df", df, min_df)

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """Return p(x|z)."""
        loc, scale = self.loc_and_scale(z, *context)
        return self.independent(dist.StudentT(self.df_form(None, beside=loc), loc, scale), z)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.df_form.described()}"
