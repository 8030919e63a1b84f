"""The folder of a run: where everything lies, and whether it is new, started or finished. Torch-free."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hrdc_hpc.record.files import fsync_folder, temporary_beside, write_json_durably, write_text_durably

State = Literal["new", "started", "finished"]


class RunFolder:
    """Paths in the run folder `path`; making the object touches nothing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.manifest = self.path / "manifest.json"
        self.code = self.path / "code"
        self.attempts = self.path / "attempts.jsonl"
        self.logs = self.path / "logs"
        self.metrics = self.path / "metrics"
        self.lease = self.path / "lease"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.report = self.path / "report"
        self.profile = self.path / "profile"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, config_text: str, manifest: Mapping[str, Any]) -> RunFolder:
        """Make a run folder: whole or not at all, and by one of those who try at once.

        Raises FileExistsError if anything is at `path`, and for the other creators.
        """
        folder = cls(path)
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(folder.path):
            raise FileExistsError(_there(folder.path))
        aside = cls(temporary_beside(folder.path))
        try:
            for part in (aside.path, aside.logs, aside.metrics, aside.checkpoints, aside.report):
                part.mkdir()
            write_text_durably(aside.config, config_text)
            write_json_durably(aside.manifest, dict(manifest))
            _rename_new(aside.path, folder.path)
        except BaseException:
            shutil.rmtree(aside.path, ignore_errors=True)
            raise
        fsync_folder(folder.path.parent)
        return folder

    def state(self) -> State:
        """'finished' once the summary is written, 'started' once an attempt began, else 'new'."""
        if self._summary.is_file():
            return "finished"
        return "started" if any(self.metrics.glob("attempt-*.jsonl")) else "new"

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write report/summary.json, whole; from then on the run is finished."""
        self.report.mkdir(exist_ok=True)
        fsync_folder(self.path)
        write_json_durably(self._summary, dict(summary))

    def summary(self) -> dict[str, Any] | None:
        """Return the summary of a finished run."""
        try:
            value = json.loads(self._summary.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        assert isinstance(value, dict)
        return value

    @property
    def _summary(self) -> Path:
        return self.report / "summary.json"


def _rename_new(source: Path, target: Path) -> None:
    """Rename a folder to a name that must be free: a folder with something in it is not replaced by rename(2)."""
    try:
        source.rename(target)
    except OSError as error:
        if os.path.lexists(target):
            raise FileExistsError(_there(target)) from error
        raise


def _there(path: Path) -> str:
    return f"{path} is already there; give the new run another name"
