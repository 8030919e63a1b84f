"""Why each attempt ended, told from what it left in the run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrdc_hpc.cluster.history import history
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease

from attempts import add_attempt, empty_run


def test_a_run_without_attempts_has_no_history(tmp_path: Path) -> None:
    assert history(empty_run(tmp_path)) == []


@pytest.mark.parametrize(
    ("given", "cause", "words"),
    [
        ({"farewell": "finished"}, "finished", "finished"),
        ({"farewell": "SIGTERM", "end": (75, "preempted at 10:00", "preempted")}, "preempted", "preempted at 10:00"),
        ({"farewell": "SIGTERM", "end": (78, "cancelled", "cancelled")}, "cancelled", "cancelled"),
        ({"farewell": "SIGTERM"}, "stopped", "SIGTERM"),
        ({"farewell": "OSError: disk"}, "failed", "OSError: disk"),
        ({"end": (1, "OSError: disk", None)}, "failed", "OSError: disk"),
        ({"end": (70, "no step for 300 s", None)}, "hung", "no step for 300 s"),
        ({"end": (71, "GPU 3", None)}, "bad node", "GPU 3"),
        ({"end": (78, "ValueError: optim.lr", None)}, "refused", "ValueError: optim.lr"),
        ({"end": (-9, "killed by SIGKILL", None)}, "killed", "killed by SIGKILL"),
        ({}, "killed", "no farewell: killed or lost"),
    ],
)
def test_the_cause_of_an_end(tmp_path: Path, given: dict[str, object], cause: str, words: str) -> None:
    run = empty_run(tmp_path)
    add_attempt(run, **given)  # type: ignore[arg-type]
    (story,) = history(run)
    assert (story.cause, story.words) == (cause, words)
    assert (story.job_id, story.nodes, story.world_size) == ("7", "n[1-2]", 2)


def test_what_slurm_starts_again_without_a_word_lost_a_node(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    add_attempt(run)
    add_attempt(run, restart=1)
    add_attempt(run, job="8")
    assert [story.cause for story in history(run)] == ["node lost", "killed", "killed"]


def test_an_echo_does_not_hide_the_cause(tmp_path: Path) -> None:
    """The peers of a rank whose node is bad fail as well, and may write first."""
    run = empty_run(tmp_path)
    add_attempt(run, end=(1, "RuntimeError: Connection closed by peer", None))
    from hrdc_hpc.cluster.ends import note_end

    note_end(run, job_id="7", rank=1, code=71, reason="GPU 3", restart_count=0)
    assert history(run)[0].cause == "bad node"


def test_ends_of_other_starts_are_not_taken(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    add_attempt(run, end=(70, "hung", None))
    add_attempt(run, restart=1, farewell="finished")
    assert [story.cause for story in history(run)] == ["hung", "finished"]


def test_progress_is_a_new_checkpoint(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    add_attempt(run, saved=5)
    add_attempt(run, restart=1, resumed=5)
    add_attempt(run, restart=2, resumed=5)
    add_attempt(run, restart=3, resumed=15, saved=20)  # the one before was killed before it wrote down what it saved
    assert [(s.resumed_at, s.last_step, s.saved_step, s.progressed) for s in history(run)] == [
        (0, 10, 5, True), (5, 15, 5, False), (5, 15, 15, True), (15, 25, 20, True)
    ]  # fmt: skip


def test_who_holds_the_lease_is_at_work(tmp_path: Path) -> None:
    run = empty_run(tmp_path)
    add_attempt(run)
    lease = Lease.acquire(RunFolder(run), {"job_id": "7", "restart_count": 0, "cluster": "slurm"})
    assert history(run)[-1].cause == "running"
    lease.release()
    assert history(run)[-1].cause == "killed"
