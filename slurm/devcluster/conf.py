"""The files that tell SLURM what the cluster is, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from devcluster.settings import NAME, Folder, Settings


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the daemons listen, and as whom they run."""

    host: str
    """Name of this machine."""
    user: str
    memory_mb: int
    """What each node claims to have."""
    address: str
    """slurmctld's."""
    port: int
    """slurmctld's."""
    node_addresses: Sequence[str]
    node_ports: Sequence[int]
    accounting_port: int
    """slurmdbd's, where there is one."""


def slurm_conf(settings: Settings, folder: Folder, place: Place) -> str:
    """The text of slurm.conf."""
    gres = f" Gres=gpu:{settings.gpus}" if settings.gpus else ""
    nodes = "".join(
        f"NodeName={name} NodeHostname={name if settings.hosts else 'localhost'} NodeAddr={address} Port={port}"
        f" CPUs={settings.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={settings.cpus} ThreadsPerCore=1"
        f" RealMemory={place.memory_mb}{gres} State=UNKNOWN\n"
        for name, address, port in zip(settings.node_names, place.node_addresses, place.node_ports, strict=True)
    )
    return f"""\
ClusterName={NAME}
SlurmctldHost={place.host}({place.address})
SlurmctldPort={place.port}
SlurmUser={place.user}
SlurmdUser={place.user}
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
# a node that is silent for so long is lost: its jobs are requeued; it is back when it is heard again
SlurmdTimeout={settings.node_timeout_s}
# slurmctld does not give up a node before a message to it has timed out, so this is part of the wait
MessageTimeout={min(10, max(3, settings.node_timeout_s // 2))}
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

# ended jobs stay known to scontrol for an hour
MinJobAge=3600
{_accounting(settings, folder, place)}
{nodes}
PartitionName=gpu Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={settings.grace_s} State=UP
PartitionName=urgent Nodes=ALL Default=NO PriorityTier=10 PreemptMode=OFF State=UP
"""


def _accounting(settings: Settings, folder: Folder, place: Place) -> str:
    gpus = "GresTypes=gpu\n" if settings.gpus else ""
    if not settings.accounting:
        return f"{gpus}AccountingStorageType=accounting_storage/none\n"
    return f"""\
{gpus}AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={place.address}
AccountingStoragePort={place.accounting_port}
# what talks to slurmdbd takes munged's socket from here, not from AuthInfo
AccountingStoragePass={folder.munge_socket}
AccountingStorageEnforce=associations,limits,qos
{"AccountingStorageTRES=gres/gpu" if settings.gpus else ""}
"""


def gres_conf(settings: Settings, folder: Folder) -> str:
    """The text of gres.conf: the same names on all nodes; SLURM counts them for each node by itself."""
    last = settings.gpus - 1
    numbers = f"[0-{last}]" if last else "0"
    return f"AutoDetect=off\nNodeName={','.join(settings.node_names)} Name=gpu File={folder.gpus}/nvidia{numbers}\n"


def slurmdbd_conf(folder: Folder, place: Place) -> str:
    """The text of slurmdbd.conf; slurmdbd wants it to be its user's alone."""
    return f"""\
DbdHost=localhost
DbdAddr={place.address}
DbdPort={place.accounting_port}
SlurmUser={place.user}
AuthType=auth/munge
AuthInfo=socket={folder.munge_socket}
PidFile={folder.path}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={place.user}
StorageLoc=slurm_acct_db
CommitDelay=1
"""
