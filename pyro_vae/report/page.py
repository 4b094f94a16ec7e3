"""One HTML page that needs nothing but itself: its style, sections, figures and pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from pyro_vae import _html

__all__ = ["Section", "code", "document", "figure", "figures", "heading", "paragraph", "picture", "pictures"]

STYLE = """
:root { color-scheme: light dark; --page: #fcfcfa; --ink: #1c2024; --faint: #5d666f; --line: #d9dcdf; --code: #f0f1f2;
  --link: #22609c; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181b; --ink: #e4e6e8; --faint: #9aa3ac; --line: #363c42; --code: #20252a; --link: #8fbdf0; }
  .pictures img.pv-grey { filter: invert(1); border-color: #fff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.2rem 1.1rem 4rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .4rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .3rem; }
p, .pv-remarks { max-width: 46rem; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
.lead, figcaption, footer { color: var(--faint); }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: .9rem 0 0; font-size: .93rem; }
nav a { padding: .25rem 0; }
figure { margin: .9rem 0; min-width: 0; }
figcaption { font-size: .9rem; line-height: 1.4; margin-top: .3rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .4rem 2rem; }
.figures > figure { max-width: 38rem; }
figure svg { display: block; width: 100%; height: auto; }
.pictures { display: grid; grid-template-columns: repeat(8, 1fr); gap: .7rem; max-width: 46rem; }
.pictures.wide { grid-template-columns: repeat(4, 1fr); gap: 1rem; }
.pictures figure { margin: 0; }
.pictures figcaption { font-size: .82rem; font-variant-numeric: tabular-nums; white-space: pre-line; }
.pictures .row { display: flex; gap: 2px; }
.pictures .column { display: flex; flex-direction: column; gap: 2px; }
.pictures img { display: block; flex: 1 1 0; min-width: 0; width: 100%; height: auto; image-rendering: pixelated;
  border: 1px solid var(--line); }
pre { background: var(--code); padding: .8rem .9rem; border-radius: .5rem; overflow-x: auto; font-size: .88rem;
  line-height: 1.45; }
footer { margin-top: 3rem; padding-top: .8rem; border-top: 1px solid var(--line); font-size: .88rem; }
@media (max-width: 36rem) {
  body { padding: .9rem .9rem 3rem; }
  .pv-cards { grid-template-columns: repeat(auto-fill, minmax(8.4rem, 1fr)); }
  .pictures { grid-template-columns: repeat(4, 1fr); }
  .pictures.wide { grid-template-columns: repeat(2, 1fr); }
  .pv-table { font-size: .9rem; }
}
@media print {
  :root { color-scheme: light; --page: #fff; --ink: #000; --faint: #444; --line: #bbb; --code: #f3f3f3; --link: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .pictures img.pv-grey { filter: none; border-color: var(--line); }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  figure, .pv-card, li, pre, tr { break-inside: avoid; }
  .figures { grid-template-columns: 1fr 1fr; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Even if something slipped through: nothing runs, and nothing is fetched."""


class Section(NamedTuple):
    """A part of the page; one without content is left out."""

    id: str
    title: str
    content: str


def document(title: str, lead: str, sections: Sequence[Section], footer: str) -> str:
    """Join sections to a page, below links to them."""
    there = [section for section in sections if section.content]
    links = "".join(f'<a href="#{section.id}">{escape(section.title)}</a>' for section in there)
    body = "\n".join(
        f'<section id="{section.id}">\n<h2>{escape(section.title)}</h2>\n{section.content}\n</section>'
        for section in there
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{STYLE}{_html.STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
<nav>{links}</nav>
</header>
<main>
{body}
</main>
<footer>{escape(footer)}</footer>
</body>
</html>
"""


def paragraph(*sentences: str) -> str:
    """Escape sentences, and join them."""
    return f"<p>{escape(' '.join(filter(None, sentences)))}</p>"


def heading(text: str) -> str:
    """Head a part of a section."""
    return f"<h3>{escape(text)}</h3>"


def code(text: str) -> str:
    """Show lines as they are typed."""
    return f"<pre><code>{escape(text)}</code></pre>"


def figure(svg: str, caption: str) -> str:
    """Put a caption below a figure."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def figures(*some: str) -> str:
    """Lay figures side by side, where the page is wide enough."""
    return f'<div class="figures">{"".join(some)}</div>' if any(some) else ""


def picture(files: Sequence[bytes], alt: str, *, caption: str = "", is_grey: bool = True, beside: bool = False) -> str:
    """Show PNG files of one datum above one another or side by side, and a caption below."""
    kind = ' class="pv-grey"' if is_grey else ""
    images = "".join(
        f'<img{kind} alt="{escape(alt)}{", reconstructed" if place else ""}" '
        f'src="data:image/png;base64,{base64.b64encode(file).decode()}">'
        for place, file in enumerate(files)
    )
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="{"row" if beside else "column"}">{images}</div>{below}</figure>'


def pictures(some: Sequence[str], *, wide: bool = False) -> str:
    """Lay pictures side by side, as many as fit."""
    return f'<div class="pictures{" wide" if wide else ""}">{"".join(some)}</div>'
