"""A node that fails its check is named before the first step, and is not mistaken for a full disk."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hrdc_hpc.cluster import exit_codes
from hrdc_hpc.engine import health as checks
from hrdc_hpc.engine.faults import Fault, Faults, parse
from hrdc_hpc.engine.place import Place
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.record import health
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.health import BadNode, Home
from hrdc_hpc.record.metrics import read_metrics, read_raw

from faulty import train_on_nodes
from ranks import Ranks
from runs import make_run
from steps import alone, config_of

pytestmark = [pytest.mark.slow, pytest.mark.dali, pytest.mark.timeout(300)]


def test_bad_node_has_a_code_of_its_own() -> None:
    assert exit_codes.of_error(BadNode("n1")) == exit_codes.Exit.BAD_NODE


def test_failing_node_is_named_and_nothing_is_trained(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "ill")
    ranks = Ranks(run, 2, target=train_on_nodes, environ={"HRDC_FAULTS": "unhealthy@n1"})
    assert 0 not in ranks.wait(30)
    assert ranks.logs().count("BadNode: health check: rank 1 on n1") == 2, "both ranks leave with the same verdict"
    (line,) = health.read(RunFolder(run))
    assert (line["kind"], line["node"], line["job_id"]) == ("check", "n1", "7")
    assert not any(r["kind"] == "train" for r in read_raw(RunFolder(run)))


def test_check_is_quick_and_recorded(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "well", "optim.epochs=1", "optim.warmup_epochs=0")
    Ranks(run, 2, target=train_on_nodes).finish()
    (record,) = [r for r in read_metrics(RunFolder(run)) if r["kind"] == "health"]
    assert record["nodes"] == ["n0", "n1"]
    assert 0 < record["seconds"] < 1


def test_node_without_a_temporary_folder_is_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    trouble = checks._temporary_trouble()
    assert trouble
    assert trouble.whose == "node"
    assert "No usable temporary directory" in trouble.what


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", config_text="", manifest={})


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB with no room left."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs root and the permission to mount a small tmpfs")
    RunFolder.create(place / "run", config_text="", manifest={})
    with (place / "ballast").open("wb") as file:
        free = os.statvfs(place)
        file.write(bytes(free.f_bavail * free.f_bsize))
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Processes]:
    with alone(tmp_path / "meet.json", config_of()) as processes:
        yield processes


def check(processes: Processes, folder: RunFolder) -> float:
    place = Place(0, 1, 0, 1, folder.path / "meet.json", {"job_id": "7"})
    return checks.check(processes, place, folder, [Home("host", "n1")], Faults((), 0), keep_last=3)


def test_full_disks_are_found(
    single: Processes, full_disk: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the runs is no fault of the node; its own, for temporary files, is."""
    with pytest.raises(RuntimeError, match=r"run: cannot write there: No space left .*All nodes find it so") as found:
        check(single, RunFolder(full_disk / "run"))
    assert not isinstance(found.value, BadNode)
    monkeypatch.setattr(tempfile, "tempdir", str(full_disk))
    with pytest.raises(BadNode, match=r"rank 0 on n1: .*disk: cannot write there: No space left"):
        check(single, run)
    (line,) = health.read(run)
    assert (line["kind"], line["node"]) == ("check", "n1")


def test_a_wrong_sum_or_product_is_found(single: Processes, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(single, run) > 0
    reduce = checks.dist.all_reduce

    def flip_a_bit(values: torch.Tensor) -> None:
        reduce(values)
        values[1000] ^= 1 << 7

    with monkeypatch.context() as patch:
        patch.setattr(checks.dist, "all_reduce", flip_a_bit)
        with pytest.raises(BadNode, match="the sum over the ranks is wrong in 1 of 262144 numbers"):
            check(single, run)
    multiply = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: multiply(a, b) * (1 + 2**-23))
    with pytest.raises(BadNode, match="a product of two matrices is wrong"):
        check(single, run)


def test_faults_are_read_strictly() -> None:
    assert parse("nan@7#once unhealthy@n2 hang@9:rank=1 slow_save@0.5") == (
        Fault("nan", "7", once=True), Fault("unhealthy", "n2"), Fault("hang", "9", rank=1), Fault("slow_save", "0.5"),
    )  # fmt: skip
    for wrong in ("nan", "nan@x", "nan@7:rank=a", "unhealthy@n1#once", "slow_save@", "nan@7,hang@9", "oom@3"):
        with pytest.raises(ValueError, match=r"HRDC_FAULTS: got .*allowed: nan@STEP"):
            parse(wrong)


def test_passing_fault_comes_once_in_the_first_attempt() -> None:
    first, second = Faults(parse("nan@7#once"), 0), Faults(parse("nan@7#once"), 0)
    second.attempt(1)
    assert [first.poison(7) == 1, first.poison(7) == 1, second.poison(7) == 1] == [False, True, True]
    assert Faults(parse("nan@7"), 1).poison(7) == 1, "rank 0's"
    assert Faults(parse("unhealthy@n1"), 3).unhealthy(Home("host", "n1"))
