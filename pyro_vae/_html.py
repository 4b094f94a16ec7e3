"""Results as HTML: cards, tables and remarks, for a notebook and for a page. All text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

__all__ = ["STYLE", "Card", "Remark", "cards", "in_a_notebook", "remarks", "table"]

STYLE = """
.pv-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.6rem, 1fr)); gap: .6rem; margin: .6rem 0; }
.pv-card { padding: .55rem .8rem; border: 1px solid rgba(128,128,128,.35);
  border-radius: .5rem; text-align: left; line-height: 1.35; }
.pv-card b { display: block; font-size: 1.45em; line-height: 1.2; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.pv-card b small { display: inline-block; font-size: .6em; font-weight: 400; white-space: nowrap; }
.pv-card .pv-note { font-size: .85em; opacity: .8; }
.pv-remarks { margin: .6rem 0; padding: 0; list-style: none; }
.pv-remarks li { margin: .4rem 0; padding: .1rem 0 .1rem .7rem; border-left: .25rem solid rgba(128,128,128,.5); }
.pv-remarks li.pv-warning { border-color: #d9822b; }
.pv-table { overflow-x: auto; }
.pv-table table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.pv-table th, .pv-table td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; font-weight: 400;
  border-bottom: 1px solid rgba(128,128,128,.25); }
.pv-table thead th { font-weight: 600; }
.pv-table td + td:last-child { overflow-wrap: anywhere; }
.pv-table td.pv-number { text-align: right; white-space: nowrap; }
.pv-table th.pv-number { text-align: right; }
"""
"""Greys are half transparent, so that they suit light pages and dark ones."""


class Card(NamedTuple):
    """A figure that is read at a glance."""

    name: str
    value: str
    error: str = ""
    note: str = ""


class Remark(NamedTuple):
    """What is the case; and where it is a warning, what to do about it."""

    what: str
    remedy: str = ""

    @property
    def text(self) -> str:
        """One line."""
        return f"{self.what}. {self.remedy[0].upper()}{self.remedy[1:]}." if self.remedy else self.what


def cards(some: Iterable[Card]) -> str:
    """Lay out cards side by side, as many as fit."""
    return f'<div class="pv-cards">{"".join(map(_card, some))}</div>'


def _card(card: Card) -> str:
    error = f" <small>{escape(card.error)}</small>" if card.error else ""
    note = f'<div class="pv-note">{escape(card.note)}</div>' if card.note else ""
    return f'<div class="pv-card">{escape(card.name)}<b>{escape(card.value)}{error}</b>{note}</div>'


def remarks(some: Iterable[Remark]) -> str:
    """List remarks, warnings marked."""
    items = "".join(map(_remark, some))
    return f'<ul class="pv-remarks">{items}</ul>' if items else ""


def _remark(remark: Remark) -> str:
    if not remark.remedy:
        return f"<li>{_sentence(remark.what)}</li>"
    return f'<li class="pv-warning"><strong>{_sentence(remark.what)}</strong> {_sentence(remark.remedy)}</li>'


def _sentence(text: str) -> str:
    return f"{escape(text[:1].upper())}{escape(text[1:])}."


def table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Tabulate rows; numbers, and what stands above them, are aligned to the right."""
    rows = [list(row) for row in rows]
    kinds = map(_kind, rows[0]) if rows else [""] * len(header)
    heads = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(header, kinds, strict=False))
    head = f"<thead><tr>{heads}</tr></thead>" if header else ""
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="pv-table"><table>{head}<tbody>{body}</tbody></table></div>'


def _cell(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return f"<td{_kind(value)}>{escape(text)}</td>"


def _kind(value: object) -> str:
    return ' class="pv-number"' if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def in_a_notebook(*parts: str) -> str:
    """Join parts, with their style."""
    return f"<div><style>{STYLE}</style>{''.join(parts)}</div>"
