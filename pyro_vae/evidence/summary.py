"""Results as tables in plain words, for a terminal and for a notebook."""

from __future__ import annotations

import html
import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from pyro_vae.evidence.result import Evidence

__all__ = ["Row", "Table", "how", "plus_minus", "table_of"]


class Row(NamedTuple):
    """A figure, with its name and a note."""

    name: str
    value: float | None
    note: str = ""


class Table(NamedTuple):
    """Rows between a title and remarks."""

    title: str
    rows: list[Row]
    remarks: list[str]

    @property
    def text(self) -> str:
        """Lines with aligned columns."""
        lines = [
            f"{row.name:<28}{'' if row.value is None else f'{row.value:.3f}':>10}{f'   {row.note}' if row.note else ''}"
            for row in self.rows
        ]
        return "\n".join([self.title, *lines, *self.remarks])

    @property
    def html(self) -> str:
        """A table for a notebook."""
        cells = "".join(
            f"<tr><td>{html.escape(row.name)}</td><td>{'' if row.value is None else f'{row.value:.3f}'}</td>"
            f"<td>{html.escape(row.note)}</td></tr>"
            for row in self.rows
        )
        notes = "<br>".join(map(html.escape, self.remarks))
        return f"<table><caption>{html.escape(self.title)}</caption>{cells}</table><p>{notes}</p>"


def plus_minus(error: float) -> str:
    """Format an error, or say that it is unknown."""
    return f"+- {error:.3f}" if math.isfinite(error) else "+- unknown"


def table_of(evidence: Evidence) -> Table:
    """Tabulate the figures of `Evidence`."""
    between = [
        bound
        for k, bound in evidence.all_bounds.items()
        if 1 < k < max(evidence.all_bounds) and math.log10(k).is_integer()
    ]
    rows = [
        Row("ELBO", evidence.guide_elbo.mean, plus_minus(evidence.guide_elbo.mean_std_error)),
        *(Row(f"L_{b.k}, bound from {b.k:,} draws", b.mean, plus_minus(b.mean_std_error)) for b in between),
        Row("log p(x)", evidence.mean, f"{plus_minus(evidence.mean_std_error)} Monte Carlo error"),
        Row("", None, f"{plus_minus(evidence.sampling_error)} for other data of the same kind (sampling error)"),
        Row("gap, log p(x) - ELBO", evidence.gap.mean().item(), "estimates KL(q(z|x) || p(z|x))"),
    ]
    if evidence.is_bound:
        note = "these data's log p(x) is above, 999 times in 1,000"
        rows.append(Row("certified lower bound", evidence.certified_lower_bound(), note))
    title = f"log p(x) of {len(evidence):,} data by {how(evidence)}; nats per datum"
    return Table(title, rows, [*_remarks(evidence), *_reliability(evidence)])


def how(evidence: Evidence) -> str:
    """Name the estimators, with the number of data of each."""
    counts = Counter(evidence.method).most_common()
    names = counts[0][0] if len(counts) == 1 else ", ".join(f"{name} ({count:,})" for name, count in counts)
    return names if evidence.num_samples is None else f"{names}, {evidence.num_samples:,} draws each"


def _remarks(evidence: Evidence) -> list[str]:
    """Say what was spent, and what went wrong."""
    diagnostics, num_data = evidence.diagnostics, len(evidence)
    lines = [
        f"effective draws: median {evidence.ess.median():,.1f}; evaluations of log p(x, z): "
        f"{evidence.num_evaluations.double().mean():,.0f} a datum"
    ]
    impossible = int(evidence.log_evidence.isneginf().sum())
    if impossible:
        lines.append(f"log p(x) = -inf for {impossible:,} data, of which no draw has any weight; so is the mean")
    if "acceptance" in diagnostics:
        acceptance = diagnostics["acceptance"]
        lines.append(f"acceptance of HMC: median {acceptance.median():.2f}, smallest {acceptance.min():.2f}")
    if "reached" in diagnostics:
        reached, tolerance = int(diagnostics["reached"].sum()), evidence.settings["tolerance"]
        lines.append(f"standard error within {tolerance:g} nats for {reached:,} of {num_data:,} data")
    contradicted = int(diagnostics.get("contradicted", torch.zeros(1)).sum())
    if contradicted:
        lines.append(f"for {contradicted:,} data draws from elsewhere found more: the estimate has missed some of p(x)")
    if "converged" in diagnostics and not diagnostics["converged"].all():
        number = int((~diagnostics["converged"].bool()).sum())
        lines.append(f"for {number:,} data the search for the posterior's mode has not come to its end")
    return lines


def _reliability(evidence: Evidence) -> list[str]:
    """Say how many data are reliable, and what to think of the others."""
    bad = int((~evidence.reliable).sum())
    if not bad:
        return [f"reliable for all {len(evidence):,} data"]
    if not evidence.is_bound:
        return ["NOT reliable: biased upwards, its error supposes independent draws; for comparison only"]
    known = evidence.khat[~evidence.khat.isnan()]
    why = f"; k-hat of all: median {known.median():.2f}, largest {known.max():.2f}" if len(known) else ""
    return [
        f"NOT reliable for {bad:,} of {len(evidence):,} data{why}",
        "there the error may be far larger than its estimate, and log p(x), with the gap, too low by as much; "
        "the certified bound holds all the same",
    ]
