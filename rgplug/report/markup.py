"""The page as HTML: everything inside one file, nothing loaded, no scripts.

Text given to these functions is escaped; what is named `body` is HTML already.
"""

from __future__ import annotations

import base64
import io
import itertools
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from rgplug.report.cells import Table
from rgplug.version import __version__

LARGEST = 1024  # pixels; larger sample grids are scaled down


@dataclass(frozen=True)
class Section:
    """A part of the page: `key` is its anchor, `body` is HTML."""

    key: str
    title: str
    body: str


def document(title: str, summary: str, sections: Sequence[Section]) -> str:
    """The whole page, with a table of contents."""
    contents = "".join(f'<li><a href="#{escape(s.key)}">{escape(s.title)}</a></li>' for s in sections)
    parts = "\n".join(
        f'<section id="{escape(s.key)}">\n<h2>{escape(s.title)}</h2>\n{s.body}\n</section>' for s in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{paragraph(summary)}
</header>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
<main>
{parts}
</main>
<footer>Written by rgplug {escape(__version__)}.</footer>
</body>
</html>
"""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def listing(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def details(summary: str, body: str) -> str:
    """A part that opens on a click. body: HTML."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{body}\n</details>"


def table(t: Table) -> str:
    """A table in a box of its own that scrolls where it is too wide; the notes below it."""
    rows = []
    for number, row in enumerate(t.rows):
        cells = [f'<th scope="row">{escape(cell.text)}</th>' for cell in row[: t.heads]]
        for index, cell in enumerate(row[t.heads :], start=t.heads):
            text = escape(cell.text)
            cells.append(f"<td><b>{text}</b></td>" if t.is_best(number, index) else f"<td>{text}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    source = f'<p class="source">{escape(t.source)}</p>' if t.source else ""
    return (
        f'{source}<div class="scroll" role="region" tabindex="0" aria-label="{escape(t.title)}">'
        f"<table><thead>{_head(t)}</thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<div class="notes">{listing(t.notes)}</div>'
    )


def _head(t: Table) -> str:
    """Rows of headings: those above the titles, which span the columns that they are the same for, and the titles."""
    spans = f' rowspan="{t.levels + 1}"' if t.levels else ""
    keys = "".join(f'<th scope="col" class="key"{spans}>{escape(c.title)}</th>' for c in t.columns[: t.heads])
    rows = []
    for level in range(t.levels):
        cells = []
        for over, columns in itertools.groupby(t.columns[t.heads :], key=lambda column: column.over[: level + 1]):
            cells.append(f'<th scope="colgroup" class="over" colspan="{len(list(columns))}">{escape(over[-1])}</th>')
        rows.append("".join(cells))
    rows.append("".join(f'<th scope="col">{escape(c.title)}</th>' for c in t.columns[t.heads :]))
    rows[0] = keys + rows[0]
    return "".join(f"<tr>{row}</tr>" for row in rows)


def figure(png: bytes, alt: str, caption: str, wide: bool = False) -> str:
    """A picture with its caption. wide: on a narrow screen it scrolls, because shrunk it could not be read."""
    image = f'<div class="wide">{_image(png, alt)}</div>' if wide else _image(png, alt)
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def gallery(images: Iterable[tuple[bytes, str, str]]) -> str:
    """Pictures (PNG, alt text, caption) side by side, as many to a row as there is room for."""
    return '<div class="gallery">' + "".join(figure(*image) for image in images) + "</div>"


def embedded(path: Path, folder: Path) -> bytes | None:
    """A picture as PNG of at most LARGEST pixels a side; None where there is none below `folder` that can be read."""
    try:
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):  # a link out of the folder
            return None
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError):
        return None
    picture.thumbnail((LARGEST, LARGEST))
    target = io.BytesIO()
    picture.save(target, "PNG", optimize=True)
    return target.getvalue()


def _image(png: bytes, alt: str) -> str:
    with Image.open(io.BytesIO(png)) as image:
        width, height = image.size
    data = base64.b64encode(png).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(alt)}">'


STYLE = """
:root { color-scheme: light; --ink: #22252a; --soft: #5b616b; --line: #dfe2e7; --blue: #0072b2; --head: #f4f5f7; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 84rem; background: #fff; color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.5rem 0 .5rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
p { margin: .4rem 0; }
p, main li, figcaption { max-width: 68rem; }
a { color: var(--blue); }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; margin: 1rem 0 0; padding: 0; }
li { margin: .25rem 0; }
main ul { padding-left: 1.2rem; }
.source, .notes, figcaption, footer { color: var(--soft); font-size: .87rem; }
.scroll { overflow-x: auto; margin: .6rem 0; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .4rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { background: var(--head); white-space: normal; vertical-align: bottom; font-weight: 600; min-width: 4.5rem; }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child { text-align: left; position: sticky; left: 0; background: #fff; font-weight: 600; }
thead tr:not(:first-child) th:first-child { position: static; text-align: right; }
thead tr th.over, thead tr th.over:first-child { text-align: center; border-left: 1px solid var(--line); }
thead th.key, tbody th:not(:first-child) { text-align: left; font-weight: 600; }
thead th:first-child { background: var(--head); }
figure { margin: 1rem 0; }
img { display: block; max-width: 100%; height: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 1.5rem;
  max-width: 72rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: 0 1rem; }
.gallery img { width: 100%; }
.wide { overflow-x: auto; }
.wide img { width: 100%; max-width: 54rem; min-width: 36rem; }
@media (max-width: 40rem) { .gallery { grid-template-columns: 1fr 1fr; } }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; padding: 0 .8rem; }
summary { cursor: pointer; padding: .5rem 0; font-weight: 600; font-size: .95rem; }
footer { margin-top: 3rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .scroll, .wide { overflow: visible; border: 0; }
  .wide img { min-width: 0; }
  table { font-size: 7.5pt; }
  th, td { padding: .2rem .3rem; white-space: normal; }
  .pair { grid-template-columns: 1fr 1fr; }
  .gallery { grid-template-columns: repeat(4, 1fr); }
  thead th { min-width: 0; }
  tr, figure { break-inside: avoid; }
  h2 { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
  img, .wide img { max-height: 19cm; width: auto; }
  details { break-inside: avoid; }
}
"""
