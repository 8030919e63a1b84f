from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hrdc_hpc.record import holder as holder_module
from hrdc_hpc.record import lease as lease_module
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import TTL_S, Lease, LeaseHeld, LeaseLost, peek

from contenders import contend


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", config_text="", manifest={})


def rewrite(run: RunFolder, **changes: Any) -> None:
    """Change what the lease says of its holder."""
    run.lease.write_text(json.dumps({**json.loads(run.lease.read_text()), **changes}))


def elsewhere(run: RunFolder, **changes: Any) -> None:
    """Make the holder one that nothing can be proved of from here."""
    rewrite(run, host="n7", boot_id="another", **changes)


def age(run: RunFolder, seconds: float) -> None:
    """Let the last sign of life be `seconds` ago."""
    then = time.time() - seconds
    os.utime(run.lease, (then, then))


def helpers(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.path.glob(".lease-*"))


_HOLD = """
import sys, time
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease
Lease.acquire(RunFolder(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other(run: RunFolder):
    """Another process that holds the lease."""
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(run.path)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_acquired_checked_renewed_released(run: RunFolder) -> None:
    assert peek(run) is None
    lease = Lease.acquire(run, {"cluster": "slurm", "job_id": "12_3", "restart_count": 2})
    lease.check()
    assert peek(run) == lease.holder
    for word in (f"process {os.getpid()} on {lease.holder.host}", "job 12_3 (restart 2)", "since 20"):
        assert word in str(peek(run))
    age(run, 50)
    lease.renew()
    assert time.time() - run.lease.stat().st_mtime < 5
    age(run, 50)
    lease.check()
    assert time.time() - run.lease.stat().st_mtime < 5
    lease.release()
    assert peek(run) is None
    assert not run.lease.exists()
    assert helpers(run) == []
    lease.release()  # a second time: nothing to do
    with pytest.raises(LeaseLost, match="the file is gone"):
        lease.check()
    Lease.acquire(run).check()


def test_live_holder_is_refused_with_who_and_what_to_do(run: RunFolder, other: subprocess.Popen[bytes]) -> None:
    with pytest.raises(LeaseHeld) as error:
        Lease.acquire(run)
    for word in (
        str(run.path),
        f"process {other.pid} on ",
        "Wait for the other or end it",
        "60 s",
        f"remove {run.lease}",
    ):
        assert word in str(error.value)
    assert helpers(run) == []


def test_dead_holder_on_this_machine_is_replaced_at_once(run: RunFolder, other: subprocess.Popen[bytes]) -> None:
    os.kill(other.pid, signal.SIGSTOP)
    with pytest.raises(LeaseHeld):  # stopped is not dead
        Lease.acquire(run)
    other.kill()
    while Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.001)
    assert peek(run) is None  # ended, and its parent has not even noticed
    Lease.acquire(run).check()
    assert helpers(run) == []


def test_reaped_holder_and_one_whose_pid_is_taken_by_another(run: RunFolder, other: subprocess.Popen[bytes]) -> None:
    other.kill()
    other.wait()
    Lease.acquire(run)
    rewrite(run, pid_start="1")  # our pid, of a process that started earlier
    first = Lease.acquire(run)
    first.check()


@pytest.mark.parametrize("change", [{"host": "n7"}, {"boot_id": "another"}, {"pid_namespace": "pid:[1]"}])
def test_a_pid_proves_nothing_elsewhere(change: dict[str, str], run: RunFolder, other: subprocess.Popen[bytes]) -> None:
    other.kill()
    other.wait()
    rewrite(run, **change)
    with pytest.raises(LeaseHeld):
        Lease.acquire(run)
    assert peek(run) is not None


def test_processes_hidden_from_us_are_alive(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease.acquire(run)

    def not_ours(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(holder_module.os, "kill", not_ours)
    monkeypatch.setattr(holder_module, "_stat", lambda _: None)
    assert peek(run) == lease.holder


def test_a_zombie_with_a_running_thread_is_alive(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease.acquire(run)
    stat = holder_module._stat(os.getpid())
    assert stat
    monkeypatch.setattr(holder_module, "_stat", lambda _: ["Z", *stat[1:]])
    stay = threading.Event()
    thread = threading.Thread(target=stay.wait)
    thread.start()
    assert peek(run) == lease.holder
    stay.set()
    thread.join()


def test_expiry_is_judged_by_the_clock_of_the_file_system(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    Lease.acquire(run)
    elsewhere(run)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10_000)
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * (now + 10_000)))
    age(run, 10_000 + TTL_S - 5)
    with pytest.raises(LeaseHeld, match=r"process \d+ on n7.*last sign of life 5\d s ago"):
        Lease.acquire(run)
    age(run, 10_000 + TTL_S + 1)
    assert peek(run) is None
    Lease.acquire(run).check()


def test_a_reader_who_may_not_write_can_peek(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease.acquire(run)
    elsewhere(run)
    real = Path.open

    def read_only(path: Path, mode: str = "r", **kwargs: Any) -> Any:
        if "r" not in mode:
            raise PermissionError(13, "Permission denied")
        return real(path, mode, **kwargs)

    monkeypatch.setattr(Path, "open", read_only)
    found = peek(run)
    assert found is not None
    assert found.token == lease.holder.token
    age(run, TTL_S + 1)
    assert peek(run) is None


def test_waits_for_the_holder_to_leave(run: RunFolder) -> None:
    lease = Lease.acquire(run)
    start = time.monotonic()
    with pytest.raises(LeaseHeld):
        Lease.acquire(run, wait_s=0.3)
    assert 0.3 <= time.monotonic() - start < 3
    timer = threading.Timer(0.2, lease.release)
    timer.start()
    Lease.acquire(run, wait_s=30).check()
    timer.join()


def test_waits_for_a_lost_holder_to_expire(run: RunFolder) -> None:
    Lease.acquire(run)
    elsewhere(run)
    with pytest.raises(LeaseHeld):
        Lease.acquire(run, ttl_s=1.0)
    start = time.monotonic()
    Lease.acquire(run, wait_s=30, ttl_s=1.0).check()
    assert time.monotonic() - start > 0.5


JOB = {"cluster": "slurm", "job_id": "77", "restart_count": 1}


@pytest.mark.parametrize(
    ("job", "taken"),
    [
        ({**JOB, "restart_count": 2}, True),
        ({**JOB, "job_id": 77, "restart_count": "2"}, True),
        (JOB, False),
        ({**JOB, "restart_count": 0}, False),
        ({**JOB, "job_id": "78", "restart_count": 2}, False),
        ({**JOB, "cluster": "other", "restart_count": 2}, False),
        ({}, False),
    ],
)
def test_requeued_job_takes_over_from_its_earlier_start(job: dict[str, Any], taken: bool, run: RunFolder) -> None:
    ghost = Lease.acquire(run, JOB)
    if not taken:
        with pytest.raises(LeaseHeld):
            Lease.acquire(run, job)
        ghost.check()
        return
    elsewhere(run)  # it may be alive, on a node that was cut off
    new = Lease.acquire(run, job)
    new.check()
    before = run.lease.read_bytes()
    for act in (ghost.check, ghost.renew):
        with pytest.raises(LeaseLost, match=rf"it is held by process {os.getpid()} on .*, job 77 \(restart 2\)"):
            act()
    ghost.release()
    assert run.lease.read_bytes() == before
    assert helpers(run) == []


def test_unreadable_lease_is_only_taken_once_it_expired(run: RunFolder) -> None:
    for content in (b"", b"\xff{", b"[]", b'{"token": "a"}'):
        run.lease.write_bytes(content)
        assert peek(run) is not None
        with pytest.raises(LeaseHeld, match="an unknown host"):
            Lease.acquire(run)
        age(run, TTL_S + 1)
        Lease.acquire(run).check()


# contenders


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
