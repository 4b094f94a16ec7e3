"""Read tables of numbers: `.csv` with numpy and the standard library, `.parquet` with pyarrow, imported only here."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyro_vae import _checks

__all__ = ["Table", "read_csv", "read_parquet"]

MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
DELIMITERS = (",", ";", "\t")
LABELS = {"label", "labels"}


class Table(NamedTuple):
    """Columns of numbers `(N, D)`, NaN where a value is missing; their names; and the labels, if a column has them."""

    values: np.ndarray
    names: tuple[str, ...]
    labels: np.ndarray | None


def read_csv(path: Path) -> Table:
    """Read numbers between commas, semicolons or tabs, with or without a line of names."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data: expected a table as text in UTF-8; got {str(path)!r} ({error.reason} at byte {error.start}); save "
            "it again as CSV UTF-8."
        ) from error
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    delimiter = max(DELIMITERS, key=first.count)
    rows = [(number, row) for number, row in enumerate(csv.reader(lines, delimiter=delimiter), start=1) if any(row)]
    if not rows:
        raise ValueError(f"data: expected a table of numbers; got {str(path)!r}, which is empty; name another.")
    names = None if all(map(_is_number, rows[0][1])) else tuple(name.strip() for name in rows[0][1])
    body = rows if names is None else rows[1:]
    if not body:
        raise ValueError(f"data: expected rows of numbers in {str(path)!r}; got a line of names alone; add rows.")
    names = names or tuple(str(number) for number in range(1, 1 + len(body[0][1])))
    return _table(path, _numbers(path, names, body), names)


def read_parquet(path: Path) -> Table:
    """Read the columns of a parquet file."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise _checks.missing_package("data", "pyarrow", f"to read {str(path)!r} (or save it as .csv)") from error
    try:
        columns = parquet.read_table(path).to_pydict()
    except (ArrowException, OSError) as error:
        raise ValueError(
            f"data: expected a parquet file; got {str(path)!r} ({str(error).splitlines()[0]}); save it again."
        ) from error
    names = tuple(columns)
    if not names or not columns[names[0]]:
        raise ValueError(f"data: expected rows of numbers; got {str(path)!r}, which has none; name another.")
    rows = zip(*columns.values(), strict=True)
    cells = [(number, ["" if cell is None else str(cell) for cell in row]) for number, row in enumerate(rows, start=1)]
    return _table(path, _numbers(path, names, cells), names)


def _is_number(cell: str) -> bool:
    return _number(cell) is not None


def _number(cell: str) -> float | None:
    """Return a cell's number, NaN if it is missing, None if it is text."""
    if cell.strip().lower() in MISSING:
        return float("nan")
    try:
        return float(cell)
    except ValueError:
        return None


def _numbers(path: Path, names: Sequence[str], rows: list[tuple[int, list[str]]]) -> np.ndarray:
    values = np.empty((len(rows), len(names)))
    for place, (number, row) in enumerate(rows):
        if len(row) != len(names):
            raise ValueError(
                f"data: expected {len(names)} columns in each line of {str(path)!r}; got {len(row)} in line {number}; "
                "complete or remove it."
            )
        for column, cell in enumerate(row):
            found = _number(cell)
            if found is None:
                raise ValueError(
                    f"data: expected numbers in {str(path)!r}; got {cell[:40]!r} in line {number}, column "
                    f"{names[column]!r}; code text as numbers, or remove the column."
                )
            values[place, column] = found
    return values


def _table(path: Path, values: np.ndarray, names: tuple[str, ...]) -> Table:
    """Take the column of labels out."""
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"data: expected a name for each column of {str(path)!r}; got {twice!r} twice; rename one of them."
        )
    place = next((place for place, name in enumerate(names) if name.lower() in LABELS), None)
    if place is None:
        return Table(values, names, None)
    labels = values[:, place]
    if not ((labels == np.round(labels)) & (np.abs(labels) < 2**53)).all():
        raise ValueError(
            f"labels: expected whole numbers in column {names[place]!r} of {str(path)!r}; got others, or missing ones; "
            "number the classes from 0, or rename the column."
        )
    if len(names) == 1:
        raise ValueError(f"data: expected data beside the labels in {str(path)!r}; got labels alone; add columns.")
    kept = [column for column in range(len(names)) if column != place]
    return Table(values[:, kept], tuple(names[column] for column in kept), labels.astype(np.int64))
