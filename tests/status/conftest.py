"""What tests of the status share."""

from __future__ import annotations

from pathlib import Path

import pytest

from past import FakeSlurm


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A SLURM that says what a test wants; knows no job at first."""
    return FakeSlurm(tmp_path / "slurm", monkeypatch)
