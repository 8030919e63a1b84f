"""The command: what it shows, and what it tells runs to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from hrdc_hpc import status
from hrdc_hpc.cluster.jobs import Job, note_job
from hrdc_hpc.cluster.overview import Overview
from hrdc_hpc.cluster.results import print_result
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease
from hrdc_hpc.record.metrics import MetricsWriter

from attempts import add_attempt, empty_run
from launching import SUMMARY
from past import FakeSlurm


@pytest.fixture
def place(tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with runs/: one finished, one running, one failed; a sweep with two that wait."""
    out = tmp_path / "runs"
    add_attempt(empty_run(out, "done"), job="5", farewell="finished", steps=5)
    RunFolder(out / "done").write_summary(SUMMARY)
    add_attempt(empty_run(out, "at_work"), job="7", restart=0, steps=5, saved=4)
    add_attempt(out / "at_work", job="7", restart=1, resumed=4, steps=5)
    MetricsWriter(RunFolder(out / "at_work"), 1).write("phase", 9, name="train", event="begin")
    add_attempt(empty_run(out, "wrong"), job="6", end=(78, "ValueError: [bold]no such file", None))
    for n in (0, 1):
        note_job(empty_run(out / "sweep", f"s{n}"), Job("slurm", f"8_{n}", time.time()))
    for name, job in (("done", "5"), ("at_work", "7"), ("wrong", "6")):
        note_job(out / name, Job("slurm", job, time.time()))
    slurm.queue(
        f"7|RUNNING|{int(time.time()) - 9}|100|n[1-2]|None",
        "8_0|PENDING|N/A|100||JobArrayTaskLimit", "8_1|PENDING|N/A|100||JobArrayTaskLimit",
    )  # fmt: skip
    Lease.acquire(RunFolder(out / "at_work"), {"cluster": "slurm", "job_id": "7", "restart_count": 1})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "180")
    return out


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Rows of the table by the run's name."""
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}


def test_all_runs_are_shown_with_a_row_each(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([]) == 0
    rows = lines(capsys)
    assert rows.keys() == {"run", "done", "at_work", "wrong", "sweep/s0", "sweep/s1"}
    assert "finished" in rows["done"]
    assert "training" in rows["at_work"]
    assert "node lost" in rows["at_work"]
    assert "failed" in rows["wrong"]
    assert "ValueError: [bold]no such" in rows["wrong"]
    assert "8_1" in rows["sweep/s1"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["sweep"], {"s0", "s1"}),
        (["runs/sweep/s*"], {"s0", "s1"}),
        (["*o*"], {"done", "at_work", "wrong"}),
        (["runs/done", "wrong", "runs/done"], {"done", "wrong"}),
    ],
)
def test_runs_sweeps_and_patterns(
    place: Path, words: list[str], names: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.main(words) == 0
    assert lines(capsys).keys() == {"run", *names}


def test_a_run_that_is_not_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main(["wrogn"]) == 78
    assert capsys.readouterr().err == "status: wrogn: no run there, nor in runs. Did you mean wrong?\n"


def test_a_run_behind_links_is_shown_once(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "sweep" / "arrays" / "1").mkdir(parents=True)
    (place / "sweep" / "arrays" / "1" / "0").symlink_to(place / "sweep" / "s0")
    add_attempt(empty_run(tmp_path / "scratch", "elsewhere"), job="99")
    (place / "away").symlink_to(tmp_path / "scratch" / "elsewhere")
    assert status.main([]) == 0
    assert lines(capsys).keys() == {"run", "done", "at_work", "wrong", "away", "sweep/s0", "sweep/s1"}


@pytest.mark.parametrize("width", [60, 80, 140])
def test_no_line_is_wider_than_the_terminal(
    place: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    status.main([])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert "training" in out
    assert "failed" in out


def test_the_page_of_a_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main(["at_work"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "state running: training" in out
    assert "node lost: no farewell" in out
    assert "0-5 4 1 n[1-2]" in out  # trained, saved, in vain
    assert f"cancel python -m hrdc_hpc.status cancel {place / 'at_work'}" in out
    assert "1 step trained twice" in out


def test_json_has_the_documented_keys(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main(["--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == {"time", "slurm", "runs"}
    assert told["slurm"] == "asked"
    assert len(told["runs"]) == 5
    assert all(run.keys() == {field.name for field in fields(Overview)} for run in told["runs"])
    assert status.main(["at_work", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert [attempt["cause"] for attempt in run["attempts_list"]] == ["node lost", "running"]
    assert sum(run["goodput"]["share"].values()) == pytest.approx(1)
    assert run["goodput"]["repeated_steps"] == 1


def test_that_slurm_was_not_asked_is_said_once(
    place: Path, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.down()
    assert status.main([]) == 0
    out = capsys.readouterr().out
    assert out.count("SLURM not asked: slurm_load_jobs error: Unable to contact slurm controller\n") == 1
    assert "training" in out  # the lease says so


def test_watching_without_a_terminal_tells_changes_only(place: Path) -> None:
    code = "from hrdc_hpc import status; status._WATCH_S = 0.2; status.main(['--watch'])"
    command = [sys.executable, "-c", code]
    environ = os.environ | {"PYTHONPATH": str(Path(status.__file__).parents[1])}
    with subprocess.Popen(command, cwd=place.parent, env=environ, stdout=subprocess.PIPE, text=True) as watching:
        try:
            assert watching.stdout is not None
            told = {watching.stdout.readline().partition(":")[0] for _ in range(5)}
            assert told == {"done", "at_work", "wrong", "sweep/s0", "sweep/s1"}
            add_attempt(place / "wrong", job="6", restart=1, steps=1, end=(1, "OSError: disk", None))
            assert watching.stdout.readline() == "wrong: failed  step 1  loss 1.000  OSError: disk\n"
        finally:
            watching.kill()


# telling a run what to do


def test_cancel(place: Path, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main(["cancel", "at_work", "sweep/s1"]) == 0
    assert sorted(slurm.calls("cancelled")) == ["7", "8_1"]
    out = capsys.readouterr().out
    assert "at_work: job 7 cancelled: it saves first, ends, and is not requeued; the same launch command goes on" in out
    assert "s1: job 8_1 cancelled while waiting: nothing was lost" in out
    slurm.queue()
    assert status.main(["s1", "--json", "--out-dir", "runs/sweep"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert (row["state"], row["word"]) == ("stopped", "cancelled while it waited")


def test_what_is_over_is_not_cancelled_and_does_not_spare_the_others(
    place: Path, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.main(["cancel", "done", "wrong", "at_work"]) == 78
    assert slurm.calls("cancelled") == ["7"]
    err = capsys.readouterr().err
    assert "done is finished: there is nothing to be cancelled" in err
    assert "wrong is failed: ValueError: [bold]no such file" in err


def test_switch_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main(["save", "at_work"]) == 0
    assert (place / "at_work" / "save").exists()
    assert status.main(["stop", "at_work"]) == 0
    assert (place / "at_work" / "stop").exists()
    assert "saves at the next step and ends" in capsys.readouterr().out
    for command, run in (("stop", "sweep/s0"), ("save", "sweep/s0"), ("stop", "wrong"), ("save", "done")):
        assert status.main([command, run]) == 78
        assert not (place / run / command).exists()


def test_a_run_that_is_called_like_a_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty_run(place, "logs")
    with pytest.raises(SystemExit) as left:
        status.main(["logs"])
    assert left.value.code == 78
    assert status.main(["runs/logs"]) == 0
    assert "prepared" in capsys.readouterr().out
    assert status.main(["done", "logs"]) == 0  # only the first word is a command
    assert lines(capsys).keys() == {"run", "done", "logs"}


def test_logs(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (place / "at_work" / "logs" / "7_0_log.out").write_text("".join(f"line {n}\n" for n in range(100)))
    assert status.main(["logs", "at_work", "--lines", "2"]) == 0
    assert capfd.readouterr().out == "line 98\nline 99\n"
    assert status.main(["logs", "sweep"]) == 78
    assert "stands for 2 runs" in capfd.readouterr().err


def test_logs_of_an_element_by_its_index(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By the link that a launch makes in the sweep's folder for each element of an array."""
    (place / "sweep" / "arrays" / "1").mkdir(parents=True)
    for index in (0, 1):
        (place / "sweep" / "arrays" / "1" / str(index)).symlink_to(place / "sweep" / f"s{index}")
        (place / "sweep" / f"s{index}" / "logs" / f"8_{index}_0_log.out").write_text(f"element {index}\n")
    assert status.main(["logs", "sweep/arrays/1/1"]) == 0
    assert capfd.readouterr().out == "element 1\n"


def test_a_finished_run_ends_with_its_goodput(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_result(SUMMARY, place / "done")
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last[0].startswith("goodput: ")
    assert last[1] == f"run folder: {place / 'done'}"


def test_it_is_quick_and_needs_no_torch(place: Path) -> None:
    code = "import sys; from hrdc_hpc import status; status.main([]); sys.exit('torch' in sys.modules)"
    environ = os.environ | {"PYTHONPATH": str(Path(status.__file__).parents[1])}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=place.parent, env=environ, check=True, stdout=subprocess.DEVNULL)
    assert time.perf_counter() - start < 5, "the machine may be busy; by itself it takes 0.5 s"
