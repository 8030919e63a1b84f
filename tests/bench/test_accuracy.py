"""What the records of accuracy and agreement compute from runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import accuracy, agreement
from hrdc_hpc.record.attempts import begin_attempt
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import MetricsWriter


def finished(parent: Path, name: str, seed: int, primary: str, overall: dict[str, float]) -> Path:
    text = (
        f"name: {name}\nseed: {seed}\ndata: {{dataset: digits_lt}}\nmodel: {{backbone: tiny}}\nmethod: ce\n"
        "optim: {epochs: 1, global_batch: 8}\n"
    )
    folder = RunFolder.create(parent / name, config_text=text, manifest={})
    writer = MetricsWriter(folder, begin_attempt(folder, {}).number)
    writer.write("train", 1, loss=1.0)
    writer.close()
    row = {p: {"overall": o, "balanced": o, "many": 0.9, "medium": 0.8, "few": o / 2} for p, o in overall.items()}
    folder.write_summary({"step": 1, "epoch": 1, "primary": primary, "accuracy": row, "accuracy_ema": None})
    return folder.path


def test_means_over_seeds_and_pairs_seed_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [finished(tmp_path, f"hrdc-s{s}", s, "tail", {"plain": 0.5, "tail": 0.6 + s / 100}) for s in (0, 1)]
    runs += [finished(tmp_path, f"ce-s{s}", s, "plain", {"plain": 0.5 + s / 50}) for s in (0, 1)]
    out = tmp_path / "records"
    assert accuracy.main(["try", *map(str, runs), "--title", "T", "--note", "A note.", "--out", str(out)]) == 0
    page = next(out.glob("try_*.md")).read_text()
    assert "hrdc, tail *" in page
    assert "39.50 (40.00, 39.00)" in page  # errors: 100 * (1 - .6), 100 * (1 - .61)
    assert "Accuracy of hrdc over ce, seed by seed: overall +9.50 points (standard deviation 0.71)" in page
    assert "A note." in page
    assert str(tmp_path) not in page
    unfinished = RunFolder.create(tmp_path / "x", config_text="", manifest={}).path
    assert accuracy.main(["try", str(unfinished), "--title", "T"]) == 78
    assert "not a finished run" in capsys.readouterr().err


def test_agreement_is_a_share_of_the_spread() -> None:
    eager = [[1.0] * 20, [2.0] * 20, [3.0] * 20]
    told = agreement.compared([1.5] * 10 + [4.0] * 10, eager)
    assert told == {"largest": 1.5, "mean": pytest.approx(0.875), "within": 1, "windows": 2}
