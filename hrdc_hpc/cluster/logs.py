"""The output of a run by rank and attempt. Torch-free.

All attempts under one job id append to the same file of a rank; each begins with the line START_LINE (task.py).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hrdc_hpc.cluster.ends import log_path
from hrdc_hpc.cluster.jobs import last_job
from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.folder import RunFolder

START_LINE = "job %s start %s"
"""What each rank logs first: job id, restart count."""
_START = re.compile(rb"^\S+ \S+ r\d+ INFO hrdc_hpc\.cluster\.task: job (\S+) start (\d+)\r?$", re.MULTILINE)
_BLOCK = 1 << 16
_POLL_S = 0.3


@dataclass(frozen=True)
class Part:
    """Part of a log file."""

    path: Path
    begin: int = 0
    """Bytes."""
    end: int | None = None
    """Bytes; None: to its end, which may move."""


def part_of(run: Path, rank: int = 0, attempt: int | None = None) -> Part:
    """Return where the output of a rank is: of the newest job, or of one attempt.

    Raises ValueError for a rank or attempt that there is not.
    """
    if attempt is None:
        job_id = _newest_job(run)
        return Part(_file(run, job_id, rank))
    attempts = [one for one in read_attempts(RunFolder(run)) if "info" in one]
    wanted = [one for one in attempts if one["attempt"] == attempt]
    if not wanted:
        known = ", ".join(str(one["attempt"]) for one in attempts) or "none yet"
        raise ValueError(f"--attempt: {run} has no attempt {attempt}; there are: {known}")
    key = _key(wanted[0]["info"])
    path = _file(run, key[0], rank)
    starts = [(m.start(), (m[1].decode(), int(m[2]))) for m in _START.finditer(path.read_bytes())]
    # a local job's id is a process id, which may come again: counted from the end
    later = sum(_key(one["info"]) == key for one in attempts if one["attempt"] > attempt)
    own = [begin for begin, of in starts if of == key]
    if len(own) <= later:
        raise ValueError(f"--attempt: {path} holds no start of attempt {attempt}; leave --attempt out to see all of it")
    begin = own[-1 - later]
    return Part(path, begin, next((other for other, _ in starts if other > begin), None))


def tail(part: Part, lines: int) -> bytes:
    """Return the last lines of a part, whole."""
    with part.path.open("rb") as file:
        end = file.seek(0, os.SEEK_END) if part.end is None else part.end
        at, content = end, b""
        while at > part.begin and content.count(b"\n") <= lines:
            size = min(_BLOCK, at - part.begin)
            at -= size
            file.seek(at)
            content = file.read(size) + content
    return b"".join(content.splitlines(keepends=True)[-lines:]) if lines else b""


def follow(part: Part, over: Callable[[], bool], newer: Callable[[], Path | None]) -> Iterator[bytes]:
    """Yield what is appended to a file until `over` says that nothing more will come.

    Args:
        part: where to begin: at the file's end.
        over: asked when nothing came.
        newer: the file of a newer job, if there is one: it is gone on with from its beginning.
    """
    path, at = part.path, part.path.stat().st_size
    while True:
        ended = over()  # before the look: what was written until then is still shown
        with path.open("rb") as file:
            file.seek(at)
            content = file.read()
        at += len(content)
        if content:
            yield content
            continue
        following = newer()
        if following is not None and following != path:
            path, at = following, 0
        elif ended:
            return
        else:
            time.sleep(_POLL_S)


def newest_log(run: Path, rank: int = 0) -> Path | None:
    """Return the file of the newest job, if it is there."""
    try:
        return _file(run, _newest_job(run), rank)
    except ValueError:
        return None


def _newest_job(run: Path) -> str:
    """Return the id of the newest job that has written something, else of the newest."""
    job = last_job(run)
    if job is not None and log_path(run, job.job_id).is_file():
        return job.job_id
    infos = [one["info"] for one in read_attempts(RunFolder(run)) if "info" in one]
    if infos:
        return _key(infos[-1])[0]
    if job is None:
        raise ValueError(f"{run}: no job was submitted, so there is no log")
    return job.job_id


def _file(run: Path, job_id: str, rank: int) -> Path:
    path = log_path(run, job_id, rank)
    if path.is_file():
        return path
    there = sorted(
        int(found[1]) for file in path.parent.glob(f"{job_id}_*_log.out")
        if (found := re.fullmatch(rf"{re.escape(job_id)}_(\d+)_log\.out", file.name))
    )  # fmt: skip
    if there:
        raise ValueError(f"--rank: job {job_id} has no log of rank {rank}; there are those of {_ranges(there)}")
    others = ", ".join(sorted(file.name for file in path.parent.glob("*.out"))) or "nothing"
    raise ValueError(f"{path}: not there (yet): the job has not begun, or writes elsewhere. In the folder: {others}")


def _key(info: dict[str, str | int]) -> tuple[str, int]:
    return str(info.get("job_id", "")), int(info.get("restart_count", 0))


def _ranges(numbers: list[int]) -> str:
    if numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 1:
        return f"ranks {numbers[0]} to {numbers[-1]}"
    return f"rank{'s'[: len(numbers) != 1]} {', '.join(map(str, numbers))}"
