"""Disks that fail while a run is saved: the checkpoint before stays, the parameters stay, and the error says what failed."""

import errno
import os
import resource
import shutil

import pytest
import torch
from faulty_disk import CONFIG, Failing, Full, Operations, assert_saved_whole, operations_of, rooms_of, saved
from fuzz import as_plain, small_vae, trained

import pyro_vae as pv
from pyro_vae.training import Callback, NotSavedError
from pyro_vae.training.run import Run, last_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("number", "for_good"),
    [
        *((errno.ENOSPC, False), (errno.EIO, True), (errno.EROFS, False)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((errno.ENOSPC, True), (errno.EIO, False), (errno.EROFS, True))
        ),
    ],
    ids=lambda value: errno.errorcode[value] if value > 1 else ["once", "for good"][value],
)
def test_each_operation_of_a_save_may_fail(tmp_path, number, for_good):
    counted = operations_of(tmp_path / "counted", lambda: saved(tmp_path / "counted", 2))
    assert counted.names.count("fsync") >= 8 and {"rename", "replace", "mkdir", "write"} <= set(counted.names)
    for at in range(1, counted.num_operations + 1):
        folder = tmp_path / str(at)
        assert_saved_whole(folder, Failing(number, at, for_good), lambda folder=folder: saved(folder, 2))


def test_there_may_be_room_for_a_part(tmp_path):
    """For each number of bytes around the ends of files, and between."""
    counted = operations_of(tmp_path / "counted", lambda: saved(tmp_path / "counted", 2))
    rooms = rooms_of(tmp_path / "counted", counted.num_bytes)
    assert len(rooms) > 20
    for room in rooms:
        run = tmp_path / str(room)
        assert_saved_whole(run, Full(room), lambda run=run: saved(run, 2))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_a_start_may_fail(tmp_path, number):
    """With an error that says so, and another start then works."""
    counted = Operations(lambda name: None)
    with counted.watched():
        Run(tmp_path / "counted", CONFIG, False).close()
    for at in range(1, counted.num_operations + 1):
        with (
            Failing(number, at, True).watched() as disk,
            pytest.raises(ValueError, match="expected a folder that can be"),
        ):
            Run(tmp_path / str(at), CONFIG, False)
        assert disk.num_operations >= at
        is_there = (tmp_path / str(at) / "config.json").exists()  # if only its folder could not be flushed
        Run(tmp_path / str(at), CONFIG, is_there).close()


# Through `fit`


class At(Callback):
    """Does something after so many steps."""

    def __init__(self, num_steps, act):
        self.num_steps, self.act = num_steps, act

    def on_step(self, progress, loss):
        if progress.num_steps == self.num_steps:
            self.act()


def replaced(run):
    shutil.rmtree(run)
    saved(run, 9)


def limited(run):
    """No file may be larger than so many bytes: a full disk without a disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


FAULTS = {
    "no room": (limited, "File too large"),
    "the folder is gone": (shutil.rmtree, "no longer the folder that this process began to train in"),
    "the folder was moved": (lambda run: run.rename(f"{run} moved"), "no longer the folder"),
    "another run in its place": (replaced, "no longer the folder"),
    "no folder of checkpoints": (lambda run: shutil.rmtree(run / "checkpoints"), "No such file"),
}


@pytest.fixture
def unlimited():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("fault", FAULTS)
def test_training_ends_and_loses_nothing(tmp_path, fault, unlimited, monkeypatch):
    """The parameters are those of the step, and what was saved before is there, to go on with."""
    monkeypatch.setattr("pyro_vae.training.run.SHARE_OF_TIME", 1e9)  # a checkpoint after each epoch
    act, message = FAULTS[fault]
    run, vae = tmp_path / "run", small_vae()
    with pytest.raises(
        NotSavedError,
        match=f"run: expected to write a checkpoint to '.*run' after step 6; got .*{message}.*step-000000004.*resume=True",
    ) as found:
        trained(run, vae=vae, num_epochs=4, callbacks=[At(5, lambda: act(run))])
    assert len(found.value.history) == 3
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert as_plain(vae.state_dict()) == as_plain(trained(tmp_path / "whole", num_epochs=3).state_dict())
    if fault == "no room":
        whole = trained(tmp_path / "all", num_epochs=4)
        assert as_plain(trained(run, num_epochs=4, resume=True).state_dict()) == as_plain(whole.state_dict())
    if fault == "another run in its place":
        assert last_checkpoint(run).training["num_steps"] == 9


def test_a_result_is_saved_whole_or_not_at_all(tmp_path):
    vae = small_vae()
    first, second = (pv.importance_sampling(vae.model, vae.guide, torch.randn(n, 3), num_samples=50) for n in (3, 5))
    path = tmp_path / "evidence.npz"
    counted = Operations(lambda name: None)
    with counted.watched():
        first.save(path)
    for at in range(1, counted.num_operations + 1):
        first.save(path)
        with Failing(errno.ENOSPC, at, True).watched(), pytest.raises(OSError, match="No space left"):
            second.save(path)
        is_replaced = "replace" in counted.names[: at - 1]  # and the folder could not be flushed
        assert len(pv.Evidence.load(path)) == (5 if is_replaced else 3)
        assert os.listdir(tmp_path) == ["evidence.npz"]
