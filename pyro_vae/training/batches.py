"""Batches of an epoch: rows of tensors in memory, or what a torch data set yields."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from pyro_vae import _checks
from pyro_vae._random import seed_for, seeded
from pyro_vae.data.dataset import Dataset, from_tensor
from pyro_vae.vae import VAE

__all__ = ["Batches", "Rows", "batches_of"]

Batch = tuple[Any, ...]
DRAWN_TOGETHER = 1_000_000
"""The most numbers in batches that are drawn together; a single batch may have more."""
SAMPLERS = (torch_data.SequentialSampler, torch_data.RandomSampler)


class Batches(ABC):
    """The data of an epoch, in an order and with noise that depend on the seed and the epoch alone.

    So training that is resumed in the middle of an epoch sees what it would have seen.
    """

    num_data: int
    """How many data an epoch has."""
    num_batches: int
    seed: int

    @abstractmethod
    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from the one that is `first`."""

    @abstractmethod
    def rows(self, epoch: int, place: int) -> list[int] | None:
        """Return which data are in a batch, counted from 0; None if that cannot be known."""

    @abstractmethod
    def one(self) -> Batch:
        """Return the first datum alone."""

    @abstractmethod
    def evaluated(self, most: int) -> Batch | None:
        """Return up to so many data as they are evaluated; None if they are not in memory."""

    def first(self) -> Batch:
        """Return the first batch of the first epoch."""
        return next(iter(self.epoch(0)))

    def _seed_of(self, purpose: str, *place: int) -> int:
        return seed_for(self.seed, f"{purpose} {place}") % 2**32


class Rows(Batches):
    """Tensors in memory, the first of them x; data with dynamic binarization are drawn anew for each batch."""

    def __init__(self, dataset: Dataset, context: tuple[Tensor, ...], size: int, drop_last: bool, seed: int) -> None:
        self.dataset, self.context, self.size, self.seed = dataset, context, size, seed
        whole = len(dataset) // size
        self.num_batches = whole if drop_last else math.ceil(len(dataset) / size)
        self.num_data = whole * size if drop_last else len(dataset)
        if not self.num_batches:
            raise ValueError(
                f"batch_size: expected at most the {len(dataset)} data, where the last batch is dropped; got {size}; "
                "take a smaller one, or keep the last."
            )

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        device, order = self.dataset.device, self._order(epoch)
        num_together = max(1, DRAWN_TOGETHER // max(1, self.size * self.dataset.x[0].numel()))
        groups = order.split(num_together * self.size)
        for place, rows in enumerate(groups):
            if (place + 1) * num_together > first:
                with seeded(device, self._seed_of("binarization", epoch, place)):
                    group = self._of(rows)
                batches = zip(*(tensor.split(self.size) for tensor in group), strict=True)
                yield from islice(batches, max(0, first - place * num_together), None)

    def rows(self, epoch: int, place: int) -> list[int]:
        return self._order(epoch).split(self.size)[place].tolist()

    def _order(self, epoch: int) -> Tensor:
        device = self.dataset.device
        with seeded(device, self._seed_of("order", epoch)):
            return torch.randperm(len(self.dataset))[: self.num_data].to(device)

    def one(self) -> Batch:
        with seeded(self.dataset.device, 0):
            return self._of(torch.zeros(1, dtype=torch.long, device=self.dataset.device))

    def evaluated(self, most: int) -> Batch:
        return (self.dataset.x[:most], *(tensor[:most] for tensor in self.context))

    def _of(self, rows: Tensor) -> Batch:
        return (self.dataset.batch(rows), *(tensor.index_select(0, rows) for tensor in self.context))


class Loaded(Batches):
    """What a torch `DataLoader` yields, whose own order and noise come from a generator of their own."""

    def __init__(self, loader: torch_data.DataLoader[Any], device: torch.device, seed: int) -> None:
        self.loader, self.device, self.seed = loader, device, seed
        try:
            self.num_batches = len(loader)
            self.num_data = self.num_rows = len(loader.dataset)  # type: ignore[arg-type]
        except TypeError as error:
            raise TypeError(
                f"data: expected a data set whose length is known; got {type(loader.dataset).__name__} ({error}); give "
                "it __len__."
            ) from error
        if loader.drop_last and loader.batch_size is not None:
            self.num_data = self.num_batches * loader.batch_size

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        devices = [self.device] if self.device.type == "cuda" else []
        state, iterator = torch.get_rng_state(), None
        for place in range(self.num_batches):
            with torch.random.fork_rng(devices=devices):
                if iterator is None:
                    torch.manual_seed(self._seed_of("loader", epoch))
                    iterator = iter(self.loader)
                else:
                    torch.set_rng_state(state)
                batch = next(iterator, None)
                state = torch.get_rng_state()
            if batch is None:
                return
            if place >= first:
                yield self._moved(batch)

    def rows(self, epoch: int, place: int) -> list[int] | None:
        """Ask the loader's own sampler, if it is one of torch's that draws from the generator that `epoch` seeds."""
        sampler = self.loader.batch_sampler
        is_torchs = type(sampler) is torch_data.BatchSampler and type(sampler.sampler) in SAMPLERS
        if not is_torchs or self.loader.generator is not None:
            return None
        indices: Any = torch_data.DataLoader(range(self.num_rows), batch_sampler=sampler, collate_fn=list)  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed_of("loader", epoch))
            return next(islice(iter(indices), place, None))

    def one(self) -> Batch:
        return tuple(value[:1] if isinstance(value, Tensor) else value for value in self.first())

    def evaluated(self, most: int) -> None:
        return None

    def _moved(self, batch: Any) -> Batch:
        values = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        return tuple(value.to(self.device) if isinstance(value, Tensor) else value for value in values)


def batches_of(
    name: str, data: Any, vae: VAE | None, device: torch.device, size: int, drop_last: bool, seed: int
) -> Batches:
    """Take a `Dataset`, a tensor or array, a tuple `(x, *context)`, a torch `Dataset` or a `DataLoader`."""
    if isinstance(data, torch_data.DataLoader):
        return Loaded(data, device, seed)
    if isinstance(data, torch_data.Dataset):
        return Loaded(torch_data.DataLoader(data, size, shuffle=True, drop_last=drop_last), device, seed)
    x, *context = data if isinstance(data, (tuple, list)) else (data,)
    if context and vae is not None and not vae.model.datum.context_shapes and not isinstance(x, list):
        raise TypeError(
            f"{name}: expected x alone, for a VAE without context_shapes; got a {type(data).__name__} of {len(data)}, "
            "as a data loader yields them with labels; unpack it, or make a VAE that takes them."
        )
    dataset = x.to(device) if isinstance(x, Dataset) else _as_dataset(name, _moved(name, x, device), vae)
    if vae is not None:
        vae.check(dataset.x, name)
    names = [f"{name}[{i}]" for i in range(1, len(context) + 1)]
    tensors = tuple(
        _checks.tensor(each, _moved(each, value, device)) for each, value in zip(names, context, strict=True)
    )
    for each, tensor in zip(names, tensors, strict=True):
        if len(tensor) != len(dataset):
            raise ValueError(
                f"{each}: expected one row for each of the {len(dataset)} data; got {len(tensor)}; pass as many."
            )
    _check_context(name, vae, tensors)
    return Rows(dataset, tensors, size, drop_last, seed)


def _moved(name: str, value: Any, device: torch.device) -> Any:
    """Move a tensor or an array to where the program is trained; anything else is for the checks."""
    value = _checks.tensor(name, value) if isinstance(value, np.ndarray) else value
    return value.to(device) if isinstance(value, Tensor) and not value.is_meta else value


def _as_dataset(name: str, x: Any, vae: VAE | None) -> Dataset:
    """Take a tensor; what a VAE has checked may be incomplete."""
    return from_tensor(x) if vae is None else from_tensor(vae.check(x, name), missing="keep")


def _check_context(name: str, vae: VAE | None, context: tuple[Tensor, ...]) -> None:
    if vae is None:
        return
    shapes = vae.model.datum.context_shapes
    if len(shapes) != len(context):
        raise ValueError(
            f"{name}: expected x and {len(shapes)} further tensors, for context_shapes={shapes}; got {len(context)}; "
            "pass a tuple (x, *context)."
        )
    vae.model.check_context(context)
