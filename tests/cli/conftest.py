"""Commands that are run in process, and a run that was trained."""

import json

import pytest
from small_files import SMALL, command, write_table


@pytest.fixture
def run(capsys):
    """Run a command that is done, and return what it printed, or with --json what it says."""

    def call(line, *paths):
        capsys.readouterr()
        code = command(line, *paths)
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out) if "--json" in line else out

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run on a table, which tests do not change."""
    folder = tmp_path_factory.mktemp("trained")
    csv = write_table(folder / "table.csv", missing={(4, 1), (9, 0), (9, 2)})
    assert command(f"train @0 --data @1 --drop-missing {SMALL}", folder / "run", csv) == 0
    return folder / "run"
