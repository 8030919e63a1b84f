"""What a follower reads and shows, from files as a run writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hrdc_hpc.cluster import follow as following
from hrdc_hpc.cluster.ends import log_path, note_end, read_ends
from hrdc_hpc.cluster.follow import Lines, MetricsTail, Progressed, duration, follow
from hrdc_hpc.cluster.jobs import Job, JobState
from hrdc_hpc.cluster.results import TAIL_LINES, failure, print_result, root_cause
from hrdc_hpc.cluster.scheduler import SchedulerError
from hrdc_hpc.record.folder import RunFolder

SUMMARY: dict[str, Any] = {
    "step": 80, "epoch": 4, "primary": "fused",
    "accuracy": {
        "head": {"overall": 0.5, "balanced": 0.5, "many": 0.9, "medium": 0.5, "few": None},
        "fused": {"overall": 0.71249, "balanced": 0.71249, "many": 0.8, "medium": 0.7, "few": None},
    },
    "accuracy_ema": {"fused": {"overall": 1.0, "balanced": 1.0, "many": 1.0, "medium": 1.0, "few": None}},
}  # fmt: skip
START = {
    "kind": "start", "step": 0, "parameters": 29816, "device": "cuda:0", "precision": "bf16", "compiled": True,
    "cuda_graph": False, "world_size": 2, "steps_per_epoch": 20,
}  # fmt: skip
TRAIN = {"kind": "train", "attempt": 1, "epoch": 1, "loss": 2.0, "images_per_s": 100.0, "eta_s": 64.0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return RunFolder.create(tmp_path / "a run", config_text="x: 1\n", manifest={}).path


def write(run: Path, attempt: int, *records: Mapping[str, Any], end: str = "\n") -> None:
    with (run / "metrics" / f"attempt-{attempt}.jsonl").open("a") as file:
        file.write("\n".join(json.dumps({"attempt": attempt, **record}) for record in records) + end)


def test_the_tail_gives_each_whole_line_once_and_attempts_in_order(run: Path) -> None:
    tail = MetricsTail(run / "metrics")
    assert list(tail.new()) == []
    write(run, 10, {"n": 3})
    write(run, 9, {"n": 1}, {"n": 2}, end="")  # the last line is still being written
    assert [record["n"] for record in tail.new()] == [1, 3]
    write(run, 9, {}, end="")
    assert list(tail.new()) == []
    with (run / "metrics" / "attempt-9.jsonl").open("a") as file:
        file.write("\n")
    assert list(tail.new()) == []  # '{"n": 2}{}' was torn by a kill, and is left out
    write(run, 10, {"n": 4})
    assert [record["n"] for record in tail.new()] == [4]


@pytest.mark.parametrize(("share", "told"), [(0.35, True), (0.01, False)])
def test_progress_tells_of_a_loader_that_is_too_slow(share: float, told: bool) -> None:
    text = Progressed().after({**TRAIN, "step": 20, "data_wait": share}, global_batch=32).text()
    assert ("waits for data 35 % of the time" in text) is told


def test_progress_reckons_the_steps_from_the_time_to_finish() -> None:
    progress = Progressed().after({**TRAIN, "step": 20}, global_batch=32)
    assert progress.steps == 20 + 64 * 100 / 32
    for record in ({"kind": "checkpoint", "step": 16}, {"kind": "phase", "step": 99}):
        progress = progress.after({"attempt": 1, **record}, 32)
    assert progress.text() == "step 20/220  epoch 2  loss 2.0000  100 images/s  0:01:04 to go  saved at step 16"
    assert Progressed().after({"kind": "train", "attempt": 1, "step": 3, "epoch": 0}, 32).text() == "step 3  epoch 1"


def test_progress_of_a_measured_run() -> None:
    record = {"kind": "measure", "attempt": 1, "step": 40, "steps": 300, "images_per_s": 50.0, "eta_s": 99.0}
    assert Progressed().after(record, 32).text() == "step 40/300  50 images/s  0:01:39 to go"
    assert following._start({**START, "steps_per_epoch": None}).startswith("measures: 29,816 parameters, 2 ranks")


def test_a_new_attempt_shows_nothing_of_the_one_before_but_what_it_saved() -> None:
    first = Progressed().after({**TRAIN, "step": 20}, 32).after({"kind": "checkpoint", "attempt": 1, "step": 16}, 32)
    begun = first.after({"kind": "phase", "attempt": 2, "step": 0}, 32)
    assert (begun.step, begun.loss, begun.eta_s, begun.images_per_s) == (0, None, None, None)
    assert (begun.steps, begun.checkpoint) == (220, 16)
    assert begun.after({**TRAIN, "attempt": 2, "step": 17, "loss": 1.5}, 32).text().startswith("step 17/")


def test_duration() -> None:
    assert [duration(s) for s in (0, 61.4, 4210)] == ["0:00:00", "0:01:01", "1:10:10"]


def test_the_result_is_a_table_with_every_prediction(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_result(SUMMARY, run)
    out = capsys.readouterr().out
    rows = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for line in out.splitlines()
        if (cells := line.split("│")[1:-1])
    }
    assert rows["head"] == ["50.00", "90.00", "50.00", "-"]
    assert rows["fused *"] == ["71.25", "80.00", "70.00", "-"]
    assert rows["averaged weights: fused"] == ["100.00", "100.00", "100.00", "-"]
    assert out.splitlines()[-1] == f"run folder: {run}"


def test_files_that_were_left_out_are_told_under_the_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def under_the_table() -> list[str]:
        print_result(SUMMARY, run)
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]

    write(run, 1, {**TRAIN, "step": 20, "unread": 0})
    assert under_the_table() == []
    write(run, 1, {**TRAIN, "step": 30, "unread": 2}, {**TRAIN, "step": 40, "unread": 3})
    counts = {"kind": "left_out", "step": 0, "numbers": {"train": 4, "val": 0}, "files": {}}
    write(run, 2, counts, {**TRAIN, "attempt": 2, "step": 60, "unread": 1})
    (line,) = under_the_table()
    assert "4 files of the train split, 4 reads while training" in line
    assert "val" not in line


def end(code: int, time: float, rank: int | None = 0, start: int = 0) -> dict[str, Any]:
    return {"code": code, "time": time, "rank": rank, "restart_count": start}


def test_the_root_cause_is_the_kill_then_the_first_error_then_the_stop() -> None:
    killed, first, second, stop = end(-9, 3.0, 1), end(1, 1.0, 0), end(78, 2.0, 2), end(75, 4.0)
    assert root_cause([first, second, killed]) is killed
    assert root_cause([second, first]) is first
    assert root_cause([stop]) is stop
    assert root_cause([]) is None
    again = end(1, 9.0, 3, start=1)
    assert root_cause([first, killed, again]) is again  # only the last start counts


def test_failure_shows_the_failing_ranks_log(run: Path) -> None:
    note_end(run, job_id="7", rank=1, code=71, reason="RuntimeError: GPU lost")
    note_end(run, job_id="8", rank=0, code=1, reason="another job")
    log_path(run, "7", 1).write_text("".join(f"line {n}\n" for n in range(100)))
    text, code = failure(run, Job("slurm", "7"), "FAILED")
    assert code == 71
    lines = text.splitlines()
    assert "rank 1" in lines[0]
    assert "RuntimeError: GPU lost" in lines[0]
    assert str(log_path(run, "7", 1)) in lines[1]
    assert lines[2:] == [f"  line {n}" for n in range(100 - TAIL_LINES, 100)]


def test_an_error_of_the_users_is_its_sentence_without_the_log(run: Path) -> None:
    note_end(run, job_id="7", rank=1, code=78, reason="ValueError: no such folder")
    log_path(run, "7", 1).write_text("Traceback\n")
    text, code = failure(run, Job("slurm", "7"), "FAILED")
    assert code == 78
    assert "ValueError: no such folder" in text
    assert text.endswith(f"\nLog: {log_path(run, '7', 1)}")
    assert "Traceback" not in text


def test_ends_of_another_process_with_the_same_number_are_not_this_jobs(run: Path) -> None:
    note_end(run, job_id="7", rank=0, code=78, reason="an earlier run's")
    (old,) = read_ends(run, Job("slurm", "7", since=1e12))  # job ids do not come again, and clocks of nodes differ
    assert read_ends(run, Job("local", "7", since=old["time"])) == [old]
    assert read_ends(run, Job("local", "7", since=old["time"] + 1e-6)) == []


def test_failure_of_a_job_that_left_no_word(run: Path) -> None:
    write(run, 1, {"kind": "end", "step": 5, "reason": "SIGTERM"})
    text, code = failure(run, Job("slurm", "7"), "OUT_OF_MEMORY")
    assert code == 1
    assert "OUT_OF_MEMORY" in text
    assert "SIGTERM" in text


class Scripted:
    """A scheduler and a clock: each question gets the next answer, time passes only in sleep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
        self.now, self.answers = 1000.0, list(answers)
        monkeypatch.setattr(following.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(following.time, "sleep", self.sleep)
        monkeypatch.setattr(following, "job_state", self.ask)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def ask(self, _run: Path, _job: Job) -> JobState:
        answer = self.answers.pop(0)
        if callable(answer):
            answer = answer()
        if isinstance(answer, Exception):
            raise answer
        return JobState(*answer)


def test_follow_goes_on_across_a_requeue_and_a_silent_controller(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = {"kind": "eval", "step": 20, "epoch": 1, "primary": "fused", "accuracy": SUMMARY["accuracy"]}

    def first_attempt() -> tuple[str, str]:
        write(run, 1, START, {**TRAIN, "step": 20}, evaluation)
        return "running", "RUNNING"

    def second_attempt() -> tuple[str, str]:
        write(run, 2, evaluation, {**TRAIN, "step": 40})  # the evaluation again, after a rollback
        return "running", "RUNNING"

    def finish() -> tuple[str, str]:
        RunFolder(run).write_summary(SUMMARY)
        return "running", "RUNNING"

    script = Scripted(
        monkeypatch, ("queued", "PENDING (Priority)"), first_attempt, ("gone", "FAILED"),
        ("queued", "PENDING (BeginTime)"), SchedulerError("Unable to contact slurm controller"), second_attempt, finish,
    )  # fmt: skip
    assert follow(run, Job("slurm", "7"), 32, Lines()) == 0
    assert script.answers == []
    out = capsys.readouterr().out
    assert "job is PENDING (Priority)" in out
    assert "SLURM does not answer" in out
    assert out.count("evaluated at step 20: fused 71.2 % (many 80.0, medium 70.0, few -)\n") == 1
    assert "step 40/" in out
    assert "fused *" in out
    assert "trains: 29,816 parameters, 2 ranks, cuda:0, bf16, compiled\n" in out


def test_follow_ends_with_the_code_of_a_job_that_is_gone_for_good(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note_end(run, job_id="7", rank=0, code=78, reason="cancelled")
    Scripted(monkeypatch, ("running", "RUNNING"), ("gone", "CANCELLED"), ("gone", "CANCELLED"))
    assert follow(run, Job("slurm", "7"), 32, Lines()) == 78
    assert "cancelled (exit code 78; CANCELLED)" in capsys.readouterr().out


def test_a_stopped_run_says_how_to_go_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note_end(run, job_id="7", rank=0, code=75, reason="stopped by SIGTERM")
    Scripted(monkeypatch, ("gone", "ended"))
    assert follow(run, Job("local", "7"), 32, Lines()) == 75
    assert "the same command goes on from the last checkpoint" in capsys.readouterr().out


def test_the_bar_draws_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    bar = following.Bar()
    bar.show(Progressed(step=5, steps=10, epoch=1, loss=0.5), "running")
    bar.say("evaluated [x]")
    bar.close()
    out = capsys.readouterr().out
    assert "step 5/10  epoch 2  loss 0.5000" in out
    assert "evaluated [x]" in out
