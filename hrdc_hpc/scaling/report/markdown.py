"""The report as Markdown. Pure, torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hrdc_hpc.record.figures import markdown
from hrdc_hpc.scaling.report.blocks import Block, Bullets, Command, Grid, Heading, Picture, Text

_SPECIAL = re.compile(r"[\\`*<>\[\]|&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def to_markdown(blocks: Sequence[Block]) -> str:
    """Write the blocks down."""
    return "\n\n".join(_block(block) for block in blocks) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {escape(text)}"
        case Text(text):
            return escape(text)
        case Command(text):
            return _fenced(text)
        case Bullets(lines, warns):
            if warns:
                return "\n".join(["**Read this first**", "", *(f"> - {escape(line)}" for line in lines)])
            return "\n".join(f"- {escape(line)}" for line in lines)
        case Grid():
            return _grid(block)
        case Picture(name, says):
            return f"![{escape(says)}]({name}.png)\n\n*{escape(says)}*"


def _fenced(text: str) -> str:
    """Put text into a fence longer than any in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}console\n{text}\n{fence}"


def _grid(grid: Grid) -> str:
    rows = [[escape(cell) for cell in row] for row in grid.rows]
    for i in grid.failed:
        rows[i][0] = f"**x** {rows[i][0]}"
    failed = "**x**: no figures. " if grid.failed else ""
    table = markdown([escape(column) for column in grid.columns], rows)
    end = f"\n\n{failed}{escape(grid.caption)}" if failed or grid.caption else ""
    return f"**{escape(grid.title)}**\n\n{table}{end}"


def escape(text: str) -> str:
    """Text as one line in which nothing is markup."""
    return _SPECIAL.sub(lambda found: f"\\{found.group()}", " ".join(text.split()))
