"""What a launch says at the end: the table of a finished run, or why it did not finish. Torch-free."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hrdc_hpc.cluster.ends import log_path, read_ends
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.cluster.goodput import line
from hrdc_hpc.cluster.jobs import Job
from hrdc_hpc.cluster.timeline import account_of
from hrdc_hpc.config.load import loads
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_raw

TAIL_LINES = 30


def print_result(summary: Mapping[str, Any], run: Path) -> None:
    """Print accuracy in percent, a row for each head and fusion, unreadable files, goodput, where the run folder lies.

    The title says which images were evaluated: those of data.holdout are no test images, nor balanced.

    Args:
        summary: report/summary.json; accuracies are shares, 0 to 1. Of a measured run: one line on its speed.
        run: the run folder.
    """
    if summary.get("measured"):
        sys.stdout.write(f"{measured(summary)}\nrun folder: {run}\n")
        sys.stdout.flush()
        return
    # only here: it imports rich, which a launch that only submits does without
    from hrdc_hpc.record.table import accuracy_table, print_table

    what = "balanced test accuracy" if _trained_on_all(run) else "held-out accuracy"
    title = f"{what} after epoch {summary['epoch']}, step {summary['step']}"
    print_table(accuracy_table(summary["accuracy"], summary["primary"], title, summary.get("accuracy_ema")))
    sys.stdout.write(f"{_left_out(run)}{_goodput(run)}run folder: {run}\n")
    sys.stdout.flush()


def measured(summary: Mapping[str, Any]) -> str:
    """Return one line on what a measured run found."""
    nodes, ranks = summary["nodes"], summary["world_size"]
    return (
        f"measured on {nodes} node{'s'[: nodes > 1]}, {ranks} rank{'s'[: ranks > 1]}: {summary['images_per_s']:.1f}"
        f" images/s; a step of {summary['global_batch']} images takes {summary['step_s']:.4g} s (median)"
    )


def _trained_on_all(run: Path) -> bool:
    """Whether the test split was evaluated; True also where the config cannot be read (of another version, say)."""
    try:
        return loads(RunFolder(run).config.read_text(), place=str(run)).data.holdout is None
    except (OSError, ValueError):
        return True


def _goodput(run: Path) -> str:
    """One line on where the time went, or nothing if no attempt was written down."""
    spent = account_of(run).run
    return f"goodput: {line(spent)}\n" if spent.total_s else ""


def _left_out(run: Path) -> str:
    """One line on the files that could not be read (data.on_bad_image: skip), or nothing."""
    records = read_raw(RunFolder(run))
    files: dict[str, int] = next((r["numbers"] for r in reversed(records) if r["kind"] == "left_out"), {})
    reads = {record["attempt"]: record.get("unread", 0) for record in records if record["kind"] == "train"}
    parts = [f"{number} files of the {split} split" for split, number in files.items() if number]
    if unread := sum(reads.values()):  # each attempt counts its own
        parts.append(f"{unread} reads while training")
    return f"left out, because unreadable: {', '.join(parts)} (data.on_bad_image: skip)\n" if parts else ""


def failure(run: Path, job: Job, word: str) -> tuple[str, int]:
    """Return why a job left without finishing, and an exit code (not 0).

    With the end of the failing rank's log, where the reason alone would not do.

    Args:
        run: the run folder.
        job: the job.
        word: the scheduler's word for the job's end.
    """
    job_id, cause = job.job_id, root_cause(read_ends(run, job))
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
    if code == Exit.DO_NOT_REQUEUE:  # the reason was written for its reader
        return "\n".join([*lines, f"Log: {log}"]), code
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
