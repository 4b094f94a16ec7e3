"""What can happen to the files of a run; each is to be refused by name, with nothing changed on disk or in memory."""

import io
import json
import os
import pickle
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from fuzz import SIGNED, as_plain, path_in, sign_anew, sign_config, sign_manifest, small_vae, trained

import pyro_vae as pv

FILES = (
    "config.json",
    "last.json",
    "manifest.json",
    "weights.safetensors",
    "best.safetensors",
    "training.json",
    "training.safetensors",
)


class Bomb:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("code of a pickle was run",)


def zip_bomb() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 26))
    return packed.getvalue()


def torch_bomb() -> bytes:
    packed = io.BytesIO()
    torch.save({"place": Bomb()}, packed)
    return packed.getvalue()


def linked(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(other)


def to_a_folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def to_a_pipe(path: Path, other: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def huge(path: Path, other: Path) -> None:
    """A sparse file of a terabyte."""
    with path.open("r+b") as file:
        file.truncate(1 << 40)


def written(change) -> Any:
    return lambda path, other: path.write_bytes(change(path.read_bytes()))


def flipped(content: bytes) -> bytes:
    place = len(content) // 3
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGES = {
    "removed": lambda path, other: path.unlink(),
    "empty": written(lambda content: b""),
    "truncated": written(lambda content: content[: len(content) // 2]),
    "a bit flipped": written(flipped),
    "longer": written(lambda content: content + b"\0" * 10),
    "a terabyte": huge,
    "another run's": lambda path, other: shutil.copy(other, path),
    "a folder": to_a_folder,
    "a link out of the folder": linked,
    "a pipe": to_a_pipe,
    "a pickle that runs code": lambda path, other: path.write_bytes(pickle.dumps(Bomb())),
    "a file of torch.save that runs code": lambda path, other: path.write_bytes(torch_bomb()),
    "a zip bomb": lambda path, other: path.write_bytes(zip_bomb()),
    "NaN": lambda path, other: path.write_text('{"format": NaN}'),
    "nested deeply": lambda path, other: path.write_text("[" * 200_000),
    "no object": lambda path, other: path.write_text("[1, 2]"),
    "no UTF-8": lambda path, other: path.write_bytes(b'{"format": "\xff"}'),
}
"""Of any file, given the same file of another run."""


def edited(**changes):
    """Set keys of a JSON object; None removes one."""

    def damage(path: Path, other: Path) -> None:
        values = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return damage


def edited_inside(change):
    def damage(path: Path, other: Path) -> None:
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return damage


def tensors_changed(change):
    def damage(path: Path, other: Path) -> None:
        tensors = safetensors.torch.load_file(path)
        change(tensors)
        path.write_bytes(safetensors.torch.save(tensors))

    return damage


def reshaped(tensors):
    tensors[min(tensors)] = torch.zeros(7)


def renamed(tensors):
    tensors["other"] = tensors.pop(min(tensors))


def of_whole_numbers(tensors):
    tensors[min(tensors)] = tensors[min(tensors)].long()


def with_another_generator(tensors):
    name = next(name for name, value in tensors.items() if value.dtype == torch.uint8)
    tensors[name] = torch.zeros(99, dtype=torch.uint8)


EDITS = {
    "config.json": {
        "a newer format": edited(format=99),
        "without its format": edited(format=None),
        "a setting changed": edited(batch_size=11),
        "a setting removed": edited(batch_size=None),
        "a setting added": edited(colour="red"),
    },
    "last.json": {
        "a newer format": edited(format=99),
        "without a name": edited(checkpoint=None),
        "a key added": edited(also="this"),
        "a path for a name": edited(checkpoint="../../elsewhere"),
        "an absolute path": edited(checkpoint="/etc"),
        "no name": edited(checkpoint=""),
        "a number for a name": edited(checkpoint=3),
        "a name with a zero": edited(checkpoint="step-1\0"),
        "a name that is not there": edited(checkpoint="step-000000099"),
        "another sha256": edited(manifest="0" * 64),
    },
    "manifest.json": {
        "a newer format": edited(format=99),
        "a file removed": edited_inside(lambda values: values["files"].pop("weights.safetensors")),
        "a file added": edited_inside(lambda values: values["files"].update({"../../x": {}})),
        "no files": edited(files=[]),
        "a size of text": edited_inside(lambda values: values["files"]["weights.safetensors"].update(bytes="9")),
        "a size below zero": edited_inside(lambda values: values["files"]["weights.safetensors"].update(bytes=-9)),
        "a size beyond all": edited_inside(lambda values: values["files"]["weights.safetensors"].update(bytes=10**30)),
    },
    "weights.safetensors": {
        "other shapes": tensors_changed(reshaped),
        "other names": tensors_changed(renamed),
        "other types": tensors_changed(of_whole_numbers),
        "a tensor more": tensors_changed(lambda tensors: tensors.update(more=torch.zeros(2))),
        "a tensor less": tensors_changed(lambda tensors: tensors.pop(min(tensors))),
        "a header without an end": lambda path, other: path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
    },
    "best.safetensors": {
        "other shapes": tensors_changed(reshaped),
        "other names": tensors_changed(renamed),
    },
    "training.json": {
        "no place": edited(place=None),
        "a place of text": edited(place="here"),
        "an epoch below zero": edited_inside(lambda values: values["place"].update(epoch=-1)),
        "steps that are no number": edited(num_steps="3"),
        "a history of another length": edited_inside(lambda values: values["history"]["train_elbo"].pop()),
        "a column more": edited_inside(lambda values: values["history"].update(execution=[1.0])),
        "a column of text": edited_inside(lambda values: values["history"].update(rate=["a", "b"])),
        "an optimizer of another": edited_inside(lambda values: values["optimizer"].update(x={})),
        "a generator that is none": edited(generator=[1, 2]),
        "a tensor that is not there": edited(generator={"$tensor": "99"}),
        "a kind of value that is none": edited(generator={"$code": "exit()"}),
    },
    "training.safetensors": {
        "a generator of another size": tensors_changed(with_another_generator),
        "no tensors": tensors_changed(dict.clear),
        "moments of other shapes": tensors_changed(lambda tensors: tensors.update({"1": torch.zeros(5, 5)})),
    },
}
"""Of one file, as its writer could have made it: what is kept of its sha256 is made anew."""
SIGN: dict[str, Callable[[Path], None]] = {
    "config.json": sign_config,
    "last.json": lambda run: None,
    "manifest.json": sign_manifest,
}
CASES = [(file, damage) for file in FILES for damage in (*DAMAGES, *EDITS[file])]


def make_runs(folder: Path) -> None:
    """Train two runs, `run` and `other`."""
    trained(folder / "run", 0)
    trained(folder / "other", 1)


def refusals(file: str, damage: str, folder: Path) -> list[str]:
    """Damage a file of a copy of the run; return what `fit` and `load` say, or raise an error if they do not refuse it.

    Disk and memory have to stay as they were.
    """
    run = folder / "damaged"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder / "run", run)
    path = path_in(run, file)
    if damage in DAMAGES:
        DAMAGES[damage](path, path_in(folder / "other", file))
    else:
        EDITS[file][damage](path, path)
        SIGN.get(file, sign_anew)(run)
    vae, optim = small_vae(5), pv.FusedAdam({"lr": 1e-3})
    pv.fit(vae, torch.randn(20, 3), optim=optim, num_epochs=1, progress=False)
    before = tree(run), as_plain(vae.state_dict()), as_plain(optim.get_state())
    readers = [lambda: trained(run, vae=vae, optim=optim, resume=True), lambda: pv.load(run, vae)]
    messages = [refusal(read, path) for read in readers[: 1 if "setting" in damage else 2]]
    after = tree(run), as_plain(vae.state_dict()), as_plain(optim.get_state())
    for what, one, other in zip(("the folder", "the VAE", "the optimizer"), before, after, strict=True):
        assert one == other, f"{what} changed"
    return messages


def refusal(read: Callable[[], Any], path: Path) -> str:
    """Return the message, which has to name the file and to say what to do."""
    try:
        read()
    except ValueError as error:
        message = str(error)
        assert any(name in message for name in (path.name, *SIGNED, "run: expected the")), message
        assert "expected" in message and "; got" in message and message.count(";") >= 2, message
        return message
    raise AssertionError("it was read")


def tree(folder: Path) -> dict[str, Any]:
    """Return what a folder holds, but for the lock."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if path.name != "lock"}


def _content(path: Path) -> Any:
    found = path.lstat()
    small = stat.S_ISREG(found.st_mode) and found.st_size < 1 << 28
    return stat.S_IFMT(found.st_mode), found.st_size, path.read_bytes() if small else None
