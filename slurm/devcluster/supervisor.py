"""The process that holds a cluster: parent of all its daemons, and by adoption of all its jobs, until told to end.

Being the parent is what makes a complete end possible without cgroups: slurmd lets its job steps go as orphans on
purpose, and whatever a job leaves behind becomes a child of this process as well.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from devcluster import processes
from devcluster.settings import Folder, Settings, free_ports, slurm_conf

READY_TIMEOUT_S = 60
_END_TIMEOUT_S = 10
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class ClusterError(RuntimeError):
    """The cluster did not come up, or there is none; the text says why."""


@dataclass(frozen=True)
class Daemon:
    """A program that runs for as long as the cluster does; its log lies in logs/ under its name."""

    name: str
    command: list[str]


def find(program: str) -> str | None:
    """Path of a SLURM or munge program; daemons lie where an ordinary user's PATH does not lead."""
    return shutil.which(program, path=_PATH)


def environment(folder: Folder) -> dict[str, str]:
    """Environment of daemons and of the commands that ask them: nothing of the shell's own SLURM_ variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN_"))}
    return kept | {"PATH": _PATH, "SLURM_CONF": str(folder.conf)}


def ask(folder: Folder, *command: str) -> str:
    """Output of a SLURM command on this cluster; empty where it fails or the controller does not answer."""
    try:
        done = subprocess.run(
            command,
            env=environment(folder),
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def supervise(folder: Folder, settings: Settings, owner: int | None) -> None:
    """Bring the cluster up, say on standard output how that went (one line of JSON), hold it until SIGTERM, end it all.

    `owner`: a process with which the cluster ends, and its folder goes, however that process ends; None: until `down`.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for the command, which ends us by SIGTERM
    processes.adopt_orphans()
    owner_started = None if owner is None else processes.start_time(owner)
    daemons: dict[str, subprocess.Popen[bytes]] = {}
    try:
        try:
            _start(folder, settings, daemons)
            _wait_until_idle(folder, settings, daemons)
        except (ClusterError, OSError) as error:
            _report({"error": str(error)})
            return
        _report({"ready": True})
        while owner is None or (owner_started is not None and processes.is_running(owner, owner_started)):
            processes.reap()
            time.sleep(0.5)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end(daemons)
    shutil.rmtree(folder.path)  # the owner has ended: nobody is left to call down


def _report(result: dict[str, object]) -> None:
    """Answer `up`, and let go of its pipe: from now on it may be gone."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _start(folder: Folder, settings: Settings, daemons: dict[str, subprocess.Popen[bytes]]) -> None:
    _write_files(folder, settings)
    for daemon in _daemons(folder, settings):
        with (folder.logs / f"{daemon.name}.log").open("ab") as log:
            daemons[daemon.name] = subprocess.Popen(
                daemon.command, env=environment(folder), cwd=folder.path, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=processes.end_with_parent,
            )  # fmt: skip
        if daemon.name == "munged" and not processes.wait_until(folder.munge_socket.is_socket, 10):
            raise ClusterError(f"munged opened no socket within 10 s\n{tail(folder, ['munged'])}")
    _write_record(folder, settings, {name: process.pid for name, process in daemons.items()})


def _write_files(folder: Folder, settings: Settings) -> None:
    for path in (
        folder.logs,
        folder.munge_key.parent,
        folder.controller_state,
        *map(folder.spool, settings.node_names),
    ):
        path.mkdir(parents=True, exist_ok=True)
    folder.munge_key.touch(mode=0o600)
    folder.munge_key.write_bytes(secrets.token_bytes(128))
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    folder.conf.write_text(
        slurm_conf(
            settings, folder, free_ports(1 + settings.nodes), host=socket.gethostname().split(".")[0],
            user=pwd.getpwuid(os.getuid()).pw_name, memory_mb=memory_mb,
        )
    )  # fmt: skip


def _daemons(folder: Folder, settings: Settings) -> list[Daemon]:
    """All daemons in the order in which they are started."""
    munge = folder.munge_key.parent
    munged = [
        "munged", "--foreground", f"--key-file={folder.munge_key}", f"--socket={folder.munge_socket}",
        f"--pid-file={munge}/pid", f"--seed-file={munge}/seed", "--force",
    ]  # fmt: skip
    commands = {"munged": munged, "slurmctld": ["slurmctld", "-D"]}
    commands |= {f"slurmd-{node}": ["slurmd", "-D", "-N", node] for node in settings.node_names}
    return [Daemon(name, [find(command[0]) or command[0], *command[1:]]) for name, command in commands.items()]


def _write_record(folder: Folder, settings: Settings, daemons: dict[str, int]) -> None:
    pids = {"supervisor": os.getpid()} | daemons
    started = {name: {"pid": pid, "started": processes.start_time(pid)} for name, pid in pids.items()}
    folder.record.write_text(json.dumps({"settings": asdict(settings), "processes": started}, indent=1) + "\n")


def _wait_until_idle(folder: Folder, settings: Settings, daemons: dict[str, subprocess.Popen[bytes]]) -> None:
    """Raise ClusterError if a daemon ends or a node is not idle in time, with the ends of the logs that tell why."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    states: dict[str, str] = {}
    while time.monotonic() < deadline:
        ended = [name for name, process in daemons.items() if process.poll() is not None]
        if ended:
            raise ClusterError(f"{' and '.join(ended)} ended at once\n{tail(folder, ended)}")
        lines = ask(folder, "sinfo", "--noheader", "--Node", "--partition=gpu", "--format=%N %T").splitlines()
        states = dict(line.split(maxsplit=1) for line in lines)
        if len(states) == settings.nodes and set(states.values()) == {"idle"}:
            return
        time.sleep(0.2)
    if not states:
        raise ClusterError(
            f"slurmctld did not answer within {READY_TIMEOUT_S} s\n{tail(folder, ['slurmctld', 'munged'])}"
        )
    late = {name: state for name, state in states.items() if state != "idle"}
    listed = ", ".join(f"{name} is {state}" for name, state in late.items())
    reasons = ask(folder, "sinfo", "--list-reasons", "--noheader", "--format=%N: %E")
    logs = tail(folder, ["slurmctld", *(f"slurmd-{name}" for name in late)])
    raise ClusterError(f"not idle within {READY_TIMEOUT_S} s: {listed}\n{reasons}{logs}")


def tail(folder: Folder, names: Sequence[str], lines: int = 12) -> str:
    """The last lines of these logs, each under its path."""
    parts = []
    for name in names:
        path = folder.logs / f"{name}.log"
        text = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
        parts.append("\n".join([f"--- {path}", *text]))
    return "\n".join(parts)


def _end(daemons: dict[str, subprocess.Popen[bytes]]) -> None:
    """End the daemons in peace, then everything else that descends from us, until nothing does."""
    for process in daemons.values():
        if process.poll() is None:
            process.terminate()
    ended = processes.wait_until(
        lambda: all(process.poll() is not None for process in daemons.values()), _END_TIMEOUT_S
    )
    if not ended:
        sys.stderr.write("a daemon did not end on SIGTERM: killing it\n")

    def nothing_left() -> bool:
        processes.send(processes.descendants(os.getpid()), signal.SIGKILL)
        return processes.reap()

    processes.wait_until(nothing_left, _END_TIMEOUT_S)


def read_record(folder: Folder) -> dict[str, tuple[int, int]]:
    """The processes that were recorded, by name: pid and start time. Empty where no cluster was started."""
    try:
        listed = json.loads(folder.record.read_text())["processes"]
    except FileNotFoundError:
        return {}
    return {name: (entry["pid"], entry["started"]) for name, entry in listed.items() if entry["started"] is not None}


def running(folder: Folder) -> list[str]:
    """Names of the recorded processes that run now."""
    return [name for name, (pid, started) in read_record(folder).items() if processes.is_running(pid, started)]


def down(folder: Folder) -> None:
    """End the cluster in this folder and wait until nothing of it runs; ClusterError if something does not end."""
    recorded = read_record(folder)
    supervisor = recorded.get("supervisor")
    if supervisor is not None and processes.is_running(*supervisor):
        processes.send([supervisor[0]], signal.SIGTERM)
        processes.wait_until(lambda: not processes.is_running(*supervisor), 3 * _END_TIMEOUT_S)
    # a supervisor that was killed takes its daemons along (end_with_parent), but their jobs stay
    left = {pid for pid, started in recorded.values() if processes.is_running(pid, started)} | set(_steps(folder))
    left |= {below for pid in left for below in processes.descendants(pid)}
    processes.send(left, signal.SIGKILL)
    if not processes.wait_until(lambda: all(processes.start_time(pid) is None for pid in left), _END_TIMEOUT_S):
        raise ClusterError(f"still running: {', '.join(map(str, sorted(left)))}; see ps -fp PID")


def _steps(folder: Folder) -> list[int]:
    """The job steps' own processes (slurmstepd) of this cluster, by their environment."""
    mark = b"SLURM_CONF=" + os.fsencode(folder.conf)
    found = []
    for entry in Path("/proc").iterdir():
        try:
            is_step = entry.name.isdigit() and (entry / "comm").read_text().strip() == "slurmstepd"
            if is_step and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found
