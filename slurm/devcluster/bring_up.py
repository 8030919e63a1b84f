"""What `up` and `run` do before there is a supervisor: look at the machine, make the folder, start and await it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from devcluster import network
from devcluster.commands import ClusterError, tail
from devcluster.packages import missing
from devcluster.record import down, running
from devcluster.settings import Folder, Settings


def bring_up(folder: Folder, settings: Settings, owner: int | None) -> None:
    """Start the supervisor and wait for its answer. After an error nothing runs; the folder stays, for its logs."""
    _check_machine(settings)
    _make(folder)
    options = [f"--settings={json.dumps(asdict(settings))}"]
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


def _check_machine(settings: Settings) -> None:
    """Raise ValueError where this machine or user cannot have such a cluster, with what mends it."""
    if lacking := missing(hosts=settings.hosts, accounting_too=settings.accounting):
        packages = " ".join(sorted(set(lacking.values())))
        chosen = "".join(f" --{name}" for name in ("hosts", "accounting") if getattr(settings, name))
        raise ValueError(
            f"{', '.join(lacking)} not found; on Debian and Ubuntu: dev-cluster install{chosen}, which does"
            f" apt-get update && apt-get install -y {packages}"
        )
    if settings.hosts:
        network.refuse_where_impossible()


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
