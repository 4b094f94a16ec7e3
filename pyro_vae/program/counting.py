"""Which parts of the latents count, by the masks of the model."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae._random import seeded
from pyro_vae.program.company import agree
from pyro_vae.program.core import Program
from pyro_vae.program.masks import Counting, elements_of
from pyro_vae.program.refusals import refuse_impossible_data
from pyro_vae.program.runs import Sites
from pyro_vae.program.sites import name_of_latent

__all__ = ["with_masks"]


NUM_MASKED_DRAWS = 64  # to test that nothing that counts depends on what is masked


@torch.no_grad()
def with_masks(program: Program) -> Program:
    """Leave masked latents out of the densities, where nothing that counts depends on them.

    The runs that show the masks also show whether the data are possible.
    """
    counting = _counting(program)
    if not counting:
        return program
    masked = replace(program, counting=counting)
    if not _masked_latents_matter(masked):
        return masked
    if any(each.mask is None for each in counting.values()):
        return program  # the latents' own densities integrate to one, whatever depends on them
    raise ValueError(
        "model: expected masked latents on which nothing depends that counts; got other densities of what counts for "
        "other values of what is masked; mask what depends on it too, or take the mask off the latent, whose prior "
        "then counts."
    )


class _Masked(NamedTuple):
    """What is masked of a latent in some draws."""

    mask: Tensor
    """Which of its parts count, in each of these draws."""
    event_dim: int

    @property
    def by_draw(self) -> bool:
        return bool((self.mask != self.mask[:1]).any())


def _counting(program: Program) -> dict[str, Counting]:
    """Find which parts of the latents count, by the model's masks; refuse data that cannot be."""
    pieces = []
    for some, sites in program.sites_of_pieces():
        refuse_impossible_data(sites.observed)
        pieces.append(_masked(some, sites))
    names = pieces[0].keys()
    if any(piece.keys() != names for piece in pieces):
        return {}
    if any(each.by_draw for piece in pieces for each in piece.values()):
        return {name: Counting(None, each.event_dim) for name, each in pieces[0].items()}
    axis = program.structure.data_axis
    return {
        name: Counting(torch.cat([piece[name].mask[:1] for piece in pieces], axis), each.event_dim)
        for name, each in pieces[0].items()
    }


def _masked(program: Program, sites: Sites) -> dict[str, _Masked]:
    """Find the masked latents; none if the guide draws jointly what the model draws apart."""
    latents, _, drawn = sites
    masked = {name for name, site in latents.items() if elements_of(site).mask is not None}
    if not masked or any(name_of_latent(site) not in latents for site in drawn.values()):
        return {}
    event_dims = {name: max(elements_of(site).fn.event_dim for site in (latents[name], drawn[name])) for name in masked}
    with seeded(program.device, 0), pyro.validation_enabled(False):
        draws, _ = program.draw(NUM_MASKED_DRAWS)
        masks = program.parts_that_count(draws, event_dims)
    return {name: _Masked(masks[name], event_dim) for name, event_dim in event_dims.items()}


def _masked_latents_matter(program: Program) -> bool:
    """Tell whether what counts depends on what is masked: log p(x) would then integrate over a flat density."""
    for rows in program.rows_at_a_time():
        some = program.at(rows)
        with seeded(rows.device, 0), pyro.validation_enabled(False):
            (latents, _), (others, _) = some.draw(NUM_MASKED_DRAWS), some.draw(NUM_MASKED_DRAWS)
            before, after = some.log_joint(latents), some.log_joint(some.exchanged(latents, others))
        if not all(map(agree, before, after)):
            return True
    return False
