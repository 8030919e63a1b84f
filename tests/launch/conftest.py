"""Places to launch from."""

from __future__ import annotations

from pathlib import Path

import pytest

from launching import hostile_place, launch, make_believe_slurm


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with a config, whose name is hostile, on a machine without SLURM."""
    return hostile_place(tmp_path, monkeypatch)


@pytest.fixture
def slurm(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a make-believe SLURM that is on the PATH: what sbatch was given, what squeue is to say."""
    return make_believe_slurm(place, monkeypatch)


@pytest.fixture
def started(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run whose job has saved something, and has left the queue without finishing."""
    assert launch() == 0
    (slurm / "given.sbatch").unlink()
    capsys.readouterr()
    run = place / "runs" / "small"
    (run / "metrics" / "attempt-1.jsonl").touch()
    (run / "checkpoints" / "step-5").mkdir()
    return run
