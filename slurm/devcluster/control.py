"""The supervisor's ear: a socket in the cluster's folder, one line of JSON there and one back."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator, Sequence

from devcluster.commands import ClusterError
from devcluster.settings import Folder

ANSWER_TIMEOUT_S = 60
"""Longer than the supervisor takes for anything that it can be told."""


@contextlib.contextmanager
def listening(folder: Folder, pause_s: float) -> Iterator[socket.socket]:
    """The supervisor's end, at which `serve` waits for `pause_s`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(folder.control))
        server.listen()
        server.settimeout(pause_s)
        yield server


def serve(server: socket.socket, carry_out: Callable[[Sequence[str]], str]) -> None:
    """Carry out one request, should one come in the server's pause, and answer with its text or its error."""
    try:
        connection, _ = server.accept()
    except TimeoutError:
        return
    with connection:
        connection.settimeout(1)
        try:
            request = json.loads(connection.makefile("r").readline())
        except (OSError, ValueError):  # whoever asked has gone
            return
        try:
            answer = {"said": carry_out(request)}
        except (ClusterError, OSError) as error:
            answer = {"error": str(error)}
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps(answer).encode() + b"\n")


def tell(folder: Folder, *request: str) -> str:
    """Have the supervisor do something; what it says, ClusterError if it could not or is not there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_TIMEOUT_S)
        try:
            connection.connect(str(folder.control))
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(connection.makefile("r").readline() or "{}")
        except OSError as error:
            raise ClusterError(f"no cluster answers in {folder.path} ({error}); see {folder.logs}") from error
    if "said" not in answer:
        raise ClusterError(answer.get("error", f"the cluster in {folder.path} ended"))
    return str(answer["said"])
