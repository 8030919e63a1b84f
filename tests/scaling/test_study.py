"""Studies without a job: what is submitted, what is refused, what is submitted again, what became of the rows."""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import hrdc_hpc
from hrdc_hpc import launch as launch_command
from hrdc_hpc import status
from hrdc_hpc.cluster import sweep
from hrdc_hpc.cluster.ends import note_end
from hrdc_hpc.cluster.overview import Survey, survey
from hrdc_hpc.config.load import load
from hrdc_hpc.record import measurement
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.measurement import Measurement, Share
from hrdc_hpc.scaling import collect, study
from hrdc_hpc.scaling.__main__ import main

from launching import contents, hostile_place, make_believe_slurm
from sweeps import elements_given, queue

pytestmark = pytest.mark.slow

SBATCH = """#!/bin/bash
echo call >> "$FAKE/calls"; number=$(wc -l < "$FAKE/calls"); cp "$1" "$FAKE/given.sbatch"; cp "$1" "$FAKE/given-$number"
[ "$number" = "$(cat "$FAKE/killed" 2>/dev/null)" ] && { kill -9 $PPID; exit 1; }
grep -q -- "--nodes=$(cat "$FAKE/refused" 2>/dev/null)$" "$1" && { echo "sbatch: error: not so many" >&2; exit 1; }
echo "Submitted batch job $((100 * number))"
"""
SIZES = ("--nodes", "1,2,4", "--mode", "weak,strong", "--repeats", "2", "--yes")
ONE = [f"weak-1x1-r{repeat}" for repeat in (1, 2)]
TWO = [f"{mode}-2x1-r{repeat}" for mode in ("weak", "strong") for repeat in (1, 2)]
FOUR = [f"{mode}-4x1-r{repeat}" for mode in ("weak", "strong") for repeat in (1, 2)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return hostile_place(tmp_path, monkeypatch)


@pytest.fixture
def slurm(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = make_believe_slurm(place, monkeypatch)
    (made / "sbatch").write_text(SBATCH)
    return made


def scaling(*arguments: str) -> int:
    return main(["--cfg", "small.yaml", *arguments])


def found(world_size: int = 1, batch: int = 32) -> Measurement:
    return Measurement(
        world_size=world_size, ranks_per_node=1, global_batch=batch, images="real", warm_up=1,
        windows={"as_is": [[0.1, 0.1], [0.12, 0.1]]},
        shares=Share(data_wait_s=0.01, compute_s=0.08, communication_s=0.0, optimizer_s=0.01), gradient_bytes=400,
        buckets=[], all_reduces=[], backend="gloo", interface=None, nodes=[], precision="fp32",
        startup_s={"total": 5.0}, checkpoint_bytes=800, checkpoint_stall_s=0.01, checkpoint_s=0.02, notes=[],
    )  # fmt: skip


def finish(run: Path) -> None:
    measurement.write(run, found())
    RunFolder(run).write_summary(
        {"measured": True, "nodes": 1, "world_size": 1, "global_batch": 32, "images_per_s": 304.8, "step_s": 0.1}
    )


# what is submitted


def test_a_submission_for_each_size(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling("--dry-run", *SIZES) == 0
    printed = capsys.readouterr().out
    assert scaling(*SIZES) == 0
    texts = [(slurm / f"given-{number}").read_text() for number in (1, 2, 3)]
    assert printed.startswith("\n".join(texts))
    assert not (slurm / "given-4").exists()
    folder = place / "runs" / "small-scaling"
    noted = sweep.read(folder)
    assert [list(entry["elements"]) for entry in noted.arrays] == [ONE, TWO, FOUR]
    assert [element.name for element in noted.elements] == [*ONE, *TWO, *FOUR]
    for text, nodes, number in zip(texts, (1, 2, 4), (2, 4, 4), strict=True):
        assert f"#SBATCH --nodes={nodes}\n" in text
        assert f"#SBATCH --array=0-{number - 1}%1\n" in text
        assert "#SBATCH --time=30\n" in text
    config = load(str(folder / "weak-4x1-r2" / "config.yaml"))
    assert (config.optim.global_batch, config.cluster.nodes) == (128, 4)
    assert config.measure is not None
    assert config.measure.repeat == 2
    assert load(str(folder / "strong-4x1-r1" / "config.yaml")).optim.global_batch == 32
    assert (folder / "weak-1x1-r1" / "code").resolve() == folder / "code"
    rows = study.read(folder).rows
    assert len(rows) == 12
    assert [row.run for row in rows if row.size.mode == "strong" and row.size.nodes == 1] == ONE
    shown = capsys.readouterr().out
    assert "10 runs of at most 30 minutes: at most 13 CPU-hours" in shown
    assert re.search(r"strong +1 +1 +32 +32 +2 +0 +the same runs\n", shown)
    assert "scaling report '" in shown


def test_sizes_in_turn(place: Path, slurm: Path) -> None:
    assert scaling("--in-turn", *SIZES) == 0
    texts = [(slurm / f"given-{number}").read_text() for number in (1, 2, 3)]
    assert [re.findall(r"--dependency=(\S+)", text) for text in texts] == [[], ["afterany:100"], ["afterany:100:200"]]


def test_sizes_that_are_added_wait_for_those_before(place: Path, slurm: Path) -> None:
    assert scaling("--nodes", "1", "--yes") == 0
    assert scaling("--in-turn", "--nodes", "2", "--yes") == 0
    assert re.findall(r"--dependency=(\S+)", (slurm / "given-2").read_text()) == ["afterany:100"]


def test_a_large_study_wants_a_yes(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling("--nodes", "1-4", "--ask-hours", "14") == 78
    assert "add --yes" in capsys.readouterr().err
    assert not (slurm / "calls").exists()
    assert not (place / "runs").exists()
    assert scaling("--nodes", "1-4", "--ask-hours", "15", "--ask-elements", "12") == 0


def test_dry_run_without_slurm_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(place)
    assert scaling("--dry-run", "--nodes", "1,2") == 0
    assert scaling("--dry-run", "--cluster", "local", "--ranks-per-node", "1,2") == 0
    assert contents(place) == before
    assert scaling("--nodes", "1,2") == 78
    assert "no sbatch on the PATH" in capsys.readouterr().err


# what is refused


def test_a_size_that_sbatch_refuses_leaves_the_others(
    place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (slurm / "refused").write_text("2")
    assert scaling(*SIZES) == 1
    assert "not so many" in capsys.readouterr().out
    folder = place / "runs" / "small-scaling"
    assert sorted(path.name for path in folder.glob("*-r?")) == sorted([*ONE, *FOUR])
    assert [element.name for element in sweep.read(folder).elements] == [*ONE, *FOUR]
    queue(slurm, *(f"100_{index}|PENDING|N/A|1||Resources" for index in (0, 1)))
    rows = collect.rows(study.read(folder))
    assert [row.state for row in rows if row.size.nodes == 2] == 4 * ["refused"]
    assert all("not so many" in row.why and "\n" not in row.why for row in rows if row.size.nodes == 2)
    assert {row.why for row in rows if row.size.nodes == 1} == {"PENDING (Resources)"}

    queue(slurm, *(f"100_{index}|PENDING|Resources" for index in (0, 1)))
    assert launch_command.main(["--resubmit-failed", str(folder), "--yes"]) == 0, "a refused size is not in its way"
    (slurm / "refused").unlink()
    queue(slurm, *(f"{array}_{index}|RUNNING|None" for array in (100, 300, 400) for index in range(4)))
    capsys.readouterr()
    assert scaling(*SIZES) == 0
    assert elements_given(slurm) == TWO
    assert "queued or running, left alone" in capsys.readouterr().out
    assert study.read(folder).refused == {}


def test_a_size_above_the_clusters_limits(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = Path(__file__).parents[1] / "cluster" / "slurm-22.05"
    (slurm / "scontrol").write_text(
        '#!/bin/bash\n[ "$1" = --oneliner ] && shift\n' + f"cat {said}/$2.txt" + ' | sed "s/slurmdbd/none/"\n'
    )
    (slurm / "sacctmgr").write_text("#!/bin/bash\nexit 1\n")
    (slurm / "sacctmgr").chmod(0o755)
    words = ("--repeats", "1", "--time", "10", "--partition", "gpu")
    assert scaling("--nodes", "2,9", *words) == 1
    assert elements_given(slurm) == ["weak-2x1-r1"]
    folder = place / "runs" / "small-scaling"
    assert "partition gpu allows 2 for a job" in collect.rows(study.read(folder))[1].why
    capsys.readouterr()
    assert scaling("--nodes", "9", "--name", "other", *words) == 78
    assert "none of the sizes can be had" in capsys.readouterr().err
    assert not (place / "runs" / "other").exists()


def test_a_size_that_the_batch_refuses(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling("--nodes", "1,40", "--mode", "strong", "--repeats", "1") == 1
    assert elements_given(slurm) == ["strong-1x1-r1"]
    assert "32 images over 40 ranks leave some without any" in capsys.readouterr().out


def test_a_study_of_which_nothing_was_taken_leaves_nothing(
    place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (slurm / "refused").write_text("2")
    assert scaling("--nodes", "2") == 1
    assert "nothing could be submitted" in capsys.readouterr().err
    assert list((place / "runs").iterdir()) == []


def test_the_folder_of_another_sweep_is_left_alone(
    place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch_command.main(["--cfg", "small.yaml", "--name", "small-scaling", "--sweep", "seed=0,1"]) == 0
    before = contents(place)
    assert scaling("--nodes", "1") == 78
    assert "sweeps over seed, not nodes" in capsys.readouterr().err
    assert contents(place) == before


# the same command again


@pytest.fixture
def ended(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A study of one and two nodes whose jobs are gone: one run has finished, one has failed, two are lost."""
    assert scaling("--nodes", "1,2", "--repeats", "2") == 0
    folder = place / "runs" / "small-scaling"
    finish(folder / "weak-1x1-r1")
    failed = folder / "weak-2x1-r1"
    note_end(failed, job_id="200_0", rank=1, code=1, reason="CUDA out of memory\nand more", restart_count=0)
    capsys.readouterr()
    return folder


def test_what_is_finished_is_kept_and_the_study_grows(
    ended: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scaling("--nodes", "1,2", "--repeats", "2") == 0
    assert [list(entry["elements"]) for entry in sweep.read(ended).arrays[2:]] == [
        ["weak-1x1-r2"],
        ["weak-2x1-r1", "weak-2x1-r2"],
    ]
    finish(ended / "weak-1x1-r2")
    queue(slurm, *(f"{array}_{index}|RUNNING|None" for array in (300, 400) for index in range(2)))
    capsys.readouterr()
    assert scaling("--nodes", "1,4", "--repeats", "3", "--yes") == 0
    assert [list(entry["elements"]) for entry in sweep.read(ended).arrays[4:]] == [
        ["weak-1x1-r3"],
        ["weak-4x1-r1", "weak-4x1-r2", "weak-4x1-r3"],
    ]
    assert "2 finished, kept; 1 to submit" in capsys.readouterr().out
    assert len(study.read(ended).rows) == 3 + 2 + 3


def test_a_command_that_is_killed_between_two_sizes_goes_on(
    place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (slurm / "killed").write_text("2")
    words = ("--nodes", "1,2,4", "--repeats", "1")
    command = [sys.executable, "-m", "hrdc_hpc.scaling", "--cfg", "small.yaml", *words]
    environ = os.environ | {"PYTHONPATH": str(Path(hrdc_hpc.__file__).parents[1])}
    assert subprocess.run(command, check=False, env=environ, capture_output=True).returncode == -9
    folder = place / "runs" / "small-scaling"
    assert [list(entry["elements"]) for entry in sweep.read(folder).arrays] == [["weak-1x1-r1"]]
    assert len(collect.rows(study.read(folder))) == 3, "a report is to be had all the same"
    queue(slurm, "100_0|RUNNING|None")
    assert scaling(*words) == 0
    assert "an earlier launch was killed while it submitted" in capsys.readouterr().out
    given = [list(entry["elements"]) for entry in sweep.read(folder).arrays]
    assert given == [["weak-1x1-r1"], ["weak-2x1-r1"], ["weak-4x1-r1"]]


def test_what_had_failed_and_is_refused_now_is_told(
    ended: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (slurm / "refused").write_text("2")
    assert scaling("--nodes", "1,2", "--repeats", "2") == 1
    shown = capsys.readouterr().out
    assert "weak-2x1-r1, weak-2x1-r2: sbatch did not take the array" in shown
    assert "2 runs were refused; the same command tries them again" in shown
    rows = collect.rows(study.read(ended))
    assert [row.state for row in rows if row.size.nodes == 2] == ["refused", "refused"]
    assert len(sweep.read(ended).elements) == 4


def test_other_settings_of_what_is_there_are_refused(
    ended: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(ended)
    assert scaling("--nodes", "1,2", "--repeats", "2", "compute.channels_last=false") == 78
    assert "is finished with other settings" in capsys.readouterr().err
    assert scaling("--nodes", "1", "--repeats", "2", "--batch-per-rank", "5") == 78
    assert "with a global batch of 32, not 5" in capsys.readouterr().err
    assert scaling("--nodes", "4", "--repeats", "1", "compute.channels_last=false") == 78
    assert "has figures of other settings" in capsys.readouterr().err
    assert contents(ended) == before


def test_rows_tell_what_became_of_them(ended: Path, slurm: Path) -> None:
    rows = {row.run: row for row in collect.rows(study.read(ended))}
    assert [row.state for row in rows.values()] == ["finished", "lost", "failed", "lost"]
    assert rows["weak-1x1-r1"].found == found()
    assert rows["weak-1x1-r1"].images_per_s == pytest.approx(4 * 32 / 0.42)
    assert re.fullmatch(r"rank 1 on \S+: CUDA out of memory; and more", rows["weak-2x1-r1"].why)
    assert rows["weak-2x1-r2"].why
    (ended / "weak-1x1-r1" / "report" / measurement.FILE).write_text('{"version": 0}')
    broken = collect.rows(study.read(ended))[0]
    assert (broken.state, broken.found) == ("failed", None)
    assert "version 0" in broken.why


def test_a_row_that_runs_again_does_not_tell_how_it_ended_before(
    place: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scaling("--nodes", "1", "--repeats", "1") == 0
    folder = place / "runs" / "small-scaling"
    seen = survey([folder / "weak-1x1-r1"]).runs[0]
    again = replace(seen, state="running", word="", last_end="preempted")
    monkeypatch.setattr(collect, "survey", lambda _: Survey([again], ""))
    assert [(row.state, row.why) for row in collect.rows(study.read(folder))] == [("running", "")]


def test_a_report_that_cannot_be_written_is_told_all_the_same(
    ended: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ended / "report").write_text("")  # root may write everywhere, but not below a file
    assert main(["report", str(ended)]) == 1
    printed = capsys.readouterr()
    assert "Measured, weak scaling" in printed.out
    assert "the report above is not in " in printed.err


def test_status_and_follow_know_a_study(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling("--nodes", "1", "--repeats", "2") == 0
    folder = place / "runs" / "small-scaling"
    finish(folder / "weak-1x1-r1")
    capsys.readouterr()

    def told(command: Callable[[list[str]], int], *words: str) -> str:
        command(list(words))
        return capsys.readouterr().out

    page = told(status.main, str(folder))
    assert "scaling report '" in page
    assert "1 did not finish" in page
    alone = told(status.main, str(folder / "weak-1x1-r1"))
    assert "scaling report '" in alone
    assert "evaluate" not in alone
    result = told(launch_command.main, "--follow", str(folder / "weak-1x1-r1"))
    assert "measured on 1 node, 1 rank: 304.8 images/s" in result
    finish(folder / "weak-1x1-r2")
    followed = told(launch_command.main, "--follow", str(folder))
    assert "scaling report '" in followed
    assert "balanced" not in followed
    assert not (folder / "results.md").exists()


def test_the_report_of_what_is_there(
    ended: Path, slurm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # the plots: test_report.py
    assert main(["report", str(ended), "--predict", "4", "--efficiency", "0.7"]) == 0
    assert f"report: {ended}/report/report.html" in capsys.readouterr().out
    page = (ended / "report" / "report.md").read_text()
    assert "402 training images" in page
    assert "70 % efficiency" in page
    assert "CUDA out of memory; and more" in page
    told = json.loads((ended / "report" / "report.json").read_text())
    assert [row["state"] for row in told["rows"]] == ["finished", "lost", "failed", "lost"]
    assert {one["nodes"] for one in told["modes"]["weak"]["predictions"]} == {1, 2, 4}
    assert told["fit"]["model"].startswith("step = max(")


def test_a_report_before_anything_was_measured(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling("--nodes", "1,2", "--repeats", "1") == 0
    folder = place / "runs" / "small-scaling"
    assert main(["report", str(folder)]) == 0
    assert "No size has figures yet" in capsys.readouterr().out
    assert "weak-2x1-r1" in (folder / "report" / "rows.csv").read_text()


def test_a_prediction_on_paper(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--profile", "h200_ndr", "--nodes", "1-40", "--gpus-per-node", "8", "model.backbone=resnet50")
    words += ("data.image_size=224", "--batch-per-rank", "32")
    assert main(["predict", "--cfg", "small.yaml", *words]) == 0
    shown = capsys.readouterr().out
    assert "Nothing was run" in shown
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("│")] == [
        "1",
        "2",
        "4",
        "8",
        "16",
        "32",
        "40",
    ]
    assert scaling("--predict", *words, "--report", "paper") == 0
    assert "on paper" in (place / "paper" / "report.md").read_text()
    assert not (place / "runs").exists()
    capsys.readouterr()
    strong = (*words[:2], *words[4:8], "--mode", "strong", "--global-batch", "64")
    assert main(["predict", "--cfg", "small.yaml", *strong, "--nodes", "1,8,16,32"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("│")] == ["1", "8"]
    assert "a global batch of 64 images leaves ranks without any from 16 nodes of 8 on" in " ".join(shown.split())
    assert main(["predict", "--cfg", "small.yaml", *strong, "--nodes", "16"]) == 78
    assert "raise --global-batch, or predict fewer nodes" in capsys.readouterr().err
    assert scaling("--predict", "--nodes", "1") == 78
    assert "name a profile" in capsys.readouterr().err


def test_a_folder_that_is_no_study(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "nowhere"]) == 78
    assert "nowhere is not the folder of a scaling study (no study.json)" in capsys.readouterr().err
    (place / "half").mkdir()
    (place / "half" / "study.json").write_text("{")
    assert main(["report", "half"]) == 78
    assert "half/study.json: not whole" in capsys.readouterr().err


def test_dry_run_answers_in_a_second_without_torch(place: Path) -> None:
    code = (
        "import sys; from hrdc_hpc.scaling.__main__ import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'scipy', 'matplotlib', 'nvidia.dali', 'sklearn'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    environ = os.environ | {"PYTHONPATH": str(Path(hrdc_hpc.__file__).parents[1])}
    command = [sys.executable, "-c", code, "--cfg", "small.yaml", "--dry-run", "--nodes", "1,2,4", "--mode", "weak"]
    work = []
    for _ in range(3):
        used = _cpu_of_children()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
        work.append(_cpu_of_children() - used)
        assert done.returncode == 0, done.stderr
    assert statistics.median(work) < 1  # of the wait, which others on the machine lengthen, test_launch.py takes care


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
