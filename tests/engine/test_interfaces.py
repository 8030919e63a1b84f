"""Finding the network interface that leads to another node."""

from __future__ import annotations

import socket

import pytest

from hrdc_hpc.engine import interfaces


def test_loopback_is_found_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in interfaces.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
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
