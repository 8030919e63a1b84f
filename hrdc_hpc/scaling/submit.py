"""Handing the runs of a study over, size by size: one that cannot be had does not stop the others. Torch-free.

The rules are those of sweeps (cluster/sweep_launch.py): what is finished is kept, what waits or runs is left alone,
the rest is submitted, also again. A size that the batch, the cluster's limits or sbatch refuse is written down in
study.json and tried again by the same command.
"""

from __future__ import annotations

import argparse
import functools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hrdc_hpc.cluster import array, dependencies, limits, runs, submission, sweep, sweep_members, sweep_submit
from hrdc_hpc.cluster import sweep_words as words
from hrdc_hpc.cluster.console import say
from hrdc_hpc.cluster.dependencies import Waits
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.cluster.jobs import Kind, last_job
from hrdc_hpc.cluster.launching import NO_SBATCH
from hrdc_hpc.cluster.sweep import Sweep
from hrdc_hpc.cluster.sweep_members import Asked, Member, Verdict
from hrdc_hpc.config.dump import to_yaml
from hrdc_hpc.config.grid import Element
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.manifest import collect
from hrdc_hpc.scaling import plan, study
from hrdc_hpc.scaling.plan import Planned, Shape
from hrdc_hpc.scaling.study import Study


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a command asks for, looked at: what is to be submitted and what cannot be had."""

    path: Path
    """The study's folder."""
    cfg: str
    rows: Sequence[Planned]
    """Of this command."""
    members: Sequence[Member]
    """Their runs, each once, but for those that are refused before anything is submitted."""
    verdicts: Sequence[Verdict]
    """Of `members`."""
    refused: Mapping[str, str]
    """Run: why it cannot be had."""
    notes: Sequence[str] = ()
    """What the user should know before anything is submitted."""

    @property
    def todo(self) -> list[Member]:
        """Runs to submit."""
        return [verdict.member for verdict in self.verdicts if verdict.act == "submit"]

    @property
    def there(self) -> bool:
        """Whether a run of this command waits, runs or is finished."""
        return any(verdict.act != "submit" for verdict in self.verdicts)

    @property
    def finished(self) -> bool:
        """Whether all runs that can be had are finished."""
        return all(verdict.act == "finished" for verdict in self.verdicts)

    def groups(self) -> list[list[Member]]:
        """Runs to submit, those of a size together."""
        found: dict[str, list[Member]] = {}
        for member in self.todo:
            found.setdefault(repr(member.config.cluster), []).append(member)
        return list(found.values())

    def table(self) -> str:
        """Return the plan for the user: a line for each size, and what is refused."""
        acts = {verdict.member.element.name: _ACTS[verdict.act] for verdict in self.verdicts}
        acts |= dict.fromkeys(self.refused, "refused, see below")
        used = {member.element.name: words.hours([member]) for member in self.todo}
        unit = f"{words.asked(self.members[0].config.cluster)[2]}-h at most"
        lines = plan.table(self.rows, used, unit, acts)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([*(line.rstrip() for line in text), *(f"refused: {line}" for line in _lines(self.refused))])

    def cost(self) -> str:
        """Return one line: the most that all runs to submit can use."""
        unit = words.asked(self.members[0].config.cluster)[2]
        limit = self.members[0].config.cluster.time_min
        return f"{len(self.todo)} runs of at most {limit} minutes: at most {words.hours(self.todo):.4g} {unit}-hours"


_ACTS = {"submit": "to submit", "finished": "finished, kept", "at work": "queued or running, left alone"}


def order(kind: Kind, cfg: str, measured: RunConfig, rows: Sequence[Planned], form: Shape, *, ask: bool) -> Order:
    """Look at what is asked for: the batch, the cluster's limits, what is there already. Changes nothing.

    Args:
        kind: where the runs go.
        cfg: as --cfg named it.
        measured: the config of all runs but for what the row says; its name is the study's.
        rows: of this command.
        form: what the command line says of sizes.
        ask: whether SLURM is asked for its limits.

    Raises ValueError for what is wrong with all sizes alike, and where none can be had.
    """
    path = measured.out_dir / measured.name
    refused = {row.run: why for row in rows if (why := plan.unfit(measured, row.size))}
    members = list(_members(measured, [row for row in rows if row.run not in refused], form))
    facts = limits.ask() if ask else None
    refused |= _impossible(kind, members, facts)
    members = [member for member in members if member.element.name not in refused]
    if not members:
        raise ValueError("\n".join(["none of the sizes can be had:", *_lines(refused)]))
    verdicts = sweep_members.judge(members, Asked(members))
    return Order(
        path=path, cfg=cfg, rows=rows, members=members, verdicts=verdicts, refused=refused,
        notes=_notes(kind, [verdict.member for verdict in verdicts if verdict.act == "submit"], facts),
    )  # fmt: skip


def _members(measured: RunConfig, rows: Sequence[Planned], form: Shape) -> Iterator[Member]:
    """Yield each run once; rows of both modes may share it."""
    first: dict[str, Planned] = {}
    for row in rows:
        first.setdefault(row.run, row)
    for row in first.values():
        yield Member(Element(row.run, plan.values(row)), plan.config_of(measured, row, form))


def _impossible(kind: Kind, members: Sequence[Member], facts: limits.Facts | None) -> dict[str, str]:
    """Return runs that could never start, and why. `facts`: what SLURM said; None: it was not asked."""
    found = {}
    for member in members:
        try:
            submission.check(kind, member.config, member.run)
        except ValueError as error:
            found[member.element.name] = str(error)
            continue
        problems = limits.compare(member.config.cluster, facts)[0] if facts else []
        if problems:
            found[member.element.name] = "\n".join(["SLURM could not start this job:", *problems])
    return found


def _notes(kind: Kind, todo: Sequence[Member], facts: limits.Facts | None) -> list[str]:
    found = [f"not compared with the cluster's limits: {what}" for what in (facts.unknown if facts and todo else ())]
    for member in todo:
        found += submission.notes(kind, member.config, ask=False)
        found += limits.compare(member.config.cluster, facts)[1] if facts else []
    return list(dict.fromkeys(found))


def _lines(refused: Mapping[str, str]) -> list[str]:
    """Return why runs are refused, those of the same reason together."""
    reasons: dict[str, list[str]] = {}
    for run, why in refused.items():
        reasons.setdefault(why, []).append(run)
    return [f"{', '.join(names)}: {why}" for why, names in reasons.items()]


def launch(args: argparse.Namespace, asked: Order, training: RunConfig, command: Sequence[str]) -> int:
    """Submit or run what is left of a study, follow it if asked to; the exit code.

    Args:
        args: the command line: cluster, wait, yes, in_turn, efficiency.
        asked: from `order`.
        training: the config as it would be trained.
        command: for the manifests and study.json.
    """
    kind: Kind = args.cluster
    if asked.todo and kind == "local" and not args.wait:
        raise ValueError(
            "a study on this machine is run by this command, to its end: add --wait (in tmux, or behind nohup, it"
            " outlives the terminal)"
        )
    if asked.todo and kind == "slurm" and shutil.which("sbatch") is None:
        raise ValueError(NO_SBATCH)
    for note in asked.notes:
        say(f"note: {note}")
    sweep_members.check_data(asked.todo)
    say(asked.table())
    if asked.todo:
        say(asked.cost())
        words.confirm(asked.todo, args.yes)
    else:
        say("nothing is left to submit")
    made = functools.partial(_study, asked, training, command, args.efficiency)
    if kind == "local":
        return _run_here(asked, made, command)
    refused = _submit(asked, made, command, in_turn=args.in_turn)
    for line in _lines({run: why for run, why in refused.items() if run not in asked.refused}):
        say(f"refused: {line}")
    if refused:
        say(f"{len(refused)} runs were refused; the same command tries them again")
    code = Exit.FAILED if refused else Exit.DONE
    if not args.wait:
        return code
    from hrdc_hpc.cluster import sweep_follow  # rich takes its time to import

    had = [member for member in asked.members if member.element.name not in refused]
    return sweep_follow.follow(asked.path, had) or code


def _run_here(asked: Order, make: Callable[[], Study], command: Sequence[str]) -> int:
    from hrdc_hpc.cluster import sweep_local

    with sweep_submit.claimed(_sweep(asked, command, ())):
        study.write(make())
    given = _sweep(asked, command, [member.element for member in asked.members])
    at_once = asked.members[0].config.cluster.array_parallelism
    return sweep_local.run(given, asked.members, asked.todo, at_once, command) or (
        Exit.FAILED if asked.refused else Exit.DONE
    )


def _study(asked: Order, training: RunConfig, command: Sequence[str], wanted: float) -> Study:
    """Return the study with what is asked for beside what it has; by the holder of its launch."""
    rows, refused = list(asked.rows), dict(asked.refused)
    if study.is_study(asked.path):
        there = study.read(asked.path)
        mine = {row.run for row in asked.rows}
        rows = [*study.others(there, asked.rows), *rows]
        refused |= {run: why for run, why in there.refused.items() if run not in mine}
    return Study(path=asked.path, rows=rows, config=to_yaml(training), command=command, wanted=wanted, refused=refused)


def _sweep(asked: Order, command: Sequence[str], elements: Sequence[Element]) -> Sweep:
    return Sweep(path=asked.path, grid=plan.grid(asked.rows), elements=elements, cfg=asked.cfg, command=command)


def _submit(asked: Order, make: Callable[[], Study], command: Sequence[str], *, in_turn: bool) -> dict[str, str]:
    """Submit size by size; what this command could not have, and why.

    A study of which nothing could be submitted leaves no folder. Raises SubmissionRefused in that case.
    """
    refused = dict(asked.refused)
    manifest = functools.cache(lambda: collect(command))
    with sweep_submit.claimed(_sweep(asked, command, ())) as (there, claim):
        made = make()
        study.write(made)
        for group in asked.groups():
            claim.renew()
            # also after those of an earlier command; SLURM waits no longer for what it has forgotten
            arrays = [str(taken["job_id"]) for taken in there.arrays] if in_turn else []
            after = f"afterany:{':'.join(arrays)}" if arrays else None
            before = {member.run: last_job(member.run) for member in group}
            try:
                there = _submit_size(there, group, manifest, after)
            except submission.SubmissionRefused as error:  # arrays of this size may have been taken before
                refused |= {run.name: str(error) for run, job in before.items() if last_job(run) == job}
                study.write(replace(made, refused={**made.refused, **refused}))
                there = sweep.read(there.path)
        if not asked.there and all(member.element.name in refused for member in asked.todo):
            raise submission.SubmissionRefused("\n".join(["nothing could be submitted:", *_lines(refused)]))
    say(f"study folder: {asked.path}")
    return refused


def _submit_size(
    there: Sweep, group: Sequence[Member], manifest: Callable[[], Mapping[str, Any]], after: str | None
) -> Sweep:
    """Submit the runs of one size; the sweep with them. Raises SubmissionRefused, and leaves the sweep as it was."""
    ask = Asked(group)
    with ExitStack() as claims:
        todo = []
        for member in group:
            try:
                found = claims.enter_context(runs.claimed(member.config, member.run, manifest, ask))
            except runs.AtWork as error:  # by another command, since we looked
                say(str(error))
                continue
            if found.state == "finished":
                continue
            for note in runs.prepare(found, member.config, there.code):
                say(note)
            todo.append(member)
        todo = sweep_submit.within_limit(there, todo)
        with_size = sweep.extended(there, replace(there, elements=[member.element for member in group]))
        sweep.write(with_size)
        try:
            return sweep_submit.submit_arrays(with_size, todo, Waits(after))
        except submission.SubmissionRefused:
            written = sweep.read(there.path)  # with arrays of the size that were taken
            taken = [e for e in written.elements if e in there.elements or last_job(written.run(e))]
            sweep.write(replace(written, elements=taken))
            raise


def dry_run(kind: Kind, asked: Order, *, in_turn: bool) -> None:
    """Print what sbatch would get and the plan. Writes nothing."""
    given = _sweep(asked, (), ())
    number = sweep_submit.next_number(asked.path)
    for index, group in enumerate(asked.groups()):
        if kind == "local":
            say(submission.local_text(group[0].config, group[0].run))
            continue
        for config, _, part in sweep_submit.arrays(given, group):
            waiting = dependencies.waiting(config, "afterany:ARRAY_BEFORE" if in_turn and index else None)
            after = None if part.after is None else "ARRAY_BEFORE"
            say(array.sbatch_text(waiting, array.links_folder(asked.path, number), part, after))
            number += 1
    say(f"# the study {asked.path}\n{asked.table()}")
    if asked.todo:
        say(asked.cost())
        first = asked.todo[0]
        say(f"\n# config.yaml of {first.element.name}\n{to_yaml(first.config)}")
