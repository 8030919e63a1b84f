"""What the cluster has, compared with what is asked of it, before a job waits for ever. Torch-free.

SLURM takes many jobs that can never start: 22.05 with EnforcePartLimits=NO queues one whose time limit or nodes are
above the partition's, or that wants more CPUs than any node has. What SLURM does not say, or says in a way that is not
known here, is a warning and never a refusal. JobRequeue=0 is not looked at: our --requeue goes before it (seen).
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TypeVar

from hrdc_hpc.cluster import scheduler
from hrdc_hpc.cluster import slurm_facts as slurm
from hrdc_hpc.cluster.shape import ranks_per_node
from hrdc_hpc.config.cluster import Cluster
from hrdc_hpc.config.nodes import node_range

T = TypeVar("T")


@dataclass(frozen=True)
class Facts:
    """What SLURM said; an empty part was not answered."""

    config: slurm.Config = field(default_factory=slurm.Config)
    partitions: tuple[slurm.Partition, ...] = ()
    nodes: tuple[slurm.Node, ...] = ()
    associations: tuple[slurm.Association, ...] = ()
    """Of this user; empty without accounting."""
    qos: tuple[slurm.Qos, ...] = ()
    unknown: tuple[str, ...] = ()
    """What could not be asked or understood, one line each."""


def check(cluster: Cluster) -> list[str]:
    """Ask SLURM and compare; warnings and remarks. Raises ValueError with everything that would never start."""
    facts = ask()
    problems, remarks = compare(cluster, facts)
    if problems:
        raise ValueError("\n".join(["SLURM could not start this job:", *(f"  {problem}" for problem in problems)]))
    return [*(f"not compared with the cluster's limits: {what}" for what in facts.unknown), *remarks]


def array_limit() -> int | None:
    """How many elements an array may have, its indices going from 0; None where SLURM does not say."""
    return ask(accounting=False).config.max_array_size


def submit_limit() -> int | None:
    """How many jobs this user may have in the queue at once; None: no limit, or SLURM does not say.

    The smallest over the user's accounts and the QOS that they allow; elements of an array count each.
    """
    facts = ask()
    usable = {name for one in facts.associations for name in one.qos}
    limits = [one.max_submit for one in facts.associations]
    limits += [one.max_submit for one in facts.qos if one.name in usable]
    return min((limit for limit in limits if limit is not None), default=None)


def ask(*, accounting: bool = True) -> Facts:
    """Ask scontrol and, where there is accounting, sacctmgr."""
    unknown: list[str] = []

    def answer(parse: Callable[[str], T], *command: str) -> T | None:
        try:
            return parse(scheduler.call(*command))
        except (scheduler.SchedulerError, ValueError, KeyError) as error:
            unknown.append(f"{' '.join(command[:4])}: {error}".replace("\n", " "))
            return None

    config = answer(slurm.parse_config, "scontrol", "show", "config")
    if config is None:  # neither would the rest be answered
        return Facts(unknown=tuple(unknown))
    partitions = answer(slurm.parse_partitions, "scontrol", "--oneliner", "show", "partition")
    nodes = answer(slurm.parse_nodes, "scontrol", "--oneliner", "show", "node")
    associations = qos = None
    if config.accounting and accounting:
        show = ("sacctmgr", "--noheader", "--parsable2", "show")
        of_user = ("associations", "where", f"user={getpass.getuser()}", f"format={slurm.ASSOCIATION_FORMAT}")
        associations = answer(slurm.parse_associations, *show, *of_user)
        qos = answer(slurm.parse_qos, *show, "qos", f"format={slurm.QOS_FORMAT}")
    return Facts(config, partitions or (), nodes or (), associations or (), qos or (), tuple(unknown))


def compare(cluster: Cluster, facts: Facts) -> tuple[list[str], list[str]]:
    """Return what would never start, and what the user should know. Of several partitions SLURM needs one that fits."""
    problems: list[str] = []
    fitting: list[slurm.Partition] = []
    if facts.partitions:
        chosen, missing = _chosen(cluster, facts.partitions)
        problems += missing
        unfit = {one.name: list(_of_partition(cluster, facts, one)) for one in chosen}
        fitting = [one for one in chosen if not unfit[one.name]]
        if not fitting and not missing:
            problems += [problem for found in unfit.values() for problem in found]
    problems += _of_accounts(cluster, facts)
    return list(dict.fromkeys(problems)), [remark for one in fitting for remark in _remarks(cluster, facts, one)]


def _chosen(cluster: Cluster, partitions: Iterable[slurm.Partition]) -> tuple[list[slurm.Partition], list[str]]:
    by_name = {one.name: one for one in partitions}
    if cluster.partition is None:
        default = [one for one in by_name.values() if one.default]
        none = f"cluster.partition: not given, and this cluster has no default; choose of {', '.join(sorted(by_name))}"
        return default, [] if default else [f"{none} (--partition)"]
    names = [name for name in cluster.partition.split(",") if name]
    missing = [
        f"cluster.partition: there is no {name!r}; {_nearest(name, by_name)}" for name in names if name not in by_name
    ]
    return [by_name[name] for name in names if name in by_name], missing


def _of_partition(cluster: Cluster, facts: Facts, partition: slurm.Partition) -> Iterator[str]:
    where = f"partition {partition.name}"
    fewest, most = node_range(cluster.nodes)
    if partition.state in ("INACTIVE", "DRAIN"):
        yield f"cluster.partition: {where} takes no jobs now (its state is {partition.state}); choose another, or wait"
    if partition.max_time_min is not None and cluster.time_min > partition.max_time_min:
        yield (
            f"cluster.time_min: {cluster.time_min}, but {where} allows {partition.max_time_min} minutes; lower --time:"
            " the run stops, saves and comes back at the limit"
        )
    if partition.max_nodes is not None and most > partition.max_nodes:
        yield f"cluster.nodes: {cluster.nodes}, but {where} allows {partition.max_nodes} for a job; lower --nodes"
    if fewest < partition.min_nodes:
        yield f"cluster.nodes: {cluster.nodes}, but {where} wants {partition.min_nodes} or more; raise --nodes"
    cpus = _cpus(cluster)
    if partition.max_cpus_per_node is not None and cpus > partition.max_cpus_per_node:
        yield f"{_asked_cpus(cluster)}, but {where} allows {partition.max_cpus_per_node} of a node; lower one of them"
    memory = (cluster.mem_gb or 0) * 1024
    if partition.max_mem_per_node_mb is not None and memory > partition.max_mem_per_node_mb:
        allowed = partition.max_mem_per_node_mb // 1024
        yield f"cluster.mem_gb: {cluster.mem_gb}, but {where} allows {allowed} GB of a node; lower --mem-gb"
    yield from _of_nodes(cluster, where, [node for node in facts.nodes if partition.name in node.partitions])


def _of_nodes(cluster: Cluster, where: str, nodes: list[slurm.Node]) -> Iterator[str]:
    """Each demand by itself against the best node, then all of them together against the number of nodes."""
    if not nodes:
        return
    alone = list(_of_best_node(cluster, where, nodes))
    yield from alone
    fitting = [node for node in nodes if _fits(cluster, node)]
    fewest, _ = node_range(cluster.nodes)
    if not alone and len(fitting) < fewest:
        asked = f"{_cpus(cluster)} CPUs, {cluster.gpus_per_node} GPUs"
        asked += f", {cluster.mem_gb} GB" if cluster.mem_gb else ""
        asked += f" and {cluster.constraint}" if cluster.constraint else ""
        yield (
            f"cluster.nodes: {cluster.nodes}, but {where} has {len(fitting)} nodes"
            f" (of {len(nodes)}) with {asked}; lower --nodes or what is asked of each"
        )


def _of_best_node(cluster: Cluster, where: str, nodes: list[slurm.Node]) -> Iterator[str]:
    gpus, cpus, memory = (max(values) for values in zip(*((n.gpus, n.cpus, n.memory_mb) for n in nodes), strict=True))
    if cluster.gpus_per_node > gpus:
        has = f"no node of {where} has more than {gpus}" if gpus else f"no node of {where} has GPUs"
        yield f"cluster.gpus_per_node: {cluster.gpus_per_node}, but {has}; lower --gpus-per-node"
    if _cpus(cluster) > cpus:
        yield f"{_asked_cpus(cluster)}, but no node of {where} has more than {cpus}; lower one of them"
    if (cluster.mem_gb or 0) * 1024 > memory:
        yield f"cluster.mem_gb: {cluster.mem_gb}, but no node of {where} has more than {memory // 1024}; lower --mem-gb"
    if cluster.constraint:
        there = {feature for node in nodes for feature in node.features}
        for feature in slurm.features_of(cluster.constraint):
            if feature not in there:
                yield f"cluster.constraint: no node of {where} has the feature {feature!r}; {_nearest(feature, there)}"


def _fits(cluster: Cluster, node: slurm.Node) -> bool:
    return (
        node.cpus >= _cpus(cluster)
        and node.gpus >= cluster.gpus_per_node
        and node.memory_mb >= (cluster.mem_gb or 0) * 1024
        and (cluster.constraint is None or slurm.has_features(node, cluster.constraint))
    )


def _of_accounts(cluster: Cluster, facts: Facts) -> Iterator[str]:
    """Only what the cluster enforces: without that SLURM takes any account."""
    enforced, mine = facts.config.enforced, facts.associations
    if not mine or not enforced:
        return
    accounts = {one.account for one in mine}
    if cluster.account and cluster.account.lower() not in accounts:
        yield f"cluster.account: {cluster.account!r} is not one of yours; {_nearest(cluster.account, accounts)}"
    elif cluster.account:
        mine = tuple(one for one in mine if one.account == cluster.account.lower())
    allowed = {name for one in mine for name in one.qos}
    if cluster.qos and cluster.qos not in allowed and "qos" in enforced:
        of = f" with account {cluster.account}" if len({one.account for one in mine}) == 1 else ""
        yield f"cluster.qos: you may not use {cluster.qos!r}{of}; {_nearest(cluster.qos, allowed)}"
    if "limits" not in enforced:
        return
    walls = [one.max_wall_min for one in mine]
    wall = None if None in walls else max(wall for wall in walls if wall is not None)
    if wall is not None and cluster.time_min > wall:
        yield f"cluster.time_min: {cluster.time_min}, but your account allows {wall} minutes; lower --time"
    wall = next((one.max_wall_min for one in facts.qos if one.name == cluster.qos), None)
    if wall is not None and cluster.time_min > wall:
        yield f"cluster.time_min: {cluster.time_min}, but qos {cluster.qos} allows {wall} minutes; lower --time"


def _remarks(cluster: Cluster, facts: Facts, partition: slurm.Partition) -> Iterator[str]:
    if partition.state == "DOWN":
        yield f"partition {partition.name} is DOWN: it queues jobs and starts none until it is up again"
    for what, name, allowed, denied in (
        ("account", cluster.account, partition.accounts, partition.denied_accounts),
        ("qos", cluster.qos, partition.qos, partition.denied_qos),
    ):  # lists may name parents of an account: SLURM has the last word
        if name and ((allowed is not None and name not in allowed) or name in denied):
            of = f"for {', '.join(sorted(allowed))}" if allowed is not None else f"not for {name}"
            yield f"partition {partition.name} is {of}; the job may wait for ever with {what} {name}"
    if partition.preempt_mode.split(",")[-1] == "CANCEL":
        yield f"partition {partition.name} cancels the jobs that it preempts: the same command resumes the run"
    _, most = node_range(cluster.nodes)
    here = sum(partition.name in node.partitions and _fits(cluster, node) for node in facts.nodes)
    if facts.nodes and most > here:
        yield f"partition {partition.name} has {here} nodes that fit: of {cluster.nodes} nodes it never gives more"


def _cpus(cluster: Cluster) -> int:
    """CPUs that a node must have."""
    return ranks_per_node(cluster) * cluster.cpus_per_rank


def _asked_cpus(cluster: Cluster) -> str:
    return f"cluster.cpus_per_rank: {cluster.cpus_per_rank} for each of {ranks_per_node(cluster)} ranks of a node"


def _nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean ...?', or all that there is."""
    names = sorted(known)
    if close := get_close_matches(name, names, n=3):
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"there is {', '.join(names[:20])}" if names else "there is none"
