"""Try whether runs survive here: `python -m hrdc_hpc.drill --cfg digits_lt.yaml --kills 50 --cluster local`.

Trains the config undisturbed, then again under random faults, and compares: last checkpoint and metrics, bit for bit.
Ends in one line; exit code 0 if every fault was survived and every run ended the same, 1 if not, 78 for what cannot be
carried out. Faults follow from the seed; how far the ranks are at their moments depends on the machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import sys
import time
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.config.load import load
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.drill import slurm
from hrdc_hpc.drill.driver import Drill
from hrdc_hpc.drill.kinds import KINDS
from hrdc_hpc.drill.plan import Fault, counts, make_plan
from hrdc_hpc.drill.report import COLUMNS, Report, write
from hrdc_hpc.drill.sites import DrillError, Local, Site
from hrdc_hpc.drill.slurm import SETTLE_S, Slurm
from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.figures import show
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_raw

_SETTINGS = {
    "checkpoint.every_steps": "10",
    "checkpoint.keep_last": "3",
    "log.every_steps": "1",
    "log.tensorboard": "false",
    "eval.every_epochs": "2",
    "cluster.requeue": (
        "{preemptions: 100000, time_limits: 100000, failures: 100000, hangs: 100000, bad_nodes: 100000,"
        " without_progress: 100000, without_progress_preempted: 100000}"
    ),
}
"""Of a drilled run, unless set on the command line: faults cost little, every step is on record, no cap."""
_IF_IT_HANGS = {"guard.watchdog_min_s": "10", "guard.watchdog_start_s": "60"}
"""Where steps take a fraction of a second; the second also counts for a step that may wait for a save."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(Exit.DO_NOT_REQUEUE, f"drill: {message}; see --help\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    kinds = "\n".join(f"  {name:20}{kind.says}{' *' if kind.extra else ''}" for name, kind in KINDS.items())
    parser = _Parser(
        prog="python -m hrdc_hpc.drill", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__, epilog=f"kinds (*: only if named by --kinds):\n{kinds}",
    )  # fmt: skip
    parser.add_argument("--cfg", required=True, help="config of the run; give key=value to make it a short one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config fields, e.g. optim.epochs=20")
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="number of faults (default: %(default)s)")
    parser.add_argument("--kinds", metavar="KIND[=N],...", help="which kinds, and how many of each (default: evenly)")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--cluster", choices=["local"], help="drill on this machine")
    place.add_argument("--partition", help="drill on SLURM, in this partition")
    parser.add_argument("--urgent-partition", metavar="PARTITION", help="SLURM: one whose jobs preempt the run")
    parser.add_argument(
        "--dev-cluster", type=Path, metavar="DIR", help="the folder of the slurm/dev-cluster on which it runs"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default: %(default)s)")
    parser.add_argument("--out-dir", type=Path, metavar="DIR", help="where the runs go (default: runs/drill-<time>)")
    parser.add_argument(
        "--record", type=Path, metavar="FILE.json", help="write a record, and FILE.md; or into a folder"
    )
    options = parser.parse_intermixed_args(arguments)
    if options.kills < 1:
        parser.error(f"--kills: must be at least 1; got {options.kills}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(given)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the run under way is ended
    try:
        if importlib.util.find_spec("torch") is None:
            raise ValueError("comparing weights needs torch, which is not installed here; drill where it is")
        return _drill(options, given)
    except ValueError as error:
        sys.stderr.write(f"drill: {error}\n")
        return Exit.DO_NOT_REQUEUE
    except (DrillError, OSError) as error:
        sys.stderr.write(f"drill: {error}\n")
        return Exit.FAILED
    except KeyboardInterrupt:
        sys.stderr.write("drill: interrupted; its run was ended\n")
        return Exit.LEFT


def _drill(options: argparse.Namespace, given: Sequence[str]) -> int:
    since, out = time.time(), _new_folder(options.out_dir)
    given_options = {f"--{name.replace('_', '-')}" for name, value in vars(options).items() if value is not None}
    numbers = counts(options.kills, options.kinds, "local" if options.cluster else "slurm", given_options)
    overrides = settings(options.overrides, numbers)
    config = load(options.cfg, overrides)
    site = _site(options, [*overrides, f"out_dir={json.dumps(str(out))}"])
    plan = make_plan(numbers, options.seed, config.checkpoint.every_steps)
    straight = out / "undisturbed"
    say(f"training {straight} without a fault")
    startup_s, world_size = _undisturbed(site, straight)
    _announce(plan, startup_s + (SETTLE_S if site.name == "slurm" else 0), config)
    drill = Drill(
        site, out, startup_s=startup_s, every_steps=config.checkpoint.every_steps, world_size=world_size, say=say
    )
    drill.carry_out(plan)
    report = Report(struck=drill.struck, runs=drill.runs, planned=len(plan), unasked=drill.unasked)
    report.differences = _compare(straight, [run.run for run in drill.runs if run.lost is None])
    _tell(report)
    if options.record:
        version = slurm.version() if site.name == "slurm" else None
        about: dict[str, Any] = {
            "site": site.name, "slurm": version, "seed": options.seed, "arguments": list(given),
            "seconds": time.time() - since,
        }  # fmt: skip
        say(f"record: {write(options.record, report, about)}")
    sys.stdout.write(f"{report.line()}\n")
    return Exit.DONE if report.good else Exit.FAILED


def settings(given: Sequence[str], kinds: Container[str] = ()) -> list[str]:
    """Return the overrides of a drilled run: ours, then those of the command line; of two for a key the last counts."""
    ours = {**_SETTINGS, **(_IF_IT_HANGS if "hang" in kinds else {})}
    return [*(f"{key}={value}" for key, value in ours.items()), *given]


def _new_folder(wanted: Path | None) -> Path:
    out = (wanted or Path("runs") / time.strftime("drill-%Y%m%d-%H%M%S")).absolute()
    if out.is_dir() and any(out.glob("drill-*")):
        raise ValueError(f"--out-dir: {out} holds a drill already; name a new folder")
    return out


def _site(options: argparse.Namespace, overrides: list[str]) -> Site:
    if options.cluster == "local":
        return Local(["--cfg", options.cfg, "--cluster", "local", *overrides])
    words = ["--cfg", options.cfg, "--partition", options.partition, *overrides]
    return Slurm(words, urgent=options.urgent_partition, dev_cluster=options.dev_cluster)


def _undisturbed(site: Site, run: Path) -> tuple[float, int]:
    """Train without faults; seconds from the launch to the first step, and the number of ranks."""
    launched = time.time()
    done = site.launch(run.name, "--wait")
    if done.returncode == Exit.DO_NOT_REQUEUE:
        raise ValueError(f"nothing was drilled, for the run cannot even be done undisturbed:\n{done.stdout.rstrip()}")
    if done.returncode:
        raise DrillError(f"{run}: without a fault it ended with {done.returncode}:\n{done.stdout}")
    begins = [record["time"] for record in read_raw(RunFolder(run)) if record.get("name") == "train"]
    first = read_attempts(RunFolder(run))[0]
    since = launched if launched < first["time"] else first["time"]  # or it was there, finished, from before
    return float(min(begins) - since), int(first["info"]["world_size"])


def _announce(plan: Sequence[Fault], startup_s: float, config: RunConfig) -> None:
    ending = sum(KINDS[fault.kind].ends for fault in plan)
    minutes = ending * (startup_s + 3) / 60
    say(
        f"{len(plan)} faults, {ending} of which end an attempt; a start takes {startup_s:.1f} s, so about"
        f" {max(1, round(minutes))} minutes. A checkpoint every {config.checkpoint.every_steps} steps"
    )


def _compare(straight: Path, runs: Sequence[Path]) -> dict[str, list[str]]:
    from hrdc_hpc.engine.compare import differences  # only here is torch needed

    found = {}
    for run in runs:
        try:
            found[run.name] = differences(run, straight)
        except RuntimeError as error:
            found[run.name] = [str(error)]
    return found


def _tell(report: Report) -> None:
    show("Drill", COLUMNS, report.rows(), "")
    for line in report.troubles():
        sys.stdout.write(f"{line}\n")


def say(text: str) -> None:
    """Tell on standard error what is being done."""
    sys.stderr.write(f"drill: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
