"""Sphinx's settings."""

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

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
html_math_renderer = "mathml"  # rendered here, so that pages need no network


def as_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written with `code` and $formulas$, as the pages are; Sphinx reads them as reStructuredText."""
    text = re.sub(r"(?<!`)`([^`\n]+)`(?!`)", r"``\1``", "\n".join(lines))
    text = re.sub(r"\$([^$]+)\$", lambda formula: f":math:`{' '.join(formula[1].split())}`", text)
    lines[:] = text.split("\n")


def inline_math(translator: Any, node: nodes.Node) -> None:
    """A formula in a line, as MathML."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def display_math(translator: Any, node: nodes.Node) -> None:
    """A formula on its own, as MathML."""
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Docstrings are rewritten before napoleon sees them, whose priority is 500."""
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
    app.connect("autodoc-process-docstring", as_rst, priority=400)
