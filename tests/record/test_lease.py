"""Taking, keeping and losing the lease of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hrdc_hpc.record import holder as holder_module
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import TTL_S, Lease, LeaseHeld, LeaseLost, peek

from leases import age, elsewhere, helpers, rewrite


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
