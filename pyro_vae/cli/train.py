"""`pyro-vae train`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

import pyro_vae as pv
from pyro_vae.cli.answer import Answer, add_command, shows_progress
from pyro_vae.cli.arguments import add_settings
from pyro_vae.cli.failure import refuse
from pyro_vae.cli.folder import HISTORY, SETTINGS, KeepSettings, saved_settings
from pyro_vae.cli.model import make_vae, settled
from pyro_vae.cli.rundata import RunData, read_data
from pyro_vae.cli.settings import KINDS, PATHS, Settings, read_toml
from pyro_vae.distributed import alike, team
from pyro_vae.training import JSONLines

__all__ = ["add_train"]

ABOUT = """Train a VAE and keep it in a folder.

The data decide what is not given: binary data and grey images get Bernoulli pixels, all other data Gaussian ones. A
part of them is held out for `evaluate`. Settings may also stand in a TOML file, --config, by the names of the options
with underscores; options of the command line win. A run that was interrupted goes on with --resume, to the bit."""

EXAMPLES = """examples:
  pyro-vae train runs/digits --data mnist --num-epochs 20
  pyro-vae train runs/faces --data photos/ --image-size 48x36 --crop --early-stopping 10
  pyro-vae train runs/iris --data iris.csv --latent-dim 2 --hidden-dims 32
  pyro-vae train runs/digits --data mnist --num-epochs 40 --resume        # go on, for more epochs
  pyro-vae train runs/mine --data cells.npz --vae models:make_vae         # your own VAE, from models.py

  The same from a file, settings.toml:   data = "mnist"
                                         likelihood = "bernoulli"
                                         hidden_dims = [400, 400]
  pyro-vae train runs/digits --config settings.toml --seed 1"""


def _objective(settings: Settings) -> ELBO:
    options: dict[str, Any] = {
        "num_particles": settings.num_particles, "vectorize_particles": True, "max_plate_nesting": 1
    }  # fmt: skip
    if settings.objective == "iwelbo":
        return pv.objectives.IWELBO(gradient="dreg", **options)
    if settings.objective == "beta":
        return pv.objectives.BetaELBO(
            1.0 if settings.beta is None else settings.beta, settings.free_bits or 0.0, **options
        )
    return {"mean-field": TraceMeanField_ELBO, "trace": Trace_ELBO}[settings.objective](**options)


def add_train(commands: Any) -> None:
    """Declare the command."""
    parser = add_command(commands, "train", train, ABOUT, EXAMPLES)
    parser.add_argument("run", help="the folder to keep the run in; new, or empty, or that of a run to --resume")
    parser.add_argument("--config", metavar="FILE", help="settings from a TOML file")
    parser.add_argument(
        "--resume", nargs="?", const="yes", choices=["yes", "auto"],
        help="go on with the run in the folder; auto: if there is one, else begin",
    )  # fmt: skip
    add_settings(parser)


def train(args: argparse.Namespace) -> Answer:
    """Train, or go on with a run."""
    folder = Path(args.run)
    given = {**({} if args.config is None else read_toml(args.config)), **_flags(args)}
    resume: bool | Literal["auto"] = {None: False, "yes": True, "auto": "auto"}[args.resume]  # type: ignore[assignment]
    settings = _first_to_look(lambda: _of_folder(folder, given, resume))
    settings, data, vae = alike(lambda: _made(settings))
    history = _fit(vae, data, settings, folder, resume)
    return _answer(folder, settings, data, history)


def _first_to_look(look: Callable[[], Settings]) -> Settings:
    """Have the first of several processes look into the folder, which it will write to."""
    found = team()
    return look() if found is None else found.by_the_first(look)


def _of_folder(folder: Path, given: dict[str, Any], resume: bool | Literal["auto"]) -> Settings:
    _refuse_folder(folder, resume)
    return _settings(folder, given, bool(resume))


def _made(settings: Settings) -> tuple[Settings, RunData, pv.VAE]:
    """Read the data, settle what they decide, and make the VAE."""
    _refuse_device(settings.device)
    data = read_data(settings)
    settings = settled(settings, data)
    vae = make_vae(settings, data.shape, data.num_labels, lambda: data.train).to(settings.device)
    return settings, data, vae


def _flags(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if name in KINDS}


def _settings(folder: Path, given: dict[str, Any], resume: bool) -> Settings:
    """Take the settings that are given; of a run that goes on, those that it was started with."""
    kept = saved_settings(folder) if resume else None
    if kept is None:
        return Settings.of(given)
    before = Settings.kept(kept["settings"])
    given = {name: getattr(Settings.of({"data": before.data, name: value}), name) if name in PATHS else value
             for name, value in given.items()}  # fmt: skip
    before.refuse_others(given, folder)
    return Settings(**{**before.as_dict(), **given})


def _refuse_folder(folder: Path, resume: bool | Literal["auto"]) -> None:
    """Refuse what `fit` would, before data are read."""
    if folder.exists() and not folder.is_dir():
        refuse("run", "a folder", f"the file {str(folder)!r}", "name another")
    if resume is True and not (folder / "config.json").exists():
        refuse(
            "--resume", "a folder with a run to go on with", repr(str(folder)), "leave it out, or pass --resume auto"
        )
    if resume is False and folder.exists() and any(folder.iterdir()):
        refuse("run", "a new or an empty folder", f"{str(folder)!r}, which is not", "pass --resume, or name another")


def _refuse_device(device: str) -> None:
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        refuse("--device", "a device of this machine", f"{device} ({str(error).splitlines()[0]})", "pass cpu, say")


def _fit(vae: pv.VAE, data: RunData, settings: Settings, folder: Path, resume: bool | Literal["auto"]) -> pv.History:
    keep = KeepSettings(folder, settings, data)
    return pv.fit(
        vae, data.with_context(data.train), validation=data.with_context(data.validation),
        objective=_objective(settings), optim=pv.FusedAdam({"lr": settings.learning_rate}),
        num_epochs=settings.num_epochs, batch_size=settings.batch_size, seed=settings.seed,
        kl_warmup=settings.kl_warmup,
        clip_grad_norm=settings.clip_grad_norm, early_stopping=settings.early_stopping, run=folder, resume=resume,
        callbacks=[keep, JSONLines(folder / HISTORY)], progress=shows_progress(),
    )  # fmt: skip


def _answer(folder: Path, settings: Settings, data: RunData, history: pv.History) -> Answer:
    values = {
        "run": str(folder),
        "num_epochs": len(history),
        "train_elbo": history.train_elbo[-1],
        "validation_elbo": history.validation_elbo[-1] if history.validation_elbo else None,
        "seconds": sum(history.seconds),
        "execution": history.execution,
        "settings": settings.as_dict(),
        "data": data.as_dict(),
    }
    what = settings.vae or f"{settings.likelihood}, {settings.latent_dim} latent numbers"
    name = "ELBO" if settings.objective in ("mean-field", "trace") else settings.objective
    validation = f", {history.validation_elbo[-1]:.3f} of validation" if history.validation_elbo else ""
    lines = [
        f"data        {data.train.provenance}",
        f"held out    {len(data.test):,} to test, {len(data.validation or ()):,} to validate",
        f"VAE         {what}",
        f"trained     {len(history):,} epochs in {sum(history.seconds):.0f} s",
        f"{name:<12}{history.train_elbo[-1]:.3f} of training{validation}; nats per datum",
        f"kept in     {folder}/ ({SETTINGS}, checkpoints, {HISTORY})",
        f"next        pyro-vae evaluate {shlex.quote(str(folder))}",
    ]
    return Answer("\n".join(lines), values)
