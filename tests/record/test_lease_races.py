"""Several who want the lease at once, at every point where they can get in each other's way."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hrdc_hpc.record import lease as lease_module
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import TTL_S, Lease, LeaseHeld, LeaseLost

from contenders import contend
from leases import age, elsewhere, helpers, rewrite

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("before", ["free", "dead", "expired"])
def test_one_of_several_contenders_wins(before: str, run: RunFolder, tmp_path: Path) -> None:
    context, rounds, number = multiprocessing.get_context("spawn"), 25, 3
    barrier, won = context.Barrier(number + 1), tmp_path / "won"
    processes = [context.Process(target=contend, args=(run.path, barrier, won, rounds)) for _ in range(number)]
    for process in processes:
        process.start()
    try:
        for _ in range(rounds):
            run.lease.unlink(missing_ok=True)
            if before != "free":
                Lease.acquire(run)
                rewrite(run, **({"host": "n7"} if before == "expired" else {"pid_start": "1"}))
                age(run, TTL_S + 1 if before == "expired" else 0)
            barrier.wait(60)
            barrier.wait(60)
            assert won.read_text().splitlines()[-1].split()[1] == json.loads(run.lease.read_text())["token"]
            assert helpers(run) == []
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    assert [line.split()[0] for line in won.read_text().splitlines()] == [str(n) for n in range(rounds)]


def interleave(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], *, before: bool) -> None:
    """Let `act` happen right before or after a contender makes its claim, once."""
    real, pending = lease_module._link, [act]

    def link(holder: Any, target: Path) -> bool:
        if before and pending:
            pending.pop()()
        done = real(holder, target)
        if pending:
            pending.pop()()
        return done

    monkeypatch.setattr(lease_module, "_link", link)


def test_holder_that_wakes_up_while_it_is_being_replaced_keeps_the_lease(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease.acquire(run)
    elsewhere(run)
    age(run, TTL_S + 1)
    interleave(monkeypatch, lease.renew, before=False)
    with pytest.raises(LeaseHeld):
        Lease.acquire(run)
    lease.check()
    assert helpers(run) == []


def test_holder_that_checks_while_it_is_being_replaced_is_told(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease.acquire(run)
    elsewhere(run)
    age(run, TTL_S + 1)

    def check() -> None:
        with pytest.raises(LeaseLost, match="being taken over"):
            lease.check()

    interleave(monkeypatch, check, before=False)
    with pytest.raises(LeaseHeld):  # it saw the touch: neither goes on, and the next look decides
        Lease.acquire(run)


def test_holder_that_stalls_within_a_check_while_it_is_replaced_is_told(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease.acquire(run)
    elsewhere(run)
    age(run, TTL_S + 1)
    real, new = os.utime, list[Lease]()

    def late(file: int, *times: Any) -> None:
        if not new:  # the holder has read its token: all of a take-over happens before it touches the file
            monkeypatch.setattr(lease_module.os, "utime", real)
            new.append(Lease.acquire(run))
        real(file, *times)

    monkeypatch.setattr(lease_module.os, "utime", late)
    with pytest.raises(LeaseLost, match="it is held by"):
        lease.check()
    new[0].check()
    assert helpers(run) == []


def test_contender_that_stalls_while_another_takes_the_lease_does_not_take_it_back(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Lease.acquire(run).holder
    elsewhere(run)
    age(run, TTL_S + 1)
    real, new = lease_module._write, list[Lease]()

    def slow(path: Path, holder: Any) -> None:
        real(path, holder)
        if path.name == f".lease-{holder.token}" and not new:  # about to rename: its claim expires meanwhile
            monkeypatch.setattr(lease_module, "_write", real)
            claim = lease_module._claim(run.lease, old.token)
            os.utime(claim, (0, 0))
            new.append(Lease.acquire(run))

    monkeypatch.setattr(lease_module, "_write", slow)
    with pytest.raises(LeaseHeld, match="this run is being written by"):
        Lease.acquire(run)
    new[0].check()
    assert helpers(run) == []


def test_lease_released_and_taken_by_a_third_is_not_overwritten(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease.acquire(run)
    elsewhere(run)
    age(run, TTL_S + 1)
    third: list[Lease] = []

    def release_and_take() -> None:
        lease.release()
        third.append(Lease.acquire(run))

    interleave(monkeypatch, release_and_take, before=True)
    with pytest.raises(LeaseHeld):
        Lease.acquire(run)
    third[0].check()
    assert helpers(run) == []


def test_release_while_being_replaced_leaves_it_to_the_other(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease.acquire(run)
    elsewhere(run)
    age(run, TTL_S + 1)
    interleave(monkeypatch, lease.release, before=False)
    new = Lease.acquire(run)
    new.check()


def test_contender_that_died_over_its_claim_is_replaced_in_turn(run: RunFolder) -> None:
    holder = Lease.acquire(run).holder
    rewrite(run, pid_start="1")
    dead = lease_module.replace(holder, token="dead", pid_start="1")
    live = lease_module.replace(holder, token="live")
    assert lease_module._link(dead, lease_module._claim(run.lease, holder.token))
    after_dead = lease_module._claim(run.lease, "dead")
    assert lease_module._link(live, after_dead)
    with pytest.raises(LeaseHeld):  # one that lives is at it
        Lease.acquire(run)
    after_dead.unlink()
    Lease.acquire(run).check()
    assert helpers(run) == []


def test_contender_taken_for_dead_itself_steps_back(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    Lease.acquire(run)
    rewrite(run, pid_start="1")
    real = lease_module._write

    def slow(path: Path, holder: Any) -> None:
        real(path, holder)
        if path.name == f".lease-{holder.token}":  # about to rename: another claims it meanwhile
            other = lease_module.replace(holder, token="other")
            assert lease_module._link(other, lease_module._claim(run.lease, holder.token))

    monkeypatch.setattr(lease_module, "_write", slow)
    before = run.lease.read_bytes()
    with pytest.raises(LeaseHeld):
        Lease.acquire(run)
    assert run.lease.read_bytes() == before


# file systems


def test_answer_lost_on_nfs(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def link_twice(source: Path, target: Path) -> None:
        real(source, target)
        real(source, target)

    monkeypatch.setattr(lease_module.os, "link", link_twice)
    Lease.acquire(run).check()


def test_file_system_without_hard_links(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(lease_module.os, "link", refuse)
    with pytest.raises(RuntimeError, match="no hard links"):
        Lease.acquire(run)
    assert helpers(run) == []


def test_old_leftovers_of_contenders_are_removed(run: RunFolder) -> None:
    for name, seconds in ((".lease-old", 20 * TTL_S), (".lease-new", 2)):
        (run.path / name).touch()
        then = time.time() - seconds
        os.utime(run.path / name, (then, then))
    Lease.acquire(run)
    assert helpers(run) == [".lease-new"]
