"""`python -m hrdc_hpc.evaluate`: the same figures as in training, and outputs from which they can be had again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hrdc_hpc import evaluate
from hrdc_hpc.engine import checkpoint
from hrdc_hpc.record.folder import RunFolder

from ranks import Ranks
from runs import make_run

pytestmark = [pytest.mark.dali, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    run = make_run(tmp_path_factory.mktemp("evaluate"), digits, "run")
    Ranks(run, 2).finish()
    return run


@pytest.mark.parametrize("ema", [False, True])
def test_figures_are_those_of_the_training_run(ema: bool, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), "compute.threads=1", *(["--ema"] if ema else [])]) == 0
    summary = RunFolder(run).summary()
    assert summary
    out = run / "report" / ("step-36-ema" if ema else "step-36")
    assert json.loads((out / "accuracy.json").read_text()) == summary["accuracy_ema" if ema else "accuracy"]
    printed = capsys.readouterr().out
    for name in ("plain", "reweighted", "fused_average", "fused_tail", "fused_head"):
        assert name in printed
    assert str(out) in printed


def test_outputs_suffice_to_compute_the_accuracy(run: Path) -> None:
    assert evaluate.main([str(run), "compute.threads=1"]) == 0
    out = run / "report" / "step-36"
    labels = np.load(out / "labels.npy")
    assert np.bincount(labels).tolist() == [40] * 10
    assert np.load(out / "valid.npy").all()
    assert np.load(out / "features.npy").shape[0] == 400
    accuracy = json.loads((out / "accuracy.json").read_text())
    for head in ("plain", "reweighted"):
        right = np.load(out / f"logits_{head}.npy").argmax(1) == labels
        assert right.mean() == pytest.approx(accuracy[head]["overall"])
        assert right[labels >= 5].mean() == pytest.approx(accuracy[head]["few"])


def test_only_outputs_are_replaced(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("three years")
    assert evaluate.main([str(run), "--out", str(tmp_path)]) == 78
    assert "holds no outputs of an evaluation" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    for _ in range(2):
        assert evaluate.main([str(run), "--out", str(tmp_path / "new"), "compute.threads=1"]) == 0
    assert not list(tmp_path.glob(".tmp*"))


def test_what_the_run_did_not_learn_is_not_evaluated(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), "data.image_size=16", "method=ce"]) == 78
    said = capsys.readouterr().err
    assert "data.image_size: 24 in the checkpoint, 16 now" in said
    assert "method" in said


def test_mistakes_are_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(tmp_path)]) == 78
    assert "not a run folder" in capsys.readouterr().err
    assert evaluate.main([str(run), "--step", "7"]) == 78
    assert "no whole checkpoint of step 7; there: step-" in capsys.readouterr().err
    assert checkpoint.list_checkpoints(run / "checkpoints")
