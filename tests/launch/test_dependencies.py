"""Chains of jobs, runs that wait for others, and going on with a run folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hrdc_hpc.cluster.jobs import Job, jobs_of_launch, last_job, note_job
from hrdc_hpc.launch import main
from hrdc_hpc.record.folder import RunFolder

from launching import SUMMARY, contents, launch

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def counting(slurm: Path) -> None:
    """Every job gets a new number."""
    (slurm / "counts").touch()


def options(slurm: Path, number: int) -> set[str]:
    """The sbatch options of the number-th job, from 1."""
    text = (slurm / f"given-{number}.sbatch").read_text()
    return {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")}


def test_a_chain_is_one_job_after_the_other(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("--chain", "3") == 0
    out = capsys.readouterr().out
    assert "a chain of 3 jobs" in out
    assert out.count("run folder: ") == 1
    run = place / "runs" / "small"
    assert jobs_of_launch(run, "4243") == ["4242", "4243", "4244"]
    assert last_job(run).job_id == "4244"  # type: ignore[union-attr]
    assert not any(option.startswith("dependency") for option in options(slurm, 1))
    assert options(slurm, 2) >= {"dependency=afterany:4242", "kill-on-invalid-dep=yes", "no-requeue"}
    assert options(slurm, 3) >= {"dependency=afterany:4243", "no-requeue"}
    assert "requeue" not in options(slurm, 1) | options(slurm, 3)


def test_a_chain_that_is_cut_short_says_so(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A site that limits a user's jobs takes some links; one of them may be all that is left."""
    text = (slurm / "sbatch").read_text()
    (slurm / "sbatch").write_text(
        text.replace("\ncp ", '\n[ $calls = 3 ] && { echo "job limit" >&2; exit 1; }\ncp ', 1)
    )
    assert launch("--chain", "4") == 1
    said = capsys.readouterr().err
    assert "job limit" in said
    assert "2 of 4 jobs of the chain were taken before" in said
    run = place / "runs" / "small"
    assert jobs_of_launch(run, "4242") == ["4242", "4243"]
    # the first still waits, the last is gone
    squeue = (slurm / "squeue").read_text()
    (slurm / "squeue").write_text(
        squeue.replace("\n", "\n[[ $* = *4242* ]] && { echo 'PENDING|Resources'; exit; }\n", 1)
    )
    assert launch() == 78
    assert "job 4242 of this run is PENDING" in capsys.readouterr().err


def test_a_launch_without_a_chain_is_one_job(place: Path, slurm: Path) -> None:
    assert launch() == 0
    run = place / "runs" / "small"
    assert jobs_of_launch(run, "4242") == ["4242"]
    assert json.loads((run / "logs" / "jobs.jsonl").read_text().splitlines()[-1]).keys() >= {"job_id"}
    assert "requeue" in options(slurm, 1)


@pytest.mark.parametrize("links", ["0", "many", "101"])
def test_a_wrong_chain(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str], links: str) -> None:
    with pytest.raises(SystemExit) as left:
        launch("--chain", links)
    assert left.value.code == 78
    assert f"got '{links}'; allowed: 1 to 100" in capsys.readouterr().err


def test_a_local_run_waits_for_nobody(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--chain", "2"], ["--after", "7"]):
        with pytest.raises(SystemExit) as left:
            launch("--cluster", "local", *more)
        assert left.value.code == 78
    assert "are for SLURM" in capsys.readouterr().err


def test_after_a_job_or_a_run(place: Path, slurm: Path) -> None:
    assert launch() == 0
    (slurm / "queue").write_text("RUNNING|None\n")
    assert launch("--name", "second", "--after", "runs/small") == 0
    assert options(slurm, 2) >= {"dependency=afterok:4242", "kill-on-invalid-dep=yes", "requeue"}
    assert launch("--name", "third", "--after", "77_3", "--sbatch", "dependency=singleton") == 0
    assert "dependency=singleton,afterok:77_3" in options(slurm, 3)
    assert "dependency" not in (place / "runs" / "second" / "config.yaml").read_text(), "it is of one submission"


def test_after_a_finished_run_is_at_once(place: Path, slurm: Path) -> None:
    assert launch() == 0
    RunFolder(place / "runs" / "small").write_summary(SUMMARY)
    assert launch("--name", "second", "--after", "runs/small") == 0
    assert not any(option.startswith("dependency") for option in options(slurm, 2))


SWEEP = ("--sweep", "method=hrdc,ce", "seed=0,1")
STATES = [f"4242_{index}|PENDING|Resources" for index in range(4)]


@pytest.fixture
def swept(place: Path, slurm: Path) -> Path:
    """A sweep of four whose array waits."""
    assert launch(*SWEEP) == 0
    (slurm / "queue").write_text("".join(f"{line}\n" for line in STATES))
    return place / "runs" / "small"


def waits_for(slurm: Path, number: int) -> str:
    (found,) = [option for option in options(slurm, number) if option.startswith("dependency=")]
    return found.removeprefix("dependency=")


def test_a_sweep_after_a_sweep_waits_element_by_element(
    swept: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = ("--name", "second", "--after", "runs/small", *SWEEP)
    capsys.readouterr()
    assert launch("--dry-run", *second) == 0
    assert "--dependency=aftercorr:4242\n" in capsys.readouterr().out
    assert launch(*second) == 0
    assert options(slurm, 2) >= {"array=0-3%4", "dependency=aftercorr:4242", "kill-on-invalid-dep=yes"}
    assert launch("--name", "third", "--after", "runs/small", "--sweep", "seed=0,1,2") == 0
    assert waits_for(slurm, 3) == "afterok:4242", "another number of elements"
    assert launch("--name", "fourth", "--after", "runs/small") == 0
    assert waits_for(slurm, 4) == "afterok:4242", "a single run"


def test_after_a_sweep_that_is_partly_finished(swept: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is finished is not waited for; an element that was launched by itself is."""
    RunFolder(swept / "method-hrdc_seed-0").write_summary(SUMMARY)
    note_job(swept / "method-ce_seed-0", Job("slurm", "99"))
    (slurm / "queue").write_text("\n".join([*STATES, "99_N/A|RUNNING|None"]) + "\n")
    assert launch("--name", "second", "--after", "runs/small", *SWEEP) == 0
    assert waits_for(slurm, 2) == "afterok:4242_1:99:4242_3"
    (slurm / "queue").write_text("\n".join([*STATES[:3], "99_N/A|RUNNING|None"]) + "\n")
    assert launch("--name", "third", "--after", "runs/small") == 78
    said = capsys.readouterr().err
    assert "ended without finishing, method-ce_seed-1 for one" in said
    assert "--resubmit-failed" in said
    for name in ("method-hrdc_seed-1", "method-ce_seed-0", "method-ce_seed-1"):
        RunFolder(swept / name).write_summary(SUMMARY)
    assert launch("--name", "third", "--after", "runs/small") == 0
    assert not any(option.startswith("dependency") for option in options(slurm, 3))


def test_after_a_sweep_that_was_only_prepared(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("--prepare", *SWEEP) == 0
    assert launch("--name", "second", "--after", "runs/small") == 78
    assert "elements that SLURM was not given, method-hrdc_seed-0 for one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ("runs/nowhere", "'runs/nowhere' is neither the id of a job nor the folder of a run"),
        ("small", "Did you mean runs/small?"),
        ("99999", "SLURM knows no job 99999"),  # it would start the new job at once
        ("runs/small", "is not finished, and its job 4242 has ended"),
    ],
)
def test_what_cannot_be_waited_for(
    place: Path, slurm: Path, capsys: pytest.CaptureFixture[str], after: str, words: str
) -> None:
    assert launch() == 0
    before = contents(place)
    assert launch("--name", "second", "--after", after) == 78
    assert words in capsys.readouterr().err
    assert contents(place) == before, "nothing is made"
    assert not (slurm / "given-2.sbatch").exists()


def test_resume_takes_the_run_as_it_is(
    place: Path, slurm: Path, started: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "small.yaml").unlink()
    (started / "stop").touch()
    assert main(["--resume", "runs/small", "--time", "30"]) == 0
    out = capsys.readouterr().out
    assert "goes on from its last checkpoint" in out
    assert "cluster.time_min: 60 -> 30" in out
    assert "stop" in out
    assert not (started / "stop").exists()
    assert "time=30" in options(slurm, 2)
    assert last_job(started).job_id == "4243"  # type: ignore[union-attr]


def test_resume_goes_alone(place: Path, slurm: Path, started: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--resume", "runs/nowhere"], ["--resume", "small"], ["--resume", "runs/small", "--name", "other"]):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 78
    said = capsys.readouterr().err
    assert "nowhere is not a run folder (no config.yaml). Which runs there are: python -m hrdc_hpc.status" in said
    assert "Did you mean runs/small?" in said
    assert "leave out --cfg, --name and --out-dir" in said
