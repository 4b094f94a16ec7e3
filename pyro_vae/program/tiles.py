"""Cut draws by data into tiles, whose noise depends on the seed and on their place alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import NamedTuple, TypeVar

import pyro
import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._random import forked_generator, seeded, tile_seed
from pyro_vae.program.core import LogDensities, Program
from pyro_vae.program.joint import Joint, as_it_is
from pyro_vae.program.runs import Latents

__all__ = [
    "TILE_SIZE",
    "Block",
    "Draw",
    "Evaluate",
    "Noise",
    "Strip",
    "Tile",
    "block_width",
    "blocks",
    "evaluating",
    "in_strips",
    "kept",
    "noise",
    "refuse_nan",
    "side_by_side",
    "tile_size",
    "tiles",
    "tiles_of",
    "tiles_of_guide",
    "with_noise",
    "zero_where_unknown",
]

# How many (datum, draw) pairs are drawn together. It fixes which random numbers a draw is made of, so it is a constant
# of each device and no option. On a CPU it also keeps the activations in cache (benchmarks/tile_size.py). On a GPU it
# spreads what is done once a tile: on one H200, 2**20 pairs were faster than 2**18 and 2**22.
TILE_SIZE = {"cpu": 2048, "cuda": 2**20}

Drawn = TypeVar("Drawn")

DrawSome = Callable[[int], tuple[Latents, Tensor]]
"""Draws the given number of latents per datum, and returns them with log q, `(K, N)`."""


class Block(NamedTuple):
    """Neighbouring data, padded to a fixed number so that their noise does not depend on the others asked for."""

    program: Program
    rows: Sequence[int]
    """Their indices among the data that were asked for."""
    columns: slice
    """Their columns in the block."""
    place: int
    """The place of the block's first datum."""

    @property
    def asked_for(self) -> Tensor:
        """The columns of the data that were asked for."""
        return torch.arange(self.columns.start, self.columns.stop, device=self.program.device)

    def part(self, columns: Tensor) -> Block:
        """Restrict the block to these columns. Draw for the whole block and cut with `kept`."""
        rows = [self.rows[0] + column - self.columns.start for column in columns.tolist()]
        return Block(self.program.at(columns), rows, slice(0, len(columns)), self.place)

    def cut(self, width: int) -> list[Block]:
        """Cut the block into narrower ones, and leave out those of which no datum was asked for."""
        if not self.program.structure.amortized:
            return [self]
        found, first = [], self.rows[0] - self.columns.start
        for left in range(self.columns.start // width * width, self.columns.stop, width):
            own = range(max(left, self.columns.start), min(left + width, self.columns.stop))
            places = torch.arange(left, left + width, device=self.program.device)
            rows, columns = range(first + own.start, first + own.stop), slice(own.start - left, own.stop - left)
            found.append(Block(self.program.at(places), rows, columns, self.place + left))
        return found


def blocks(program: Program, width: int, first_index: int = 0) -> Iterator[Block]:
    """Yield the data in blocks cut at multiples of `width`; a guide that is not amortized takes all in one."""
    if not program.structure.amortized:
        yield Block(program, range(program.num_data), slice(0, program.num_data), first_index)
        return
    end = first_index + program.num_data
    for left in range(first_index // width * width, end, width):
        places = torch.arange(left, left + width, device=program.device) - first_index
        rows = range(max(left - first_index, 0), min(left + width, end) - first_index)
        columns = slice(rows.start + first_index - left, rows.stop + first_index - left)
        yield Block(program.at(places.clamp(0, program.num_data - 1)), rows, columns, left)


class Strip(NamedTuple):
    """So many draws of a block, with noise of their own."""

    num_draws: int
    seed: int
    place: int


class Tile(NamedTuple):
    """Some of the draws, for all data of a block."""

    draws: slice
    densities: LogDensities
    latents: Latents
    height: int
    """How many draws, and the last maybe fewer, have noise of their own."""

    def strips(self) -> Iterator[Tile]:
        """Yield the draws that have noise of their own: these do not depend on how many data there are beside."""
        for top in range(self.draws.start, self.draws.stop, self.height):
            draws = slice(top, min(top + self.height, self.draws.stop))
            own = slice(draws.start - self.draws.start, draws.stop - self.draws.start)
            latents = {name: value[own] for name, value in self.latents.items()}
            yield Tile(draws, LogDensities(*(each[own] for each in self.densities)), latents, self.height)


def tiles(program: Program, num_samples: int, seed: int, first_index: int = 0) -> Iterator[tuple[Block, Tile]]:
    """Yield the log densities of `num_samples` draws from the guide for each datum, tile by tile."""
    for block in blocks(program, block_width(program, num_samples), first_index):
        for tile in tiles_of_guide(block, num_samples, seed):
            yield block, tile


def tiles_of_guide(block: Block, num_samples: int, seed: int) -> Iterator[Tile]:
    """Yield the same for the data of one block that were asked for."""
    part = block.part(block.asked_for)
    evaluate = evaluating(
        part.program, in_strips(part.program, kept(block.program, block.program.draw, block.asked_for))
    )
    return tiles_of(part, evaluate, num_samples, seed, block.program.num_data)


def side_by_side(program: Program, each: Sequence[Iterator[Tile]]) -> Iterator[Tile]:
    """Yield the tiles of neighbouring blocks, which have as many draws, as if they were one."""
    if len(each) == 1:
        yield from each[0]
        return
    for tiles in zip(*each, strict=True):
        first = tiles[0]
        densities = LogDensities(
            *(torch.cat(some, 1) for some in zip(*(tile.densities for tile in tiles), strict=True))
        )
        latents = {
            name: torch.cat([tile.latents[name] for tile in tiles], program.structure.data_axis)
            for name in first.latents
        }
        yield first._replace(densities=densities, latents=latents)


Draw = Callable[[Sequence[Strip]], tuple[Latents, Tensor]]
"""Draws strips of latents, one below the other, and returns them with log q, `(K, N)`."""

Evaluate = Callable[[Sequence[Strip]], tuple[Latents, LogDensities]]
"""Draws strips of latents, one below the other, and evaluates their densities."""


def evaluating(program: Program, draw: Draw, joint: Joint = as_it_is) -> Evaluate:
    """Make a function that draws strips, and runs the model once on all of them."""

    def evaluate(strips: Sequence[Strip]) -> tuple[Latents, LogDensities]:
        with torch.no_grad(), forked_generator(program.device), pyro.validation_enabled(False):
            latents, guide = draw(strips)
            prior, likelihood = joint(program, latents)
        return latents, LogDensities(prior, likelihood, guide)

    return evaluate


def zero_where_unknown(evaluate: Evaluate) -> Evaluate:
    """Count a draw for which the model has no number, but NaN, as one of density zero, and warn.

    Another proposal than the guide reaches where no draw of the program does, and where a scale, say, may be rounded to
    zero. What is lost makes log p(x) too low, never too high.
    """

    def evaluated(strips: Sequence[Strip]) -> tuple[Latents, LogDensities]:
        latents, densities = evaluate(strips)
        unknown = (densities.prior + densities.likelihood).isnan()
        unknown = unknown & ~unknown.all(0)  # where no draw has a number, that is said
        if not unknown.any():
            return latents, densities
        _checks.warn(
            "model: expected a density wherever the proposal draws; got NaN at draws far from the guide's, which count "
            "as draws of density zero; log p(x) may be too low, by as much as there is."
        )
        prior, likelihood, guide = densities
        return latents, LogDensities(
            prior.masked_fill(unknown, -torch.inf), likelihood.masked_fill(unknown, 0.0), guide
        )

    return evaluated


def in_strips(program: Program, draw: DrawSome) -> Draw:
    """Draw strips one by one, and lay them one below the other."""

    def draw_strips(strips: Sequence[Strip]) -> tuple[Latents, Tensor]:
        each, log_q = zip(*(with_noise(program, strip, draw) for strip in strips), strict=True)
        return {name: torch.cat([latents[name] for latents in each]) for name in each[0]}, torch.cat(log_q)

    return draw_strips


def with_noise(program: Program, strip: Strip, draw: Callable[[int], Drawn]) -> Drawn:
    """Draw a strip with its noise."""
    with noise(program, strip.seed, strip.place):
        return draw(strip.num_draws)


def tiles_of(block: Block, evaluate: Evaluate, num_samples: int, seed: int, width: int | None = None) -> Iterator[Tile]:
    """Yield the tiles of one block; memory is that of one tile.

    `width` is that of the whole block, where `block` is a part of it. Noise is that of the whole block's tiles, which
    become narrow strips where a part has few of the data: as many as fill a tile are evaluated together.
    """
    program = block.program
    most = max(1, tile_size(program) // (width or program.num_data))
    num_strips = ceil(num_samples / most)
    height = ceil(num_samples / num_strips)
    num_strips = ceil(num_samples / height)
    strips = [
        Strip(min(height, num_samples - i * height), seed, block.place * num_strips + i) for i in range(num_strips)
    ]
    together = max(1, tile_size(program) // (height * program.num_data))
    for first in range(0, num_strips, together):
        some = strips[first : first + together]
        latents, densities = evaluate(some)
        refuse_nan(densities.weight[:, block.columns], block.rows)
        top = first * height
        yield Tile(slice(top, top + sum(strip.num_draws for strip in some)), densities, latents, height)


def kept(program: Program, draw: DrawSome, columns: Tensor) -> DrawSome:
    """Draw for the whole block, so that the noise depends only on the place, and keep some columns."""

    if len(columns) == program.num_data:
        return draw

    def draw_kept(num_samples: int) -> tuple[Latents, Tensor]:
        latents, log_q = draw(num_samples)
        return program.choose(latents, columns), log_q[:, columns]

    return draw_kept


def block_width(program: Program, num_samples: int) -> int:
    """Return how many data are drawn together: a tile is filled with the draws of a datum first, then with data."""
    size = tile_size(program)
    height = ceil(num_samples / ceil(num_samples / size))
    return max(1, size // height)


def tile_size(program: Program) -> int:
    """Return how many (datum, draw) pairs a tile has on the program's device."""
    return TILE_SIZE.get(program.device.type, TILE_SIZE["cpu"])


@contextmanager
def noise(program: Program, seed: int, place: int) -> Iterator[None]:
    """Draw here with noise that the seed and the place decide; torch's generator is left as it was."""
    with torch.no_grad(), seeded(program.device, tile_seed(seed, place)), pyro.validation_enabled(False):
        yield


class Noise(NamedTuple):
    """Random numbers for some columns of a block, the same whichever columns are asked for."""

    width: int
    columns: Tensor
    dim: int = 0

    @classmethod
    def of(cls, program: Program) -> Noise:
        """Make noise for all columns of a program."""
        return cls(program.num_data, torch.arange(program.num_data, device=program.device))

    def at(self, rows: Tensor) -> Noise:
        """Select some of the columns."""
        return self._replace(columns=self.columns[rows])

    def normal(self, num_chains: int) -> Tensor:
        """Draw standard normal numbers `(K, N, D)`, float64."""
        shape = (num_chains, self.width, self.dim)
        return torch.randn(shape, dtype=torch.float64, device=self.columns.device)[:, self.columns]

    def stratified(self, num_chains: int) -> Tensor:
        """Draw uniform numbers `(K, N)`, float64, of which one lies in each K-th of the interval."""
        steps = torch.arange(num_chains, dtype=torch.float64, device=self.columns.device)
        return (steps[:, None] + self.uniform(1)) / num_chains

    def uniform(self, num_chains: int) -> Tensor:
        """Draw uniform numbers `(K, N)`, float64."""
        return torch.rand(num_chains, self.width, dtype=torch.float64, device=self.columns.device)[:, self.columns]


def refuse_nan(log_weights: Tensor, rows: Sequence[int]) -> None:
    """Raise if a log weight `(K, N)` is NaN or +inf, and name the first of these rows for which it is."""
    bad = (log_weights.isnan() | log_weights.isposinf()).any(0)
    if bad.any():
        row = rows[int(bad.nonzero()[0])]
        raise ValueError(
            f"model, guide: expected numbers for log weights; got NaN or +inf, first for the datum at index {row}; "
            "look for NaN among the parameters and in x, or a density of zero width."
        )
