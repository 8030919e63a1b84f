"""Writes a benchmark's figures into records/, as JSON and as a page."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hrdc_hpc.record.figures import markdown
from hrdc_hpc.record.machine import sentence, short_name


def write(
    folder: Path,
    what: str,
    report: dict[str, Any],
    *,
    module: str,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
) -> Path:
    """Write `<what>_<machine>_<date>.json` and `.md`; return the page's path. The day's earlier one is replaced."""
    machine = report["machine"]
    page = folder / f"{what}_{short_name(machine)}_{machine['date']}.md"
    folder.mkdir(parents=True, exist_ok=True)
    page.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    command = f"python -m {module} {shlex.join(report['arguments'])}".strip()
    parts = [
        f"# {title}",
        f"Hardware: {sentence(machine)} All figures: [{page.stem}.json]({page.stem}.json).",
        f"```console\n{command}\n```",
        markdown(columns, rows),
        *notes,
    ]
    page.write_text("\n\n".join(parts) + "\n")
    sys.stdout.write(f"record: {page}\n")
    return page
