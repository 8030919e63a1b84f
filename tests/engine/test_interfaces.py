"""Finding the network interface that leads to another node."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from hrdc_hpc.config.schema import Compute
from hrdc_hpc.engine import interfaces, processes
from hrdc_hpc.engine.place import NeverStop, Place


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """No interface is set, and what a test sets is gone afterwards: jobs of later tests would inherit it."""
    for variable in interfaces.VARIABLES:
        monkeypatch.setenv(variable, "")  # or monkeypatch would not know that it has to go
        monkeypatch.delenv(variable)


def test_loopback_is_found_by_its_address() -> None:
    assert interfaces.addresses()["lo"] == "127.0.0.1"
    assert interfaces.source_address("127.0.0.1") == "127.0.0.1"
    interfaces.use("127.0.0.1")
    assert {interfaces.os.environ[variable] for variable in interfaces.VARIABLES} == {"lo"}


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in interfaces.VARIABLES:
        monkeypatch.setenv(variable, "ib0")
    interfaces.use("127.0.0.1")
    assert {interfaces.os.environ[variable] for variable in interfaces.VARIABLES} == {"ib0"}


@pytest.mark.parametrize(
    ("named", "expected"),
    [("10.0.0.7", ["node7", "10.0.0.7", "192.168.1.7"]), ("127.0.1.1", ["10.0.0.7", "192.168.1.7", "node7"])],
)
def test_a_name_that_stands_for_loopback_comes_last(
    named: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"lo": "127.0.0.1", "eth0": "10.0.0.7", "eth1": "192.168.1.7"}
    monkeypatch.setattr(interfaces, "addresses", lambda: own)
    monkeypatch.setattr(socket, "gethostbyname", lambda _: named)
    assert interfaces.reachable_as("node7") == expected


def test_what_was_chosen_is_given_back(tmp_path: Path) -> None:
    place = Place(0, 1, 0, 1, tmp_path / "meeting.json", {"cpus_per_rank": 1})
    with processes.open_processes(place, Compute(device="cpu", threads=1)):
        assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert not any(variable in os.environ for variable in interfaces.VARIABLES)


def test_no_port_is_guessed(tmp_path: Path) -> None:
    """Ten jobs that start at once on one host: each rank 0 gets a free port, and its peers find it there."""
    places = [Place(0, 1, 0, 1, tmp_path / f"{number}.json", {"job_id": str(number)}) for number in range(10)]
    stores = [processes._meet(place, NeverStop()) for place in places]
    told = [json.loads(place.rendezvous.read_text()) for place in places]
    assert len({one["port"] for one in told}) == 10
    for number, (one, store) in enumerate(zip(told, stores, strict=True)):
        peer = TCPStore(one["hosts"][0], one["port"], 1, is_master=False)
        peer.set("job", str(number))
        assert store.get("job") == str(number).encode()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def two_hosts() -> Iterator[list[str]]:
    """Two network namespaces joined by a cable; in both, the machine's own name stands for a loopback address."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("nsenter") is None:
        pytest.skip("needs root, iproute2 and nsenter to make network namespaces")
    names = [f"hrdc{os.getpid()}{end}" for end in "ab"]
    made = []
    try:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no permission to make a network namespace: {error.stderr.decode().strip()}")
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", names[0], "link", "add", "cable0", "type", "veth", "peer", "name", "cable1", "netns", names[1])
        for number, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"cable{number}")
            ip("-n", name, "link", "set", f"cable{number}", "up")
        yield names
    finally:
        for name in made:
            ip("netns", "del", name)


@pytest.mark.slow
def test_ranks_on_two_hosts_find_each_other(two_hosts: list[str], tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name not in interfaces.VARIABLES}
    program = Path(__file__).parents[1] / "support" / "meet.py"
    ranks = [
        subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{host}", sys.executable, program, str(rank), tmp_path / "meet.json"],
            env=environ | {"PYTHONPATH": str(program.parents[2])}, stdout=subprocess.PIPE, text=True,
        )
        for rank, host in enumerate(two_hosts)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=120)[0].split() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert said == [["3", "cable0"], ["3", "cable1"]]


@pytest.mark.parametrize(
    ("given", "ranks", "cores"),
    [
        (3, 2, 3),  # what the scheduler gave, though the mask is the node's
        (64, 1, 6),  # promised more than the task was bound to
        (None, 2, 3),
        (None, 8, 1),
    ],
)
def test_cores_are_those_that_the_rank_was_given_and_may_use(
    given: int | None, ranks: int, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    place = Place(0, ranks, 0, ranks, tmp_path / "meet", {} if given is None else {"cpus_per_rank": given})
    assert processes.cores_of(place) == cores
