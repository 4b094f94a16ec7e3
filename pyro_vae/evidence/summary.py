"""Results as tables and remarks in plain words, for a terminal and for a notebook."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import torch

from pyro_vae import _html
from pyro_vae._html import Card, Remark

if TYPE_CHECKING:
    from pyro_vae.evidence.comparison import Comparison
    from pyro_vae.evidence.result import Evidence

__all__ = [
    "Row",
    "Table",
    "cards_of",
    "compared",
    "how",
    "plus_minus",
    "remarks_of",
    "shown",
    "table_of",
    "verdict",
]


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


def plus_minus(error: float, sign: str = "+-") -> str:
    """Format an error, or say that it is unknown."""
    return f"{sign} {error:.3f}" if math.isfinite(error) else f"{sign} unknown"


def table_of(evidence: Evidence, usual: Evidence | None = None) -> Table:
    """Tabulate the figures of `Evidence`, beside those of the usual estimate of the same data."""
    others = f"{plus_minus(evidence.sampling_error)} for other data of the same kind"
    rows = [
        Row("ELBO", evidence.guide_elbo.mean, plus_minus(evidence.guide_elbo.mean_std_error)),
        Row("log p(x)", evidence.mean, f"{plus_minus(evidence.mean_std_error)} Monte Carlo error; {others}"),
    ]
    if evidence.is_bound:
        note = "these data's log p(x) is above, 999 times in 1,000"
        rows.append(Row("certified lower bound", evidence.certified_lower_bound(), note))
    if usual is not None:
        rows.append(Row("the usual estimate", usual.mean, f"{plus_minus(usual.mean_std_error)} by {how(usual)}"))
    title = f"log p(x) of {len(evidence):,} data by {how(evidence)}; nats per datum"
    return Table(title, rows, [remark.text for remark in remarks_of(evidence)])


def cards_of(evidence: Evidence, usual: Evidence | None = None) -> list[Card]:
    """Put the figures of `Evidence` on cards, nats per datum."""
    cards = [
        Card(
            "log p(x)",
            f"{evidence.mean:.2f}",
            plus_minus(evidence.mean_std_error, "±"),
            f"Monte Carlo error; {plus_minus(evidence.sampling_error, '±')} for other data of the same kind",
        ),
        Card(
            "ELBO",
            f"{evidence.guide_elbo.mean:.2f}",
            plus_minus(evidence.guide_elbo.mean_std_error, "±"),
            "a lower bound",
        ),
    ]
    if evidence.is_bound:
        note = "these data's log p(x) is above, 999 times in 1,000"
        cards.append(Card("certified lower bound", f"{evidence.certified_lower_bound():.2f}", note=note))
    if usual is not None:
        cards.append(Card("the usual estimate", f"{usual.mean:.2f}", plus_minus(usual.mean_std_error, "±"), how(usual)))
    reliable = int(evidence.reliable.sum())
    return [*cards, Card("reliable", f"{reliable:,} of {len(evidence):,}", note="data whose error can be trusted")]


def shown(evidence: Evidence) -> str:
    """Show `Evidence` in a notebook."""
    title = f"log p(x) of {len(evidence):,} data by {how(evidence)}; nats per datum"
    remarks = _html.remarks([Remark(title), *remarks_of(evidence)])
    return _html.in_a_notebook(_html.cards(cards_of(evidence)), remarks)


def how(evidence: Evidence) -> str:
    """Name the estimators, with the number of data of each."""
    counts = Counter(evidence.method).most_common()
    names = counts[0][0] if len(counts) == 1 else ", ".join(f"{name} ({count:,})" for name, count in counts)
    return names if evidence.num_samples is None else f"{names}, {evidence.num_samples:,} draws each"


def remarks_of(evidence: Evidence) -> list[Remark]:
    """Say for how many data the error can be trusted; and what went wrong, with what to do about it."""
    return [
        *_impossible(evidence),
        *_missed(evidence),
        *_unfinished(evidence),
        *_unreached(evidence),
        *_trust(evidence),
    ]


def _impossible(evidence: Evidence) -> list[Remark]:
    number = int(evidence.log_evidence.isneginf().sum())
    what = f"log p(x) = -inf for {number:,} data, of which no draw has any weight; so is the mean"
    return [Remark(what, "check that these data are in the likelihood's support")] if number else []


def _missed(evidence: Evidence) -> list[Remark]:
    number = int(evidence.diagnostics.get("contradicted", torch.zeros(1)).sum())
    what = (
        f"for {number:,} of {len(evidence):,} data draws from elsewhere found more: the estimate has missed some of "
        "p(x)"
    )
    return [Remark(what, f"{_more(evidence)}; diagnostics['contradicted'] says which they are")] if number else []


def _unfinished(evidence: Evidence) -> list[Remark]:
    number = int((~evidence.diagnostics.get("converged", torch.ones(1)).bool()).sum())
    what = f"for {number:,} data the search for the posterior's mode has not come to its end"
    return [Remark(what, "the estimate is unbiased all the same, and may need more draws")] if number else []


def _unreached(evidence: Evidence) -> list[Remark]:
    if "reached" not in evidence.diagnostics or evidence.diagnostics["reached"].all():
        return []
    reached, tolerance = int(evidence.diagnostics["reached"].sum()), evidence.settings["tolerance"]
    what = f"standard error within {tolerance:g} nats for {reached:,} of {len(evidence):,} data"
    return [Remark(what, "raise max_evaluations if the mean's error is too large for you")]


def _trust(evidence: Evidence) -> list[Remark]:
    bad = int((~evidence.reliable).sum())
    if not bad:
        return [Remark(f"reliable for all {len(evidence):,} data")]
    if not evidence.is_bound:
        what = "NOT reliable, biased upwards: its error supposes independent draws"
        return [Remark(what, "take it for a comparison only; use log_evidence")]
    known = evidence.khat[~evidence.khat.isnan()]
    why = f" (k-hat: median {known.median():.2f}, largest {known.max():.2f})" if len(known) else ""
    what = f"NOT reliable for {bad:,} of {len(evidence):,} data{why}, whose log p(x) may be far too low"
    return [Remark(what, f"{_more(evidence)}; the certified bound holds all the same")]


def _more(evidence: Evidence) -> str:
    """Say how to get a better estimate."""
    if "max_evaluations" in evidence.settings:
        return f"raise max_evaluations above {evidence.settings['max_evaluations']:,}"
    if "num_temperatures" in evidence.settings:
        return "raise num_temperatures"
    return "use log_evidence, which anneals where that is needed"


def compared(comparison: Comparison) -> list[Card]:
    """Put the figures of a comparison on cards, nats per datum."""
    others = plus_minus(comparison.std_error, "±")
    return [
        Card("mean difference, a - b", f"{comparison.mean:+.3f}", others, "for other data of the same kind"),
        Card("Monte Carlo error", f"{comparison.mean_monte_carlo_std_error:.3f}", note="of the mean, for these data"),
        Card("a is better for", f"{int((comparison.difference > 0).sum()):,} of {len(comparison.difference):,}"),
    ]


def verdict(comparison: Comparison, a: str = "a", b: str = "b") -> list[Remark]:
    """Say which of two models explains data better, if two standard errors tell them apart; and what to doubt."""
    if not abs(comparison.mean) > 2 * comparison.std_error:
        remarks = [Remark(f"These {len(comparison.difference):,} data do not tell {a} and {b} apart")]
    else:
        better, worse = (a, b) if comparison.mean > 0 else (b, a)
        remarks = [
            Remark(f"{better} explains such data better than {worse}, by {abs(comparison.mean):.3f} nats a datum")
        ]
    if not comparison.num_unreliable:
        return remarks
    what = f"NOT reliable for {comparison.num_unreliable:,} of {len(comparison.difference):,} data, in one or the other"
    return [*remarks, Remark(what, "the difference may be wrong there; evaluate both by log_evidence")]
