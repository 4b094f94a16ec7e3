"""Mutations of files, and each kind of file that the package reads. A new reader is one line of `FILES`."""

import argparse
import io
import json
import random
import re
import resource
import struct
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import small_files
import torch

import pyro_vae as pv
from pyro_vae._files import sha256_of
from pyro_vae.cli.failure import Refusal
from pyro_vae.cli.folder import saved_settings
from pyro_vae.cli.info import info
from pyro_vae.cli.settings import KINDS, PATHS, read_toml
from pyro_vae.data._idx import read_split
from pyro_vae.training.run import FREE_TO_CHANGE, Run, last_checkpoint

MOST_SECONDS, MOST_BYTES = 5.0, 1 << 29
"""Of the processor's time and of memory, for one small file."""

# Mutations: each takes the content, a source of random numbers, and the content of another file of the kind.


def bits_flipped(content, rng, other):
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8, 64])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncated(content, rng, other):
    return content[: rng.randrange(len(content))]


def doubled(content, rng, other):
    start, stop = sorted(rng.choices(range(len(content) + 1), k=2))
    return content[:stop] + content[start:]


def cut_out(content, rng, other):
    start, stop = sorted(rng.choices(range(len(content) + 1), k=2))
    return content[:start] + content[stop:]


def spliced(content, rng, other):
    place = rng.randrange(len(content))
    return content[:place] + other[min(place, len(other)) :]


def overwritten(content, rng, other):
    """With a number at the edge of what its bytes can hold."""
    value = rng.choice([0, 1, 2, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1])
    form = rng.choice(["<Q", ">Q", "<I", ">I", "<H"])
    packed = struct.pack(form, value % 256 ** struct.calcsize(form))
    place = rng.randrange(len(content))
    return content[:place] + packed + content[place + len(packed) :]


def number_edited(content, rng, other):
    """Another number, or none, in the place of one that is written in digits."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?(e[+-]?\d+)?", content))
    if not found:
        return overwritten(content, rng, other)
    match = rng.choice(found)
    values = [b"0", b"-1", b"1", b"1e999", b"NaN", b"-Infinity", b"null", b'"3"', b"[]", b"{}", b"9" * 30, b"9" * 5000]
    return content[: match.start()] + rng.choice(values) + content[match.end() :]


def nested(content, rng, other):
    place, depth = rng.randrange(len(content)), rng.choice([1, 500, 100_000])
    return content[:place] + b"[" * depth + content[place:]


def replaced(content, rng, other):
    return rng.choice([b"", b"\0", b"null", b"[]", b"{}", b"PK\x05\x06" + bytes(18), other, rng.randbytes(100)])


MUTATIONS = [bits_flipped, truncated, doubled, cut_out, spliced, overwritten, number_edited, nested, replaced]


@dataclass(frozen=True)
class File:
    """A kind of file that is read.

    Attributes:
        make: writes two different ones into a folder, and returns their paths.
        read: reads the one at a path, and returns what can be compared: numbers, text, tensors, arrays.
        is_right: tells whether the result fits the content of the changed file, where it may differ from the first.
    """

    make: Callable[[Path], tuple[Path, Path]]
    read: Callable[[Path], Any]
    is_right: Callable[[bytes, Any], bool] | None = None
    names: tuple[str, ...] = ()
    """Of files that the error may name instead of this one."""


def fuzzed(name: str, folder: Path, num_mutations: int, seed: int = 0) -> Counter[str]:
    """Read so many changed files; count those refused and those read, and raise an error for any other end."""
    file = FILES[name]
    path, other = file.make(folder)
    content, others, first = path.read_bytes(), other.read_bytes(), as_plain(file.read(path))
    wholes = [first, as_plain(file.read(other))]  # a splice may be the other file, unharmed
    counts: Counter[str] = Counter()
    for i in range(num_mutations):
        rng = random.Random(f"{name} {seed} {i}")
        mutation = rng.choice(MUTATIONS)
        changed = mutation(content, rng, others)
        path.write_bytes(changed)
        try:
            counts[_outcome(file, path, changed, wholes)] += 1
        except BaseException as error:
            error.add_note(f"mutation {i} of {name}, {mutation.__name__}, seed {seed}")
            raise
    return counts


def _outcome(file, path, changed, wholes):
    with within_bounds():
        try:
            result = file.read(path)
        except ValueError as error:
            names = (path.name, *file.names)
            assert any(name in str(error) for name in names), f"the error names none of {names}: {error!s:.1000}"
            assert len(str(error)) < 2000, "the error is too long to be read"
            return "refused"
    found = as_plain(result)
    is_right = found in wholes or (file.is_right is not None and file.is_right(changed, result))
    assert is_right, "read, and something else than what was written"
    return "read"


@contextmanager
def within_bounds():
    """Fail where a read takes much memory or time."""
    started = time.process_time()
    before = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - started < MOST_SECONDS, "slow"


def as_plain(value: Any) -> Any:
    """Return what can be compared by ==, to the bit."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        array = np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)
        return str(array.dtype), array.shape, array.tobytes()
    if isinstance(value, dict):
        return {key: as_plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(each) for each in value]
    if isinstance(value, float):
        return value.hex()
    return value if value is None or isinstance(value, (str, int, bytes)) else as_plain(vars(value))


# A run, of the smallest VAE

CONFIG = {"parameters": {"w": [2, 3]}, "batch_size": 100, "lr": 1e-3, "num_epochs": 3}


def small_vae(seed: int = 0) -> pv.VAE:
    pyro.clear_param_store()
    torch.manual_seed(seed)
    return pv.VAE(
        pv.priors.StandardNormal(1),
        pv.likelihoods.Gaussian(torch.nn.Linear(1, 3)),
        pv.posteriors.DiagonalNormal(torch.nn.Linear(3, 2)),
    )


def trained(folder: Path, seed: int = 0, vae: pv.VAE | None = None, **options: Any) -> pv.VAE:
    """Train for two epochs, with validation, into a run's folder."""
    vae, x = vae or small_vae(seed), torch.randn(20, 3, generator=torch.Generator().manual_seed(seed))
    options = {"num_epochs": 2, "batch_size": 10, "validation": x[:5], "progress": False, "seed": seed} | options
    pv.fit(vae, x, run=folder, **options)
    return vae


def path_in(run: Path, name: str) -> Path:
    """Return the path of one of a run's files."""
    if name in ("config.json", "last.json"):
        return run / name
    return run / "checkpoints" / json.loads((run / "last.json").read_text())["checkpoint"] / name


def of_a_run(name: str) -> Callable[[Path], tuple[Path, Path]]:
    def make(folder: Path) -> tuple[Path, Path]:
        trained(folder / "run", 0)
        trained(folder / "other", 1)
        return path_in(folder / "run", name), path_in(folder / "other", name)

    return make


def checkpoint_at(path: Path) -> Any:
    return last_checkpoint(next(folder for folder in path.parents if (folder / "last.json").exists()))


def sign_anew(run: Path) -> None:
    """Make the manifest one of the files as they are, and `last.json` one of the manifest."""
    path = path_in(run, "manifest.json")
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        content = path.with_name(name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": sha256_of(content)}
    path.write_text(json.dumps(manifest))
    sign_manifest(run)


def sign_manifest(run: Path) -> None:
    _sign(run, manifest=path_in(run, "manifest.json"))


def sign_config(run: Path) -> None:
    _sign(run, config=path_in(run, "config.json"))


def _sign(run: Path, **paths: Path) -> None:
    last = json.loads((run / "last.json").read_text())
    sha256 = {name: sha256_of(path.read_bytes()) for name, path in paths.items()}
    (run / "last.json").write_text(json.dumps({**last, **sha256}))


def signed_checkpoint_at(path: Path) -> Any:
    sign_anew(path.parents[2])
    return last_checkpoint(path.parents[2])


def signed_manifest_at(path: Path) -> Any:
    sign_manifest(path.parents[2])
    return last_checkpoint(path.parents[2])


CONFIGS = {"run": CONFIG, "other": {**CONFIG, "batch_size": 50}}


def make_config(folder: Path) -> tuple[Path, Path]:
    for name, config in CONFIGS.items():
        Run(folder / name, config, False).close()
    return folder / "run" / "config.json", folder / "other" / "config.json"


def config_at(path: Path) -> Any:
    """Go on with the run; return the settings that bind it."""
    try:
        Run(path.parent, CONFIGS[path.parent.name], True).close()
    except ValueError as error:
        if "expected the settings that the run in" in str(error):  # which names the folder
            raise ValueError(f"{path.name}: {error}") from error
        raise
    return {name: value for name, value in json.loads(path.read_bytes()).items() if name not in FREE_TO_CHANGE}


# What the command line keeps in a run's folder


def made_by_command(name: str) -> Callable[[Path], tuple[Path, Path]]:
    def make(folder: Path) -> tuple[Path, Path]:
        for seed, run in enumerate(("run", "other")):
            csv = small_files.write_table(folder / f"{run}.csv", small_files.table(30 + seed))
            arguments = f"--data {csv} --seed {seed} {small_files.SMALL}"
            assert small_files.command(f"train @0 {arguments}", folder / run) == 0
            assert small_files.command(f"evaluate @0 {small_files.CHEAP}", folder / run) == 0
        return folder / "run" / name, folder / "other" / name

    return make


def settings_at(path: Path) -> Any:
    return _without_refusal(lambda: saved_settings(path.parent))


def is_of_other_paths(changed: bytes, result: Any) -> bool:
    """Where the data lie may change."""
    return {"sha256", *result} == {"columns", *json.loads(changed)} and all(
        isinstance(result["settings"][name], str | None) for name in PATHS
    )


def evaluation_at(path: Path) -> Any:
    return _without_refusal(lambda: info(argparse.Namespace(run=str(path.parent))).values["evaluation"])


def history_at(path: Path) -> Any:
    return _without_refusal(lambda: info(argparse.Namespace(run=str(path.parent))).values["last_epoch"])


def _without_refusal(read: Callable[[], Any]) -> Any:
    """A refusal ends a command as a ValueError does."""
    try:
        return read()
    except Refusal as error:
        raise ValueError(str(error)) from error


def make_toml(folder: Path) -> tuple[Path, Path]:
    for name, rate in (("one", 0.5), ("other", 0.25)):
        lines = ["num_epochs = 3", f"learning_rate = {rate}", 'data = "a.csv"', "hidden_dims = [20, 20]"]
        (folder / f"{name}.toml").write_text("\n".join(lines))
    return folder / "one.toml", folder / "other.toml"


def is_settings(changed: bytes, result: Any) -> bool:
    """Text without a checksum may say something else, but it is settings of the right kinds."""
    return all(KINDS[name].read(value) == value for name, value in result.items())


# Results and data


def make_vae_file(folder: Path) -> tuple[Path, Path]:
    for seed, name in enumerate(("one", "other")):
        small_vae(seed).save(folder / f"{name}.safetensors")
    return folder / "one.safetensors", folder / "other.safetensors"


def make_evidence(folder: Path) -> tuple[Path, Path]:
    paths = folder / "one.npz", folder / "other.npz"
    for path, num_data in zip(paths, (8, 5), strict=True):
        vae = small_vae()
        options = {"num_samples": 50, "num_posterior_draws": 3}
        pv.importance_sampling(vae.model, vae.guide, torch.randn(num_data, 3), **options).save(path)
    return paths


def member_of_evidence(member: str) -> Callable[[Path], tuple[Path, Path]]:
    """One of the files in the archive; the reader packs it anew, with its checksum."""

    def make(folder: Path) -> tuple[Path, Path]:
        paths = []
        for path in make_evidence(folder):
            with zipfile.ZipFile(path) as archive:
                paths.append(path.with_suffix(".npy"))
                paths[-1].write_bytes(archive.read(f"{member}.npy"))
        return paths[0], paths[1]

    return make


def evidence_with(member: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        packed = io.BytesIO()
        with zipfile.ZipFile(path.with_suffix(".npz")) as archive, zipfile.ZipFile(packed, "w") as changed:
            for each in archive.infolist():
                changed.writestr(each, path.read_bytes() if each.filename == f"{member}.npy" else archive.read(each))
        (path.parent / "packed").mkdir(exist_ok=True)
        target = path.parent / "packed" / path.with_suffix(".npz").name
        target.write_bytes(packed.getvalue())
        try:
            return pv.Evidence.load(target)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error if target.name in str(error) else None

    return read


def is_evidence(changed: bytes, result: Any) -> bool:
    """Numbers without a checksum may be others, but they are those of as many data."""
    return len(result.log_evidence) == len(result.method) == 8 and bool(result.summary())


def make_data(suffix: str, write: Callable[[Path, np.ndarray], None]) -> Callable[[Path], tuple[Path, Path]]:
    """A small data set as a file of some kind, alone in its folder."""

    def make(folder: Path) -> tuple[Path, Path]:
        paths = []
        for name, num in (("one", 6), ("other", 4)):
            (folder / name).mkdir()
            paths.append(folder / name / f"data{suffix}")
            write(paths[-1], np.random.default_rng(num).integers(0, 256, (num, 5), dtype=np.uint8))
        return paths[0], paths[1]

    return make


def write_arrays(path: Path, x: np.ndarray) -> None:
    np.savez_compressed(path, x=x, labels=np.arange(len(x)))


def write_table(path: Path, x: np.ndarray) -> None:
    rows = [["a", "b", "c", "d", "label"], *([*row, i] for i, row in enumerate((x[:, 1:] * 1.5).tolist()))]
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))


def write_image(path: Path, x: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(x).save(path)


def data_at(path: Path) -> Any:
    dataset = pv.data.load(path, split="all")
    return dataset.x, dataset.labels


def images_at(path: Path) -> Any:
    return data_at(path.parent)


def is_data(changed: bytes, result: Any) -> bool:
    """Numbers without a checksum may be others, but they are numbers, with as many labels as rows."""
    x, labels = result
    return bool(x.isfinite().all()) and (labels is None or len(labels) == len(x))


def make_idx(part: str) -> Callable[[Path], tuple[Path, Path]]:
    def make(folder: Path) -> tuple[Path, Path]:
        rng = np.random.default_rng(0)
        for raw, num in ((folder, 20), (folder / "other", 30)):
            raw.mkdir(exist_ok=True)
            for kind, shape in (("images-idx3", (num, 4, 4)), ("labels-idx1", (num,))):
                header = struct.pack(f">I{len(shape)}I", 0x0800 + len(shape), *shape)
                (raw / f"train-{kind}-ubyte").write_bytes(header + rng.integers(0, 10, shape, dtype=np.uint8).tobytes())
        return folder / f"train-{part}-ubyte", folder / "other" / f"train-{part}-ubyte"

    return make


def split_at(path: Path) -> Any:
    """A file for other data than the other's is refused with the folder's name."""
    try:
        return read_split(path.parent, "train", {})
    except ValueError as error:
        if "as many labels as images" in str(error):
            raise ValueError(f"{path.name}: {error}") from error
        raise


def is_content_of_idx(changed: bytes, result: Any) -> bool:
    """Bytes without a checksum may be others, but they are those of the file."""
    return any(changed.endswith(array.astype(np.uint8).tobytes()) for array in result)


def anything(changed: bytes, result: Any) -> bool:
    """What is signed is what its writer wanted."""
    return True


SIGNED = ("training.json", "best.safetensors")
FILES = {
    "config.json": File(make_config, config_at),
    "last.json": File(of_a_run("last.json"), checkpoint_at),
    "manifest.json": File(of_a_run("manifest.json"), checkpoint_at),
    "weights.safetensors": File(of_a_run("weights.safetensors"), checkpoint_at),
    "best.safetensors": File(of_a_run("best.safetensors"), checkpoint_at),
    "training.json": File(of_a_run("training.json"), checkpoint_at),
    "training.safetensors": File(of_a_run("training.safetensors"), checkpoint_at),
    "manifest.json, signed": File(of_a_run("manifest.json"), signed_manifest_at),
    **{
        f"{name}, signed": File(of_a_run(name), signed_checkpoint_at, anything, SIGNED)
        for name in ("weights.safetensors", "training.json", "training.safetensors")
    },
    "settings.json": File(made_by_command("settings.json"), settings_at, is_of_other_paths),
    "columns.json": File(made_by_command("columns.json"), settings_at, names=("settings.json",)),
    "evaluation.json": File(made_by_command("evaluation.json"), evaluation_at),
    "history.jsonl": File(made_by_command("history.jsonl"), history_at, anything),
    "settings.toml": File(make_toml, lambda path: _without_refusal(lambda: read_toml(str(path))), is_settings),
    "a VAE's file": File(make_vae_file, lambda path: pv.load(path).state_dict()),
    "evidence.npz": File(make_evidence, pv.Evidence.load),
    "evidence.npz, its record": File(member_of_evidence("record"), evidence_with("record"), is_evidence),
    "evidence.npz, an array": File(member_of_evidence("tensor/ess"), evidence_with("tensor/ess"), is_evidence),
    "data.npz": File(make_data(".npz", write_arrays), data_at, is_data),
    "data.npy": File(make_data(".npy", np.save), data_at, is_data),
    "data.csv": File(make_data(".csv", write_table), data_at, is_data),
    "an image": File(make_data(".png", write_image), images_at, is_data),
    "IDX images": File(make_idx("images-idx3"), split_at, is_content_of_idx),
    "IDX labels": File(make_idx("labels-idx1"), split_at, is_content_of_idx),
}
