"""The commands of slurm/dev-cluster: up, down, run, env, install, and the faults: link, rate, restart."""

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

from devcluster import control, network, packages
from devcluster.bring_up import bring_up
from devcluster.commands import ClusterError, environment
from devcluster.record import SUPERVISOR, down, read_record, read_settings, running
from devcluster.settings import Folder, Settings, base_folder, default_folder
from devcluster.supervisor import supervise

FAILED, CANNOT, INTERRUPTED = 1, 78, 130
"""Exit codes: the cluster did not come up or end; it cannot, however often tried (package missing, wrong option)."""

_HELP = """\
A real SLURM on this one machine: slurmctld and several slurmd, private to a folder, no systemd, no cgroups.
Partitions: gpu (default), and urgent, whose jobs put those in gpu back into the queue.

  slurm/dev-cluster install                               apt-get what lacks, as root
  slurm/dev-cluster up --nodes 2
  eval "$(slurm/dev-cluster env)"; sinfo
  slurm/dev-cluster down

  slurm/dev-cluster run -- srun --nodes=2 hostname        up, command, down in one

  slurm/dev-cluster up --nodes 4 --gpus 2 --hosts --accounting
  slurm/dev-cluster link n2 down                          a lost node; link n2 up: it is back
  slurm/dev-cluster rate all 50mbit                       a slow network; rate all none: as before
  slurm/dev-cluster restart slurmctld                     or n2, for the slurmd of a node

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
    bring_up(folder, _settings(args), args.owner)
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
            bring_up(folder, _settings(args), os.getpid())
            return _call(command, environment(folder))
        finally:
            down(folder)
            shutil.rmtree(folder.path)


def _env(args: argparse.Namespace) -> int:
    folder = _folder(args)
    if SUPERVISOR not in running(folder):
        raise ClusterError(f"no cluster runs in {folder.path}; start one with: dev-cluster up")
    _say(f"export SLURM_CONF={shlex.quote(str(folder.conf))}")
    return 0


def _supervise(args: argparse.Namespace) -> int:
    supervise(_folder(args), Settings(**json.loads(args.settings)), args.owner)
    return 0


def _install(args: argparse.Namespace) -> int:
    lacking = packages.missing(hosts=args.hosts, accounting_too=args.accounting)
    if not lacking:
        _say("nothing is missing")
        return 0
    _say(f"missing: {', '.join(lacking)}; asking apt-get for them")
    installed = packages.install(lacking)
    _say(f"installed {', '.join(installed)}; started none of their services")
    if packages.SYSTEMD.is_dir():
        _say(f"the next boot would start them; if it should not: systemctl disable {' '.join(packages.SERVICES)}")
    return 0


def _link(args: argparse.Namespace) -> int:
    switch, (node,) = _cables(args, [args.node])
    network.set_link(switch, node[0], args.state)
    _say(f"the link of {args.node} is {args.state}")
    return 0


def _rate(args: argparse.Namespace) -> int:
    switch, nodes = _cables(args, None if args.node == "all" else [args.node])
    for node, pid in nodes:
        network.set_rate(switch, node, pid, args.rate)
    limit = "no limit" if args.rate == "none" else f"{args.rate} each way"
    _say(f"{', '.join(node for node, _ in nodes)}: {limit}")
    return 0


def _cables(args: argparse.Namespace, nodes: list[str] | None) -> tuple[int, list[tuple[str, int]]]:
    """The switch's holder, and the nodes, None for all, with theirs."""
    folder = _folder(args)
    settings = read_settings(folder)
    if not settings.hosts:
        raise ValueError(
            f"{args.command}: the nodes in {folder.path} have no network of their own; up --hosts gives them"
        )
    if unknown := set(nodes or []) - set(settings.node_names):
        raise ValueError(f"{args.command}: got {unknown.pop()}, allowed are {', '.join(settings.node_names)}")
    recorded, alive = read_record(folder), running(folder)
    if network.SWITCH not in alive:
        raise ClusterError(f"no cluster runs in {folder.path}; start one with: dev-cluster up --hosts")
    chosen = nodes or settings.node_names
    return recorded[network.SWITCH][0], [(node, recorded[f"host-{node}"][0]) for node in chosen]


def _restart(args: argparse.Namespace) -> int:
    folder = _folder(args)
    settings = read_settings(folder)
    daemons = {node: f"slurmd-{node}" for node in settings.node_names} | {"slurmctld": "slurmctld"}
    if settings.accounting:
        daemons["slurmdbd"] = "slurmdbd"
    if args.daemon not in daemons:
        raise ValueError(f"restart: got {args.daemon}, allowed are {', '.join(daemons)}")
    _say(control.tell(folder, "restart", daemons[args.daemon]))
    return 0


def _folder(args: argparse.Namespace) -> Folder:
    folder = Folder(Path(args.dir).absolute() if args.dir else default_folder())
    folder.check()
    return folder


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})


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
    forms = argparse.ArgumentParser(add_help=False)
    forms.add_argument("--hosts", action="store_true", help="nodes with hostnames, addresses and cables; needs root")
    forms.add_argument("--accounting", action="store_true", help="slurmdbd and a database: sacct, sacctmgr, limits")
    size = argparse.ArgumentParser(add_help=False, parents=[forms])
    for option, field, text in _SIZES:
        size.add_argument(
            option, dest=field, type=int, default=getattr(Settings, field),
            metavar="SECONDS" if field.endswith("_s") else "N",
            help=f"{text} (default: %(default)s)",
        )  # fmt: skip
    size.add_argument("--owner", type=int, metavar="PID", help="end the cluster when this process has ended")
    commands.add_parser("up", parents=[place, size], help="start a cluster and wait until its nodes are idle")
    commands.add_parser("down", parents=[place], help="end it, with all of its jobs, and remove its folder")
    run = commands.add_parser("run", parents=[place, size], help="start one for a command, and end it with the command")
    run.add_argument("run", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run, with SLURM_CONF set")
    commands.add_parser("env", parents=[place], help="print what a shell needs to use it")
    commands.add_parser("install", parents=[forms], help="install the packages that this machine lacks, as root")
    link = commands.add_parser("link", parents=[place], help="pull a node's cable, or put it back (--hosts)")
    link.add_argument("node", metavar="NODE")
    link.add_argument("state", choices=["down", "up"])
    rate = commands.add_parser("rate", parents=[place], help="limit what a node sends and receives (--hosts)")
    rate.add_argument("node", metavar="NODE|all")
    rate.add_argument("rate", metavar="RATE|none", help="in tc's words: 50mbit, 1gbit")
    restart = commands.add_parser("restart", parents=[place], help="end a daemon and start it again; jobs stay")
    restart.add_argument("daemon", metavar="slurmctld|slurmdbd|NODE")
    supervisor = commands.add_parser("supervise", parents=[place])  # what `up` starts; not for people
    supervisor.add_argument("--settings", required=True)
    supervisor.add_argument("--owner", type=int)
    return parser


_SIZES = (
    ("--nodes", "nodes", "number of nodes"),
    ("--cpus", "cpus", "CPUs of each node, whatever the machine has"),
    ("--gpus", "gpus", "GPUs of each node, which are none"),
    ("--grace", "grace_s", "from a preempted job's SIGTERM to its SIGKILL"),
    ("--node-timeout", "node_timeout_s", "silence after which a node is lost"),
)
_COMMANDS = {
    "up": _up, "down": _down, "run": _run, "env": _env, "install": _install, "link": _link, "rate": _rate,
    "restart": _restart, "supervise": _supervise,
}  # fmt: skip


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _complain(text: str) -> None:
    sys.stderr.write(f"dev-cluster: {text}\n")
