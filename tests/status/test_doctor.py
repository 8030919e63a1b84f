"""What a machine or cluster lacks is found, and told with its mend."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from hrdc_hpc import doctor
from hrdc_hpc.cluster.checkup import deep, slurm, software, storage
from hrdc_hpc.cluster.checkup.finding import Finding
from hrdc_hpc.cluster.checkup.software import Requirement

from launching import CONFIG

SETTINGS = """Configuration data as of 2026-11-24T23:49:51
AccountingStorageType   = accounting_storage/none
ClusterName             = devcluster
JobRequeue              = 1
KillWait                = 30 sec
MaxArraySize            = 1001
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SLURM_VERSION           = 22.05.8
"""
PARTITION = (
    "PartitionName=gpu AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=YES QoS=N/A DefaultTime=NONE GraceTime=30"
    " MaxNodes=UNLIMITED MaxTime=2-00:00:00 MinNodes=0 Nodes=n[1-4] PriorityTier=1 PreemptMode=REQUEUE State=UP"
    " TotalCPUs=16 TotalNodes=4\n"
)
"""As SLURM 22.05 prints them, shortened."""


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.what: finding.level for finding in findings}


@pytest.mark.parametrize(
    ("version", "allowed"),
    [
        ("2.10.9", False),
        ("2.11", True),
        ("2.11.0+cu130", True),
        ("2.14.1", True),
        ("2.15.0", False),
        ("2.15.0a1", False),
    ],
)
def test_ranges_of_versions(version: str, allowed: bool) -> None:
    assert Requirement("torch", ((">=", "2.11"), ("<", "2.15")), "train").allows(version) is allowed


def test_requirements_are_those_of_the_project() -> None:
    wanted = {one.name: one for one in software.requirements()}
    assert wanted["numpy"].extra == ""
    assert wanted["torch"].extra == "train"
    assert {operator for operator, _ in wanted["torch"].ranges} == {">=", "<"}
    assert "pytest" not in wanted


def test_a_package_that_is_missing_stops_a_node_but_no_login_node(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = Requirement("no-such-package", ((">=", "1"),), "train")
    old = Requirement("numpy", ((">=", "999"),), "")
    monkeypatch.setattr(software, "requirements", lambda: [old, nowhere])
    node = levels(list(software.check("node")))
    assert (node["packages for training"], node["packages for all commands"]) == ("problem", "warning")
    assert levels(list(software.check("login")))["packages for training"] == "ok"


def test_a_good_cluster() -> None:
    config, partitions = slurm.parse_config(SETTINGS), slurm.parse_partitions(PARTITION)
    findings = [*slurm.judge_config(config), *slurm.judge_partitions(config, partitions, None)]
    assert set(levels(findings).values()) == {"ok"}
    assert findings[-1].found == (
        "4 nodes, 16 CPUs, time limit 2-00:00:00, default NONE, preempted by REQUEUE, grace 30 s"
    )


@pytest.mark.parametrize(
    ("setting", "what"),
    [("KillWait                = 5 sec", "KillWait"),
     ("MaxArraySize            = 1", "MaxArraySize")],
)  # fmt: skip
def test_settings_that_hurt(setting: str, what: str) -> None:
    key = setting.split()[0]
    text = "".join(setting + "\n" if line.startswith(key) else line for line in SETTINGS.splitlines(keepends=True))
    assert levels(list(slurm.judge_config(slurm.parse_config(text))))[what] == "warning"


@pytest.mark.parametrize(
    ("now", "then", "level", "words"),
    [
        ("PreemptMode=REQUEUE", "PreemptMode=CANCEL", "warning", "cancelled, not requeued"),
        ("State=UP", "State=DRAIN", "warning", "refused there"),
        ("GraceTime=30", "GraceTime=0", "ok", "KillWait (30 sec) to save"),
    ],
)
def test_partitions_that_hurt(now: str, then: str, level: str, words: str) -> None:
    config, partitions = slurm.parse_config(SETTINGS), slurm.parse_partitions(PARTITION.replace(now, then))
    (finding,) = slurm.judge_partitions(config, partitions, "gpu")
    assert finding.level == level
    assert words in finding.means


def test_a_partition_that_is_not_there_is_answered_with_those_that_are() -> None:
    (finding,) = slurm.judge_partitions({}, slurm.parse_partitions(PARTITION), "gpux")
    assert (finding.level, finding.means) == ("problem", "known to you: gpu")


def test_the_file_system_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    findings = list(storage.check(tmp_path / "not" / "yet", "machine"))
    told = levels(findings)
    assert told["write test"] == told["lease"] == told["file server's clock"] == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_hard_links_or_room_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    assert levels(list(storage.check(Path("/proc/runs"), "machine")))["write test"] == "problem"
    monkeypatch.setattr(os, "link", no_link)
    assert levels(list(storage.check(tmp_path, "machine")))["lease"] == "problem"
    assert list(tmp_path.iterdir()) == []


def test_what_lies_in_memory_is_told() -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm here")
    assert storage.file_system(Path("/dev/shm")) == ("tmpfs", "/dev/shm")
    assert "no other node sees it" in next(storage.check(Path("/dev/shm"), "login")).means


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory on a machine without SLURM, and a config."""
    (tmp_path / "small.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Finding]]:
    code = doctor.main([*arguments, "--json"])
    output = json.loads(capsys.readouterr().out)
    assert output["problems"] == sum(one["level"] == "problem" for one in output["findings"])
    return code, {one["what"]: Finding(**one) for one in output["findings"]}


def test_exit_codes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, findings = told(capsys)
    assert code == (78 if "problem" in levels(list(findings.values())).values() else 0)
    code, findings = told(capsys, "--partition", "gpu")
    assert (code, findings["SLURM"].level) == (78, "problem")
    code, findings = told(capsys, "--cfg", "small.yaml", "optim.lr=fast")
    assert (code, findings["config"].level) == (78, "problem")
    assert "optim.lr" in findings["config"].found


def test_a_config_is_compared_with_its_ranks(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for ranks, level in ((1, "ok"), (3, "warning")):
        _, findings = told(capsys, "--cfg", "small.yaml", f"cluster.ranks_per_node={ranks}")
        assert findings["batch"].level == level, ranks
    _, findings = told(capsys, "--cfg", "small.yaml", "cluster.ranks_per_node=64")
    assert findings["config"].level == "problem"
    _, findings = told(capsys, "--cfg", "small.yaml", "data.dataset={name: image_folder, root: /no/such}")
    assert findings["data"].level == "problem"


def test_each_finding_is_a_line_with_its_mend(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--partition", "gpu", "--node"]) == 78
    out = capsys.readouterr().out
    assert "problem SLURM: none of its programs is on the PATH\n" in out
    assert "to mend it: go to a login node, or leave --partition out" in out
    assert "looked at as a compute node: " in out.splitlines()[-1]


def test_a_controller_that_does_not_answer(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sbatch", "squeue", "scontrol", "srun", "scancel"):
        (place / name).write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")
    assert doctor.role_here() == "login"
    (finding,) = slurm.check("login", None)
    assert finding.level == "problem"
    assert "Unable to contact slurm controller" in finding.found


def test_a_library_that_crashes_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    line = '{"torch": {"version": "2.14.1", "cuda": "13.0", "devices": [], "seconds": 1.5}}'
    python.write_text(f"#!/bin/sh\necho '{line}'\necho 'bad instruction' >&2\nkill -ILL $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    torch, dali = deep.check("node")
    assert torch.level == "ok"
    assert (dali.level, dali.found) == ("problem", "exit code -4: bad instruction")


@pytest.mark.slow
@pytest.mark.dali
def test_torch_and_dali_are_tried_out() -> None:
    pytest.importorskip("nvidia.dali")
    torch, dali = deep.check("node")
    assert (torch.level, dali.level) == ("ok", "ok"), (torch, dali)
    assert "decodes a JPEG on the " + ("GPU" if shutil.which("nvidia-smi") else "CPU") in dali.found
