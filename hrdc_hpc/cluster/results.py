"""What a launch says at the end: the table of a finished run, or why it did not finish. Torch-free."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hrdc_hpc.cluster.ends import log_path, read_ends
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_raw
from hrdc_hpc.record.table import accuracy_table, print_table

TAIL_LINES = 30


def print_result(summary: Mapping[str, Any], run: Path) -> None:
    """Print balanced test accuracy in percent, a row for each head and fusion, and where the run folder lies.

    Args:
        summary: report/summary.json; accuracies are shares, 0 to 1.
        run: the run folder.
    """
    title = f"balanced test accuracy after epoch {summary['epoch']}, step {summary['step']}"
    print_table(accuracy_table(summary["accuracy"], summary["primary"], title, summary.get("accuracy_ema")))
    sys.stdout.write(f"run folder: {run}\n")
    sys.stdout.flush()


def failure(run: Path, job_id: str, word: str) -> tuple[str, int]:
    """Return why a job left without finishing, with the end of the failing rank's log, and an exit code (not 0).

    Args:
        run: the run folder.
        job_id: the job.
        word: the scheduler's word for the job's end.
    """
    cause = root_cause(read_ends(run, job_id))
    rank = 0 if cause is None or cause["rank"] is None else int(cause["rank"])
    log = log_path(run, job_id, rank)
    if cause is None:
        lines, code = [f"job {job_id} ended without finishing the run: {word}{_engine_reason(run)}"], int(Exit.FAILED)
    else:
        code = cause["code"] if cause["code"] > 0 else 128 - cause["code"]
        who = "job" if cause["rank"] is None else f"rank {rank} on {cause['host']} of job"
        lines = [f"{who} {job_id}: {cause['reason']} (exit code {code}; {word})"]
    if code == Exit.REQUEUE:
        return "\n".join([*lines, f"saved; the same command goes on from the last checkpoint. Log: {log}"]), code
    tail = _tail(log)
    return "\n".join([*lines, f"last {len(tail)} lines of {log}:", *(f"  {line}" for line in tail)]), code


def root_cause(ends: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of a job's ends the one that explains the last start: a killed rank, else the first error, else the stop."""
    if not ends:
        return None
    start = ends[-1].get("restart_count", 0)
    last = [end for end in ends if end.get("restart_count", start) == start]
    killed = [end for end in last if end["code"] < 0]  # its peers' errors are only its echo
    errors = [end for end in last if end["code"] not in (Exit.DONE, Exit.REQUEUE)]
    return min(killed or errors or last[-1:], key=lambda end: end["time"])


def _engine_reason(run: Path) -> str:
    reasons = [record.get("reason") for record in read_raw(RunFolder(run)) if record["kind"] == "end"]
    return f"; the last attempt said: {reasons[-1]}" if reasons else ""


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 64 * 1024))
            return file.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
    except FileNotFoundError:
        return []
