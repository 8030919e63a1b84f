"""What a cluster has against what is asked of it, on the recorded answers of a real SLURM 22.05.8.

slurm-22.05/ holds what a cluster of slurm/dev-cluster printed after changes of its limits: 4 nodes of 8 CPUs and 2
GPUs, n1 and n2 with the feature a100, n1 and n3 with ib; the partition gpu with a limit of everything.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hrdc_hpc.cluster import limits
from hrdc_hpc.cluster import slurm_facts as slurm
from hrdc_hpc.cluster.limits import Facts, compare
from hrdc_hpc.config.cluster import Cluster

SAID = {file.stem: file.read_text() for file in (Path(__file__).parent / "slurm-22.05").glob("*.txt")}
FACTS = Facts(
    config=slurm.parse_config(SAID["config"]),
    partitions=slurm.parse_partitions(SAID["partition"]),
    nodes=slurm.parse_nodes(SAID["node"]),
    associations=slurm.parse_associations(SAID["associations"]),
    qos=slurm.parse_qos(SAID["qos"]),
)


def problems(facts: Facts = FACTS, **asked: object) -> list[str]:
    return compare(Cluster(**{"time_min": 10, **asked}), facts)[0]  # type: ignore[arg-type]


def remarks(facts: Facts = FACTS, **asked: object) -> list[str]:
    return compare(Cluster(**{"time_min": 10, **asked}), facts)[1]  # type: ignore[arg-type]


def test_what_was_recorded() -> None:
    assert FACTS.config == slurm.Config(1001, accounting=True, enforced=frozenset({"associations", "limits", "qos"}))
    gpu, urgent = FACTS.partitions
    assert gpu == slurm.Partition(
        "gpu", default=True, max_time_min=10, max_nodes=2, max_cpus_per_node=6, max_mem_per_node_mb=20480,
        preempt_mode="REQUEUE", accounts=frozenset({"vision", "speech"}), qos=frozenset({"short", "normal"}),
    )  # fmt: skip
    assert urgent == slurm.Partition("urgent")
    both = frozenset({"gpu", "urgent"})
    assert FACTS.nodes[0] == slurm.Node("n1", 8, 24105, 2, frozenset({"a100", "ib"}), both)
    assert FACTS.nodes[3] == slurm.Node("n4", 8, 24105, 2, frozenset(), both)
    assert slurm.Association("vision", "", frozenset({"normal", "short"}), 24 * 60, 50) in FACTS.associations
    assert FACTS.qos == (slurm.Qos("normal"), slurm.Qos("short", 120, 7))


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"partition": "gup"}, "cluster.partition: there is no 'gup'; did you mean 'gpu'?"),
        ({"partition": "x"}, "cluster.partition: there is no 'x'; there is gpu, urgent"),
        ({"time_min": 11}, "cluster.time_min: 11, but partition gpu allows 10 minutes; lower --time"),
        ({"nodes": 3}, "cluster.nodes: 3, but partition gpu allows 2 for a job; lower --nodes"),
        # seen: SLURM leaves a range that ends above the partition's limit pending, PartitionNodeLimit
        ({"nodes": "1-3"}, "cluster.nodes: 1-3, but partition gpu allows 2 for a job"),
        (
            {"cpus_per_rank": 4, "ranks_per_node": 2},
            "cluster.cpus_per_rank: 4 for each of 2 ranks of a node, but partition gpu allows 6 of a node",
        ),
        ({"mem_gb": 21}, "cluster.mem_gb: 21, but partition gpu allows 20 GB of a node; lower --mem-gb"),
        ({"partition": "urgent", "mem_gb": 24}, "no node of partition urgent has more than 23; lower --mem-gb"),
        ({"partition": "urgent", "nodes": 5}, "partition urgent has 4 nodes (of 4) with 1 CPUs, 0 GPUs; lower"),
        ({"partition": "urgent", "cpus_per_rank": 9}, "but no node of partition urgent has more than 8"),
        ({"gpus_per_node": 3}, "cluster.gpus_per_node: 3, but no node of partition gpu has more than 2"),
        ({"constraint": "a10"}, "no node of partition gpu has the feature 'a10'; did you mean 'a100'?"),
        ({"constraint": "[a100*2&tpu*2]"}, "the feature 'tpu'; there is a100, h100, ib"),
        ({"constraint": "a100&ib", "nodes": 2}, "partition gpu has 1 nodes (of 4) with 1 CPUs, 0 GPUs and a100&ib"),
        ({"account": "visoin"}, "cluster.account: 'visoin' is not one of yours; did you mean 'vision'?"),
        ({"account": "speech", "qos": "short"}, "cluster.qos: you may not use 'short' with account speech; there is n"),
        ({"qos": "shrot"}, "cluster.qos: you may not use 'shrot'; did you mean 'short'?"),
        ({"qos": "short", "time_min": 121, "partition": "urgent"}, "cluster.time_min: 121, but qos short allows 120"),
        ({"account": "vision", "time_min": 1441, "partition": "urgent"}, "1441, but your account allows 1440 minutes"),
    ],
)
def test_what_could_not_start(asked: dict[str, object], problem: str) -> None:
    (found,) = problems(**asked)
    assert problem in found


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"nodes": 2, "gpus_per_node": 2, "cpus_per_rank": 3, "mem_gb": 20, "constraint": "a100"},
        {"nodes": 2, "constraint": "h100|ib"},
        {"constraint": "[a100*1&h100*1]", "nodes": 2},
        {"account": "Vision", "qos": "short"},
        {"partition": "gpu,urgent", "time_min": 1000, "account": "speech"},
        {"partition": "urgent", "time_min": 20_000},  # by the account speech, which has no limit
    ],
)
def test_what_could_start(asked: dict[str, object]) -> None:
    assert problems(**asked) == []


def test_all_problems_are_told_at_once() -> None:
    found = problems(time_min=99, nodes=9, gpus_per_node=8, mem_gb=999, constraint="tpu", account="nobody", qos="x")
    keys = [problem.partition(":")[0].removeprefix("cluster.") for problem in found]
    assert set(keys) == {
        "time_min",
        "nodes",
        "gpus_per_node",
        "mem_gb",
        "constraint",
        "account",
        "qos",
        "cpus_per_rank",
    }


def test_accounts_are_compared_only_where_they_are_enforced() -> None:
    lax = dataclasses.replace(FACTS, config=slurm.Config())
    assert problems(lax, account="nobody", qos="none") == []
    alone = dataclasses.replace(FACTS, config=slurm.Config(enforced=frozenset({"associations"})))
    assert problems(alone, account="vision", qos="none", partition="urgent", time_min=1441) == []


def test_remarks() -> None:
    assert remarks() == []
    assert remarks(partition="urgent", nodes="2-9") == [
        "partition urgent has 4 nodes that fit: of 2-9 nodes it never gives more"
    ]
    (remark,) = remarks(dataclasses.replace(FACTS, config=slurm.Config()), account="hrdc")
    assert remark == "partition gpu is for speech, vision; the job may wait for ever with account hrdc"
    (gpu, urgent) = FACTS.partitions
    odd = dataclasses.replace(urgent, state="DOWN", preempt_mode="GANG,CANCEL")
    down, cancelled = remarks(dataclasses.replace(FACTS, partitions=(gpu, odd)), partition="urgent")
    assert "urgent is DOWN" in down
    assert "cancels the jobs that it preempts" in cancelled


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [("gpu:a100:8(S:0-1)", 8), ("gpu:a100:3,gpu:v100:1", 4), ("gpu:2(S:0,1),shard:8", 2), ("(null)", 0), ("", 0)],
)
def test_gpus_of_typed_nodes(gres: str, gpus: int) -> None:
    """Hand-written, after the manual of slurm.conf: types, sockets and several kinds."""
    (node,) = slurm.parse_nodes(f"NodeName=a CPUTot=64 RealMemory=1000 MemSpecLimit=100 Gres={gres} Partitions=x")
    assert (node.gpus, node.memory_mb, node.cpus) == (gpus, 900, 64)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (slurm.parse_config, "slurm_load_ctl_conf error: Unable to contact slurm controller"),
        (slurm.parse_partitions, "gpu up infinite"),
        (slurm.parse_nodes, "NodeName=a CPUTot=many RealMemory=1"),
        (slurm.parse_associations, "vision|normal"),
    ],
)
def test_what_is_not_understood_is_an_error_here(parse: object, text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of any text; `ask` makes a warning of it
        parse(text)  # type: ignore[operator]


def test_without_an_answer_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (warning,) = limits.check(Cluster(partition="gpux", nodes=1000))
    assert warning == "not compared with the cluster's limits: scontrol show config: scontrol is not on the PATH"
    assert limits.array_limit() is None
    assert limits.submit_limit() is None


def programs(folder: Path, *, nodes: str) -> None:
    """A scontrol and a sacctmgr that say what was recorded, and of the nodes something else."""
    (folder / "node.txt").write_text(nodes)
    for name in ("config", "partition", "associations", "qos"):
        (folder / f"{name}.txt").write_text(SAID[name])
    for program in ("scontrol", "sacctmgr"):
        said = '[ -f "$DIR/$word.txt" ] && exec /bin/cat "$DIR/$word.txt"'
        text = f'#!/bin/bash\nfor word in "$@"; do {said}; done; exit 1\n'
        (folder / program).write_text(text.replace("$DIR", str(folder)))
        (folder / program).chmod(0o755)


def test_an_answer_that_is_not_understood_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    programs(tmp_path, nodes="NodeName=a CPUTot=many RealMemory=1")
    (warning,) = limits.check(Cluster(partition="gpu", time_min=10, gpus_per_node=99, ranks_per_node=1))
    assert "not compared with the cluster's limits: scontrol --oneliner show node: invalid literal" in warning
    with pytest.raises(ValueError, match=r"SLURM could not start this job:\n  cluster.time_min: 11, but partition gpu"):
        limits.check(Cluster(partition="gpu", time_min=11))
    assert limits.array_limit() == 1001
    assert limits.submit_limit() == 7
