"""Run as two tasks of a step, on n1 and n2: bytes go from n1 to n2, which is found as ranks find each other.

Arguments: folder (shared), number of bytes. n1 prints as JSON what it took.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

from hrdc_hpc.engine import interfaces


def listen(told: Path) -> None:
    """Receive until the sender is done, and tell it from where how much came."""
    with socket.create_server(("", 0)) as server:
        names = interfaces.reachable_as(socket.gethostname())
        told.with_suffix(".new").write_text(json.dumps([names, server.getsockname()[1]]))
        told.with_suffix(".new").rename(told)
        connection, peer = server.accept()
        size = 0
        while data := connection.recv(1 << 16):
            size += len(data)
        connection.sendall(json.dumps([peer[0], size]).encode())


def send(told: Path, size: int) -> None:
    """Connect by the first name, send, and print how long it was until the other side had all."""
    while not told.exists():
        time.sleep(0.02)
    names, port = json.loads(told.read_text())
    with socket.create_connection((names[0], port)) as connection:
        began = time.monotonic()
        connection.sendall(bytes(size))
        connection.shutdown(socket.SHUT_WR)
        seen_as, got = json.loads(connection.recv(1000))
        took = time.monotonic() - began
    print(json.dumps({"name": names[0], "seen_as": seen_as, "got": got, "seconds": took, "host": socket.gethostname()}))


if __name__ == "__main__":
    file = Path(sys.argv[1]) / "told"
    listen(file) if os.environ["SLURMD_NODENAME"] == "n2" else send(file, int(sys.argv[2]))
