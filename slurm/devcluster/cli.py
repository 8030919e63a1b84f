"""The commands of slurm/dev-cluster: up, down, run, env."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from devcluster.settings import Folder, Settings, base_folder, default_folder
from devcluster.supervisor import ClusterError, down, environment, find, running, supervise, tail

FAILED, CANNOT, INTERRUPTED = 1, 78, 130
"""Exit codes: the cluster did not come up or end; it cannot, however often tried (package missing, wrong option)."""

_PACKAGES = {"munged": "munge", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sinfo": "slurm-wlm"}
_HELP = """\
A real SLURM on this one machine: slurmctld and several slurmd, private to a folder, no systemd, no cgroups, no network.
Partitions: gpu (default), and urgent, whose jobs put those in gpu back into the queue.

  slurm/dev-cluster up --nodes 2
  eval "$(slurm/dev-cluster env)"; sinfo
  slurm/dev-cluster down

  slurm/dev-cluster run -- srun --nodes=2 hostname        all three in one

A requeued job waits two minutes, as on every SLURM; to start it now: scontrol update JobId=ID StartTime=now
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; the exit code."""
    args = _parser().parse_args(arguments)
    try:
        return _COMMANDS[args.command](args)
    except ValueError as error:
        _complain(str(error))
        return CANNOT
    except ClusterError as error:
        _complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _up(args: argparse.Namespace) -> int:
    folder = _folder(args)
    _bring_up(folder, _settings(args), args.owner)
    option = f" --dir {shlex.quote(str(args.dir))}" if args.dir else ""
    program = shlex.quote(sys.argv[0])
    _say(f"{args.nodes} nodes of {args.cpus} CPUs are idle; everything lies in {folder.path}")
    _say(f'use it:  eval "$({program} env{option})"')
    _say(f"end it:  {program} down{option}")
    return 0


def _down(args: argparse.Namespace) -> int:
    folder = _folder(args)
    if not folder.record.exists():
        raise ClusterError(f"no cluster in {folder.path}")
    down(folder)
    shutil.rmtree(folder.path)
    _say(f"ended; removed {folder.path}")
    return 0


def _run(args: argparse.Namespace) -> int:
    command = args.run[1:] if args.run[:1] == ["--"] else args.run
    if not command:
        raise ValueError("run: no command; write it behind --, for example: dev-cluster run -- sinfo")
    if args.dir is None:
        args.dir = Path(tempfile.mkdtemp(prefix="slurm-dev-cluster-", dir=base_folder()))
    folder = _folder(args)
    with _stopped_as_exception():
        try:
            _bring_up(folder, _settings(args), os.getpid())
            return _call(command, environment(folder))
        finally:
            down(folder)
            shutil.rmtree(folder.path)


def _env(args: argparse.Namespace) -> int:
    folder = _folder(args)
    if "supervisor" not in running(folder):
        raise ClusterError(f"no cluster runs in {folder.path}; start one with: dev-cluster up")
    _say(f"export SLURM_CONF={shlex.quote(str(folder.conf))}")
    return 0


def _supervise(args: argparse.Namespace) -> int:
    supervise(_folder(args), _settings(args), args.owner)
    return 0


def _folder(args: argparse.Namespace) -> Folder:
    folder = Folder(Path(args.dir).absolute() if args.dir else default_folder())
    folder.check()
    return folder


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})


def _bring_up(folder: Folder, settings: Settings, owner: int | None) -> None:
    """Start the supervisor and wait for its answer. After an error nothing runs; the folder stays, for its logs."""
    _check_machine()
    _make(folder)
    options = [f"--{field.name.removesuffix('_s')}={getattr(settings, field.name)}" for field in fields(Settings)]
    options += [f"--owner={owner}"] if owner is not None else []
    with (folder.logs / "supervisor.log").open("wb") as log:
        supervisor = subprocess.Popen(
            [sys.executable, str(Path(sys.argv[0]).resolve()), "supervise", f"--dir={folder.path}", *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True, cwd="/",
        )  # fmt: skip
    assert supervisor.stdout is not None, "it has a pipe"
    try:
        answer = json.loads(supervisor.stdout.readline() or b"{}")
    except BaseException:
        supervisor.terminate()
        supervisor.wait()
        raise
    if not answer.get("ready"):
        supervisor.wait()
        raise ClusterError(answer.get("error") or f"the supervisor ended\n{tail(folder, ['supervisor'])}")


def _check_machine() -> None:
    """Raise ValueError where the programs are missing, with the packages that have them."""
    missing = [program for program in _PACKAGES if find(program) is None]
    if missing:
        packages = " ".join(sorted({_PACKAGES[program] for program in missing}))
        raise ValueError(
            f"{', '.join(missing)} not found; on Debian and Ubuntu: apt-get update && apt-get install -y {packages}"
        )


def _make(folder: Folder) -> None:
    """Make the folder, empty but for logs/; one that an earlier cluster left is cleared, anybody else's is refused."""
    if alive := running(folder):
        raise ClusterError(
            f"a cluster runs in {folder.path} already ({', '.join(alive)}); end it first: dev-cluster down"
        )
    if folder.record.exists():
        down(folder)
        shutil.rmtree(folder.path)
    folder.path.mkdir(parents=True, mode=0o755, exist_ok=True)
    if folder.path.stat().st_uid != os.getuid() or any(folder.path.iterdir()):
        raise ValueError(f"--dir: {folder.path} is not empty, or not yours; name a folder that is new or empty")
    folder.logs.mkdir()
    folder.record.write_text('{"processes": {}}\n')


def _call(command: Sequence[str], environ: dict[str, str]) -> int:
    """Run the user's command to its end; its exit code."""
    try:
        process = subprocess.Popen(command, env=environ)
    except OSError as error:
        raise ValueError(f"run: cannot start {command[0]}: {error.strerror}") from error
    # Ctrl-C reaches the command as well, and what it means is for the command to say: a shell stays
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        code = process.wait()
    except SystemExit:
        process.terminate()
        process.wait()
        raise
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _stopped_as_exception() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that `finally` runs."""

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dev-cluster", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--dir", type=Path, help=f"the cluster's folder (default: {default_folder()}; run: a new one)")
    size = argparse.ArgumentParser(add_help=False)
    for name, text in (("nodes", "number of nodes"), ("cpus", "CPUs of each node, whatever the machine has")):
        size.add_argument(f"--{name}", type=int, default=getattr(Settings, name), help=f"{text} (default: %(default)s)")
    size.add_argument(
        "--grace", dest="grace_s", type=int, default=Settings.grace_s, metavar="SECONDS",
        help="from a preempted job's SIGTERM to its SIGKILL (default: %(default)s)",
    )  # fmt: skip
    size.add_argument("--owner", type=int, metavar="PID", help="end the cluster when this process has ended")
    commands.add_parser("up", parents=[place, size], help="start a cluster and wait until its nodes are idle")
    commands.add_parser("down", parents=[place], help="end it, with all of its jobs, and remove its folder")
    run = commands.add_parser("run", parents=[place, size], help="start one for a command, and end it with the command")
    run.add_argument("run", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run, with SLURM_CONF set")
    commands.add_parser("env", parents=[place], help="print what a shell needs to use it")
    commands.add_parser("supervise", parents=[place, size])  # what `up` starts; not for people
    return parser


_COMMANDS = {"up": _up, "down": _down, "run": _run, "env": _env, "supervise": _supervise}


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _complain(text: str) -> None:
    sys.stderr.write(f"dev-cluster: {text}\n")
