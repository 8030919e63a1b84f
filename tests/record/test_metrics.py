from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from hrdc_hpc.record import files
from hrdc_hpc.record.attempts import NO_FAREWELL, begin_attempt, read_attempts
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import MetricsWriter, metrics_file, read_metrics, read_raw


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", config_text="", manifest={})


def write_steps(run: RunFolder, attempt: int, steps: range, loss: float, end: str | None = None) -> None:
    writer = MetricsWriter(run, attempt)
    for step in steps:
        writer.write("train", step, loss=loss)
    if end is not None:
        writer.write("end", steps[-1], reason=end)
    writer.close()


def test_one_record_per_step_of_the_attempt_that_last_reached_it(run: RunFolder) -> None:
    write_steps(run, 0, range(1, 9), 1.0)
    write_steps(run, 1, range(5, 7), 2.0)  # went back to 4, came to 6
    write_steps(run, 10, range(4, 6), 3.0)  # attempt 10 comes after 2, not before it
    got = [(r["step"], r["loss"], r["attempt"]) for r in read_metrics(run)]
    expected = [
        (1, 1.0, 0),
        (2, 1.0, 0),
        (3, 1.0, 0),
        (4, 3.0, 10),
        (5, 3.0, 10),
        (6, 2.0, 1),
        (7, 1.0, 0),
        (8, 1.0, 0),
    ]
    assert got == expected
    assert len(read_raw(run.path)) == 12  # nothing is lost


def test_kinds_of_one_step_stand_in_the_order_written_and_marks_only_in_raw(run: RunFolder) -> None:
    writer = MetricsWriter(run, 0)
    writer.write("phase", 2, name="train", event="begin")
    for kind in ("train", "eval", "eval_ema", "checkpoint"):
        writer.write(kind, 2, value=kind)
    writer.write("train", 1)
    writer.write("end", 2, reason="finished")
    writer.sync()
    writer.close()
    assert [(r["kind"], r["step"]) for r in read_metrics(run)] == [
        ("train", 1), ("train", 2), ("eval", 2), ("eval_ema", 2), ("checkpoint", 2),
    ]  # fmt: skip
    assert [r["kind"] for r in read_raw(run)][::6] == ["phase", "end"]
    assert all(isinstance(r["time"], float) for r in read_raw(run))


def test_numbers_that_are_not_finite_become_null(run: RunFolder) -> None:
    writer = MetricsWriter(run, 0)
    writer.write("train", 1, loss=float("nan"), parts={"a": float("inf"), "b": [1.0, -float("inf")]}, tiny=5e-324)
    writer.close()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    record = json.loads(metrics_file(run, 0).read_text(), parse_constant=refuse)
    assert (record["loss"], record["parts"], record["tiny"]) == (None, {"a": None, "b": [1.0, None]}, 5e-324)


def test_what_is_not_plain_is_refused_and_nothing_is_written(run: RunFolder) -> None:
    writer = MetricsWriter(run, 0)
    with pytest.raises(TypeError, match="not JSON serializable"):
        writer.write("train", 1, loss=object())
    writer.write("train", 1, loss=1.0)
    writer.close()
    assert [r["loss"] for r in read_metrics(run)] == [1.0]


def test_every_torn_last_line_is_left_out(run: RunFolder) -> None:
    write_steps(run, 0, range(1, 4), 1.0)
    file = metrics_file(run, 0)
    content = file.read_bytes()
    last = content.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(content)):
        file.write_bytes(content[:cut])
        whole = cut == len(content) - 1  # only the newline is missing
        assert [r["step"] for r in read_metrics(run)] == [1, 2, 3][: 3 if whole else 2]
    file.write_bytes(content[: last + 7])
    write_steps(run, 0, range(3, 5), 2.0)
    assert [(r["step"], r["loss"]) for r in read_metrics(run)] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_disk_full_in_the_middle_of_a_line(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = MetricsWriter(run, 0)
    writer.write("train", 1)
    real, room = os.write, [10]

    def almost_full(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written, room[0] = real(descriptor, data[: room[0]]), 0
        return written

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", almost_full)
        with pytest.raises(OSError, match="No space left"):
            writer.write("train", 2)
    writer.write("train", 3)
    writer.close()
    assert [r["step"] for r in read_metrics(run)] == [1, 3]


def test_threads_share_a_writer(run: RunFolder) -> None:
    writer = MetricsWriter(run, 0)
    threads = [
        threading.Thread(target=lambda k=k: [writer.write(f"kind{k}", s, text="x" * 500) for s in range(200)])
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert len(read_metrics(run)) == 800


def test_attempts_are_numbered_and_say_how_the_one_before_ended(run: RunFolder) -> None:
    first = begin_attempt(run, {"job_id": "7", "restart_count": 0})
    assert (first.number, first.previous_end) == (0, None)
    write_steps(run, 0, range(1, 3), 1.0, end="SIGTERM")
    second = begin_attempt(run, {"job_id": "7", "restart_count": 1})
    assert (second.number, second.previous_end) == (1, "SIGTERM")
    write_steps(run, 1, range(1, 3), 1.0)
    third = begin_attempt(run, {})
    assert (third.number, third.previous_end) == (2, NO_FAREWELL)
    told = read_attempts(run)
    assert [(a["attempt"], a["previous_end"]) for a in told] == [(0, None), (1, "SIGTERM"), (2, NO_FAREWELL)]
    assert told[1]["info"] == {"job_id": "7", "restart_count": 1}
    assert told[0]["pid"] == os.getpid()
    assert {"host", "time"} <= told[0].keys()


def test_attempts_survive_kills_at_every_point_of_begin(run: RunFolder) -> None:
    begin_attempt(run, {"n": 0})
    metrics_file(run, 1).touch()  # killed before its line
    begin_attempt(run, {"n": 2})
    content = run.attempts.read_bytes()
    for cut in range(content.rindex(b"\n", 0, -1) + 2, len(content)):
        run.attempts.write_bytes(content[:cut])  # killed within its line
        number = begin_attempt(run, {"n": "last"}).number
        told = read_attempts(run)
        assert told[0]["info"] == {"n": 0}
        assert told[1] == {"attempt": 1}
        assert told[-1]["info"] == {"n": "last"}
        assert [a["attempt"] for a in told] == list(range(number + 1))


def test_two_that_begin_at_once_get_two_numbers(run: RunFolder) -> None:
    numbers: list[int] = []
    ready = threading.Barrier(6)

    def begin() -> None:
        ready.wait()
        numbers.append(begin_attempt(run, {}).number)

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == [0, 1, 2, 3, 4, 5]
    assert len(read_attempts(run)) == 6
