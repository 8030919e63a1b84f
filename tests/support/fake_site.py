"""A source tree with a small fake in place of training, and a working directory to launch it from."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import hrdc_hpc
from hrdc_hpc.cluster.ends import log_path
from hrdc_hpc.cluster.jobs import last_job

PACKAGE = Path(hrdc_hpc.__file__).parent
CONFIG = """
name: small
data: {dataset: digits_lt, image_size: 24}
model: {backbone: tiny}
method: hrdc
optim: {epochs: 2, global_batch: 32}
cluster: {ranks_per_node: 2, time_min: 5}
"""


class Site:
    """A source tree with the fake training, and a working directory with a hostile name."""

    def __init__(self, tmp_path: Path) -> None:
        self.source = tmp_path / "source"
        self.cwd = tmp_path / 'it\'s a "place"'
        self.run = self.cwd / "runs" / "small"
        self.trainer = self.source / "hrdc_hpc" / "engine" / "trainer.py"
        shutil.copytree(PACKAGE, self.source / "hrdc_hpc", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(PACKAGE.parent / "jobs", self.source / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(Path(__file__).with_name("fake_train.py"), self.trainer)
        (self.cwd / "runs").mkdir(parents=True)
        (self.cwd / "small.yaml").write_text(CONFIG)
        # what lies in the working directory must not be imported by the job
        (self.cwd / "hrdc_hpc").symlink_to(self.source / "hrdc_hpc")
        self.started: list[subprocess.Popen[str]] = []

    def behave(self, how: str) -> None:
        (self.cwd / "runs" / "behave").write_text(how)

    def start(self, *arguments: str, command: tuple[str, ...] = ("-m", "hrdc_hpc.launch")) -> subprocess.Popen[str]:
        ours = {"PYTHONPATH": str(self.source), "PYTHONSAFEPATH": "1", "MASTER_ADDR": "elsewhere", "RANK": "7"}
        process = subprocess.Popen(
            [sys.executable, *command, *arguments], cwd=self.cwd, text=True, env=os.environ | ours,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.started.append(process)
        return process

    def launch(self, *arguments: str) -> subprocess.Popen[str]:
        return self.start("--cfg", "small.yaml", "--cluster", "local", *arguments)

    def saw(self, rank: int) -> dict[str, Any]:
        seen: dict[str, Any] = json.loads((self.run / f"saw-{rank}.json").read_text())
        return seen

    def wait_for_ranks(self) -> int:
        """Wait until both fake ranks wait for each other; process id of their controller."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            job = last_job(self.run) if self.run.exists() else None
            if job and all("waiting" in _text(log_path(self.run, job.job_id, rank)) for rank in (0, 1)):
                return int(job.job_id)
            time.sleep(0.05)
        pytest.fail("the ranks did not start")

    def end(self, *runs: Path) -> None:
        """Kill what was started."""
        for process in self.started:
            process.kill()
            process.communicate()
        for run in runs or (self.run,):
            job = last_job(run) if run.exists() else None
            if job:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(job.job_id), signal.SIGKILL)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
