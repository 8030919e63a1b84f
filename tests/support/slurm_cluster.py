"""What tests do with a cluster of slurm/dev-cluster."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DEV_CLUSTER = Path(__file__).resolve().parents[2] / "slurm" / "dev-cluster"

GRACE_S = 20
"""Of the session's clusters, from a preempted job's SIGTERM to its SIGKILL."""
SETTLE_S = 5.0
"""Of the two minutes that SLURM gives a requeued job's processes to end, what tests leave."""
ENDED = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
}


@dataclass(frozen=True)
class Slurm:
    """A running cluster, with nodes n1, n2, ..."""

    folder: Path
    env: Mapping[str, str]
    """Environment for commands: SLURM_CONF set, nothing of an outer SLURM."""

    def run(self, *command: str | Path, check: bool = True, timeout: float = 120, cwd: Path | None = None) -> str:
        """Output and errors of a command; AssertionError with them where it fails, unless `check` is off."""
        done = subprocess.run(
            command, env=self.env, cwd=cwd, timeout=timeout, check=False, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def submit(self, script: str, folder: Path, *options: str) -> str:
        """Id of a new batch job, whose output goes to `folder`/ID.out (appended to after a requeue)."""
        text = folder / "job.sh"
        text.write_text(f"#!/bin/bash\n{script}\n")
        out = ["--open-mode=append", f"--output={folder}/%A.out", f"--chdir={folder}"]
        return self.run("sbatch", "--parsable", *out, *options, text).split()[-1]  # behind warnings

    def show(self, job_id: str) -> dict[str, str]:
        """Fields of `scontrol show job`."""
        text = self.run("scontrol", "--oneliner", "show", "job", job_id)
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def wait_state(self, job_id: str, states: set[str], timeout: float, *, restarts: int = 0) -> str:
        """The job's state once it is one of `states`, after `restarts` requeues at least.

        A requeued job that waits out its two minutes is started at once.
        """
        deadline = time.monotonic() + timeout
        pending_since: float | None = None
        while True:
            job = self.show(job_id)
            if job["JobState"] in states and int(job["Restarts"]) >= restarts:
                return job["JobState"]
            if job["JobState"] == "PENDING" and int(job["Restarts"]) > 0:
                pending_since = pending_since or time.monotonic()
                # not at once: the end of the start before, if it comes in late, would be taken for this one's
                if time.monotonic() - pending_since > SETTLE_S:
                    self.run("scontrol", "update", f"JobId={job_id}", "StartTime=now", check=False)
            else:
                pending_since = None
            assert time.monotonic() < deadline, f"job {job_id} not {states} within {timeout} s, but {job}"
            time.sleep(0.2)

    def wait_job(self, job_id: str, timeout: float) -> str:
        """The state in which the job ended: COMPLETED, FAILED, CANCELLED, ..."""
        return self.wait_state(job_id, ENDED, timeout)

    def wait_running(self, job_id: str, timeout: float = 60, *, restarts: int = 0) -> None:
        """Return once the job runs."""
        self.wait_state(job_id, {"RUNNING"}, timeout, restarts=restarts)

    def requeue(self, job_id: str, timeout: float = 60) -> None:
        """Requeue a running job, and return once it runs again."""
        restarts = int(self.show(job_id)["Restarts"]) + 1
        self.run("scontrol", "requeue", job_id)
        self.wait_state(job_id, {"RUNNING", *ENDED}, timeout, restarts=restarts)

    def link(self, node: str, state: str) -> None:
        """Pull a node's cable ('down'), or put it back ('up'); hosts form only."""
        dev_cluster(["link", node, state, f"--dir={self.folder}"])

    def reconnect(self, node: str) -> None:
        """Put a lost node's cable back, and return once the node is idle.

        slurmd is restarted, as after a reboot: slurmctld asks a node that was lost long ago only twice a minute.
        """
        self.link(node, "up")
        self.restart(node)
        self.wait_node(node, {"idle"}, 60)

    def rate(self, node: str, rate: str) -> None:
        """Limit what a node, or 'all', sends and receives ('50mbit'), or no longer ('none'); hosts form only."""
        dev_cluster(["rate", node, rate, f"--dir={self.folder}"])

    def restart(self, daemon: str) -> None:
        """End a daemon ('slurmctld', 'slurmdbd', a node for its slurmd) and start it again; returns once it answers."""
        dev_cluster(["restart", daemon, f"--dir={self.folder}"])

    def node_state(self, node: str) -> str:
        """The node's state in SLURM's words: idle, mixed, down*, ..."""
        return self.run("sinfo", "--noheader", "--partition=gpu", f"--nodes={node}", "--format=%T").strip()

    def expand(self, nodes: str) -> list[str]:
        """Names of the nodes in SLURM's short form: n[1-3]."""
        return self.run("scontrol", "show", "hostnames", nodes).split()

    def wait_node(self, node: str, states: set[str], timeout: float) -> str:
        """The node's state once it is one of `states`."""
        deadline = time.monotonic() + timeout
        while (state := self.node_state(node)) not in states:
            assert time.monotonic() < deadline, f"{node} not {states} within {timeout} s, but {state}"
            time.sleep(0.2)
        return state


@contextmanager
def new_folder() -> Iterator[Path]:
    """A new folder for a cluster of a test's own, short enough for sockets; what runs in it at the end is ended."""
    path = Path(f"/tmp/hrdc-test-{os.getpid()}-{time.monotonic_ns()}")
    try:
        yield path
    finally:
        if path.exists():
            dev_cluster(["down", f"--dir={path}"])


def traces(folder: Path) -> list[str]:
    """What there is of a cluster outside its folder, on this machine: processes and mounts.

    A process is known by its command line, its environment, or by what its mount namespace shows as /etc/hosts.
    """
    mark = os.fsencode(folder)
    found = [f"mount {line}" for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
                known = command + (entry / "environ").read_bytes() + (entry / "mountinfo").read_bytes()
            except OSError:  # it has ended
                continue
            if mark in known:
                found.append(f"process {entry.name} " + command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def cable(folder: Path) -> str | None:
    """Name of the interface by which this machine reaches the nodes of the hosts form."""
    name: str | None = json.loads((folder / "cluster.json").read_text())["cable"]
    return name


def interfaces() -> set[str]:
    """Names of this machine's network interfaces."""
    return {name for _, name in socket.if_nameindex()}


def clean_environment() -> dict[str, str]:
    """The environment without an outer SLURM's variables, and without network interfaces of this host alone."""
    theirs = ("SLURM", "SBATCH", "SRUN_", "GLOO_SOCKET_", "NCCL_SOCKET_")
    return {name: value for name, value in os.environ.items() if not name.startswith(theirs)}


def dev_cluster(arguments: list[str], code: int = 0, **environ: str) -> str:
    """Output and errors of slurm/dev-cluster; AssertionError with them if it does not end with `code`."""
    done = subprocess.run(
        [sys.executable, DEV_CLUSTER, *arguments], env=os.environ | environ, timeout=120, check=False, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == code, f"dev-cluster {arguments} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout
