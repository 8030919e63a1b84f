"""A packed data set on a real SLURM: each of two nodes keeps one copy, and a requeued run learns what it would have."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrdc_hpc.pack.__main__ import main

from slurm_runs import Lab, same_as_undisturbed

pytestmark = [pytest.mark.slurm, pytest.mark.dali, pytest.mark.slow, pytest.mark.timeout(600)]


def test_one_copy_a_node_and_a_requeue_change_nothing(
    straight: Path, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with the loose files: packing, staging and the requeue at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pack, nodes = tmp_path / "pack", tmp_path / "nodes"
    settings = ["--cfg", "digits_lt.yaml", "--out", str(pack), "--shard-gb", "0.0002", "--workers", "1"]
    assert main([*settings, f"data.dataset.root={lab.digits}"]) == 0
    shards = contents(pack)
    assert len(shards) > 4

    run, job = lab.start(
        "staged",
        f"data.dataset={{name: packed, root: {pack}}}",
        f"data.staging={{to: {nodes}/$SLURMD_NODENAME, keep_free_gb: 0}}",
    )
    lab.slurm.requeue(job)
    assert lab.slurm.wait_job(job, 240) == "COMPLETED"
    same_as_undisturbed(run, straight, job)
    assert [contents(node) for node in nodes.iterdir()] == [shards, shards]


def contents(folder: Path) -> list[bytes]:
    """What the shards below a folder hold."""
    return sorted(path.read_bytes() for path in folder.rglob("*.tar"))
