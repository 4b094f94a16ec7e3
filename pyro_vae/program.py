"""A (model, guide) pair seen as functions of its latents: per datum, and vectorised over draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._structure import (
    Structure,
    forked_generator,
    initialise,
    look_at,
    refuse_impossible_data,
    refuse_subsampling,
    sample_sites,
)

__all__ = ["LogDensities", "Program", "log_weights"]

Latents = dict[str, Tensor]

# How many (datum, draw) pairs are drawn together. It fixes which random numbers a draw is made of, so it is a constant
# of each device and no option. On a CPU it also keeps the activations in cache (benchmarks/tile_size.py). The
# size for a GPU is not measured.
TILE_SIZE = {"cpu": 2048, "cuda": 262_144}


class LogDensities(NamedTuple):
    """Log densities of K draws for each of N data, nats: three tensors `(K, N)` of float64."""

    prior: Tensor
    """log p(z), of all latent sites of the model."""
    likelihood: Tensor
    """log p(x|z), of all observed sites of the model."""
    guide: Tensor
    """log q(z|x)."""

    @property
    def weight(self) -> Tensor:
        """log w = log p(z) + log p(x|z) - log q(z|x)."""
        return self.prior + self.likelihood - self.guide


def _log_prob(fn: Any, value: Tensor) -> Tensor:
    return fn.log_prob(value)


def _within_support(fn: Any, value: Tensor) -> Tensor:
    """log p, and -inf outside the support, where some distributions make up a density."""
    return torch.where(fn.support.check(value), fn.log_prob(value), -torch.inf)


@dataclass(frozen=True)
class Program:
    """A Pyro model and guide, with the data they are called on.

    `args` are tensors with one row a datum, the first of them x; `kwargs` go to model and guide as they are.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Tensor, ...]
    kwargs: dict[str, Any]
    structure: Structure

    @classmethod
    def of(
        cls,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        plate: str | None = None,
    ) -> Program:
        """Look at a run of the pair, and refuse one that has no log p(x) for each datum."""
        rows, kwargs = _rows_of_data(args), kwargs or {}
        initialise(guide, rows, kwargs)
        failure: Exception | None = None
        # What runs on two other numbers of rows runs on any. Two, as there may be a plate of the first's size.
        for trial, amortized in ((_repeated(rows, 7), True), (_repeated(rows, 11), True), (rows, False)):
            try:
                structure = look_at(model, guide, trial, kwargs, plate, amortized)
                _refuse_fixed_shapes(cls(model, guide, trial, kwargs, structure))
                if amortized:
                    _refuse_order_of_rows(cls(model, guide, trial, kwargs, structure))
                return cls(model, guide, rows, kwargs, structure)
            except (RuntimeError, ValueError, IndexError) as error:
                failure = error
        assert failure is not None
        raise failure

    @property
    def num_data(self) -> int:
        return len(self.args[0])

    def at(self, rows: Tensor) -> Program:
        """The same program on some of the data."""
        return replace(self, args=tuple(arg[rows] for arg in self.args))

    def draw(self, num_samples: int) -> tuple[Latents, Tensor]:
        """Latents drawn from the guide, and log q(z|x) of each, `(K, N)`."""
        trace = self._run(self.guide, num_samples)
        latents = {name: site["value"] for name, site in sample_sites(trace)}
        return latents, self._total(dict(sample_sites(trace)))

    def log_joint(self, latents: Latents, check_support: bool = True) -> tuple[Tensor, Tensor]:
        """log p(z) and log p(x|z), each `(K, N)`."""
        num_samples = next(iter(latents.values())).shape[0]
        sites = dict(sample_sites(self._run(poutine.condition(self.model, data=latents), num_samples)))
        observed = {name: site for name, site in sites.items() if name not in latents}
        if check_support:
            refuse_impossible_data(observed)
        prior = self._total({name: site for name, site in sites.items() if name in latents}, _within_support)
        return prior, self._total(observed)

    def _run(self, fn: Callable[..., Any], num_samples: int) -> poutine.Trace:
        with poutine.block():
            particles = pyro.plate("_particles", num_samples, dim=self.structure.particle_dim)
            trace = poutine.trace(particles(fn)).get_trace(*self.args, **self.kwargs)
        refuse_subsampling(trace)
        return trace

    def _total(self, sites: dict[str, Any], log_prob: Callable[[Any, Tensor], Tensor] = _log_prob) -> Tensor:
        each = [scale_and_mask(log_prob(site["fn"], site["value"]), mask=site["mask"]) for site in sites.values()]
        return torch.stack([self._per_datum(one.double()) for one in each]).sum(0)

    def _per_datum(self, log_prob: Tensor) -> Tensor:
        """A site's log density summed over all but draws and data. A plate's scale is no part of it."""
        keep = (self.structure.particle_dim, self.structure.data_dim)
        log_prob = log_prob[(None,) * (-self.structure.particle_dim - log_prob.ndim)]
        others = [dim for dim in range(-log_prob.ndim, 0) if dim not in keep]
        return log_prob.sum(others) if others else log_prob


def log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Tensor,
    num_samples: int = 1,
    seed: int = 0,
    plate: str | None = None,
    **kwargs: Any,
) -> Tensor:
    r"""The log weights $\log w_{kn} = \log p(x_n, z_{kn}) - \log q(z_{kn}|x_n)$ of draws $z_{kn}$ from the guide.

    Objectives and evaluations all reduce this tensor: its mean over k is the ELBO, its log-mean-exp the
    importance-sampled log p(x).

    Args:
        model, guide: a Pyro program and its guide, with one plate over data.
        args: what both are called with: tensors of one row a datum, x first.
        num_samples: the number K of draws for each datum.
        seed: fixes the draws, whatever the state of torch's generator, which is left as it was.
        plate: the name of the plate over data; needed only where several hold all sites.
        kwargs: further arguments of both, passed on as they are.

    Shapes: `(K, N)`, float64, in nats.

    Raises:
        TypeError, ValueError: as `importance_sampling`.

    Examples:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior, so that all weights of a datum are its p(x)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> log_weights(model, guide, x, num_samples=3).allclose(dist.Normal(0.0, 2**0.5).log_prob(x))
        True
    """
    num_samples = _checks.whole_number("num_samples", num_samples)
    seed = _checks.seed(seed)
    program = Program.of(model, guide, args, kwargs, plate)
    weights = torch.empty(num_samples, program.num_data, dtype=torch.float64)
    for tile, densities in tiles(program, num_samples, seed):
        weights[tile.draws, tile.rows] = densities.weight.cpu()
    return weights


class Tile(NamedTuple):
    """A rectangle of the draws by data."""

    draws: slice
    rows: slice


def tiles(
    program: Program, num_samples: int, seed: int, first_index: int = 0, chunk_size: int | None = None
) -> Iterator[tuple[Tile, LogDensities]]:
    """The log densities of `num_samples` draws for each datum, tile by tile, all tiles of a datum in a row.

    A tile's noise depends on the seed and on its place alone, and a tile at the edge is filled up to full size: so the
    numbers of a datum are the same in whatever company it is evaluated, and memory is that of one tile. `first_index`
    is the place of the first datum. `chunk_size` evaluates the model on that many pairs at a time, which changes memory
    and speed but no draw.
    """
    height, width = _tile_shape(program, num_samples)
    end = first_index + program.num_data
    for left in range(first_index // width * width if program.structure.amortized else first_index, end, width):
        places = torch.arange(left, left + width, device=program.args[0].device) - first_index
        part = program.at(places.clamp(0, program.num_data - 1)) if program.structure.amortized else program
        rows = slice(max(left - first_index, 0), min(left + width, end) - first_index)
        columns = slice(rows.start + first_index - left, rows.stop + first_index - left)
        for top in range(0, num_samples, height):
            draws = slice(top, min(top + height, num_samples))
            tile_seed = _tile_seed(seed, left * ceil(num_samples / height) + top // height)
            densities = _densities(part, draws.stop - draws.start, tile_seed, chunk_size, check_support=top == 0)
            kept = LogDensities(*(each[:, columns] for each in densities))
            _refuse_nan(kept, rows.start)
            yield Tile(draws, rows), kept


def _tile_shape(program: Program, num_samples: int) -> tuple[int, int]:
    """How many draws and how many data a tile spans: as many draws as there are, and only then data."""
    size = TILE_SIZE.get(program.args[0].device.type, TILE_SIZE["cpu"])
    if not program.structure.amortized:
        return max(1, min(num_samples, size // program.num_data)), program.num_data
    height = ceil(num_samples / ceil(num_samples / size))
    return height, max(1, size // height)


def _tile_seed(seed: int, place: int) -> int:
    """A seed of its own for each of 2**32 places: torch's generator of the CPU looks at no more than 32 bits.

    Places start at a number that the user's seed decides, and are mixed by a bijection (the last step of MurmurHash3).
    """
    mixed = (int(np.random.SeedSequence(seed).generate_state(1)[0]) + place) % 2**32
    mixed = ((mixed ^ mixed >> 16) * 0x85EBCA6B) % 2**32
    mixed = ((mixed ^ mixed >> 13) * 0xC2B2AE35) % 2**32
    return mixed ^ mixed >> 16


@torch.no_grad()
def _densities(
    program: Program, num_samples: int, seed: int, chunk_size: int | None = None, check_support: bool = True
) -> LogDensities:
    height = num_samples if chunk_size is None else max(1, chunk_size // program.num_data)
    with forked_generator(program.args[0].device), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        latents, guide = program.draw(num_samples)
        pieces = [
            program.log_joint({name: value[top : top + height] for name, value in latents.items()}, check_support)
            for top in range(0, num_samples, height)
        ]
    prior, likelihood = (torch.cat(column) for column in zip(*pieces, strict=True))
    return LogDensities(prior, likelihood, guide)


def _refuse_nan(densities: LogDensities, first_row: int) -> None:
    weight = densities.weight
    bad = (weight.isnan() | weight.isposinf()).any(0)
    if bad.any():
        row = first_row + int(bad.nonzero()[0])
        raise ValueError(
            f"model, guide: expected numbers for log weights; got NaN or +inf, first for the datum at index {row}; "
            "look for NaN among the parameters and in x, or a density of zero width."
        )


def _refuse_fixed_shapes(program: Program) -> None:
    """Run the pair on two draws at once, which is how it is evaluated."""
    expected = (2, program.num_data)
    found: Any
    try:
        found = tuple(_densities(program, 2, seed=0, check_support=False).weight.shape)
    except (RuntimeError, ValueError, IndexError) as error:
        found = str(error).splitlines()[0]
    if found != expected:
        raise ValueError(
            f"model, guide: expected log weights of shape {expected} for 2 draws at once; got {found}; let the "
            "functions inside accept dimensions to the left of the plate's, as Pyro's vectorize_particles=True needs."
        )


def _rows_of_data(args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    if not args:
        raise TypeError("x: expected the data after model and guide; got nothing; pass a tensor (N, ...).")
    for i, arg in enumerate(args[1:], start=1):
        if not hasattr(arg, "__len__"):
            raise TypeError(
                f"args[{i}]: expected a tensor with one row a datum, as all positional arguments; got {arg!r}; pass "
                "others by name, such as num_samples=1000."
            )
    names = ["x", *(f"args[{i}]" for i in range(1, len(args)))]
    rows = tuple(_checks.tensor(name, arg) for name, arg in zip(names, args, strict=True))
    for name, arg in zip(names, rows, strict=True):
        if len(arg) != len(rows[0]):
            raise ValueError(
                f"{name}: expected one row for each of the {len(rows[0])} data, as all positional arguments; got "
                f"{len(arg)} rows; pass what is shared by the data as a keyword argument."
            )
    return rows


@torch.no_grad()
def _refuse_order_of_rows(program: Program) -> None:
    """Stop if a row's density depends on its place, as where a function closes over tensors of its own."""
    with forked_generator(program.args[0].device), pyro.validation_enabled(False):
        torch.manual_seed(0)
        trace = program._run(program.guide, 2)
        sites = dict(sample_sites(trace))
        forth = program.log_joint({name: site["value"] for name, site in sites.items()}, check_support=False)
        axes = {name: program.structure.data_dim - site["fn"].event_dim for name, site in sites.items()}
        reversed_rows = torch.arange(program.num_data - 1, -1, -1, device=program.args[0].device)
        back = program.at(reversed_rows).log_joint(
            {name: site["value"].flip(axes[name]) for name, site in sites.items()}, check_support=False
        )
    for one, other in zip(forth, back, strict=True):
        if not torch.allclose(one, other.flip(1), rtol=1e-5, atol=1e-3, equal_nan=True):
            raise ValueError(
                "model: expected each datum's density to depend on its own row; got others for the rows in reverse; "
                "pass every tensor with a row for each datum as a positional argument."
            )


def _repeated(args: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """Some rows, and not as many as there are."""
    num_data = len(args[0])
    size += 6 if size == num_data else 0
    return tuple(arg[torch.arange(size, device=arg.device) % num_data] for arg in args)
