"""What decides the numbers of an evaluation: the same in each process, and when it goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae import distributed
from pyro_vae._files import bytes_of
from pyro_vae._private import tree_leaves
from pyro_vae._random import seeded
from pyro_vae.program.core import Program

__all__ = ["agree", "identity_of", "parameters_of"]

REMEDY = (
    "give all processes the same data, as each takes its share itself, and the same parameters: torch.manual_seed, or "
    "pv.load"
)


def parameters_of(program: Program) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters that the model asks Pyro's store for, and those that the guide does."""
    one = program.at(torch.zeros(1, dtype=torch.long, device=program.device))
    model, guide = (poutine.trace(each, param_only=True) for each in (one.model, one.guide))
    with torch.no_grad(), seeded(program.device, 0), pyro.validation_enabled(False):
        watched = replace(one, model=model, guide=guide)
        latents, _ = watched.draw(1)
        watched.log_joint(latents)
    of_model, of_guide = ([site["value"] for site in each.trace.nodes.values()] for each in (model, guide))
    return of_model, of_guide


def identity_of(program: Program) -> dict[str, str]:
    """Identify data and parameters by their bits."""
    leaves = tree_leaves((program.args, program.kwargs))
    plain = [leaf for leaf in leaves if isinstance(leaf, (bool, int, float, str))]
    arguments = _sha256_of(leaf for leaf in leaves if isinstance(leaf, Tensor))
    return {"data": f"{arguments} {plain}", "parameters": _sha256_of(chain(*parameters_of(program)))}


def agree(program: Program, **settings: Any) -> None:
    """Refuse to evaluate in processes that would do different things."""
    team = distributed.team()
    if team is not None:
        team.refuse_others("program", identity_of(program) | settings, REMEDY)


def _sha256_of(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()
