"""What a run of a (model, guide) pair shows: its plate over data, and why it may have no log p(x) for each datum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_site_shape
from torch import Tensor, nn


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Draw from a seed here; torch's generators are left as they were."""
    with forked_generator(device):
        # Not torch.manual_seed: without a GPU that keeps a record of each call, for one that may come.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def forked_generator(device: torch.device) -> AbstractContextManager[None]:
    """Leave torch's generators, of the CPU and of this device, as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@dataclass(frozen=True)
class Structure:
    """Where data and draws lie among the batch dimensions, counted from the right (negative)."""

    data_dim: int
    particle_dim: int
    amortized: bool
    """Whether the pair runs on any number of rows. A guide with parameters for each datum runs on all of them only."""

    @property
    def data_axis(self) -> int:
        """Where data lie in values with draws, counted from the left: draws come first."""
        return self.data_dim - self.particle_dim


@torch.no_grad()
def initialise(guide: Callable[..., Any], rows: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
    """Run the guide once on all data: parameters that it makes at its first call get the size that they should have."""
    with poutine.block(), seeded(rows[0].device, 0), refusing_noisy_modules():
        guide(*rows, **kwargs)


@torch.no_grad()
def look_at(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Tensor, ...],
    kwargs: dict[str, Any],
    plate: str | None,
    amortized: bool,
) -> Structure:
    """The structure of the pair, as a run on these rows shows it, or an error that says what it lacks."""
    with poutine.block(), seeded(args[0].device, 0), refusing_noisy_modules():
        with pyro.validation_enabled(True):  # of parameters, above all NaN
            _traces(model, guide, args, kwargs)
        with pyro.validation_enabled(False):  # a draw outside the prior's support is no error: its weight is zero
            guide_trace, model_trace = _traces(model, guide, args, kwargs)
            for trace in (guide_trace, model_trace):
                refuse_subsampling(trace)
                trace.compute_log_prob()
    guide_sites, model_sites = dict(sample_sites(guide_trace)), dict(sample_sites(model_trace))
    _refuse_mismatch(model_sites, guide_sites)
    _refuse_densities_without_volume(model_sites, guide_sites)
    sites = [*model_sites.values(), *guide_sites.values()]
    data_dim = _data_frame(sites, len(args[0]), plate).dim
    deepest = min(frame.dim for site in sites for frame in plates_of(site))
    for site in sites:
        check_site_shape(site, -deepest)
    return Structure(data_dim, deepest - 1, amortized)


def _traces(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Tensor, ...], kwargs: dict[str, Any]
) -> tuple[poutine.Trace, poutine.Trace]:
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    return guide_trace, poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)


def sample_sites(trace: poutine.Trace) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sites that have a density; a plate's choice of rows and `pyro.deterministic` have none."""
    for name, site in prune_subsample_sites(trace).nodes.items():
        if site["type"] == "sample" and not site["infer"].get("_deterministic"):
            yield name, site


def plates_of(site: dict[str, Any]) -> list[Any]:
    """The frames of the plates that give a site its batch dimensions."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def _refuse_mismatch(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    refuse_other_names(model_sites, guide_sites)
    observed = {name for name, site in model_sites.items() if site["is_observed"]}
    for kind, found in {"latent": set(model_sites) - observed, "observed": observed}.items():
        if not found:
            raise ValueError(
                f"model: expected at least one {kind} site; got none; log p(x) is the integral over latent sites of "
                "the density of observed ones."
            )


def refuse_other_names(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    """Stop unless the guide draws what the model leaves open, and nothing else."""
    latent = {name for name, site in model_sites.items() if not site["is_observed"]}
    drawn = {name for name, site in guide_sites.items() if not site["infer"].get("is_auxiliary")}
    others = ", ".join(map(repr, sorted(drawn - model_sites.keys())))
    for name in sorted(latent - drawn):
        found = f"no site {name!r}" + (f", but {others}, which the model has not" if others else "")
        raise ValueError(
            f"guide: expected it to draw every latent site of the model; got {found}; add it to the guide under that "
            "name, or, if it is data, observe it in the model with obs=..."
        )
    for name in sorted(drawn - latent):
        what = "observes it" if name in model_sites else "has none"
        raise ValueError(
            f"guide: expected latent sites of the model alone; got site {name!r}, and the model {what}; "
            "rename it, or take it out."
        )


def _refuse_densities_without_volume(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    """A point has no density to weigh by, unless it is the image of an auxiliary draw, as in Pyro's automatic "
    "guides."""
    auxiliary = [name for name, site in guide_sites.items() if site["infer"].get("is_auxiliary")]
    points = [
        name
        for name in guide_sites.keys() & model_sites.keys()
        if _is_point(guide_sites[name]) and not _is_point(model_sites[name])
    ]
    if points and not auxiliary:
        raise ValueError(
            f"guide: expected densities; got a point (Delta) at site {points[0]!r}, whose weights mean nothing; use "
            "a guide with a density, such as AutoNormal."
        )
    if auxiliary and not points:
        raise ValueError(
            f"guide: expected latent sites of the model alone; got the auxiliary site {auxiliary[0]!r}, over which "
            "log q would have to be integrated; sum it out in the guide."
        )


def _is_point(site: dict[str, Any]) -> bool:
    return any(isinstance(fn, Delta) for fn in _layers(site["fn"]))


def _layers(fn: Any) -> Iterator[Any]:
    """A distribution, and what it is wrapped about."""
    yield fn
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
        yield fn


def kind_of(site: dict[str, Any]) -> str:
    """What a site's log density is the log of."""
    if any(isinstance(fn, Unit) for fn in _layers(site["fn"])):
        return "factor"
    return "probability" if site["fn"].support.is_discrete else "density"


def masks_of(site: dict[str, Any]) -> list[Tensor]:
    """By `poutine.mask`, by `Distribution.mask`."""
    masks = [(site["mask"], site["fn"]), *((getattr(fn, "_mask", None), fn) for fn in _layers(site["fn"]))]
    return [torch.as_tensor(mask).expand(fn.batch_shape) for mask, fn in masks if mask is not None and mask is not True]


def _data_frame(sites: list[dict[str, Any]], num_rows: int, plate: str | None) -> Any:
    """The frame of the plate over data, which must hold every site."""
    frames = {frame.name: frame for site in sites for frame in plates_of(site)}
    of_data = {name: frame for name, frame in frames.items() if frame.size == num_rows and plate in (None, name)}
    if not of_data:
        found = ", ".join(f"{frame.name!r} of size {frame.size}" for frame in frames.values()) or "no plate"
        wanted = "a plate" if plate is None else f"a plate {plate!r}"
        raise ValueError(
            f"model, guide: expected {wanted} over the {num_rows} data; got {found}; put all sites into "
            'pyro.plate("data", len(x)), without subsampling.'
        )
    holding_all = [name for name in of_data if all(name in [frame.name for frame in plates_of(site)] for site in sites)]
    if len(holding_all) > 1 and plate is None:
        raise ValueError(
            f"plate: expected one plate over the data; got {len(holding_all)} that hold every site, "
            f"{', '.join(map(repr, holding_all))}; say which with plate=..."
        )
    if not holding_all:
        _refuse_outsider(sites, next(iter(of_data)))
    return of_data[holding_all[0]]


def _refuse_outsider(sites: list[dict[str, Any]], plate: str) -> None:
    outside = next(site for site in sites if plate not in [frame.name for frame in plates_of(site)])
    others = ", ".join(repr(frame.name) for frame in plates_of(outside))
    if others and any(
        site["name"] == outside["name"] and plate in [frame.name for frame in plates_of(site)] for site in sites
    ):
        raise ValueError(
            f"model, guide: expected site {outside['name']!r} in plates of the same names; got {plate!r} in one of "
            f"them, and {others} in the other; give them one name."
        )
    if outside["infer"].get("is_auxiliary"):
        raise ValueError(
            f"guide: expected one density for each datum; got {outside['name']!r}, an automatic guide's draw of all "
            "latents of all data together; use AutoNormal, or write the guide by hand."
        )
    kind = "observed" if outside["is_observed"] else "a global latent"
    raise ValueError(
        f"model, guide: expected every site inside the plate {plate!r} over data; got site {outside['name']!r} outside "
        f"of it, {kind}; log p(x) has no value for each datum then: fix its value and leave its density out, "
        f"poutine.block(poutine.condition(model, data={{{outside['name']!r}: ...}}), hide=[{outside['name']!r}]), or "
        "move it into the plate, under the same name in model and guide."
    )


def refuse_subsampling(trace: poutine.Trace) -> None:
    """Rows that a plate takes of others are not those that were asked for, or have parameters in other places."""
    for name, site in trace.nodes.items():
        if type(site.get("fn")).__name__ == "_Subsample" and len(site["value"]) < site["fn"].size:
            raise ValueError(
                "model, guide: expected plates of the rows to evaluate, and no others; got plate "
                f"{name!r}, which takes {len(site['value'])} of {site['fn'].size}; call them without subsample_size or "
                "num_data, and let the size of a plate of your own be an argument that is len(x) by default."
            )


def refuse_impossible_data(observed: dict[str, Any]) -> None:
    """As Pyro's validation would: grey pixels, say, have no likelihood under a Bernoulli."""
    for name, site in observed.items():
        if not site["fn"].support.check(site["value"]).all():
            low, high = site["value"].min().item(), site["value"].max().item()
            raise ValueError(
                f"model: expected observed values in the support of their distribution, {site['fn'].support}; got "
                f"values from {low:g} to {high:g} at site {name!r}; transform the data, or take another distribution."
            )


def refuse_autocast() -> None:
    """Half precision moves an ELBO by tenths of a nat."""
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            raise ValueError(
                f"model, guide: expected evaluation in full precision; got autocast to "
                f"{torch.get_autocast_dtype(device)}; leave torch.autocast outside, or disable it inside the model."
            )


@contextmanager
def refusing_noisy_modules() -> Iterator[None]:
    """Stop at a module in training mode whose noise or statistics the data of a batch would share."""

    def refuse(module: nn.Module, args: Any) -> None:
        refuse_autocast()
        noisy = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
        if module.training and isinstance(module, noisy):
            raise ValueError(
                f"model, guide: expected modules in evaluation mode; got {type(module).__name__} in training mode, "
                "where the data of a batch share noise; call .eval() first."
            )

    handle = nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()
