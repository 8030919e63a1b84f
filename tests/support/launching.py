"""What tests of the command line share: a small config, a make-believe SLURM, launching in this process."""

from __future__ import annotations

from pathlib import Path

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


def launch(*arguments: str) -> int:
    return main(["--cfg", "small.yaml", *arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
