"""What several processes settle before they train together."""

from __future__ import annotations

from typing import Any

from pyro.infer import ELBO

from pyro_vae.distributed import Team
from pyro_vae.training.batches import Batches
from pyro_vae.training.config import code_of
from pyro_vae.training.run import Run
from pyro_vae.training.shares import Shares
from pyro_vae.training.trainee import Trainee

__all__ = ["agree", "folder_of", "shares_of"]


def agree(team: Team | None, config: dict[str, Any] | None, trainee: Trainee, accumulate: int) -> None:
    """Refuse to train in processes that would do different things."""
    if team is not None and config is not None:
        team.require(trainee.device)
        code = {"code": code_of(trainee.model, trainee.guide), "accumulate": accumulate}
        team.refuse_others("program", config | code, "start all processes with the same code, data and settings")


def folder_of(run: Any, config: dict[str, Any], resume: Any, team: Team | None) -> Run | None:
    """Open the run's folder, in the first of several processes."""
    if team is None:
        return Run(run, config, resume)
    opened: list[Run] = []
    team.by_the_first(lambda: opened.append(Run(run, config, resume)))
    return opened[0] if opened else None


def shares_of(
    trainee: Trainee, team: Team | None, accumulate: int, objective: ELBO, train: Batches, batch_size: int
) -> Shares | None:
    """Share batches among processes, if there are several, that begin with the parameters of the first."""
    if team is None and accumulate == 1:
        return None
    number = accumulate * (1 if team is None else team.size)
    if number > min(batch_size, train.num_data):
        error = ValueError(
            f"batch_size: expected a row for each of {number} shares, of {number // accumulate} processes and "
            f"accumulate={accumulate}; got {batch_size} of {train.num_data} data; take larger batches, or fewer shares."
        )
        if team is not None:
            team.leave_the_word_to(0, error)
        raise error
    if team is not None:
        trainee.load(team.told({name: tensor.detach().cpu() for name, tensor in trainee.tensors().items()}), "program")
    shares = Shares(trainee, team, accumulate)
    shares.check(objective, train.first())
    return shares
