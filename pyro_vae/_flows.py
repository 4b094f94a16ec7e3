"""Normalizing flows, by zuko."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import AffineTransform, constraints

from pyro_vae import _checks
from pyro_vae._private import FakeTensor, is_functorch_wrapped_tensor, keeping_validation, num_changes

__all__ = ["FlowDistribution", "Kind", "flow_of", "transformed_normal"]

Kind = Literal["affine", "gated", "spline"]

OPEN = 2.0  # what a gate starts from, before its sigmoid
SMALLEST_GATE = 1e-3  # the least scale of zuko's affine transforms too


class _Drawn(NamedTuple):
    """A draw and its log density."""

    value: Tensor
    log_prob: Tensor
    has_gradient: bool
    num_changes: int

    @classmethod
    def now(cls, value: Tensor, log_prob: Tensor) -> _Drawn:
        return cls(value, log_prob, torch.is_grad_enabled(), num_changes(value))

    def serves(self, value: Tensor) -> bool:
        """Whether `value` is this draw, unchanged, and the density has a gradient if one is wanted."""
        is_unchanged = value is self.value and num_changes(value) == self.num_changes
        return is_unchanged and self.has_gradient >= torch.is_grad_enabled()


class FlowDistribution(TorchDistribution):
    """zuko's distribution of a flow, as one of Pyro's."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: Any) -> None:
        self.flow = flow
        self._drawn: _Drawn | None = None
        super().__init__(flow.batch_shape, flow.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """Expand the flow."""
        return type(self)(self.flow.expand(torch.Size(batch_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), nats. For the last draw of `rsample`, no transform is inverted."""
        if self._drawn is not None and self._drawn.serves(value):
            return self._drawn.log_prob
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        return self.flow.log_prob(value.expand(shape))  # zuko's transforms do not broadcast values over parameters

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw from the base, and transform."""
        value, log_prob = self.flow.rsample_and_log_prob(torch.Size(sample_shape))
        self._drawn = None if value.is_inference() else _Drawn.now(value, log_prob)
        return value

    @property
    def centre(self) -> Tensor:
        """The image of the base's mean. A flow's own mean has no formula."""
        return self.flow.transform.inv(self.flow.base.mean)


def flow_of(
    kind: Kind, latent_dim: int, context_dim: int, num_transforms: int, hidden_dims: Sequence[int], autoregressive: bool
) -> nn.Module:
    """Make zuko's flow, with transforms that start as the identity, or near it."""
    latent_dim = _checks.whole_number("latent_dim", latent_dim, minimum=2)
    _checks.choice("kind", kind, get_args(Kind))
    flows = _zuko().flows
    make = {"affine": flows.MAF, "gated": partial(flows.MAF, univariate=_gated), "spline": flows.NSF}[kind]
    flow = make(
        latent_dim,
        context_dim,
        transforms=_checks.whole_number("num_transforms", num_transforms),
        hidden_features=_checks.shape("hidden_dims", hidden_dims),
        passes=None if autoregressive else 2,
    )
    for module in flow.modules():
        if hasattr(module, "hyper"):
            module.register_forward_hook(_settling)
            last = [layer for layer in module.hyper if isinstance(layer, nn.Linear)][-1]
            nn.init.zeros_(last.bias)
            with torch.no_grad():
                last.weight.mul_(1e-2)
    return flow


def _gated(target: Tensor, raw: Tensor) -> AffineTransform:
    """Go part of the way to a target: at first 0.12 of it. An inverse magnifies a thousand times at most."""
    gate = SMALLEST_GATE + (1 - SMALLEST_GATE) * (raw + OPEN).sigmoid()
    return AffineTransform((1 - gate) * target, gate)


def _settling(module: nn.Module, inputs: Any, transform: Any) -> Any:
    """Hook: let the inverse of an autoregressive transform end where it has settled."""
    return _settling_transform()(transform.meta, transform.passes)


@cache
def _settling_transform() -> Any:
    """Derive it from zuko's, once zuko is wanted."""
    return type("SettlingTransform", (_zuko().transforms.AutoregressiveTransform,), {"_inverse": _settled_inverse})


def _settled_inverse(transform: Any, y: Tensor) -> Tensor:
    """Invert by passes, as zuko does, but end at the first that changes nothing, as then no other would.

    Each pass has one more dimension right, whence as many passes as dimensions are enough. A trained flow mostly
    settles after a few: each dimension depends on those before it, but less and less on those before these.
    """
    x = torch.zeros_like(y)
    for _ in range(transform.passes):
        before, x = x, transform.meta(x).inv(y)
        if _has_values(x) and torch.equal(before, x):
            break
    return x


def _has_values(tensor: Tensor) -> bool:
    """Tell whether a branch may depend on a tensor's values: not in a graph that is recorded, nor under vmap."""
    is_recorded = torch.compiler.is_compiling() or isinstance(tensor, FakeTensor)
    return not (is_recorded or is_functorch_wrapped_tensor(tensor))


def transformed_normal(loc: Tensor, scale: Tensor, transform: Any) -> FlowDistribution:
    """Transform a Gaussian with independent dimensions; as zuko has it, the transform maps values to noise."""
    made = _zuko().distributions
    return FlowDistribution(made.NormalizingFlow(transform, made.DiagNormal(loc, scale)))


def _zuko() -> Any:
    """Import zuko, which by itself would switch off the validation of all distributions of the process."""
    with keeping_validation():
        try:
            import zuko
        except ImportError as error:
            raise _checks.missing_package("flows", "zuko", "which makes them", "'pyro-vae[flows]'") from error
    return zuko
