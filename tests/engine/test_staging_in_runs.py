"""Runs whose data set is copied to the node while they train: they learn the same, and stop at once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from hrdc_hpc.cluster.overview import survey
from hrdc_hpc.pack.__main__ import main
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_raw

from faulty import train_and_wait_for_the_copies
from ranks import Ranks, StopWhen
from runs import differing, final_state, learnt, make_run

pytestmark = [pytest.mark.slow, pytest.mark.dali, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def pack(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in two dozen shards."""
    place = tmp_path_factory.mktemp("pack")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place))
        settings = ["--out", str(place / "pack"), "--shard-gb", "0.00008", "--workers", "1"]
        assert main(["--cfg", "digits_lt.yaml", *settings, f"data.dataset.root={digits}"]) == 0
    return place / "pack"


def make(parent: Path, pack: Path, name: str, *more: str) -> Path:
    short = ("optim.epochs=2", "optim.warmup_epochs=0", "compute.deterministic=true")
    return make_run(parent, pack, name, *short, f"data.dataset={{name: packed, root: {pack}}}", *more)


def staging(node: Path, seconds: float, pack: Path) -> str:
    total = sum(path.stat().st_size for path in pack.rglob("*.tar"))
    return f"data.staging={{to: {node}, keep_free_gb: 0, mb_per_s: {total / 1e6 / seconds}}}"


def told(run: Path) -> list[dict[str, Any]]:
    return [record for record in read_raw(RunFolder(run)) if record["kind"] == "staging"]


def test_a_run_that_trains_meanwhile_learns_the_same(pack, tmp_path):
    node = tmp_path / "node"
    runs = [make(tmp_path, pack, "shared"), make(tmp_path, pack, "staged", staging(node, 1.5, pack))]
    Ranks(runs[0], 2).finish()
    Ranks(runs[1], 2, target=train_and_wait_for_the_copies).finish()
    assert differing(*(final_state(run) for run in runs)) == []
    assert learnt(runs[0]) == learnt(runs[1])
    records = read_raw(RunFolder(runs[1]))
    whole = next(
        number for number, record in enumerate(records) if record["kind"] == "staging" and record["state"] == "whole"
    )
    steps = [number for number, record in enumerate(records) if record["kind"] == "train"]
    assert steps[0] < whole < steps[-1], "it trained before the copies were whole, and after"
    total = sum(path.stat().st_size for path in pack.rglob("*.tar"))
    assert (told(runs[1])[-1]["bytes"], told(runs[0])) == (total, [])
    (row,) = survey([runs[1]]).runs
    assert row.staging is not None
    assert row.staging.startswith("whole 0.0 of 0.0 GB")


@pytest.mark.slow
def test_a_stop_in_the_middle_of_a_copy(pack, tmp_path):
    node, flag = tmp_path / "node", tmp_path / "stop"
    run = make(tmp_path, pack, "stopped", "optim.epochs=100", staging(node, 1000, pack))
    ranks = Ranks(run, 2, stop=StopWhen(flag))
    while not any(record["kind"] == "train" for record in read_raw(RunFolder(run))):
        assert ranks.alive(), ranks.logs()
        time.sleep(0.02)
    flag.touch()
    began = time.monotonic()
    while not any(record["kind"] == "end" for record in read_raw(RunFolder(run))):
        assert time.monotonic() - began < 5
        time.sleep(0.02)
    ranks.finish(30)
    assert told(run)[-1]["state"] == "stopped"
    (record,) = [record for record in read_raw(RunFolder(run)) if record["kind"] == "end"]
    assert record["reason"] == "SIGUSR2"
    stopped = told(run)[-1]["time"]
    saved = max(record["time"] for record in read_raw(RunFolder(run)) if record["kind"] == "checkpoint")
    assert stopped < saved + 1, "the copier left while the run was being saved"


@pytest.mark.slow
def test_a_run_stopped_in_the_middle_of_a_copy_and_of_an_epoch_learns_the_same(pack, tmp_path):
    straight, stopped = (
        make(tmp_path, pack, "straight"),
        make(tmp_path, pack, "stopped", staging(tmp_path / "n", 9, pack)),
    )
    Ranks(straight, 2).finish()
    flag = tmp_path / "stop"
    ranks = Ranks(stopped, 2, stop=StopWhen(flag))
    while not any(record["kind"] == "train" for record in read_raw(RunFolder(stopped))):
        assert ranks.alive(), ranks.logs()
        time.sleep(0.02)
    flag.touch()
    ranks.finish(60)
    assert 0 < told(stopped)[-1]["bytes"] < sum(path.stat().st_size for path in pack.rglob("*.tar"))
    assert RunFolder(stopped).state() == "started"
    Ranks(stopped, 2).finish()
    assert differing(*(final_state(run) for run in (straight, stopped))) == []
    assert learnt(straight) == learnt(stopped)


@pytest.mark.slow
def test_without_a_folder_on_the_node_it_trains_all_the_same(pack, tmp_path):
    run = make(tmp_path, pack, "nowhere", "optim.epochs=1", "data.staging={to: $NO_SUCH_VARIABLE/x}")
    ranks = Ranks(run, 2)
    ranks.finish()
    assert ranks.logs().count("$NO_SUCH_VARIABLE is not set on this node") == 1, "said once a node"
    assert told(run)[-1]["state"] == "failed"
