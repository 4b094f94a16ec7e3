"""How far each estimator of log p(x) is from the truth, on programs as they are written in practice.

    python benchmarks/practice.py                              # all programs, guides and estimators: hours on one core
    python benchmarks/practice.py --programs tobit funnel --estimators guide log_evidence       # a look
    python benchmarks/practice.py --markdown practice.md       # the tables for the documentation

The programs, with guides good and bad and the exact log p(x) of each datum, are those of tests/practice.py. Prints a
row for each program, guide and estimator as it is found, and then what all have in common. "Covered" and "off" are
shares of the data that are called reliable: those whose 95 % interval holds the truth, and those more than 4 standard
errors from it. An error within 0.001 nats is rounding, and counts as none. The exit status is 1 if an evaluation ended
in anything but an estimate or a refusal.
"""

import argparse
import math
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import pyro_vae as pv

# The programs are the tests', which are no package. They come first on the path, for this file has their name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from practice import PRACTICE

GUIDES = ("good", "narrow", "fitted", "wide", "shifted")
ROUNDING = 1e-3
"""Nats: a smaller error is none."""
KHAT_EDGES = (-math.inf, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, math.inf)
DELTA = 0.05
"""How often a certificate may fail."""

sampling = pv.importance_sampling
PROPOSALS: dict[str, Callable[..., pv.Evidence]] = {
    "guide": partial(sampling, num_samples=1000),
    "guide, 100 draws": partial(sampling, num_samples=100),
    "inflated": partial(sampling, proposal="inflated", num_samples=1000),
    "heavy-tailed": partial(sampling, proposal="heavy-tailed", num_samples=1000),
    "defensive": partial(sampling, proposal="defensive", num_samples=1000),
    "laplace": partial(sampling, proposal="laplace", num_samples=1000),
    "local": partial(sampling, proposal=pv.proposals.Local(100, 8), num_samples=1000),
}
"""Those by importance sampling."""
ESTIMATORS = PROPOSALS | {
    "ais": partial(pv.ais, num_temperatures=50),
    "ais, laplace": partial(pv.ais, start="laplace", num_temperatures=50),
    "ais, guide": partial(pv.ais, start="guide", num_temperatures=50),
    "ais, prior": partial(pv.ais, start="prior", num_temperatures=50),
    "log_evidence": partial(pv.log_evidence, tolerance=0.05, max_evaluations=6000),
}


@dataclass(frozen=True)
class Cell:
    """One program, guide and estimator, and what came of them."""

    program: str
    guide: str
    estimator: str
    exact: Tensor
    """log p(x) of each datum."""
    evidence: pv.Evidence | None = None
    refused: str = ""
    failed: str = ""

    @property
    def names(self) -> tuple[str, str, str]:
        return self.program, self.guide, self.estimator

    @property
    def breaks_certificate(self) -> bool:
        """Whether the lower bound that is certified lies above the truth."""
        if self.evidence is None:
            return False
        return self.evidence.certified_lower_bound(delta=DELTA) > self.exact.mean().item() + ROUNDING


class Data(NamedTuple):
    """All data of some cells, one entry each."""

    error: Tensor
    std_error: Tensor
    khat: Tensor
    reliable: Tensor
    num_evaluations: Tensor

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> "Data":
        """Of the cells that have an estimate."""
        parts = [_data_of(cell) for cell in cells if cell.evidence is not None]
        return cls(*map(torch.cat, zip(*parts, strict=True))) if parts else cls(*torch.zeros(5, 0).double())

    def at(self, which: Tensor) -> "Data":
        """Of those for which a mask is true."""
        return Data(*(each[which] for each in self))

    @property
    def trusted(self) -> "Data":
        """Those called reliable."""
        return self.at(self.reliable.bool())

    def within(self, num_errors: float, allowance: float = ROUNDING) -> Tensor:
        """Whether each is within so many standard errors of the truth."""
        return self.error.abs() <= num_errors * self.std_error + allowance

    @property
    def coverage(self) -> float:
        return _mean(self.within(1.96))

    @property
    def off(self) -> float:
        return _mean(~self.within(4.0))

    @property
    def z_variance(self) -> float:
        """The mean square of error over standard error, of the data whose standard error is more than rounding."""
        noisy = self.std_error > ROUNDING
        return _mean((self.error[noisy] / self.std_error[noisy]).square())

    @property
    def rmse(self) -> float:
        return math.sqrt(_mean(self.error.square()))


def _mean(values: Tensor) -> float:
    return values.double().mean().item() if len(values) else math.nan


def _data_of(cell: Cell) -> Data:
    evidence = cell.evidence
    is_exact = evidence.log_evidence == cell.exact  # where it is -inf, too
    error = torch.where(is_exact, 0.0, evidence.log_evidence - cell.exact)
    return Data(error, evidence.std_error, evidence.khat, evidence.reliable, evidence.num_evaluations)


@cache
def made(program: str, num_data: int) -> Any:
    """A program with its data and guides."""
    return PRACTICE[program](num_data)


def evaluated(program: str, guide: str, estimator: str, num_data: int = 20, seed: int = 0) -> Cell:
    """Run one estimator. Every cell has noise of its own, so that cells can be pooled."""
    it = made(program, num_data)
    cell = partial(Cell, program, guide, estimator, it.log_evidence)
    own_seed = zlib.crc32(f"{program}, {guide}, {estimator}, {seed}".encode())
    try:
        evidence = ESTIMATORS[estimator](it.model, it.guides[guide], *it.args, seed=own_seed)
    except Exception as error:
        message = " ".join(str(error).split())
        return cell(refused=message) if is_refusal(error) else cell(failed=f"{type(error).__name__}: {message}")
    return cell(evidence)


def is_refusal(error: Exception) -> bool:
    """Whether an error says which argument is wrong, and what was expected of it."""
    says_so = re.match(r"[^:]+: expected .+; got .+", str(error), re.DOTALL)
    return isinstance(error, (ValueError, TypeError)) and says_so is not None


# Tables


class Table(NamedTuple):
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def as_markdown(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "\n".join([f"### {self.title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])

    def as_text(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in (self.columns, *self.rows)]
        return "\n".join([f"\n{self.title}", *lines])


CELL_COLUMNS = ("program", "guide", "estimator", "error", "RMSE", "covered", "reliable", "off", "evaluations")
CELL_WIDTHS = (33, 9, 18, 10, 10, 9, 9, 9, 11)


def row_of(cell: Cell) -> tuple[str, ...]:
    if cell.evidence is None:
        what = f"refused: {shortened(cell.refused)}" if cell.refused else f"FAILED: {cell.failed}"
        return (*cell.names, what, *[""] * 5)
    data = Data.of([cell])
    shares = share(data.trusted.coverage), share(_mean(data.reliable)), share(data.trusted.off)
    return (*cell.names, nats(_mean(data.error)), nats(data.rmse), *shares, whole(_mean(data.num_evaluations)))


POOLED_COLUMNS = (
    *("cells", "refused", "failed", "data", "reliable", "covered", "off", "z-variance"),
    *("error of reliable", "RMSE of reliable", "RMSE of all", "certificates broken", "evaluations"),
)


def pooled_row(cells: list[Cell]) -> tuple[str, ...]:
    data = Data.of(cells)
    trusted = data.trusted
    num_evaluated = sum(cell.evidence is not None for cell in cells)
    broken = sum(cell.breaks_certificate for cell in cells)
    return (
        *(str(len(cells)), str(sum(bool(cell.refused) for cell in cells)), str(sum(bool(c.failed) for c in cells))),
        *(str(len(data.error)), share(_mean(data.reliable)), share(trusted.coverage), share(trusted.off)),
        *(ratio(trusted.z_variance), nats(_mean(trusted.error)), nats(trusted.rmse), nats(data.rmse)),
        *(f"{broken} of {num_evaluated}", whole(_mean(data.num_evaluations))),
    )


def pooled_table(title: str, cells: list[Cell], by: tuple[str, ...]) -> Table:
    """One row for each combination of these attributes of a cell."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(tuple(getattr(cell, name) for name in by), []).append(cell)
    rows = [(*names, *pooled_row(group)) for names, group in sorted(groups.items(), key=_place)]
    return Table(title, (*by, *POOLED_COLUMNS), rows)


def _place(group: tuple[tuple[str, ...], list[Cell]]) -> list[int]:
    order = [*ESTIMATORS, *GUIDES]
    return [order.index(name) for name in group[0]]


def khat_table(cells: list[Cell]) -> Table:
    """Coverage by k-hat, of all data and of those called reliable."""
    rows = []
    for name in PROPOSALS:
        data = Data.of(cell for cell in cells if cell.estimator == name)
        for low, high in pairwise(KHAT_EDGES):
            here = data.at((data.khat >= low) & ((data.khat < high) | (high == math.inf)))
            if len(here.error):
                rows.append((name, khat_bin(low, high), *_of_all_and_of_reliable(here)))
    columns = "data", "covered", "off", "reliable data", "covered", "off", "z-variance"
    return Table("By k-hat", ("estimator", "k-hat", *columns), rows)


def _of_all_and_of_reliable(data: Data) -> tuple[str, ...]:
    trusted = data.trusted
    of_all = str(len(data.error)), share(data.coverage), share(data.off)
    return *of_all, str(len(trusted.error)), share(trusted.coverage), share(trusted.off), ratio(trusted.z_variance)


def khat_bin(low: float, high: float) -> str:
    if low == -math.inf:
        return f"below {high:g}"
    return f"{low:g} to {high:g}" if high < math.inf else f"above {low:g}"


def shortened(message: str) -> str:
    return message if len(message) <= 100 else f"{message[:100]}..."


def nats(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1%}"


def whole(value: float) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}"


def main() -> int:
    args = parse_args()
    torch.set_num_threads(args.num_threads)
    print(line_of(CELL_COLUMNS))
    cells = []
    for names in combinations(args):
        cells.append(evaluated(*names, args.num_data, args.seed))
        print(line_of(row_of(cells[-1])), flush=True)
    tables = [
        Table("Each program, guide and estimator", CELL_COLUMNS, [row_of(cell) for cell in cells]),
        pooled_table("By estimator", cells, ("estimator",)),
        pooled_table("By estimator and guide", cells, ("estimator", "guide")),
        khat_table(cells),
    ]
    print("\n".join(table.as_text() for table in tables[1:]))
    if args.markdown is not None:
        args.markdown.write_text("\n".join(table.as_markdown() for table in tables))
    failed = [cell for cell in cells if cell.failed]
    print(f"\n{len(cells)} evaluations, {len(failed)} of which failed")
    return int(bool(failed))


def line_of(row: tuple[str, ...]) -> str:
    return " ".join(map(str.ljust, row, CELL_WIDTHS)).rstrip()


def combinations(args: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    for program in args.programs:
        guides = [guide for guide in args.guides if guide in made(program, args.num_data).guides]
        yield from product([program], guides, args.estimators)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-data", type=int, default=20)
    parser.add_argument("--programs", nargs="+", choices=tuple(PRACTICE), default=tuple(PRACTICE), metavar="PROGRAM")
    parser.add_argument("--guides", nargs="+", choices=GUIDES, default=GUIDES)
    parser.add_argument("--estimators", nargs="+", choices=tuple(ESTIMATORS), default=tuple(ESTIMATORS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help="a file to write all tables to")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
