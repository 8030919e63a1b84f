"""A node that fails its check is named before the first step, and is not mistaken for a full disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from hrdc_hpc.cluster import exit_codes
from hrdc_hpc.engine import health as health_check
from hrdc_hpc.engine.faults import Fault, Faults, parse
from hrdc_hpc.record import health
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.health import BadNode, Home
from hrdc_hpc.record.metrics import read_metrics, read_raw

from faulty import train_on_nodes
from ranks import Ranks
from runs import make_run

pytestmark = [pytest.mark.dali, pytest.mark.timeout(300)]


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
    trouble = health_check._temporary_trouble()
    assert trouble
    assert trouble.whose == "node"
    assert "No usable temporary directory" in trouble.what


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
