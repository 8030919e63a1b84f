"""Runs the drill as a user does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SHORT = ("optim.epochs=12", "optim.warmup_epochs=1", "cluster.time_min=5")


def drill(out: Path, digits: Path, *more: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """The record of a drill that must have ended well."""
    command = [
        sys.executable, "-m", "hrdc_hpc.drill", "--cfg", "digits_lt.yaml", "--out-dir", out, "--record",
        out.parent / "record.json", f"data.dataset.root={digits}", *SHORT, *more,
    ]  # fmt: skip
    done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads((out.parent / "record.json").read_text())
    assert done.stdout.splitlines()[-1] == told["verdict"]
    return told
