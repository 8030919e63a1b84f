"""Places from environments as SLURM and submitit set them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hrdc_hpc.cluster.places import (
    forget_torch_variables,
    job_end_time,
    slurm_job_id,
    tasks_on_node,
    this_place,
)

RUN = Path("/runs/a b")
STEP = {
    "SLURM_JOB_ID": "71", "SLURM_STEP_ID": "0", "SLURM_PROCID": "4", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_TASKS_PER_NODE": "3,2", "SLURM_NTASKS": "5",
    "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "3", "SUBMITIT_EXECUTOR": "slurm",
}  # fmt: skip


def test_a_step_of_slurm() -> None:
    place = this_place(RUN, STEP)
    assert (place.rank, place.world_size, place.local_rank, place.local_world_size) == (4, 5, 1, 2)
    assert (
        place.job.items()
        >= {"cluster": "slurm", "job_id": "71", "restart_count": 0, "nodes": "n[1-2]", "cpus_per_rank": 3}.items()
    )
    assert place.rendezvous.parent.parent == RUN


@pytest.mark.parametrize(
    "other",
    [
        {"SLURM_RESTART_COUNT": "1"},
        {"SLURM_JOB_ID": "72"},
        {"SLURM_STEP_ID": "1"},
        {"SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "0"},
        {"SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "1"},
    ],
)
def test_every_start_of_every_job_meets_elsewhere_but_its_ranks_at_one_place(other: dict[str, str]) -> None:
    here = this_place(RUN, STEP | other).rendezvous
    assert here != this_place(RUN, STEP).rendezvous
    peer = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    assert this_place(RUN, STEP | other | peer).rendezvous == here


def test_an_array_element_is_named_by_array_and_index() -> None:
    # the last element's SLURM_JOB_ID is the array's own id: scontrol would requeue all elements
    array = {"SLURM_JOB_ID": "80", "SLURM_ARRAY_JOB_ID": "80", "SLURM_ARRAY_TASK_ID": "3"}
    assert slurm_job_id(array) == "80_3"
    assert slurm_job_id({"SLURM_JOB_ID": "80"}) == "80"
    assert slurm_job_id({}) is None


@pytest.mark.parametrize(("text", "counts"), [("2", [2]), ("2(x3),1", [2, 2, 2, 1]), ("1,2(x2)", [1, 2, 2])])
def test_tasks_on_node(text: str, counts: list[int]) -> None:
    assert [tasks_on_node(text, node) for node in range(len(counts))] == counts


def test_tasks_on_node_says_what_it_cannot_read() -> None:
    with pytest.raises(RuntimeError, match="cannot read 'two'"):
        tasks_on_node("two", 0)


def test_a_task_of_the_local_executor() -> None:
    environ = {
        "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_NTASKS": "2",
        "SUBMITIT_LOCAL_JOB_ID": "9", "SUBMITIT_LOCAL_START": "1700",
    }  # fmt: skip
    place = this_place(RUN, environ | {"SLURM_JOB_ID": "71"})  # also inside an allocation
    assert (place.rank, place.world_size, place.local_rank, place.local_world_size) == (1, 2, 1, 2)
    assert place.job["cluster"] == "local"
    later = this_place(RUN, environ | {"SUBMITIT_LOCAL_START": "1800"})  # process ids come again
    assert later.rendezvous != place.rendezvous


def test_a_single_process_never_meets_another() -> None:
    one, two = this_place(RUN, {}), this_place(RUN, {})
    assert (one.rank, one.world_size, one.local_rank, one.local_world_size) == (0, 1, 0, 1)
    assert one.rendezvous != two.rendezvous


def test_a_batch_script_without_srun_is_told_so() -> None:
    with pytest.raises(RuntimeError, match="put 'srun' in front"):
        this_place(RUN, {"SLURM_JOB_ID": "71", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"})


def test_torch_variables_of_another_job_are_forgotten() -> None:
    environ = {
        "MASTER_ADDR": "elsewhere",
        "MASTER_PORT": "1",
        "RANK": "3",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "3",
        "HOME": "/",
    }
    forget_torch_variables(environ)
    assert environ == {"HOME": "/"}


def test_the_end_of_the_job() -> None:
    soon = str(int(time.time()) + 60)
    assert job_end_time({"SLURM_JOB_END_TIME": soon}) == float(soon)
    for text in ("", "N/A", "0", str(int(time.time()) - 60)):
        assert job_end_time({"SLURM_JOB_END_TIME": text}) is None
    assert job_end_time({}) is None
