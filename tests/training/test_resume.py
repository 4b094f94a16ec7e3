"""What users do with a run that is there: go on with more, copy it, move it, do it twice, change their mind."""

import shutil

import pytest
import torch
from damage import tree
from fuzz import as_plain, small_vae, trained

import pyro_vae as pv
from pyro_vae.training import Callback, EarlyStopping
from pyro_vae.training.run import last_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:num_epochs. expected more")
NOTHING = "num_epochs: expected more than 2, to train on a run that has 2 epochs; got {}; nothing is trained"


@pytest.fixture
def run(tmp_path):
    """A run of two epochs."""
    trained(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The parameters after four epochs in one go."""
    return as_plain(trained(tmp_path_factory.mktemp("whole") / "run", num_epochs=4).state_dict())


def resumed(run, **options):
    return as_plain(trained(run, num_epochs=4, resume=True, **options).state_dict())


def test_more_epochs(run, expected):
    assert resumed(run) == expected


def test_a_copy(run, expected, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    assert resumed(tmp_path / "copy") == resumed(run) == expected


def test_a_run_that_was_moved(run, expected, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    run.rename(tmp_path / "elsewhere" / "b")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resumed("b") == expected


def test_a_run_behind_a_link(run, expected, tmp_path):
    (tmp_path / "link").symlink_to(run)
    assert resumed(tmp_path / "link") == expected


def test_checkpoints_on_another_disk(run, expected, tmp_path):
    (run / "checkpoints").rename(tmp_path / "disk")
    (run / "checkpoints").symlink_to(tmp_path / "disk")
    assert resumed(run) == expected


def test_twice(run, expected):
    trained(run, num_epochs=3, resume=True)
    assert resumed(run) == expected


@pytest.mark.parametrize("num_epochs", [2, 1])
def test_after_it_was_done(run, num_epochs):
    """It says so, returns the history, and writes nothing."""
    before, vae = tree(run), small_vae(7)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=NOTHING.format(num_epochs)):
        history = pv.fit(
            vae, x, num_epochs=num_epochs, batch_size=10, validation=x[:5], run=run, resume="auto", progress=False
        )
    assert tree(run) == before and len(history) == 2
    assert as_plain(vae.state_dict()) == as_plain(pv.load(run, small_vae(), "last").state_dict())


def test_after_early_stopping(tmp_path):
    options = {"early_stopping": EarlyStopping(1, min_gain=1e6), "num_epochs": 9}
    first = trained(tmp_path / "run", **options)
    with pytest.warns(UserWarning, match="early_stopping: expected more patience, to train on a run that has 2 epochs"):
        again = trained(tmp_path / "run", **options, resume="auto")
    assert as_plain(first.state_dict()) == as_plain(again.state_dict())


def test_changes_that_are_refused(run):
    """With what is other, by name; the run stays as it was, and goes on as it was started."""
    before = tree(run)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(9))
    changes = {
        "batch_size": {"batch_size": 5},
        "validation": {"validation": x[:5]},
        "drop_last": {"drop_last": True},
        "clip_grad_norm": {"clip_grad_norm": 1.0},
        "optim": {"optim": pv.FusedAdam({"lr": 0.5})},
        "early_stopping": {"early_stopping": 3},
        "schedule": {"schedule": lambda step: 1.0},
    }
    for name, change in changes.items():
        with pytest.raises(ValueError, match=f"run: expected the settings that the run in .* got {name}.* instead of"):
            resumed(run, **change)
    with pytest.raises(ValueError, match="got data.sha256="):
        pv.fit(small_vae(), x, num_epochs=4, batch_size=10, validation=x[:5], run=run, resume=True, progress=False)
    assert tree(run) == before
    resumed(run)


def test_a_config_that_was_edited_by_hand(run):
    text = (run / "config.json").read_text()
    for before, after, message in (
        ('"batch_size": 10', '"batch_size": 5', "got batch_size=10 instead of 5"),
        ('"num_epochs": 2', '"num_epochs": 3', "config.json: expected sha256"),
        ('"num_epochs": 2', '"num_epochs": NaN', "config.json: expected JSON; got NaN"),
    ):
        assert before in text
        (run / "config.json").write_text(text.replace(before, after))
        with pytest.raises(ValueError, match=message):
            resumed(run)
    (run / "config.json").write_text(text)
    resumed(run)


def test_files_that_killed_processes_left_are_removed(run, expected):
    """And nothing else."""
    (run / ".last.json.123").write_text("{")
    (run / "notes.txt").write_text("mine")
    for name in (".step-000000002.99", "step-000000002"):
        (run / "checkpoints" / name).mkdir()
        (run / "checkpoints" / name / "weights.safetensors").write_bytes(b"")
    (run / "checkpoints" / "mine").mkdir()
    assert resumed(run) == expected
    assert {path.name for path in run.iterdir()} == {"checkpoints", "config.json", "last.json", "lock", "notes.txt"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-000000008", "mine"}


def test_what_is_no_run_is_not_made_one(tmp_path):
    (tmp_path / "file").write_text("text")
    for resume, message in {
        False: "can be written to",
        "auto": "can be written to",
        True: "with a run to resume",
    }.items():
        with pytest.raises(ValueError, match=f"run: expected a folder (that )?{message}"):
            trained(tmp_path / "file", resume=resume)
    assert (tmp_path / "file").read_text() == "text"


def test_a_run_without_a_checkpoint_starts_again(tmp_path, expected):
    """As one that was killed in its first epoch."""

    class Stop(Callback):
        def on_step(self, progress, loss):
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        trained(tmp_path / "run", callbacks=[Stop()])
    with pytest.raises(ValueError, match=r"last.json: expected the name of a checkpoint; got none, as no epoch"):
        last_checkpoint(tmp_path / "run")
    assert resumed(tmp_path / "run") == expected
