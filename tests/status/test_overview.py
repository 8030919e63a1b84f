"""The state of a run, told from what it left in its folder and what SLURM says."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from hrdc_hpc.cluster.ends import note_end
from hrdc_hpc.cluster.jobs import Job, note_job, note_submitting
from hrdc_hpc.cluster.overview import Overview, survey
from hrdc_hpc.record.attempts import begin_attempt
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease
from hrdc_hpc.record.metrics import MetricsWriter

from attempts import add_attempt, empty_run
from past import FakeSlurm

PENDING = "7|PENDING|{later}|100||BeginTime"
RUNNING = "7|RUNNING|{start}|100|n[1-2]|None"
SHARES = {"overall": 0.5, "balanced": 0.625, "many": 0.9, "medium": 0.5, "few": None}


def submit(run: Path, job_id: str = "7", kind: Any = "slurm") -> None:
    note_submitting(run, kind)
    note_job(run, Job(kind, job_id, time.time()))


def at_work(run: Path, *marks: tuple[str, str, int], restart: int = 0, job: str = "7") -> Lease:
    """An attempt that holds the lease, and has written these phase marks."""
    job_info = {"cluster": "slurm", "job_id": job, "restart_count": restart, "world_size": 2}
    lease = Lease.acquire(RunFolder(run), job_info)
    attempt = begin_attempt(RunFolder(run), {**job_info, "nodes": "n[1-2]"})
    metrics = MetricsWriter(RunFolder(run), attempt.number)
    for name, event, step in (("startup", "begin", 0), *marks):
        metrics.write("phase", step, name=name, event=event)
    metrics.close()
    return lease


def look(run: Path) -> Overview:
    (row,) = survey([run]).runs
    return row


def seen(row: Overview) -> tuple[str, str | None, str]:
    return row.state, row.doing, row.word


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return empty_run(tmp_path)


def test_before_the_first_attempt(run: Path, slurm: FakeSlurm) -> None:
    assert seen(look(run)) == ("prepared", None, "nothing was submitted")
    submit(run)
    slurm.queue("7|PENDING|N/A|100||Priority")
    assert seen(look(run)) == ("queued", None, "PENDING (Priority)")
    slurm.queue(RUNNING.format(start=int(time.time())))
    row = look(run)
    assert seen(row) == ("running", "starting up", "")
    assert (row.nodes, row.job_id, row.attempt, row.step) == ("n[1-2]", "7", None, None)


@pytest.mark.parametrize(
    ("marks", "doing"),
    [
        ([], "starting up"),
        ([("startup", "end", 0), ("train", "begin", 0)], "training"),
        ([("startup", "end", 0), ("train", "begin", 0), ("evaluate", "begin", 5)], "evaluating"),
        ([("startup", "end", 0), ("train", "begin", 0), ("save", "begin", 5)], "saving"),
        ([("startup", "end", 0), ("measure", "begin", 0)], "measuring"),
        ([("startup", "end", 0), ("measure", "begin", 0), ("save", "begin", 0)], "saving"),
    ],
)
def test_what_it_is_doing(run: Path, slurm: FakeSlurm, marks: list[tuple[str, str, int]], doing: str) -> None:
    submit(run)
    slurm.queue(RUNNING.format(start=int(time.time()) - 5))
    at_work(run, *marks)
    assert seen(look(run)) == ("running", doing, "")


def test_a_measured_run_shows_its_windows_and_has_no_epochs(run: Path, slurm: FakeSlurm) -> None:
    submit(run)
    slurm.queue(RUNNING.format(start=int(time.time()) - 5))
    at_work(run, ("startup", "end", 0), ("measure", "begin", 0)).release()
    metrics = MetricsWriter(RunFolder(run), 0)
    metrics.write("start", 0, steps=420, steps_per_epoch=None)
    metrics.write("measure", 40, variant="as_is", steps=300, images_per_s=50.0, eta_s=99.0)
    metrics.close()
    row = look(run)
    assert (row.step, row.steps, row.epoch, row.epochs, row.images_per_s) == (40, 300, None, None, 50.0)
    assert row.eta_s == pytest.approx(99, abs=2)
    assert row.saved_step is None
    RunFolder(run).write_summary({"measured": True})
    row = look(run)
    assert (row.state, row.step, row.steps, row.accuracy) == ("finished", 300, 300, None)


def test_a_requeued_job_waits_with_its_reason_and_when_it_may_start(run: Path, slurm: FakeSlurm) -> None:
    submit(run)
    lease = at_work(run, ("startup", "end", 0), ("train", "begin", 0))
    later = int(time.time()) + 120
    slurm.queue(PENDING.format(later=later))
    # the lease of the start before has not expired yet
    row = look(run)
    assert seen(row) == ("requeued", None, "PENDING (BeginTime)")
    assert (row.may_start, row.nodes, row.eta_s) == (later, None, None)
    lease.release()
    assert look(run).state == "requeued"
    # it starts again, and takes some seconds to import torch
    slurm.queue(RUNNING.format(start=int(time.time()) + 2))
    assert seen(look(run)) == ("running", "starting up", "")
    at_work(run, ("startup", "end", 3), ("train", "begin", 3), restart=1)
    slurm.queue(RUNNING.format(start=int(time.time()) - 2))
    row = look(run)
    assert seen(row) == ("running", "training", "")
    assert (row.attempt, row.attempts, row.last_end) == (1, 2, "node lost")


def test_a_job_that_runs_without_a_sign_of_life_is_silent(run: Path, slurm: FakeSlurm) -> None:
    submit(run)
    add_attempt(run)
    slurm.queue(RUNNING.format(start=int(time.time()) - 60))
    row = look(run)
    assert (row.state, row.doing) == ("running", "silent")
    assert row.word.startswith("no sign of life for ")


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ((75, "stopped by SIGUSR2: time limit", "time limit"), "stopped"),
        ((78, "cancelled (SIGTERM without preemption)", "cancelled"), "stopped"),
        ((78, "ValueError: optim.lr", None), "failed"),
        ((70, "no step for 300 s", None), "failed"),
        ((-9, "killed by SIGKILL", None), "lost"),
    ],
)
def test_gone_for_good(run: Path, slurm: FakeSlurm, end: tuple[int, str, str | None], state: str) -> None:
    submit(run)
    add_attempt(run, end=end, steps=10, saved=8)
    row = look(run)
    assert seen(row) == (state, None, end[1])
    slurm.queue("7|FAILED|100|100|n1|NonZeroExitCode")
    assert look(run).word == f"{end[1]} (FAILED (NonZeroExitCode))"


def test_killed_without_a_word_is_lost_and_accounting_says_how(run: Path, slurm: FakeSlurm) -> None:
    submit(run)
    add_attempt(run)
    assert seen(look(run)) == ("lost", None, "no farewell: killed or lost")
    slurm.accounted("7|OUT_OF_MEMORY", "70|COMPLETED")
    assert look(run).word == "no farewell: killed or lost (OUT_OF_MEMORY)"


@pytest.mark.parametrize("attempts", [0, 1])
def test_cancelled_while_it_waited(run: Path, slurm: FakeSlurm, attempts: int) -> None:
    submit(run)
    for _ in range(attempts):
        add_attempt(run)
    slurm.queue("7|CANCELLED|N/A|100||None")
    assert look(run).state == "stopped"
    slurm.queue()
    slurm.accounted("7|CANCELLED by 1000")
    assert look(run).state == "stopped"
    note_end(run, job_id="7", rank=None, code=78, reason="cancelled while it waited", cause="cancelled")
    assert seen(look(run)) == ("stopped", None, "cancelled while it waited")


def test_a_job_that_failed_before_its_attempt_began(run: Path, slurm: FakeSlurm) -> None:
    submit(run)
    assert seen(look(run)) == ("lost", None, "its job ended before the run began")
    note_end(run, job_id="7", rank=0, code=78, reason="LeaseHeld: another writer", restart_count=0)
    assert seen(look(run)) == ("failed", None, "LeaseHeld: another writer")


def test_finished_needs_no_scheduler(run: Path, slurm: FakeSlurm) -> None:
    submit(run)
    add_attempt(run, farewell="finished")
    RunFolder(run).write_summary({"step": 10})
    assert seen(look(run)) == ("finished", None, "")
    assert slurm.calls("squeue-calls") == []


def test_without_an_answer_the_folder_speaks(run: Path, slurm: FakeSlurm) -> None:
    submit(run)
    slurm.down()
    (row,) = (found := survey([run])).runs
    assert seen(row) == ("unknown", None, "job 7 was submitted")
    assert "Unable to contact slurm controller" in found.slurm
    at_work(run, ("startup", "end", 0), ("train", "begin", 0))
    assert seen(look(run)) == ("running", "training", "")


def test_without_slurm_on_the_path(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(run)
    monkeypatch.setenv("PATH", "/nowhere")
    found = survey([run])
    assert found.slurm == "squeue is not on the PATH"
    assert found.runs[0].state == "unknown"


def test_elements_of_an_array_are_asked_for_at_once(tmp_path: Path, slurm: FakeSlurm) -> None:
    runs = [empty_run(tmp_path, f"run{n}") for n in range(4)]
    for n, run in enumerate(runs[:3]):
        submit(run, f"123_{n}")
    submit(runs[3], "124")
    slurm.queue(
        "123_0|RUNNING|100|100|n1|None", "123_1|PENDING|N/A|100||JobArrayTaskLimit", "123_2|FAILED|100|100|n1|NonZero",
        "123_3|PENDING|N/A|100||JobArrayTaskLimit",
    )  # fmt: skip
    states = {Path(row.run).name: row.state for row in survey(runs).runs}
    assert states == {"run0": "running", "run1": "queued", "run2": "lost", "run3": "lost"}
    (call,) = slurm.calls("squeue-calls")
    assert "--jobs=123,124" in call


def test_of_a_chain_the_link_that_runs_counts(run: Path, slurm: FakeSlurm) -> None:
    for job in ("7", "8", "9"):
        submit(run, job)
    start = int(time.time())
    slurm.queue("9|PENDING|N/A|1||Dependency", "8|PENDING|N/A|1||Dependency", RUNNING.format(start=start))
    row = look(run)
    assert (row.job_id, row.state) == ("7", "running")
    slurm.queue("9|PENDING|N/A|1||Dependency", "8|PENDING|N/A|1||Dependency")
    assert (look(run).job_id, look(run).word) == ("8", "PENDING (Dependency)")


def test_a_job_of_ones_own_batch_script_is_asked_for(run: Path, slurm: FakeSlurm) -> None:
    add_attempt(run, job="55")
    slurm.queue("55|PENDING|N/A|1||BeginTime")
    assert seen(look(run)) == ("requeued", None, "PENDING (BeginTime)")


def test_progress(run: Path, slurm: FakeSlurm) -> None:
    submit(run)
    add_attempt(run, steps=10, saved=8)
    (run / "checkpoints" / "step-00000008").mkdir()
    attempt = begin_attempt(RunFolder(run), {"cluster": "slurm", "job_id": "7", "restart_count": 1})
    metrics = MetricsWriter(RunFolder(run), attempt.number)
    row = look(run)
    assert (row.step, row.saved_step, row.loss, row.steps) == (8, 8, 1.0, None)
    metrics.write("start", 0, steps=120, steps_per_epoch=12, world_size=2)
    metrics.write("train", 30, epoch=2, loss=0.5, images_per_s=64.0, eta_s=100.0)
    metrics.write("eval", 24, epoch=2, primary="fused", accuracy={"fused": SHARES}, seconds=1.0)
    metrics.write("train", 36, epoch=3, loss=None, images_per_s=64.0, eta_s=90.0)
    metrics.close()
    slurm.queue(RUNNING.format(start=int(time.time()) - 5))
    row = look(run)
    assert (row.step, row.steps, row.epoch, row.epochs) == (36, 120, 3, 10)
    assert (row.loss, row.images_per_s, row.accuracy, row.accuracy_of) == (None, 64.0, 0.625, "fused")
    assert row.eta_s is not None
    assert 85 < row.eta_s <= 90
    assert row.saved_age_s is not None
    assert 0 <= row.saved_age_s < 60


def test_newest_first(tmp_path: Path, slurm: FakeSlurm) -> None:
    runs = [empty_run(tmp_path, name) for name in ("a", "b", "c")]
    submit(runs[1])
    assert Path(survey(runs).runs[0].run).name == "b"
