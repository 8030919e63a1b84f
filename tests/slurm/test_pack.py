"""Packing by an array on a real SLURM: one task dies on its way, the same command goes on, the result is the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hrdc_hpc.pack.__main__ import main
from tests.data.images import jpeg, picture

from packs import ROOT, config, contents
from slurm_cluster import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(300)]


def pack(slurm: Slurm, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hrdc_hpc.pack", *map(str, arguments)], check=False, timeout=120, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**slurm.env, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    return f"{done.returncode} {done.stdout}"


def test_an_array_packs_what_one_process_would(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split, count in (("train", 60), ("val", 20)):
        (tmp_path / "set" / split / "a").mkdir(parents=True)
        for number in range(count):
            (tmp_path / "set" / split / "a" / f"{number}.jpg").write_bytes(jpeg(picture(number, 60, 80)))
    cfg, out = config(tmp_path, tmp_path / "set"), tmp_path / "pack"
    asks = ("--cfg", cfg, "--shard-gb", "0.00003")
    array = (*asks, "--out", out, "--partition", "gpu", "--tasks", "3", "--time", "5")

    # the second task finds no Python on its node
    said = pack(slurm, *array, "--setup", '[ "$SLURM_ARRAY_TASK_ID" != 1 ] || exit 1')
    found = re.search(r"array (\d+): 3 tasks for \d+ shards", said)
    assert found, said
    again = pack(slurm, *array)
    if slurm.wait_job(f"{found[1]}_0", 60) != "COMPLETED":
        pytest.fail((out / "logs" / f"{found[1]}_0.out").read_text())
    assert re.search(rf"^78 pack: .*: \d tasks of array {found[1]} are still queued or running", again), again
    assert [slurm.wait_job(f"{found[1]}_{task}", 60) for task in (1, 2)] == ["FAILED", "COMPLETED"]
    assert not (out / "pack.json").exists()
    assert "are still to come, from other tasks" in (out / "logs" / f"{found[1]}_2.out").read_text()

    said = pack(slurm, *array)
    found = re.search(r"array (\d+): 3 tasks", said)
    assert found, said
    assert [slurm.wait_job(f"{found[1]}_{task}", 60) for task in range(3)] == ["COMPLETED"] * 3
    assert "is finished: nothing to do" in pack(slurm, *array)

    assert main([*asks, "--out", str(tmp_path / "alone"), "--workers", "1"]) == 0
    own = {name: content for name, content in contents(out).items() if name.split("/")[0] not in ("code", "logs")}
    assert own.pop("config.yaml")
    assert own == contents(tmp_path / "alone")
