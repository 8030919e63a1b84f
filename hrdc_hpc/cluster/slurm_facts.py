"""What `scontrol show` and `sacctmgr show` print, as plain values. Pure functions; torch-free.

Written against the output of SLURM 22.05 (tests/cluster/slurm-22.05/). A key that is missing means that there is no
such limit: versions differ in what they print.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hrdc_hpc.cluster.times import minutes

_NONE = {"", "UNLIMITED", "INFINITE", "NONE", "N/A", "(null)", "Partition_Limit"}


@dataclass(frozen=True)
class Config:
    """Of `scontrol show config`."""

    max_array_size: int | None = None
    accounting: bool = False
    """Whether sacctmgr has something to say."""
    enforced: frozenset[str] = frozenset()
    """What of the accounts is enforced: associations, limits, qos."""


@dataclass(frozen=True)
class Partition:
    """Of `scontrol show partition`; None: no limit."""

    name: str
    default: bool = False
    state: str = "UP"
    max_time_min: int | None = None
    min_nodes: int = 0
    max_nodes: int | None = None
    max_cpus_per_node: int | None = None
    max_mem_per_node_mb: int | None = None
    preempt_mode: str = "OFF"
    accounts: frozenset[str] | None = None
    """The only accounts that may use it; None: all but `denied_accounts`."""
    qos: frozenset[str] | None = None
    denied_accounts: frozenset[str] = frozenset()
    denied_qos: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Node:
    """Of `scontrol show node`."""

    name: str
    cpus: int
    memory_mb: int
    gpus: int = 0
    features: frozenset[str] = frozenset()
    partitions: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Association:
    """Of `sacctmgr show assoc`: what a user may do with an account; None: no limit."""

    account: str
    partition: str
    """The only partition it holds for; '': all."""
    qos: frozenset[str]
    max_wall_min: int | None = None
    max_submit: int | None = None


@dataclass(frozen=True)
class Qos:
    """Of `sacctmgr show qos`; None: no limit."""

    name: str
    max_wall_min: int | None = None
    max_submit: int | None = None
    """Per user."""


ASSOCIATION_FORMAT = "Account,Partition,QOS,MaxWall,MaxSubmitJobs"
QOS_FORMAT = "Name,MaxWall,MaxSubmitJobsPerUser"


def parse_config(text: str) -> Config:
    """Read `scontrol show config`."""
    fields = dict(re.findall(r"^(\S+)\s*= ?(.*?)\s*$", text, flags=re.MULTILINE))
    if "SLURM_VERSION" not in fields:
        raise ValueError("scontrol show config: no SLURM_VERSION in what it printed")
    enforced = fields.get("AccountingStorageEnforce", "").lower()
    return Config(
        max_array_size=_number(fields.get("MaxArraySize", "")),
        accounting=fields.get("AccountingStorageType", "").endswith("slurmdbd"),
        enforced=frozenset(enforced.split(",")) - {"", "none", "0", "(null)"},
    )


def parse_partitions(text: str) -> tuple[Partition, ...]:
    """Read `scontrol --oneliner show partition`."""
    return tuple(_partition(fields) for fields in _lines(text, "PartitionName"))


def parse_nodes(text: str) -> tuple[Node, ...]:
    """Read `scontrol --oneliner show node`."""
    return tuple(_node(fields) for fields in _lines(text, "NodeName"))


def parse_associations(text: str) -> tuple[Association, ...]:
    """Read `sacctmgr --noheader --parsable2 show associations format=ASSOCIATION_FORMAT` of one user."""
    return tuple(
        Association(account, partition, frozenset(filter(None, qos.split(","))), _minutes(wall), _number(submit))
        for account, partition, qos, wall, submit in _rows(text, 5)
    )


def parse_qos(text: str) -> tuple[Qos, ...]:
    """Read `sacctmgr --noheader --parsable2 show qos format=QOS_FORMAT`."""
    return tuple(Qos(name, _minutes(wall), _number(submit)) for name, wall, submit in _rows(text, 3))


def features_of(constraint: str) -> list[str]:
    """Return the features that a --constraint names: ['a100', 'ib'] for '[a100*2&ib]'."""
    return re.findall(r"[A-Za-z_][A-Za-z0-9_.:=-]*", re.sub(r"\*\d+", "", constraint))


def has_features(node: Node, constraint: str) -> bool:
    """Whether a node can be one that `constraint` means; True where the expression is more than & or | alone."""
    if re.search(r"[][()*]", constraint) or {"&", "|"} <= set(constraint.replace(",", "&")):
        return True
    asked = features_of(constraint)
    return any(f in node.features for f in asked) if "|" in constraint else set(asked) <= node.features


def _partition(fields: dict[str, str]) -> Partition:
    return Partition(
        name=fields["PartitionName"],
        default=fields.get("Default") == "YES",
        state=fields.get("State", "UP"),
        max_time_min=_minutes(fields.get("MaxTime", "")),
        min_nodes=_number(fields.get("MinNodes", "")) or 0,
        max_nodes=_number(fields.get("MaxNodes", "")),
        max_cpus_per_node=_number(fields.get("MaxCPUsPerNode", "")),
        max_mem_per_node_mb=_number(fields.get("MaxMemPerNode", "")),
        preempt_mode=fields.get("PreemptMode", "OFF"),
        accounts=_names(fields.get("AllowAccounts", "ALL")),
        qos=_names(fields.get("AllowQos", "ALL")),
        denied_accounts=_names(fields.get("DenyAccounts", "")) or frozenset(),
        denied_qos=_names(fields.get("DenyQos", "")) or frozenset(),
    )


def _node(fields: dict[str, str]) -> Node:
    """CPUEfctv and MemSpecLimit leave out what SLURM keeps for the system."""
    # gpu:2, gpu:a100:4(S:0-1), or several types with a comma between
    gpus = re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", re.sub(r"\([^)]*\)", "", fields.get("Gres", "")))
    features = _names(fields.get("AvailableFeatures", ""))
    return Node(
        name=fields["NodeName"],
        cpus=int(fields.get("CPUEfctv") or fields["CPUTot"]),
        memory_mb=int(fields["RealMemory"]) - (_number(fields.get("MemSpecLimit", "")) or 0),
        gpus=sum(map(int, gpus)),
        features=features or frozenset(),
        partitions=_names(fields.get("Partitions", "")) or frozenset(),
    )


def _lines(text: str, first: str) -> list[dict[str, str]]:
    """KEY=VALUE pairs of each line that begins with the key `first`; of a value with blanks, its first word."""
    found = []
    for line in text.splitlines():
        fields: dict[str, str] = {}
        for key, value in re.findall(r"(?:^|\s)([A-Za-z]\w*)=(\S*)", line):
            fields.setdefault(key, value)
        if first in fields:
            found.append(fields)
    if text.strip() and not found and "no " not in text.lower():
        raise ValueError(f"scontrol: no {first}= in what it printed: {text.strip().splitlines()[0]!r}")
    return found


def _rows(text: str, columns: int) -> list[list[str]]:
    rows = [line.split("|") for line in text.splitlines() if line.strip()]
    if bad := next((row for row in rows if len(row) != columns), None):
        raise ValueError(f"sacctmgr: expected {columns} columns, got {'|'.join(bad)!r}")
    return rows


def _names(text: str) -> frozenset[str] | None:
    """Names of a list; None for all, or none."""
    return None if text == "ALL" or text in _NONE else frozenset(text.split(","))


def _number(text: str) -> int | None:
    return None if text in _NONE else int(text)


def _minutes(text: str) -> int | None:
    return None if text in _NONE else minutes(text)
