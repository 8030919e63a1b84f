"""What a cluster is: its size, its folder, its ports, and the slurm.conf that tells SLURM."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NAME = "devcluster"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user chooses."""

    nodes: int = 2
    cpus: int = 4
    """CPUs of each node, whatever the machine has: SLURM counts them and starts no more tasks than that."""
    grace_s: int = 30
    """Seconds between a preempted job's SIGTERM and its SIGKILL."""

    def __post_init__(self) -> None:
        for name, low, high in (("nodes", 1, 64), ("cpus", 1, 1024), ("grace_s", 0, 3600)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: got {getattr(self, name)}, allowed are {low} to {high}")

    @property
    def node_names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.nodes + 1)]


@dataclass(frozen=True)
class Folder:
    """Where everything of one cluster lies; nothing outside it is written."""

    path: Path

    @property
    def record(self) -> Path:
        """The processes of the cluster, as JSON; also marks the folder as one of ours."""
        return self.path / "cluster.json"

    @property
    def conf(self) -> Path:
        return self.path / "slurm.conf"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def munge_key(self) -> Path:
        return self.path / "munge" / "key"

    @property
    def munge_socket(self) -> Path:
        return self.path / "munge" / "socket"

    @property
    def controller_state(self) -> Path:
        return self.path / "controller"

    def spool(self, node: str) -> Path:
        """A node's own state: running steps, batch scripts."""
        return self.path / "spool" / node

    def check(self) -> None:
        """Raise ValueError where sockets in this folder would have too long a name, or slurm.conf could not hold it."""
        longest = len(os.fsencode(self.munge_socket)) + 5  # munged adds '.lock'
        if longest > 107:  # sun_path of unix(7), less the closing zero
            raise ValueError(
                f"--dir: {self.path} is {longest - 107} characters too long for a socket; take a shorter path"
            )
        if any(character.isspace() or character in "#,=\"'\\%" for character in str(self.path)):
            raise ValueError(f"--dir: {self.path} holds a space or one of #,=\"'\\% , which slurm.conf cannot quote")


def default_folder() -> Path:
    """The folder of `up`, `down` and `env` without --dir: one per user."""
    return base_folder() / f"slurm-dev-cluster-{os.getuid()}"


def base_folder() -> Path:
    """Where folders of clusters are made."""
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")


def free_ports(count: int) -> list[int]:
    """Random ports on which nobody listens now, outside the range from which the kernel picks ports by itself."""
    ports: list[int] = []
    for port in random.sample(range(20_000, 32_000), 4_000):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"no {count} free ports between 20000 and 32000 on this machine; end what listens there")


def slurm_conf(
    settings: Settings, folder: Folder, ports: Sequence[int], *, host: str, user: str, memory_mb: int
) -> str:
    """The text of slurm.conf. `ports`: the controller's, then one per node; `memory_mb`: what each node claims."""
    nodes = "".join(
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port}"
        f" CPUs={settings.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={settings.cpus} ThreadsPerCore=1"
        f" RealMemory={memory_mb} State=UNKNOWN\n"
        for name, port in zip(settings.node_names, ports[1:], strict=True)
    )
    return f"""\
ClusterName={NAME}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder.munge_socket}
StateSaveLocation={folder.controller_state}
SlurmctldPidFile={folder.path}/slurmctld.pid
SlurmdSpoolDir={folder.path}/spool/%n
SlurmdPidFile={folder.path}/slurmd-%n.pid

# no cgroups, no kernel features: works in a container
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none

# several nodes on one machine, each with as many CPUs as was asked for
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
# memory is checked against the node's, not used up: jobs may ask for --mem or leave it out
SelectTypeParameters=CR_Core

# preemption: a job in `urgent` puts jobs in `gpu` back into the queue
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5

# without accounting scontrol is all that knows ended jobs: an hour
AccountingStorageType=accounting_storage/none
MinJobAge=3600

{nodes}
PartitionName=gpu Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={settings.grace_s} State=UP
PartitionName=urgent Nodes=ALL Default=NO PriorityTier=10 PreemptMode=OFF State=UP
"""
