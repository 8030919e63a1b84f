"""What runs of a cluster, as its folder tells, and ending it from outside."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from devcluster import network, processes
from devcluster.commands import ClusterError
from devcluster.settings import Folder, Settings

END_TIMEOUT_S = 10
SUPERVISOR = "supervisor"


def write_record(folder: Folder, settings: Settings, daemons: Mapping[str, int], cable: str | None) -> None:
    """Record this process, the supervisor, its daemons by name and pid, and its interface on this machine."""
    pids = {SUPERVISOR: os.getpid(), **daemons}
    started = {name: {"pid": pid, "started": processes.start_time(pid)} for name, pid in pids.items()}
    new = folder.record.with_suffix(".new")
    new.write_text(json.dumps({"settings": asdict(settings), "processes": started, "cable": cable}, indent=1) + "\n")
    new.replace(folder.record)


def read_record(folder: Folder) -> dict[str, tuple[int, int]]:
    """The processes that were recorded, by name: pid and start time. Empty where no cluster was started."""
    listed = _load(folder).get("processes", {})
    return {name: (entry["pid"], entry["started"]) for name, entry in listed.items() if entry["started"] is not None}


def read_settings(folder: Folder) -> Settings:
    """What the cluster in this folder was started with; ClusterError where none was."""
    settings = _load(folder).get("settings")
    if settings is None:
        raise ClusterError(f"no cluster runs in {folder.path}; start one with: dev-cluster up")
    return Settings(**settings)


def _load(folder: Folder) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = json.loads(folder.record.read_text())
    except FileNotFoundError:
        return {}
    return loaded


def running(folder: Folder) -> list[str]:
    """Names of the recorded processes that run now."""
    return [name for name, (pid, started) in read_record(folder).items() if processes.is_running(pid, started)]


def down(folder: Folder) -> None:
    """End the cluster in this folder and wait until nothing of it runs; ClusterError if something does not end."""
    recorded = read_record(folder)
    supervisor = recorded.get(SUPERVISOR)
    if supervisor is not None and processes.is_running(*supervisor):
        processes.send([supervisor[0]], signal.SIGTERM)
        processes.wait_until(lambda: not processes.is_running(*supervisor), 5 * END_TIMEOUT_S)
    # a supervisor that was killed takes its daemons along (end_with_parent), but their jobs stay
    left = {pid for pid, started in recorded.values() if processes.is_running(pid, started)} | set(_steps(folder))
    left |= {below for pid in left for below in processes.descendants(pid)}
    processes.send(left, signal.SIGKILL)
    if not processes.wait_until(lambda: all(processes.start_time(pid) is None for pid in left), END_TIMEOUT_S):
        raise ClusterError(f"still running: {', '.join(map(str, sorted(left)))}; see ps -fp PID")
    if cable := _load(folder).get("cable"):
        network.remove(cable)


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
