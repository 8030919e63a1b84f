"""What a launch finds in the run folder, and what it makes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from hrdc_hpc.cluster.jobs import Job, last_job, note_job
from hrdc_hpc.launch import main
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease

from launching import SUMMARY, contents, launch

pytestmark = pytest.mark.slow


def test_prepare_makes_a_run_and_submits_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("--prepare") == 0
    run = place / "runs" / "small"
    code = RunFolder(run).code
    assert (code / "hrdc_hpc" / "engine" / "place.py").is_file()
    assert not [path for path in code.rglob("*") if path.name == "__pycache__"]
    assert json.loads((run / "manifest.json").read_text())
    out = capsys.readouterr().out
    assert "srun" in out
    assert "train.py" in out or "hrdc_hpc.cluster.task" in out


def test_a_half_finished_run_goes_on_with_operational_changes(
    started: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = (started / "config.yaml").read_text()
    assert launch("--nodes", "2", "checkpoint.every_steps=7") == 0
    out = capsys.readouterr().out
    assert "goes on from its last checkpoint" in out
    assert "cluster.nodes: 1 -> 2" in out
    assert "checkpoint.every_steps: 500 -> 7" in out
    assert (started / "config-1.yaml").read_text() == old
    assert "every_steps: 7" in (started / "config.yaml").read_text()
    assert "#SBATCH --nodes=2\n" in (slurm / "given.sbatch").read_text()
    assert launch("--nodes", "3") == 0
    assert "every_steps: 7" in (started / "config-2.yaml").read_text()


@pytest.fixture
def older(started: Path) -> Path:
    """A started run whose code does not know some keys of today."""
    config = started / "config.yaml"
    new = re.compile(r"^  (profile|keep_last): .*\n|^  requeue:\n(    .*\n)*", re.MULTILINE)
    text, removed = new.subn("", config.read_text())
    assert removed == 3
    config.write_text(text)
    (started / "code" / "hrdc_hpc" / "launch.py").write_text("# older\n")
    return started


def test_a_changed_config_stays_one_that_the_older_code_knows(
    older: Path, slurm: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--resume", "runs/small", "--time", "30"]) == 0
    config = (older / "config.yaml").read_text()
    assert config == (older / "config-1.yaml").read_text().replace("time_min: 60", "time_min: 30")
    assert "does not know" not in capsys.readouterr().out
    (place / "mine.yaml").write_text("partition: fast\n")
    assert launch("--time", "30", "--profile", "mine.yaml") == 0
    assert "cluster.profile: the run's code, of its first launch, does not know it" in capsys.readouterr().out
    text = (older / "config.yaml").read_text()
    assert text == config.replace("partition: null", "partition: fast")
    assert "#SBATCH --partition=fast\n" in (slurm / "given.sbatch").read_text()


def test_what_the_older_code_would_refuse_is_refused_at_once(
    older: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(older)
    for change in ("checkpoint.keep_last=7", "cluster.requeue.failures=3"):
        assert launch(change) == 78
        assert f"which does not know {change.partition('=')[0]}: leave that out" in capsys.readouterr().err
    assert contents(older) == before
    shutil.rmtree(older / "code")
    assert launch("checkpoint.keep_last=7") == 0
    text = (older / "config.yaml").read_text()
    assert "keep_last: 7" in text
    assert "profile: null" in text


def test_a_run_that_saved_nothing_may_change_as_it_likes(
    started: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (started / "checkpoints" / "step-5").rmdir()
    (started / "checkpoints" / ".tmp-step-5-1").mkdir()  # killed in its first save
    assert launch("optim.lr=0.3") == 0
    out = capsys.readouterr().out
    assert "nothing was saved yet" in out
    assert "optim.lr: 0.1 -> 0.3" in out
    assert "lr: 0.3" in (started / "config.yaml").read_text()


def test_a_damaged_checkpoint_is_one(started: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (started / "checkpoints" / "step-5").rename(started / "checkpoints" / "damaged-step-5-0")
    assert launch("optim.lr=0.3") == 78
    assert "optim.lr: 0.1 -> 0.3" in capsys.readouterr().err


def test_an_unchanged_relaunch_keeps_the_config_file(started: Path, slurm: Path) -> None:
    assert launch() == 0
    assert (slurm / "given.sbatch").exists()
    assert not list(started.glob("config-*.yaml"))


def test_a_semantic_change_is_refused_and_nothing_is_touched(
    started: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(started)
    assert launch("optim.lr=0.3", "seed=4", "--nodes", "2") == 78
    error = capsys.readouterr().err
    assert "optim.lr: 0.1 -> 0.3" in error
    assert "seed: 0 -> 4" in error
    assert "cluster.nodes" not in error
    assert "--name" in error
    assert contents(started) == before
    assert not (slurm / "given.sbatch").exists()


@pytest.mark.parametrize("state", ["PENDING|Resources", "RUNNING|None", "COMPLETING|None"])
def test_a_run_whose_job_is_in_the_queue_is_refused(
    started: Path, slurm: Path, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    (slurm / "queue").write_text(f"{state}\n")
    assert launch() == 78
    error = capsys.readouterr().err
    assert "job 4242 of this run is" in error
    assert state.partition("|")[0] in error
    assert "--follow" in error
    assert not (slurm / "given.sbatch").exists()


def test_a_running_run_is_refused(started: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lease = Lease.acquire(RunFolder(started), {"job_id": "77"})
    try:
        assert launch() == 78
    finally:
        lease.release()
    error = capsys.readouterr().err
    assert "is running: process" in error
    assert "since" in error
    assert "77" in error
    assert not (slurm / "given.sbatch").exists()


def test_a_finished_run_tells_its_result(started: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunFolder(started).write_summary(SUMMARY)
    before = contents(started)
    assert launch("--nodes", "2") == 0
    out = capsys.readouterr().out
    assert "is finished" in out
    assert "--name" in out
    assert re.search(r"fused \*.*50\.00.*75\.00.*50\.00.*25\.00", out)
    assert contents(started) == before
    assert launch("optim.lr=0.3") == 78  # its result is not that of these settings
    assert main(["--follow", str(started)]) == 0


def test_a_folder_that_is_no_run_is_left_alone(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "runs" / "small").mkdir(parents=True)
    assert launch() == 78
    assert "is not a run folder" in capsys.readouterr().err
    assert main(["--follow", str(place)]) == 78


def test_code_that_changed_since_the_first_launch_is_named(started: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = RunFolder(started).code / "hrdc_hpc" / "launch.py"
    file.write_text("# another\n")
    assert launch() == 0
    out = capsys.readouterr().out
    assert "differs from the present one in 1 files (hrdc_hpc/launch.py)" in out
    assert file.read_text() == "# another\n"


def test_a_launch_that_was_killed_before_its_snapshot_is_made_up_for(started: Path) -> None:
    code = RunFolder(started).code
    for path in sorted(code.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert launch() == 0
    assert (code / "hrdc_hpc" / "__init__.py").is_file()


@pytest.mark.parametrize("damage", [b"", b'{"event": "submitted", "ki', b"\xff\x00\n[]\n"])
def test_a_damaged_list_of_jobs_does_not_stop_a_launch(started: Path, slurm: Path, damage: bytes) -> None:
    jobs = started / "logs" / "jobs.jsonl"
    jobs.write_bytes(damage)
    assert launch() == 0
    assert last_job(started) == Job("slurm", "4242", pytest.approx(time.time(), abs=60))
    jobs.write_bytes(jobs.read_bytes() + damage)
    assert last_job(started) is not None
    (slurm / "queue").write_text("PENDING|None\n")
    assert launch() == 78


def test_dry_run_says_what_would_be_refused(started: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(started)
    assert launch("--dry-run", "optim.lr=0.3") == 0
    error = capsys.readouterr().err
    assert "launched here, this would stop: " in error
    assert "optim.lr: 0.1 -> 0.3" in error
    (slurm / "queue").write_text("RUNNING|None\n")
    assert launch("--dry-run") == 0
    assert "this would stop: " in (error := capsys.readouterr().err)
    assert "is RUNNING" in error
    (slurm / "queue").unlink()
    assert launch("--dry-run") == 0
    assert "would" not in capsys.readouterr().err
    assert contents(started) == before
    RunFolder(started).write_summary(SUMMARY)
    assert launch("--dry-run") == 0
    assert "this would do nothing: " in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--cfg", "small.yaml"], ["optim.lr=1"], ["--wait"]])
def test_follow_goes_alone(started: Path, capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--follow", str(started), *more])
    assert left.value.code == 78
    assert "--follow goes alone" in capsys.readouterr().err


def test_follow_without_a_job(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("--prepare") == 0
    assert main(["--follow", "runs/small"]) == 78
    assert "no job was submitted" in capsys.readouterr().err
    assert main(["--follow", "small"]) == 78
    assert "Did you mean runs/small?" in capsys.readouterr().err


def test_a_job_number_of_another_process_is_not_this_runs(started: Path) -> None:
    note_job(started, Job("local", str(os.getpid())))  # this process is there, but no controller
    assert launch() == 0
