"""What a run of a (model, guide) pair shows: its plate over data, and why it may have no log p(x) for each datum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Empirical, SineBivariateVonMises, SineSkewed, Unit, VonMises
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_site_shape
from torch import Tensor, nn

from pyro_vae._private import BatchNorm, Dropout
from pyro_vae._random import seeded
from pyro_vae.program.draws import SIDE_BY_SIDE, Way
from pyro_vae.program.masks import elements_of
from pyro_vae.program.summing import NOTHING, Summed, summing

ENUMERABLE = "has_enumerate_support"
"""What Pyro's distributions say of themselves that have a list of values."""
UNSIZED = -1
"""The size of a plate that was given none."""


class NothingToDraw(Exception):
    """All latents are summed out. The argument is the dimension of data."""


@dataclass(frozen=True)
class Structure:
    """Where data and draws lie among the batch dimensions, counted from the right (negative)."""

    data_dim: int
    particle_dim: int
    amortized: bool
    """Whether the pair runs on any number of rows. A guide with parameters for each datum runs on all of them only."""
    draws: str = SIDE_BY_SIDE
    """How several draws are run at once: an arrangement."""
    latents: frozenset[str] = frozenset()
    """The model's latent sites, but for those that are summed out."""
    summed: Summed = NOTHING
    """Discrete latent sites that are summed out."""
    summed_in_guide: Summed = NOTHING
    """Those of them that the guide draws."""
    auxiliary: frozenset[str] = frozenset()
    """What else the guide draws."""
    guide_has_density: bool = True
    """Whether the guide's density is known at values that it has not drawn."""
    can_draw_prior: bool = True
    """Whether the latents can be drawn from the model."""
    not_amortized_because: str = ""
    """What went wrong on other numbers of rows."""

    @property
    def data_axis(self) -> int:
        """Where data lie in values with draws, counted from the left: draws come first."""
        return self.data_dim - self.particle_dim


@torch.no_grad()
def initialise(guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> poutine.Trace:
    """Run the guide once on all data: parameters that it makes at its first call get the size that they should have."""
    with poutine.block(), seeded(args[0].device, 0), refusing_noisy_modules():
        try:
            return _trace(guide, args, kwargs)
        except TypeError as error:
            raise TypeError(
                f"model, guide: expected programs that run on the {len(args)} arguments by position and those of "
                f"kwargs; got {error}; pass options by name, num_samples=1000, and what the program takes by name in "
                "kwargs={...}."
            ) from error


@torch.no_grad()
def look_at(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plate: str | int | None,
    amortized: bool,
    way: Way,
) -> Structure:
    """Read the structure of the pair off a run on these rows, or raise an error that says what it lacks."""
    with poutine.block(), seeded(args[0].device, 0), refusing_noisy_modules():
        with pyro.validation_enabled(True):  # of parameters, above all NaN
            guide_trace = _trace(guide, args, kwargs)
            enumerated = _enumerated(model, guide_trace, args, kwargs, way)
        with pyro.validation_enabled(False):  # a draw outside the prior's support is no error: its weight is zero
            guide_trace = _trace(guide, args, kwargs)
            model_trace = _model_trace(model, guide_trace, enumerated, args, kwargs)
            for trace in (guide_trace, model_trace):
                refuse_subsampling(trace)
                _refuse_draws_as_distributions(trace)
                with refusing_what_has_no_batch():
                    trace.compute_log_prob()
    guide_sites, model_sites = drawn_sites(guide_trace), dict(sample_sites(model_trace))
    _refuse_half_precision({**guide_sites, **model_sites})
    sites = [*model_sites.values(), *guide_sites.values()]
    data_dim = _data_dim(sites, len(args[0]), plate)
    deepest = min([data_dim, *(frame.dim for site in sites for frame in plates_of(site))])
    for site in sites:
        if data_dim in [frame.dim for frame in plates_of(site)]:
            check_site_shape(site, -deepest)
    summed = enumerated.summed
    with_draws = {name: site for name, site in model_sites.items() if name not in summed.names}
    drawn = {name: site for name, site in guide_sites.items() if name not in summed.names}
    if summed and all(site["is_observed"] for site in with_draws.values()):
        raise NothingToDraw(data_dim)
    _refuse_mismatch(with_draws, drawn)
    _refuse_densities_without_volume(with_draws, drawn)
    latents = frozenset(name for name, site in with_draws.items() if not site["is_observed"])
    return Structure(
        data_dim=data_dim,
        particle_dim=deepest - 1,
        amortized=amortized,
        draws=way.draws,
        latents=latents,
        summed=summed,
        summed_in_guide=summed.only(guide_sites),
        auxiliary=frozenset(drawn) - latents,
    )


class _Enumerated(NamedTuple):
    """Latents that are summed out, and the first dimension that is free for their values."""

    summed: Summed
    first_dim: int | None
    """None if the values are draws."""


def enumerable(guide_sites: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Find the sites of a guide with a list of values, and tell which are marked to be enumerated."""
    return {
        name: site["infer"].get("enumerate") == "parallel"
        for name, site in guide_sites.items()
        if getattr(site["fn"], ENUMERABLE, False)
    }


def _enumerated(
    model: Callable[..., Any],
    guide_trace: poutine.Trace,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    way: Way,
) -> _Enumerated:
    """Find what to sum out: what the guide enumerates, if asked, and what it leaves out of a list of values."""
    drawn = drawn_sites(guide_trace)
    found = {}
    if way.sums_guide:
        marks = enumerable(drawn)
        found = {name: drawn[name] for name, is_marked in marks.items() if is_marked or not any(marks.values())}
    try:
        model_sites = dict(sample_sites(_trace(poutine.replay(model, trace=guide_trace), args, kwargs)))
    except Exception:  # A model may be written for all values at once, and not run with one for each datum.
        if not found:
            raise
        model_sites = {}
    for name, site in model_sites.items():
        if name not in drawn and not site["is_observed"] and getattr(site["fn"], ENUMERABLE, False):
            found[name] = site
    sites = [*drawn.values(), *model_sites.values()]
    deepest = min((frame.dim for site in sites for frame in plates_of(site)), default=-1)
    expanded = frozenset(name for name, site in found.items() if site["infer"].get("expand", name in drawn))
    enumerated = _Enumerated(Summed(frozenset(found), expanded), deepest - 1 if way.in_dimensions else None)
    if found:
        _model_trace(model, guide_trace, enumerated, args, kwargs)
    return enumerated


def _model_trace(
    model: Callable[..., Any],
    guide_trace: poutine.Trace,
    enumerated: _Enumerated,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> poutine.Trace:
    if not enumerated.summed or enumerated.first_dim is None:
        return _trace(poutine.replay(model, trace=guide_trace), args, kwargs)
    given = guide_trace.copy()
    for name in enumerated.summed.names & given.nodes.keys():
        given.remove_node(name)
    with_all_values = summing(model, enumerated.summed, enumerated.first_dim)
    return _trace(poutine.replay(with_all_values, trace=given), args, kwargs)


def _trace(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> poutine.Trace:
    with refusing_what_has_no_batch():
        return poutine.trace(fn).get_trace(*args, **kwargs)


@contextmanager
def refusing_what_has_no_batch() -> Iterator[None]:
    """Explain the errors of Pyro's distributions that cannot be expanded or evaluated."""
    try:
        yield
    except (NotImplementedError, AssertionError, IndexError) as error:
        said = (str(error).splitlines() or [""])[0] or "no reason given"
        if "enumerate_support" in said:
            raise ValueError(
                "model, guide: expected discrete latents with one list of values for all elements, where no guide "
                f"draws them; got a list that torch cannot make: {said.rstrip('.')}; draw them in the guide, or write "
                "them as a Categorical over all values, with probability 0 for those that an element cannot take."
            ) from error
        raise ValueError(
            "model, guide: expected distributions that can be drawn from and evaluated for a batch in a plate; got "
            f"{type(error).__name__}: {said}; use another (LKJCholesky for LKJ, say), or write one with `expand`, "
            "`sample` and `log_prob`."
        ) from error


def sample_sites(trace: poutine.Trace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the sites that have a density; a plate's choice of rows and `pyro.deterministic` have none."""
    for name, site in prune_subsample_sites(trace).nodes.items():
        if site["type"] == "sample" and not site["infer"].get("_deterministic"):
            yield name, site


def drawn_sites(trace: poutine.Trace) -> dict[str, dict[str, Any]]:
    """Return the sites of a guide that are part of log q, without what it observes, such as data or a factor."""
    return {name: site for name, site in sample_sites(trace) if not site["is_observed"]}


def name_of_latent(site: dict[str, Any]) -> str:
    """Return the latent that a guide's site stands for: Pyro's automatic guides draw `z_unconstrained` for `z`."""
    name: str = site["name"]
    return name.removesuffix("_unconstrained") if site["infer"].get("is_auxiliary") else name


def plates_of(site: dict[str, Any]) -> list[Any]:
    """List the frames of the plates that give a site its batch dimensions."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def _refuse_half_precision(sites: dict[str, Any]) -> None:
    for name, site in sites.items():
        if site["log_prob"].dtype in HALF:
            raise ValueError(
                f"model, guide: expected log densities in float32 or float64; got {site['log_prob'].dtype} at site "
                f"{name!r}; call .float() on x and on the parameters."
            )


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
    """Raise unless the guide draws the model's latent sites, and nothing else."""
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
    """Refuse a point, which has no density to weigh by, unless it is the image of an auxiliary draw.

    Pyro's automatic guides make such images. An auxiliary draw without one is refused too.
    """
    auxiliary = [name for name, site in guide_sites.items() if site["infer"].get("is_auxiliary")]
    points = [
        name
        for name in guide_sites.keys() & model_sites.keys()
        if is_point(guide_sites[name]) and not is_point(model_sites[name])
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


def _refuse_draws_as_distributions(trace: poutine.Trace) -> None:
    for name, site in sample_sites(trace):
        if any(isinstance(fn, Empirical) for fn in layers_of(site["fn"])):
            raise ValueError(
                f"model, guide: expected densities; got an Empirical at site {name!r}, which is a set of points; fit a "
                "distribution to them, or make them a MixtureSameFamily."
            )


def is_point(site: dict[str, Any]) -> bool:
    """Tell whether a site is a Delta, which has no density."""
    return any(isinstance(fn, Delta) for fn in layers_of(site["fn"]))


def layers_of(fn: Any) -> Iterator[Any]:
    """Yield a distribution, and what it wraps or mixes."""
    yield fn
    for inner in ("base_dist", "component_distribution"):
        if hasattr(fn, inner):
            yield from layers_of(getattr(fn, inner))


HALF = (torch.float16, torch.bfloat16)
CIRCULAR = (VonMises, SineBivariateVonMises, SineSkewed)


def is_circular(fn: Any) -> bool:
    """Tell whether values are angles, though their support is declared to be the real line."""
    return any(isinstance(layer, CIRCULAR) for layer in layers_of(fn))


def is_angle(value: Tensor, batch_ndim: int) -> Tensor:
    """Tell whether angles are between -pi and pi, beyond which a density on a circle repeats."""
    inside = value.abs() <= math.pi + 1e-5
    return inside.flatten(batch_ndim).all(-1) if inside.ndim > batch_ndim else inside


def kind_of(site: dict[str, Any]) -> str:
    """Return what a site's log density is the log of: a "probability", a "density" or a "factor"."""
    if any(isinstance(fn, Unit) for fn in layers_of(site["fn"])):
        return "factor"
    return "probability" if site["fn"].support.is_discrete else "density"


def _data_dim(sites: list[dict[str, Any]], num_rows: int, plate: str | int | None) -> int:
    """Find the batch dimension of data that every site has: a plate over them, or a plain one."""
    names = {frame.name for site in sites for frame in plates_of(site)}
    if isinstance(plate, str) and plate not in names:
        _refuse_without_plate(sites, num_rows, plate)
    dims = [_dims_of_data(site, sites, num_rows, plate) for site in sites]
    common = set.intersection(*dims)
    if len(common) > 1:
        held = sorted({frame.name for site in sites for frame in plates_of(site) if frame.dim in common})
        raise ValueError(
            f"plate: expected one plate over the data; got {len(common)} that hold every site, "
            f"{', '.join(map(repr, held))}; say which with plate=..."
        )
    if not common:
        _refuse_without_plate(sites, num_rows, plate)
    return common.pop()


def _dims_of_data(
    site: dict[str, Any], sites: list[dict[str, Any]], num_rows: int, plate: str | int | None
) -> set[int]:
    """Find the dimensions of a site that may be those of the data."""
    if isinstance(plate, int):
        return {plate}
    frames = plates_of(site)
    named = [frame for frame in frames if frame.name == plate] or frames
    found = {frame.dim for frame in named if _size_of(frame, sites) == num_rows}
    if found:
        return found
    shape = site["fn"].batch_shape
    plain = {dim for dim in range(-len(shape), 0) if shape[dim] == num_rows}
    return plain - {frame.dim for frame in frames} - set(site["infer"].get("_dim_to_id", ()))


def _refuse_without_plate(sites: list[dict[str, Any]], num_rows: int, plate: str | int | None) -> None:
    frames = {frame.name: frame for site in sites for frame in plates_of(site)}
    sizes = {name: _size_of(frame, sites) for name, frame in frames.items()}
    of_data = [name for name, size in sizes.items() if plate in (None, name) and size == num_rows]
    if of_data:
        dim = frames[of_data[0]].dim
        outside = next(site for site in sites if dim not in _dims_of_data(site, sites, num_rows, plate))
        _refuse_outsider(outside, sites, of_data[0])
    found = ", ".join(f"{name!r} of size {size}" for name, size in sizes.items()) or "no plate"
    wanted = "a plate" if plate is None else f"a plate {plate!r}"
    raise ValueError(
        f"model, guide: expected {wanted} over the {num_rows} data; got {found}; put all sites into "
        'pyro.plate("data", len(x)), without subsampling.'
    )


def _size_of(frame: Any, sites: list[dict[str, Any]]) -> int:
    """Return the size of a plate; for one without a size, as `pyro.plate("data")`, that of what lies in it."""
    if frame.size != UNSIZED:
        return frame.size
    inside = [site["fn"].batch_shape for site in sites if frame.name in [each.name for each in plates_of(site)]]
    return max((shape[frame.dim] for shape in inside if len(shape) >= -frame.dim), default=1)


def _refuse_outsider(outside: dict[str, Any], sites: list[dict[str, Any]], plate: str) -> None:
    others = ", ".join(repr(frame.name) for frame in plates_of(outside))
    if others and any(
        site["name"] == outside["name"] and plate in [frame.name for frame in plates_of(site)] for site in sites
    ):
        raise ValueError(
            f"model, guide: expected site {outside['name']!r} in plates of the same names; got {plate!r} in one of "
            f"them, and {others} in the other; give them one name."
        )
    if outside["infer"].get("is_auxiliary") and kind_of(outside) != "factor":
        raise ValueError(
            f"guide: expected one density for each datum; got {outside['name']!r}, an automatic guide's draw of all "
            "latents of all data together; use AutoNormal, write the guide by hand, leave it out (None), or ask for "
            "one number for all data, joint=True."
        )
    kind = kind_of(outside) if outside["is_observed"] else "a global latent"
    kind = "a factor" if kind == "factor" else "observed" if outside["is_observed"] else kind
    raise ValueError(
        f"model, guide: expected every site inside the plate {plate!r} over data; got site {outside['name']!r} outside "
        f"of it, {kind}; log p(x) has no value for each datum then: fix its value and leave its density out, "
        f"poutine.block(poutine.condition(model, data={{{outside['name']!r}: ...}}), hide=[{outside['name']!r}]), or "
        "move it into the plate, under the same name in model and guide; or ask for one number for all data, "
        "joint=True."
    )


def refuse_subsampling(trace: poutine.Trace) -> None:
    """Refuse subsampling plates: their rows are not those that were asked for, or have parameters in other places."""
    for name, site in trace.nodes.items():
        if type(site.get("fn")).__name__ == "_Subsample" and len(site["value"]) < site["fn"].size:
            raise ValueError(
                "model, guide: expected plates of the rows to evaluate, and no others; got plate "
                f"{name!r}, which takes {len(site['value'])} of {site['fn'].size}; call them without subsample_size or "
                "num_data, and let the size of a plate of your own be an argument that is len(x) by default."
            )


def refuse_impossible_data(observed: dict[str, Any]) -> None:
    """Refuse values outside the support, as Pyro's validation does: a Bernoulli has no likelihood for grey pixels."""
    for name, site in observed.items():
        fn, mask = elements_of(site)
        possible = fn.support.check(site["value"])
        if not possible.all():  # masked values are allowed, and NaN that the distribution takes for missing values
            possible = possible | _stands_for_missing(fn, site["value"])
            possible = possible if mask is None else possible | (~mask & _is_number(fn, site["value"]))
        if not possible.all():
            low, high = site["value"].min().item(), site["value"].max().item()
            raise ValueError(
                f"model: expected observed values in the support of their distribution, {site['fn'].support}; got "
                f"values from {low:g} to {high:g} at site {name!r}; transform the data, or take another distribution."
            )


def _stands_for_missing(fn: Any, value: Tensor) -> Tensor:
    """Find the events that hold NaN and have a density all the same, as under `NanMaskedNormal`."""
    return _any_of_event(value.isnan(), fn.event_dim) & fn.log_prob(value).isfinite()


def _is_number(fn: Any, value: Tensor) -> Tensor:
    """Find the events without NaN. Gradients through NaN are lost even where it is masked."""
    return ~_any_of_event(value.isnan(), fn.event_dim)


def _any_of_event(value: Tensor, event_dim: int) -> Tensor:
    return value.flatten(-event_dim).any(-1) if event_dim else value


def refuse_autocast() -> None:
    """Refuse autocast: half precision moves an ELBO by tenths of a nat."""
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            raise ValueError(
                f"model, guide: expected evaluation in full precision; got autocast to "
                f"{torch.get_autocast_dtype(device)}; leave torch.autocast outside, or disable it inside the model."
            )


@contextmanager
def refusing_noisy_modules() -> Iterator[None]:
    """Refuse modules in half precision, and in training mode where the data of a batch share noise or statistics."""

    def refuse(module: nn.Module, args: Any) -> None:
        refuse_autocast()
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dtype in HALF:
                raise ValueError(
                    f"model, guide: expected parameters in float32 or float64; got {parameter.dtype} in the {name} of "
                    f"a {type(module).__name__}, which moves log densities by tenths of a nat; call .float() first."
                )
        noisy = (BatchNorm, Dropout)
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
