"""Seeds, and generators that are left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch

from pyro_vae._private import seed_generator_of_cpu

__all__ = ["forked_generator", "generators", "seed_for", "seeded", "set_generators", "tile_seed"]


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Draw from a seed here; torch's generators are left as they were."""
    with forked_generator(device):
        seed_generator_of_cpu(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def forked_generator(device: torch.device) -> AbstractContextManager[None]:
    """Leave torch's generators, of the CPU and of this device, as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def generators(device: torch.device) -> list[torch.Tensor]:
    """Return the states of torch's generators, of the CPU and of this device."""
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


def set_generators(device: torch.device, states: list[torch.Tensor]) -> None:
    """Restore what `generators` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def seed_for(seed: int, purpose: str) -> int:
    """Derive a seed for each purpose: the measured run must not repeat the noise of a pilot run."""
    words = [seed % 2**32, seed // 2**32, *purpose.encode()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] % 2**63)


def tile_seed(seed: int, place: int) -> int:
    """Derive a distinct seed for each of 2**32 places: torch's CPU generator uses only 32 bits.

    Places start at a number that the user's seed decides, and are mixed by a bijection (the last step of MurmurHash3).
    """
    mixed = (int(np.random.SeedSequence(seed).generate_state(1)[0]) + place) % 2**32
    mixed = ((mixed ^ mixed >> 16) * 0x85EBCA6B) % 2**32
    mixed = ((mixed ^ mixed >> 13) * 0xC2B2AE35) % 2**32
    return mixed ^ mixed >> 16
