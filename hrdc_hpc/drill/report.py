"""What a drill came to: one line, a table by kind, a record. Torch-free."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hrdc_hpc.drill.driver import Drilled, Struck
from hrdc_hpc.drill.kinds import KINDS
from hrdc_hpc.record.figures import markdown
from hrdc_hpc.record.machine import describe, sentence, short_name

COLUMNS = ("fault", "what is done", "times", "hit in", "ended", "steps repeated")


@dataclass(kw_only=True)
class Report:
    """A drill that is over."""

    struck: Sequence[Struck]
    runs: Sequence[Drilled]
    planned: int
    unasked: Sequence[str] = ()
    """Ends of attempts that no fault explains."""
    differences: dict[str, list[str]] = field(default_factory=dict)
    """By run, where it differs from the undisturbed one; of those that ended."""

    @property
    def lost(self) -> list[Drilled]:
        """Runs that did not end."""
        return [run for run in self.runs if run.lost is not None]

    @property
    def identical(self) -> bool:
        """Whether every run that ended did so as the undisturbed one."""
        return not any(self.differences.values())

    @property
    def survived(self) -> list[Struck]:
        """Faults with nothing wrong, of runs that ended the same."""
        bad = {run.run.name for run in self.lost} | {name for name, places in self.differences.items() if places}
        return [struck for struck in self.struck if struck.wrong is None and struck.run not in bad]

    @property
    def good(self) -> bool:
        """Whether everything was survived."""
        everything = len(self.survived) == len(self.struck) >= self.planned
        return everything and self.identical and not self.lost and not self.unasked

    def line(self) -> str:
        """Return the verdict in one line."""
        number, kinds = len(self.struck), len({struck.fault.kind for struck in self.struck})
        of = number if number >= self.planned else self.planned
        faults = f"{of}" if len(self.survived) == of else f"{len(self.survived)} of {of}"
        ended = len(self.runs) > len(self.lost)
        weights = "weights identical" if ended and self.identical else "weights NOT identical"
        strange = f", {len(self.unasked)} ends that no fault explains" if self.unasked else ""
        return (
            f"{faults} faults of {kinds} kinds survived: {len(self.lost)} runs lost{strange},"
            f" {sum(run.repeated for run in self.runs)} steps repeated (of {sum(run.steps for run in self.runs)}),"
            f" {weights if ended else 'no run ended, so no weights to compare'}"
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row for each kind, in the order of KINDS."""
        return [
            _row(name, some)
            for name in KINDS
            if (some := [struck for struck in self.struck if struck.fault.kind == name])
        ]

    def troubles(self) -> list[str]:
        """Return what went wrong, a line each."""
        wrong = [f"fault {s.fault.number}, {s.fault.kind} of {s.run}: {s.wrong}" for s in self.struck if s.wrong]
        lost = [f"{run.run.name} lost: {run.lost}" for run in self.lost]
        differ = [f"{name} differs: {'; '.join(places[:5])}" for name, places in self.differences.items() if places]
        return [*wrong, *lost, *differ, *(f"ended without a fault: {why}" for why in self.unasked)]

    def plain(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "verdict": self.line(),
            "planned": self.planned,
            "faults": [
                {**asdict(s.fault), **{k: v for k, v in asdict(s).items() if k != "fault"}} for s in self.struck
            ],
            "runs": [
                {**asdict(run), "run": run.run.name, "differences": self.differences.get(run.run.name)}
                for run in self.runs
            ],
            "unasked": list(self.unasked),
        }


def _row(name: str, some: Sequence[Struck]) -> tuple[str, ...]:
    phases = _tally("+".join(struck.phases) or "between attempts" for struck in some)
    ends = _tally(struck.wrong or struck.outcome for struck in some)
    return (name, KINDS[name].says, str(len(some)), phases, ends, str(sum(struck.repeated for struck in some)))


def _tally(words: Any) -> str:
    counted: dict[str, int] = {}
    for word in words:
        counted[word] = counted.get(word, 0) + 1
    ordered = sorted(counted.items(), key=lambda item: -item[1])
    return ", ".join(f"{word} {number}" if len(ordered) > 1 else word for word, number in ordered)


def write(target: Path, report: Report, about: dict[str, Any]) -> Path:
    """Write the record: JSON, and a page beside it; returns the page's path.

    Args:
        target: FILE.json, or a folder, in which it is named after site, machine and date.
        report: what came of it.
        about: seed, site, SLURM's version, arguments, seconds.
    """
    machine = describe()
    if target.is_dir():
        target = target / f"drill-{about['site']}_{short_name(machine)}_{machine['date']}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps({"machine": machine, **about, **report.plain()}, indent=1) + "\n")
    page = target.with_suffix(".md")
    where = f"SLURM {about['slurm']}" if about.get("slurm") else "this machine, --cluster local"
    command = f"python -m hrdc_hpc.drill {shlex.join(about['arguments'])}"
    trouble = "\n".join(f"- {line}" for line in report.troubles())
    parts = [
        f"# Drill: {report.line()}",
        f"On {where}. Hardware: {sentence(machine)} Seed {about['seed']}, {about['seconds'] / 60:.0f} minutes,"
        f" {sum(run.attempts for run in report.runs)} attempts of {len(report.runs)} runs. Every fault, in order:"
        f" [{target.stem}.json]({target.stem}.json).",
        f"```console\n{command}\n```",
        markdown(COLUMNS, report.rows()),
        *([f"What went wrong:\n\n{trouble}"] if trouble else []),
        "Every run's last checkpoint and its metrics were compared with those of an undisturbed run of the same config:"
        " identical means bit for bit. Kinds, targets and moments follow from the seed; how far the ranks are at a"
        " moment does not.",
    ]
    page.write_text("\n\n".join(parts) + "\n")
    return page
