"""Sphinx's settings."""

import re
from typing import Any

project = "pyro_vae"
author = "the pyro_vae developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "pyro_vae"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_custom_sections = ["Shapes"]
exclude_patterns = ["_build"]


def as_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written with `code` and $formulas$, as the pages are; Sphinx reads them as reStructuredText."""
    text = re.sub(r"(?<!`)`([^`\n]+)`(?!`)", r"``\1``", "\n".join(lines))
    text = re.sub(r"\$([^$]+)\$", lambda formula: f":math:`{' '.join(formula[1].split())}`", text)
    lines[:] = text.split("\n")


def setup(app: Any) -> None:
    """Before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", as_rst, priority=400)
