"""What slurm/dev-cluster refuses, and the slurm.conf that it writes; needs no SLURM."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from devcluster import cli, packages, settings
from devcluster.conf import Place, slurm_conf
from devcluster.settings import Folder, Settings, free_ports


def conf(**chosen: Any) -> str:
    made = Settings(**chosen)
    place = Place(
        host="login", user="ada", memory_mb=2_000, address="10.0.0.254", port=20_000, accounting_port=19_999,
        node_addresses=[f"10.0.0.{number}" for number in range(1, made.nodes + 1)],
        node_ports=range(20_001, 20_001 + made.nodes),
    )  # fmt: skip
    return slurm_conf(made, Folder(Path("/run/c")), place)


def test_every_node_has_its_port_and_what_was_asked_for() -> None:
    nodes = re.findall(r"NodeName=(\w+) .* Port=(\d+) CPUs=(\d+) .* RealMemory=(\d+)", conf(nodes=3, cpus=16))
    assert nodes == [("n1", "20001", "16", "2000"), ("n2", "20002", "16", "2000"), ("n3", "20003", "16", "2000")]


def test_all_that_a_cluster_writes_lies_in_its_folder() -> None:
    paths = [
        line.split("=", 1)[1] for line in conf().splitlines() if re.match(r"(AuthInfo|\w+(Location|Dir|File))=", line)
    ]
    assert len(paths) == 5
    assert [path for path in paths if not path.removeprefix("socket=").startswith("/run/c/")] == []


def test_urgent_preempts_gpu_with_grace() -> None:
    gpu, urgent = (line for line in conf(grace_s=7).splitlines() if line.startswith("PartitionName="))
    assert "PartitionName=gpu " in gpu
    assert " Default=YES " in gpu
    assert " PreemptMode=REQUEUE GraceTime=7 " in gpu
    tiers = [int(re.search(r"PriorityTier=(\d+)", line)[1]) for line in (gpu, urgent)]  # type: ignore[index]  # always there
    assert tiers[0] < tiers[1]


def test_ports_are_distinct_and_outside_the_range_that_the_kernel_picks_from() -> None:
    ports = free_ports(50)
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert len(set(ports)) == 50
    assert max(ports) < low


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up", "--nodes=0"], "nodes: got 0, allowed are 1 to 64"),
        (["up", "--cpus=0"], "cpus: got 0, allowed are 1 to 1024"),
        (["up", "--grace=-1"], "grace_s: got -1, allowed are 0 to 3600"),
        (["up", "--dir=/tmp/a b"], "holds a space"),
        (["up", f"--dir=/tmp/{'x' * 100}"], "characters too long for a socket"),
        (["run"], "write it behind --"),
    ],
)
def test_what_cannot_work_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == cli.CANNOT
    assert message in capsys.readouterr().err


def test_a_folder_with_something_in_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packages, "find", lambda program: program)
    monkeypatch.setattr(settings.Folder, "check", lambda _: None)  # pytest's folders may be too long
    (tmp_path / "thesis.tex").touch()
    assert cli.main(["up", f"--dir={tmp_path}"]) == cli.CANNOT
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(packages, "find", lambda program: None if program == "munged" else program)
    assert cli.main(["up"]) == cli.CANNOT
    assert (
        "munged not found; on Debian and Ubuntu: dev-cluster install, which does"
        " apt-get update && apt-get install -y munge\n" in capsys.readouterr().err
    )
