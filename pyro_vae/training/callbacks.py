"""What is done beside training: a progress bar, and logs."""

from __future__ import annotations

import csv
import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from pyro_vae.training.history import History

__all__ = ["CSV", "Callback", "JSONLines", "Progress", "ProgressBar", "TensorBoard"]


@dataclass
class Progress:
    """How far training is.

    Attributes:
        history: one entry a finished epoch.
        num_epochs: how many there will be.
        num_batches: steps an epoch.
        num_steps: steps taken since the first epoch.
    """

    history: History
    num_epochs: int
    num_batches: int
    num_steps: int = 0


class Callback:
    """The moments of training at which something else can be done; each does nothing by itself.

    They come after the state is safe: what a callback raises ends training, and loses nothing. What it draws leaves
    training as it is. Of several processes (`docs/distributed.md`) the first alone calls them.
    """

    def on_start(self, progress: Progress) -> None:
        """Before the first step; a resumed run has a history then."""

    def on_compile(self, progress: Progress) -> None:
        """Before a step or an evaluation that is compiled first, which takes seconds, or up to a minute."""

    def on_step(self, progress: Progress, loss: Any) -> None:
        """After a step, with its loss of the whole batch, nats: a number, or a tensor if the step was compiled."""

    def on_epoch(self, progress: Progress) -> None:
        """After an epoch, its validation and its checkpoint."""

    def on_end(self, progress: Progress) -> None:
        """After the last epoch, and whenever training ends by an error or a signal."""


class ProgressBar(Callback):
    """A bar with the ELBO of training and validation; in a terminal or a notebook, and nowhere else."""

    words, is_compiling = "", False

    def on_start(self, progress: Progress) -> None:
        initial = len(progress.history)
        disable = bool(os.environ.get("TQDM_DISABLE")) or None  # None: off a terminal
        self.bar = tqdm(total=progress.num_epochs, initial=initial, unit="epoch", disable=disable)

    def on_compile(self, progress: Progress) -> None:
        self.is_compiling = True
        self.bar.set_postfix_str("compiling, once, for 5 to 60 s")

    def on_step(self, progress: Progress, loss: Any) -> None:
        if self.is_compiling:
            self.is_compiling = False
            self.bar.set_postfix_str(self.words)

    def on_epoch(self, progress: Progress) -> None:
        history = progress.history
        validation = f", validation {history.validation_elbo[-1]:.2f}" if history.validation_elbo else ""
        self.words = f"ELBO: train {history.train_elbo[-1]:.2f}{validation} nats"
        self.bar.set_postfix_str(self.words)
        self.bar.update()

    def on_end(self, progress: Progress) -> None:
        self.bar.close()


class _Log(Callback, ABC):
    """A file with one line an epoch, written anew from the history when training starts or goes on."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def on_start(self, progress: Progress) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(self.lines(progress.history, range(len(progress.history)))))

    def on_epoch(self, progress: Progress) -> None:
        with self.path.open("a") as file:
            file.writelines(self.lines(progress.history, range(len(progress.history) - 1, len(progress.history))))

    @abstractmethod
    def lines(self, history: History, epochs: range) -> list[str]:
        """Return the lines of some epochs, counted from 0."""


class JSONLines(_Log):
    """A file of one JSON object an epoch: {"epoch": 1, "train_elbo": -120.3, ...}."""

    def lines(self, history: History, epochs: range) -> list[str]:
        return [json.dumps(row) + "\n" for row in map(history.row, epochs)]


class CSV(_Log):
    """A table of one row an epoch, with a header."""

    def lines(self, history: History, epochs: range) -> list[str]:
        class Lines(list[str]):
            write = list.append

        lines = Lines()
        writer = csv.writer(lines)
        if 0 in epochs:
            writer.writerow(history.row(0))
        writer.writerows(history.row(epoch).values() for epoch in epochs)
        return lines


class TensorBoard(Callback):
    """Curves for TensorBoard, which has to be installed."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def on_epoch(self, progress: Progress) -> None:
        row = progress.history.row(len(progress.history) - 1)
        for name, value in row.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, row["epoch"])

    def on_end(self, progress: Progress) -> None:
        self.writer.flush()
