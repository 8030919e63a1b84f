"""Sweeps without a job: the array's text, folders, what is submitted again, what is refused."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hrdc_hpc.cluster import sweep, sweep_follow, sweep_members
from hrdc_hpc.cluster.jobs import Job, cut_off, last_job, note_job
from hrdc_hpc.config.load import load
from hrdc_hpc.launch import main
from hrdc_hpc.record.folder import RunFolder

import launching
from launching import contents, launch
from sweeps import NAMES, SWEEP, elements_given, finish, queue

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden"
MANY_SBATCH = """#!/bin/bash
echo call >> "$FAKE/calls"; number=$(wc -l < "$FAKE/calls"); cp "$1" "$FAKE/given-$number.sbatch"
[ "$number" = "$(cat "$FAKE/refused" 2>/dev/null)" ] && { echo "sbatch: error: not today" >&2; exit 1; }
echo "Submitted batch job $((100 * number))"
"""


@pytest.fixture
def submitted(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Folder of a sweep of six whose array has left the queue; its first element is finished, the second has saved."""
    assert launch(*SWEEP) == 0
    (slurm / "given.sbatch").unlink()
    folder = place / "runs" / "small"
    finish(folder / NAMES[0])
    (folder / NAMES[1] / "metrics" / "attempt-1.jsonl").touch()
    (folder / NAMES[1] / "checkpoints" / "step-5").mkdir()
    capsys.readouterr()
    return folder


# what is submitted


def test_the_text_of_an_array(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("--dry-run", "--nodes", "2", "--array-parallelism", "2", *SWEEP) == 0
    text = capsys.readouterr().out.partition("\n# 6 elements")[0]
    here = str(place).replace("'", "'\"'\"'")
    text = text.replace(here, "HERE").replace(sys.executable, "PYTHON")
    assert text == (GOLDEN / "array.sbatch").read_text()


def test_one_array_of_ordinary_runs_that_share_the_code(
    place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("--dry-run", *SWEEP) == 0
    printed = capsys.readouterr().out
    assert launch(*SWEEP) == 0
    assert printed.startswith((slurm / "given.sbatch").read_text())
    assert (slurm / "calls").read_text() == "call\n"
    folder = place / "runs" / "small"
    assert elements_given(slurm) == NAMES
    for index, name in enumerate(NAMES):
        run = RunFolder(folder / name)
        assert last_job(run.path) == Job("slurm", f"4242_{index}", pytest.approx(time.time(), abs=60))
        assert (run.logs / f"4242_{index}_submitted.pkl").is_file()
        config = load(str(run.config))
        assert (config.name, config.out_dir, config.seed) == (name, folder, index % 3)
        assert config.method.name == ("hrdc" if index < 3 else "ce")
        assert run.code.resolve() == folder / "code"
        assert (run.code / "hrdc_hpc" / "launch.py").is_file()
        assert run.state() == "new"
    noted = json.loads((folder / "sweep.json").read_text())
    assert noted["grid"] == {"method": ["hrdc", "ce"], "seed": ["0", "1", "2"]}
    assert [element["name"] for element in noted["elements"]] == NAMES
    assert noted["cfg"] == "small.yaml"
    assert noted["command"][1:4] == ["-m", "hrdc_hpc.launch", "--cfg"]
    assert [(entry["job_id"], entry["elements"]) for entry in noted["arrays"]] == [("4242", NAMES)]
    assert not [path for path in folder.rglob("*") if path.name == "launch" or path.suffix == ".tmp"]
    out = capsys.readouterr().out
    assert "6 elements x 1 nodes x 1 CPUs x 60 minutes = at most 6 CPU-hours, 6 elements at a time" in out
    assert f"--follow {shlex.quote(str(folder))}" in out
    assert f"status cancel {shlex.quote(str(folder))}" in out


def test_a_swept_component_that_the_config_has_keeps_its_options(place: Path) -> None:
    (place / "small.yaml").write_text((place / "small.yaml").read_text().replace("hrdc", "{name: hrdc, fusion: head}"))
    assert launch("--prepare", "--sweep", "method=hrdc,ce") == 0
    assert load(str(place / "runs" / "small" / "method-hrdc" / "config.yaml")).method.options.fusion == "head"


def test_dry_run_shows_the_elements_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(place)
    assert launch("--dry-run", *SWEEP) == 0
    assert launch("--dry-run", "--cluster", "local", *SWEEP) == 0
    assert contents(place) == before
    shown = capsys.readouterr()
    assert "# method-ce_seed-2: seed: 0 -> 2, method: hrdc -> ce" in shown.out
    assert "no sbatch on the PATH" in shown.err


def test_prepare_submits_nothing_and_what_it_prints_does(
    place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("--prepare", *SWEEP) == 0
    assert not (slurm / "calls").exists()
    assert "--resubmit-failed" in capsys.readouterr().out
    assert main(["--resubmit-failed", "runs/small"]) == 0
    assert elements_given(slurm) == NAMES


def test_an_array_waits_for_another_job(place: Path, slurm: Path) -> None:
    queue(slurm, "RUNNING|None")
    assert launch("--after", "77", *SWEEP) == 0
    assert "#SBATCH --dependency=afterok:77\n" in (slurm / "given.sbatch").read_text()


def test_an_element_whose_job_slurm_has_forgotten_is_not_followed_as_running(submitted: Path) -> None:
    watch = sweep_follow.Watch(sweep_members.of_sweep(sweep.read(submitted)))
    watch.look()
    assert [one.word for one in watch.elements] == ["finished"] + 5 * ["ending"]


# what is left of a sweep


def test_resubmitting_takes_only_what_ended_badly(
    submitted: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue(slurm, "4242_2|RUNNING|None", "4242_3|PENDING|JobArrayTaskLimit", "4242_4|FAILED|NonZeroExitCode")
    assert main(["--resubmit-failed", str(submitted), "--time", "90"]) == 0
    assert elements_given(slurm) == [NAMES[1], NAMES[4], NAMES[5]]
    out = capsys.readouterr().out
    for name, why in (
        (NAMES[0], "= .* is finished"),
        (NAMES[1], r"\+ .* ended without finishing; goes on from its last checkpoint"),
        (NAMES[2], r"\. .* job 4242_2 of this run is RUNNING"),
        (NAMES[3], r"\. .* job 4242_3 of this run is PENDING \(JobArrayTaskLimit\)"),
        (NAMES[4], r"\+ .* ended without finishing; begins anew"),
    ):
        assert re.search(why.replace(".*", f"{name} *", 1), out), (why, out)
    assert "6 elements: 3 to submit, 2 running or queued, 1 finished" in out
    text = (slurm / "given.sbatch").read_text()
    assert "--array=0-2%3\n" in text
    assert "--time=90\n" in text
    assert "/arrays/2/" in text
    assert [entry["number"] for entry in json.loads((submitted / "sweep.json").read_text())["arrays"]] == [1, 2]


def test_a_single_element_is_an_array_too(submitted: Path, slurm: Path) -> None:
    for name in NAMES[2:]:
        finish(submitted / name)
    assert main(["--resubmit-failed", str(submitted)]) == 0
    assert "#SBATCH --array=0-0%1\n" in (slurm / "given.sbatch").read_text()
    assert elements_given(slurm) == [NAMES[1]]
    job = last_job(submitted / NAMES[1])
    assert job
    assert job.job_id == "4242_0"


def test_nothing_to_resubmit(submitted: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        finish(submitted / name)
    assert main(["--resubmit-failed", str(submitted)]) == 0
    assert "nothing is left to submit" in capsys.readouterr().out
    assert not (slurm / "given.sbatch").exists()


def test_elements_that_ask_for_different_things_are_different_arrays(submitted: Path, slurm: Path) -> None:
    config = submitted / NAMES[3] / "config.yaml"
    config.write_text(config.read_text().replace("time_min: 60", "time_min: 99"))
    (slurm / "sbatch").write_text(MANY_SBATCH)
    (slurm / "calls").unlink()
    assert main(["--resubmit-failed", str(submitted)]) == 0
    texts = [(slurm / f"given-{number}.sbatch").read_text() for number in (1, 2)]
    assert ["--time=99" in text for text in texts] == [False, True]
    assert ["--array=0-3%4" in texts[0], "--array=0-0%1" in texts[1]] == [True, True]


def test_the_same_command_again_and_with_more_values(
    submitted: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue(slurm, *(f"4242_{index}|RUNNING|None" for index in range(2, 6)))
    assert launch(*SWEEP) == 0
    assert elements_given(slurm) == [NAMES[1]]
    assert "goes on from its last checkpoint" in capsys.readouterr().out
    queue(slurm, "4242_0|RUNNING|None", *(f"4242_{index}|RUNNING|None" for index in range(2, 6)))
    assert launch("--sweep", "method=hrdc,ce", "seed=2,3") == 0
    assert elements_given(slurm) == ["method-hrdc_seed-3", "method-ce_seed-3"]
    noted = json.loads((submitted / "sweep.json").read_text())
    assert noted["grid"] == {"method": ["hrdc", "ce"], "seed": ["0", "1", "2", "3"]}
    assert [element["name"] for element in noted["elements"]] == [*NAMES, "method-hrdc_seed-3", "method-ce_seed-3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim.lr=0.3", *SWEEP], f"{NAMES[0]}: .* is finished with other settings"),
        (["optim.lr=0.3", *SWEEP], f"{NAMES[1]}: .* was started with other settings"),
        (["--sweep", "method=hrdc,ce"], "sweeps over method, seed, not method; give this sweep another"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_touched(
    submitted: Path, slurm: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], message: str
) -> None:
    before = contents(submitted)
    assert launch(*arguments) == 78
    assert re.search(message, capsys.readouterr().err)
    assert contents(submitted) == before
    assert not (slurm / "given.sbatch").exists()


def test_a_sweep_that_was_moved_goes_on_where_it_is(submitted: Path, slurm: Path) -> None:
    moved = submitted.rename(submitted.parent / "moved")
    assert main(["--resubmit-failed", str(moved)]) == 0
    assert elements_given(slurm) == NAMES[1:]
    assert load(str(moved / NAMES[1] / "config.yaml")).out_dir == moved
    assert (moved / NAMES[1] / "code" / "hrdc_hpc").is_dir()


# errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep", "method=ce,cx", "optim.lr=0,1"], "method-ce_lr-0, method-cx_lr-0: override 'optim.lr=0'"),
        (["--sweep", "method=hrdc,cx", "optim.lr=0,1"], "method-cx_lr-0, method-cx_lr-1: override 'method=cx': method"),
        (["--sweep", "optim.lr=0.1,1e-1"], "lr-1e-1: is the same run as lr-0.1"),
        (["--sweep", "optim.lr"], "must read key=value,value"),
        (["--cluster", "local", *SWEEP], "add --wait"),
        (["--sweep", "data.dataset={name: image_folder, root: nowhere},digits_lt"], "nowhere"),
        (["--out-dir", "a:b", *SWEEP], "must not contain ':'"),
    ],
)  # fmt: skip
def test_a_wrong_sweep_says_which_elements_and_leaves_nothing(
    place: Path, slurm: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert launch(*arguments) == 78
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == ["small.yaml"]
    assert not (slurm / "calls").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--resubmit-failed", "x", "--cfg", "small.yaml"],
        ["--resubmit-failed", "x", "--sweep", "seed=0,1"],
        ["--cfg", "small.yaml", "--chain", "2", *SWEEP],
        ["--follow", "x", *SWEEP],
    ],
)
def test_what_does_not_go_together(place: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 78


def test_what_is_there_and_is_no_sweep_is_left_alone(
    place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch() == 0
    before = contents(place)
    assert launch(*SWEEP) == 78
    assert "is not the folder of a sweep" in capsys.readouterr().err
    assert main(["--resubmit-failed", "runs/small"]) == 78
    assert contents(place) == before


def test_a_refusal_of_sbatch_leaves_no_sweep(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (slurm / "refusal").write_text("sbatch: error: invalid account\n")
    assert launch(*SWEEP) == 1
    said = capsys.readouterr().err
    assert "sbatch did not take the array: sbatch: error: invalid account" in said
    assert said.count("invalid account") == 1
    assert list((place / "runs").iterdir()) == []


# races


@pytest.fixture
def submitting(place: Path, slurm: Path) -> Iterator[subprocess.Popen[str]]:
    """A launch of the sweep that stands still in sbatch."""
    with launching.submitting(slurm, *SWEEP) as process:
        yield process


def test_a_second_launch_while_sbatch_works_is_refused_and_touches_nothing(
    place: Path, slurm: Path, submitting: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place / "runs" / "small"
    before = contents(folder)
    assert launch("--sweep", "method=hrdc,ce", "seed=7,8") == 78
    assert f"is being launched by process {submitting.pid}" in capsys.readouterr().err
    assert launch("--name", NAMES[0], "--out-dir", str(folder)) == 78
    assert f"is being launched by process {submitting.pid}" in capsys.readouterr().err
    assert contents(folder) == before
    (slurm / "wait").unlink()
    output, _ = submitting.communicate(timeout=30)
    assert submitting.returncode == 0, output
    assert (slurm / "calls").read_text() == "call\n"


def test_ctrl_c_waits_for_sbatch_and_the_jobs_are_written_down(
    place: Path, slurm: Path, submitting: subprocess.Popen[str]
) -> None:
    os.killpg(submitting.pid, signal.SIGINT)  # as a terminal does: to sbatch too
    time.sleep(0.3)
    (slurm / "wait").unlink()
    output, _ = submitting.communicate(timeout=30)
    assert submitting.returncode == 130, output
    folder = place / "runs" / "small"
    jobs = [last_job(folder / name) for name in NAMES]
    assert [job.job_id if job else None for job in jobs] == [f"4242_{index}" for index in range(6)]
    assert [entry["job_id"] for entry in json.loads((folder / "sweep.json").read_text())["arrays"]] == ["4242"]


def test_a_launch_that_was_killed_while_it_submitted_is_told(
    place: Path, slurm: Path, submitting: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    os.killpg(submitting.pid, signal.SIGKILL)
    submitting.wait()
    folder = place / "runs" / "small"
    assert all(cut_off(folder / name) for name in NAMES)
    (slurm / "wait").unlink()
    assert launch(*SWEEP) == 0
    assert "an earlier launch was killed while it submitted" in capsys.readouterr().out
    assert not any(cut_off(folder / name) for name in NAMES)
    assert elements_given(slurm) == NAMES


def test_an_element_that_was_launched_by_itself_is_left_alone(submitted: Path, slurm: Path) -> None:
    note_job(submitted / NAMES[1], Job("slurm", "4300"))
    queue(slurm, "4300_N/A|RUNNING|None")
    assert main(["--resubmit-failed", str(submitted)]) == 0
    assert elements_given(slurm) == NAMES[2:]


def test_code_that_changed_is_told_once(submitted: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (submitted / "code" / "hrdc_hpc" / "launch.py").write_text("other")
    assert main(["--resubmit-failed", str(submitted)]) == 0
    assert capsys.readouterr().out.count("differs from the present one in 1 files (hrdc_hpc/launch.py)") == 1
    shutil.rmtree(submitted / "code")
    assert main(["--resubmit-failed", str(submitted)]) == 0
    assert (submitted / NAMES[1] / "code" / "hrdc_hpc" / "launch.py").read_text() != "other"
