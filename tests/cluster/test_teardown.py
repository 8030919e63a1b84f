"""What the batch script is told to do after srun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hrdc_hpc.cluster.history import history
from hrdc_hpc.cluster.jobs import Job, note_job
from hrdc_hpc.cluster.teardown import SCRIPT, after_srun, answer

from attempts import add_attempt, empty_run

RUNNING = {"JobState": "RUNNING", "PreemptTime": "None", "Reason": "None", "Requeue": "1", "ExcNodeList": "(null)"}


def told(run: Path, rc: int, restart: int = 0, **shown: str) -> str:
    return answer(run, rc, RUNNING | shown, "7", restart)[0]


def test_a_killed_rank_comes_back_and_is_written_down(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    add_attempt(run, saved=5, farewell="RuntimeError: Connection closed by peer")
    assert told(run, 137) == "requeue"
    assert (history(run)[0].cause, history(run)[0].words[:24]) == ("killed", "a rank was killed by SIG")


def test_an_error_is_not_taken_for_a_kill(tmp_path: Path) -> None:
    """Its peers are killed by srun afterwards, and that is the code that srun leaves with."""
    run = empty_run(tmp_path)
    add_attempt(run, saved=5, end=(1, "OSError: the disk is gone", None))
    assert told(run, 137) == "requeue"
    assert history(run)[0].words == "OSError: the disk is gone"


@pytest.mark.parametrize("code", [1, 70, 75])
def test_ends_that_come_back(tmp_path: Path, code: int) -> None:
    run = empty_run(tmp_path)
    add_attempt(run, saved=5, end=(code, "stopped by SIGUSR2", None))
    assert told(run, code) == "requeue"


def test_what_would_come_again_stays(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    add_attempt(run, end=(78, "ValueError: optim.lr", None))
    assert told(run, 78) == "stay"


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING", "REQUEUED", "NODE_FAIL"])
def test_a_job_that_slurm_has_taken_in_hand_stays(tmp_path: Path, state: str) -> None:
    run = empty_run(tmp_path)
    add_attempt(run, saved=5, end=(1, "OSError: disk", None))
    assert told(run, 143, JobState=state) == "stay"
    assert answer(run, 143, {}, "7", 0)[0] == "stay", "SLURM does not answer: nobody knows whether it was cancelled"


def test_no_requeue_stays(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    add_attempt(run, saved=5, end=(75, "stopped by SIGUSR2", None))
    assert told(run, 75, Requeue="0") == "stay"


def test_a_container_without_scontrol_is_asked_for_from_outside(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    said = "stopped by SIGTERM; could not be requeued: scontrol is not on the PATH"
    add_attempt(run, saved=5, farewell="SIGTERM", end=(75, said, "stopped"))
    assert told(run, 75, PreemptTime="2026-11-24T02:12:00") == "requeue"
    assert told(run, 75) == "stay", "SIGTERM without preemption is scancel"


def test_bad_nodes_are_kept_away_from(tmp_path: Path) -> None:
    run = empty_run(tmp_path, "run", "cluster.requeue.excluded_nodes=2")
    add_attempt(run, saved=5, end=(71, "GPU 3", None))

    def failed(node: str, kind: str = "check") -> None:
        with (run / "health.jsonl").open("a") as file:
            file.write(json.dumps({"job_id": "7", "restart_count": 0, "node": node, "kind": kind}) + "\n")

    failed("n2")
    assert told(run, 71) == "requeue n2"
    assert told(run, 71, ExcNodeList="n4") == "requeue n4,n2", "what the user excluded stays excluded"
    assert told(run, 71, ExcNodeList="n[1-2],n2") == "requeue"
    failed("n1", "nonfinite")
    assert told(run, 71) == "requeue n2", "once may have any cause"
    failed("n1", "nonfinite")
    assert told(run, 71) == "requeue n2,n1"
    failed("n3")
    assert len(told(run, 71).split(",")) == 2, "the cap"


def test_the_rest_of_a_chain_is_cancelled_when_the_run_is_finished(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    for link in ("7", "8", "9"):
        note_job(run, Job("slurm", link), chain="7")
    assert told(run, 0) == "cancel 8", "but for the last link, for which others may wait"
    assert answer(run, 0, RUNNING, "9", 0)[0] == "stay"


def test_used_up_requeues_stay(tmp_path: Path) -> None:
    run = empty_run(tmp_path, "run", "cluster.requeue.failures=1")
    add_attempt(run, saved=5, end=(1, "OSError: disk", None))
    assert told(run, 1) == "requeue"
    add_attempt(run, restart=1, resumed=5, saved=10, end=(1, "OSError: disk", None))
    assert told(run, 1, restart=1) == "stay"


SCONTROL = """#!/bin/bash
echo "$(basename "$0") $@" >> asked
if [ "$2" = show ]; then echo "JobId=7 JobState=RUNNING Reason=None PreemptTime=None Requeue=1 ExcNodeList=(null)"; fi
"""


def test_the_script_acts_and_keeps_the_exit_code(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    add_attempt(run, job="7_3", saved=5, end=(71, "GPU 3", None))
    (run / "health.jsonl").write_text(json.dumps({"job_id": "7_3", "node": "n2", "kind": "check"}) + "\n")
    for program in ("scontrol", "scancel"):
        (tmp_path / program).write_text(SCONTROL)
        (tmp_path / program).chmod(0o755)
    script = "\n".join(["(exit 71)", *after_srun(f"'{run}'", sys.executable)])
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "9"}
    environ |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environ, check=False, capture_output=True, text=True
    )
    assert done.returncode == 71, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[1:] == ["scontrol requeue 7_3", "scontrol update JobId=7_3 ExcNodeList=n2"]
    assert "requeue n2 (bad node (1 of 5))" in done.stderr
    assert "@" not in "\n".join(after_srun("R", "P")).replace('"$@"', "")
    assert SCRIPT.count("exit $rc") == 1
