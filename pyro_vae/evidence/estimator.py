"""The interface of estimators of log p(x), and the one loop that runs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import Any, Generic, TypeVar

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import _checks, distributed
from pyro_vae.evidence.bounds import Bound
from pyro_vae.evidence.collect import NUM_ELBO_SAMPLES, Terms, guide_terms
from pyro_vae.evidence.draws import Draws
from pyro_vae.evidence.observed import Observed
from pyro_vae.evidence.parts import Parts
from pyro_vae.evidence.region import region_of
from pyro_vae.evidence.result import Evidence
from pyro_vae.evidence.weights import Estimate
from pyro_vae.program.core import Program
from pyro_vae.program.identity import agree, identity_of
from pyro_vae.program.inspect import program_of
from pyro_vae.program.joint import Compile, CompiledJoint, Joint, as_it_is, joint_of, pays_to_compile
from pyro_vae.program.tiles import Block, blocks, tiles_of_guide
from pyro_vae.program.unconstrained import Unconstrained
from pyro_vae.program.whole import Pair, as_one_datum

__all__ = ["Estimator", "Found", "Task", "evaluate", "run"]

Part = TypeVar("Part")

NUM_PROBED = 8
"""Data, and draws of each, by whose weights an evaluation that goes on knows its program."""


@dataclass(frozen=True)
class Task:
    """What to evaluate: a program on its data, and what fixes the noise."""

    program: Program
    seed: int = 0
    first_index: int = 0
    num_posterior_draws: int = 0
    densities: Joint = as_it_is
    """Evaluates log p(z) and log p(x|z)."""
    progress: bool = False
    partial: str | PathLike[str] | None = None
    """A folder for what was measured of each block, if it is to be kept."""

    @classmethod
    def of(
        cls,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        *,
        plate: str | None,
        seed: int,
        first_index: int,
        num_posterior_draws: int = 0,
        joint: bool = False,
        chunk_size: int | None = None,
        compile: Compile = False,
        evaluations: float = 0.0,
        progress: bool = False,
        partial: str | PathLike[str] | None = None,
    ) -> Task:
        """Check the options that all estimators share, and inspect the pair, once for each call.

        `evaluations` of each datum, one with a gradient counted twice, decide whether compile="auto" compiles.
        """
        seed = _checks.seed(seed)
        first_index = _checks.whole_number("first_index", first_index, minimum=0)
        num_posterior_draws = _checks.whole_number("num_posterior_draws", num_posterior_draws, minimum=0)
        pair = Pair(model, guide, args, kwargs, plate)
        densities = joint_of(chunk_size)
        _checks.choice("compile", compile, (True, False, "auto"))
        program = program_of(*(as_one_datum(pair) if joint else pair))
        agree(program, seed=seed, first_index=first_index)
        if pays_to_compile(compile, program, evaluations):
            densities = joint_of(chunk_size, compile=True)
        return cls(program, seed, first_index, num_posterior_draws, densities, progress, partial)

    @cached_property
    def view(self) -> Unconstrained | None:
        """The latents as unconstrained vectors; None where they have no such view (discrete ones)."""
        return Unconstrained.of_any(self.program)

    def require_view(self) -> Unconstrained:
        """Return `view`, or raise an error that says why there is none."""
        return self.view or Unconstrained.of(self.program)

    @property
    def is_to_be_compiled(self) -> bool:
        """Whether a compiled graph is to replace the model where that can be."""
        return isinstance(self.densities, CompiledJoint)

    @property
    def is_compiled(self) -> bool:
        """Whether a compiled graph has replaced the model."""
        return isinstance(self.densities, CompiledJoint) and self.densities.is_compiled

    @property
    def settings(self) -> dict[str, Any]:
        """How the pair was run, for the record."""
        structure = self.program.structure
        how = {"amortized": structure.amortized, "draws": structure.draws}
        if structure.summed:
            how["summed_out"] = sorted(structure.summed.names)
        because = ("listed_because", "not_amortized_because", "undivided_because", "not_compared_because")
        return how | {name: reason for name in because if (reason := getattr(structure, name))}

    def blocks(self, width: int) -> Iterator[Block]:
        """Yield the data in blocks."""
        return blocks(self.program, width, self.first_index)

    def region(self, block: Block) -> Any:
        """Return the region of the latents of a block's data that were asked for."""
        return region_of(self.view, block, block.asked_for, self.densities)


@dataclass(frozen=True)
class Found:
    """What an estimator found for all data; tensors have one entry a datum."""

    estimate: Estimate
    num_evaluations: Tensor
    method: tuple[str, ...]
    draws: Draws | None = None
    terms: Terms | None = None
    """The guide's ELBO, if the estimator drew from the guide. If None, 100 extra draws estimate it."""
    bounds: dict[int, Bound] = field(default_factory=dict)
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


class Estimator(ABC, Generic[Part]):
    """An estimator of log p(x).

    The loop cuts the data into blocks. `measure` does all the work for one: it finds settings with separate noise
    (`seed_for` of a purpose), freezes them, and draws anew. `found` joins the blocks. An estimator promises
    $E \\hat p(x) = p(x)$ for each datum, unless `is_bound` is False, and numbers of a datum that depend only on the
    seed and on its place; and, where data share a budget, on those of its block.
    """

    is_bound: bool = True
    """Whether $E \\hat p(x) = p(x)$, so that log p(x) is bounded below in expectation."""

    @property
    def num_samples(self) -> int | None:
        """Draws or chains for each datum, if all have the same number."""
        return None

    @property
    def needs_view(self) -> bool:
        """Whether the latents must have a view as unconstrained vectors."""
        return True

    @abstractmethod
    def block_size(self, program: Program) -> int:
        """Return how many data are measured together."""

    @abstractmethod
    def measure(self, block: Block, region: Any, task: Task) -> Part:
        """Estimate log p(x) for the columns `block.asked_for`; the other columns are padding."""

    @abstractmethod
    def estimate_of(self, part: Part) -> Estimate:
        """Return what was measured for the data of one block, to be shown while others are measured."""

    @abstractmethod
    def found(self, parts: list[Part], task: Task) -> Found:
        """Join what was measured, in the order of the data."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """How the estimator was set, for the record."""

    def is_compiled(self, task: Task) -> bool:
        """Tell whether a compiled graph replaced the model in the measured run."""
        return task.is_compiled


def run(estimator: Estimator[Part], task: Task) -> Found:
    """Measure all data, block by block; the processes that torchrun started take turns, and all get what was found."""
    if estimator.needs_view:
        task.require_view()
    kept = None if task.partial is None else Parts(task.partial, *_identity(estimator, task))
    team, size = distributed.team(), task.program.num_data
    is_shown = task.progress and (team is None or team.is_first)
    with tqdm(total=size, disable=None if is_shown else True, unit="datum") as bar:
        so_far = _SoFar()

        def measured(block: Block) -> Part:
            def measure() -> Part:
                return estimator.measure(block, task.region(block), task)

            part = measure() if kept is None else kept.of_block(block.place, measure)
            if not bar.disable:
                so_far.add(estimator.estimate_of(part))
                bar.set_postfix_str(str(so_far), refresh=False)
            bar.update(min(len(block.rows) * (1 if team is None else team.size), size - bar.n))
            return part

        parts = distributed.shared(task.blocks(estimator.block_size(task.program)), measured)
    return estimator.found(parts, task)


class _SoFar:
    """The mean of log p(x) over the data that this process has measured, and its error."""

    def __init__(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64)

    def add(self, found: Estimate) -> None:
        one = torch.ones_like(found.log_evidence)
        self.sums += torch.stack([one, found.log_evidence, found.std_error.square()]).sum(1).cpu()

    def __str__(self) -> str:
        number, total, squares = self.sums.tolist()
        return f"log p(x) {total / number:.2f} +- {squares**0.5 / number:.2f}"


def _identity(estimator: Estimator[Any], task: Task) -> tuple[dict[str, Any], Tensor]:
    """Return what decides the numbers of an evaluation, and the weights of a few draws, which depend on the program."""
    block = next(task.blocks(estimator.block_size(task.program)))
    few = block.part(block.asked_for[:NUM_PROBED])._replace(place=0)
    (tile,) = tiles_of_guide(few, NUM_PROBED, 0)
    settings = {
        "estimator": type(estimator).__name__,
        "settings": {name: str(value) for name, value in estimator.settings.items()},
        "seed": task.seed,
        "first_index": task.first_index,
        "num_posterior_draws": task.num_posterior_draws,
        **identity_of(task.program),
        "block_size": estimator.block_size(task.program),
        "compiled": task.is_to_be_compiled,
        "versions": {"torch": torch.__version__, "pyro": pyro.__version__},
    }
    return settings, tile.densities.weight.cpu()


def _refuse_missing_data(estimator: Estimator[Any], found: Found, num_data: int) -> None:
    """Raise if an estimator has lost a datum: means over the others would look right."""
    number = len(found.estimate.log_evidence)
    if number != num_data:
        raise RuntimeError(
            f"{type(estimator).__name__}: expected an estimate for each of {num_data} data; got {number}; this is a "
            "fault of pyro_vae: please report the program and its options."
        )


def evaluate(estimator: Estimator[Any], task: Task) -> Evidence:
    """Measure all data, and return their `Evidence`."""
    observed = Observed.of(task.program)
    found = run(estimator, task)
    _refuse_missing_data(estimator, found, task.program.num_data)
    terms, num_evaluations = found.terms, found.num_evaluations
    if terms is None:
        terms = guide_terms(task.program, NUM_ELBO_SAMPLES, task.seed, task.first_index)
        num_evaluations = num_evaluations + NUM_ELBO_SAMPLES
    return Evidence(
        **found.estimate._asdict(),
        num_evaluations=num_evaluations,
        num_samples=estimator.num_samples,
        seed=task.seed,
        method=found.method,
        all_bounds=found.bounds,
        observed=observed,
        guide_elbo=terms.elbo,
        rate=terms.rate,
        distortion=terms.distortion,
        is_bound=estimator.is_bound,
        draws=found.draws,
        settings={**estimator.settings, **task.settings, "compiled": estimator.is_compiled(task)},
        diagnostics=found.diagnostics,
    )
