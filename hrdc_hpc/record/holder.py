"""Who holds a lease, and whether that process is provably dead. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Holder:
    """A process, named so that no other process, before or after, on any machine, has the same name."""

    token: str
    """Random; whose token stands in the lease file holds the lease."""
    host: str = "an unknown host"
    boot_id: str = ""
    """Of the kernel, new at every boot; empty where it cannot be known."""
    pid_namespace: str = ""
    """In which the pid counts: containers have their own."""
    pid: int = 0
    pid_start: str = ""
    """Clock ticks from the boot to the start of the process: tells it from a later one with the same pid."""
    job: dict[str, str | int] = field(default_factory=dict)
    """What the scheduler says: cluster, job_id, restart_count."""
    since: float = 0.0
    """Unix seconds on the holder's clock; for people."""

    def __str__(self) -> str:
        words = [f"process {self.pid} on {self.host}"]
        if self.job.get("job_id") is not None:
            restart = self.job.get("restart_count") or 0
            words.append(f"job {self.job['job_id']}" + (f" (restart {restart})" if restart else ""))
        if self.since:
            words.append(f"since {time.strftime('%Y-%m-%d %H:%M:%S %z', time.localtime(self.since))}")
        return ", ".join(words)


def this_process(job: Mapping[str, str | int]) -> Holder:
    """Name this process, with a fresh token."""
    pid = os.getpid()
    return Holder(
        token=secrets.token_hex(16),
        host=socket.gethostname(),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        pid=pid,
        pid_start=_start(pid) or "",
        job=dict(job),
        since=time.time(),
    )


def encode(holder: Holder) -> bytes:
    """Return the content of a lease file."""
    return (json.dumps(asdict(holder), indent=1) + "\n").encode()


def decode(content: bytes) -> Holder:
    """Read a lease file. Of one that cannot be read only expiry can tell whether its holder lives."""
    try:
        value: Any = json.loads(content)
        return Holder(
            token=str(value["token"]),
            host=str(value["host"]),
            boot_id=str(value["boot_id"]),
            pid_namespace=str(value["pid_namespace"]),
            pid=int(value["pid"]),
            pid_start=str(value["pid_start"]),
            job=dict(value["job"]),
            since=float(value["since"]),
        )
    except (ValueError, TypeError, KeyError):
        return Holder(token=f"unreadable-{hashlib.sha256(content).hexdigest()[:32]}")


def provably_dead(holder: Holder) -> bool:
    """Whether the process ran under this kernel, in this pid namespace, and does not any more."""
    here = (socket.gethostname(), _boot_id(), _pid_namespace())
    if not holder.boot_id or not holder.pid or here != (holder.host, holder.boot_id, holder.pid_namespace):
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    if _is_zombie(holder.pid):
        return True
    start = _start(holder.pid)
    return start is not None and bool(holder.pid_start) and start != holder.pid_start


def replaced_by_requeue(holder: Holder, job: Mapping[str, str | int]) -> bool:
    """Whether `job` is a later start of the same job: the scheduler ended the earlier one before it started this."""
    mine, theirs = job.get("job_id"), holder.job.get("job_id")
    if mine is None or str(mine) != str(theirs) or job.get("cluster") != holder.job.get("cluster"):
        return False
    return int(job.get("restart_count") or 0) > int(holder.job.get("restart_count") or 0)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the third on (proc(5)): the second, the name, may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:  # gone, or hidden from us
        return None


def _start(pid: int) -> str | None:
    stat = _stat(pid)
    return stat[19] if stat else None


def _is_zombie(pid: int) -> bool:
    """Ended, and waiting for its parent to notice. While one of its threads still runs, it has not ended."""
    stat = _stat(pid)
    if not stat or stat[0] not in "ZX":
        return False
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir())) <= 1
    except OSError:
        return True
