"""What the batch script is told to do after srun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from hrdc_hpc.cluster.ends import note_end
from hrdc_hpc.cluster.history import history
from hrdc_hpc.cluster.jobs import Job, note_job
from hrdc_hpc.cluster.script import before
from hrdc_hpc.cluster.teardown import SCRIPT, TRAP, after_srun, answer
from hrdc_hpc.config.load import loads
from hrdc_hpc.record.folder import RunFolder

from attempts import add_attempt, empty_run

pytestmark = pytest.mark.slow

RUNNING = {"JobState": "RUNNING", "PreemptTime": "None", "Reason": "None", "Requeue": "1", "ExcNodeList": "(null)"}


def told(run: Path, rc: int, restart: int = 0, **shown: str) -> str:
    return answer(run, rc, RUNNING | shown, "7", restart)[0]


def test_a_killed_rank_comes_back_and_is_written_down(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    add_attempt(run, saved=5, farewell="RuntimeError: Connection closed by peer")
    assert told(run, 137) == "requeue"
    assert (history(run)[0].cause, history(run)[0].words[:24]) == ("killed", "a rank was killed by SIG")


def test_a_peer_that_srun_has_stopped_does_not_hide_a_kill(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    said = "stopped by SIGTERM, though SLURM has not ended the job: a peer has failed?"
    add_attempt(run, saved=5, farewell="SIGTERM", end=(75, said, "stopped"))
    assert told(run, 137) == "requeue"
    assert history(run)[0].cause == "killed"


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
    assert answer(run, 143, {}, "7", 0)[0] == "again", "SLURM does not answer: nobody knows whether it was cancelled"


def test_no_requeue_stays(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    add_attempt(run, saved=5, end=(75, "stopped by SIGUSR2", None))
    assert told(run, 75, Requeue="0") == "stay"


def test_a_container_without_scontrol_is_asked_for_from_outside(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    said = "stopped by SIGTERM; could not be requeued: scontrol is not on the PATH"
    add_attempt(run, saved=5, farewell="SIGTERM", end=(75, said, "stopped"))
    assert told(run, 75, PreemptTime="2026-11-24T02:12:00") == "requeue"
    assert told(run, 75) == "requeue", "nor did anybody cancel it"
    assert told(run, 75, JobState="COMPLETING") == "stay", "SIGTERM without preemption is scancel"


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


def test_a_start_without_an_attempt_does_not_come_back_for_ever(tmp_path: Path) -> None:
    """With the first or a later start; whether a rank could say why, or srun alone did."""
    for begun, words in ((0, "ImportError: libnccl"), (1, "ImportError: libnccl"), (0, ""), (1, "")):
        run = empty_run(tmp_path, f"run-{begun}{bool(words)}")
        if begun:
            add_attempt(run, saved=5, farewell="SIGTERM", end=(75, "preempted", "preempted"))
        answers = []
        for restart in range(begun, begun + 3):
            if words:
                note_end(run, job_id="7", rank=0, code=1, reason=words, restart_count=restart)
            answers.append(told(run, 1, restart))
        assert answers == ["requeue", "stay", "stay"]


def test_a_second_job_of_the_run_stays_away(tmp_path: Path) -> None:
    """It found the lease taken, before it began an attempt."""
    run = empty_run(tmp_path)
    add_attempt(run, job="6", saved=5)
    note_end(run, job_id="7", rank=0, code=78, reason="LeaseHeld: written by job 6", restart_count=0)
    assert told(run, 78) == "stay"


@pytest.mark.parametrize("restarts", ["0", "1"])
def test_what_rank_0_has_requeued_is_not_requeued_again(tmp_path: Path, restarts: str) -> None:
    """24.11 shows PreemptTime on, and may count later; a requeue that it refuses would keep the batch script busy."""
    run = empty_run(tmp_path)
    add_attempt(run, saved=5, farewell="SIGTERM", end=(75, "preempted", "preempted"))
    assert told(run, 75, JobState="COMPLETING", PreemptTime="2026-11-24T02:12:00", Restarts=restarts) == "stay"


def test_what_slurm_has_requeued_by_itself_is_left_to_it(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    add_attempt(run, saved=5)
    assert told(run, 137, JobState="COMPLETING", PreemptTime="2026-11-24T02:12:00", Restarts="1") == "stay"


def test_a_stop_that_srun_ended_with_a_kill_is_still_a_stop(tmp_path: Path) -> None:
    """A peer that is slow to leave gives srun its own code."""
    run = empty_run(tmp_path)
    said = "stopped by SIGTERM; could not be requeued: scontrol is not on the PATH"
    add_attempt(run, saved=5, farewell="SIGTERM", end=(75, said, "stopped"))
    assert told(run, 137, JobState="COMPLETING") == "stay", "SIGTERM without preemption is scancel"


def test_used_up_requeues_stay(tmp_path: Path) -> None:
    run = empty_run(tmp_path, "run", "cluster.requeue.failures=1")
    add_attempt(run, saved=5, end=(1, "OSError: disk", None))
    assert told(run, 1) == "requeue"
    add_attempt(run, restart=1, resumed=5, saved=10, end=(1, "OSError: disk", None))
    assert told(run, 1, restart=1) == "stay"


SCONTROL = """#!/bin/bash
echo "$(basename "$0") $@" >> asked
if [ -s failures ]; then head -1 failures >&2; sed -i 1d failures; exit 1; fi
shown="JobId=7 JobState=$(cat state) Reason=None PreemptTime=None Requeue=1 Restarts=0 ExcNodeList=(null)"
if [ "$1" = --oneliner ]; then echo "$shown"; fi
if [ "$1" = requeue ]; then kill -TERM 0; sleep 0.2; fi  # as SLURM does: the whole job, this program too
"""


SOURCE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Batch:
    """A batch script after srun, among programs that write down what they are asked."""

    place: Path
    run: Path

    def start(self, rc: int, python: str = sys.executable, before: str = "") -> subprocess.Popen[str]:
        script = "\n".join([before, TRAP, f"(exit {rc})", *after_srun(f"'{self.run}'", python)])
        environ = os.environ | {"PATH": f"{self.place}:{os.environ['PATH']}", "SLURM_JOB_ID": "9"}
        environ |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "PYTHONPATH": str(SOURCE)}
        return subprocess.Popen(
            ["bash", "-c", script], cwd=self.place, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip

    def asked(self) -> list[str]:
        return [line.removeprefix("scontrol ") for line in (self.place / "asked").read_text().splitlines()]


SHOW = "--oneliner show job 7_3"
REQUEUED = ["requeue 7_3", "update JobId=7_3 ExcNodeList=n2"]


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    run = empty_run(tmp_path)
    add_attempt(run, job="7_3", saved=5, end=(71, "GPU 3", None))
    (run / "health.jsonl").write_text(json.dumps({"job_id": "7_3", "node": "n2", "kind": "check"}) + "\n")
    (tmp_path / "state").write_text("RUNNING")
    for program, text in (("scontrol", SCONTROL), ("scancel", SCONTROL), ("sleep", "#!/bin/bash\n")):
        (tmp_path / program).write_text(text)
        (tmp_path / program).chmod(0o755)
    return Batch(tmp_path, run)


def test_the_script_acts_and_keeps_the_exit_code(batch: Batch) -> None:
    """Also while SLURM ends the job because of the requeue; and where the user's own lines said `set -e`."""
    done = batch.start(71, before="set -e")
    said = done.communicate()[1]
    assert done.returncode == 71, said
    assert batch.asked() == [SHOW, *REQUEUED]
    assert "requeue n2 (bad node (1 of 5))" in said
    assert "@" not in "\n".join(after_srun("R", "P")).replace('"$@"', "")
    assert SCRIPT.count("exit $rc") == 1


def test_the_script_asks_again_while_the_controller_restarts(batch: Batch) -> None:
    (batch.place / "failures").write_text("Unable to contact slurm controller\n" * 2)
    said = batch.start(71).communicate()[1]
    assert batch.asked() == [SHOW, SHOW, SHOW, *REQUEUED], said


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING"])
def test_a_signal_while_the_script_asks(batch: Batch, state: str) -> None:
    """SLURM's TERM ends the program that finds out: preempted, the run would be lost; cancelled, it must stay."""
    slow = batch.place / "python"
    slow.write_text(f'#!/bin/bash\n[ -e slow ] || {{ touch slow; exec /bin/sleep 60; }}\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    script = batch.start(71, str(slow))
    while not (batch.place / "slow").exists():
        time.sleep(0.02)
    (batch.place / "state").write_text(state)
    os.killpg(script.pid, signal.SIGTERM)
    assert script.communicate()[1]
    assert script.returncode == 71
    assert batch.asked() == [SHOW, SHOW, *(REQUEUED if state == "RUNNING" else [])]


def test_the_script_gives_up(batch: Batch) -> None:
    """Where nothing can be found out it ends, with srun's code."""
    done = batch.start(137, "/nowhere/python")
    done.communicate()
    assert done.returncode == 137
    assert set(batch.asked()) == {SHOW}
    assert len(batch.asked()) == 5


def test_a_signal_before_the_ranks_are_there(batch: Batch) -> None:
    """Preempted while modules are loaded: the script stays, as SLURM requeues only what is there when it kills."""
    (batch.place / "sleep").unlink()
    config = loads(
        RunFolder(batch.run).config.read_text(), "test", ["cluster.setup=['touch here; sleep 60 || exit 1']"]
    )
    script = subprocess.Popen(
        ["bash", "-c", "\n".join(before(config, batch.run))], cwd=batch.place, start_new_session=True
    )
    while not (batch.place / "here").exists():
        time.sleep(0.02)
    time.sleep(0.2)
    os.killpg(script.pid, signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        script.wait(0.5)
    os.killpg(script.pid, signal.SIGKILL)
    script.wait()
