"""Noise of a whole batch, of which a share keeps what belongs to its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pyro_vae._private import TorchDispatchMode, sample_dirichlet, standard_gamma
from pyro_vae.program.sites import plates_of

__all__ = ["Drawn", "Numbers", "OfShare", "Recorded", "Recording", "Rows", "refuse_noise"]

FILLS = {
    Tensor.normal_, Tensor.uniform_, Tensor.exponential_, Tensor.cauchy_, Tensor.log_normal_, Tensor.geometric_,
}  # fmt: skip
"""Functions that fill a tensor with noise, of as many random numbers as it has elements."""
MAKES = {torch.randn, torch.rand}
LIKE = {torch.randn_like, torch.rand_like}
OF_INPUT = {
    torch.bernoulli, torch.multinomial, functional.dropout, functional.dropout1d, functional.dropout2d,
    functional.dropout3d, functional.alpha_dropout, functional.feature_alpha_dropout,
}  # fmt: skip
"""Functions of a tensor with rows, which take as many random numbers for each row."""
KNOWN = {torch.normal, *FILLS, *MAKES, *LIKE, *OF_INPUT}
VARYING = {standard_gamma, sample_dirichlet, torch.poisson, torch.binomial}
"""Functions that take as many random numbers as their values need: another share would get other noise."""
REJECTING = ("VonMises", "SineBivariateVonMises", "SineSkewed")
"""Distributions that draw until they accept."""

Key = tuple[str, int]
"""The site in which noise is drawn, or nothing, and the number of the draw there."""


class Rows(NamedTuple):
    """The rows of a batch that are one share."""

    start: int
    stop: int
    total: int
    """How many the whole batch has."""
    is_empty: bool = False
    """Whether this is the first row once more, for a process that has none: it counts as nothing."""

    @property
    def number(self) -> int:
        return self.stop - self.start

    def of(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """Take these rows of all that has rows."""

        def has_rows(value: Any) -> bool:
            return isinstance(value, Tensor) and value.ndim > 0 and len(value) == self.total

        return tuple(value[self.start : self.stop] if has_rows(value) else value for value in batch)


class Recorded(NamedTuple):
    """What a run of a program showed: the shape of each noise, and the size of each plate."""

    shapes: dict[Key, tuple[int, ...]]
    sizes: dict[str, int]


class Drawn(NamedTuple):
    """Where the rows of a batch are in the noise of a program, and in its plates."""

    axes: dict[Key, int | None]
    """The dimension of rows; None for noise that all rows share."""
    plates: frozenset[str]

    @classmethod
    def of(cls, whole: Recorded, share: Recorded, rows: Rows) -> Drawn:
        """Compare a run on all rows with one on a share: what grows with the rows has a dimension of them."""
        if whole.shapes.keys() != share.shapes.keys():
            refuse_noise("noise that is drawn more often for more rows")
        axes = {key: _axis_of(key[0], shape, share.shapes[key], rows) for key, shape in whole.shapes.items()}
        grown = {name for name, size in whole.sizes.items() if share.sizes.get(name) != size}
        for name in grown:
            if (whole.sizes[name], share.sizes.get(name)) != (rows.total, rows.number):
                refuse_noise(f"plate {name!r}, of {whole.sizes[name]} for {rows.total} rows")
        return cls(axes, frozenset(grown))


def _axis_of(site: str, whole: tuple[int, ...], share: tuple[int, ...], rows: Rows) -> int | None:
    if whole == share:
        return None
    grown = [axis for axis, sizes in enumerate(zip(whole, share, strict=False)) if sizes[0] != sizes[1]]
    if len(whole) != len(share) or len(grown) != 1 or (whole[grown[0]], share[grown[0]]) != (rows.total, rows.number):
        where = f"at site {site!r}" if site else "outside of sites"
        refuse_noise(f"noise {where} of shape {whole} for {rows.total} rows and {share} for {rows.number}")
    return grown[0]


class _Watching(TorchFunctionMode):
    """Sees each noise of a program, and where it is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.site, self.kind = "", ""
        self.counts: Counter[str] = Counter()

    def key(self) -> Key:
        """Name the noise that is about to be drawn."""
        if any(name in self.kind for name in REJECTING):
            refuse_noise(f"a {self.kind} at site {self.site!r}, which draws until it accepts")
        self.counts[self.site] += 1
        return self.site, self.counts[self.site]


class _Sites(Messenger):
    """Tells the noise in which site it is drawn."""

    def __init__(self, noise: _Watching) -> None:
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg: Any) -> None:
        self.noise.site, self.noise.kind = msg["name"], type(_base_of(msg["fn"])).__name__

    def _pyro_post_sample(self, msg: Any) -> None:
        self.noise.site = self.noise.kind = ""


class Recording(_Watching):
    """Records the shapes of all noise, and the sizes of all plates, of one run."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Recorded({}, {})

    def of(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """Return the program, recorded at each call."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.counts.clear()
            with self, _SizesOf(self):
                return program(*args, **kwargs)

        return run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in KNOWN:
            shape = args[0].shape if func in OF_INPUT else found.shape
            self.found.shapes.setdefault(self.key(), tuple(shape))
        return found


class _SizesOf(_Sites):
    noise: Recording

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        for frame in plates_of(msg):
            self.noise.found.sizes[frame.name] = frame.size


class Numbers(TorchDispatchMode):
    """Lists the operations that take random numbers, whoever calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            first = result[0] if isinstance(result, tuple) else result
            self.found.append(f"{func} of shape {tuple(first.shape)}")
        return result


class OfShare(torch.nn.Module):
    """A program that is called with some rows of a batch, as if it were called with all.

    Shares of one size are one program: where its rows are is a number that is changed in place.
    """

    start: Tensor

    def __init__(self, program: Callable[..., Any], drawn: Drawn, rows: Rows, device: torch.device) -> None:
        super().__init__()
        self.program, self.drawn, self.number, self.total = program, drawn, rows.number, rows.total
        self.register_buffer("start", torch.tensor(rows.start, device=device), persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        indices = self.start + torch.arange(self.number, device=self.start.device)
        noise = _OfAll(self.drawn, indices, self.total)
        with noise, _SitesOfShare(noise, self.drawn.plates, self.number / self.total):
            return self.program(*args, **kwargs)


class _SitesOfShare(_Sites):
    """Scale what counts once a batch, and not once a row."""

    def __init__(self, noise: _Watching, plates: frozenset[str], share: float) -> None:
        super().__init__(noise)
        self.plates, self.share = plates, share

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        frames = [frame for frame in plates_of(msg) if frame.name in self.plates]
        if not frames or any(frame.full_size not in (None, frame.size) for frame in frames):
            msg["scale"] = msg["scale"] * self.share


class _OfAll(_Watching):
    """Draws noise for all rows of a batch, and keeps that of a share."""

    def __init__(self, drawn: Drawn, indices: Tensor, total: int) -> None:
        super().__init__()
        self.drawn, self.indices, self.total = drawn, indices, total

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in VARYING:
            refuse_noise(f"{func.__name__.removeprefix('_')}, which draws as many as its values need")
        if func not in KNOWN:
            return func(*args, **kwargs)
        key = self.key()
        if key not in self.drawn.axes:
            refuse_noise(f"noise at site {key[0]!r} that was not drawn before")
        axis = self.drawn.axes[key]
        return func(*args, **kwargs) if axis is None else self._drawn(func, axis, args, kwargs)

    def _drawn(self, func: Any, axis: int, args: Any, kwargs: Any) -> Tensor:
        if func in MAKES:
            size = kwargs.pop("size", None) or (args if isinstance(args[0], int) else args[0])
            return self._kept(func(self._widened(size, axis), **kwargs), axis)
        first, *others = args if args else (kwargs.pop("input"),)
        if func is torch.normal:
            return self._normal(axis, first, *others, **kwargs)
        if func in FILLS:
            return first.copy_(
                self._kept(func(first.new_empty(self._widened(first.shape, axis)), *others, **kwargs), axis)
            )
        if func in LIKE:
            return self._kept(func(first.new_empty(self._widened(first.shape, axis)), *others, **kwargs), axis)
        filled = first.new_ones if func is torch.multinomial else first.new_zeros
        padded = filled(self._widened(first.shape, axis)).index_copy(axis, self.indices, first)
        return self._kept(func(padded, *others, **kwargs), axis)

    def _normal(self, axis: int, mean: Any, std: Any = 1.0, size: Any = None, **kwargs: Any) -> Tensor:
        if size is not None:
            return self._kept(torch.normal(mean, std, self._widened(size, axis), **kwargs), axis)
        given = [each for each in (mean, std) if isinstance(each, Tensor)]
        shape = self._widened(torch.broadcast_shapes(*(each.shape for each in given)), axis)
        return mean + std * self._kept(given[0].new_empty(shape).normal_(**kwargs), axis)

    def _widened(self, shape: Any, axis: int) -> list[int]:
        """Return the shape that noise of the whole batch has."""
        if shape[axis] != len(self.indices):
            refuse_noise(f"noise of shape {tuple(shape)} for {len(self.indices)} rows in dimension {axis}")
        return [self.total if i == axis else size for i, size in enumerate(shape)]

    def _kept(self, noise: Tensor, axis: int) -> Tensor:
        return noise.index_select(axis, self.indices)


def _base_of(fn: Any) -> Any:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def refuse_noise(found: str) -> NoReturn:
    """Refuse a program whose noise cannot be taken in shares."""
    raise ValueError(
        "program: expected noise that can be drawn for a whole batch, of which each share keeps its rows: that of "
        f"Gaussian, Bernoulli or categorical latents, of flows and of dropout; got {found}; train in one process, with "
        "accumulate=1."
    )
