"""The part of a log that is meant."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from hrdc_hpc.cluster import logs
from hrdc_hpc.cluster.ends import log_path
from hrdc_hpc.cluster.jobs import Job, note_job

from attempts import add_attempt, empty_run

LINE = "2026-11-24 23:50:0{n},123 r{rank} INFO hrdc_hpc.cluster.task: job {job} start {restart}\n"


def begin(job: str, restart: int, rank: int = 0) -> str:
    return f"submitit INFO starting\n{LINE.format(n=restart, rank=rank, job=job, restart=restart)}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two starts under job 7, one under job 8."""
    run = empty_run(tmp_path)
    for job, restart in (("7", 0), ("7", 1), ("8", 0)):
        add_attempt(run, job=job, restart=restart)
    note_job(run, Job("slurm", "8"))
    text = f"{begin('7', 0)}one\ntwo\n{begin('7', 1)}three\njob 7 start 9\nfour"
    log_path(run, "7").write_text(text)
    log_path(run, "7", 1).write_text(begin("7", 0, 1) + "peer\n")
    log_path(run, "8").write_text(begin("8", 0) + "five\n")
    return run


def text(part: logs.Part, lines: int = 100) -> str:
    return logs.tail(part, lines).decode()


def test_an_attempts_part_ends_where_the_next_begins(run: Path) -> None:
    assert text(logs.part_of(run, attempt=0)).splitlines()[1:] == ["one", "two", "submitit INFO starting"]
    assert text(logs.part_of(run, attempt=1)).splitlines()[1:] == ["three", "job 7 start 9", "four"]
    assert text(logs.part_of(run, attempt=2)).splitlines()[1:] == ["five"]
    assert text(logs.part_of(run, rank=1, attempt=0)).splitlines()[1:] == ["peer"]


def test_without_an_attempt_it_is_the_newest_jobs(run: Path) -> None:
    assert text(logs.part_of(run)).splitlines()[-1] == "five"
    note_job(run, Job("slurm", "9"))  # waits, and has written nothing
    assert text(logs.part_of(run)).splitlines()[-1] == "five"


def test_a_process_id_that_came_again_is_counted_from_the_end(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    add_attempt(run, job="7", cluster="local")
    add_attempt(run, job="7", cluster="local")
    # of three starts the first never became an attempt
    log_path(run, "7").write_text("".join(f"{begin('7', 0)}{word}\n" for word in ("refused", "one", "two")))
    assert "one" in text(logs.part_of(run, attempt=0)).splitlines()
    assert "two" in text(logs.part_of(run, attempt=1)).splitlines()


def test_what_is_not_there_is_told_with_what_is(run: Path) -> None:
    with pytest.raises(ValueError, match=r"--rank: job 8 has no log of rank 3; there are those of rank 0$"):
        logs.part_of(run, rank=3)
    with pytest.raises(ValueError, match=r"--attempt: .* has no attempt 5; there are: 0, 1, 2"):
        logs.part_of(run, attempt=5)


@pytest.mark.parametrize("lines", [0, 1, 3, 100_000])
def test_the_tail_is_whole_lines_of_the_part(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "log"
    written = [f"{n:06d} {'x' * (n % 200)}\n" for n in range(3000)]
    path.write_text("".join(written))
    begin_at = len("".join(written[:1000]))
    assert text(logs.Part(path, begin_at), lines) == "".join(written[1000:][-lines:] if lines else [])
    end = len("".join(written[:1500]))
    assert text(logs.Part(path, begin_at, end), lines) == "".join(written[1000:1500][-lines:] if lines else [])


def test_following_goes_on_with_a_newer_job_and_ends_with_the_run(run: Path) -> None:
    over = threading.Event()
    path = log_path(run, "8")

    def write() -> None:
        time.sleep(0.1)
        with path.open("a") as file:
            file.write("six\n")
        time.sleep(0.5)
        note_job(run, Job("slurm", "9"))
        log_path(run, "9").write_text("seven\n")
        time.sleep(0.5)
        with log_path(run, "9").open("a") as file:
            file.write("eight\n")
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    shown = b"".join(logs.follow(logs.part_of(run), over.is_set, lambda: logs.newest_log(run)))
    writer.join()
    assert shown == b"six\nseven\neight\n"
