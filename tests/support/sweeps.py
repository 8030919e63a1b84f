"""What tests of sweeps share: six elements, ended ones, and what the make-believe SLURM was given."""

from __future__ import annotations

import re
from pathlib import Path

from hrdc_hpc.record.folder import RunFolder

from launching import SUMMARY

SWEEP = ("--sweep", "method=hrdc,ce", "seed=0,1,2")
NAMES = [f"method-{method}_seed-{seed}" for method in ("hrdc", "ce") for seed in (0, 1, 2)]


def finish(run: Path, share: float = 0.5) -> None:
    accuracy = {"fused": {"overall": share, "balanced": share, "many": 0.75, "medium": share, "few": None}}
    RunFolder(run).write_summary(SUMMARY | {"accuracy": accuracy})


def elements_given(slurm: Path) -> list[str]:
    """Elements of the array that sbatch was given, by index."""
    text = (slurm / "given.sbatch").read_text()
    links = re.search(r"--output='?(.*)/%a/logs/%A_%a_0_log.out", text.replace("'\"'\"'", "'"))
    assert links
    count = re.search(r"--array=0-(\d+)%", text)
    assert count
    return [(Path(links[1]) / str(index)).resolve().name for index in range(int(count[1]) + 1)]


def queue(slurm: Path, *lines: str) -> None:
    (slurm / "queue").write_text("".join(f"{line}\n" for line in lines))
