"""A small real drill on this machine, and commands that cannot be carried out."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrdc_hpc.drill.__main__ import main

from drills import drill

pytestmark = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.dali
@pytest.mark.timeout(400)
def test_a_drill_on_this_machine(tmp_path: Path, digits: Path) -> None:
    kinds = "kill-rank,kill-in-save,sigusr2,second-launch,damaged-checkpoint,torn-metrics"
    told = drill(tmp_path / "out", digits, "--cluster", "local", "--kills", "6", "--kinds", kinds, "--seed", "1")
    assert "6 faults of 6 kinds survived: 0 runs lost" in told["verdict"]
    assert "weights identical" in told["verdict"]
    ended = {fault["kind"]: fault["outcome"] for fault in told["faults"]}
    assert ended["kill-rank"] == ended["kill-in-save"] == "killed"
    assert ended["damaged-checkpoint"].startswith("set aside")
    assert any((tmp_path / "out" / "drill-1" / "checkpoints").glob("damaged-*"))
    repeated = sum(fault["repeated"] for fault in told["faults"])
    assert repeated == sum(run["repeated"] for run in told["runs"])
    assert not any(fault["repeated"] for fault in told["faults"] if fault["kind"] == "sigusr2")


def test_a_command_that_cannot_be_carried_out_trains_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old" / "drill-1").mkdir(parents=True)
    cases = {
        "holds a drill already": ["--cluster", "local", "--out-dir", str(tmp_path / "old")],
        "known here": ["--cluster", "local", "--kinds", "earthquake", "--out-dir", str(tmp_path / "new")],
        "unknown key": ["--cluster", "local", "--out-dir", str(tmp_path / "new"), "optim.learning_rate=1"],
        "is this machine alone": ["--cluster", "local", "--out-dir", str(tmp_path / "new"), "cluster.nodes=2"],
    }
    for words, arguments in cases.items():
        assert main(["--cfg", "digits_lt.yaml", *arguments]) == 78
        assert words in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
