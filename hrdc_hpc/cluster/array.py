"""Several runs as elements of SLURM arrays, through submitit. Torch-free.

To every tool an element is an ordinary run: its logs and its pickle lie in its own folder. An array has one script, and
SLURM and submitit can put only the element's number into a path: so each array has a folder of links, by number,

    SWEEP/arrays/1/0 -> ../../method-hrdc_seed-0      SWEEP/arrays/1/1 -> ../../method-hrdc_seed-1      ...

and SWEEP/arrays/1/%a (for SLURM and submitit) or SWEEP/arrays/1/$SLURM_ARRAY_TASK_ID (for the shell) is the run folder.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from submitit.core.core import Job as SubmititJob
from submitit.core.utils import CommandFunction, DelayedSubmission, FailedJobError
from submitit.slurm.slurm import SlurmJob

from hrdc_hpc.cluster import dependencies, script
from hrdc_hpc.cluster.jobs import Job
from hrdc_hpc.cluster.submission import (
    Slurm,
    SubmissionRefused,
    configured,
    remove_old_meeting_points,
    to_sbatch,
)
from hrdc_hpc.cluster.task import TrainTask
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.files import fsync_folder


@dataclass(frozen=True)
class Part:
    """One of the arrays that a sweep is submitted as."""

    first: int
    """Index of its first element in what is submitted; its elements follow each other."""
    count: int
    throttle: int
    """Elements that run at once."""
    after: int | None = None
    """Index of the part that must have ended before; None: it may start at once."""


def parts(count: int, throttle: int, array_limit: int | None) -> list[Part]:
    """Split `count` elements into arrays of at most `array_limit`, so that at most `throttle` run at once.

    SLURM throttles each array by itself. The arrays get shares of the throttle; where there are more of them than that,
    some wait for others to end. Arrays are of equal size, so that their shares are used for equally long.
    """
    number = math.ceil(count / (array_limit or count))
    lanes = min(throttle, number)
    sizes = [count // number + (index < count % number) for index in range(number)]
    shares = [throttle // lanes + (lane < throttle % lanes) for lane in range(lanes)]
    return [
        Part(sum(sizes[:index]), size, min(size, shares[index % lanes]), index - lanes if index >= lanes else None)
        for index, size in enumerate(sizes)
    ]


class Array(Slurm):
    """submitit's executor for an array whose elements have folders of their own; submits within `batch()`.

    submitit's own way of submitting a batch makes a plain SlurmExecutor, and a plain job out of a single element.
    """

    def __init__(self, config: RunConfig, links: Path) -> None:
        """`links`: the array's folder; the run folder of element i is at its name i."""
        super().__init__(config, links / script.ELEMENT)
        self.folder = links / "%a" / "logs"
        self.links = links

    def log_pattern(self) -> str:
        """Return where the ranks log: an element's %j is not the id that it has for everybody else."""
        return super().log_pattern().replace("%j", "%A_%a")

    def of(self, count: int) -> Array:
        """Have it be an array of `count` elements."""
        self.parameters["map_count"] = count
        return self

    def _internal_process_submissions(self, submissions: Sequence[DelayedSubmission]) -> list[SubmititJob[Any]]:
        pickles = []
        for index, submission in enumerate(submissions):
            submission.set_timeout(self.parameters["time"], self.max_num_timeout)
            pickles.append(self.links / str(index) / "logs" / f".{uuid.uuid4().hex}.pkl")
            submission.dump(pickles[-1])
        text = self.links / "submission.sh"
        text.write_text(self.of(len(submissions)).sbatch_text())
        try:
            answer = CommandFunction(["sbatch", str(text)], verbose=False)()
        except FailedJobError:
            for pickle in pickles:
                pickle.unlink()
            raise
        array = self._get_job_id_from_submission_command(answer)
        jobs: list[SubmititJob[Any]] = [
            SlurmJob(self.folder, job_id=f"{array}_{index}", tasks=[0]) for index in range(len(pickles))
        ]
        for job, pickle in zip(jobs, pickles, strict=True):
            job.paths.move_temporary_file(pickle, "submitted_pickle")  # an element that starts now waits for it
        return jobs


def links_folder(sweep: Path, number: int) -> Path:
    """Folder of the links of a sweep's array with this number, from 1."""
    return sweep / "arrays" / str(number)


def sbatch_text(config: RunConfig, links: Path, part: Part, after: str | None = None) -> str:
    """Return the exact text that `submit` hands to sbatch. Writes nothing."""
    return _executor(config, links, part, after).of(part.count).sbatch_text()


def submit(config: RunConfig, runs: Sequence[Path], links: Path, part: Part, after: str | None = None) -> list[Job]:
    """Submit the runs as one array; their jobs.

    Args:
        config: of any of them, with the sweep's name; what it asks of SLURM goes for all.
        runs: their folders, of the part alone.
        links: a folder that is not there yet, for the array's links and its script.
        part: how they are submitted.
        after: id of the array that must have ended before.

    Raises SubmissionRefused with the scheduler's words, OSError when it is not known whether the jobs were taken.
    """
    links.mkdir(parents=True)
    for index, run in enumerate(runs):
        (links / str(index)).symlink_to(os.path.relpath(run, links))
        remove_old_meeting_points(run)
    fsync_folder(links)
    executor, since = _executor(config, links, part, after), time.time()
    try:
        with to_sbatch("array"), executor.batch():
            jobs = [executor.submit(TrainTask(str(run))) for run in runs]
    except SubmissionRefused:
        shutil.rmtree(links)
        raise
    return [Job("slurm", job.job_id, since) for job in jobs]


def _executor(config: RunConfig, links: Path, part: Part, after: str | None) -> Array:
    waiting = dependencies.waiting(config, after and f"afterany:{after}")
    throttled = replace(waiting, cluster=replace(waiting.cluster, array_parallelism=part.throttle))
    return configured(Array(throttled, links))
