"""The state of training that is written by hand, kept so that it goes on where it was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


def keep(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, **more: Any) -> None:
    """Write the state, and what else there is by name, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "generator": torch.get_rng_state()}
    torch.save(state | more, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def go_on(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Take up the state that was kept, and return what else was; nothing where none was."""
    if not path.exists():
        return {}
    state = torch.load(path, weights_only=True)
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["generator"])
    return state
