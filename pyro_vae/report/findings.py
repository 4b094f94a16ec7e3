"""What a report says of a run: read from its folder, and found by evaluating its program on data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pyro_vae import _checks
from pyro_vae._files import read_json
from pyro_vae.data.dataset import Dataset
from pyro_vae.diagnostics import LatentUse, latent_use
from pyro_vae.evidence.auto import log_evidence
from pyro_vae.evidence.importance import importance_sampling
from pyro_vae.evidence.result import Evidence
from pyro_vae.training.history import History
from pyro_vae.training.load import load
from pyro_vae.training.run import last_checkpoint
from pyro_vae.vae import VAE

__all__ = ["Data", "Evaluated", "Findings", "Record", "find"]

NUM_USUAL_DRAWS = 1000
NUM_FOR_LATENTS = 500
"""Mutual information takes time in proportion to the square of their number."""

Pair = tuple[Callable[..., Any], Callable[..., Any]]
Other = str | PathLike[str] | tuple[str | PathLike[str], VAE | Pair] | Evidence


class Data(NamedTuple):
    """What model and guide are called with, x first; labels; and where it all comes from."""

    args: tuple[Any, ...]
    labels: Tensor | None
    origin: str
    label_names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, data: Any) -> Data:
        """Take a `Dataset`, a tensor, or a tuple of these and context."""
        x, *context = data if isinstance(data, tuple) else (data,)
        if isinstance(x, Dataset):
            return cls((x.x, *context), x.labels, str(x.provenance), x.label_names)
        x = _checks.tensor("data", x)
        return cls((x, *context), None, f"a tensor of shape {tuple(x.shape)}, whose origin is not on record")

    @property
    def x(self) -> Tensor:
        """The data themselves."""
        return self.args[0]

    def first(self, num_data: int) -> Data:
        """Return the first data."""
        args = tuple(_rows(each, len(self.x), num_data) for each in self.args)
        return self._replace(args=args, labels=None if self.labels is None else self.labels[:num_data])


def _rows(value: Any, num_data: int, num_first: int) -> Any:
    """Cut what has a row for each datum."""
    return value[:num_first] if getattr(value, "shape", ())[:1] == (num_data,) else value


class Record(NamedTuple):
    """What the folder of a run says of it. Its files are not trusted: whatever is shown of them is escaped."""

    folder: Path
    config: dict[str, Any]
    settings: dict[str, Any]
    """How the command line made data and program; empty for a run by `fit`."""
    history: History
    saved_at: float

    @classmethod
    def of(cls, run: str | PathLike[str]) -> Record:
        """Read the folder of a run."""
        folder = Path(run)
        if not (folder / "last.json").exists():
            raise ValueError(
                f"run: expected a folder that fit(..., run=...) kept a run in; got {str(run)!r}, without a checkpoint; "
                "train with run=... first."
            )
        settings = read_json(folder / "settings.json") if (folder / "settings.json").exists() else {}
        history = _history(folder, last_checkpoint(folder).training.get("history"))
        saved_at = (folder / "last.json").stat().st_mtime
        return cls(folder, read_json(folder / "config.json"), settings, history, saved_at)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def is_of_a_pair(self) -> bool:
        """Whether a model and a guide were trained that are not those of a VAE."""
        return isinstance(self.config.get("program"), list)


def _history(folder: Path, columns: Any) -> History:
    history = History()
    known = set(history.as_dict())
    is_sound = isinstance(columns, dict) and all(
        name in known and isinstance(column, list) and all(isinstance(each, float) for each in column)
        for name, column in columns.items()
    )
    if not is_sound:
        raise ValueError(
            f"{folder}: expected a history of numbers; got another; restore it from a copy, or train anew."
        )
    return History(**columns)


class Evaluated(NamedTuple):
    """A program on data."""

    evidence: Evidence
    usual: Evidence | None
    """Importance sampling from the guide, of the same data."""
    how: str


@dataclass(frozen=True)
class Findings:
    """All that a report says.

    Attributes:
        record: of the folder.
        vae: that of the run, if it is one.
        data: those that are shown and evaluated.
        evaluated: log p(x) of the first of them.
        use: of the latents, over as many data as are known, or why it is not known.
        other: another run on the same data, and its record, if that is a folder.
    """

    record: Record
    vae: VAE | None
    data: Data | None
    evaluated: Evaluated | None
    use: LatentUse | str
    other: tuple[Record | None, Evidence] | None


def find(
    run: str | PathLike[str],
    data: Any,
    vae: VAE | Pair | None,
    evidence: Evidence | None,
    compare_with: Other | None,
    num_data: int,
    seed: int,
    progress: bool,
) -> Findings:
    """Read a run, and evaluate its program."""
    record = Record.of(run)
    program = vae if vae is not None or record.is_of_a_pair else load(run)
    pair = None if program is None else _pair(program)
    given = None if data is None else Data.of(data)
    given = _on_the_device(given, program) or _observed(evidence, program)
    if pair is None or given is None:
        evaluated = None if evidence is None else Evaluated(evidence, None, "the evaluation that was passed")
        known = _observed(evidence, None) if pair is None else given
        reason = "the program is not here" if pair is None else "there are no data"
        return Findings(record, None, known, evaluated, reason, _other(compare_with, None, seed, progress))
    evaluated = _evaluated(pair, given, evidence, num_data, seed, progress)
    some = given.first(len(evaluated.evidence))
    return Findings(
        record,
        program if isinstance(program, VAE) else None,
        given,
        evaluated,
        _use(pair, given.first(NUM_FOR_LATENTS), seed),
        _other(compare_with, some, seed, progress),
    )


def _pair(program: VAE | Pair) -> Pair:
    return (program.model, program.guide) if isinstance(program, VAE) else program


def _on_the_device(data: Data | None, program: VAE | Pair | None) -> Data | None:
    if data is None or not isinstance(program, VAE):
        return data
    device = next(program.parameters()).device
    moved = (each.to(device) if isinstance(each, Tensor) else each for each in data.args)
    return data._replace(args=tuple(moved))


def _observed(evidence: Evidence | None, program: VAE | Pair | None) -> Data | None:
    """Take the data that were evaluated, if they are all that is observed; a program may take more than these."""
    if evidence is None or len(evidence.observed.values) != 1 or isinstance(program, tuple):
        return None
    (x,) = evidence.observed.values.values()
    return Data((x,), None, f"the {len(x):,} data of the evaluation, whose origin is not on record")


def _evaluated(
    pair: Pair, data: Data, evidence: Evidence | None, num_data: int, seed: int, progress: bool
) -> Evaluated:
    some = data.first(num_data if evidence is None else len(evidence))
    how = "the evaluation that was passed"
    if evidence is None:
        evidence = log_evidence(*pair, *some.args, seed=seed, progress=progress)
        how = f"log_evidence, called for this page on the first {len(evidence):,} of {len(data.x):,} data"
    if set(evidence.method) == {"importance sampling from the guide"}:
        return Evaluated(evidence, evidence, how)
    usual = importance_sampling(*pair, *some.args, num_samples=NUM_USUAL_DRAWS, seed=seed, progress=progress)
    if usual.observed.fingerprint != evidence.observed.fingerprint:
        raise ValueError(
            f"evidence: expected that of the first {len(evidence):,} of the data; got that of others; pass the data "
            "that were evaluated."
        )
    return Evaluated(evidence, usual, how)


def _use(pair: Pair, data: Data, seed: int) -> LatentUse | str:
    try:
        return latent_use(*pair, *data.args, seed=seed)
    except (TypeError, ValueError) as error:  # of a guide whose density at other draws is not known
        return str(error)


def _other(
    compare_with: Other | None, data: Data | None, seed: int, progress: bool
) -> tuple[Record | None, Evidence] | None:
    if compare_with is None:
        return None
    if isinstance(compare_with, Evidence):
        return None, compare_with
    if data is None:
        raise ValueError("compare_with: expected Evidence, or data to evaluate both runs on; got neither; pass data.")
    folder, program = compare_with if isinstance(compare_with, tuple) else (compare_with, load(compare_with))
    return Record.of(folder), log_evidence(*_pair(program), *data.args, seed=seed, progress=progress)
