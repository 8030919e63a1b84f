"""Places to launch from."""

from __future__ import annotations

from pathlib import Path

import pytest

from launching import CONFIG, SBATCH, SCONTROL, SQUEUE, launch


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with a config, whose name is hostile, on a machine without SLURM."""
    folder = tmp_path / 'it\'s "a" $HOME folder'
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", "/nowhere")
    (folder / "small.yaml").write_text(CONFIG)
    return folder


@pytest.fixture
def slurm(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a make-believe SLURM that is on the PATH: what sbatch was given, what squeue is to say."""
    folder = place.parent / "slurm"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE", str(folder))
    return folder


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
