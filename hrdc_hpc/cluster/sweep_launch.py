"""Launching a sweep, or what is left of one: look, ask, submit, follow. Torch-free.

The same rules as for a single run (runs.py), for each element: the finished are told, those running or queued are left
alone, the others are submitted and go on from their checkpoints.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from hrdc_hpc.cluster import array, commandline, dependencies, submission, sweep, sweep_members, sweep_submit
from hrdc_hpc.cluster import sweep_words as words
from hrdc_hpc.cluster.console import complain, say
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.cluster.jobs import Kind
from hrdc_hpc.cluster.launching import NO_SBATCH, how_to_go_on
from hrdc_hpc.cluster.sweep import Sweep
from hrdc_hpc.cluster.sweep_members import Asked, Member, Verdict
from hrdc_hpc.config.compare import differences
from hrdc_hpc.config.dump import to_yaml
from hrdc_hpc.config.grid import elements, read_grid


def launch(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Start or resume the elements that the command line names; the exit code."""
    given = commandline.overrides(args)
    grid = read_grid(args.sweep, given)
    members = sweep_members.of_command(args.cfg, elements(grid), given)
    asked = Sweep(
        path=members[0].config.out_dir, grid=grid, elements=[member.element for member in members], cfg=args.cfg,
        command=command,
    )  # fmt: skip
    if sweep.is_sweep(asked.path):
        sweep.extended(sweep.read(asked.path), asked)  # refuses another grid
    return carry_out(args, asked, members, command)


def resubmit(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Submit the elements of a sweep that ended without finishing; the exit code."""
    there = sweep.read(Path(args.resubmit_failed).absolute())
    given = commandline.overrides(args)
    return carry_out(args, there, sweep_members.of_sweep(there, given), command)


def carry_out(args: argparse.Namespace, asked: Sweep, members: Sequence[Member], command: Sequence[str]) -> int:
    """Do with a sweep what the command line says: show, prepare, submit or run it, and follow it; the exit code."""
    if args.cluster == "local" and not (args.wait or args.dry_run or args.prepare):
        raise ValueError(
            "a sweep on this machine is run by this command, to its end: add --wait (in tmux, or behind nohup, it"
            " outlives the terminal)"
        )
    _check(args.cluster, members)
    verdicts = sweep_members.judge(members, Asked(members))
    todo = [verdict.member for verdict in verdicts if verdict.act == "submit"]
    if args.dry_run:
        return _dry_run(args, asked, verdicts)
    if args.cluster == "slurm" and not args.prepare and shutil.which("sbatch") is None:
        raise ValueError(NO_SBATCH)
    for note in _notes(args.cluster, todo, ask=not args.prepare):
        say(f"note: {note}")
    sweep_members.check_data(todo)
    waits = _waits(args, asked)
    say(words.table(verdicts))
    if not todo:
        say("nothing is left to submit")
    elif args.cluster == "local" and not args.prepare:
        from hrdc_hpc.cluster import sweep_local

        return sweep_local.run(asked, members, todo, _at_once(args, todo), command)
    else:
        if not args.prepare:
            say(words.cost(todo))
            words.confirm(todo, args.yes)
        sweep_submit.submit(asked, todo, command, waits, prepare_only=args.prepare)
    if args.wait:
        from hrdc_hpc.cluster import sweep_follow  # rich takes its time to import

        return sweep_follow.follow(asked.path, members)
    if not args.prepare and len(todo) + sum(verdict.act == "at work" for verdict in verdicts):
        say(how_to_go_on(asked.path))
    return Exit.DONE


def _check(kind: Kind, members: Sequence[Member]) -> None:
    wrong = sweep_members.Wrong()
    for member in members:
        try:
            submission.check(kind, member.config, member.run)
        except ValueError as error:
            wrong.add(member.element, error)
    wrong.raise_if_any()


def _notes(kind: Kind, members: Sequence[Member], *, ask: bool) -> list[str]:
    """What the user should know; each way of asking for nodes is compared with the cluster once."""
    asked = {repr(member.config.cluster): member.config for member in members}
    return [note for config in asked.values() for note in submission.notes(kind, config, ask=ask)]


def _at_once(args: argparse.Namespace, members: Sequence[Member]) -> int:
    """On this machine one at a time, unless the command line says otherwise: the config's number is meant for SLURM."""
    given = any(word.startswith("cluster.array_parallelism=") for word in args.overrides)
    return members[0].config.cluster.array_parallelism if given or args.array_parallelism else 1


def _waits(args: argparse.Namespace, asked: Sweep) -> dependencies.Waits:
    return dependencies.of_sweep(args.after, [element.name for element in asked.elements])


def _dry_run(args: argparse.Namespace, asked: Sweep, verdicts: Sequence[Verdict]) -> int:
    """Print the arrays, the elements, and the config of the first and how the others differ. Writes nothing."""
    todo = [verdict.member for verdict in verdicts if verdict.act == "submit"]
    if todo and args.cluster == "local":
        say(submission.local_text(todo[0].config, todo[0].run))
    elif todo:
        waits = _waits(args, asked)
        for number, (asks, group, part) in enumerate(
            sweep_submit.arrays(asked, todo), sweep_submit.next_number(asked.path)
        ):
            after = None if part.after is None else f"ARRAY_{part.after + 1}"
            config = dependencies.waiting(asks, waits.of(member.element.name for member in group))
            say(array.sbatch_text(config, array.links_folder(asked.path, number), part, after))
        say(f"# {words.cost(todo)}")
    first = verdicts[0].member
    say(f"# the elements of {asked.path}\n{words.table(verdicts)}\n")
    say(f"# config.yaml of {first.element.name}\n{to_yaml(first.config)}")
    for verdict in verdicts[1:]:
        changes = differences(first.config, verdict.member.config)
        shown = [str(change) for change in changes if change.key != "name"]
        say(f"# {verdict.member.element.name}: {', '.join(shown)}")
    if args.cluster == "slurm" and shutil.which("sbatch") is None:
        complain(f"launched here, this would stop: {NO_SBATCH}")
    try:
        for note in _notes(args.cluster, todo, ask=shutil.which("sbatch") is not None):
            complain(f"note: {note}")
        sweep_members.check_data(todo)
    except ValueError as error:
        complain(f"launched here, this would stop: {error}")
    return Exit.DONE
