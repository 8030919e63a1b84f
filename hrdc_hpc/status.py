"""Where runs are: `python -m hrdc_hpc.status`, all below runs/; of one run, its page. Torch-free.

    status [RUN|SWEEP|PATTERN ...] [--watch] [--json]     the table; one RUN: its attempts, goodput, logs, next commands
    status logs RUN [--rank R] [--attempt K] [--follow]   the end of its output
    status cancel RUN...                                  scancel, or SIGTERM to a local run: it saves first
    status stop RUN..., status save RUN...                touch RUN/stop, RUN/save: save and end, or save and go on

The first word is a command if it is one of these; a run of that name is given by its path (runs/logs, ./logs). What
the states mean is in hrdc_hpc/cluster/overview.py, the parts of the goodput in hrdc_hpc/cluster/goodput.py.

One SWEEP: its elements, and mean and deviation of their results over its seeds.

--json prints {"time", "slurm", "runs": [...], "sweeps": [{"sweep", "results"}]}, results being fields of
sweep_results.Row of the sweeps that were named; each run has the fields of Overview as keys, and of one run
`attempts_list` (fields of Story, with `goodput` by part in seconds) and `goodput` {"seconds", "share",
"repeated_steps"} as well. Exit codes: 0; 78 for a run that is not there or a command that is refused; 1 if SLURM
refuses.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from hrdc_hpc.cluster import control, find_runs, logs
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.cluster.goodput import Account, Goodput
from hrdc_hpc.cluster.history import Story, history
from hrdc_hpc.cluster.overview import GOING, OVER, Overview, Survey, as_json, survey
from hrdc_hpc.cluster.results import TAIL_LINES
from hrdc_hpc.cluster.runs import cancel_command, follow_command, report_command, resubmit_command
from hrdc_hpc.cluster.scheduler import SchedulerError
from hrdc_hpc.cluster.sweep import is_sweep
from hrdc_hpc.cluster.timeline import account_of
from hrdc_hpc.record import measurement

_WATCH_S = 3.0
"""Seconds between two looks at the folders and at the queue."""
COMMANDS = ("logs", "cancel", "stop", "save")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(Exit.DO_NOT_REQUEUE, f"{self.prog.rpartition('.')[2]}: {message} (see --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if given and given[0] in COMMANDS:
            args = _command_parser(given[0]).parse_intermixed_args(given[1:])
            return _logs(args) if given[0] == "logs" else _tell(given[0], args)
        return _show(_parser().parse_intermixed_args(given))
    except BrokenPipeError:  # '| head' has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    except ValueError as error:
        _complain(str(error))
        return Exit.DO_NOT_REQUEUE
    except (SchedulerError, OSError) as error:
        _complain(str(error))
        return Exit.FAILED
    except KeyboardInterrupt:
        return Exit.LEFT


# the table and the page


def _show(args: argparse.Namespace) -> int:
    out_dir = Path(args.out_dir)
    if args.watch:
        _watch(args.runs, out_dir, args.json)
    runs = find_runs.find(args.runs, out_dir)
    alone = len(runs) == 1 and bool(args.runs)
    found = survey(runs)
    if args.json:
        told = _json(found, alone=alone) | {"sweeps": _sweeps(find_runs.sweeps(args.runs, out_dir))}
        _say(json.dumps(told, indent=1))
        return Exit.DONE
    if not runs:
        _say(f"no runs in {out_dir.absolute()}; start one with: python -m hrdc_hpc.launch --cfg CONFIG")
        return Exit.DONE
    from hrdc_hpc.cluster import screen  # rich takes its time to import

    console = screen.console()
    if alone:
        console.print(_page(found.runs[0]))
    else:
        console.print(screen.table(found, _names(found.runs), console.width))
        for sweep in find_runs.sweeps(args.runs, out_dir):
            _print_results(console, sweep, found.runs)
    if found.slurm not in ("asked", "not needed"):
        _say(f"SLURM not asked: {found.slurm}")
    return Exit.DONE


def _print_results(console: Any, sweep: Path, rows: Sequence[Overview]) -> None:
    """Print what a sweep has brought so far, and how to go on with those that left without a result."""
    from hrdc_hpc.cluster import sweep_results

    results = sweep_results.result_rows(sweep)
    if any(measurement.is_there(Path(row.run)) for row in rows if Path(row.run).parent == sweep):
        _say(f"report of the study:  {report_command(sweep)}")
    if any(row.finished for row in results):
        console.print()
        console.print(sweep_results.table(results, f"sweep {sweep.name}"))
    if left := sum(row.state in OVER and Path(row.run).parent == sweep for row in rows):
        _say(f"{left} did not finish; to submit what is left:  {resubmit_command(sweep)}")


def _page(row: Overview) -> Any:
    from hrdc_hpc.cluster import screen

    run = Path(row.run)
    stories, account = _story(row)
    log = logs.newest_log(run)
    return screen.page(row, stories, account, [log] if log else [], _next(row))


def _story(row: Overview) -> tuple[list[Story], Account]:
    waits, works = row.state in ("queued", "requeued"), row.state == "running"
    return history(Path(row.run)), account_of(Path(row.run), waits=waits, works=works)


def _next(row: Overview) -> dict[str, str]:
    """What to do next, by what it does."""
    run = shlex.quote(row.run)
    if row.state in GOING:
        saves = "" if row.state in ("queued", "requeued") else "  (saves first)"
        return {
            "follow": follow_command(Path(row.run)),
            "output": f"python -m hrdc_hpc.status logs {run} --follow",
            "cancel": f"{cancel_command(Path(row.run))}{saves}",
        }
    if row.state == "finished":
        result = {"result": follow_command(Path(row.run))}
        if measurement.is_there(Path(row.run)):  # there are no weights to evaluate
            study = Path(row.run).parent
            return result | ({"report": report_command(study)} if is_sweep(study) else {})
        return result | {"evaluate": f"python -m hrdc_hpc.evaluate {run}"}
    commands = {} if row.state == "prepared" else {"output": f"python -m hrdc_hpc.status logs {run}"}
    return commands | {"resume": f"python -m hrdc_hpc.launch --resume {run}"}


def _names(rows: Sequence[Overview]) -> dict[str, str]:
    """Return what to call runs: the part of their paths in which they differ."""
    if len(rows) == 1:
        return {rows[0].run: Path(rows[0].run).name}
    common = os.path.commonpath([row.run for row in rows])
    return {row.run: os.path.relpath(row.run, common) for row in rows}


def _json(found: Survey, *, alone: bool) -> dict[str, Any]:
    runs = [as_json(row) for row in found.runs]
    if alone:
        stories, account = _story(found.runs[0])
        spent = {number: one.seconds for number, one in account.attempts.items()}
        runs[0]["attempts_list"] = [asdict(story) | {"goodput": spent.get(story.attempt)} for story in stories]
        runs[0]["goodput"] = _goodput(account.run)
    return {"time": time.time(), "slurm": found.slurm, "runs": runs}


def _sweeps(sweeps: Sequence[Path]) -> list[dict[str, Any]]:
    if not sweeps:
        return []
    from hrdc_hpc.cluster import sweep_results  # rich takes its time to import

    return [
        {"sweep": str(path), "results": [asdict(row) for row in sweep_results.result_rows(path)]} for path in sweeps
    ]


def _goodput(goodput: Goodput) -> dict[str, Any]:
    shares = {part: goodput.share(part) for part in goodput.seconds}
    return {"seconds": goodput.seconds, "share": shares, "repeated_steps": goodput.repeated_steps}


def _watch(words: Sequence[str], out_dir: Path, as_lines: bool) -> NoReturn:
    """Look again and again, until Ctrl-C: redrawn on a terminal; elsewhere a line, or an object, for each change."""
    if as_lines or not sys.stdout.isatty():
        _watch_lines(words, out_dir, as_lines)
    from rich.live import Live

    from hrdc_hpc.cluster import screen

    console = screen.console()
    with Live(console=console, screen=False, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            found = survey(find_runs.find(words, out_dir))
            alone = len(found.runs) == 1 and bool(words)
            names = _names(found.runs) if found.runs else {}
            live.update(_page(found.runs[0]) if alone else screen.table(found, names, console.width), refresh=True)
            time.sleep(_WATCH_S)


def _watch_lines(words: Sequence[str], out_dir: Path, as_objects: bool) -> NoReturn:
    from hrdc_hpc.cluster import screen

    shown: dict[str, tuple[Any, ...]] = {}
    while True:
        found = survey(find_runs.find(words, out_dir))
        names = _names(found.runs) if found.runs else {}
        for row in found.runs:
            key = (row.state, row.doing, row.step, row.word, row.accuracy)
            if shown.get(row.run) != key:
                shown[row.run] = key
                _say(json.dumps(as_json(row)) if as_objects else screen.text_line(row, names[row.run]))
        time.sleep(_WATCH_S)


# logs, cancel, stop, save


def _logs(args: argparse.Namespace) -> int:
    run = find_runs.one(args.run, Path(args.out_dir))
    if args.follow and args.attempt is not None:
        raise ValueError("--follow goes with the newest attempt; leave --attempt out")
    part = logs.part_of(run, args.rank, args.attempt)
    sys.stderr.write(f"{part.path}\n")
    sys.stdout.buffer.write(logs.tail(part, args.lines))
    sys.stdout.flush()
    if args.follow:
        for content in logs.follow(part, _seldom(lambda: _is_over(run)), lambda: logs.newest_log(run, args.rank)):
            sys.stdout.buffer.write(content)
            sys.stdout.flush()
    return Exit.DONE


def _is_over(run: Path) -> bool:
    (row,) = survey([run]).runs
    return row.state not in GOING


def _seldom(ask: Callable[[], bool]) -> Callable[[], bool]:
    """Ask no more often than every _WATCH_S: the question goes to the file server and the controller."""
    asked, answer = 0.0, False

    def again() -> bool:
        nonlocal asked, answer
        if time.monotonic() - asked >= _WATCH_S:
            asked, answer = time.monotonic(), ask()
        return answer

    return again


def _tell(command: str, args: argparse.Namespace) -> int:
    """Cancel runs, or leave a switch file in each; one that refuses does not spare the others."""
    code = Exit.DONE
    for row in survey(find_runs.find(args.runs, Path(args.out_dir))).runs:
        try:
            said = control.cancel(row) if command == "cancel" else control.switch(row, command)
            _say(f"{Path(row.run).name}: {said}")
        except (ValueError, SchedulerError, OSError) as error:
            _complain(str(error))
            code = Exit.DO_NOT_REQUEUE if isinstance(error, ValueError) else Exit.FAILED
    return code


# the command line


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m hrdc_hpc.status", allow_abbrev=False,
        description="Where runs are. A first word of logs, cancel, stop, save is a command: 'status logs --help'.",
    )  # fmt: skip
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run or sweep folders, or patterns; all if left out")
    parser.add_argument("--watch", action="store_true", help="look again every few seconds, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_out_dir(parser)
    return parser


def _command_parser(command: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"python -m hrdc_hpc.status {command}", allow_abbrev=False, description=_HELP[command],
        epilog=f"A run that is called '{command}' is given by its path, e.g. runs/{command}.",
    )  # fmt: skip
    if command == "logs":
        parser.add_argument("run", metavar="RUN", help="run folder, of an array's element too")
        parser.add_argument("--rank", type=int, default=0, help="whose output (0)")
        parser.add_argument("--attempt", type=int, help="only that attempt's; unset: the newest job's")
        parser.add_argument("--follow", action="store_true", help="go on with what is written, until the run is over")
        parser.add_argument(
            "--lines", type=_count, default=TAIL_LINES, help=f"how many of the last lines ({TAIL_LINES})"
        )
    else:
        parser.add_argument("runs", nargs="+", metavar="RUN", help="run or sweep folders, or patterns")
    _add_out_dir(parser)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: 0 or more")
    return int(text)


def _add_out_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out-dir", default=str(find_runs.RUNS), help="where runs are looked for (runs)")


_HELP = {
    "logs": "Show the end of a run's output.",
    "cancel": "Cancel a run's jobs: one at work saves first. It is not requeued.",
    "stop": "Have a run save at the next step and end; it is not requeued. The same as: touch RUN/stop",
    "save": "Have a run save at the next step and go on. The same as: touch RUN/save",
}


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _complain(text: str) -> None:
    sys.stderr.write(f"status: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
