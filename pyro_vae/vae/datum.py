"""How the three parts of a VAE fit together, and what one datum is: found by one run, before any training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae import _checks
from pyro_vae.distributions import Incomplete

Shapes = tuple[tuple[int, ...], ...]

REMEDY = "transform the data, or use a likelihood that gives them a density"
OF_NAN = "remove or impute them; or, where numbers are missing, wrap the likelihood in pv.likelihoods.Incomplete"


@dataclass(frozen=True)
class Datum:
    """The shape of x, of z and of the further arguments, without batch dimensions; and where p(x|z) has a density."""

    event_shape: torch.Size
    latent_shape: torch.Size
    context_shapes: Shapes
    support: Any
    remedy: str
    """The advice given in the error about data outside the support."""
    may_be_incomplete: bool = False
    """Whether NaN stands for a missing entry of x."""
    last_context: tuple[Any, str] | None = None
    """Where the last of the further arguments has to lie, if the likelihood says so, and the advice otherwise."""

    def check(self, x: Any, like: Tensor | None, name: str = "x", plates: dict[int, int] | None = None) -> Tensor:
        """View `x` as `(..., N, *event_shape)` with the dtype of `like`, or raise an error that says what is wrong.

        Dimensions to the left of N are allowed only where plates, given as sizes by dimension, lie there.
        """
        x = _checks.batch_of(name, _checks.tensor(name, x), self.event_shape, plates or {})
        x = _like(name, x, like)
        x = _checks.finite_or_missing(name, x) if self.may_be_incomplete else _checks.finite(name, x, OF_NAN)
        return x if self.support is None else _checks.in_support(name, x, self.support, self.remedy)

    def check_latent(self, z: Any, like: Tensor | None) -> Tensor:
        """Check a latent that is handed in, `(..., N, *latent_shape)`."""
        return _like("z", _checks.ends_with("z", _checks.tensor("z", z), self.latent_shape), like)

    def check_context(self, context: tuple[Any, ...], like: Tensor | None) -> tuple[Tensor, ...]:
        """Check the further arguments, each `(..., N, *shape)`."""
        if len(context) != len(self.context_shapes):
            raise TypeError(
                f"context: expected {len(self.context_shapes)} arguments after x, as many as the VAE's context_shapes; "
                f"got {len(context)}; pass them by position, or build the VAE for them."
            )
        checked = tuple(
            _checks.finite(name, _like(name, _checks.ends_with(name, _checks.tensor(name, value), shape), like))
            for name, value, shape in zip(self.context_names, context, self.context_shapes, strict=True)
        )
        if self.last_context is not None:
            support, remedy = self.last_context
            _checks.in_support(
                self.context_names[-1], checked[-1], support, remedy, of="the range that the likelihood needs"
            )
        return checked

    @property
    def context_names(self) -> list[str]:
        """Names of the further arguments in messages."""
        return [f"context[{i}]" for i in range(len(self.context_shapes))]

    def num_rows(self, x: Tensor | None, z: Tensor | None, context: tuple[Tensor, ...]) -> int | None:
        """Return how many data there are, if any argument tells. One row, except of x, is shared by all data."""
        given: dict[str, Any] = {"x": (x, self.event_shape), "z": (z, self.latent_shape)}
        given |= {name: pair for name, *pair in zip(self.context_names, context, self.context_shapes, strict=True)}
        rows = {name: value.shape[-1 - len(shape)] for name, (value, shape) in given.items() if value is not None}
        most = max(rows.values(), default=None)
        if any(number != most and (number > 1 or name == "x") for name, number in rows.items()):
            found = ", ".join(f"{name} has {number}" for name, number in rows.items())
            raise ValueError(
                f"{next(iter(rows))}: expected as many rows in each argument; got: {found}; pass rows that belong "
                "together."
            )
        return None if most == 1 and x is None else most

    def rows(self, x: Tensor, context: tuple[Tensor, ...], chosen: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Select x and context of the data that a plate has chosen."""
        return _rows(x, self.event_shape, chosen), tuple(
            _rows(value, shape, chosen) for value, shape in zip(context, self.context_shapes, strict=True)
        )


def _rows(value: Tensor, shape: Sequence[int], chosen: Tensor) -> Tensor:
    dim = value.ndim - 1 - len(shape)
    return value if value.shape[dim] == 1 else value.index_select(dim, chosen)


def side_by_side(values: tuple[Tensor, ...], shapes: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    """Expand values, given their own shapes, to the same batch dimensions, as networks want them.

    An enumerated label, say, has a dimension to the left that z does not have.
    """
    if len(values) < 2:
        return values
    batches = [value.shape[: value.ndim - len(shape)] for value, shape in zip(values, shapes, strict=True)]
    batch = torch.broadcast_shapes(*batches)
    return tuple(value.expand(*batch, *shape) for value, shape in zip(values, shapes, strict=True))


def _like(name: str, x: Tensor, like: Tensor | None) -> Tensor:
    if like is None:
        return x.to(torch.get_default_dtype())
    return _checks.same_device(name, x, like.device).to(like.dtype)


def fit_together(prior: nn.Module, likelihood: nn.Module, posterior: nn.Module, context_shapes: Shapes) -> Datum:
    """Run the three parts once, on zeros and a context of ones, drawing nothing, and read off what a datum is."""
    with _at_rest(prior, likelihood, posterior):
        # A scale or an exposure may not be zero.
        like = any_parameter(likelihood, posterior)
        context = [torch.ones_like(_zeros(torch.Size(shape), like)) for shape in context_shapes]
        # Two rows: a network may take one scalar for one row of width one.
        p_z = _called("prior", prior, *(value.expand(2, *value.shape[1:]) for value in context))
        _require_no_batch_of_its_own(p_z, 2 if context else 1)
        p_x = _called("likelihood", likelihood, _zeros(p_z.event_shape, any_parameter(likelihood)), *context)
        _require_batch_of_one("likelihood", p_x)
        q_z = _called("posterior", posterior, _zeros(p_x.event_shape, any_parameter(posterior)), *context)
        _require_batch_of_one("posterior", q_z)
        may_be_incomplete = isinstance(p_x, Incomplete)
        if may_be_incomplete:
            _require_numbers_of_nothing(posterior, p_x.event_shape, context)
    if q_z.event_shape != p_z.event_shape:
        raise ValueError(
            f"posterior: expected q(z|x) over z of shape {tuple(p_z.event_shape)}, the prior's; got "
            f"{tuple(q_z.event_shape)}; {_remedy_of(posterior, p_z.event_shape)}."
        )
    return Datum(
        p_x.event_shape,
        p_z.event_shape,
        context_shapes,
        getattr(likelihood, "support", None) or _fixed_support(p_x),
        getattr(likelihood, "remedy", REMEDY),
        may_be_incomplete,
        getattr(likelihood, "last_context", None),
    )


def _require_numbers_of_nothing(posterior: nn.Module, event_shape: torch.Size, context: list[Tensor]) -> None:
    """Raise unless a posterior draws numbers where all of x is missing."""
    nothing = torch.full_like(_zeros(event_shape, any_parameter(posterior)), torch.nan)
    try:
        with pyro.validation_enabled(False):
            sees_nan = not posterior(nothing, *context).sample().isfinite().all()
    except (RuntimeError, ValueError, IndexError, AssertionError):  # of a network or a sampler that refuses NaN
        sees_nan = True
    if sees_nan:
        raise ValueError(
            "posterior(x): expected an encoder of incomplete data, as the likelihood's are; got one that makes NaN of "
            "NaN in x; wrap its network in pv.nn.WithMask, with twice the inputs."
        )


def _remedy_of(posterior: nn.Module, latent_shape: torch.Size) -> str:
    """Return a posterior's advice on a latent of another shape."""
    remedy = getattr(posterior, "remedy", None)
    return "make both agree" if remedy is None else remedy(latent_shape)


@contextmanager
def _at_rest(*parts: nn.Module) -> Iterator[None]:
    """Run in evaluation mode, without gradients and handlers, and leave generators as they were."""
    like = any_parameter(*parts)
    devices = [like.device] if like is not None and like.is_cuda else []
    modes = {module: module.training for part in parts for module in part.modules()}
    with torch.no_grad(), torch.random.fork_rng(devices=devices), poutine.block():
        for module in modes:
            module.training = False
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def _zeros(shape: torch.Size, like: Tensor | None) -> Tensor:
    """Make one datum of zeros, with the dtype and device of a part's parameters."""
    return torch.zeros(1, *shape) if like is None else torch.zeros(1, *shape, dtype=like.dtype, device=like.device)


def _called(part: str, module: nn.Module, *args: Tensor) -> dist.Distribution:
    given = f" of shape {', '.join(str(tuple(arg.shape)) for arg in args)}" if args else ""
    try:
        result = module(*args)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        if ": expected " in str(error):  # it says itself what to do
            raise
        mend = (
            f"the VAE calls {_call(part, args)}, each part with all of context_shapes: let it take as many arguments, "
            "or give the parts in the order prior, likelihood, posterior"
            if " argument" in str(error) and isinstance(error, TypeError)
            else "make the widths of its network fit the other parts"
        )
        raise ValueError(
            f"{_call(part, args)}: expected a distribution for an input{given}; got an error, "
            f"{str(error).rstrip('.')}; {mend}."
        ) from error
    if not isinstance(result, torch.distributions.Distribution):
        raise TypeError(
            f"{_call(part, args)}: expected it to return a Pyro distribution; got {type(result).__name__}; return one."
        )
    return result


def _call(part: str, args: tuple[Tensor, ...]) -> str:
    """Write the call as in code, for messages."""
    if part == "prior":
        return f"prior({'*context' if args else ''})"
    return f"{part}({'z' if part == 'likelihood' else 'x'}{', *context' if len(args) > 1 else ''})"


def _require_no_batch_of_its_own(prior: dist.Distribution, num_rows: int) -> None:
    if prior.batch_shape not in ((), (1,), (num_rows,)):
        raise ValueError(
            f"prior(): expected batch shape () or (1,) for one datum, its other dimensions being the event's; got "
            f"{tuple(prior.batch_shape)}; declare them with .to_event(...)."
        )


def _require_batch_of_one(part: str, distribution: dist.Distribution) -> None:
    if distribution.batch_shape != (1,):
        variable = "z" if part == "likelihood" else "x"
        raise ValueError(
            f"{part}({variable}): expected batch shape (1,) for one datum, its other dimensions being the event's; got "
            f"{tuple(distribution.batch_shape)}; declare them with .to_event(...)."
        )


def _fixed_support(distribution: dist.Distribution) -> Any:
    """Return the support, or None where it depends on z."""
    support = distribution.support
    return None if any(isinstance(value, Tensor) for value in _bounds_of(support)) else support


def _bounds_of(support: Any) -> Iterator[Any]:
    """Yield what a constraint, or the constraints that it is made of, are made with."""
    for value in vars(support).values():
        inner = value if isinstance(value, (list, tuple)) else [value]
        for each in inner:
            if isinstance(each, torch.distributions.constraints.Constraint):
                yield from _bounds_of(each)
            else:
                yield each


def any_parameter(*modules: nn.Module) -> Tensor | None:
    """Return a parameter or buffer, whose dtype and device the data must have; None if there is none."""
    tensors = (itertools.chain(module.parameters(), module.buffers()) for module in modules)
    return next((tensor for tensor in itertools.chain(*tensors) if tensor.is_floating_point()), None)
