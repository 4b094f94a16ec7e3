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
from pyro_vae import VAE, data
from pyro_vae._files import read_json, replace_file
from pyro_vae.cli.failure import Refusal, refuse
from pyro_vae.cli.model import make_vae
from pyro_vae.cli.rundata import RunData, Scaling, is_image, read_data
from pyro_vae.cli.settings import Settings
from pyro_vae.data import Dataset
from pyro_vae.training import Callback, Progress

__all__ = ["EVALUATION", "EVIDENCE", "SETTINGS", "KeepSettings", "OpenRun", "plain", "saved_settings", "write_json"]

SETTINGS, EVIDENCE, EVALUATION, HISTORY = "settings.json", "evidence.npz", "evaluation.json", "history.jsonl"


@dataclass
class KeepSettings(Callback):
    """Write the settings of a run into its folder when training begins."""

    run: Path
    settings: Settings
    data: RunData
    command: list[str]

    def on_start(self, progress: Progress) -> None:
        written = {
            "command": self.command,
            "settings": self.settings.as_dict(),
            "data": self.data.as_dict(),
            "version": pv.__version__,
        }
        write_json(self.run / SETTINGS, written)


class OpenRun:
    """A run that was trained, with its VAE and its data, each read when it is first asked for."""

    def __init__(self, folder: str, which: Any = "best") -> None:
        self.folder, self.which = Path(folder), which
        kept = saved_settings(self.folder)
        if kept is None:
            _refuse_no_run(self.folder)
        self.settings, self.recorded = Settings.kept(kept["settings"]), kept["data"]

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
        read = read_data(self.settings)
        for part in ("train", "test"):
            dataset, before = getattr(read, part), self.recorded[part]
            if dataset.provenance.sha256 != before["sha256"]:
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
        blank = data.from_tensor(torch.zeros(1, *self.shape))
        known = blank if self.settings.vae is None else self.data.train  # the user's own may look at the data
        made = make_vae(self.settings, self.shape, self.num_labels, known)
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
        shift, scale = self.recorded["shift"], self.recorded["scale"]
        return None if scale is None else Scaling(torch.tensor(shift), torch.tensor(scale))

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
        Settings.kept(kept["settings"])
        if not {"train", "test", "shape", "num_labels", "scale", "shift", "names"} <= kept["data"].keys():
            raise KeyError("data")
    except (OSError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise Refusal(
            f"{path}: expected the settings that training wrote; got a file that is damaged, or of another version "
            f"({type(error).__name__}); put it back from a copy, or train a new run"
        ) from error
    return kept


def _refuse_no_run(folder: Path) -> NoReturn:
    if (folder / "config.json").is_file():
        refuse(
            "run", "a run that pyro-vae trained", f"{str(folder)!r}, which pv.fit did from Python", "read it by pv.load"
        )
    found = f"{str(folder)!r}, which is {'not one' if folder.exists() else 'not there'}"
    refuse("run", "the folder of a run", found, f"train it: pyro-vae train {folder} --data ...")


def write_json(path: Path, values: Any) -> None:
    """Write a file whole, or not at all."""
    replace_file(path, json.dumps(plain(values), indent=1).encode())


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
