"""The folder of a run: what the command line keeps in it, and how it is opened again."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch

import pyro_vae as pv
from pyro_vae import VAE
from pyro_vae._files import read_file, read_json, replace_file, sha256_of
from pyro_vae.cli.failure import Refusal, refuse
from pyro_vae.cli.model import make_vae
from pyro_vae.cli.rundata import RunData, Scaling, is_image, read_data
from pyro_vae.cli.settings import PATHS, Settings
from pyro_vae.data import Dataset
from pyro_vae.training import Callback, Progress

__all__ = [
    "EVALUATION",
    "EVIDENCE",
    "SETTINGS",
    "KeepSettings",
    "OpenRun",
    "plain",
    "read_signed",
    "saved_settings",
    "write_signed",
]

SETTINGS, COLUMNS, HISTORY = "settings.json", "columns.json", "history.jsonl"
EVIDENCE, EVALUATION = "evidence.npz", "evaluation.json"
LARGEST_TABLE = 1 << 28
"""Bytes of what is kept of a table's columns."""


@dataclass
class KeepSettings(Callback):
    """Write the settings of a run into its folder when training begins."""

    run: Path
    settings: Settings
    data: RunData

    def on_start(self, progress: Progress) -> None:
        columns = self.data.columns()
        written = {
            "command": self.settings.command(self.run),
            "settings": self.settings.as_dict(),
            "data": self.data.as_dict(),
            "columns_sha256": _sha256(columns),
            "version": pv.__version__,
        }
        _write_json(self.run / COLUMNS, columns)
        _write_json(self.run / SETTINGS, {**written, "sha256": _sha256(_but_for_paths(written))})


class OpenRun:
    """A run that was trained, with its VAE and its data, each read when it is first asked for."""

    def __init__(self, folder: str, which: Any = "best") -> None:
        self.folder, self.which = Path(folder), which
        kept = saved_settings(self.folder)
        if kept is None:
            _refuse_no_run(self.folder)
        self.settings, self.recorded, self.columns = Settings.kept(kept["settings"]), kept["data"], kept["columns"]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one datum."""
        return tuple(self.recorded["shape"])

    @property
    def num_labels(self) -> int | None:
        """How many classes a conditional VAE is told of."""
        return self.recorded["num_labels"]

    @property
    def is_of_images(self) -> bool:
        """Whether a datum is an image."""
        return is_image(self.shape)

    @cached_property
    def data(self) -> RunData:
        """The data, if they are those that the run was trained on."""
        try:
            read = read_data(self.settings)
        except FileNotFoundError as error:
            refuse(
                str(self.folder), "the data that it was trained with", f"an error, {error}",
                f"put them back, or write where they lie now as data, test or data_dir into {self.folder / SETTINGS}",
            )  # fmt: skip
        for part in ("train", "validation", "test"):
            dataset, before = getattr(read, part), self.recorded[part]
            if dataset is not None and dataset.provenance.sha256 != before["sha256"]:
                source = self.settings.test if part == "test" and self.settings.test else self.settings.data
                refuse(
                    str(self.folder), f"the data that it was trained with, sha256 {before['sha256'][:12]}",
                    f"others in {source!r}, {dataset.provenance.sha256[:12]}: they have changed since",
                    "put them back, or train a new run",
                )  # fmt: skip
        return read

    @cached_property
    def vae(self) -> VAE:
        """The VAE with the parameters of the run."""
        train = None if self.settings.vae is None else lambda: self.data.train
        made = make_vae(self.settings, self.shape, self.num_labels, train)
        return pv.load(self.folder, made, which=self.which)

    def test_data(self, number: int | None, default: int) -> Dataset:
        """Return the first of the test data."""
        return self.data.test.first(default if number is None else number)

    def context(self, dataset: Dataset) -> tuple[torch.Tensor, ...]:
        """Return what goes to model and guide beside x."""
        return self.data.context(dataset)

    @property
    def scaling(self) -> Scaling | None:
        """How columns were standardized."""
        shift, scale = self.columns["shift"], self.columns["scale"]
        return None if scale is None else Scaling(torch.tensor(shift), torch.tensor(scale))

    @property
    def names(self) -> list[str] | None:
        """The names of a table's columns."""
        return self.columns["names"]

    @property
    def checkpoint(self) -> str | None:
        """Which parameters there are: the name changes when training goes on."""
        path = self.folder / "last.json"
        return read_json(path).get("checkpoint") if path.is_file() else None

    def evidence(self) -> pv.Evidence | None:
        """Read the last evaluation; None if there is none of these parameters."""
        if not ((self.folder / EVIDENCE).is_file() and (self.folder / EVALUATION).is_file()):
            return None
        record = read_signed(self.folder / EVALUATION)
        is_of_these = (record.get("checkpoint"), record.get("parameters")) == (self.checkpoint, self.which)
        return pv.Evidence.load(self.folder / EVIDENCE) if is_of_these else None

    def standardized(self, x: torch.Tensor) -> torch.Tensor:
        """Return data of the file as the VAE takes them."""
        return x if self.scaling is None else self.scaling.applied_to(x)

    def in_own_unit(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the VAE made, flat or not, as data of the file."""
        x = x.reshape(len(x), *self.shape)
        return x if self.scaling is None else self.scaling.undone(x)


def saved_settings(folder: Path) -> dict[str, Any] | None:
    """Read what `KeepSettings` wrote; None where there is nothing."""
    path = folder / SETTINGS
    if not path.is_file():
        return None
    try:
        kept = read_json(path)
        if kept.pop("sha256", None) != _sha256(_but_for_paths(kept)):
            raise ValueError("it was changed since, and not in data, test or data_dir alone")
        Settings.kept(kept["settings"])
        columns = _read_columns(folder / COLUMNS, kept["columns_sha256"])
    except (OSError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise Refusal(
            f"{path}: expected the settings that training wrote; got files that are damaged, or of another version "
            f"({type(error).__name__}: {str(error)[:200]}); put them back from a copy, or train a new run"
        ) from error
    return {**kept, "columns": columns}


def _but_for_paths(kept: dict[str, Any]) -> dict[str, Any]:
    """Leave out where the data lie, which may change; what they are is checked when they are read."""
    return {**kept, "settings": {name: value for name, value in kept["settings"].items() if name not in PATHS}}


def _read_columns(path: Path, sha256: str) -> dict[str, Any]:
    try:
        columns = json.loads(read_file(path, LARGEST_TABLE))
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deep") from error
    if _sha256(columns) != sha256:
        raise ValueError(f"{path.name} is not the one that was written beside it")
    return columns


def _refuse_no_run(folder: Path) -> NoReturn:
    if (folder / "config.json").is_file():
        refuse(
            "run", "a run that pyro-vae trained", f"{str(folder)!r}, which pv.fit did from Python", "read it by pv.load"
        )
    found = f"{str(folder)!r}, which is {'not one' if folder.exists() else 'not there'}"
    refuse("run", "the folder of a run", found, f"train it: pyro-vae train {folder} --data ...")


def write_signed(path: Path, values: dict[str, Any]) -> None:
    """Write a file whole, or not at all, with what tells whether it was changed since."""
    _write_json(path, {**values, "sha256": _sha256(values)})


def read_signed(path: Path) -> dict[str, Any]:
    """Read what `write_signed` wrote; raise a ValueError for anything else."""
    found = read_json(path)
    if found.pop("sha256", None) != _sha256(found):
        raise ValueError(
            f"{path}: expected what was written by this version; got another file, or one that was changed since; "
            "put it back from a copy, or run the command that writes it again."
        )
    return found


def _write_json(path: Path, values: Any) -> None:
    replace_file(path, json.dumps(plain(values), indent=1).encode())


def _sha256(values: Any) -> str:
    return sha256_of(json.dumps(plain(values), sort_keys=True).encode())


def plain(value: Any) -> Any:
    """Return a value as JSON has it: no tensor, no path, and None for what is not finite."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
