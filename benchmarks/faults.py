"""Do to runs on disk what happens to them, again and again, and count what is left.

    python benchmarks/faults.py --num-kills 200 --disk --damage --mutations 10000
    python benchmarks/faults.py --processes 50

Kills (SIGKILL) at a random moment of training, or at a random operation on files of a start or a save, where a write is
cut in half; disks that fail at each operation, or have room for a part; damaged files; files changed at random. After
each, the run has to be what was saved last, to the bit, or to be refused by the name of the file, and the next process
goes on from it. Of two or three processes that train together under torchrun, one, all, or their launcher are killed;
the others have to end, and any number of processes goes on. `tests/` has the same as tests: `faulty_disk.py`,
`damage.py`, `fuzz.py`, `lost_processes.py`.
"""

import argparse
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

# The faults are those of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import lost_processes
from damage import CASES, make_runs, refusals
from faulty_disk import Failing, Full, Operations, assert_saved_whole, operations_of, rooms_of, saved
from fuzz import FILES, as_plain, fuzzed, trained

from pyro_vae.training import run as run_module
from pyro_vae.training.checkpoint import Checkpoint
from pyro_vae.training.run import Run, last_checkpoint

NUM_EPOCHS, NUM_VARIANTS = 8, 3
MOMENTS = ("training", "a save", "a save", "a start")


def train(run: Path, variant: int, kept: Callable[[Checkpoint], None], each_epoch: bool) -> None:
    """Train to the end, and tell of each checkpoint that is kept."""
    save = Run.save

    def told(self: Run, checkpoint: Checkpoint, name: str) -> None:
        save(self, checkpoint, name)
        kept(checkpoint)

    Run.save = told  # type: ignore[method-assign]
    run_module.SHARE_OF_TIME = 1e9 if each_epoch else 0.02
    trained(run, variant, num_epochs=NUM_EPOCHS, resume="auto")


def state_of(checkpoint: Checkpoint) -> str:
    """Return what has to be equal to the bit: all but times."""
    training = json.loads(json.dumps(as_plain(checkpoint.training), default=bytes.hex))
    del training["place"]["seconds"], training["history"]["seconds"]
    values = [as_plain(checkpoint.weights), as_plain(checkpoint.best), training]
    return hashlib.sha256(json.dumps(values, default=bytes.hex, sort_keys=True).encode()).hexdigest()


def undisturbed(variant: int, folder: Path) -> dict[int, str]:
    """Return the state of each checkpoint of a run that nobody disturbs."""

    def child(tell: Callable[[str], None]) -> None:
        train(folder, variant, lambda each: tell(f"{each.training['num_steps']} {state_of(each)}"), True)

    lines, code = forked(child, None)
    assert code == 0
    return {int(step): state for step, state in map(str.split, lines)}


def forked(child: Callable[[Callable[[str], None]], None], kill_after: float | None) -> tuple[list[str], int]:
    """Run a child process, whose imports are done; return what it told, and how it ended."""
    source, sink = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(source)
        _be(child, sink)
    os.close(sink)
    with os.fdopen(source) as told:
        first = told.readline()
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)
        lines = [first, *told]
    return [line.strip() for line in lines if line.strip() not in ("", "begun")], os.waitstatus_to_exitcode(
        os.waitpid(pid, 0)[1]
    )


def _be(child: Callable[[Callable[[str], None]], None], sink: int) -> NoReturn:
    code = 1
    try:
        os.write(sink, b"begun\n")
        child(lambda line: os.write(sink, f"{line}\n".encode()) and None)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def kill_at(operation: int) -> Operations:
    return Operations(lambda name: os.kill(os.getpid(), signal.SIGKILL), operation)


def disturbed(run: Path, variant: int, moment: str, seconds: float, rng: random.Random) -> tuple[list[str], int]:
    """Train in a process of its own, which is killed at such a moment, or finishes before."""
    operation, which = rng.randrange(1, 22 if moment == "a start" else 45), rng.randrange(3)
    each_epoch = rng.random() < 0.7

    def child(tell: Callable[[str], None]) -> None:
        if moment == "a save":
            _watch_saves(operation, which)
        if moment == "a start":
            _watch_start(operation)
        train(run, variant, lambda each: tell(str(each.training["num_steps"])), each_epoch)

    return forked(child, rng.uniform(0, seconds) if moment == "training" else None)


def _watch_saves(operation: int, which: int) -> None:
    save, saves = Run.save, iter(range(10**9))

    def watched(self: Run, checkpoint: Checkpoint, name: str) -> None:
        if next(saves) == which:
            with kill_at(operation).watched():
                save(self, checkpoint, name)
        else:
            save(self, checkpoint, name)

    Run.save = watched  # type: ignore[method-assign]


def _watch_start(operation: int) -> None:
    start, last, operations = Run.__init__, Run.last, kill_at(operation)

    def watched(self: Run, *args: Any) -> None:
        with operations.watched():
            start(self, *args)

    def watched_last(self: Run) -> Checkpoint | None:
        with operations.watched():
            return last(self)

    Run.__init__, Run.last = watched, watched_last  # type: ignore[method-assign]


def killed(num_kills: int, folder: Path) -> Iterator[tuple[str, Counter[str]]]:
    """Kill so many processes; yield what was found, by moment."""
    trained(folder / "first")  # so that what is imported late is there
    started = time.perf_counter()
    expected = [undisturbed(variant, folder / f"whole {variant}") for variant in range(NUM_VARIANTS)]
    seconds = (time.perf_counter() - started) / NUM_VARIANTS
    counts: dict[str, Counter[str]] = {moment: Counter() for moment in dict.fromkeys(MOMENTS)}
    rng, run, variant, known = random.Random(0), folder / "run 0", 0, 0
    num_finished = 0
    while sum(each["kills"] for each in counts.values()) < num_kills:
        moment = rng.choice(MOMENTS)
        told, code = disturbed(run, variant, moment, seconds, rng)
        known = max([known, *map(int, told)])
        if code == -signal.SIGKILL:
            counts[moment]["kills"] += 1
            counts[moment][left(run, known, expected[variant])] += 1
            print(f"{moment}: {dict(counts[moment])}", file=sys.stderr, flush=True)
        elif code == 0:
            assert left(run, known, expected[variant]) == "equal to the bit"
            assert last_checkpoint(run).training["num_steps"] == max(expected[variant])
            num_finished += 1
            run, variant, known = folder / f"run {num_finished}", num_finished % NUM_VARIANTS, 0
        else:
            raise SystemExit(f"a process ended with {code} in {run}")
    yield from counts.items()
    yield f"runs that were finished all the same: {num_finished}", Counter({"equal to the bit": num_finished})


def left(run: Path, known: int, expected: dict[int, str]) -> str:
    """Say what is left of a run of which so many steps are known to be saved."""
    if not (run / "config.json").exists():
        return "no run yet" if not known else "LOST"
    if json.loads((run / "last.json").read_text())["checkpoint"] is None:
        return "no checkpoint yet" if not known else "LOST"
    found = last_checkpoint(run)
    if found.training["num_steps"] < known:
        return "LOST"
    return "equal to the bit" if state_of(found) == expected[found.training["num_steps"]] else "OTHER"


def failing_disks(folder: Path) -> Iterator[tuple[str, Counter[str]]]:
    """Save on disks that fail at each operation, or have room for a part."""
    counted = operations_of(folder / "counted", lambda: saved(folder / "counted", 2))
    for number in (errno.ENOSPC, errno.EIO, errno.EROFS):
        for for_good in (False, True):
            disks = [Failing(number, at, for_good) for at in range(1, counted.num_operations + 1)]
            yield f"{os.strerror(number)}, {'from there on' if for_good else 'once'}", on_each(folder, disks)
    yield (
        "room for so many bytes, around the ends of files",
        on_each(folder, [Full(room) for room in rooms_of(folder / "counted", counted.num_bytes)]),
    )


def on_each(folder: Path, disks: list[Any]) -> Counter[str]:
    for i, disk in enumerate(disks):
        run = folder / f"disk {i}"
        shutil.rmtree(run, ignore_errors=True)
        assert_saved_whole(run, disk, lambda run=run: saved(run, 2))
    return Counter({"kept whole": len(disks)})


def small_disk(folder: Path) -> Iterator[tuple[str, Counter[str]]]:
    """Save on a disk of memory that is filled, and then mounted for reading alone; needs root."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], check=False)
    if mounted.returncode:
        return
    try:
        counts: Counter[str] = Counter()
        for num_pages in range(24):
            assert_saved_whole(folder / "run", Filled(folder, num_pages), lambda: saved(folder / "run", 2))
            shutil.rmtree(folder / "run")
            counts["kept whole"] += 1
        yield "a full tmpfs, with 0 to 23 pages left", counts
        assert_saved_whole(folder / "run", ReadOnly(folder), lambda: saved(folder / "run", 2))
        yield "a tmpfs mounted for reading", Counter({"kept whole": 1})
    finally:
        subprocess.run(["umount", folder], check=True)


class Filled:
    """A disk on which a file leaves so many pages free."""

    def __init__(self, folder: Path, num_pages: int) -> None:
        self.ballast, self.num_pages = folder / "ballast", num_pages

    def watched(self) -> "Filled":
        return self

    def __enter__(self) -> None:
        with self.ballast.open("wb") as file:
            found = os.statvfs(self.ballast)
            file.write(bytes(max(0, found.f_bavail - self.num_pages) * found.f_bsize))

    def __exit__(self, *error: Any) -> None:
        self.ballast.unlink()


class ReadOnly:
    """A disk that is mounted for reading alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def watched(self) -> "ReadOnly":
        return self

    def __enter__(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)

    def __exit__(self, *error: Any) -> None:
        subprocess.run(["mount", "-o", "remount,rw", self.folder], check=True)


def damaged(folder: Path) -> Iterator[tuple[str, Counter[str]]]:
    """Damage each file of a run in each way."""
    make_runs(folder)
    counts: dict[str, Counter[str]] = {}
    for file, damage in CASES:
        refusals(file, damage, folder)
        counts.setdefault(file, Counter())["refused"] += 1
    yield from counts.items()


def mutated(folder: Path, num_mutations: int) -> Iterator[tuple[str, Counter[str]]]:
    """Change each kind of file at random."""
    for i, name in enumerate(FILES):
        (folder / str(i)).mkdir()
        yield name, fuzzed(name, folder / str(i), num_mutations, seed=1)


def killed_together(folder: Path, num_kills: int) -> Iterator[tuple[str, Counter[str]]]:
    """Kill some of the processes that train together; yield what was found, by victim."""
    counts: dict[str, Counter[str]] = {}
    for victim, outcome in lost_processes.killed(folder, num_kills):
        counts.setdefault(victim, Counter())[outcome] += 1
        print(f"{victim}: {outcome}", file=sys.stderr, flush=True)
    yield from counts.items()


def show(title: str, rows: Iterator[tuple[str, Counter[str]]]) -> None:
    """Print a table, line by line."""
    print(f"\n{title}\n\n| | number | outcome |\n|---|---|---|", flush=True)
    for name, counts in rows:
        outcomes = {outcome: number for outcome, number in counts.items() if outcome != "kills"}
        listed = ", ".join(f"{outcome}: {number:,}" for outcome, number in outcomes.items())
        print(f"| {name} | {sum(outcomes.values()):,} | {listed} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-kills", type=int, default=0)
    parser.add_argument("--processes", type=int, default=0, help="kills among processes that train together")
    parser.add_argument("--disk", action="store_true")
    parser.add_argument("--damage", action="store_true")
    parser.add_argument("--mutations", type=int, default=0, help="of each kind of file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / part for part in ("kills", "disks", "small", "damage", "mutations", "processes")]
        for folder in folders:
            folder.mkdir()
        if options.num_kills:
            show("Processes killed in", killed(options.num_kills, folders[0]))
        if options.processes:
            show("Processes that train together, killed", killed_together(folders[5], options.processes))
        if options.disk:
            show("Disks that fail while a checkpoint is saved", failing_disks(folders[1]))
            show("Small disks", small_disk(folders[2]))
        if options.damage:
            show("Damaged files", damaged(folders[3]))
        if options.mutations:
            show("Files changed at random", mutated(folders[4], options.mutations))
    print(f"\n{time.perf_counter() - started:.0f} s, torch {torch.__version__}")


if __name__ == "__main__":
    main()
