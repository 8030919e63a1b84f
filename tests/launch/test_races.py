"""Launches that meet, are interrupted or killed, in processes of their own, with a make-believe sbatch that waits."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hrdc_hpc.cluster.jobs import cut_off, last_job
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease

import launching
from launching import SUMMARY, contents, launch

pytestmark = pytest.mark.slow


@pytest.fixture
def submitting(place: Path, slurm: Path) -> Iterator[subprocess.Popen[str]]:
    """A launch that stands still in sbatch."""
    with launching.submitting(slurm) as process:
        yield process


def test_a_second_launch_while_sbatch_works_is_refused_and_touches_nothing(
    place: Path, slurm: Path, submitting: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = place / "runs" / "small"
    before = contents(run)
    assert launch("seed=1") == 78
    error = capsys.readouterr().err
    assert f"is being launched by process {submitting.pid}" in error
    assert contents(run) == before
    (slurm / "wait").unlink()
    output, _ = submitting.communicate(timeout=30)
    assert submitting.returncode == 0, output
    assert (slurm / "calls").read_text() == "call\n"
    assert "seed: 0\n" in (run / "config.yaml").read_text()
    (slurm / "queue").write_text("PENDING|None\n")
    assert launch("seed=1") == 78
    assert "job 4242 of this run is PENDING" in capsys.readouterr().err


def test_ctrl_c_waits_for_sbatch_and_the_job_is_written_down(
    place: Path, slurm: Path, submitting: subprocess.Popen[str]
) -> None:
    os.killpg(submitting.pid, signal.SIGINT)  # as a terminal does: to sbatch too
    time.sleep(0.3)
    assert submitting.poll() is None
    (slurm / "wait").unlink()
    output, _ = submitting.communicate(timeout=30)
    assert submitting.returncode == 130, output
    assert "job 4242 is in the queue" in output
    assert "status cancel" in output
    assert "Traceback" not in output
    job = last_job(place / "runs" / "small")
    assert job
    assert job.job_id == "4242"


def test_a_launch_that_was_killed_in_sbatch_does_not_block_the_next_which_says_so(
    place: Path, slurm: Path, submitting: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = place / "runs" / "small"
    os.killpg(submitting.pid, signal.SIGKILL)
    submitting.wait()
    assert cut_off(run)
    (slurm / "wait").unlink()
    assert launch() == 0
    assert "an earlier launch was killed while it submitted" in capsys.readouterr().out
    assert not cut_off(run)
    assert launch() == 0
    assert "an earlier launch" not in capsys.readouterr().out


def test_a_relaunch_that_sbatch_refuses_keeps_the_run(
    started: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (slurm / "refusal").write_text("sbatch: error: no such account\n")
    assert launch() == 1
    assert "no such account" in capsys.readouterr().err
    assert (started / "checkpoints" / "step-5").is_dir()
    assert not cut_off(started)


def test_ctrl_c_before_submission_leaves_nothing(
    place: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hrdc_hpc.cluster.snapshot.take", interrupt)
    assert launch() == 130
    assert "interrupted" in capsys.readouterr().err
    assert list((place / "runs").iterdir()) == []
    assert not (slurm / "calls").exists()


def test_meeting_points_of_a_job_that_may_be_starting_are_left(started: Path, slurm: Path) -> None:
    fresh, old = started / "rendezvous" / "slurm-1.0-0.json", started / "rendezvous" / "slurm-0.0-0.json"
    fresh.parent.mkdir()
    for file, age_s in ((fresh, 3600), (old, 90_000)):
        file.touch()
        os.utime(file, (time.time() - age_s,) * 2)
    assert launch() == 0
    assert fresh.exists()
    assert not old.exists()


def test_the_claim_is_given_back(started: Path, slurm: Path) -> None:
    assert launch() == 0
    assert not [path for path in started.iterdir() if path.name == "launch" or path.name.startswith(".")]


def test_a_run_that_finished_between_the_look_and_the_claim_is_not_submitted(
    started: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    acquire = Lease.acquire

    def late(folder: RunFolder, ttl_s: float) -> Lease:
        RunFolder(started).write_summary(SUMMARY)
        return acquire(folder, ttl_s=ttl_s)

    monkeypatch.setattr(Lease, "acquire", late)
    assert launch() == 0
    assert "is finished" in capsys.readouterr().out
    assert not (slurm / "given.sbatch").exists()
