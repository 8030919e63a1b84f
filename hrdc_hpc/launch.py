"""Start, resume or follow a run: `python -m hrdc_hpc.launch --partition gpu --cfg inat.yaml`. Torch-free.

Without --cluster local the target is SLURM, and where there is no sbatch that is an error: nothing trains on a login
node by accident. Exit codes: hrdc_hpc/cluster/exit_codes.py; of a command line or config that is wrong, and of a launch
that is refused (the run is running, or was started with other settings): 78.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hrdc_hpc.cluster import runs, submission
from hrdc_hpc.cluster.ends import log_path
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.cluster.jobs import Job, Kind, job_state, last_job, note_job, note_refusal, note_submitting
from hrdc_hpc.cluster.results import print_result
from hrdc_hpc.cluster.signals import terminal_waits
from hrdc_hpc.cluster.times import minutes
from hrdc_hpc.config.load import load, loads, to_yaml
from hrdc_hpc.config.nodes import parse_nodes
from hrdc_hpc.config.paths import absolute
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.preflight import preflight
from hrdc_hpc.record.folder import RunFolder


def _time_limit(text: str) -> int:
    try:
        return minutes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _nodes(text: str) -> int | str:
    try:
        return parse_nodes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


CLUSTER_FLAGS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "partition": ("--partition", str, "SLURM partition"),
    "profile": ("--profile", str, "cluster profile: a file, or the name of one that comes along, e.g. apptainer"),
    "nodes": ("--nodes", _nodes, "number of nodes, or a range of which SLURM chooses, e.g. 2-4"),
    "gpus_per_node": ("--gpus-per-node", int, "GPUs per node (0: CPU)"),
    "ranks_per_node": ("--ranks-per-node", int, "processes per node (one per GPU, or one)"),
    "cpus_per_rank": ("--cpus-per-rank", int, "CPU cores per process"),
    "mem_gb": ("--mem-gb", int, "memory per node, GB"),
    "time_min": ("--time", _time_limit, "time limit: minutes, H:MM:SS, D-HH:MM or another of SLURM's forms"),
    "signal_delay_s": ("--signal-delay", int, "seconds before the time limit at which the run is told to save"),
    "account": ("--account", str, "account to charge"),
    "qos": ("--qos", str, "quality of service"),
    "constraint": ("--constraint", str, "features that the nodes must have"),
    "array_parallelism": ("--array-parallelism", int, "elements of an array that run at once"),
}
"""Field of the config's cluster section: its flag, type and help. `sbatch` and `setup` take several values; what
belongs to a cluster rather than to a run has no flag: a profile, or cluster.KEY=VALUE."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(Exit.DO_NOT_REQUEUE, f"launch: {message} (see --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    args = _parser().parse_intermixed_args(given)
    try:
        if args.follow is not None:
            _refuse_others(args)
            return _follow_existing(Path(args.follow).absolute())
        if args.cfg is None:
            _parser().error(
                "--cfg is missing: a config's path, or the name of one that comes along, e.g. digits_lt.yaml"
            )
        return _launch(args, [sys.executable, "-m", "hrdc_hpc.launch", *given])
    except submission.SubmissionRefused as error:
        _complain(str(error))
        return Exit.FAILED
    except BrokenPipeError:  # '| head' has seen enough; nothing is left to be flushed into the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    except OSError as error:
        _complain(_trouble(error))
        return Exit.FAILED
    except ValueError as error:  # the user's: config, data, a launch that is refused
        _complain(str(error))
        return Exit.DO_NOT_REQUEUE
    except KeyboardInterrupt:
        _complain("interrupted")
        return Exit.LEFT


def _launch(args: argparse.Namespace, command: Sequence[str]) -> int:
    kind: Kind = "local" if args.cluster == "local" else "slurm"
    config = absolute(load(args.cfg, _overrides(args)))
    run = config.out_dir / config.name
    submission.check(kind, config, run)
    if args.dry_run:
        return _dry_run(kind, config, run)
    if kind == "slurm" and not args.prepare and shutil.which("sbatch") is None:
        raise ValueError(_NO_SBATCH)
    for note in submission.notes(kind, config, ask=not args.prepare):
        _say(f"note: {note}")
    found, job = runs.look(config, run), None  # refuses before anything is made
    if found.state != "finished":
        preflight(config.data)
        with runs.claimed(config, run, command) as found:
            if found.state != "finished":
                job = _start(found, None if args.prepare else kind, config)
    if found.state == "finished":
        _say(f"{run} is finished: nothing to do. To start another, give it another --name.")
        print_result(found.folder.summary() or {}, run)
    if job is None:
        return Exit.DONE
    if args.wait:
        return _follow(run, job, config)
    _say(_how_to_go_on(run, job))
    return Exit.DONE


def _start(found: runs.Found, kind: Kind | None, config: RunConfig) -> Job | None:
    """Bring the folder up to date and hand its job over, if `kind` says to whom; says what was done."""
    run, job = found.folder.path, None
    for note in runs.prepare(found, config):
        _say(note)
    if kind is None:
        _say(f"prepared {run}; start it with:\n  {_plain_command(run)}")
        return None
    try:
        with terminal_waits():  # a job that was taken must be written down
            job = _submit(kind, config, run)
    except KeyboardInterrupt:
        if job:
            _say(_how_to_go_on(run, job))
        raise
    return job


def _submit(kind: Kind, config: RunConfig, run: Path) -> Job:
    note_submitting(run, kind)
    try:
        job = submission.submit(kind, config, run)
    except submission.SubmissionRefused as error:
        note_refusal(run, str(error))
        raise
    try:
        note_job(run, job)
    finally:
        here = f"runs on this machine, for at most {config.cluster.time_min} minutes (--time)"
        _say(f"job {job.job_id} {here if kind == 'local' else 'is in the queue'}")
        _say(f"run folder: {run}")
        _say(f"log:        {log_path(run, job.job_id)}")
    return job


def _how_to_go_on(run: Path, job: Job) -> str:
    stop = f"kill -TERM {job.job_id}  (saves first)" if job.kind == "local" else f"scancel {job.job_id}"
    return f"follow it:  {runs.follow_command(run)}\nstop it:    {stop}"


_NO_SBATCH = (
    "no sbatch on the PATH: this is not a machine that can submit to SLURM. To train on this machine instead, say so:"
    " --cluster local. To see what would be submitted: --dry-run"
)


def _dry_run(kind: Kind, config: RunConfig, run: Path) -> int:
    """Print the job and the resolved config; what would stop a real launch goes to standard error. Writes nothing."""
    _say(submission.local_text(config, run) if kind == "local" else submission.sbatch_text(config, run))
    _say(f"# the run's config.yaml, in {run}\n{to_yaml(config)}")
    if kind == "slurm" and shutil.which("sbatch") is None:
        _complain(f"launched here, this would stop: {_NO_SBATCH}")
    try:
        for note in submission.notes(kind, config, ask=shutil.which("sbatch") is not None):
            _complain(f"note: {note}")
        if runs.look(config, run).state == "finished":
            _complain(f"launched here, this would do nothing: {run} is finished")
        else:
            preflight(config.data)
    except ValueError as error:
        _complain(f"launched here, this would stop: {error}")
    return Exit.DONE


def _refuse_others(args: argparse.Namespace) -> None:
    parser = _parser()
    if any(value and value != parser.get_default(name) for name, value in vars(args).items() if name != "follow"):
        parser.error("--follow goes alone: it follows the run as it was launched; leave the other arguments out")


def _follow_existing(run: Path) -> int:
    if not (run / "config.yaml").is_file():
        raise ValueError(f"--follow: {run} is not a run folder (no config.yaml)")
    folder, job = RunFolder(run), last_job(run)
    if folder.state() == "finished":
        print_result(folder.summary() or {}, run)
        return Exit.DONE
    if job is None:
        raise ValueError(f"--follow: no job was submitted for {run}; start it with launch --cfg {run / 'config.yaml'}")
    return _follow(run, job, loads(folder.config.read_text(), place=str(folder.config)), ours=False)


def _follow(run: Path, job: Job, config: RunConfig, *, ours: bool = True) -> int:
    """Follow to the end.

    Ctrl-C leaves a SLURM job in peace, and what another command launched; a local run of `ours` is told to save and
    stop, then killed.
    """
    from hrdc_hpc.cluster.follow import follow  # rich takes its time to import

    batch = config.optim.global_batch
    try:
        return follow(run, job, batch)
    except KeyboardInterrupt:
        if job.kind == "slurm" or not ours:
            _say(f"\njob {job.job_id} goes on\n{_how_to_go_on(run, job)}")
            return Exit.LEFT
    _say("\nstopping the run: it saves first (Ctrl-C again: at once; what was saved before stays)")
    _kill(run, job, signal.SIGTERM)
    try:
        follow(run, job, batch)
    except KeyboardInterrupt:
        _kill(run, job, signal.SIGKILL)
    return Exit.LEFT


def _kill(run: Path, job: Job, number: signal.Signals) -> None:
    """Signal a local job: its controller, which passes on a request to stop; SIGKILL to its whole process group."""
    if job_state(run, job).phase == "gone":
        return
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if number == signal.SIGKILL else os.kill)(int(job.job_id), number)


def _plain_command(run: Path) -> str:
    """Return what starts a prepared run without submitit, in a batch script; by itself, without srun."""
    code = RunFolder(run).code
    if (code / "jobs" / "train.py").is_file():
        return f"srun {shlex.join([sys.executable, str(code / 'jobs' / 'train.py'), str(run)])}"
    environ = f"PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}"  # an installed package comes without jobs/
    return f"{environ} srun {shlex.join([sys.executable, '-m', 'hrdc_hpc.cluster.task', str(run)])}"


def _overrides(args: argparse.Namespace) -> list[str]:
    """All flags as config overrides; those without a key of their own come last, as on every command line."""
    found = {f"cluster.{field}": getattr(args, field) for field in CLUSTER_FLAGS}
    found |= {"name": args.name, "out_dir": args.out_dir, "cluster.setup": args.setup}
    for option in args.sbatch or ():
        key, separator, value = option.partition("=")
        found[f"cluster.sbatch.{key.lstrip('-')}"] = _WORDS.get(value.lower(), value) if separator else True
    if args.cluster == "local" and (args.partition or args.sbatch):
        raise ValueError("--cluster local does not go with --partition or --sbatch, which are for SLURM; leave one out")
    # JSON is YAML: a string stays a string, however much it looks like a number
    flags = [f"{key}={json.dumps(value)}" for key, value in found.items() if value is not None]
    return [*flags, *args.overrides]


_WORDS = {"true": True, "false": False}
"""As in YAML; every other value of --sbatch is text."""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m hrdc_hpc.launch", description="Train a config on a cluster, or resume it.", allow_abbrev=False
    )
    parser.add_argument("--cfg", help="config file, or the name of one that comes along, e.g. digits_lt.yaml")
    parser.add_argument("--cluster", choices=["slurm", "local"], default="slurm", help="local: train on this machine")
    for field, (flag, kind, text) in CLUSTER_FLAGS.items():
        parser.add_argument(flag, dest=field, type=kind, help=text)
    sbatch_help = "any other sbatch option by its long name; KEY=false leaves out one of ours; may be repeated"
    parser.add_argument("--sbatch", action="append", metavar="KEY=VALUE", help=sbatch_help)
    parser.add_argument(
        "--setup", action="append", metavar="LINE", help="shell line that runs on the node first; may be repeated"
    )
    parser.add_argument("--name", help="the run's folder below --out-dir")
    parser.add_argument("--out-dir", help="where run folders are made")
    parser.add_argument("--dry-run", action="store_true", help="print the job and the resolved config; write nothing")
    parser.add_argument("--prepare", action="store_true", help="make the run folder, submit nothing")
    parser.add_argument("--wait", action="store_true", help="follow the run to its end and print the result")
    parser.add_argument("--follow", metavar="RUN", help="follow a run that was launched before; nothing else is done")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config fields, e.g. optim.lr=0.2")
    return parser


_NEXT = {
    frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG}): "make room there, or choose another --out-dir",
    frozenset({errno.EACCES, errno.EPERM, errno.EROFS}): "choose an --out-dir in which you may write",
    frozenset({errno.EEXIST, errno.ENOTDIR}): "a file is where a folder should be; choose another --out-dir",
}


def _trouble(error: OSError) -> str:
    """Say where, what, and what to do."""
    where = error.filename2 or error.filename
    what = f"{where}: {error.strerror}" if where else str(error)
    then = next((text for numbers, text in _NEXT.items() if error.errno in numbers), "put that right")
    return f"{what}. To go on: {then}, then give the same command again"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _complain(text: str) -> None:
    sys.stderr.write(f"launch: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
