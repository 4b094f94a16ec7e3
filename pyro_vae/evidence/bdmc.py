"""Bidirectional Monte Carlo: log p(x) of simulated data between a lower and an upper bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._options import refusing_unknown_options
from pyro_vae._random import seed_for, seeded
from pyro_vae.evidence.annealing import Annealing, anneal, annealed, block_size
from pyro_vae.evidence.bounds import std_error_of_mean
from pyro_vae.evidence.estimator import Estimator, Found, Task, run
from pyro_vae.evidence.region import Region
from pyro_vae.evidence.summary import Row, Table, plus_minus
from pyro_vae.evidence.weights import Estimate
from pyro_vae.program.arguments import as_tensors
from pyro_vae.program.core import Program
from pyro_vae.program.joint import Compile
from pyro_vae.program.masks import elements_of
from pyro_vae.program.refusals import refusing_noisy_modules
from pyro_vae.program.runs import Latents
from pyro_vae.program.sites import sample_sites
from pyro_vae.program.tiles import Block, noise, refuse_nan

__all__ = ["Sandwich", "bdmc"]


@dataclass(frozen=True, repr=False)
class Sandwich:
    r"""Bounds on log p(x) of data that the model itself made, nats. Tensors are `(N,)` of float64, except x.

    Attributes:
        lower: $\log \frac{1}{K} \sum_k w_k$ of forward AIS, in expectation below log p(x).
        upper: $-\log \frac{1}{K} \sum_k 1 / w_k$ of AIS backwards from the z that made x, in expectation above it.
        lower_std_error: of `lower` (`ais`). `upper` has none: its chains start from one draw, and are not independent.
        x: the data.
        settings: of the annealing, and how the pair was run.
    """

    lower: Tensor
    upper: Tensor
    lower_std_error: Tensor
    x: Tensor
    settings: dict[str, Any]

    @property
    def gap(self) -> Tensor:
        """upper - lower of each datum; in expectation above the error of either."""
        return self.upper - self.lower

    @property
    def mean_gap(self) -> float:
        """The mean of `gap` over data."""
        return self.gap.mean().item()

    @property
    def mean_gap_std_error(self) -> float:
        """The standard error of `mean_gap`, from the spread over data; NaN for one datum."""
        return self.gap.std().item() / math.sqrt(len(self.gap)) if len(self.gap) > 1 else math.nan

    def certified_gap(self, delta: float = 1e-3) -> float:
        r"""Return a number above the mean over these data of log p(x) - `lower`, with probability at least 1 - delta.

        It mirrors `Evidence.certified_lower_bound`: $E\, p(x) / \hat p_{\mathrm{up}} = 1$ where $z$ is an exact
        draw from p(z|x), so the mean of log p(x) is below that of `upper` $+ \frac{1}{N} \log \frac{1}{\delta}$.
        """
        return self.mean_gap + math.log(1 / _checks.probability("delta", delta)) / len(self.gap)

    def summary(self) -> str:
        """Return a table of the bounds, and of what they say about annealing with these settings."""
        low = std_error_of_mean(self.lower_std_error)
        rows = [
            Row("upper bound", self.upper.mean().item()),
            Row("lower bound", self.lower.mean().item(), f"{plus_minus(low)} Monte Carlo error"),
            Row("gap", self.mean_gap, f"{plus_minus(self.mean_gap_std_error)}, largest {self.gap.max():.3f}"),
            Row("certified gap", self.certified_gap(), "log p(x) is closer, 999 times in 1,000"),
        ]
        remarks = [
            f"on average, AIS set like this is {max(self.mean_gap, 0.0):.3f} nats too low at most on such data.",
            "On real data that is a guide to its error, no bound: they may be harder than what the model makes.",
        ]
        title = f"bidirectional Monte Carlo on {len(self.gap):,} data that the model made; nats per datum"
        return Table(title, rows, remarks).text

    def __repr__(self) -> str:
        return (
            f"Sandwich(lower={self.lower.mean():.3f}, upper={self.upper.mean():.3f}, gap={self.mean_gap:.3f} +- "
            f"{self.mean_gap_std_error:.3f} nats, {len(self.gap)} simulated data)"
        )


@refusing_unknown_options
def bdmc(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    num_data: int | None = None,
    num_temperatures: int = 100,
    num_chains: int = 16,
    num_leapfrog: int = 3,
    start: str = "gaussian",
    schedule: str = "adaptive",
    seed: int = 0,
    plate: str | None = None,
    compile: Compile = "auto",
) -> Sandwich:
    r"""Bound log p(x) of simulated data from both sides, by AIS in both directions: a test of its settings.

    z is drawn from the prior and x from p(x|z), so that z is an exact draw from p(z|x). Forward AIS gives a lower bound
    in expectation. Backward AIS, which starts at this z, gives an upper one, for $E 1 / w = 1 / p(x)$. Real data come
    without an exact draw, and so without an upper bound.

    Args:
        model, guide: a Pyro program and its guide, with continuous latents. The model makes data once its observed site
            is unconditioned (`poutine.uncondition`).
        args: rows as the model takes them, x first. As many data are made; further tensors, such as covariates, are
            used as they are. Without `args`, `model(num_data=...)` is called, which a VAE's model accepts.
        num_data: how many data to make where no `args` are given; 100 by default.
        num_temperatures, num_chains, num_leapfrog, start, schedule, compile: as in `ais`.
        seed: fixes data and noise.
        plate, kwargs: as in `importance_sampling`.

    Returns:
        `Sandwich`.

    Raises:
        TypeError, ValueError: as `ais`; for a model that observes several sites, or one of another shape than x.

    References:
        Grosse, Ghahramani and Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte Carlo.

    Examples:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.8))
        >>> sandwich = bdmc(model, guide, torch.zeros(20), start="guide", num_temperatures=20)
        >>> bool(sandwich.mean_gap < 0.1)
        True
    """
    annealing = Annealing(start, num_temperatures, num_chains, num_leapfrog, schedule)
    seed = _checks.seed(seed)
    if args and num_data is not None:
        raise ValueError("num_data: expected None where args give the rows; got both; leave one out.")
    if num_data is None and "num_data" in (kwargs or {}):
        raise ValueError("num_data: expected it as an option of bdmc; got it in kwargs; pass bdmc(..., num_data=...).")
    num_data = None if args else _checks.whole_number("num_data", 100 if num_data is None else num_data)
    kwargs = _checks.keyword_arguments(kwargs)
    latents, x, made = _simulate(model, args, kwargs, num_data, seed_for(seed, "simulation"))
    task = Task.of(
        model, guide, (x, *args[1:]), kwargs, plate=plate, seed=seed, first_index=0, compile=compile,
        evaluations=2 * annealing.work,
    )  # fmt: skip
    task.require_view()
    _refuse_teacher_forcing(model, (x, *args[1:]), kwargs, latents, made)
    found = run(BothWays(annealing, {name: latents[name] for name in task.program.structure.latents}), task)
    forwards, upper = found.estimate, found.diagnostics["upper"]
    return Sandwich(forwards.log_evidence, upper, forwards.std_error, x, {**asdict(annealing), **task.settings})


class _Part(NamedTuple):
    """Log weights `(K, N)` of the chains of one block."""

    forwards: Tensor
    backwards: Tensor
    num_evaluations: Tensor


@dataclass(frozen=True)
class BothWays(Estimator[_Part]):
    """AIS forwards, and backwards from the z that made x, as an estimator; the upper bound is a diagnostic."""

    annealing: Annealing
    latents: Latents
    """The z that made x."""

    @property
    def settings(self) -> dict[str, Any]:
        return asdict(self.annealing)

    def block_size(self, program: Program) -> int:
        return block_size(program, self.annealing.num_chains)

    def measure(self, block: Block, region: Region, task: Task) -> _Part:
        prepared = self.annealing.prepared(block, region, task.seed)
        rows = torch.tensor(block.rows, device=region.view.device)
        exact = prepared.path.view.pack(_as_one_draw(block.program, self.latents, rows))
        runs = []
        for origin in (None, exact.expand(self.annealing.num_chains, -1, -1)):
            with noise(block.program, seed_for(task.seed, f"direction {origin is None}"), block.place):
                trajectory = anneal(prepared.path, prepared.noise, prepared.settings, origin)
            refuse_nan(trajectory.log_weights, block.rows)
            runs.append(trajectory.log_weights.cpu())
        return _Part(runs[0], runs[1], prepared.num_evaluations.cpu())

    def estimate_of(self, part: _Part) -> Estimate:
        return annealed(part.forwards)

    def found(self, parts: list[_Part], task: Task) -> Found:
        forwards, backwards, spent = (torch.cat(each, dim=-1) for each in zip(*parts, strict=True))
        upper = -annealed(-backwards).log_evidence
        method = ("AIS, both ways",) * task.program.num_data
        return Found(annealed(forwards), spent, method, diagnostics={"upper": upper})


@torch.no_grad()
def _simulate(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], num_data: int | None, seed: int
) -> tuple[Latents, Tensor, Tensor]:
    """Draw z from the prior and x from p(x|z); return both, and log p(x, z) of that run, of all data together."""
    size = {} if num_data is None else {"num_data": num_data}
    rows = as_tensors(args) if args else ()
    device = rows[0].device if rows else torch.get_default_device()
    with poutine.block(), seeded(device, seed % 2**32), refusing_noisy_modules(), pyro.validation_enabled(False):
        sites = dict(sample_sites(_unconditioned(model, rows, {**kwargs, **size})))
    # Without rows nothing is observed: the last site, drawn given all before it, is x.
    observed = [name for name, site in sites.items() if site["infer"].get("was_observed")] or [list(sites)[-1]]
    if len(observed) != 1:
        raise ValueError(
            f"model: expected one observed site, which is x; got {', '.join(map(repr, observed))}; observe them as "
            "one, or condition on the others."
        )
    x = sites[observed[0]]["value"]
    if rows and x.numel() != rows[0].numel():
        raise ValueError(
            f"model: expected its observed site {observed[0]!r} to be x, of shape {tuple(rows[0].shape)}; got "
            f"{tuple(x.shape)}; pass the observed tensor as the first argument."
        )
    latents = {name: site["value"] for name, site in sites.items() if name not in observed}
    made = torch.stack([_unscaled(site, name in latents) for name, site in sites.items()]).sum()
    return latents, x.reshape(rows[0].shape) if rows else x, made


def _unconditioned(model: Callable[..., Any], rows: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
    """Run the model so that it draws what it observes; return the trace."""
    try:
        return poutine.trace(poutine.uncondition(model)).get_trace(*rows, **kwargs)
    except TypeError as error:
        if rows:
            raise TypeError(
                f"model: expected it to run on args and kwargs as they are given; got {error}; pass what it takes, "
                "with kwargs={...} for what is given by name."
            ) from error
        raise TypeError(
            f"args: expected rows as the model takes them, to make data like them; got none, and "
            f"model(num_data=...) does not run ({error}); pass x."
        ) from error
    except RuntimeError as error:  # torch's samplers raise it for NaN
        first_line = str(error).partition("\n")[0]
        raise ValueError(
            f"model: expected one that data can be drawn from; got {first_line}; look for NaN among the parameters."
        ) from error


def _unscaled(site: dict[str, Any], is_latent: bool) -> Tensor:
    """Return a site's log density without its scale. Masked latents count, for they were drawn all the same."""
    each = elements_of(site)
    log_prob = each.fn.log_prob(site["value"]).double()
    return log_prob.sum() if is_latent or each.mask is None else log_prob.where(each.mask, 0.0).sum()


@torch.no_grad()
def _refuse_teacher_forcing(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], latents: Latents, made: Tensor
) -> None:
    """Raise unless the data have the same density when they are given as when they were drawn."""
    with poutine.block(), seeded(made.device, 0), pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(model, data=latents)).get_trace(*args, **kwargs)
    again = torch.stack([_unscaled(site, name in latents) for name, site in sample_sites(trace)]).sum()
    if not torch.isclose(made, again, rtol=1e-4, atol=1e-2):
        raise ValueError(
            "model: expected data that are drawn from what comes before them in the run; got another density of the "
            f"same data once they were given, {again:.4g} and not {made:.4g}: the model reads x, as teacher forcing "
            "does (a mean made of the x before). Draw x step by step, each from those that were drawn, at one site a "
            "step; "
            "log_evidence needs no such thing."
        )


def _as_one_draw(program: Program, latents: Latents, rows: Tensor) -> Latents:
    """Return the latents of some rows, in the shapes of the program's draws."""
    with seeded(program.device, 0):
        sites = program.sites().latent
    full = {name: value[(None,) * (sites[name]["value"].ndim - value.ndim)] for name, value in latents.items()}
    return program.choose(full, rows)
