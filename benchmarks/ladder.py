"""`bench step` as a record: `python -m benchmarks.ladder NAME [options of bench step]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hrdc_hpc import bench


def main(arguments: Sequence[str] | None = None) -> int:
    """Climb the ladder and write `records/ladder-NAME_...`; 0, 78 for a mistake, 1 for what the world did."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0].startswith("-"):
        sys.stderr.write("benchmarks.ladder: give a name for the record first, then the options of bench step\n")
        return 78
    options = bench.parse(["step", *words[1:]])
    if lacking := bench.missing():
        sys.stderr.write(f"benchmarks.ladder: {lacking}\n")
        return 1
    try:
        report = bench.measure_step(options)
    except (ValueError, RuntimeError, OSError) as error:
        sys.stderr.write(f"benchmarks.ladder: {error}\n")
        return 78 if isinstance(error, ValueError) else 1
    from benchmarks.report import write

    settings = report["settings"]
    title = (
        f"The step, rung by rung: {settings['backbone']}, {settings['method']}, {settings['classes']} classes, batch"
        f" {settings['batch']}, {settings['image_size']} px"
    )
    write(
        Path("records"), f"ladder-{words[0]}", {"arguments": words, **report}, module="benchmarks.ladder", title=title,
        columns=bench.COLUMNS, rows=[bench.cells(row) for row in report["rows"]],
        notes=[bench.CAPTION, bench.limits(report)],
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
