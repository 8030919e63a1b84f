"""Requeue decisions, with a scontrol that writes down what it was asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hrdc_hpc.cluster import scheduler
from hrdc_hpc.cluster.exit_codes import Exit, of_error
from hrdc_hpc.cluster.history import history
from hrdc_hpc.cluster.jobs import Job, note_job
from hrdc_hpc.cluster.requeue import after_stop, cause_of_stop, judge_after, judge_start
from hrdc_hpc.engine.place import Place
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease, LeaseHeld, LeaseLost

from attempts import add_attempt, empty_run

# shortened from `scontrol --oneliner show job` of SLURM 22.05
SHOWN = (
    "JobId=71 JobName=run UserId=u(1) JobState={state} Reason={reason} PreemptEligibleTime=2026-11-24T02:10:00"
    " PreemptTime={preempt} Restarts={restarts} Comment=a=b JobState=no TRES=cpu=2,node=2 Command=/runs/it's here/x.sh"
)
SCONTROL = """#!/bin/bash
echo "$@" >> "$FAKE/asked"
if [ "$2" = show ]; then cat "$FAKE/shown"; exit; fi
if [ -s "$FAKE/failures" ]; then head -1 "$FAKE/failures" >&2; sed -i 1d "$FAKE/failures"; exit 1; fi
"""
IN_SLURM = Place(0, 2, 0, 1, Path("/r"), {"cluster": "slurm", "job_id": "71_3"})
LOCAL = Place(0, 2, 0, 1, Path("/r"), {"cluster": "local", "job_id": "71"})


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Call with the job's state, and lines that requeue fails with; gives the file of what was asked."""
    program = tmp_path / "scontrol"
    program.write_text(SCONTROL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setattr(scheduler.time, "sleep", lambda _: None)

    def prepare(
        state: str = "RUNNING", preempt: str = "None", reason: str = "None", failures: str = "", restarts: int = 0
    ) -> Path:
        (tmp_path / "shown").write_text(SHOWN.format(state=state, preempt=preempt, reason=reason, restarts=restarts))
        (tmp_path / "failures").write_text(failures)
        return tmp_path / "asked"

    return prepare


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose only attempt has just saved."""
    run = empty_run(tmp_path)
    add_attempt(run, job="71_3", saved=10, farewell="SIGTERM")
    return run


def test_a_warning_of_the_time_limit_is_requeued(scontrol: Callable[..., Path], run: Path) -> None:
    asked = scontrol()
    end = after_stop(["SIGUSR2"], run, IN_SLURM)
    assert (end.code, end.cause) == (Exit.REQUEUE, "time limit")
    assert asked.read_text() == "--oneliner show job 71_3\nrequeue 71_3\n"


@pytest.mark.parametrize("reason", ["SIGTERM", "SIGUSR2"])
def test_preemption_is_requeued(scontrol: Callable[..., Path], run: Path, reason: str) -> None:
    asked = scontrol(preempt="2026-11-24T02:12:00")
    end = after_stop([reason], run, IN_SLURM)
    assert (end.code, end.cause, end.words) == (Exit.REQUEUE, "preempted", "preempted at 2026-11-24T02:12:00")
    assert asked.read_text() == "--oneliner show job 71_3\nrequeue 71_3\n"


@pytest.mark.parametrize("state", ["COMPLETING", "RUNNING", "CANCELLED"])
@pytest.mark.parametrize("reasons", [["SIGTERM"], ["SIGUSR2", "SIGTERM"]])
def test_a_cancelled_job_is_not_requeued(
    scontrol: Callable[..., Path], run: Path, state: str, reasons: list[str]
) -> None:
    asked = scontrol(state=state)
    end = after_stop(reasons, run, IN_SLURM)
    assert (end.code, end.cause) == (Exit.DO_NOT_REQUEUE, "cancelled")
    assert "requeue" not in asked.read_text()


def test_what_slurm_has_requeued_already_is_left_to_it(scontrol: Callable[..., Path], run: Path) -> None:
    """Seen on 22.05 with GraceTime=0: at its SIGTERM the job is COMPLETING without PreemptTime; Restarts counts."""
    asked = scontrol(state="COMPLETING", restarts=1)
    end = after_stop(["SIGTERM"], run, IN_SLURM)
    assert (end.code, end.cause) == (Exit.REQUEUE, "preempted")
    assert asked.read_text() == "--oneliner show job 71_3\n"


def test_the_stop_file_is_not_requeued(scontrol: Callable[..., Path], run: Path) -> None:
    asked = scontrol()
    for place in (IN_SLURM, LOCAL):
        end = after_stop(["stop file"], run, place)
        assert (end.code, end.cause) == (Exit.DO_NOT_REQUEUE, "stop file")
    assert "requeue" not in asked.read_text()


def test_used_up_requeues_stay_away(scontrol: Callable[..., Path], tmp_path: Path) -> None:
    asked = scontrol(preempt="2026-11-24T02:12:00")
    run = empty_run(tmp_path, "capped", "cluster.requeue.preemptions=1")
    for restart in range(2):
        saved = 10 * (restart + 1)
        add_attempt(run, job="71_3", restart=restart, resumed=saved - 10, saved=saved, farewell="SIGTERM",
                    end=(75, "preempted", "preempted") if restart == 0 else None)  # fmt: skip
    end = after_stop(["SIGTERM"], run, IN_SLURM)
    assert end.code == Exit.DO_NOT_REQUEUE
    assert "preempted: 2 times, and cluster.requeue.preemptions allows 1" in end.words
    assert "requeue" not in asked.read_text()


def test_sigterm_at_the_time_limit_is_requeued() -> None:
    shown = {"JobState": "COMPLETING", "Reason": "TimeLimit", "PreemptTime": "None"}
    assert cause_of_stop(["SIGUSR2", "SIGTERM"], shown)[0] == "time limit"


def test_a_controller_that_restarts_is_asked_again(scontrol: Callable[..., Path], run: Path) -> None:
    asked = scontrol(failures="Unable to contact slurm controller\n" * 2)
    assert after_stop(["SIGUSR2"], run, IN_SLURM).code == Exit.REQUEUE
    assert asked.read_text() == "--oneliner show job 71_3\n" + "requeue 71_3\n" * 3


def test_a_job_that_is_in_the_queue_already_is_requeued(scontrol: Callable[..., Path], run: Path) -> None:
    """Seen on 24.11, which puts a preempted job back before its grace is over."""
    said = "Job is pending execution for job 71_3\n"
    asked = scontrol(preempt="2026-11-24T02:12:00", failures=said)
    end = after_stop(["SIGTERM"], run, IN_SLURM)
    assert (end.code, end.cause) == (Exit.REQUEUE, "preempted")
    assert asked.read_text().count("requeue") == 1


def test_no_requeue_is_said_and_the_code_still_asks_for_it(
    scontrol: Callable[..., Path], run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scontrol(failures="Job has been marked as not requeueable\n" * 9)
    end = after_stop(["SIGUSR2"], run, IN_SLURM)
    assert end.code == Exit.REQUEUE
    assert "not requeueable" in end.words
    assert "could not be requeued" in caplog.text


def test_without_scontrol_the_code_asks(
    monkeypatch: pytest.MonkeyPatch, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(scheduler.time, "sleep", lambda _: None)
    for reason in ("SIGUSR2", "SIGTERM"):
        end = after_stop([reason], run, IN_SLURM)
        assert (end.code, end.cause) == (Exit.REQUEUE, "stopped"), "for the batch script to find out"
        assert end.words.startswith(f"stopped by {reason}; ")
    assert "scontrol is not on the PATH" in caplog.text


def test_outside_slurm_nobody_is_asked(scontrol: Callable[..., Path], run: Path) -> None:
    asked = scontrol()
    assert after_stop(["SIGTERM"], run, LOCAL).code == Exit.REQUEUE
    assert after_stop(["time limit"], run, LOCAL).cause == "time limit"
    assert not asked.exists()


def test_before_a_start_only_caps_count_within_a_job(tmp_path: Path) -> None:
    """What a person requeues begins, also what would not have come back by itself; a chain's next link does not."""
    run = empty_run(tmp_path, "run", "cluster.requeue.preemptions=1")
    assert judge_start(run, "7").comes_back, "the first start"
    add_attempt(run, saved=10, end=(78, "cancelled", "cancelled"))
    assert judge_start(run, "7").comes_back
    assert judge_start(run, "8").comes_back, "launched again"
    for link in ("7", "8"):
        note_job(run, Job("slurm", link), chain="7")
    assert not judge_start(run, "8").comes_back


def test_what_slurm_starts_again_by_itself_is_capped_too(tmp_path: Path) -> None:
    """A lost node, or a preemption without a grace, asks nobody: the next start finds out."""
    run = empty_run(tmp_path, "run", "cluster.requeue.preemptions=1")
    for restart in range(2):
        assert judge_start(run, "7").comes_back
        add_attempt(run, restart=restart, resumed=10 * restart, saved=10 + 10 * restart)
    judged = judge_start(run, "7")
    assert not judged.comes_back
    assert "node lost: 2 times, and cluster.requeue.preemptions allows 1" in judged.why


def test_a_ghost_that_still_holds_the_lease_was_lost(tmp_path: Path) -> None:
    """A node that is cut off goes on working; its job starts elsewhere."""
    run = empty_run(tmp_path)
    add_attempt(run, saved=5)
    lease = Lease.acquire(RunFolder(run), {"job_id": "7", "restart_count": 0, "cluster": "slurm"})
    assert history(run)[-1].cause == "running"
    judged = judge_start(run, "7")
    assert judged.comes_back
    assert "node lost" in judged.why
    assert "killed" in judge_after(run, "7").why, "asked after srun has ended"
    lease.release()


def test_a_job_that_slurm_forgot_is_not_asked_for_again(scontrol: Callable[..., Path]) -> None:
    asked = scontrol(failures="slurm_requeue: Invalid job id specified\n" * 9)
    with pytest.raises(scheduler.NoSuchJob):
        scheduler.requeue("71")
    assert asked.read_text() == "requeue 71\n"


def test_show_job_takes_the_first_of_a_key(scontrol: Callable[..., Path]) -> None:
    scontrol(state="RUNNING")
    shown = scheduler.show_job("71")
    assert shown.items() >= {"JobState": "RUNNING", "PreemptTime": "None", "TRES": "cpu=2,node=2"}.items()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("optim.lr"), 78),
        (LeaseHeld("x"), 78),
        (LeaseLost("x"), 78),
        (RuntimeError("connection reset"), 1),
        (OSError(28, "no space"), 1),
        (AssertionError(), 1),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), 71),
    ],
)
def test_exit_code_of_an_error(error: Exception, code: int) -> None:
    assert of_error(error) == code


def test_the_table_of_exit_codes_is_complete() -> None:
    import hrdc_hpc.cluster.exit_codes as module

    rows = {
        int(row.split("|")[1])
        for row in (module.__doc__ or "").splitlines()
        if row.startswith("| ") and row[2].isdigit()
    }
    assert rows == {int(code) for code in Exit}
