"""Which network interface leads to another node. gloo and NCCL otherwise guess, and gloo guesses from the host's name.

On many systems a machine's own name stands for a loopback address in /etc/hosts, where no other node can reach it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct

_SIOCGIFADDR = 0x8915  # linux/sockios.h
_ANY_PORT = 9
VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def addresses() -> dict[str, str]:
    """IPv4 address of each interface that has one, by the interface's name."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:  # no IPv4 address
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def reachable_as(hostname: str) -> list[str]:
    """Names and addresses under which other nodes may find this one, the likeliest first; loopback last."""
    own = [address for address in addresses().values() if not address.startswith("127.")]
    try:
        named = socket.gethostbyname(hostname)
    except OSError:
        return [*own, hostname]
    return [hostname, *own] if not named.startswith("127.") else [*own, hostname]


def source_address(host: str) -> str:
    """This machine's address on the way to `host` (nothing is sent). OSError if there is no way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, _ANY_PORT))
        address: str = probe.getsockname()[0]
        return address


def use(address: str) -> None:
    """Let gloo and NCCL use the interface with this address, unless the user has set one."""
    for name, own in addresses().items():
        if own == address:
            for variable in VARIABLES:
                os.environ.setdefault(variable, name)
