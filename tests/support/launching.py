"""What tests of the command line share: a small config, a make-believe SLURM, launching in this process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import hrdc_hpc
from hrdc_hpc.launch import main

CONFIG = """
name: small
data: {dataset: digits_lt, image_size: 24}
model: {backbone: tiny}
method: hrdc
optim: {epochs: 2, global_batch: 32}
"""
SBATCH = """#!/bin/bash
echo call >> "$FAKE/calls"; calls=$(wc -l < "$FAKE/calls")
cp "$1" "$FAKE/given.sbatch"; cp "$1" "$FAKE/given-$calls.sbatch"; echo "$@" > "$FAKE/arguments"; env > "$FAKE/environ"
[ -e "$FAKE/refusal" ] && { cat "$FAKE/refusal" >&2; exit 1; }
for _ in $(seq 400); do [ -e "$FAKE/wait" ] || break; sleep 0.05; done
[ -e "$FAKE/counts" ] || calls=1
echo "Submitted batch job $((4241 + calls))"
"""
SQUEUE = """#!/bin/bash
cat "$FAKE/queue" 2>/dev/null || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
"""
SCONTROL = """#!/bin/bash
echo "slurm_load_ctl_conf error: Unable to contact slurm controller (connect failure)" >&2; exit 1
"""
"""A real one may be on the PATH behind it, and would look for its controller for long."""
SUMMARY = {
    "step": 8, "epoch": 2, "primary": "fused", "accuracy_ema": None,
    "accuracy": {"fused": {"overall": 0.5, "many": 0.75, "medium": 0.5, "few": 0.25}},
}  # fmt: skip


def hostile_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a working directory with a config, whose name is hostile, on a machine without SLURM; the directory."""
    folder = tmp_path / 'it\'s "a" $HOME folder'
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", "/nowhere")
    (folder / "small.yaml").write_text(CONFIG)
    return folder


def make_believe_slurm(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a make-believe SLURM on the PATH; its folder: what sbatch was given, what squeue is to say."""
    folder = place.parent / "slurm"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE", str(folder))
    return folder


def launch(*arguments: str) -> int:
    return main(["--cfg", "small.yaml", *arguments])


@contextmanager
def submitting(slurm: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A launch whose sbatch waits for the file slurm/wait to vanish, with a process group of its own."""
    (slurm / "wait").touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "hrdc_hpc.launch", "--cfg", "small.yaml", *arguments], text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": str(Path(hrdc_hpc.__file__).parents[1])},
    )  # fmt: skip
    end = time.monotonic() + 30
    while not (slurm / "calls").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "sbatch was not called"
        time.sleep(0.02)
    yield process
    (slurm / "wait").unlink(missing_ok=True)
    process.kill()
    process.communicate()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
