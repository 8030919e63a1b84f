"""The benchmark of saving: what it measures adds up, and its record names no path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import save


def test_a_small_state_is_measured_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--backbone", "tiny", "--classes", "50", "--rounds", "2", "--disk", str(tmp_path)]
    assert save.main([*options, "--record", str(tmp_path / "records")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["records"]  # no checkpoint is left behind
    record, text = sorted((tmp_path / "records").iterdir())
    report = json.loads(record.read_text())
    seconds = report["seconds"]
    assert {len(values) for values in seconds.values()} == {3}
    assert all(0 < stall <= durable for stall, durable in zip(seconds["stall"], seconds["durable"], strict=True))
    printed = capsys.readouterr().out
    for row in save.rows(report):
        assert row[1] in text.read_text()
        assert row[1] in printed
    assert str(Path.cwd()) not in text.read_text() + record.read_text()


def test_the_state_is_that_of_the_large_run() -> None:
    state = save.make_state("resnet50", 8142, save.torch.device("meta"))
    statistics = sum(t.nbytes for name, t in state["network"].items() if "running" in name or "num_batches" in name)
    assert save.size(state) - statistics == 3 * 4 * 56_873_948  # 683 MB
