"""Options: those of `torchrun` stay apart, help lists all, and TOML gives the same settings."""

import argparse
import json
from dataclasses import fields

import pytest
from small_files import SMALL, command, write_table
from torch.distributed.run import get_args_parser

from pyro_vae.cli import parser
from pyro_vae.cli.evaluate import ESTIMATORS, OPTIONS
from pyro_vae.cli.settings import KINDS, Settings, flag_of


def commands():
    """The parser of each command, by name."""
    (action,) = (each for each in parser()._actions if isinstance(each, argparse._SubParsersAction))
    return action.choices


def options_of(made):
    return {option for action in made._actions for option in action.option_strings} - {"-h", "--help"}


TORCHRUN = options_of(get_args_parser())


@pytest.mark.parametrize("name", commands())
def test_no_option_is_a_prefix_of_one_of_torchrun_s(name):
    """`torchrun -m pyro_vae train ...` takes a prefix of its own options for an abbreviation."""
    ours = options_of(commands()[name])
    assert ours
    assert [(own, other) for own in ours for other in TORCHRUN if other.startswith(own) or own == other] == []


def test_torchrun_parses_a_command():
    words = ["-m", "pyro_vae", "train", "runs/a", "--data", "mnist", "--num-epochs", "5", "--seed", "0", "--resume"]
    found = get_args_parser().parse_args(words)
    assert [found.training_script, *found.training_script_args] == words[1:]


@pytest.mark.parametrize("name", commands())
def test_help_teaches(name, capsys):
    assert command(f"{name} --help") == 0
    out = capsys.readouterr().out
    assert f"  pyro-vae {name} " in out and "examples:" in out


def test_every_setting_has_a_flag_and_a_line_of_help():
    flags = options_of(commands()["train"])
    assert all(flag_of(name) in flags for name in KINDS if name != "image_fit")
    assert all(each.metadata["help"] for each in fields(Settings))


def test_every_estimator_s_options_are_its_own():
    import inspect

    taken = {name for estimate in ESTIMATORS.values() for name in inspect.signature(estimate).parameters}
    assert {name for name, _, _ in OPTIONS.values()} <= taken


TOML = """
data = "{data}"
num_epochs = 1
hidden_dims = [8]
latent_dim = 2
batch_size = 20
learning_rate = 0.01
standardize = false
"""


def test_toml_and_flags_which_win(tmp_path, run):
    data = write_table(tmp_path / "table.csv")
    (tmp_path / "settings.toml").write_text(TOML.format(data=data))
    found = run("train @0 --config @1 --seed 3 --latent-dim 1 --json", tmp_path / "run", tmp_path / "settings.toml")
    settings = found["settings"]
    assert (settings["hidden_dims"], settings["latent_dim"], settings["seed"]) == ([8], 1, 3)
    assert (settings["standardize"], settings["learning_rate"]) == (False, 0.01)
    kept = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert kept["settings"] == settings
    again = run(
        "train @0 --config @1 --seed 3 --latent-dim 1 --num-epochs 2 --resume --json",
        tmp_path / "run",
        tmp_path / "settings.toml",
    )
    assert again["num_epochs"] == 2


def test_nothing_is_printed_beside_the_answer_off_a_terminal(tmp_path, capsys):
    data = write_table(tmp_path / "table.csv")
    capsys.readouterr()
    assert command(f"train @0 --data @1 {SMALL} --json", tmp_path / "run", data) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["num_epochs"] == 2 and err == ""


def test_the_version(capsys):
    import pyro_vae

    assert command("--version") == 0
    assert capsys.readouterr().out == f"pyro-vae {pyro_vae.__version__}\n"
