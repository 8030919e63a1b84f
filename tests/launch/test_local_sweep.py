"""Sweeps on this machine, of a copy of the package in which training is a small fake."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hrdc_hpc.cluster.jobs import last_job
from hrdc_hpc.cluster.sweep_results import result_rows
from hrdc_hpc.record.folder import RunFolder

from fake_site import Site

pytestmark = pytest.mark.slow

NAMES = ["seed-0", "seed-1", "seed-2"]
SWEEP = ("--ranks-per-node", "1", "--wait", "--sweep", "seed=0,1,2")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.end(*(made.run / name for name in NAMES))


def test_one_after_another_and_what_failed_again(site: Site) -> None:
    site.behave("finish")
    (site.cwd / "runs" / "behave-seed-1").write_text("wait for a stop")
    launched = site.launch(*SWEEP)
    wait_until_it_waits(site, "seed-1")
    assert RunFolder(site.run / "seed-0").state() == "finished"
    assert last_job(site.run / "seed-2") is None, "one at a time"
    second = site.launch("--ranks-per-node", "1", "--wait", "--sweep", "seed=8,9").communicate(timeout=30)[0]
    assert f"is being launched by process {launched.pid}" in second

    job = last_job(site.run / "seed-1")
    assert job
    (site.cwd / "runs" / "behave-seed-1").write_text("finish")

    os.kill(int(job.job_id), signal.SIGTERM)
    output, _ = launched.communicate(timeout=60)
    assert launched.returncode == 1, output
    assert "seed-1: " in output
    assert "stopped by SIGTERM" in output
    assert "1 of 3 did not finish" in output
    assert [row.finished for row in result_rows(site.run)] == [["seed-0", "seed-2"]]

    again = site.start("--resubmit-failed", str(site.run), "--cluster", "local", "--wait")
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0, output
    assert "1 to submit, 2 finished" in output
    assert "n" in output
    assert "50.00 ± 0.00" in (site.run / "results.md").read_text()
    followed = site.start("--follow", str(site.run))
    assert "50.00 ± 0.00" in followed.communicate(timeout=30)[0]
    assert followed.returncode == 0


def test_ctrl_c_saves_and_stops_those_at_work_and_starts_no_other(site: Site) -> None:
    site.behave("wait for a stop")
    launched = site.launch("--array-parallelism", "2", *SWEEP)
    for name in NAMES[:2]:
        wait_until_it_waits(site, name)
    launched.send_signal(signal.SIGINT)
    output, _ = launched.communicate(timeout=30)
    assert launched.returncode == 130, output
    assert "they save first" in output
    assert last_job(site.run / NAMES[2]) is None
    assert (site.run / NAMES[2] / "config.yaml").is_file(), "can be resubmitted"


def wait_until_it_waits(site: Site, name: str) -> None:
    end = time.monotonic() + 30
    while not any("waiting" in log.read_text() for log in (site.run / name / "logs").glob("*_0_log.out")):
        assert time.monotonic() < end, f"{name} did not start"
        time.sleep(0.05)
