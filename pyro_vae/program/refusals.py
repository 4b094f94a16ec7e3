"""Why a pair, or a run of it, is refused."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Empirical
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae._private import BatchNorm, Dropout
from pyro_vae.program.masks import elements_of
from pyro_vae.program.sites import is_point, layers_of, sample_sites

__all__ = [
    "is_refusal",
    "refuse_autocast",
    "refuse_densities_without_volume",
    "refuse_draws_as_distributions",
    "refuse_half_precision",
    "refuse_impossible_data",
    "refuse_mismatch",
    "refuse_missing_numbers",
    "refuse_other_names",
    "refuse_points",
    "refuse_subsampling",
    "refusing_noisy_modules",
    "refusing_what_has_no_batch",
    "said",
]


@contextmanager
def refusing_what_has_no_batch() -> Iterator[None]:
    """Explain the errors of Pyro's runs: distributions that cannot be expanded or evaluated, and other dimensions.

    What the program itself raises is said as it is, with its place.
    """
    try:
        yield
    except (NotImplementedError, AssertionError, IndexError) as error:
        said = (str(error).splitlines() or [""])[0].rstrip(".") or "no reason given"
        if place := _place_in_program(error):
            raise ValueError(_raised(f"{type(error).__name__}: {said}", place)) from error
        if "enumerate_support" in said:
            raise ValueError(
                "model, guide: expected discrete latents with one list of values for all elements, where no guide "
                f"draws them; got a list that torch cannot make: {said}; draw them in the guide, or write them as a "
                "Categorical over all values, with probability 0 for those that an element cannot take."
            ) from error
        raise ValueError(
            "model, guide: expected distributions that can be drawn from and evaluated for a batch in a plate; got "
            f"{type(error).__name__}: {said}; use another (LKJCholesky for LKJ, say), or write one with `expand`, "
            "`sample` and `log_prob`."
        ) from error
    except (TypeError, ValueError, RuntimeError) as error:
        said, *shapes = str(error).split("\nTrace Shapes:")
        if said.startswith("Shape mismatch inside plate"):
            raise ValueError(
                f"model, guide: expected sites whose batch dimensions are those of plates; got a {said[0].lower()}"
                f"{said[1:]}; declare dimensions of one datum by .to_event(1), or by a plate of their own."
            ) from error
        kind = type(error) if type(error) in (TypeError, ValueError, RuntimeError) else None
        if kind and ": expected " not in said and (place := _place_in_program(error)):
            raise kind(_raised(f"{kind.__name__}: {said.rstrip('.')}", place)) from error
        if shapes and isinstance(error, (TypeError, ValueError)):  # which a trace adds to all errors of a run
            raise (ValueError if isinstance(error, ValueError) else TypeError)(said) from error
        raise


def said(error: Exception) -> str:
    """Return the kind of an error, and its first line."""
    first = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


RAISED = ", raised by your program in "


def _raised(what: str, place: str) -> str:
    return (
        f"model, guide: expected programs that run on these arguments; got {what}{RAISED}{place}; "
        "run it alone, model(*args, **kwargs), and mend it there."
    )


def is_refusal(error: Exception) -> bool:
    """Tell whether an error says what was expected, rather than what a program raised."""
    return "expected" in str(error) and RAISED not in str(error)


NOT_OF_PROGRAMS = {"torch", "pyro", "pyro_vae", *sys.stdlib_module_names} - {"__main__"}
"""Packages whose functions raise what the program that called them did wrong."""


def _place_in_program(error: BaseException) -> str:
    """Return where in a program an error was raised; nothing if a distribution raised it, or nothing of a program."""
    while error.__cause__ is not None:  # Pyro's trace raises it once more
        error = error.__cause__
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if isinstance(frame.f_locals.get("self"), Distribution):
            return ""
        if frame.f_globals.get("__name__", "").split(".")[0] not in NOT_OF_PROGRAMS:
            place = f"{Path(frame.f_code.co_filename).name}:{line} ({frame.f_code.co_name})"
    return place


def refuse_half_precision(sites: dict[str, Any]) -> None:
    """Raise for a site with a log density in float16 or bfloat16."""
    for name, site in sites.items():
        if site["log_prob"].dtype in HALF:
            raise ValueError(
                f"model, guide: expected log densities in float32 or float64; got {site['log_prob'].dtype} at site "
                f"{name!r}; call .float() on x and on the parameters."
            )


def refuse_mismatch(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    """Raise unless the model has latents, which the guide draws, and observes something."""
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
    drawn = {name for name, site in guide_sites.items() if name in latent or not site["infer"].get("is_auxiliary")}
    others = ", ".join(map(repr, sorted(drawn - model_sites.keys())))
    for name in sorted(latent - drawn):
        found = f"no site {name!r}" + (f", but {others}, which the model has not" if others else "")
        mend = "add it to the guide under that name, or, if it is data, observe it in the model with obs=..."
        if name.endswith("_unobserved"):
            mend = (
                "pyro.sample(..., obs_mask=...) makes it of what the mask leaves out: draw it in the guide under "
                "poutine.mask(mask=~obs_mask), or have it integrated out, poutine.mask(mask=obs_mask) in the place of "
                "obs_mask"
            )
        raise ValueError(f"guide: expected it to draw every latent site of the model; got {found}; {mend}")
    for name in sorted(drawn - latent):
        what = "observes it" if name in model_sites else "has none"
        raise ValueError(
            f"guide: expected latent sites of the model alone; got site {name!r}, and the model {what}; rename it, "
            "take it out, or, if it is noise of the guide, give it a density in the model, as a latent on which "
            "nothing depends."
        )


def refuse_densities_without_volume(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    """Refuse a point, which has no density to weigh by, unless it is the image of an auxiliary draw.

    Pyro's automatic guides make such images. An auxiliary draw without one is refused too.
    """
    refuse_points(model_sites, guide_sites)
    auxiliary = _auxiliary(model_sites, guide_sites)
    if auxiliary and not _points(model_sites, guide_sites):
        raise ValueError(
            f"guide: expected latent sites of the model alone; got the auxiliary site {auxiliary[0]!r}, over which "
            "log q would have to be integrated; sum it out in the guide, or give it a density in the model, as a "
            "latent on which nothing depends."
        )


def refuse_points(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    """Refuse a point of the guide where the model has a density, unless it is the image of an auxiliary draw."""
    points = _points(model_sites, guide_sites)
    if points and not _auxiliary(model_sites, guide_sites):
        raise ValueError(
            f"guide: expected densities; got a point (Delta) at site {points[0]!r}, whose weights mean nothing; use "
            "a guide with a density, such as AutoNormal."
        )


def _points(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> list[str]:
    shared = sorted(guide_sites.keys() & model_sites.keys())
    return [name for name in shared if is_point(guide_sites[name]) and not is_point(model_sites[name])]


def _auxiliary(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> list[str]:
    """List the draws of which a guide may make images: points are none."""
    others = {name: site for name, site in guide_sites.items() if name not in model_sites}
    return [name for name, site in others.items() if site["infer"].get("is_auxiliary") and not is_point(site)]


def refuse_draws_as_distributions(trace: poutine.Trace) -> None:
    """Raise for an Empirical, which is a set of points."""
    for name, site in sample_sites(trace):
        if any(isinstance(fn, Empirical) for fn in layers_of(site["fn"])):
            raise ValueError(
                f"model, guide: expected densities; got an Empirical at site {name!r}, which is a set of points; fit a "
                "distribution to them, or make them a MixtureSameFamily."
            )


HALF = (torch.float16, torch.bfloat16)


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
        if _has_density_of_its_own(fn):
            possible = fn.log_prob(site["value"]).isfinite()
        else:
            possible = fn.support.check(site["value"])
        if not possible.all():  # masked values are allowed, and NaN that the distribution takes for missing values
            possible = possible | _stands_for_missing(fn, site["value"])
            possible = possible if mask is None else possible | (~mask & _is_number(fn, site["value"]))
        if not possible.all():
            num_missing = int(site["value"].isnan().sum())
            if num_missing:
                raise ValueError(
                    f"model: expected observed numbers; got NaN at site {name!r}, in {num_missing} of its "
                    f"{site['value'].numel()} numbers; drop these rows; or put numbers in their place, "
                    "obs=x.nan_to_num(0), under poutine.mask or with obs_mask=~x.isnan(), for NaN passes through "
                    "gradients even under a mask; or take a distribution that knows missing values, such as "
                    "NanMaskedNormal."
                )
            low, high = site["value"].min().item(), site["value"].max().item()
            raise ValueError(
                f"model: expected observed values in the support of their distribution, {site['fn'].support}; got "
                f"values from {low:g} to {high:g} at site {name!r}; transform the data, or take another distribution."
            )


def refuse_missing_numbers(args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> None:
    """Explain an error of a distribution whose parameters are NaN: by NaN in the arguments, or in the program."""
    if not str(error).startswith("Expected parameter "):
        return
    arguments = {f"args[{i}]": arg for i, arg in enumerate(args)} | {
        f"kwargs[{name!r}]": kwargs[name] for name in kwargs
    }
    for name, arg in arguments.items():
        if isinstance(arg, Tensor) and (num_missing := int(arg.isnan().sum())):
            raise ValueError(
                f"{name}: expected numbers wherever parameters of distributions are made of them; got NaN in "
                f"{num_missing} of {arg.numel()} numbers; drop these rows; or give networks and formulas "
                "x.nan_to_num(0), and leave missing values to a site that knows them, such as NanMaskedNormal, or one "
                "with obs_mask=~x.isnan()."
            ) from error
    said = " ".join(str(error).split(", but found")[0].split())
    raise ValueError(
        "model, guide: expected distributions with possible parameters; got others, and no NaN in the arguments: "
        f"{said[0].lower()}{said[1:]}; look for NaN among the parameters of networks, and map outputs to the support, "
        "as softplus does for a scale."
    ) from error


def _stands_for_missing(fn: Any, value: Tensor) -> Tensor:
    """Find the events that hold NaN and have a density all the same, as under `NanMaskedNormal`."""
    return _any_of_event(value.isnan(), fn.event_dim) & fn.log_prob(value).isfinite()


def _has_density_of_its_own(fn: Any) -> bool:
    """Whether a class that is not Pyro's replaces `log_prob` and inherits `support`, which then says nothing of it."""
    log_prob, support = (
        next(each for each in type(fn).__mro__ if name in vars(each)) for name in ("log_prob", "support")
    )
    return log_prob is not support and issubclass(log_prob, support) and log_prob.__module__.split(".")[0] not in KNOWN


KNOWN = ("torch", "pyro", "pyro_vae")


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
