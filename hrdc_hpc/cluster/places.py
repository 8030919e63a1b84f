"""Which rank this process is: the only module that reads a scheduler's environment. Torch-free."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from hrdc_hpc.engine.place import Place

RENDEZVOUS = "rendezvous"
"""Folder in the run folder for the files through which ranks meet."""

_TORCH_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
_JOB_FACTS = {
    "node": "SLURMD_NODENAME",
    "nodes": "SLURM_JOB_NODELIST",
    "partition": "SLURM_JOB_PARTITION",
    "array_job_id": "SLURM_ARRAY_JOB_ID",
    "array_task_id": "SLURM_ARRAY_TASK_ID",
    "end_time": "SLURM_JOB_END_TIME",
}


def this_place(run: Path, environ: Mapping[str, str] = os.environ) -> Place:
    """Return this process's place: a task of submitit's local executor, of an srun step, or a single process.

    Raises RuntimeError in a SLURM batch script of several tasks that forgot srun: it would wait for its peers for ever.
    """
    if environ.get("SUBMITIT_EXECUTOR") == "local":
        return _local(run, environ)
    if "SLURM_STEP_NUM_TASKS" in environ:
        return _slurm(run, environ)
    if int(environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environ:
        raise RuntimeError(
            f"job {environ.get('SLURM_JOB_ID')} has {environ['SLURM_NTASKS']} tasks, but srun did not start this"
            " process: put 'srun' in front of the command"
        )
    start = f"single-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    job: dict[str, str | int] = {
        "cluster": "none",
        "job_id": os.getpid(),
        "restart_count": 0,
        "host": socket.gethostname(),
    }
    return Place(0, 1, 0, 1, run / RENDEZVOUS / f"{start}.json", job)


def forget_torch_variables(environ: MutableMapping[str, str] = os.environ) -> None:
    """Remove torchrun's variables: inherited from the shell of the launcher they would name another job's ranks."""
    for name in _TORCH_VARIABLES:
        environ.pop(name, None)


def slurm_job_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the id that names this job, or this element of an array, to scontrol; None outside SLURM.

    An array's last element carries the array's own id in SLURM_JOB_ID, which would act on all of its elements.
    """
    if "SLURM_JOB_ID" not in environ:
        return None
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]


def job_end_time(environ: Mapping[str, str] = os.environ) -> float | None:
    """When SLURM ends the job at its time limit, Unix seconds on SLURM's clock; None where it does not say.

    A time that is past is none: what asks for it in the batch script may get an empty answer, and take it for today.
    """
    text = environ.get("SLURM_JOB_END_TIME", "")
    return float(text) if text.isdecimal() and float(text) > time.time() else None


def tasks_on_node(tasks_per_node: str, node: int) -> int:
    """Tasks on the node with index `node`, from SLURM's short form, e.g. '2(x3),1' for 2, 2, 2, 1."""
    counts: list[int] = []
    for part in tasks_per_node.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise RuntimeError(f"SLURM_STEP_TASKS_PER_NODE: cannot read {tasks_per_node!r}; known: '2(x3),1'")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[node]


def _local(run: Path, environ: Mapping[str, str]) -> Place:
    rank, size = int(environ["SUBMITIT_LOCAL_GLOBALID"]), int(environ["SUBMITIT_LOCAL_NTASKS"])
    job_id = environ["SUBMITIT_LOCAL_JOB_ID"]
    job: dict[str, str | int] = {
        "cluster": "local", "job_id": job_id, "restart_count": 0, "host": socket.gethostname(),
    }  # fmt: skip
    start = environ["SUBMITIT_LOCAL_START"]  # job_id is a process id, which comes again
    return Place(rank, size, rank, size, run / RENDEZVOUS / f"local-{job_id}-{start}.json", job)


def _slurm(run: Path, environ: Mapping[str, str]) -> Place:
    restarts = int(environ.get("SLURM_RESTART_COUNT", 0))
    job_id = slurm_job_id(environ)
    assert job_id is not None, "a step without a job"
    job: dict[str, str | int] = {
        "cluster": "slurm", "job_id": job_id, "restart_count": restarts, "host": socket.gethostname(),
    }  # fmt: skip
    job |= {fact: environ[name] for fact, name in _JOB_FACTS.items() if name in environ}
    if "SLURM_CPUS_PER_TASK" in environ:
        job["cpus_per_rank"] = int(environ["SLURM_CPUS_PER_TASK"])
    return Place(
        rank=int(environ["SLURM_PROCID"]),
        world_size=int(environ["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environ["SLURM_LOCALID"]),
        local_world_size=tasks_on_node(environ["SLURM_STEP_TASKS_PER_NODE"], int(environ["SLURM_NODEID"])),
        # the step too: a batch script may srun one after another
        rendezvous=run / RENDEZVOUS / f"slurm-{job_id}.{environ.get('SLURM_STEP_ID', 0)}-{restarts}.json",
        job=job,
    )
