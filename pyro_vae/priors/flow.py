"""A standard normal variable, transformed."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae import _checks
from pyro_vae._flows import FlowDistribution, Kind, flow_of

__all__ = ["Flow"]


class Flow(nn.Module):
    r"""A normalizing flow, $z = f(\epsilon)$, $\epsilon \sim N(0, I)$, learned with the VAE.

    The flows are zuko's (`pip install 'pyro-vae[flows]'`). They start as the identity, and p(z) as N(0, I); gated ones
    start near it.

    Args:
        latent_dim: the number D of latent dimensions, 2 or more.
        kind: of transforms from z to noise: `"affine"`, `"gated"` (see `posteriors.Flow`), or `"spline"`, monotonic
            rational-quadratic splines between -5 and 5.
        num_transforms: how many.
        hidden_dims: of the network of each transform.
        autoregressive: whether each dimension depends on all before it (a draw takes up to D passes), or half of them
            on the other half.

    Shapes: the distribution has batch shape `()` and event shape `(latent_dim,)`.

    Raises:
        TypeError, ValueError: for impossible numbers.
        ImportError: without zuko.

    References:
        Chen et al. (2017), Variational lossy autoencoder; Durkan et al. (2019), Neural spline flows.

    Examples:
        >>> Flow(10)().event_shape
        torch.Size([10])
    """

    def __init__(
        self,
        latent_dim: int,
        kind: Kind = "affine",
        num_transforms: int = 4,
        hidden_dims: Sequence[int] = (64, 64),
        autoregressive: bool = False,
    ) -> None:
        super().__init__()
        _checks.choice("autoregressive", autoregressive, (False, True))
        self.flow = flow_of(kind, latent_dim, 0, num_transforms, hidden_dims, autoregressive)
        self.latent_dim, self.kind, self.num_transforms = latent_dim, kind, num_transforms
        self.hidden_dims, self.autoregressive = tuple(hidden_dims), autoregressive

    def forward(self, *context: Tensor) -> dist.Distribution:
        """Return p(z), whatever the context is."""
        return FlowDistribution(self.flow())

    def extra_repr(self) -> str:
        return (
            f"latent_dim={self.latent_dim}, kind={self.kind!r}, num_transforms={self.num_transforms}, "
            f"autoregressive={self.autoregressive}"
        )
