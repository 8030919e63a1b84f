"""A run folder, and another process that holds its lease."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hrdc_hpc.record.folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", config_text="", manifest={})


_HOLD = """
import sys, time
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease
Lease.acquire(RunFolder(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other(run: RunFolder):
    """Another process that holds the lease."""
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(run.path)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()
