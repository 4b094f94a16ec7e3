"""A (model, guide) pair seen as functions of its latents: per datum, and vectorised over draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_site_shape
from torch import Tensor, nn

from pyro_vae import _checks

__all__ = ["LogDensities", "Program", "log_weights"]

Latents = dict[str, Tensor]

# How many (datum, draw) pairs are drawn together. It fixes which random numbers a draw is made of, so it is a constant
# of each device and no option. On a CPU it also keeps the activations in cache (benchmarks/tile_size.py).
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


@dataclass(frozen=True)
class Structure:
    """Where data and draws lie among the batch dimensions, counted from the right (negative)."""

    data_dim: int
    particle_dim: int
    amortized: bool
    """Whether the pair runs on any number of rows. A guide with parameters for each datum runs on all of them only."""


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
        _refuse_noisy_modules(model, guide)
        failure: Exception | None = None
        for trial, amortized in ((_another_number_of_rows(rows), True), (rows, False)):
            try:
                structure = _structure(model, guide, trial, kwargs, plate, amortized)
                _refuse_fixed_shapes(cls(model, guide, trial, kwargs, structure))
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
        latents = {name: site["value"] for name, site in _sample_sites(trace)}
        return latents, self._total(dict(_sample_sites(trace)))

    def log_joint(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """log p(z) and log p(x|z), each `(K, N)`."""
        num_samples = next(iter(latents.values())).shape[0]
        sites = dict(_sample_sites(self._run(poutine.condition(self.model, data=latents), num_samples)))
        return (
            self._total({name: site for name, site in sites.items() if name in latents}),
            self._total({name: site for name, site in sites.items() if name not in latents}),
        )

    def _run(self, fn: Callable[..., Any], num_samples: int) -> poutine.Trace:
        with poutine.block():
            particles = pyro.plate("_particles", num_samples, dim=self.structure.particle_dim)
            return poutine.trace(particles(fn)).get_trace(*self.args, **self.kwargs)

    def _total(self, sites: dict[str, Any]) -> Tensor:
        return torch.stack([self._per_datum(site) for site in sites.values()]).sum(0)

    def _per_datum(self, site: dict[str, Any]) -> Tensor:
        """A site's log density summed over all but draws and data, in float64. A plate's scale is no part of it."""
        log_prob = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"]).double()
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
    seed = _checks.whole_number("seed", seed, minimum=0)
    program = Program.of(model, guide, args, kwargs, plate)
    weights = torch.empty(num_samples, program.num_data, dtype=torch.float64)
    for tile, densities in tiles(program, num_samples, seed):
        weights[tile.draws, tile.rows] = densities.weight.cpu()
    return weights


def forked_generator(device: torch.device) -> AbstractContextManager[None]:
    """Leave torch's generators, of the CPU and of this device, as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


class Tile(NamedTuple):
    """A rectangle of the draws by data."""

    draws: slice
    rows: slice


def tiles(
    program: Program, num_samples: int, seed: int, chunk_size: int | None = None
) -> Iterator[tuple[Tile, LogDensities]]:
    """The log densities of `num_samples` draws for each datum, tile by tile, all tiles of a datum in a row.

    A tile's noise depends on the seed and on its place alone, and a tile at the edge is filled up to full size: so the
    numbers of a datum are the same in whatever company it is evaluated, and memory is that of one tile. `chunk_size`
    evaluates the model on that many pairs at a time, which changes memory and speed but no draw.
    """
    height, width = _tile_shape(program, num_samples)
    for left in range(0, program.num_data, width):
        rows = slice(left, min(left + width, program.num_data))
        part = program.at(_filled_up(left, width, program)) if program.structure.amortized else program
        for top in range(0, num_samples, height):
            draws = slice(top, min(top + height, num_samples))
            densities = _densities(part, draws.stop - draws.start, _tile_seed(seed, left, top), chunk_size)
            kept = LogDensities(*(each[:, : rows.stop - rows.start] for each in densities))
            _refuse_nan(kept, left)
            yield Tile(draws, rows), kept


def _tile_shape(program: Program, num_samples: int) -> tuple[int, int]:
    """How many draws and how many data a tile spans: as many draws as there are, and only then data."""
    size = TILE_SIZE.get(program.args[0].device.type, TILE_SIZE["cpu"])
    if not program.structure.amortized:
        return max(1, min(num_samples, size // program.num_data)), program.num_data
    height = ceil(num_samples / ceil(num_samples / size))
    return height, max(1, size // height)


def _filled_up(left: int, width: int, program: Program) -> Tensor:
    rows = torch.arange(left, left + width, device=program.args[0].device)
    return rows.clamp(max=program.num_data - 1)


def _tile_seed(seed: int, left: int, top: int) -> int:
    return int(np.random.SeedSequence([seed, left, top]).generate_state(1, np.uint64)[0] >> 1)


@torch.no_grad()
def _densities(program: Program, num_samples: int, seed: int, chunk_size: int | None) -> LogDensities:
    height = num_samples if chunk_size is None else max(1, chunk_size // program.num_data)
    with forked_generator(program.args[0].device), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        latents, guide = program.draw(num_samples)
        pieces = [
            program.log_joint({name: value[top : top + height] for name, value in latents.items()})
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


@torch.no_grad()
def _structure(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Tensor, ...],
    kwargs: dict[str, Any],
    plate: str | None,
    amortized: bool,
) -> Structure:
    with poutine.block(), forked_generator(args[0].device), pyro.validation_enabled(True):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        for trace in (guide_trace, model_trace):
            trace.compute_log_prob()
    guide_sites, model_sites = dict(_sample_sites(guide_trace)), dict(_sample_sites(model_trace))
    _refuse_mismatch(model_sites, guide_sites)
    sites = [*model_sites.values(), *guide_sites.values()]
    data_dim = _data_frame(sites, len(args[0]), plate).dim
    deepest = min(frame.dim for site in sites for frame in _plates(site))
    for site in sites:
        check_site_shape(site, -deepest)
    return Structure(data_dim, deepest - 1, amortized)


def _refuse_fixed_shapes(program: Program) -> None:
    """Run the pair on two draws at once, which is how it is evaluated."""
    expected = (2, program.num_data)
    found: Any
    try:
        found = tuple(_densities(program, 2, seed=0, chunk_size=None).weight.shape)
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
    names = ["x", *(f"args[{i}]" for i in range(1, len(args)))]
    rows = tuple(_checks.tensor(name, arg) for name, arg in zip(names, args, strict=True))
    for name, arg in zip(names, rows, strict=True):
        if len(arg) != len(rows[0]):
            raise ValueError(
                f"{name}: expected one row for each of the {len(rows[0])} data, as all positional arguments; got "
                f"{len(arg)} rows; pass what is shared by the data as a keyword argument."
            )
    return rows


def _another_number_of_rows(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A few rows, but never as many as there are: what runs on them runs on any number."""
    num_data = len(args[0])
    size = 7 if num_data != 7 else 11
    return tuple(arg[torch.arange(size, device=arg.device) % num_data] for arg in args)


def _sample_sites(trace: poutine.Trace) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sites that have a density; a plate's choice of rows and `pyro.deterministic` have none."""
    for name, site in prune_subsample_sites(trace).nodes.items():
        if site["type"] == "sample" and not site["infer"].get("_deterministic"):
            yield name, site


def _plates(site: dict[str, Any]) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def _refuse_mismatch(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    latent = {name for name, site in model_sites.items() if not site["is_observed"]}
    drawn = {name for name, site in guide_sites.items() if not site["infer"].get("is_auxiliary")}
    for name in sorted(latent - drawn):
        raise ValueError(
            f"guide: expected it to draw every latent site of the model; got no site {name!r}; add it to the guide, or "
            "sum it out in the model."
        )
    for name in sorted(drawn - latent):
        what = "observes it" if name in model_sites else "has none"
        raise ValueError(
            f"guide: expected latent sites of the model alone; got site {name!r}, and the model {what}; "
            'rename it, or mark it infer={"is_auxiliary": True} if the model knows it under another name.'
        )
    for kind, found in {"latent": latent, "observed": set(model_sites) - latent}.items():
        if not found:
            raise ValueError(
                f"model: expected at least one {kind} site; got none; log p(x) is the integral over latent sites of "
                "the density of observed ones."
            )


def _data_frame(sites: list[dict[str, Any]], num_rows: int, plate: str | None) -> Any:
    """The frame of the plate over data, which must hold every site."""
    frames = {frame.name: frame for site in sites for frame in _plates(site)}
    of_data = {name: frame for name, frame in frames.items() if frame.size == num_rows and plate in (None, name)}
    if not of_data:
        found = ", ".join(f"{frame.name!r} of size {frame.size}" for frame in frames.values()) or "no plate"
        wanted = "a plate" if plate is None else f"a plate {plate!r}"
        raise ValueError(
            f"model, guide: expected {wanted} over the {num_rows} data; got {found}; put all sites into "
            'pyro.plate("data", len(x)), without subsampling.'
        )
    holding_all = [name for name in of_data if all(name in [frame.name for frame in _plates(site)] for site in sites)]
    if len(holding_all) > 1 and plate is None:
        raise ValueError(
            f"plate: expected one plate over the data; got {len(holding_all)} that hold every site, "
            f"{', '.join(map(repr, holding_all))}; say which with plate=..."
        )
    if not holding_all:
        _refuse_outsider(sites, next(iter(of_data)))
    return of_data[holding_all[0]]


def _refuse_outsider(sites: list[dict[str, Any]], plate: str) -> None:
    outside = next(site for site in sites if plate not in [frame.name for frame in _plates(site)])
    kind = "observed" if outside["is_observed"] else "a global latent"
    raise ValueError(
        f"model, guide: expected every site inside the plate {plate!r} over data; got site {outside['name']!r} outside "
        f"of it, {kind}; log p(x) has no value for each datum then: fix it with pyro.poutine.condition, or move it "
        "into the plate."
    )


def _refuse_noisy_modules(*callables: Callable[..., Any]) -> None:
    noisy = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for fn in callables:
        root = getattr(fn, "__self__", fn)
        for name, module in root.named_modules() if isinstance(root, nn.Module) else ():
            if module.training and isinstance(module, noisy):
                raise ValueError(
                    f"model, guide: expected modules in evaluation mode; got {type(module).__name__} at {name!r} in "
                    "training mode, where the data of a batch share noise; call .eval() first."
                )
