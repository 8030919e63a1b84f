"""What a cluster is: its size, its folder, its ports."""

from __future__ import annotations

import os
import random
import socket
from dataclasses import dataclass
from pathlib import Path

NAME = "devcluster"
LOOPBACK = "127.0.0.1"
_ALLOWED = (("nodes", 1, 64), ("cpus", 1, 1024), ("grace_s", 0, 3600), ("node_timeout_s", 5, 3600), ("gpus", 0, 64))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user chooses."""

    nodes: int = 2
    cpus: int = 4
    """CPUs of each node, whatever the machine has: SLURM counts them and starts no more tasks than that."""
    grace_s: int = 30
    """Seconds between a preempted job's SIGTERM and its SIGKILL."""
    node_timeout_s: int = 20
    """Seconds of silence after which a node is DOWN and its jobs go back into the queue."""
    gpus: int = 0
    """GPUs of each node that are none: SLURM hands them out and sets CUDA_VISIBLE_DEVICES."""
    hosts: bool = False
    """Every node with its own hostname, address and cable (network.py); else all share this machine's."""
    accounting: bool = False
    """slurmdbd with a database of its own (accounting.py): sacct, sacctmgr and limits."""

    def __post_init__(self) -> None:
        for name, low, high in _ALLOWED:
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
    def gres_conf(self) -> Path:
        return self.path / "gres.conf"

    @property
    def gpus(self) -> Path:
        """Folder of the names that stand for GPUs, the same ones for every node."""
        return self.path / "gpus"

    @property
    def hosts(self) -> Path:
        """What the nodes of the hosts form read in place of /etc/hosts."""
        return self.path / "hosts"

    @property
    def control(self) -> Path:
        """The socket at which the supervisor listens."""
        return self.path / "control"

    @property
    def database(self) -> Path:
        return self.path / "db"

    @property
    def database_socket(self) -> Path:
        return self.database / "socket"

    @property
    def slurmdbd_conf(self) -> Path:
        return self.path / "slurmdbd.conf"

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
