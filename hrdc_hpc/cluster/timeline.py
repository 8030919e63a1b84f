"""The goodput of a run, from its folder. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hrdc_hpc.cluster.goodput import Account, Stay, account
from hrdc_hpc.cluster.jobs import all_jobs
from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.files import json_lines
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import attempt_files


def account_of(run: Path, *, waits: bool = False, works: bool = False, now: float | None = None) -> Account:
    """Divide up a run's time; by default that of a run which is over.

    Args:
        run: its folder.
        waits: whether a job of it is in the queue: the time goes on until now.
        works: whether its newest attempt is at work: the same, and nothing has to be repeated yet.
        now: Unix seconds.
    """
    folder, now = RunFolder(run), time.time() if now is None else now
    stays = stays_of(run, works=works)
    saved = max((int(r["step"]) for stay in stays for r in stay.records if r["kind"] == "checkpoint"), default=0)
    goes_on = None if works or folder.state() == "finished" else saved
    submitted = [job.since for job in all_jobs(run)]
    return account(stays, submitted, until=now if works or waits else None, saved_step=goes_on)


def stays_of(run: Path, *, works: bool = False) -> list[Stay]:
    """Return a run's attempts, oldest first. `works`: whether the newest is at work."""
    folder = RunFolder(run)
    files = attempt_files(folder)
    ends = _ends(folder)
    attempts = [attempt for attempt in read_attempts(folder) if "time" in attempt]
    stays: list[Stay] = []
    for i, attempt in enumerate(attempts):
        number, path = attempt["attempt"], files.get(attempt["attempt"])
        records = [r for r in json_lines(path.read_bytes()) if "kind" in r] if path else []
        following = attempts[i + 1]["time"] if i + 1 < len(attempts) else float("inf")
        ended = None if works and following == float("inf") else _ended(attempt, records, ends, following)
        stays.append(Stay(number, records, float(attempt["info"].get("started", attempt["time"])), ended))
    return stays


def _ended(
    attempt: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    ends: Sequence[Mapping[str, Any]],
    following: float,
) -> float:
    """Last sign of life of an attempt: its own records, and what was written down about its end."""
    info, began = attempt["info"], float(attempt["time"])
    signs = [float(record["time"]) for record in records]
    for end in ends:
        same = str(end.get("job_id")) == str(info.get("job_id"))
        restart = int(end.get("restart_count", info.get("restart_count", 0))) == int(info.get("restart_count", 0))
        if same and restart and began <= float(end["time"]) < following:
            signs.append(float(end["time"]))
    return max([began, *signs])


def _ends(folder: RunFolder) -> list[dict[str, Any]]:
    try:
        return [end for end in json_lines((folder.logs / "ends.jsonl").read_bytes()) if "time" in end]
    except FileNotFoundError:
        return []
