"""Refuse what Pyro's SVI would let pass silently, or with a warning that is easily lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.util import check_site_shape
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._options import refusing_unknown_options
from pyro_vae._private import tree_leaves
from pyro_vae._random import forked_generator
from pyro_vae.program.automatic import refuse_automatic_points
from pyro_vae.program.masks import elements_of, mask_of
from pyro_vae.program.points import OtherPoints, delta_of
from pyro_vae.program.refusals import refuse_other_names
from pyro_vae.program.sites import drawn_sites, plates_of, sample_sites

__all__ = ["check_program"]


@refusing_unknown_options
def check_program(
    model: Callable[..., Any], guide: Callable[..., Any], *args: Any, kwargs: Mapping[str, Any] | None = None
) -> None:
    """Run model and guide once, as the first step of Pyro's `SVI` would, and refuse what it would train wrongly.

    Pyro goes on, or only warns, where a guide leaves out a latent site (which is then drawn from the prior), where
    plates or scales of model and guide differ (and with them the weight of the KL term), and where a network uses other
    parameters than those under its name in the parameter store (which then never train). Call it before a loop over
    `svi.step`, with the arguments of a step.

    The parameter store and the state of torch's CPU generator are left as they were. Modules in training mode see one
    batch, as in a step, and an automatic guide is set up.

    Args:
        model, guide: a Pyro program and its guide, of any kind.
        args: what both are called with, by position.
        kwargs: what both are called with by name, a dictionary.

    Raises:
        ValueError: for a latent site of the model that is missing in the guide, and is neither enumerated nor a point
            (Delta); for a point of the model at which the guide draws something else; for a site of the guide that is
            no latent of the model; for plates, scales or masks of a site that differ (masks are
            compared number by number, whatever made them: `poutine.mask`, `Distribution.mask`, `obs_mask`); for a site
            whose shape is not that of its plates; for parameters that are used but not in the store; and if all
            parameters are frozen. Errors of model, guide and Pyro's validation are raised as they are.

    Examples:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     scale = pyro.param("scale", torch.tensor(1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("latent", dist.Normal(x / 2, scale))
        >>> check_program(model, guide, torch.zeros(3))
        Traceback (most recent call last):
        ValueError: guide: expected it to draw every latent site of the model; got no site 'z', but 'latent', which the
        model has not; add it to the guide under that name, or, if it is data, observe it in the model with obs=...
    """
    _checks.program("model", model)
    _checks.program("guide", guide)
    keywords = _checks.keyword_arguments(kwargs)
    with _leaving_the_store():
        refuse_automatic_points(guide, args, keywords)
        guide_trace, model_trace = _run(model, guide, args, keywords)
        _refuse_mismatch(model_trace, guide_trace)
        _refuse_strays(model_trace, guide_trace, (args, keywords))


@contextmanager
def _leaving_the_store() -> Iterator[None]:
    """Restore Pyro's parameter store afterwards, without parameters that were made meanwhile."""
    store = pyro.get_param_store()
    state = store.get_state()
    try:
        yield
    finally:
        store.clear()
        store.set_state(state)


def _refuse_mismatch(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> None:
    """Refuse sites, plates, scales and masks of model and guide that differ."""
    # A guide made by a handler of Pyro's runs the model itself, and observes what the model observes.
    guide_sites = {name: site for name, site in sample_sites(guide_trace) if not site["is_observed"]}
    model_sites = dict(sample_sites(model_trace))
    _refuse_data_of_the_guide(model_sites, dict(sample_sites(guide_trace)))
    left_out = {name for name in model_sites.keys() - guide_sites.keys() if _needs_no_draw(model_sites[name])}
    refuse_other_names({name: site for name, site in model_sites.items() if name not in left_out}, guide_sites)
    for name in guide_sites.keys() & model_sites.keys():
        _checks.same_plates(name, *map(plates_of, (model_sites[name], guide_sites[name])))
        _refuse_other_scales(model_sites[name], guide_sites[name])
        _refuse_other_masks(model_sites[name], guide_sites[name])
    for site in [*model_sites.values(), *guide_sites.values()]:
        check_site_shape(site, math.inf)


def _refuse_data_of_the_guide(model_sites: Mapping[str, Any], guide_sites: Mapping[str, Any]) -> None:
    """Refuse data that the guide alone observes: SVI would divide by their density, and make them unlikely."""
    for name in guide_sites.keys() - model_sites.keys():
        site = guide_sites[name]
        if site["is_observed"] and not site["infer"].get("is_auxiliary") and not isinstance(site["fn"], Unit):
            raise ValueError(
                f"guide: expected it to observe nothing that the model does not; got data at site {name!r}; observe "
                "them in the model, or swap model and guide, if they are the wrong way round."
            )


def _run(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[poutine.Trace, poutine.Trace]:
    """Trace the guide and the model that replays it, with log densities."""
    with forked_generator(torch.device("cpu")), pyro.validation_enabled(True):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        with OtherPoints(drawn_sites(guide_trace)) as points:
            try:
                model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
            finally:  # also where such a draw is why the model does not run
                points.refuse()
        for trace in (guide_trace, model_trace):
            trace.compute_log_prob()
    return guide_trace, model_trace


def _needs_no_draw(site: dict[str, Any]) -> bool:
    """Tell whether a site is enumerated, or a point of what is before it."""
    return not site["is_observed"] and (
        site["infer"].get("enumerate") == "parallel" or delta_of(site["fn"]) is not None
    )


def _refuse_other_scales(model_site: dict[str, Any], guide_site: dict[str, Any]) -> None:
    of_model, of_guide = (torch.as_tensor(site["scale"], dtype=torch.float64) for site in (model_site, guide_site))
    if not torch.isclose(of_model, of_guide).all():
        raise ValueError(
            f"guide: expected site {model_site['name']!r} with the scale that it has in the model, "
            f"{of_model.max().item():g}; got {of_guide.max().item():g}; put both into the same plates (subsampled "
            "alike, with the same num_data) and into the same poutine.scale: else the KL term has another weight than "
            "was meant."
        )


def _refuse_other_masks(model_site: dict[str, Any], guide_site: dict[str, Any]) -> None:
    of_model, of_guide = torch.broadcast_tensors(*map(_elementwise_mask, (model_site, guide_site)))
    if torch.equal(of_model, of_guide):
        return
    name = model_site["name"]
    raise ValueError(
        f"guide: expected site {name!r} with the mask that it has in the model, which keeps {int(of_model.sum())} of "
        f"{of_model.numel()}; got one that keeps {int(of_guide.sum())} of {of_guide.numel()}; {_same_mask(name)}."
    )


def _same_mask(name: str) -> str:
    """Say how to give a guide's site the model's mask, which `pyro.sample(..., obs_mask=...)` makes silently."""
    if name.endswith("_unobserved"):
        return (
            "where it comes of pyro.sample(..., obs_mask=obs_mask) in the model, put the guide's site into "
            "poutine.mask(mask=~obs_mask), as AutoNormalMessenger does by itself: else the guide's entropy counts "
            "where the model's density does not, and grows"
        )
    return "put both into the same poutine.mask: else one density counts without the other"


def _elementwise_mask(site: dict[str, Any]) -> Tensor:
    """Return which numbers of a site count, in a shape that broadcasts with its value."""
    mask = mask_of(site)
    return mask.reshape([*mask.shape, *[1] * elements_of(site).fn.event_dim])


def _refuse_strays(model_trace: poutine.Trace, guide_trace: poutine.Trace, given: Any) -> None:
    """Refuse parameters that the densities depend on and SVI does not find in the traces."""
    objective = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
    arguments = {id(value) for value in tree_leaves(given)}
    used = [leaf for leaf in _leaves(objective) if id(leaf) not in arguments]
    stored = {
        name: _unconstrained(site["value"])
        for trace in (model_trace, guide_trace)
        for name, site in trace.nodes.items()
        if site["type"] == "param"
    }
    registered = {id(value) for value in stored.values()}
    stray = next((value for value in used if id(value) not in registered), None)
    if stray is not None:
        shadows = sorted(name for name, value in stored.items() if value.shape == stray.shape and _is_idle(value, used))
        where = f"another of its shape lies there as {shadows[0]!r}" if shadows else "it is not there"
        raise ValueError(
            "model, guide: expected every parameter that is used in Pyro's parameter store, where SVI looks for them; "
            f"got one of shape {tuple(stray.shape)}, and {where}; register its module by pyro.module under a name of "
            "its own, or freeze it by requires_grad_(False); call pyro.clear_param_store() if a module of that name is "
            "gone."
        )
    if not used:
        raise ValueError(
            "model, guide: expected a parameter to train; got none that the densities depend on and that requires a "
            "gradient; unfreeze a module by requires_grad_(True), or leave the optimizer out."
        )


def _unconstrained(value: Any) -> Tensor:
    """Return the store's tensor; where a `PyroModule` with local parameters runs, Pyro keeps no link to it."""
    return value.unconstrained() if hasattr(value, "unconstrained") else value


def _is_idle(value: Tensor, used: list[Tensor]) -> bool:
    return all(value is not other for other in used)


def _leaves(value: Tensor | float) -> Iterator[Tensor]:
    """Yield the tensors that a value can be differentiated by."""
    seen: set[Any] = set()
    left = [getattr(value, "grad_fn", None)]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        left += [parent for parent, _ in node.next_functions]
