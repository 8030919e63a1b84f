"""The hosts form: each node with a hostname, an address and a cable of its own, on this one machine.

A holder is a process that does nothing but live in namespaces of its own (network, hostname, mounts). One holder is the
switch: in its network lies the bridge, with one port per node and one that leads to this machine. One holder per node
is the node: its slurmd is started into the holder's namespaces. Nothing has a name outside them but the machine's end
of one cable, and all of it goes when the holders go, however they end: a network namespace that is nobody's takes its
interfaces along, and an interface its peer.
"""

from __future__ import annotations

import os
import random
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster import processes
from devcluster.commands import ClusterError, call, find

PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
"""What the hosts form needs beside SLURM, and the packages that have it."""
SWITCH = "switch"
MACHINES_HOSTS = Path("/etc/hosts")
_BURST = "128kb"
_LATENCY = "200ms"
_REMOVED_S = 10


@dataclass(frozen=True)
class Subnet:
    """The first three numbers of the addresses: 198.18.0.0/15 is reserved for tests of networks (RFC 2544)."""

    prefix: str

    @property
    def machine(self) -> str:
        """This machine's address, where slurmctld and the user's commands are."""
        return f"{self.prefix}.254"

    @property
    def cable(self) -> str:
        """Name of this machine's end of the cable to the switch: one per subnet, so that no two clusters share one."""
        return "devc" + self.prefix.removeprefix("198.").replace(".", "-")

    def node(self, number: int) -> str:
        """Address of node `number`, from 1 on."""
        return f"{self.prefix}.{number}"


def refuse_where_impossible() -> None:
    """ValueError where this machine or user cannot have network namespaces."""
    if os.geteuid() != 0:
        raise ValueError(
            "--hosts: needs root, for network namespaces; leave it out (all nodes share this machine's name)"
        )
    try:
        call("unshare", "--net", "--uts", "--mount", "--propagation=slave", "true")
    except ClusterError as error:
        raise ValueError(
            "--hosts: root may make no namespaces here; run the container with --privileged, or leave --hosts out\n"
            f"{error}"
        ) from error


def holder(hosts: Path, hostname: str | None) -> list[str]:
    """Command of a holder, which reads names from the file `hosts` and calls itself `hostname`.

    The file covers /etc/hosts in the holder's own mount namespace only; other mounts are seen as on the machine.
    """
    script = f"mount --bind {shlex.quote(str(hosts))} /etc/hosts && "
    if hostname is not None:
        script += f"echo {hostname} > /proc/sys/kernel/hostname && "
    script += "ip link set lo up && exec sleep infinity"
    uts = ["--uts"] if hostname is not None else []
    return [find("unshare") or "unshare", "--net", *uts, "--mount", "--propagation=slave", "sh", "-c", script]


def inside(pid: int, *namespaces: str) -> list[str]:
    """Start of a command that runs in these namespaces (net, uts, mount) of a holder."""
    return [find("nsenter") or "nsenter", f"--target={pid}", *(f"--{name}" for name in namespaces), "--"]


def lives(pid: int) -> bool:
    """Whether a holder has entered its namespaces and is done with setting them up."""
    try:
        return (Path("/proc") / str(pid) / "comm").read_text().strip() == "sleep"
    except FileNotFoundError:
        return False


def hosts_file(subnet: Subnet, nodes: Sequence[str], machine: str) -> str:
    """Text of /etc/hosts for the nodes and the controller: the cluster's names, and this machine's other lines."""
    names = [(subnet.machine, machine), *((subnet.node(number), node) for number, node in enumerate(nodes, 1))]
    own = MACHINES_HOSTS.read_text().splitlines() if MACHINES_HOSTS.exists() else []
    taken = {name for _, name in names}
    lines = [f"{address} {name}" for address, name in names]
    lines += [line for line in own if taken.isdisjoint(line.split())]
    return "\n".join(lines) + "\n"


def lay_cable(switch: int) -> Subnet:
    """Join this machine and the switch, in a subnet that nobody uses here; ClusterError where there is none.

    The cable's name stands for the subnet and the kernel gives a name once, so clusters that start together differ.
    """
    used = call("ip", "-4", "-oneline", "address") + call("ip", "-4", "route")
    trouble = ""
    for number in random.sample(range(512), 64):
        subnet = Subnet(f"198.{18 + number // 256}.{number % 256}")
        if f" {subnet.prefix}." in used:
            continue
        try:
            call("ip", "link", "add", subnet.cable, "type", "veth", "peer", "name", "uplink", "netns", str(switch))
        except ClusterError as error:
            trouble = str(error)
            continue
        call("ip", "address", "add", f"{subnet.machine}/24", "dev", subnet.cable)
        call("ip", "link", "set", subnet.cable, "up")
        return subnet
    raise ClusterError(f"no network of 198.18.0.0/15 could be had\n{trouble}")


def connect(subnet: Subnet, switch: int, holders: Sequence[tuple[str, int]]) -> None:
    """Build the bridge, and a cable from it to each holder's eth0; `holders`: node and pid in the order of numbers."""
    lines = ["link add bridge type bridge", "link set bridge up", "link set uplink master bridge up"]
    for node, pid in holders:
        lines += [f"link add {node} type veth peer name eth0 netns {pid}", f"link set {node} master bridge up"]
    call(*inside(switch, "net"), "ip", "-batch", "-", text="\n".join(lines) + "\n")
    for number, (_, pid) in enumerate(holders, 1):
        lines = [f"address add {subnet.node(number)}/24 dev eth0", "link set eth0 up"]
        call(*inside(pid, "net"), "ip", "-batch", "-", text="\n".join(lines) + "\n")


def remove(cable: str) -> None:
    """Return once this machine's end of a cable is gone: the kernel takes it a moment after the holders end."""

    def gone() -> bool:
        return cable not in [name for _, name in socket.if_nameindex()]

    if not processes.wait_until(gone, _REMOVED_S) and os.geteuid() == 0:
        call("ip", "link", "delete", cable)


def set_link(switch: int, node: str, state: str) -> None:
    """Pull the node's cable out of the switch ('down') or put it back ('up')."""
    call(*inside(switch, "net"), "ip", "link", "set", node, state)


def set_rate(switch: int, node: str, pid: int, rate: str) -> None:
    """Let the node send and receive at most at `rate`, in tc's words (50mbit); 'none' for no limit."""
    limit = ["noqueue"] if rate == "none" else ["tbf", "rate", rate, "burst", _BURST, "latency", _LATENCY]
    for holder_pid, interface in ((switch, node), (pid, "eth0")):
        call(*inside(holder_pid, "net"), "tc", "qdisc", "replace", "dev", interface, "root", *limit)
