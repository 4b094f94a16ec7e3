"""What a run was trained on, with which settings, and how to run it again: from files that are not trusted."""

from __future__ import annotations

import inspect
import math
import shlex
from collections.abc import Iterator
from typing import Any

from pyro_vae import _html
from pyro_vae.report.findings import Data, Findings, Record
from pyro_vae.report.page import code, heading, paragraph
from pyro_vae.training.fit import fit
from pyro_vae.vae import VAE

__all__ = ["differing", "how_to_repeat", "kind_of", "set_up"]

APART = {"parameters", "data", "validation", "versions", "program"}
"""Entries of `config.json` that are shown on their own, or in other words."""
LONGEST = 400
DEFAULTS = {name: each.default for name, each in inspect.signature(fit).parameters.items()}


def kind_of(record: Record, vae: VAE | None) -> str:
    """Say in a few words what was trained."""
    if record.is_of_a_pair:
        return f"A model and a guide, {_text(record.config.get('program'))}"
    if vae is None:
        return "A VAE"
    prior = type(vae.prior).__name__
    names = f"{prior}, {type(vae.likelihood).__name__}, {type(vae.posterior).__name__}"
    return f"A VAE of {math.prod(vae.event_shape):,} numbers a datum: {names}"


def set_up(record: Record, data: Data | None) -> str:
    """Tabulate data, settings, versions and size."""
    config = record.config
    rows_of_data = [
        ("trained on", _data(config.get("data"))),
        ("validated on", _data(config.get("validation")) if config.get("validation") is not None else "nothing"),
        ("shown and evaluated here", "nothing" if data is None else data.origin),
    ]
    others = {name: value for name, value in {**config, **record.settings}.items() if name not in APART}
    parts = [
        heading("Data"),
        _html.table(rows_of_data),
        heading("Settings"),
        _html.table(list(_flat(others))),
        heading("Program"),
        _html.table([*_size(config), *_flat({each: config.get(each, {}) for each in ("program", "versions")})]),
    ]
    return "".join(parts)


def _data(described: Any) -> str:
    """Put the provenance of data in a line."""
    if isinstance(described, list):
        return "; with ".join(map(_data, described))
    if not isinstance(described, dict):
        return _text(described)
    return ", ".join(f"{name} {_text(value)}" for name, value in described.items() if value is not None)


def _size(config: dict[str, Any]) -> list[tuple[str, str]]:
    shapes = config.get("parameters")
    if not isinstance(shapes, dict):
        return []
    sizes = [_product(shape) for shape in shapes.values()]
    return [("parameters and buffers", f"{sum(sizes):,} numbers in {len(sizes):,} tensors")]


def _product(shape: Any) -> int:
    is_sound = isinstance(shape, list) and all(type(each) is int and each >= 0 for each in shape)
    return math.prod(shape) if is_sound else 0


def _flat(values: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested dictionaries, each with its path."""
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value and path.count(".") < 3:
            yield from _flat(value, f"{path}.")
        else:
            yield _text(path), _text(value)


def _text(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def differing(one: Record, other: Record) -> list[tuple[str, str, str]]:
    """List the settings in which two runs differ."""
    a, b = (dict(_flat({**each.config, **each.settings, "parameters": ""})) for each in (one, other))
    names = [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]
    return [(name, a.get(name, "-"), b.get(name, "-")) for name in names]


def how_to_repeat(record: Record, findings: Findings, seed: int) -> str:
    """Show the command of the run, or else the call."""
    command = record.settings.get("command")
    if isinstance(command, list):
        command = shlex.join(map(str, command))
    if isinstance(command, str):
        return paragraph("The command that trained it:") + code(command)
    told = "The call that trained it, with the data above" if record.is_of_a_pair else "The calls, with the data above"
    words = (
        f"{told}; whoever repeats it needs the same data, as their sha256 tells, and the same versions to the digit."
    )
    return paragraph(words) + code("\n".join(_calls(record, findings, seed)))


def _calls(record: Record, findings: Findings, seed: int) -> Iterator[str]:
    program = "(model, guide)" if record.is_of_a_pair else "vae"
    options = [f"{name}={value}" for name, value in _options(record.config)]
    yield "import pyro_vae as pv"
    yield ""
    yield f"history = pv.fit(\n    {program}, data,\n" + "".join(f"    {each},\n" for each in options) + ")"
    if findings.evaluated is None or findings.evaluated.how == "":
        return
    pair = "model, guide" if record.is_of_a_pair else "vae.model, vae.guide"
    if not record.is_of_a_pair:
        yield f"vae = pv.load({str(record.folder)!r})"
    yield f"evidence = pv.log_evidence({pair}, test_data, seed={findings.evaluated.evidence.seed})"
    yield f"pv.write_report({str(record.folder)!r}, test_data, seed={seed})"


def _options(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the arguments of `fit` that are not its defaults, as they are typed."""
    for name, value in config.items():
        if name not in DEFAULTS or name in APART:
            continue
        if isinstance(value, dict):
            yield name, _made(value)
        elif value != DEFAULTS[name]:
            yield name, _text(repr(value))


def _made(value: dict[str, Any]) -> str:
    """Write an optimizer or an objective as the call that makes it."""
    if "optimizer" in value:
        return f"{_text(value['optimizer'])}({_text(value.get('options'))})"
    if "objective" in value:
        return f"{_text(value['objective'])}(num_particles={_text(value.get('num_particles'))})"
    return _text(value)
