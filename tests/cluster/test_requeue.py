"""Requeue decisions, with a scontrol that writes down what it was asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hrdc_hpc.cluster import scheduler
from hrdc_hpc.cluster.exit_codes import Exit, of_error
from hrdc_hpc.cluster.requeue import after_stop, decide
from hrdc_hpc.engine.place import Place
from hrdc_hpc.record.lease import LeaseHeld, LeaseLost

# shortened from `scontrol --oneliner show job` of SLURM 22.05
SHOWN = (
    "JobId=71 JobName=run UserId=u(1) JobState={state} Reason={reason} PreemptEligibleTime=2026-11-24T02:10:00"
    " PreemptTime={preempt} Comment=a=b JobState=no TRES=cpu=2,node=2 Command=/runs/it's here/x.sh"
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

    def prepare(state: str = "RUNNING", preempt: str = "None", reason: str = "None", failures: str = "") -> Path:
        (tmp_path / "shown").write_text(SHOWN.format(state=state, preempt=preempt, reason=reason))
        (tmp_path / "failures").write_text(failures)
        return tmp_path / "asked"

    return prepare


def test_time_limit_warning_is_requeued_without_a_question(scontrol: Callable[..., Path]) -> None:
    asked = scontrol()
    assert after_stop(["SIGUSR2"], IN_SLURM) == Exit.REQUEUE
    assert asked.read_text() == "requeue 71_3\n"


def test_preemption_by_sigterm_is_requeued(scontrol: Callable[..., Path]) -> None:
    asked = scontrol(preempt="2026-11-24T02:12:00")
    assert after_stop(["SIGTERM"], IN_SLURM) == Exit.REQUEUE
    assert asked.read_text() == "--oneliner show job 71_3\nrequeue 71_3\n"


@pytest.mark.parametrize("state", ["COMPLETING", "RUNNING", "CANCELLED"])
@pytest.mark.parametrize("reasons", [["SIGTERM"], ["SIGUSR2", "SIGTERM"]])
def test_a_cancelled_job_is_not_requeued(scontrol: Callable[..., Path], state: str, reasons: list[str]) -> None:
    asked = scontrol(state=state)
    assert after_stop(reasons, IN_SLURM) == Exit.DO_NOT_REQUEUE
    assert "requeue" not in asked.read_text()


def test_sigterm_at_the_time_limit_is_requeued() -> None:
    assert decide(
        ["SIGUSR2", "SIGTERM"], {"JobState": "COMPLETING", "Reason": "TimeLimit", "PreemptTime": "None"}
    ).requeue


def test_a_controller_that_restarts_is_asked_again(scontrol: Callable[..., Path]) -> None:
    asked = scontrol(failures="Unable to contact slurm controller\n" * 2)
    assert after_stop(["SIGUSR2"], IN_SLURM) == Exit.REQUEUE
    assert asked.read_text() == "requeue 71_3\n" * 3


def test_no_requeue_is_said_and_the_code_still_asks_for_it(
    scontrol: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    scontrol(failures="Job has been marked as not requeueable\n" * 9)
    assert after_stop(["SIGUSR2"], IN_SLURM) == Exit.REQUEUE
    assert "could not be requeued" in caplog.text
    assert "not requeueable" in caplog.text


def test_without_scontrol_the_code_asks(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(scheduler.time, "sleep", lambda _: None)
    assert after_stop(["SIGUSR2"], IN_SLURM) == Exit.REQUEUE
    assert "scontrol is not on the PATH" in caplog.text


def test_outside_slurm_nobody_is_asked(scontrol: Callable[..., Path]) -> None:
    asked = scontrol()
    assert after_stop(["SIGTERM"], LOCAL) == Exit.REQUEUE
    assert not asked.exists()


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
