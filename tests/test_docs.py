"""The documents: they build without a warning, and the lines of the package that they quote are there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUOTED = re.findall(r"^> `(pyro_vae/[\w/]+\.py)`: `(.+)`$", (ROOT / "docs" / "derivation.md").read_text(), re.MULTILINE)


def test_the_derivation_quotes_lines():
    assert len(QUOTED) >= 10


@pytest.mark.parametrize(("file", "line"), QUOTED)
def test_quoted_lines_are_in_the_package(file, line):
    assert line in (ROOT / file).read_text()


PLAIN = ["-D", "html_theme=basic", "-D", "extensions=myst_parser,sphinx.ext.autodoc,sphinx.ext.napoleon"]
"""Without the theme, and without pages of source code: the warnings are those of the pages all the same."""


@pytest.mark.parametrize("options", [PLAIN, pytest.param([], marks=pytest.mark.slow)], ids=["plain", "as it is"])
def test_the_site_builds_without_a_warning(options, tmp_path):
    pytest.importorskip("furo")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        *options,
        str(ROOT / "docs"),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The bound, and the gap" in (tmp_path / "derivation.html").read_text()
