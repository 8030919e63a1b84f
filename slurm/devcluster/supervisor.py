"""The process that holds a cluster: parent of all its daemons, and by adoption of all its jobs, until told to end.

Being the parent is what makes a complete end possible without cgroups: slurmd lets its job steps go as orphans on
purpose, and whatever a job leaves behind becomes a child of this process as well.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from devcluster import accounting, control, network, processes
from devcluster.commands import ClusterError, ask, environment, find, tail
from devcluster.conf import Place, gres_conf, slurm_conf
from devcluster.record import END_TIMEOUT_S, write_record
from devcluster.settings import LOOPBACK, Folder, Settings, free_ports

READY_TIMEOUT_S = 60
_PAUSE_S = 0.5


def supervise(folder: Folder, settings: Settings, owner: int | None) -> None:
    """Bring the cluster up, say on standard output how that went (one line of JSON), hold it until SIGTERM, end it all.

    `owner`: a process with which the cluster ends, and its folder goes, however that process ends; None: until `down`.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for the command, which ends us by SIGTERM
    processes.adopt_orphans()
    owner_started = None if owner is None else processes.start_time(owner)
    cluster = Cluster(folder, settings)
    try:
        try:
            cluster.start()
            cluster.wait_until_idle()
        except (ClusterError, OSError) as error:
            _report({"error": str(error)})
            return
        with control.listening(folder, _PAUSE_S) as server:
            _report({"ready": True})
            while owner is None or (owner_started is not None and processes.is_running(owner, owner_started)):
                processes.reap()
                control.serve(server, cluster.carry_out)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        cluster.end()
    shutil.rmtree(folder.path)  # the owner has ended: nobody is left to call down


def _report(result: dict[str, object]) -> None:
    """Answer `up`, and let go of its pipe: from now on it may be gone."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Cluster:
    """The daemons of one cluster, from start to end."""

    def __init__(self, folder: Folder, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings
        self._user = pwd.getpwuid(os.getuid()).pw_name
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {}
        self._cable: str | None = None

    def start(self) -> None:
        """Start everything, in order; ClusterError with the log of what does not come up."""
        folder = self._folder
        self._record()  # from now on `down` finds this process
        subnet = self._lay_network() if self._settings.hosts else None
        place = self._write_files(subnet)
        self._run("munged", self._munged())
        self._await("munged", folder.munge_socket.is_socket, 10)
        if self._settings.accounting:
            accounting.make_database(folder, self._user)
            self._run("mariadbd", accounting.mariadbd(folder, self._user))
            self._await("mariadbd", folder.database_socket.is_socket, 60)
            self._run("slurmdbd", *accounting.slurmdbd(folder, place))
            accounting.register(folder, self._user)
        inside = network.inside(self._pid(network.SWITCH), "mount") if self._settings.hosts else []
        self._run("slurmctld", [*inside, find("slurmctld") or "slurmctld", "-D"])
        for node in self._settings.node_names:
            inside = network.inside(self._pid(f"host-{node}"), "net", "uts", "mount") if self._settings.hosts else []
            self._run(f"slurmd-{node}", [*inside, find("slurmd") or "slurmd", "-D", "-N", node])
        self._record()

    def wait_until_idle(self) -> None:
        """Raise ClusterError if a daemon ends or a node is not idle in time, with the ends of the logs."""
        folder = self._folder
        deadline = time.monotonic() + READY_TIMEOUT_S
        states: dict[str, str] = {}
        while time.monotonic() < deadline:
            if ended := [name for name, process in self._running.items() if process.poll() is not None]:
                raise ClusterError(f"{' and '.join(ended)} ended at once\n{tail(folder, ended)}")
            states = self._states()
            if len(states) == self._settings.nodes and set(states.values()) == {"idle"}:
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

    def carry_out(self, request: Sequence[str]) -> str:
        """What the command line asks of the running cluster; what came of it, or ClusterError."""
        what, name = request
        assert what == "restart", "the command line knows no other"
        assert name in self._running, "the command line has looked"
        return self._restart(name)

    def end(self) -> None:
        """End the daemons in peace, then everything else that descends from us, until nothing does."""
        users = [name for name in self._running if name == "slurmctld" or name.startswith("slurmd-")]
        for wave in (users, ["slurmdbd"], list(self._running)):  # none waits for an answer of one that has ended
            self._terminate([self._running[name] for name in wave if name in self._running])

        def nothing_left() -> bool:
            processes.send(processes.descendants(os.getpid()), signal.SIGKILL)
            return processes.reap()

        processes.wait_until(nothing_left, END_TIMEOUT_S)
        if self._cable is not None:
            network.remove(self._cable)

    def _terminate(self, daemons: Sequence[subprocess.Popen[bytes]]) -> None:
        for process in daemons:
            if process.poll() is None:
                process.terminate()
        if not processes.wait_until(lambda: all(process.poll() is not None for process in daemons), END_TIMEOUT_S):
            late = [name for name, process in self._running.items() if process in daemons and process.poll() is None]
            sys.stderr.write(f"{', '.join(late)} did not end on SIGTERM: killing it\n")

    def _restart(self, name: str) -> str:
        """End a daemon as an administrator does, start it again, and wait until it answers."""
        process = self._running[name]
        heard = self._heard()
        process.terminate()
        if not processes.wait_until(lambda: process.poll() is not None, END_TIMEOUT_S):
            process.kill()
            process.wait()
        started_s = int(time.time())
        self._run(name, *self._commands[name])
        self._record()
        if name == "slurmctld":
            # a node's state is unknown to it until the node has registered
            self._await(name, lambda: heard <= self._heard(), READY_TIMEOUT_S / 2)
        elif name == "slurmdbd":
            self._await(name, lambda: ask(self._folder, "sacctmgr", "--noheader", "show", "cluster") != "", 30)
        elif name.startswith("slurmd-"):
            node = name.removeprefix("slurmd-")
            self._await(name, lambda: self._registered_s(node) >= started_s, READY_TIMEOUT_S / 2)
        return f"restarted {name}"

    def _states(self) -> dict[str, str]:
        """State of each node in SLURM's words, with * for a silent one; empty where slurmctld does not answer."""
        lines = ask(self._folder, "sinfo", "--noheader", "--Node", "--partition=gpu", "--format=%N %T").splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    def _heard(self) -> set[str]:
        """Nodes that slurmctld hears."""
        return {node for node, state in self._states().items() if not state.endswith("*") and state != "unknown"}

    def _registered_s(self, node: str) -> int:
        """When the node's slurmd that slurmctld knows was started, in Unix seconds; 0: unknown."""
        shown = ask(self._folder, "scontrol", "show", "node", node)
        _, _, told = shown.partition("SlurmdStartTime=")
        try:
            return int(time.mktime(time.strptime(told.split()[0], "%Y-%m-%dT%H:%M:%S")))
        except (ValueError, IndexError):
            return 0

    def _run(self, name: str, command: Sequence[str], extra: Mapping[str, str] | None = None) -> None:
        """Start a program that runs for as long as the cluster does; its log lies in logs/ under its name."""
        self._commands[name] = (command, extra or {})
        with (self._folder.logs / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command, env=environment(self._folder) | dict(extra or {}), cwd=self._folder.path,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=processes.end_with_parent,
            )  # fmt: skip

    def _await(self, name: str, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait for a daemon to be ready; ClusterError with its log if it ends first, or takes too long."""
        process = self._running[name]
        processes.wait_until(lambda: ready() or process.poll() is not None, timeout_s)
        if process.poll() is not None:
            raise ClusterError(f"{name} ended at once\n{tail(self._folder, [name])}")
        if not ready():
            raise ClusterError(f"{name} was not ready within {timeout_s:.0f} s\n{tail(self._folder, [name])}")

    def _pid(self, name: str) -> int:
        return self._running[name].pid

    def _record(self) -> None:
        pids = {name: process.pid for name, process in self._running.items()}
        write_record(self._folder, self._settings, pids, self._cable)

    def _munged(self) -> list[str]:
        munge = self._folder.munge_key.parent
        return [
            find("munged") or "munged", "--foreground", f"--key-file={self._folder.munge_key}",
            f"--socket={self._folder.munge_socket}", f"--pid-file={munge}/pid", f"--seed-file={munge}/seed", "--force",
        ]  # fmt: skip

    def _lay_network(self) -> network.Subnet:
        """Start the holders of all namespaces and join them by cables."""
        hosts, nodes = self._folder.hosts, self._settings.node_names
        hosts.touch()  # the holders mount it; it is filled once the addresses are known
        holders = {network.SWITCH: None} | {f"host-{node}": node for node in nodes}
        for name, hostname in holders.items():
            self._run(name, network.holder(hosts, hostname))
        for name in holders:
            pid = self._pid(name)
            self._await(name, lambda pid=pid: network.lives(pid), 10)  # type: ignore[misc]  # no type for a default
        switch = self._pid(network.SWITCH)
        subnet = network.lay_cable(switch)
        self._cable = subnet.cable
        self._record()
        hosts.write_text(network.hosts_file(subnet, nodes, _hostname()))
        network.connect(subnet, switch, [(node, self._pid(f"host-{node}")) for node in nodes])
        return subnet

    def _write_files(self, subnet: network.Subnet | None) -> Place:
        folder, settings = self._folder, self._settings
        for path in (folder.munge_key.parent, folder.controller_state, *map(folder.spool, settings.node_names)):
            path.mkdir(parents=True, exist_ok=True)
        folder.munge_key.touch(mode=0o600)
        folder.munge_key.write_bytes(secrets.token_bytes(128))
        numbers = range(1, settings.nodes + 1)
        ports = free_ports(2 + settings.nodes)
        place = Place(
            host=_hostname(),
            user=self._user,
            memory_mb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
            address=subnet.machine if subnet else LOOPBACK,
            port=ports[0],
            node_addresses=[subnet.node(number) if subnet else LOOPBACK for number in numbers],
            node_ports=ports[2:],
            accounting_port=ports[1],
        )
        folder.conf.write_text(slurm_conf(settings, folder, place))
        # newer slurmds look for cgroups unless told not to; older ones do not know the word, and do not look
        if _version() >= _CGROUPS_CAN_BE_OFF:
            (folder.path / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        if settings.gpus:
            _make_gpus(folder, settings.gpus)
            folder.gres_conf.write_text(gres_conf(settings, folder))
        return place


def _version() -> tuple[int, int]:
    """Of the slurmctld on this machine, e.g. (22, 5)."""
    program = find("slurmctld") or "slurmctld"
    told = subprocess.run([program, "-V"], capture_output=True, text=True, check=False, timeout=10).stdout
    match = re.search(r"(\d+)\.(\d+)", told)
    return (int(match[1]), int(match[2])) if match else (0, 0)


_CGROUPS_CAN_BE_OFF = (23, 11)


def _make_gpus(folder: Folder, count: int) -> None:
    """Names that SLURM takes for GPUs: it wants device files that end in a number, and follows links to them."""
    folder.gpus.mkdir()
    for number in range(count):
        (folder.gpus / f"nvidia{number}").symlink_to("/dev/null")


def _hostname() -> str:
    return socket.gethostname().split(".")[0]
