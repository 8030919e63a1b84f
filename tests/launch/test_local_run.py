"""Real launches on this machine through submitit, of a copy of the package in which training is a small fake."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hrdc_hpc.cluster.ends import log_path, read_ends
from hrdc_hpc.cluster.jobs import Job, last_job
from hrdc_hpc.record.folder import RunFolder

from fake_site import Site

pytestmark = pytest.mark.slow


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.end()


def test_a_run_to_its_end_from_its_own_snapshot(site: Site) -> None:
    site.behave("finish")
    launched = site.launch("--wait", "--setup", "export FROM_SETUP='it is'")
    output, _ = launched.communicate(timeout=60)
    assert launched.returncode == 0, output
    assert "evaluated at step 8: fused 50.0 %" in output
    assert "fused *" in output
    assert output.splitlines()[-1] == f"run folder: {site.run}"
    code = RunFolder(site.run).code
    for rank in (0, 1):
        seen = site.saw(rank)
        assert seen["file"] == str(code / "hrdc_hpc" / "engine" / "trainer.py")
        assert seen["python_path"][0] == str(code)
        assert seen["torch_variables"] == []
        assert (seen["world_size"], seen["gpus"], seen["setup"]) == (2, "", "it is")
    assert site.saw(0)["rendezvous"] == site.saw(1)["rendezvous"]
    log = log_path(site.run, site.saw(0)["job"]["job_id"]).read_text()
    assert f"code {code / 'hrdc_hpc' / '__init__.py'}" in log
    again = site.launch()
    assert "is finished" in again.communicate(timeout=30)[0]
    assert again.returncode == 0


def test_a_rank_with_bad_data_gives_its_code_and_its_log(site: Site) -> None:
    site.behave("bad data")
    launched = site.launch("--wait")
    output, _ = launched.communicate(timeout=60)
    assert launched.returncode == 78, output
    assert "rank 1 on" in output
    assert "ValueError: data.dataset: no such image" in output
    job = last_job(site.run)
    assert job
    assert output.rstrip().endswith(f"Log: {log_path(site.run, job.job_id, 1)}")
    assert "Traceback" not in output  # the sentence says all


def test_a_killed_rank_is_told_from_its_peers_errors(site: Site) -> None:
    site.behave("killed")
    launched = site.launch("--wait")
    output, _ = launched.communicate(timeout=60)
    assert launched.returncode == 128 + signal.SIGKILL, output
    assert "killed by SIGKILL" in output


def test_a_local_run_outlives_its_launcher_stops_on_a_signal_and_resumes_on_the_first_code(site: Site) -> None:
    site.behave("wait for a stop")
    launched = site.launch()
    output, _ = launched.communicate(timeout=30)
    assert launched.returncode == 0, output
    controller = site.wait_for_ranks()
    assert "status cancel" in output
    assert f"--follow '{site.run}'".replace("it's", "it'\"'\"'s") in output

    refused = site.launch()
    said = refused.communicate(timeout=30)[0]
    assert "is running: process" in said
    assert f"job {controller}" in said
    assert refused.returncode == 78

    follower = site.start("--follow", str(site.run))
    os.kill(controller, signal.SIGTERM)
    text, _ = follower.communicate(timeout=30)
    assert follower.returncode == 75, text
    assert "stopped by SIGTERM" in text
    assert "goes on from the last checkpoint" in text

    site.behave("finish")
    site.trainer.write_text(site.trainer.read_text().replace('MARKER = "first"', 'MARKER = "second"'))
    (RunFolder(site.run).metrics / "attempt-1.jsonl").touch()
    resumed = site.launch("--wait")
    text, _ = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, text
    assert "differs from the present one in 1 files (hrdc_hpc/engine/trainer.py)" in text
    assert site.saw(0)["marker"] == "first"


def test_ctrl_c_saves_and_stops_a_local_run(site: Site) -> None:
    site.behave("wait for a stop")
    launched = site.launch("--wait")
    controller = site.wait_for_ranks()
    launched.send_signal(signal.SIGINT)
    output, _ = launched.communicate(timeout=30)
    assert launched.returncode == 130, output
    assert "stopping the run: it saves first" in output
    assert "stopped by SIGTERM" in output
    with pytest.raises(ProcessLookupError):
        os.killpg(controller, 0)


@pytest.mark.parametrize("installed", [False, True])
def test_the_printed_command_without_submitit_runs_the_same_snapshot(site: Site, installed: bool) -> None:
    site.behave("finish")
    if installed:  # an installed wheel has no jobs/ beside the package
        shutil.rmtree(site.source / "jobs")
    prepared = site.start("--cfg", "small.yaml", "--prepare")
    command = prepared.communicate(timeout=30)[0].splitlines()[-1]
    assert ("train.py" in command) != installed
    done = subprocess.run(
        ["bash", "-c", f'srun() {{ "$@"; }}; {command}'], cwd=site.cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert site.saw(0)["file"] == str(RunFolder(site.run).code / "hrdc_hpc" / "engine" / "trainer.py")
    assert site.saw(0)["world_size"] == 1


def test_the_entry_point_wants_a_run(site: Site) -> None:
    command = [sys.executable, "-P", str(site.source / "jobs" / "train.py"), "runs"]
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd="/", env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 78, done.stderr
    assert ", got runs; make one with" in done.stderr


def test_a_killed_controller_takes_its_ranks_along_and_they_save(site: Site) -> None:
    site.behave("wait for a stop, slowly")
    launched = site.launch("--wait")
    controller = site.wait_for_ranks()
    os.kill(controller, signal.SIGKILL)  # the controller alone, not its process group
    time.sleep(1.5)
    assert launched.poll() is None  # the ranks are still at it
    refused = site.launch()
    assert "is running: process" in refused.communicate(timeout=30)[0]
    assert refused.returncode == 78
    output, _ = launched.communicate(timeout=30)
    assert launched.returncode == 75, output
    assert "stopped by SIGTERM" in output
    end = time.monotonic() + 5
    while any(group == controller for group in _groups_at_work()):
        assert time.monotonic() < end, "a rank goes on without its controller"
        time.sleep(0.05)


def _groups_at_work() -> Iterator[int]:
    """Process groups of all processes that have not ended."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            if state not in "ZX":
                yield int(group)


def test_ctrl_c_in_a_follower_leaves_the_run_alone(site: Site) -> None:
    site.behave("wait for a stop")
    site.launch().communicate(timeout=30)
    controller = site.wait_for_ranks()
    follower = site.start("--follow", str(site.run))
    assert follower.stdout
    while "job is running" not in follower.stdout.readline():
        assert follower.poll() is None
    follower.send_signal(signal.SIGINT)
    output, _ = follower.communicate(timeout=30)
    assert follower.returncode == 130, output
    assert f"job {controller} goes on" in output
    os.kill(controller, 0)
    assert not read_ends(site.run, Job("local", str(controller)))
