"""Each file that is read, changed at random: a clear error that names the file, or the right result."""

from pathlib import Path

import pytest
from fuzz import FILES, MOST_BYTES, File, fuzzed

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", FILES)
def test_changed_files(name, tmp_path):
    counts = fuzzed(name, tmp_path, 80)
    assert counts.total() == 80 and counts["refused"] > 40


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_changed_files(name, tmp_path):
    assert fuzzed(name, tmp_path, 10_000, seed=1).total() == 10_000


def unharmed(path):
    return path.read_bytes() == b"12345"


TWINS = {
    "believes all": (Path.read_bytes, AssertionError, "something else than what was written"),
    "names no file": (lambda path: int(path.read_bytes()), AssertionError, "names none of"),
    "another error": (lambda path: unharmed(path) or {}["key"], KeyError, "key"),
    "takes all memory": (lambda path: unharmed(path) or bytes(2 * MOST_BYTES), MemoryError, ""),
}


@pytest.mark.parametrize("twin", TWINS)
def test_careless_readers_are_found_out(twin, tmp_path, monkeypatch):
    read, error, message = TWINS[twin]

    def make(folder):
        for name in ("file", "other"):
            (folder / name).write_bytes(b"12345")
        return folder / "file", folder / "other"

    monkeypatch.setitem(FILES, twin, File(make, read))
    with pytest.raises(error, match=message) as found:
        fuzzed(twin, tmp_path, 200)
    assert "mutation" in found.value.__notes__[0]
