"""What the data of one block can be drawn from: the guide, Gaussians at its modes, and a mixture of both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from pyro_vae.evidence import variational
from pyro_vae.evidence.gaussians import NormalMixture
from pyro_vae.evidence.path import START_NAMES, Path, gaussian_path, path_from_both
from pyro_vae.evidence.proposals import Fitted, FromGuide, Laplace, guide_of
from pyro_vae.evidence.region import Region
from pyro_vae.program.core import Program
from pyro_vae.program.tiles import Noise

__all__ = ["Modes", "Source", "guide_at"]

MANY_MODES = 4  # found modes, beside which there may be others


class Source(NamedTuple):
    """A source of draws for some columns of a block."""

    name: str
    fitted: Fitted

    @property
    def is_guide(self) -> bool:
        return self.name == FromGuide.name


class Start(NamedTuple):
    """A path of annealing for some columns of a block."""

    name: str
    path: Path
    noise: Noise
    """The columns'."""


def guide_at(program: Program, region: Any, columns: Tensor) -> Source:
    """Return the guide as a source, for some columns of a block's program."""
    return Source(FromGuide.name, guide_of(program, region.at(columns), columns))


@dataclass(frozen=True)
class Modes:
    """Gaussians at the modes of a block's data, Laplace's or fitted ones, and what they can be used for."""

    program: Program
    """The block's."""
    region: Region
    gaussians: NormalMixture
    """At their places in the block."""
    name: str = Laplace.name

    def source(self, columns: Tensor) -> Source:
        """Return the Gaussians as a source."""
        region = self.region.at(columns)
        return Source(self.name, Fitted.to(region.gaussian(self.gaussians.at(columns)), region))

    def both(self, columns: Tensor) -> Source:
        """Mix the guide and the Gaussians in equal parts; take the guide alone if its density is not known."""
        guide, gaussians = guide_at(self.program, self.region, columns), self.source(columns)
        if guide.fitted.component is None or gaussians.fitted.component is None:
            return guide
        region = self.region.at(columns)
        mixture = region.half_and_half(guide.fitted.component, gaussians.fitted.component)
        return Source(f"{guide.name} and {gaussians.name}", Fitted.to(mixture, region))

    def refined(self, columns: Tensor, spare: Tensor) -> tuple[Modes, Tensor]:
        """Fit the Gaussians of some columns further, and say what that took. It consumes noise of the block."""
        region = self.region.at(columns)
        found, spent = variational.refined(self.gaussians.at(columns), region.view, region.noise, spare)
        gaussians = found.spread(columns, self.program.num_data)
        return replace(self, gaussians=gaussians, name=START_NAMES["gaussian"]), spent

    def cost_of_refining(self, columns: Tensor) -> Tensor:
        """Return how many evaluations of each datum that takes at least."""
        return variational.num_evaluations(self.gaussians.at(columns))

    def path(self, columns: Tensor) -> Start:
        """Return the path of annealing from the Gaussians, once they are refined."""
        region = self.region.at(columns)
        return Start(self.name, gaussian_path(region, self.gaussians.at(columns)), region.noise)

    def path_from_both(self, columns: Tensor) -> Start:
        """Return the path of annealing from the guide and them, in equal parts."""
        guide, region = guide_at(self.program, self.region, columns), self.region.at(columns)
        assert guide.fitted.component is not None
        path = path_from_both(region, guide.fitted.component, self.gaussians.at(columns))
        return Start(f"{guide.name} and {self.name}", path, region.noise)

    def are_several(self, columns: Tensor) -> Tensor:
        """Tell for which data more than one mode was found."""
        return self.gaussians.num_parts[columns].cpu() > 1

    def are_many(self, columns: Tensor) -> Tensor:
        """Tell for which data so many modes were found that there may be others."""
        return self.gaussians.num_parts[columns].cpu() >= MANY_MODES
