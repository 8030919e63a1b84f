"""Finds a rank among a machine's processes and hits it; also by itself, where srun starts it. Torch-free."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path


def ranks_by_environ(job_id: str, restarts: int, run: Path) -> dict[int, int]:
    """Process ids by rank, of a job's ranks on this machine.

    Args:
        job_id: of SLURM, or of a local run.
        restarts: how often SLURM had restarted the job; 0 for a local one.
        run: the run folder.
    """
    found: dict[int, int] = {}
    for entry in sorted(Path("/proc").iterdir(), key=lambda entry: (len(entry.name), entry.name)):
        if not entry.name.isdecimal():
            continue
        try:
            pairs = (entry / "environ").read_bytes().split(b"\0")
            words = (entry / "cmdline").read_bytes()
        except OSError:  # ended meanwhile, or somebody else's
            continue
        environ = dict(pair.decode(errors="replace").split("=", 1) for pair in pairs if b"=" in pair)
        rank = _rank(environ, job_id, restarts)
        if rank is not None and os.fsencode(run) in words and (b"submitit" in words or b"train.py" in words):
            found.setdefault(rank, int(entry.name))  # what a rank forks comes after it
    return found


def _rank(environ: Mapping[str, str], job_id: str, restarts: int) -> int | None:
    if environ.get("SUBMITIT_LOCAL_JOB_ID") == job_id and "SUBMITIT_LOCAL_GLOBALID" in environ:
        return int(environ["SUBMITIT_LOCAL_GLOBALID"])
    ours = environ.get("SLURM_JOB_ID") == job_id and int(environ.get("SLURM_RESTART_COUNT", 0)) == restarts
    return int(environ["SLURM_PROCID"]) if ours and "SLURM_STEP_NUM_TASKS" in environ else None


def hit(pid: int, what: str) -> None:
    """Send the signal 'KILL' or 'STOP', or limit the size of its files to N bytes: 'fsize=N'; nothing if it is gone."""
    with contextlib.suppress(ProcessLookupError):
        if what.startswith("fsize="):
            limit = int(what.removeprefix("fsize="))
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, limit))
        else:
            os.kill(pid, signal.Signals[f"SIG{what}"])


def main(arguments: list[str]) -> None:
    """RUN JOB RESTARTS RANK|all WHAT; says 'hit' where such a rank is."""
    run, job_id, restarts, wanted, what = arguments
    for rank, pid in ranks_by_environ(job_id, int(restarts), Path(run)).items():
        if wanted in ("all", str(rank)):
            hit(pid, what)
            sys.stdout.write("hit\n")


if __name__ == "__main__":
    main(sys.argv[1:])
