"""A scaling study on a real SLURM, to its report: two sizes that can be had and one that cannot; the same again."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.scaling import collect, study

from slurm_cluster import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.dali, pytest.mark.slow, pytest.mark.timeout(400)]

WEAK = [f"weak-{nodes}x1-r{repeat}" for nodes in (1, 2) for repeat in (1, 2)]
STRONG = [f"strong-2x1-r{repeat}" for repeat in (1, 2)]
SHORT = ("measure.rounds=2", "measure.steps=6", "measure.warm_up=2", "measure.window_s=2")


def scaling(slurm: Slurm, place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hrdc_hpc.scaling", *arguments], cwd=place, check=False, timeout=300,
        capture_output=True, text=True,
        env={**slurm.env, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONSAFEPATH": "1"},
    )  # fmt: skip


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_study_with_a_size_that_cannot_be_had(slurm: Slurm, digits: Path, tmp_path: Path) -> None:
    command = (
        "--cfg", "digits_lt.yaml", "--partition", "gpu", "--nodes", "1,2,9", "--ranks-per-node", "1",
        "--mode", "weak,strong", "--repeats", "2", "--batch-per-rank", "32", "--yes", "--wait",
        f"data.dataset.root={digits}", *SHORT,
    )  # fmt: skip
    done = scaling(slurm, tmp_path, *command)
    everything = done.stdout + done.stderr
    folder = tmp_path / "runs" / "digits_lt-scaling"
    assert done.returncode == 1, everything + logs(folder)
    complete(folder, everything)
    first = {run: read_attempts(RunFolder(folder / run)) for run in (*WEAK, *STRONG)}

    lost = folder / WEAK[2] / "report"
    (lost / "summary.json").unlink()
    (lost / "measurement.json").unlink()
    assert states(folder)[WEAK[2]] != "finished"
    again = scaling(slurm, tmp_path, *command)
    everything = again.stdout + again.stderr
    assert again.returncode == 1, everything + logs(folder)
    assert "1 to submit; 1 finished, kept" in everything
    complete(folder, everything)
    for run, attempts in first.items():
        assert len(read_attempts(RunFolder(folder / run))) == len(attempts) + (run == WEAK[2]), run
    in_a_batch_job(slurm, folder)


def complete(folder: Path, everything: str) -> None:
    """Every row is finished and in the report but for those of nine nodes, which are marked and say why."""
    there = study.read(folder)
    rows = {row.run: row for row in collect.rows(there)}
    assert [run for run, row in rows.items() if row.found] == [*WEAK, *STRONG], everything + logs(folder)
    for run in (*WEAK, *STRONG):
        found = rows[run].found
        assert found is not None
        assert (found.world_size, len(found.nodes)) == (rows[run].size.nodes,) * 2
        assert found.global_batch == rows[run].size.global_batch
    refused = [row for row in rows.values() if row.size.nodes == 9]
    assert {row.state for row in refused} == {"refused"}
    assert all("cluster.nodes: 9, but" in row.why for row in refused)
    assert f"report: {folder}/report/report.html" in everything
    told = table(folder / "report" / "rows.csv")
    assert len(told) == 12
    assert sorted(row["run"] for row in told if row["state"] == "finished") == sorted([*WEAK, *WEAK[:2], *STRONG])
    page = (folder / "report" / "report.md").read_text()
    assert "one machine" in page
    assert "cluster.nodes: 9, but" in page
    assert (folder / "report" / "report.html").is_file()


def states(folder: Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "hrdc_hpc.status", str(folder), "--json"], check=True, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    told: dict[str, Any] = json.loads(done.stdout)
    return {Path(run["run"]).name: run["state"] for run in told["runs"]}


def in_a_batch_job(slurm: Slurm, folder: Path) -> None:
    """jobs/scale.py on two tasks writes the report once, with the study's own code."""
    page = folder / "report" / "report.md"
    page.unlink()
    script = f"srun --ntasks=2 --overlap {sys.executable} {folder}/code/jobs/scale.py {folder} --predict 4"
    job = slurm.submit(script, folder, "--partition=gpu", "--ntasks=2", "--time=5")
    assert slurm.wait_job(job, 90) == "COMPLETED", (folder / f"{job}.out").read_text()
    assert (folder / f"{job}.out").read_text().count("report: ") == 1
    assert page.is_file()


def logs(folder: Path) -> str:
    files = sorted(folder.glob("*-r?/logs/*.out"))
    return "\n".join(f"--- {file}\n{file.read_text(errors='replace')[-3000:]}" for file in files)
