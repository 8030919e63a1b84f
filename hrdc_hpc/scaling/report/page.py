"""The report as one HTML file that needs nothing else: pictures are inside, light and dark. Pure, torch-free."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from hrdc_hpc.scaling.report.blocks import Block, Bullets, Command, Grid, Heading, Picture, Text

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1a1a1a; --faint: #5f6368; --line: #d5d8dc;
  --band: #f3f5f7; --warn: #fff4d6; --warn-line: #b26a00; --bad: #fde7e3; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e6e6e6; --faint: #a2a7ad; --line: #3a3f46;
  --band: #1f2329; --warn: #33290f; --warn-line: #e0a030; --bad: #3d211c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.warn { background: var(--warn); border-left: .3rem solid var(--warn-line); padding: .6rem 1rem; }
.warn p { margin: 0; font-weight: 600; } .warn ul { margin: .3rem 0 0; padding-left: 1.2rem; }
pre { background: var(--band); padding: .6rem; overflow-x: auto; font-size: .85rem; }
.table { overflow-x: auto; margin: 1rem 0 .3rem; overflow-wrap: normal; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; white-space: nowrap; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
thead th { background: var(--band); vertical-align: bottom; white-space: normal; }
.words { text-align: left; } td.words { white-space: normal; min-width: 8rem; max-width: 40rem; }
tbody th { text-align: left; font-weight: 600; }
tr.failed { background: var(--bad); }
.note { color: var(--faint); font-size: .85rem; margin: .2rem 0 1rem; }
figure { margin: 1.5rem 0; } figure img { width: 100%; max-width: 50rem; height: auto; display: block; }
"""


def to_html(title: str, blocks: Sequence[Block], images: Mapping[str, tuple[bytes, bytes]]) -> str:
    """Write the blocks down; `images`: name of a picture and its PNG, light and dark."""
    body = "\n".join(_block(block, images) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _block(block: Block, images: Mapping[str, tuple[bytes, bytes]]) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Command(text):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Bullets(lines, warns):
            items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
            listed = f"<ul>\n{items}\n</ul>"
            return f'<div class="warn" role="note">\n<p>Read this first</p>\n{listed}\n</div>' if warns else listed
        case Grid():
            return _grid(block)
        case Picture(name, says):
            light, dark = (base64.b64encode(png).decode("ascii") for png in images[name])
            return (
                "<figure>\n<picture>\n"
                f'<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">\n'
                f'<img alt="{escape(says)}" src="data:image/png;base64,{light}">\n</picture>\n'
                f'<figcaption class="note">{escape(says)}</figcaption>\n</figure>'
            )


def _grid(grid: Grid) -> str:
    head = "".join(f'<th scope="col"{_kind(grid, i)}>{escape(name)}</th>' for i, name in enumerate(grid.columns))
    body = "\n".join(_row(grid, i, row) for i, row in enumerate(grid.rows))
    note = f'<p class="note">{escape(grid.caption)}</p>' if grid.caption else ""
    return (
        f'<div class="table" tabindex="0">\n<table>\n<caption>{escape(grid.title)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>\n{note}"
    )


def _row(grid: Grid, i: int, row: Sequence[str]) -> str:
    mark = "&#10007; " if i in grid.failed else ""
    cells = "".join(f"<td{_kind(grid, j)}>{escape(cell)}</td>" for j, cell in enumerate(row) if j)
    failed = ' class="failed"' if i in grid.failed else ""
    return f'<tr{failed}><th scope="row">{mark}{escape(row[0])}</th>{cells}</tr>'


def _kind(grid: Grid, column: int) -> str:
    return ' class="words"' if column in grid.words else ""
